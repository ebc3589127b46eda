//! Stock nodes on our coordinator, which is their only relay and STUN server as well.

mod logins;
mod views;

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use super::{
    Age, Lab,
    member::{Kind, Member},
    server::{self, KeyOptions, Server},
    table::Table,
};
use crate::{
    lab::secs,
    tailnet::{COORDINATOR, Client},
    topology::{Namespace, Nat},
    traffic::{self, Pinger},
    wait,
};

const LIMIT: Duration = secs(30);
/// Stock clients look every minute for servers and relays that have been silent for 125 s (health/health.go).
const IN_USE: Duration = secs(190);
const PACE: Duration = Duration::from_millis(50);
/// To fetch a little.
const ATTEMPT: Duration = Duration::from_millis(200);
/// Without the attribute, stock nodes tell no IPv6 address of one that has an IPv4 address (ipn/ipnlocal).
const ONLY_80: &str = r#"{"acls": [{"action": "accept", "src": ["*"], "dst": ["*:80"]}],
    "tagOwners": {"tag:web": ["ann@"]},
    "nodeAttrs": [{"target": ["*"], "attr": ["magicdns-aaaa"]}]}"#;
const WITH_TAGS: &str = r#"{"acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}],
    "tagOwners": {"tag:web": ["ann@"]},
    "nodeAttrs": [{"target": ["*"], "attr": ["magicdns-aaaa"]}]}"#;
/// What only the exit node can reach.
const INTERNET: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(198, 51, 100, 2)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 2)),
];

pub fn stock_nodes(lab: &Lab, table: &mut Table, age: Age) -> Result<()> {
    let version = match age {
        Age::New => String::new(),
        Age::Old => format!(", version {}", super::version(lab.programs, "tailscale")?),
    };
    table.area(&format!("stock nodes on our coordinator{version}"));
    let mut server = Server::start(lab, server::Kind::Ours, WITH_TAGS)?;
    let key = server.auth_key("ann", KeyOptions::default())?;
    let one = Member::behind(lab, Kind::Stock, "one", 21, Nat::Easy)?;
    let router = lab.net.router("two-nat", 22, Nat::Hard)?;
    let host = lab.net.behind("two", &router, 2)?;
    internet_behind(&router.namespace, &host, &server.namespace)?;
    let mut two = Member::start(lab, Kind::Stock, "two", &host)?;
    for node in [&one, &two] {
        let joined = table.try_it(&format!("{}: up by auth key", node.name()), || {
            Ok(format!("{:.2} s", node.up(&key)?.as_secs_f64()))
        });
        ensure!(joined, "without this there is nothing more to try");
    }
    one.wait_for_peer("two", LIMIT)?;
    table.try_it("ping and path", || {
        let ping = Pinger::start(one.namespace(), two.ip(4)?, PACE)?;
        let first = ping.first_answer(LIMIT)?;
        wait::pass(secs(3))?;
        let path = one.path_to("two")?;
        let report = ping.stop();
        // One NAT is easy and one is hard.
        ensure!(!path.is_direct(), "{path:?}");
        ensure!(report.lost() <= 1, "{report}");
        Ok(format!(
            "first after {:.2} s, {path:?}, {report}",
            first.as_secs_f64()
        ))
    });
    in_use(table, &one, &two);
    views::debugging(table, &server, [&one, &two]);
    views::derp(table, &one);
    views::names(table, &one, &two, age)?;
    policy(table, &server, &one, &two)?;
    preferences(table, &server, &one, &two)?;
    restarted(table, &mut server, &one, &two)?;
    logins::logins(lab, table, &server, &one, &mut two, age)?;
    logins::refusals(lab, table, &server)?;
    table.try_it("no health warning at the end", || {
        healthy([&one, &two]).map(|()| String::new())
    });
    Ok(())
}

