//! Eight nodes, four of each kind, while nodes restart, addresses change and policies come and go.

mod paths;
mod turns;
mod usage;

use std::{
    net::{IpAddr, SocketAddr},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};

use self::{
    paths::Place,
    turns::{Addresses, Change},
    usage::Usage,
};
use super::{
    Lab,
    member::{Kind, Member},
    server::{self, KeyOptions, Server},
    table::Table,
};
use crate::{
    lab::{ALLOW_ALL, secs},
    signals,
    tailnet::Client,
    topology::Nat,
    traffic::{self, Pinger},
    wait,
};

const MINUTE: Duration = secs(60);
/// After the last change of a minute: for what has to settle.
const SETTLE: Duration = secs(20);
const PACE: Duration = Duration::from_millis(100);
const SILENCE: Duration = secs(1);
/// For a direct path, of nodes that have talked before.
const UPGRADE: Duration = secs(60);
const QUICK: Duration = Duration::from_millis(20);
const PORT: u16 = 80;
const BYTES: usize = 100_000_000;
const USERS: [&str; 2] = ["ann", "bob"];
/// The first of the eight are on the public segment.
const PUBLIC: usize = 4;
/// Of them and of the others' routers: the last number of the first one's addresses.
const FIRST: u8 = 30;
/// Of the hosts of the public segment: lowroad 0 and 2, stock 1 and 3.
const KINDS: [(usize, usize); 4] = [(0, 2), (0, 1), (1, 0), (1, 3)];

/// A policy, and whether it lets the first user's node reach the second's.
struct Policy {
    name: &'static str,
    text: &'static str,
    allows: fn(from: &str, to: &str) -> bool,
}

const POLICIES: [Policy; 3] = [
    Policy {
        name: "everybody",
        text: ALLOW_ALL,
        allows: |_, _| true,
    },
    Policy {
        name: "ann's nodes only",
        text: r#"{"acls": [{"action": "accept", "src": ["ann@"], "dst": ["*:*"]}]}"#,
        allows: |from, _| from == "ann",
    },
    Policy {
        name: "each user's own nodes",
        text: r#"{"acls": [{"action": "accept", "src": ["autogroup:member"], "dst": ["autogroup:self:*"]}]}"#,
        allows: |from, to| from == to,
    },
];

#[derive(Debug)]
struct Node {
    member: Member,
    user: &'static str,
    place: Place,
    usage: Usage,
}

struct Eight {
    server: Server,
    nodes: Vec<Node>,
    addresses: Addresses,
    policy: &'static Policy,
}

pub fn churn(lab: &Lab, table: &mut Table, kind: server::Kind) -> Result<()> {
    table.area(&format!(
        "eight nodes on {}, for {} minutes",
        kind.name(),
        lab.minutes
    ));
    let mut eight = join(lab, kind)?;
    eight.check().context("before any change")?;
    let watched = lab.minutes.min(usage::MINUTES);
    let begin = Instant::now();
    for minute in 1..=lab.minutes {
        signals::check()?;
        let mut done = String::new();
        table.try_it(&format!("minute {minute}"), || {
            let end = begin + MINUTE * u32::try_from(minute)?;
            if minute + watched == lab.minutes + 1 {
                eight.mark()?;
            }
            done = eight.change(lab, minute)?;
            wait::pass((end - SETTLE).saturating_duration_since(Instant::now()))?;
            let pairs = eight.check().with_context(|| done.clone())?;
            wait::pass(end.saturating_duration_since(Instant::now()))?;
            Ok(format!("{done}; {}: {pairs}", eight.policy.name))
        });
    }
    eight.figures(table, watched)
}

/// Of the eight.
fn kind(number: usize) -> Kind {
    [Kind::Lowroad, Kind::Stock][number % 2]
}

fn place(number: usize) -> Place {
    match number {
        0..PUBLIC => Place::Public,
        4 | 5 => Place::Behind(Nat::Easy),
        6 => Place::Behind(Nat::Hard),
        _ => Place::Behind(Nat::UdpBlocked),
    }
}

