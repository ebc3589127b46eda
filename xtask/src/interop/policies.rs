//! Headscale's policies on a lowroad node and on a stock one, by the same packets: both must let through the same.

pub mod routed;
mod timed;

use std::{
    net::SocketAddr,
    sync::{Mutex, PoisonError},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, ensure};

use super::{
    Lab,
    member::{Kind, Member},
    server::{self, KeyOptions, Server},
    table::Table,
};
use crate::{
    lab::{ALLOW_ALL, secs},
    tailnet::Client,
    traffic::{self, Flood, Pinger},
    wait,
};

const LIMIT: Duration = secs(20);
const SILENCE: Duration = Duration::from_millis(400);
static UDP: Mutex<()> = Mutex::new(());

/// Who may reach a port may ping as well, whatever the rule's protocol: the stock filter asks no more of an echo request than its addresses.
///
/// A policy without its rule for [`OUTSIDE`], and who may do what with either node: ann (their owner), bob and the tagged one, each TCP 80, TCP 81, UDP 9000 and
/// ping, over IPv4 and over IPv6.
struct Case {
    name: &'static str,
    policy: &'static str,
    ann: &'static str,
    bob: &'static str,
    tagged: &'static str,
}

/// Both nodes may reach everybody at a port that nobody serves. Headscale hides from each other whom no rule connects: without it what is refused would be
/// closed for want of a route, whatever the nodes' filters do.
const OUTSIDE: [(&str, &str); 2] = [
    (
        r#""acls": ["#,
        r#""acls": [{"action": "accept", "src": ["100.64.0.2", "100.64.0.4"], "dst": ["*:9"]}, "#,
    ),
    (
        r#""grants": ["#,
        r#""grants": [{"src": ["100.64.0.2", "100.64.0.4"], "dst": ["*"], "ip": ["9"]}, "#,
    ),
];

/// A policy by which one node is a peer of the other and may begin something there, and the other nothing with it, ping included: as [`OUTSIDE`].
pub fn one_way(from: &Member, to: &Member) -> Result<String> {
    let (from, to) = (from.ip(4)?, to.ip(4)?);
    Ok(format!(
        r#"{{"acls": [{{"action": "accept", "src": ["{from}"], "dst": ["{to}:9"]}}]}}"#
    ))
}

/// Of what is open over one family only the number of the family stands behind a stroke.
const CASES: &[Case] = &[
    Case {
        name: "nobody",
        policy: r#"{"acls": []}"#,
        ann: "",
        bob: "",
        tagged: "",
    },
    Case {
        name: "a user to a port",
        policy: r#"{"acls": [{"action": "accept", "src": ["bob@"], "dst": ["*:80"]}]}"#,
        ann: "",
        bob: "80 ping",
        tagged: "",
    },
    Case {
        name: "a group to a range of ports",
        policy: r#"{"groups": {"group:g": ["ann@", "bob@"]},
            "acls": [{"action": "accept", "src": ["group:g"], "dst": ["*:80-81"]}]}"#,
        ann: "80 81 ping",
        bob: "80 81 ping",
        tagged: "",
    },
    Case {
        name: "a tag, by protocol",
        policy: r#"{"tagOwners": {"tag:web": ["ann@"]},
            "acls": [{"action": "accept", "proto": "icmp", "src": ["tag:web"], "dst": ["*:*"]},
                     {"action": "accept", "proto": "tcp", "src": ["bob@"], "dst": ["*:81"]}]}"#,
        ann: "",
        bob: "81 ping",
        tagged: "ping",
    },
    Case {
        name: "hosts by name",
        policy: r#"{"hosts": {"bobs": "100.64.0.3/32"},
            "acls": [{"action": "accept", "src": ["bobs"], "dst": ["*:80"]}]}"#,
        ann: "",
        bob: "80/4 ping/4",
        tagged: "",
    },
    Case {
        name: "autogroup:member",
        policy: r#"{"tagOwners": {"tag:web": ["ann@"]},
            "acls": [{"action": "accept", "src": ["autogroup:member"], "dst": ["autogroup:member:80"]}]}"#,
        ann: "80 ping",
        bob: "80 ping",
        tagged: "",
    },
    Case {
        name: "autogroup:tagged",
        policy: r#"{"tagOwners": {"tag:web": ["ann@"]},
            "acls": [{"action": "accept", "src": ["autogroup:tagged"], "dst": ["*:81"]}]}"#,
        ann: "",
        bob: "",
        tagged: "81 ping",
    },
    Case {
        name: "autogroup:self",
        policy: r#"{"acls": [{"action": "accept", "src": ["autogroup:member"], "dst": ["autogroup:self:*"]}]}"#,
        ann: "80 81 udp ping",
        bob: "",
        tagged: "",
    },
    Case {
        name: "UDP",
        policy: r#"{"acls": [{"action": "accept", "proto": "udp", "src": ["bob@"], "dst": ["*:9000"]}]}"#,
        ann: "",
        bob: "udp ping",
        tagged: "",
    },
    Case {
        name: "an IPv6 host as source",
        policy: r#"{"hosts": {"bobs": "fd7a:115c:a1e0::3/128"},
            "acls": [{"action": "accept", "src": ["bobs"], "dst": ["*:80"]}]}"#,
        ann: "",
        bob: "80/6 ping/6",
        tagged: "",
    },
    Case {
        name: "a prefix as destination",
        policy: r#"{"acls": [{"action": "accept", "src": ["bob@"], "dst": ["100.64.0.0/10:81"]}]}"#,
        ann: "",
        bob: "81/4 ping/4",
        tagged: "",
    },
    Case {
        name: "a grant of two protocols",
        policy: r#"{"grants": [{"src": ["bob@"], "dst": ["ann@"], "ip": ["tcp:81", "udp:9000"]}]}"#,
        ann: "",
        bob: "81 udp ping",
        tagged: "",
    },
    Case {
        name: "a grant",
        policy: r#"{"grants": [{"src": ["bob@"], "dst": ["ann@"], "ip": ["tcp:80", "icmp:*"]}]}"#,
        ann: "",
        bob: "80 ping",
        tagged: "",
    },
];

