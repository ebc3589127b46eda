//! What happens to a lowroad and a stock node that talk to each other: other addresses, restarts, a path that is cut, silence.

mod pings;

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};

use self::pings::Pings;
use super::{
    Lab,
    member::{Kind, Member},
    server::{self, KeyOptions, Server},
    table::Table,
};
use crate::{
    lab::{ALLOW_ALL, secs},
    tailnet::{Client, PathKind},
    topology::{Namespace, Nat},
    traffic::Pinger,
    wait,
};

const PACE: Duration = Duration::from_millis(20);
const LIMIT: Duration = secs(60);
/// By the relay, for a lowroad node that moves: a connection that is only asked whether it still answers takes 3 s.
const RELAY_AGAIN: Duration = secs(2);
/// A session of WireGuard is forgotten after 9 minutes (`REJECT_AFTER_TIME * 3`), a path by disco much sooner.
const IDLE: Duration = secs(600);

/// Two nodes, the second a stock one: on the public segment, or each behind a router.
struct Two {
    first: Member,
    second: Member,
    routers: Vec<Namespace>,
}

/// One of them.
#[derive(Debug, Clone, Copy)]
enum Who {
    First,
    Second,
}

#[derive(Debug, Clone, Copy)]
enum Change {
    /// To 203.0.113.x and 2001:db8::x, from the address before.
    Move(u8, u8),
    /// The same while it can send no UDP.
    MoveRelayed(u8, u8),
    /// Its router, so that nothing changes at the host itself.
    MoveRouter(u8, u8),
    Restart,
    /// Killed, and started again after this many seconds.
    Crash(u64),
    /// Its WireGuard port hears and says nothing for this many seconds.
    Mute(u64),
    /// It cannot reach anybody for this many seconds.
    Cut(u64),
}

/// A stock node that has moved keeps its connection to the relay by the address it has lost for a quarter of a minute, and hears nothing by it meanwhile:
/// so that comes last.
///
/// A stock peer trusts a direct path for 6.5 s after the last pong, and asks for one every 3 s. The last number is for how many seconds the pings may be silent at most
/// where lowroad is the first: what it does itself is not noticed, and for the rest stock's own times count, and the change's.
const CHANGES: &[(Who, &str, Change, u64)] = &[
    (Who::First, "moves", Change::Move(31, 131), 1),
    (Who::First, "moves back", Change::Move(131, 31), 1),
    (Who::First, "cannot send UDP for 20 s", Change::Mute(20), 8),
    (Who::Second, "cannot send UDP for 20 s", Change::Mute(20), 8),
    (
        Who::First,
        "moves while relayed",
        Change::MoveRelayed(31, 131),
        8,
    ),
    (
        Who::First,
        "moves back while relayed",
        Change::MoveRelayed(131, 31),
        8,
    ),
    (Who::First, "is cut off for 20 s", Change::Cut(20), 26),
    (Who::Second, "is cut off for 20 s", Change::Cut(20), 26),
    (Who::First, "is restarted", Change::Restart, 2),
    (Who::Second, "is restarted", Change::Restart, 8),
    (
        Who::First,
        "is killed, and starts again",
        Change::Crash(0),
        2,
    ),
    (Who::First, "is dead for 3 s", Change::Crash(3), 5),
    (
        Who::Second,
        "is killed, and starts again",
        Change::Crash(0),
        8,
    ),
    (Who::Second, "moves", Change::Move(32, 132), 8),
    (Who::Second, "moves back", Change::Move(132, 32), 8),
];

/// A host behind a router hears of nothing: it is found by the calls that a path is kept alive with, or when its relay is missed. A stock peer trusts the old path for 6.5 s as well.
const BEHIND_NATS: &[(Who, &str, Change, u64)] = &[
    (
        Who::First,
        "gets another address by its NAT",
        Change::MoveRouter(31, 131),
        30,
    ),
    (
        Who::Second,
        "gets another address by its NAT",
        Change::MoveRouter(32, 132),
        30,
    ),
];