fn join(lab: &Lab, server: server::Kind) -> Result<Eight> {
    let server = Server::start(lab, server, ALLOW_ALL)?;
    let mut nodes = Vec::new();
    for (number, last) in (0..8).zip(FIRST..) {
        let (kind, place) = (kind(number), place(number));
        let user = USERS[number / 2 % 2];
        let name = format!("{}{number}", kind.name());
        let member = place.start(lab, kind, &name, last)?;
        member.up(&server.auth_key(user, KeyOptions::default())?)?;
        nodes.push(Node {
            member,
            user,
            place,
            usage: Usage::default(),
        });
    }
    Ok(Eight {
        server,
        nodes,
        addresses: Addresses::at_first(),
        policy: &POLICIES[0],
    })
}

/// Whether pings to both addresses are answered, as is wanted of these two.
fn pair(from: &Member, to: &Member, addresses: [IpAddr; 2], wanted: bool) -> Result<()> {
    let [v4, v6] = addresses.map(|address| Pinger::start(from.namespace(), address, PACE));
    let pings = [v4?, v6?];
    let seen = || {
        let [v4, v6] = pings.each_ref().map(Pinger::answered);
        format!(
            "{} to {}: {v4} answers over IPv4, {v6} over IPv6",
            from.name(),
            to.name()
        )
    };
    if wanted {
        let all = || {
            let all = pings.iter().all(|ping| ping.answered() > 0);
            Ok(all.then_some(()))
        };
        let answered = wait::wait_for("answers over both", SETTLE, all);
        return answered.map(drop).with_context(seen);
    }
    wait::pass(SILENCE)?;
    let silent = pings.iter().all(|ping| ping.answered() == 0);
    ensure!(silent, "refused, and answered: {}", seen());
    Ok(())
}

impl Node {
    /// Its daemon ends by this.
    fn ends(&mut self, by: impl FnOnce(&mut Member) -> Result<()>) -> Result<()> {
        let noted = self.usage.ends(&self.member);
        by(&mut self.member)?;
        noted
    }
}

impl Eight {
    /// What happens in this minute, in turns.
    fn change(&mut self, lab: &Lab, minute: u64) -> Result<String> {
        let chosen = turns::chosen(minute);
        let node = &mut self.nodes[chosen];
        let name = node.member.name().to_owned();
        Ok(match Change::of(minute) {
            Change::Restart => {
                node.ends(Member::restart)?;
                format!("{name} restarted")
            }
            Change::Kill => {
                node.ends(|member| member.crash(Duration::ZERO))?;
                format!("{name} killed and started again")
            }
            Change::Policy => {
                self.policy = &POLICIES[(turns::round(minute) + 1) % POLICIES.len()];
                self.server.set_policy(self.policy.text)?;
                "another policy".to_owned()
            }
            Change::Move => self.moves(minute)?,
            Change::Cut => {
                let last = FIRST + u8::try_from(chosen)?;
                lab.net.cut(last)?;
                wait::pass(secs(10))?;
                lab.net.heal(last)?;
                format!("{name} cut off for 10 s")
            }
        })
    }

    /// A host of the public segment, in both families.
    fn moves(&mut self, minute: u64) -> Result<String> {
        let step = self.addresses.step(minute);
        let member = &self.nodes[step.host].member;
        member.move_on_segment(step.old, step.new)?;
        self.addresses.made(&step);
        Ok(format!(
            "{} moved to 203.0.113.{1} and 2001:db8::{1}",
            member.name(),
            step.new
        ))
    }

    /// What is used from now on is told by itself.
    fn mark(&mut self) -> Result<()> {
        for Node { member, usage, .. } in &mut self.nodes {
            usage.mark(member)?;
        }
        Ok(())
    }