pub fn on_headscale(lab: &Lab, table: &mut Table) -> Result<()> {
    table.area("Headscale's policies, on lowroad and on stock");
    let server = Server::start(lab, server::Kind::Headscale, ALLOW_ALL)?;
    let key = |user, tags| {
        server.auth_key(
            user,
            KeyOptions {
                tags,
                ephemeral: false,
            },
        )
    };
    // In the order of their addresses, which one policy names.
    let ann = Member::public(lab, Kind::Stock, "anns", 30)?;
    ann.up(&key("ann", "")?)?;
    let lowroad = Member::public(lab, Kind::Lowroad, "lowroad", 31)?;
    lowroad.up(&key("ann", "")?)?;
    let bob = Member::public(lab, Kind::Lowroad, "bobs", 32)?;
    bob.up(&key("bob", "")?)?;
    let stock = Member::public(lab, Kind::Stock, "stock", 33)?;
    stock.up(&key("ann", "")?)?;
    server.set_policy(r#"{"tagOwners": {"tag:web": ["ann@"]}, "acls": []}"#)?;
    let tagged = Member::public(lab, Kind::Stock, "tagged", 34)?;
    tagged.up(&key("ann", "tag:web")?)?;
    let both = [&lowroad, &stock];
    let mut servers = Vec::new();
    for node in both {
        for port in [80, 81] {
            servers.push(traffic::Server::start(node.namespace(), port)?);
        }
    }
    for (node, address) in [(&lowroad, "100.64.0.2"), (&stock, "100.64.0.4")] {
        ensure!(
            node.ip(4)?.to_string() == address,
            "the rule for others is about {address}"
        );
    }
    for case in CASES {
        table.try_it(case.name, || {
            let [acls, grants] = OUTSIDE;
            let policy = case
                .policy
                .replace(acls.0, acls.1)
                .replace(grants.0, grants.1);
            server.set_policy(&policy)?;
            let wanted = [(&ann, case.ann), (&bob, case.bob), (&tagged, case.tagged)];
            // One after another with each node: what its filter counts meanwhile is one's alone.
            let with = |to: &Member| {
                wanted
                    .iter()
                    .try_for_each(|(from, open)| exactly(from, to, open))
            };
            let results: Vec<Result<()>> = thread::scope(|scope| {
                let running = both.map(|to| scope.spawn(|| with(to)));
                running
                    .into_iter()
                    .map(|thread| thread.join().unwrap_or_else(|_| Err(anyhow!("panicked"))))
                    .collect()
            });
            results.into_iter().collect::<Result<()>>()?;
            Ok(wanted
                .map(|(from, open)| {
                    format!(
                        "{}: {}",
                        from.name(),
                        if open.is_empty() { "nothing" } else { open }
                    )
                })
                .join("; "))
        });
    }
    table.try_it("a change is in force as soon as with a stock node", || {
        timed::in_force(&server, &bob, both)
    });
    Ok(())
}

/// Of TCP 80, TCP 81, UDP 9000 and ping, what is named gets through, and soon nothing else.
fn exactly(from: &Member, to: &Member, open: &str) -> Result<()> {
    from.wait_for_peer(to.name(), LIMIT)?;
    for family in [4, 6] {
        for what in ["80", "81", "udp", "ping"] {
            let one_family = format!("{what}/{family}");
            let wanted = open.split(' ').any(|one| one == what || one == one_family);
            let is = format!(
                "{what} from {} to {} over IPv{family} {}",
                from.name(),
                to.name(),
                if wanted { "open" } else { "closed" }
            );
            wait::wait_for(&is, LIMIT, || {
                Ok((through(from, to, family, what)? == wanted).then_some(()))
            })
            .with_context(|| is.clone())?;
            let refused = refused_by(to)?;
            ensure!(
                through(from, to, family, what)? == wanted,
                "{is}, and then not"
            );
            if wanted {
                continue;
            }
            // It is the filter that closes it, not the way there.
            ensure!(
                from.peer(to.name())?.is_some(),
                "{is}, but {} is no peer",
                to.name()
            );
            let counted = refused_by(to)?;
            ensure!(
                counted.is_none() || counted > refused,
                "{is}, but its filter refused nothing"
            );
        }
    }
    Ok(())
}

/// How many packets a lowroad node's filter has refused.
fn refused_by(node: &Member) -> Result<Option<u64>> {
    match node {
        Member::Lowroad(node) => node.refused_packets().map(Some),
        Member::Stock(_) => Ok(None),
    }
}

fn through(from: &Member, to: &Member, family: u8, what: &str) -> Result<bool> {
    let address = to.ip(family)?;
    Ok(match what {
        "ping" => {
            let ping = Pinger::start(from.namespace(), address, Duration::from_millis(50))?;
            wait::pass(SILENCE)?;
            ping.report().answered > 0
        }
        "udp" => {
            let to_port = SocketAddr::new(address, 9000);
            // One socket of this port at a time, on each node.
            let _turn = UDP.lock().unwrap_or_else(PoisonError::into_inner);
            let pace = Duration::from_millis(20);
            let flood = Flood::start(from.namespace(), to.namespace(), to_port, pace)?;
            wait::pass(SILENCE)?;
            flood.received() > 0
        }
        port => {
            let to = SocketAddr::new(address, port.parse()?);
            traffic::get(from.namespace(), to, 100, SILENCE).is_ok()
        }
    })
}
