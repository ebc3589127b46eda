//! lowroad and stock nodes as peers, in both directions.

mod relays;
mod shown;

use std::{
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

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
    traffic::{self, Flood, Pinger, Report, fits},
    wait,
};

pub use relays::{Homes, OWN, STOCK_RELAY, by_relays};

/// Where the two are, and what has to become of the path between them.
#[derive(Debug, Clone, Copy)]
pub struct Places {
    name: &'static str,
    lowroad: Behind,
    stock: Behind,
    direct: bool,
}

/// What kind of router a node is behind.
#[derive(Debug, Clone, Copy)]
enum Behind {
    V4(Nat),
    /// No IPv4 anywhere, and only answers let in.
    V6,
    /// None: on the public segment itself.
    Nothing,
    /// The same one for both.
    OneRouter,
}

pub const ONE_NETWORK: Places = Places {
    name: "direct on one network",
    lowroad: Behind::Nothing,
    stock: Behind::Nothing,
    direct: true,
};
pub const ONE_LAN: Places = Places {
    name: "on one LAN behind a NAT",
    lowroad: Behind::OneRouter,
    stock: Behind::OneRouter,
    direct: true,
};
pub const EASY: Places = Places {
    name: "two easy NATs",
    lowroad: Behind::V4(Nat::Easy),
    stock: Behind::V4(Nat::Easy),
    direct: true,
};
pub const HARD: Places = Places {
    name: "an easy and a hard NAT",
    lowroad: Behind::V4(Nat::Easy),
    stock: Behind::V4(Nat::Hard),
    direct: false,
};
pub const HARD_LOWROAD: Places = Places {
    name: "lowroad behind a hard NAT, stock behind an easy one",
    lowroad: Behind::V4(Nat::Hard),
    stock: Behind::V4(Nat::Easy),
    direct: false,
};
pub const HARD_LOWROAD_PUBLIC: Places = Places {
    name: "lowroad behind a hard NAT, stock behind none",
    lowroad: Behind::V4(Nat::Hard),
    stock: Behind::Nothing,
    direct: true,
};
pub const HARD_STOCK_PUBLIC: Places = Places {
    name: "stock behind a hard NAT, lowroad behind none",
    lowroad: Behind::Nothing,
    stock: Behind::V4(Nat::Hard),
    direct: true,
};
pub const RELAYED: Places = Places {
    name: "no UDP",
    lowroad: Behind::V4(Nat::UdpBlocked),
    stock: Behind::V4(Nat::UdpBlocked),
    direct: false,
};
pub const V6: Places = Places {
    name: "IPv6 alone below",
    lowroad: Behind::V6,
    stock: Behind::V6,
    direct: true,
};

const FIRST: Duration = secs(20);
const UPGRADE: Duration = secs(30);
const PACE: Duration = Duration::from_millis(20);
const MTU: usize = 1280;
const DATAGRAMS: u64 = 500;

pub fn pair(lab: &Lab, table: &mut Table, kind: server::Kind, places: Places) -> Result<()> {
    table.area(&format!(
        "lowroad and stock on {}, {}",
        kind.name(),
        places.name
    ));
    let server = Server::start(lab, kind, ALLOW_ALL)?;
    let key = server.auth_key("ann", KeyOptions::default())?;
    let [lowroad, stock] = both(lab, places)?;
    if matches!(places.lowroad, Behind::V6) {
        lab.net.route_to_v6_lans(&server.namespace)?;
    }
    for node in [&lowroad, &stock] {
        let joined = table.try_it(&format!("{}: up", node.name()), || {
            Ok(format!("{:.2} s", node.up(&key)?.as_secs_f64()))
        });
        ensure!(joined, "without this there is nothing more to try");
    }
    for (from, to) in [(&lowroad, &stock), (&stock, &lowroad)] {
        from.wait_for_peer(to.name(), FIRST)?;
    }
    first_contact(table, &lowroad, &stock, places)?;
    for (from, to) in [(&lowroad, &stock), (&stock, &lowroad)] {
        traffic_between(table, from, to)?;
    }
    shown::by_commands(table, kind, &stock, &lowroad)?;
    let other = Member::public(lab, Kind::Stock, "other", 23)?;
    other.up(&key)?;
    shown::as_a_stock_peer(table, &stock, &lowroad, &other);
    Ok(())
}

/// The lowroad and the stock node at their places; they join nothing yet.
fn both(lab: &Lab, places: Places) -> Result<[Member; 2]> {
    let shared = match places.lowroad {
        Behind::OneRouter => Some(lab.net.router("nat", 20, Nat::Easy)?),
        Behind::V4(_) | Behind::V6 | Behind::Nothing => None,
    };
    let node = |kind: Kind, last, place| -> Result<Member> {
        let name = kind.name();
        match place {
            Behind::V4(nat) => Member::behind(lab, kind, name, last, nat),
            Behind::Nothing => Member::public(lab, kind, name, last),
            Behind::OneRouter => {
                let router = shared.as_ref().context("no router for both")?;
                Member::start(lab, kind, name, &lab.net.behind(name, router, last)?)
            }
            Behind::V6 => {
                let router = lab.net.router_v6(&format!("{name}-nat"), last)?;
                let host = lab.net.behind_v6(name, &router, 2)?;
                Member::start(lab, kind, name, &host)
            }
        }
    };
    Ok([
        node(Kind::Lowroad, 21, places.lowroad)?,
        node(Kind::Stock, 22, places.stock)?,
    ])
}