    /// Every pair that the policy allows answers, and no other.
    fn check(&self) -> Result<String> {
        let addresses: Vec<[IpAddr; 2]> = self
            .nodes
            .iter()
            .map(|node| Ok([node.member.ip(4)?, node.member.ip(6)?]))
            .collect::<Result<_>>()?;
        let one = |from: usize, to: usize| -> Result<bool> {
            let address = addresses[to];
            let (from, to) = (&self.nodes[from], &self.nodes[to]);
            let wanted = (self.policy.allows)(from.user, to.user);
            let (from, to) = (&from.member, &to.member);
            pair(from, to, address, wanted).map_err(|error| {
                let (from, to) = (from.knows_of(to.name()), to.knows_of(from.name()));
                anyhow!("{error:#} ({from}; {to})")
            })?;
            Ok(wanted)
        };
        let all =
            (0..self.nodes.len()).flat_map(|from| (0..self.nodes.len()).map(move |to| (from, to)));
        let pairs: Vec<_> = all.filter(|(from, to)| from != to).collect();
        let results: Vec<Result<bool>> = thread::scope(|scope| {
            let running: Vec<_> = pairs
                .iter()
                .map(|&(from, to)| scope.spawn(move || one(from, to)))
                .collect();
            let end = |thread: thread::ScopedJoinHandle<'_, _>| {
                thread.join().unwrap_or_else(|_| Err(anyhow!("panicked")))
            };
            running.into_iter().map(end).collect()
        });
        let failed: Vec<_> = results
            .iter()
            .filter_map(|result| result.as_ref().err())
            .map(|error| format!("{error:#}"))
            .collect();
        ensure!(
            failed.is_empty(),
            "{} of {} pairs: {}",
            failed.len(),
            pairs.len(),
            failed.join("; ")
        );
        let allowed = results
            .iter()
            .filter(|result| matches!(result, Ok(true)))
            .count();
        Ok(format!(
            "{allowed} pairs answer, {} are refused",
            pairs.len() - allowed
        ))
    }

    /// What it costs with either kind, side by side, and by which paths they reach each other.
    fn figures(&mut self, table: &mut Table, minutes: u64) -> Result<()> {
        for kind in [Kind::Lowroad, Kind::Stock] {
            table.try_it(&format!("{} nodes: memory and CPU", kind.name()), || {
                let nodes = self.nodes.iter();
                usage::told(nodes.filter(|node| node.member.kind() == kind), minutes)
            });
        }
        table.try_it("CPU of lowroad nodes, by that of stock ones", || {
            usage::compared(&self.nodes)
        });
        self.policy = &POLICIES[0];
        self.server.set_policy(self.policy.text)?;
        paths::of_all(&self.nodes, table)?;
        for (from, to) in KINDS {
            let [from, to] = [from, to].map(|number| &self.nodes[number].member);
            let what = format!("{} to {}", from.kind().name(), to.kind().name());
            table.try_it(&format!("{what}, after all that: ping and TCP"), || {
                latency_and_throughput(from, to)
            });
        }
        Ok(())
    }
}

/// Over the direct path, which they have found by then.
fn latency_and_throughput(from: &Member, to: &Member) -> Result<String> {
    let address = to.ip(4)?;
    let ping = Pinger::start(from.namespace(), address, PACE)?;
    from.wait_for_direct(to.name(), UPGRADE)?;
    drop(ping);
    let ping = Pinger::start(from.namespace(), address, QUICK)?;
    wait::pass(secs(5))?;
    let report = ping.stop();
    let median = report.median.with_context(|| report.to_string())?;
    let _web = traffic::Server::start(to.namespace(), PORT)?;
    let got = traffic::get(
        from.namespace(),
        SocketAddr::new(address, PORT),
        BYTES,
        secs(60),
    )?;
    Ok(format!(
        "median {:.2} ms, {} of {} lost; {} MB byte-exact at {:.0} Mbit/s",
        median.as_secs_f64() * 1e3,
        report.lost(),
        report.sent,
        BYTES / 1_000_000,
        got.megabits_per_second()
    ))
}
