//! lowroad and stock nodes as peers, in both directions.

use std::{
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{
    Lab,
    hosts::RELAY_HOST,
    member::{Kind, Member},
    relay,
    server::{self, KeyOptions, Server},
    shape,
    table::Table,
};
use crate::{
    lab::{ALLOW_ALL, secs},
    tailnet::{COORDINATOR, Client, PathKind},
    topology::{Namespace, Nat},
    traffic::{self, Flood, Pinger, Report, fits},
    wait,
};

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
/// A node measures its relays again at least every half minute.
const MEASURED_AGAIN: Duration = secs(90);
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
    seen_by_stock(table, &stock, &lowroad)?;
    looks_like_stock(lab, table, &stock, &lowroad, &key)
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

/// In what programs read of a stock client.
fn looks_like_stock(
    lab: &Lab,
    table: &mut Table,
    stock: &Member,
    lowroad: &Member,
    key: &str,
) -> Result<()> {
    let other = Member::public(lab, Kind::Stock, "other", 23)?;
    other.up(key)?;
    table.try_it(
        "stock: status --json and whois --json, as of a stock peer",
        || {
            // What a node tells of itself comes to the others by and by.
            wait::wait_for("the same fields of both", UPGRADE, || {
                let found = shape::differences(stock, lowroad, &other)?;
                ensure!(found.is_empty(), "{}", found.join("; "));
                Ok(Some(()))
            })?;
            Ok("the same fields, of the same types".to_owned())
        },
    );
    Ok(())
}

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

/// Two nodes behind hard NATs: each reaches the other over the other's home relay.
pub fn by_relays(lab: &Lab, table: &mut Table, kind: server::Kind, homes: Homes) -> Result<()> {
    table.area(&format!(
        "lowroad and stock on {}, {}",
        kind.name(),
        homes.name
    ));
    let _relay = relay::start(lab)?;
    let server = Server::with_second_relay(lab, kind, ALLOW_ALL)?;
    let key = server.auth_key("ann", KeyOptions::default())?;
    let behind = |member, name, last, home: Home| -> Result<Member> {
        let router = lab.net.router(&format!("{name}-nat"), last, Nat::Hard)?;
        router.namespace.nft(&format!(
            "table inet deaf {{ chain out {{ type filter hook forward priority 0; \
             ip daddr 203.0.113.{} udp dport 3478 drop; }}; }}",
            home.deaf_to()
        ))?;
        Member::start(lab, member, name, &lab.net.behind(name, &router, 2)?)
    };
    let lowroad = behind(Kind::Lowroad, "lowroad", 21, homes.lowroad)?;
    let stock = behind(Kind::Stock, "stock", 22, homes.stock)?;
    for (node, wanted) in [(&lowroad, homes.lowroad), (&stock, homes.stock)] {
        node.up(&key)?;
        // A host that is short of time may hear no STUN server in time, and choose by HTTPS, until it measures again.
        let home = || {
            let home = node.status()?["Self"]["Relay"].clone();
            let code = home.as_str().unwrap_or_default();
            Ok(wanted.is(code).then_some(()))
        };
        wait::wait_for("the home relay that it has to have", MEASURED_AGAIN, home)
            .with_context(|| node.name().to_owned())?;
    }
    for (from, to, home) in [
        (&lowroad, &stock, homes.stock),
        (&stock, &lowroad, homes.lowroad),
    ] {
        table.try_it(&format!("{} to {}", from.name(), to.name()), || {
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
        });
        traffic_between(table, from, to)?;
    }
    Ok(())
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

/// A lowroad peer looks to a stock client's commands like any other.
fn seen_by_stock(table: &mut Table, stock: &Member, lowroad: &Member) -> Result<()> {
    let address = lowroad.ip(4)?.to_string();
    for (what, flags) in [
        ("disco", &["ping", "-c", "3", "--until-direct=false"][..]),
        ("TSMP", &["ping", "--tsmp", "-c", "3"]),
        ("ICMP", &["ping", "--icmp", "-c", "3"]),
    ] {
        table.try_it(&format!("stock: ping, {what}"), || {
            let text = stock.cli(&[flags, &[&address]].concat())?;
            last(&text).context("it says nothing")
        });
    }
    table.try_it("stock: whois", || {
        let text = stock.cli(&["whois", "--json", &address])?;
        let who: Value = serde_json::from_str(&text)?;
        ensure!(who["Node"]["ComputedName"] == "lowroad", "{text}");
        Ok(format!(
            "{} of {}",
            who["Node"]["Name"], who["UserProfile"]["LoginName"]
        ))
    });
    table.try_it("stock: status", || {
        let peer = stock.peer("lowroad")?.context("no such peer")?;
        for field in ["Online", "InNetworkMap", "InMagicSock", "InEngine"] {
            ensure!(peer[field] == true, "{field}: {peer}");
        }
        ensure!(peer["OS"] == "linux", "{peer}");
        Ok("Online, InNetworkMap, InMagicSock, InEngine".to_owned())
    });
    table.try_it("stock: netcheck", || {
        let text = stock.cli(&["netcheck"])?;
        let relay = text.lines().find(|line| line.contains("Nearest DERP"));
        Ok(relay.context("no nearest relay")?.trim().to_owned())
    });
    table.try_it("stock: no health warning", || {
        super::healthy(stock).map(|()| String::new())
    });
    Ok(())
}

fn last(text: &str) -> Option<String> {
    text.lines().last().map(|line| line.trim().to_owned())
}