/// `first` is lowroad, or stock for comparison.
pub fn under_traffic(lab: &Lab, table: &mut Table, kind: server::Kind, first: Kind) -> Result<()> {
    table.area(&format!(
        "changes under traffic, {} and stock on {}",
        first.name(),
        kind.name()
    ));
    let server = Server::start(lab, kind, ALLOW_ALL)?;
    let two = Two {
        first: Member::public(lab, first, first_name(first), 31)?,
        second: Member::public(lab, Kind::Stock, "stock", 32)?,
        routers: Vec::new(),
    };
    two.survive_all(lab, table, &server, CHANGES)
}

/// The same behind a router each.
pub fn behind_nats(lab: &Lab, table: &mut Table, kind: server::Kind, first: Kind) -> Result<()> {
    table.area(&format!(
        "routers get other addresses under traffic, {} and stock on {}",
        first.name(),
        kind.name()
    ));
    let server = Server::start(lab, kind, ALLOW_ALL)?;
    let mut routers = Vec::new();
    let mut node = |kind, name: &str, last| -> Result<Member> {
        let router = lab.net.router(&format!("{name}-nat"), last, Nat::Easy)?;
        let host = lab.net.behind(name, &router, 2)?;
        routers.push(router.namespace);
        Member::start(lab, kind, name, &host)
    };
    let (first, second) = (
        node(first, first_name(first), 31)?,
        node(Kind::Stock, "stock", 32)?,
    );
    let two = Two {
        first,
        second,
        routers,
    };
    two.survive_all(lab, table, &server, BEHIND_NATS)
}

/// The second one is called stock.
fn first_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Lowroad => "lowroad",
        Kind::Stock => "other",
    }
}

impl Two {
    /// One change after another, once both have joined.
    fn survive_all(
        mut self,
        lab: &Lab,
        table: &mut Table,
        server: &Server,
        changes: &[(Who, &str, Change, u64)],
    ) -> Result<()> {
        let key = server.auth_key("ann", KeyOptions::default())?;
        self.first.up(&key)?;
        self.second.up(&key)?;
        self.first.wait_for_peer(self.second.name(), LIMIT)?;
        self.second.wait_for_peer(self.first.name(), LIMIT)?;
        for (who, what, change, seconds) in changes {
            let case = format!("{} {what}", self.pair(*who).0.name());
            let longest = match self.first.kind() {
                Kind::Lowroad => secs(*seconds),
                Kind::Stock => LIMIT,
            };
            table.try_it(&case, || self.survives(lab, *who, *change, longest));
        }
        Ok(())
    }

    /// This one, and the other.
    fn pair(&self, who: Who) -> (&Member, &Member) {
        match who {
            Who::First => (&self.first, &self.second),
            Who::Second => (&self.second, &self.first),
        }
    }

    fn direct(&self) -> Result<()> {
        self.first.wait_for_direct(self.second.name(), LIMIT)?;
        self.second.wait_for_direct(self.first.name(), LIMIT)?;
        Ok(())
    }

    fn pings(&self) -> Result<Pings> {
        Pings::between(&self.first, &self.second)
    }

    /// Both directions answer again after the change, silent for no longer than this, and become direct again.
    fn survives(
        &mut self,
        lab: &Lab,
        who: Who,
        change: Change,
        longest: Duration,
    ) -> Result<String> {
        let before = self.pings()?;
        before.first_answers()?;
        self.direct().context("before")?;
        drop(before);
        let pings = self.pings()?;
        wait::pass(secs(1))?;
        let relayed = self.apply(lab, who, change)?;
        let begin = Instant::now();
        pings.go_on()?;
        self.direct().context("afterwards")?;
        let direct = begin.elapsed();
        let reports = pings.stop()?;
        for (way, report) in &reports {
            let silent = report.longest_silence;
            ensure!(
                silent <= longest,
                "{way}: silent for {silent:.2?}: {report}"
            );
        }
        let told = reports.iter().map(|(way, report)| {
            format!(
                "{way}: silent for {:.2} s, {} of {} lost; ",
                report.longest_silence.as_secs_f64(),
                report.lost(),
                report.sent
            )
        });
        Ok(format!(
            "{}{relayed}direct {:.1} s after it",
            told.collect::<String>(),
            direct.as_secs_f64()
        ))
    }

