//! Headscale's policies on a lowroad node and on a stock one, by the same packets: both must let through the same.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, Result, ensure};

use super::{
    Lab,
    member::{Kind, Member},
    server::{self, KeyOptions, Server},
    table::Table,
};
use crate::{
    lab::{ALLOW_ALL, secs},
    tailnet::Client,
    traffic::{self, Pinger},
    wait,
};

const LIMIT: Duration = secs(20);
const SILENCE: Duration = Duration::from_millis(400);

/// Who may reach a port may ping as well, whatever the rule's protocol: the stock filter asks no more of an echo request than its addresses.
///
/// A policy, and who may do what with either node: ann (their owner), bob and the tagged one, each TCP 80, TCP 81 and ping.
struct Case {
    name: &'static str,
    policy: &'static str,
    ann: &'static str,
    bob: &'static str,
    tagged: &'static str,
}

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
        bob: "80 ping",
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
        ann: "80 81 ping",
        bob: "",
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
    for case in CASES {
        table.try_it(case.name, || {
            server.set_policy(case.policy)?;
            let wanted = [(&ann, case.ann), (&bob, case.bob), (&tagged, case.tagged)];
            for to in both {
                for (from, open) in wanted {
                    exactly(from, to, open)?;
                }
            }
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
    Ok(())
}

/// Of TCP 80, TCP 81 and ping, what is named gets through, and soon nothing else.
fn exactly(from: &Member, to: &Member, open: &str) -> Result<()> {
    let address = to.ip(4)?;
    for what in ["80", "81", "ping"] {
        let through = || -> Result<bool> {
            Ok(match what.parse() {
                Ok(port) => {
                    let to = SocketAddr::new(address, port);
                    traffic::get(from.namespace(), to, 100, SILENCE).is_ok()
                }
                Err(_) => {
                    let ping = Pinger::start(from.namespace(), address, Duration::from_millis(50))?;
                    wait::pass(SILENCE)?;
                    ping.report().answered > 0
                }
            })
        };
        let wanted = open.split(' ').any(|one| one == what);
        let is = format!(
            "{what} from {} to {} {}",
            from.name(),
            to.name(),
            if wanted { "open" } else { "closed" }
        );
        wait::wait_for(&is, LIMIT, || Ok((through()? == wanted).then_some(())))
            .with_context(|| is.clone())?;
        ensure!(through()? == wanted, "{is}, and then not");
    }
    Ok(())
}
