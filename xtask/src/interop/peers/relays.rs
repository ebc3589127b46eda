//! Two nodes that reach each other by relays only, one of which is the stock one.

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{FIRST, PACE, lost_since_the_first_answer, traffic_between};
use crate::{
    interop::{
        Lab,
        hosts::RELAY_HOST,
        member::{Kind, Member},
        relay,
        server::{self, KeyOptions, Server},
        table::Table,
    },
    lab::{ALLOW_ALL, secs},
    process::Daemon,
    tailnet::{COORDINATOR, Client, PathKind},
    topology::{Nat, Router},
    traffic::Pinger,
    wait,
};

/// A node measures its relays again at least every half minute, while it has something to send.
const MEASURED_AGAIN: Duration = secs(90);
/// It asks the lost one first, and others the next time.
const ANOTHER_HOME: Duration = secs(150);

/// Which home relays two nodes have that reach each other by relays only: the server's own, or the stock relay.
#[derive(Debug, Clone, Copy)]
pub struct Homes {
    name: &'static str,
    lowroad: Home,
    stock: Home,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Home {
    Servers,
    StockRelay,
}

pub const OWN: Homes = Homes {
    name: "each with a home relay of its own",
    lowroad: Home::Servers,
    stock: Home::StockRelay,
};
pub const STOCK_RELAY: Homes = Homes {
    name: "both at home on the stock relay",
    lowroad: Home::StockRelay,
    stock: Home::StockRelay,
};

impl Home {
    /// Host of the relay whose STUN server does not answer: that one is no home.
    fn deaf_to(self) -> u8 {
        match self {
            Self::Servers => RELAY_HOST,
            Self::StockRelay => COORDINATOR,
        }
    }

    /// Whether that is the relay with this code.
    fn is(self, code: &str) -> bool {
        !code.is_empty() && (code == relay::CODE) == (self == Self::StockRelay)
    }
}

/// A node, and the router that decides which relay is its home.
struct Place {
    node: Member,
    router: Router,
}

impl Place {
    /// Behind a hard NAT, at 203.0.113.`last`.
    fn new(lab: &Lab, kind: Kind, last: u8, home: Home) -> Result<Self> {
        let name = kind.name();
        let router = lab.net.router(&format!("{name}-nat"), last, Nat::Hard)?;
        let other = format!("203.0.113.{}", home.deaf_to());
        router.namespace.keep_from_stun(&other)?;
        let node = Member::start(lab, kind, name, &lab.net.behind(name, &router, 2)?)?;
        Ok(Self { node, router })
    }