    /// Says by what the pings went meanwhile, where it has to be the relay.
    fn apply(&mut self, lab: &Lab, who: Who, change: Change) -> Result<String> {
        let (member, last) = match who {
            Who::First => (&mut self.first, 31),
            Who::Second => (&mut self.second, 32),
        };
        match change {
            Change::Move(old, new) => member.move_on_segment(old, new)?,
            Change::MoveRelayed(old, new) => return self.move_relayed(who, old, new),
            Change::MoveRouter(old, new) => return self.move_router(who, old, new),
            Change::Restart => member.restart()?,
            Change::Crash(seconds) => member.crash(secs(seconds))?,
            Change::Mute(seconds) => return self.mute(who, secs(seconds)),
            Change::Cut(seconds) => {
                lab.net.cut(last)?;
                wait::pass(secs(seconds))?;
                lab.net.heal(last)?;
            }
        }
        Ok(String::new())
    }

    /// The mappings of the old address go with it.
    fn move_router(&self, who: Who, old: u8, new: u8) -> Result<String> {
        let (member, other) = self.pair(who);
        let router = match who {
            Who::First => self.routers.first(),
            Who::Second => self.routers.get(1),
        };
        router.context("a node without a router")?.ip(&format!(
            "addr del 203.0.113.{old}/24 dev wan0\n\
             addr add 203.0.113.{new}/24 dev wan0"
        ))?;
        let new = format!("203.0.113.{new}:");
        let (_, time) = wait::wait_for("a direct path by the new address", LIMIT, || {
            let path = other.path_to(member.name())?;
            let is_new = matches!(path, PathKind::Direct(address) if address.starts_with(&new));
            Ok(is_new.then_some(()))
        })?;
        Ok(format!(
            "by the new address {:.1} s after it, ",
            time.as_secs_f64()
        ))
    }

    /// Pings go on over the relay.
    fn mute(&self, who: Who, time: Duration) -> Result<String> {
        let first = self.without_udp(who, |member, other| {
            let begin = Instant::now();
            let first = relayed(time, member, other)?;
            wait::pass(time.saturating_sub(begin.elapsed()))?;
            still_relayed(member, other)?;
            Ok(first)
        })?;
        Ok(format!(
            "relayed {:.1} s after it began, ",
            first.as_secs_f64()
        ))
    }

    /// What goes over the relay goes on: the connection to it was by an address that is gone.
    fn move_relayed(&self, who: Who, old: u8, new: u8) -> Result<String> {
        let (first, reports) = self.without_udp(who, |member, other| {
            let first = relayed(LIMIT, member, other)?;
            let pings = self.pings()?;
            pings.first_answers()?;
            member.move_on_segment(old, new)?;
            pings.go_on()?;
            still_relayed(member, other)?;
            Ok((first, pings.stop()?))
        })?;
        let longest = match self.pair(who).0.kind() {
            Kind::Lowroad => RELAY_AGAIN,
            Kind::Stock => LIMIT,
        };
        let mut silent = Duration::ZERO;
        for (way, report) in &reports {
            silent = silent.max(report.longest_silence);
            ensure!(
                report.longest_silence <= longest,
                "{way}, over the relay: {report}"
            );
        }
        Ok(format!(
            "relayed {:.1} s after it began, silent for {:.2} s by the move, ",
            first.as_secs_f64(),
            silent.as_secs_f64()
        ))
    }

