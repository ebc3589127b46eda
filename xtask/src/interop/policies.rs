//! Headscale's policies on a lowroad node and on a stock one, by the same packets: both must let through the same.

mod app;
mod begun;
pub mod routed;
mod sctp;
pub mod tagged;
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
    lab::secs,
    tailnet::Client,
    traffic::{self, Flood, Pinger},
    wait,
};

const LIMIT: Duration = secs(20);
const SILENCE: Duration = Duration::from_millis(400);
/// What is tried of each node.
const KINDS: [&str; 5] = ["80", "81", "udp", "sctp", "ping"];
/// For UDP and SCTP.
const PORT: u16 = 9000;
static UDP: Mutex<()> = Mutex::new(());
/// Of both nodes, as policies name them.
const ADDRESSES: [&str; 2] = ["100.64.0.2", "100.64.0.4"];
/// Everything, and tags to join with.
const OPEN: &str = r#"{"acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}],
    "tagOwners": {"tag:web": ["ann@"], "tag:other": ["ann@"]}}"#;
/// All are peers of both nodes, and may begin nothing with them.
const CLOSED: &str =
    r#"{"acls": [{"action": "accept", "src": ["100.64.0.2", "100.64.0.4"], "dst": ["*:9"]}]}"#;

/// Who may reach a port may ping as well, whatever the rule's protocol: the stock filter asks no more of an echo request than its addresses.
///
/// A policy without its rule for [`OUTSIDE`], and who may do what with either node: ann (by whose keys they joined), bob and the tagged one, each TCP 80, TCP 81,
/// UDP 9000, SCTP 9000 and ping, over IPv4 and over IPv6.
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
        name: "a user as destination",
        policy: r#"{"acls": [{"action": "accept", "src": ["bob@"], "dst": ["ann@:80"]}]}"#,
        ann: "",
        bob: "80 ping",
        tagged: "",
    },
    Case {
        name: "a group as destination",
        policy: r#"{"groups": {"group:owners": ["ann@"]},
            "acls": [{"action": "accept", "src": ["bob@"], "dst": ["group:owners:81"]}]}"#,
        ann: "",
        bob: "81 ping",
        tagged: "",
    },
    Case {
        name: "hosts by name as destinations",
        policy: r#"{"hosts": {"one": "100.64.0.2/32", "other": "100.64.0.4/32"},
            "acls": [{"action": "accept", "src": ["bob@"], "dst": ["one:80", "other:80"]}]}"#,
        ann: "",
        bob: "80/4 ping/4",
        tagged: "",
    },
    Case {
        name: "a tag as destination, which neither has",
        policy: r#"{"tagOwners": {"tag:web": ["ann@"]},
            "acls": [{"action": "accept", "src": ["*"], "dst": ["tag:web:*"]}]}"#,
        ann: "",
        bob: "",
        tagged: "",
    },
    Case {
        name: "a list of ports",
        policy: r#"{"acls": [{"action": "accept", "proto": "tcp", "src": ["bob@"], "dst": ["*:80,81"]}]}"#,
        ann: "",
        bob: "80 81 ping",
        tagged: "",
    },
    Case {
        name: "a protocol by number: SCTP",
        policy: r#"{"acls": [{"action": "accept", "proto": "132", "src": ["bob@"], "dst": ["*:9000"]}]}"#,
        ann: "",
        bob: "sctp ping",
        tagged: "",
    },
    Case {
        name: "IPv6's ICMP, for an IPv6 host and for a user",
        policy: r#"{"hosts": {"bobs": "fd7a:115c:a1e0::3/128"},
            "acls": [{"action": "accept", "proto": "ipv6-icmp", "src": ["bobs"], "dst": ["*:*"]},
                     {"action": "accept", "proto": "ipv6-icmp", "src": ["ann@"], "dst": ["*:*"]}]}"#,
        ann: "ping",
        bob: "ping/6",
        tagged: "",
    },
    Case {
        name: "a grant of a capability alone",
        policy: r#"{"grants": [{"src": ["bob@"], "dst": ["ann@"], "app": {"lab.example/cap/x": [{"n": 1}]}}]}"#,
        ann: "",
        bob: "",
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

impl Case {
    fn said(&self) -> String {
        let open = [
            ("ann", self.ann),
            ("bob", self.bob),
            ("tagged", self.tagged),
        ];
        open.map(|(name, open)| match open {
            "" => format!("{name}: nothing"),
            open => format!("{name}: {open}"),
        })
        .join("; ")
    }
}

/// Two nodes whose filters are tried, and three that try them.
struct Tailnet {
    _web: Vec<traffic::Server>,
    tagged: Member,
    stock: Member,
    bob: Member,
    lowroad: Member,
    ann: Member,
    server: Server,
}

impl Tailnet {
    /// The tags of both nodes, if they have any, and of the third source.
    fn start(lab: &Lab, of_both: &'static str, of_source: &'static str) -> Result<Self> {
        let server = Server::start(lab, server::Kind::Headscale, OPEN)?;
        let join = |kind, name, last, user, tags| -> Result<Member> {
            let options = KeyOptions {
                tags,
                ..KeyOptions::default()
            };
            let member = Member::public(lab, kind, name, last)?;
            member.up(&server.auth_key(user, options)?)?;
            Ok(member)
        };
        // In the order of their addresses, which policies name.
        let ann = join(Kind::Stock, "anns", 30, "ann", "")?;
        let lowroad = join(Kind::Lowroad, "lowroad", 31, "ann", of_both)?;
        let bob = join(Kind::Lowroad, "bobs", 32, "bob", "")?;
        let stock = join(Kind::Stock, "stock", 33, "ann", of_both)?;
        let tagged = join(Kind::Stock, "tagged", 34, "ann", of_source)?;
        let mut web = Vec::new();
        for (node, address) in [&lowroad, &stock].into_iter().zip(ADDRESSES) {
            let has = node.ip(4)?.to_string();
            ensure!(has == address, "{} has {has}, not {address}", node.name());
            for port in [80, 81] {
                web.push(traffic::Server::start(node.namespace(), port)?);
            }
        }
        Ok(Self {
            _web: web,
            tagged,
            stock,
            bob,
            lowroad,
            ann,
            server,
        })
    }

    fn nodes(&self) -> [&Member; 2] {
        [&self.lowroad, &self.stock]
    }

    fn sources(&self) -> [&Member; 3] {
        [&self.ann, &self.bob, &self.tagged]
    }

    /// With the rule for [`OUTSIDE`].
    fn set_policy(&self, policy: &str) -> Result<()> {
        self.server.set_policy(&with_outside(policy))
    }

    fn try_all(&self, table: &mut Table, cases: &[Case]) {
        for case in cases {
            table.try_it(case.name, || {
                self.set_policy(case.policy)?;
                self.let_through(case)?;
                Ok(case.said())
            });
        }
    }

    /// One source after another with each node: what its filter counts meanwhile is one's alone.
    fn let_through(&self, case: &Case) -> Result<()> {
        let open = [case.ann, case.bob, case.tagged];
        let with = |to: &Member| {
            let mut wanted = self.sources().into_iter().zip(open);
            wanted.try_for_each(|(from, open)| exactly(from, to, open))
        };
        let results: Vec<Result<()>> = thread::scope(|scope| {
            let running = self.nodes().map(|to| scope.spawn(move || with(to)));
            running
                .into_iter()
                .map(|thread| thread.join().unwrap_or_else(|_| Err(anyhow!("panicked"))))
                .collect()
        });
        results.into_iter().collect()
    }
}

fn with_outside(policy: &str) -> String {
    let [acls, grants] = OUTSIDE;
    policy.replace(acls.0, acls.1).replace(grants.0, grants.1)
}

pub fn on_headscale(lab: &Lab, table: &mut Table) -> Result<()> {
    table.area("Headscale's policies, on lowroad and on stock");
    let tailnet = Tailnet::start(lab, "", "tag:web")?;
    tailnet.try_all(table, CASES);
    table.try_it(
        "capabilities for an application, as whois shows them",
        || app::granted(&tailnet),
    );
    table.try_it("a change is in force as soon as with a stock node", || {
        timed::in_force(&tailnet.server, &tailnet.bob, tailnet.nodes())
    });
    table.try_it("what was begun before a policy that closes it", || {
        begun::goes_on(&tailnet.server, &tailnet.bob, tailnet.nodes())
    });
    Ok(())
}

/// Of [`KINDS`], what is named gets through, and soon nothing else.
fn exactly(from: &Member, to: &Member, open: &str) -> Result<()> {
    from.wait_for_peer(to.name(), LIMIT)?;
    for family in [4, 6] {
        for what in KINDS {
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
            let to_port = SocketAddr::new(address, PORT);
            // One socket of this port at a time, on each node.
            let _turn = UDP.lock().unwrap_or_else(PoisonError::into_inner);
            let pace = Duration::from_millis(20);
            let flood = Flood::start(from.namespace(), to.namespace(), to_port, pace)?;
            wait::pass(SILENCE)?;
            flood.received() > 0
        }
        "sctp" => {
            let to_port = SocketAddr::new(address, PORT);
            sctp::passes(from.namespace(), to.namespace(), to_port, SILENCE)?
        }
        port => {
            let to = SocketAddr::new(address, port.parse()?);
            traffic::get(from.namespace(), to, 100, SILENCE).is_ok()
        }
    })
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn policies_are_json_that_has_room_for_the_rule_for_outside() {
        for case in CASES.iter().chain(tagged::CASES) {
            let [before, after] = [case.policy.to_owned(), with_outside(case.policy)].map(|text| {
                // Headscale takes a comma behind the last one.
                let policy = serde_json::from_str(&text.replace(", ]", "]"));
                let policy: Value = policy.expect(case.name);
                let rules = ["acls", "grants"].map(|rules| policy[rules].as_array());
                rules.into_iter().flatten().map(Vec::len).sum::<usize>()
            });
            assert_eq!(after, before + 1, "{}", case.name);
        }
    }

    #[test]
    fn what_a_case_opens_is_what_is_tried() {
        for case in CASES.iter().chain(tagged::CASES) {
            let open = [case.ann, case.bob, case.tagged].map(|open| open.split(' '));
            for one in open.into_iter().flatten().filter(|one| !one.is_empty()) {
                let what = one.trim_end_matches("/4").trim_end_matches("/6");
                assert!(KINDS.contains(&what), "{}: {one}", case.name);
            }
        }
    }
}