/// An "internet" that only this router knows the way to: an exit node forwards to no private range, nor to its own segment.
/// The host behind it has IPv6 as well.
fn internet_behind(router: &Namespace, host: &Namespace, server: &Namespace) -> Result<()> {
    let [v4, v6] = INTERNET;
    server.ip(&format!(
        "addr add {v4}/32 dev lo\n\
         addr add {v6}/128 dev lo\n\
         route add 2001:db8:0:22::/64 via 2001:db8::22"
    ))?;
    router.sysctl("net/ipv6/conf/all/forwarding", "1")?;
    router.ip(&format!(
        "route add {v4} via 203.0.113.{COORDINATOR}\n\
         route add {v6} via 2001:db8::{COORDINATOR}\n\
         addr add 2001:db8:0:22::1/64 dev lan0 nodad"
    ))?;
    host.ip("addr add 2001:db8:0:22::2/64 dev eth0 nodad\n\
         route add default via 2001:db8:0:22::1")
}

fn healthy(nodes: [&Member; 2]) -> Result<()> {
    for node in nodes {
        super::healthy(node).with_context(|| node.name().to_owned())?;
    }
    Ok(())
}

fn in_use(table: &mut Table, one: &Member, two: &Member) {
    let seconds = IN_USE.as_secs();
    table.try_it(
        &format!("no health warning after {seconds} s of use"),
        || {
            let ping = Pinger::start(one.namespace(), two.ip(4)?, PACE)?;
            wait::pass(IN_USE)?;
            let report = ping.stop();
            let used = report.answered > 0 && report.lost() <= report.sent / 100;
            ensure!(used, "{report}");
            healthy([one, two])?;
            Ok(format!("{} of {} pings lost", report.lost(), report.sent))
        },
    );
}

fn policy(table: &mut Table, server: &Server, one: &Member, two: &Member) -> Result<()> {
    let web = [
        traffic::Server::start(two.namespace(), 80)?,
        traffic::Server::start(two.namespace(), 81)?,
    ];
    for family in [4, 6] {
        let address = two.ip(family)?;
        let get = |port: u16| {
            let to = SocketAddr::new(address, port);
            traffic::get(one.namespace(), to, 1000, ATTEMPT).map(drop)
        };
        table.try_it(
            &format!("a change of policy closes a port, IPv{family}"),
            || {
                wait::wait_for("port 81 before", LIMIT, || Ok(get(81).ok()))?;
                server.set_policy(ONLY_80)?;
                let closed = settled(|| get(81).is_err())?;
                get(80).context("port 80, which stays open")?;
                Ok(format!("{:.2} s after it", closed.as_secs_f64()))
            },
        );
        table.try_it(&format!("and opens it, IPv{family}"), || {
            server.set_policy(WITH_TAGS)?;
            let open = settled(|| get(81).is_ok())?;
            Ok(format!("{:.2} s after it", open.as_secs_f64()))
        });
    }
    drop(web);
    Ok(())
}

/// When the last attempt began that saw it otherwise, of those of two seconds: within a second.
fn settled(is_so: impl Fn() -> bool) -> Result<Duration> {
    let start = Instant::now();
    let mut otherwise = Duration::ZERO;
    while start.elapsed() < secs(2) {
        let began = start.elapsed();
        if !is_so() {
            otherwise = began;
        }
    }
    ensure!(
        otherwise <= secs(1),
        "it was as before {otherwise:.2?} later"
    );
    Ok(otherwise)
}