    /// With all UDP of this one dropped.
    fn without_udp<T>(
        &self,
        who: Who,
        what: impl FnOnce(&Member, &Member) -> Result<T>,
    ) -> Result<T> {
        let (member, other) = self.pair(who);
        member.namespace().nft(
            "table inet mute {
                chain out { type filter hook output priority 0; oifname wan0 meta l4proto udp drop; }
                chain in { type filter hook input priority 0; iifname wan0 meta l4proto udp drop; }
            }",
        )?;
        let result = what(member, other);
        // Also where it failed: the other cases want their UDP.
        member.namespace().nft("delete table inet mute")?;
        result
    }
}

/// When the first answer came by the relay.
fn relayed(limit: Duration, member: &Member, other: &Member) -> Result<Duration> {
    let ping = Pinger::start(member.namespace(), other.ip(4)?, PACE)?;
    let first = ping.first_answer(limit)?;
    still_relayed(member, other)?;
    Ok(first)
}

fn still_relayed(member: &Member, other: &Member) -> Result<()> {
    let path = member.path_to(other.name())?;
    ensure!(!path.is_direct(), "{path:?} without UDP");
    Ok(())
}

/// Nobody sends anything for ten minutes, and then one does: in each direction, by nodes of their own.
pub fn idle(lab: &Lab, table: &mut Table, kind: server::Kind) -> Result<()> {
    table.area(&format!(
        "idle for {} minutes, lowroad and stock on {}",
        IDLE.as_secs() / 60,
        kind.name()
    ));
    let server = Server::start(lab, kind, ALLOW_ALL)?;
    let key = server.auth_key("ann", KeyOptions::default())?;
    let node = |kind, name, last| -> Result<Member> {
        let node = Member::behind(lab, kind, name, last, Nat::Easy)?;
        node.up(&key)?;
        Ok(node)
    };
    let ways = [
        (
            node(Kind::Lowroad, "asking-lowroad", 21)?,
            node(Kind::Stock, "asked-stock", 22)?,
        ),
        (
            node(Kind::Stock, "asking-stock", 23)?,
            node(Kind::Lowroad, "asked-lowroad", 24)?,
        ),
    ];
    for (from, to) in &ways {
        let ping = Pinger::start(from.namespace(), to.ip(4)?, PACE)?;
        ping.first_answer(LIMIT)?;
        from.wait_for_direct(to.name(), LIMIT)?;
    }
    wait::pass(IDLE)?;
    for node in ways.iter().flat_map(|(from, to)| [from, to]) {
        table.try_it(
            &format!("{}: no health warning after it", node.name()),
            || super::healthy(node).map(|()| String::new()),
        );
    }
    let again = |from: &Member, to: &Member| -> Result<String> {
        let ping = Pinger::start(from.namespace(), to.ip(4)?, PACE)?;
        let first = ping.first_answer(LIMIT)?;
        let (_, direct) = from.wait_for_direct(to.name(), LIMIT)?;
        wait::pass(secs(2))?;
        let report = ping.stop();
        ensure!(first <= secs(1), "the first answer came after {first:.2?}");
        ensure!(report.lost() <= 2, "{report}");
        Ok(format!(
            "first answer after {:.2} s, direct {:.2} s later, {} of {} lost",
            first.as_secs_f64(),
            direct.as_secs_f64(),
            report.lost(),
            report.sent
        ))
    };
    // At the same time: what one way wakes up is none of the other's.
    let results = thread::scope(|scope| {
        let running = ways
            .each_ref()
            .map(|(from, to)| scope.spawn(|| again(from, to)));
        running.map(|thread| thread.join().unwrap_or_else(|_| Err(anyhow!("panicked"))))
    });
    for ((from, to), result) in ways.iter().zip(results) {
        table.try_it(&format!("{} to {}", from.name(), to.name()), || result);
    }
    Ok(())
}