/// Of pings that began then; one of a hundred may be.
fn lost_since_the_first_answer(report: &Report, begin: Instant) -> Result<usize> {
    let first = begin + report.first_answer.context("no answer")?;
    let lost = report.unanswered.iter().filter(|one| one.sent > first);
    let lost = lost.count();
    ensure!(lost <= report.sent / 100, "{lost} lost: {report}");
    Ok(lost)
}

/// From the first packet on; what is sent while the path changes is not lost.
fn first_contact(table: &mut Table, from: &Member, to: &Member, places: Places) -> Result<()> {
    let ping = Pinger::start(from.namespace(), to.ip(4)?, PACE)?;
    let begin = Instant::now();
    table.try_it("first ping", || {
        let time = ping.first_answer(FIRST)?;
        Ok(format!("answered after {:.2} s", time.as_secs_f64()))
    });
    if places.direct {
        table.try_it("direct", || {
            let (address, _) = from.wait_for_direct(to.name(), UPGRADE)?;
            let time = begin.elapsed();
            to.wait_for_direct(from.name(), UPGRADE)?;
            Ok(format!(
                "by {address} after {:.2} s, seen by both after {:.2} s",
                time.as_secs_f64(),
                begin.elapsed().as_secs_f64()
            ))
        });
    }
    wait::pass(secs(3))?;
    let report = ping.stop();
    table.try_it("pings from the first answer on", || {
        let lost = lost_since_the_first_answer(&report, begin)?;
        Ok(format!(
            "{lost} lost of {}, before it {}",
            report.sent,
            report.lost() - lost
        ))
    });
    if !places.direct {
        table.try_it("relayed, as both see it", || {
            let (path, back) = (from.path_to(to.name())?, to.path_to(from.name())?);
            let relayed = |path: &PathKind| matches!(path, PathKind::Relay(_));
            ensure!(relayed(&path) && relayed(&back), "{path:?}, {back:?}");
            Ok(format!("{path:?}"))
        });
    }
    Ok(())
}

fn traffic_between(table: &mut Table, from: &Member, to: &Member) -> Result<()> {
    let way = format!("{} to {}", from.name(), to.name());
    let _server = traffic::Server::start(to.namespace(), 80)?;
    for family in [4, 6] {
        let address = to.ip(family)?;
        table.try_it(&format!("{way}: IPv{family} ping"), || {
            let ping = Pinger::start(from.namespace(), address, PACE)?;
            ping.first_answer(FIRST)?;
            wait::pass(secs(1))?;
            let report = ping.stop();
            ensure!(report.lost() <= 1, "{report}");
            let median = report.median.context("no answer")?;
            Ok(format!(
                "median {:.2} ms, {} of {} lost",
                median.as_secs_f64() * 1e3,
                report.lost(),
                report.sent
            ))
        });
        table.try_it(&format!("{way}: IPv{family} TCP"), || {
            let got = traffic::get(
                from.namespace(),
                SocketAddr::new(address, 80),
                20_000_000,
                secs(60),
            )?;
            Ok(format!(
                "20 MB byte-exact at {:.0} Mbit/s",
                got.megabits_per_second()
            ))
        });
        table.try_it(&format!("{way}: IPv{family} UDP"), || {
            datagrams(from.namespace(), to.namespace(), address)
        });
        table.try_it(&format!("{way}: IPv{family} largest packet"), || {
            let header = if family == 4 { 28 } else { 48 };
            let all = fits(from.namespace(), address, MTU - header, secs(5))?;
            ensure!(all, "{MTU} bytes do not get through");
            let more = fits(from.namespace(), address, MTU - header + 1, secs(5))?;
            ensure!(!more, "more than {MTU} bytes get through");
            Ok(format!("{MTU} bytes"))
        });
    }
    Ok(())
}

/// Every datagram arrives, at a pace that no queue minds.
pub fn datagrams(from: &Namespace, to: &Namespace, address: IpAddr) -> Result<String> {
    let target = SocketAddr::new(address, 9000);
    let mut flood = Flood::start(from, to, target, Duration::from_millis(2))?;
    wait::wait_for("datagrams sent", secs(20), || {
        Ok((flood.sent() >= DATAGRAMS).then_some(()))
    })?;
    flood.end_sending();
    let sent = flood.sent();
    wait::wait_for("all datagrams", secs(5), || {
        Ok((flood.received() >= sent).then_some(()))
    })
    .with_context(|| format!("{} of {sent} arrived", flood.received()))?;
    Ok(format!("{sent} of {sent} datagrams"))
}