fn preferences(table: &mut Table, server: &Server, one: &Member, two: &Member) -> Result<()> {
    table.try_it("set --hostname", || {
        two.cli(&["set", "--hostname=renamed"])?;
        let time = one.wait_for_peer("renamed", LIMIT)?;
        two.cli(&["set", "--hostname=two"])?;
        one.wait_for_peer("two", LIMIT)?;
        Ok(format!("seen after {:.2} s", time.as_secs_f64()))
    });
    table.try_it("set --advertise-routes, approved", || {
        two.cli(&["set", "--advertise-routes=10.77.0.0/24"])?;
        server.wait_for_offer("two", "10.77.0.0/24", LIMIT)?;
        server.approve_routes("two", "10.77.0.0/24")?;
        let (_, time) = wait::wait_for("the route at the peer", LIMIT, || {
            let peer = one.peer("two")?.context("no such peer")?;
            Ok(peer["PrimaryRoutes"]
                .to_string()
                .contains("10.77.0.0/24")
                .then_some(()))
        })?;
        Ok(format!("seen after {:.2} s", time.as_secs_f64()))
    });
    table.try_it("set --shields-up", || {
        let address = two.ip(4)?;
        two.cli(&["set", "--shields-up"])?;
        let ping = || -> Result<bool> {
            let ping = Pinger::start(one.namespace(), address, PACE)?;
            wait::pass(Duration::from_millis(500))?;
            Ok(ping.stop().answered > 0)
        };
        wait::wait_for("silence", LIMIT, || Ok((!ping()?).then_some(())))?;
        two.cli(&["set", "--shields-up=false"])?;
        wait::wait_for("answers", LIMIT, || Ok(ping()?.then_some(())))?;
        Ok(String::new())
    });
    exit_node(table, server, one, two)
}

fn exit_node(table: &mut Table, server: &Server, one: &Member, two: &Member) -> Result<()> {
    let _web = traffic::Server::start(&server.namespace, 8000)?;
    table.try_it("exit node, offered and approved", || {
        two.namespace().sysctl("net/ipv4/ip_forward", "1")?;
        two.namespace()
            .sysctl("net/ipv6/conf/all/forwarding", "1")?;
        two.cli(&["set", "--advertise-exit-node"])?;
        server.wait_for_offer("two", "0.0.0.0/0", LIMIT)?;
        server.approve_routes("two", "0.0.0.0/0,::/0,10.77.0.0/24")?;
        let (_, time) = wait::wait_for("the option at the peer", LIMIT, || {
            let peer = one.peer("two")?.context("no such peer")?;
            Ok((peer["ExitNodeOption"] == true).then_some(()))
        })?;
        Ok(format!("seen after {:.2} s", time.as_secs_f64()))
    });
    for (address, family) in INTERNET.into_iter().zip([4, 6]) {
        table.try_it(&format!("exit node, used, IPv{family}"), || {
            let to = SocketAddr::new(address, 8000);
            let get = || traffic::get(one.namespace(), to, 1000, secs(2));
            ensure!(get().is_err(), "it is reached without an exit node");
            one.cli(&["set", "--exit-node=two"])?;
            let (_, time) = wait::wait_for("what lies behind it", LIMIT, || Ok(get().ok()))?;
            one.cli(&["set", "--exit-node="])?;
            ensure!(get().is_err(), "it is reached without one again");
            Ok(format!("after {:.2} s", time.as_secs_f64()))
        });
        // Whatever came of it: what follows is about something else.
        one.cli(&["set", "--exit-node="])?;
    }
    two.cli(&["set", "--advertise-exit-node=false", "--advertise-routes="])?;
    Ok(())
}

fn restarted(table: &mut Table, server: &mut Server, one: &Member, two: &Member) -> Result<()> {
    table.try_it("our coordinator restarted: both are back", || {
        server.start_again()?;
        two.cli(&["set", "--hostname=restarted"])?;
        let time = one.wait_for_peer("restarted", secs(90))?;
        // By the relay, which was restarted, too.
        let ping = Pinger::start(one.namespace(), two.ip(4)?, PACE)?;
        ping.first_answer(LIMIT)?;
        Ok(format!(
            "one sees what the other changes {:.1} s later",
            time.as_secs_f64()
        ))
    });
    two.cli(&["set", "--hostname=two"])?;
    one.wait_for_peer("two", LIMIT)?;
    table.try_it("and have no health warning", || {
        for node in [one, two] {
            let well = || super::healthy(node).map(Some);
            wait::wait_for("health", LIMIT, well).with_context(|| node.name().to_owned())?;
        }
        Ok(String::new())
    });
    Ok(())
}