    fn hear_all(&self) -> Result<()> {
        self.router.namespace.hear_stun()
    }
}

/// Two nodes behind hard NATs: each reaches the other over the other's home relay.
pub fn by_relays(lab: &Lab, table: &mut Table, kind: server::Kind, homes: Homes) -> Result<()> {
    table.area(&format!(
        "lowroad and stock on {}, {}",
        kind.name(),
        homes.name
    ));
    let relay = relay::start_verifying(lab)?;
    let server = Server::with_second_relay(lab, kind, ALLOW_ALL)?;
    let key = server.auth_key("ann", KeyOptions::default())?;
    let places = [
        Place::new(lab, Kind::Lowroad, 21, homes.lowroad)?,
        Place::new(lab, Kind::Stock, 22, homes.stock)?,
    ];
    let [lowroad, stock] = places.each_ref().map(|place| &place.node);
    for (node, home) in [(lowroad, homes.lowroad), (stock, homes.stock)] {
        node.up(&key)?;
        settles(node, home)?;
    }
    for (from, to, home) in [
        (lowroad, stock, homes.stock),
        (stock, lowroad, homes.lowroad),
    ] {
        table.try_it(&format!("{} to {}", from.name(), to.name()), || {
            one_way(from, to, home)
        });
        traffic_between(table, from, to)?;
    }
    table.try_it(
        "the stock relay refuses a node of no tailnet, as the server says",
        || refuses_a_stranger(&relay.log, lowroad, stock),
    );
    if homes.lowroad == Home::StockRelay && homes.stock == Home::StockRelay {
        table.try_it(
            "the stock relay ends: both have another home, and are told of the other's",
            || find_another_home(relay, &places),
        );
    }
    Ok(())
}

/// A host that is short of time may hear no STUN server in time, and choose by HTTPS, until it measures again.
fn settles(node: &Member, wanted: Home) -> Result<()> {
    let home = || {
        let code = code(&node.status()?["Self"]);
        Ok(wanted.is(&code).then_some(()))
    };
    wait::wait_for("the home relay that it has to have", MEASURED_AGAIN, home)
        .map(drop)
        .with_context(|| node.name().to_owned())
}

/// From the first packet on, by this relay, which is the other's home.
fn one_way(from: &Member, to: &Member, home: Home) -> Result<String> {
    from.wait_for_peer(to.name(), FIRST)?;
    let ping = Pinger::start(from.namespace(), to.ip(4)?, PACE)?;
    let begin = Instant::now();
    let first = ping.first_answer(FIRST)?;
    wait::pass(secs(2))?;
    let path = from.path_to(to.name())?;
    let wanted = match &path {
        PathKind::Relay(code) => home.is(code),
        PathKind::Direct(_) | PathKind::None => false,
    };
    ensure!(wanted, "by {path:?}");
    let report = ping.stop();
    let lost = lost_since_the_first_answer(&report, begin)?;
    Ok(format!(
        "{path:?}, first after {:.2} s, {lost} of {} lost since",
        first.as_secs_f64(),
        report.sent
    ))
}

/// The home relay in what a status says of a node.
fn code(node: &Value) -> String {
    node["Relay"].as_str().unwrap_or_default().to_owned()
}

/// The stock client can try a relay with a key that nobody knows. What it says of that is the same either way: it does not wait for the relay's answer.
fn refuses_a_stranger(log: &Path, lowroad: &Member, stock: &Member) -> Result<String> {
    let before = refused(&fs::read_to_string(log)?);
    let mut members = BTreeSet::new();
    for node in [lowroad, stock] {
        let key = node.node_key()?;
        let key = key.as_str().context("a node without a key")?.to_owned();
        ensure!(!before.contains(&key), "it refused {}", node.name());
        members.insert(key);
    }
    let said = stock.cli(&["debug", "derp", relay::CODE])?;
    let (stranger, time) = wait::wait_for("a refusal in the relay's log", FIRST, || {
        let all = refused(&fs::read_to_string(log)?);
        Ok(all.difference(&before).next().cloned())
    })
    .with_context(|| said)?;
    ensure!(!members.contains(&stranger), "it refused one of the two");
    Ok(format!(
        "{stranger}, in its log after {:.2} s",
        time.as_secs_f64()
    ))
}

/// The keys that were not let in, because the server said so.
fn refused(log: &str) -> BTreeSet<String> {
    let key = |line: &str| {
        let (_, who) = line.split_once("admission controller: ")?;
        let (key, _) = who.strip_suffix(" not allowed")?.split_once('/')?;
        Some(key.to_owned())
    };
    log.lines().filter_map(key).collect()
}

fn find_another_home(relay: Daemon, places: &[Place; 2]) -> Result<String> {
    for place in places {
        place.hear_all()?;
    }
    drop(relay);
    let start = Instant::now();
    let [lowroad, stock] = places.each_ref().map(|place| &place.node);
    let both = [(lowroad, stock), (stock, lowroad)];
    // Who says nothing measures nothing.
    let ping = |(from, to): (&Member, &Member)| -> Result<Pinger> {
        Pinger::start(from.namespace(), to.ip(4)?, PACE)
    };
    let pings = [ping(both[0])?, ping(both[1])?];
    wait::wait_for("the same home of both", ANOTHER_HOME, || {
        for (node, peer) in both {
            let own = code(&node.status()?["Self"]);
            let peers = code(&node.peer(peer.name())?.context("no such peer")?);
            ensure!(
                [&own, &peers].iter().all(|code| Home::Servers.is(code)),
                "for {} its own is {own:?}, the other's {peers:?}",
                node.name()
            );
        }
        Ok(Some(()))
    })?;
    let moved = start.elapsed();
    for ping in &pings {
        ping.first_answer(FIRST)?;
    }
    Ok(format!(
        "after {:.1} s, answers both ways after {:.1} s",
        moved.as_secs_f64(),
        start.elapsed().as_secs_f64()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_relays_log_tells_whom_the_server_did_not_let_in() {
        let log = "\
            2026/11/30 12:00:00 derper: serving on :443 with TLS\n\
            2026/11/30 12:00:01 derp: 203.0.113.22:4711: client nodekey:ab rejected: admission controller: nodekey:ab/203.0.113.22 not allowed\n\
            2026/11/30 12:00:02 derp: 203.0.113.22:4712: client nodekey:cd rejected: admission controller: 502 Bad Gateway\n";
        assert_eq!(refused(log), BTreeSet::from(["nodekey:ab".to_owned()]));
    }
}
