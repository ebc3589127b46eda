//! Policies about what lies behind a router, a stock one: a lowroad and a stock node have to be shown, and let through to, the same.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Result, ensure};
use serde_json::Value;

use super::{LIMIT, SILENCE};
use crate::{
    interop::{
        Lab,
        member::{Kind, Member},
        routes::{self, Gateway, INSIDE, SUBNET},
        server::{self, KeyOptions, Server},
        table::Table,
    },
    tailnet::Client,
    topology::Nat,
    traffic, wait,
};

const ROUTER: &str = "router";
/// What all policies have in common; without a rule the router would be nobody's peer.
const TAGS: &str = r#""tagOwners": {"tag:router": ["ann@"], "tag:other": ["ann@"]},
    "hosts": {"inside": "192.168.24.2/32", "elsewhere": "192.168.24.77/32"}"#;
/// The router itself, at a port that nobody serves.
const SEEN: &str = r#"{"src": ["ann@"], "dst": ["tag:router"], "ip": ["tcp:9"]}"#;

/// A grant beside [`SEEN`], and what it opens behind the router for ann's two nodes. What they are shown of a router is no matter of the policy:
/// Headscale shows its routes to whoever sees it.
struct Case {
    name: &'static str,
    grant: &'static str,
    ports: &'static [u16],
}

/// Of which everything else differs.
const SUBNET_AT_A_PORT: Case = Case {
    name: "a subnet at a port",
    grant: r#"{"src": ["ann@"], "dst": ["192.168.24.0/24"], "ip": ["tcp:80"]}"#,
    ports: &[80],
};

const CASES: &[Case] = &[
    Case {
        name: "a router, and nothing behind it",
        grant: SEEN,
        ports: &[],
    },
    SUBNET_AT_A_PORT,
    Case {
        name: "a host of a subnet, by name",
        grant: r#"{"src": ["ann@"], "dst": ["inside"], "ip": ["tcp:81"]}"#,
        ports: &[81],
    },
    Case {
        name: "another host of the subnet",
        grant: r#"{"src": ["ann@"], "dst": ["elsewhere"], "ip": ["*"]}"#,
        ports: &[],
    },
    Case {
        name: "a subnet for somebody else",
        grant: r#"{"src": ["bob@"], "dst": ["192.168.24.0/24"], "ip": ["*"]}"#,
        ports: &[],
    },
    Case {
        name: "a subnet via the router's tag",
        grant: r#"{"src": ["ann@"], "dst": ["192.168.24.0/24"], "ip": ["tcp:80"], "via": ["tag:router"]}"#,
        ports: &[80],
    },
    Case {
        name: "a subnet via another tag",
        grant: r#"{"src": ["ann@"], "dst": ["192.168.24.0/24"], "ip": ["tcp:80"], "via": ["tag:other"]}"#,
        ports: &[],
    },
    Case {
        name: "autogroup:internet",
        grant: r#"{"src": ["ann@"], "dst": ["autogroup:internet"], "ip": ["*"]}"#,
        ports: &[],
    },
    Case {
        name: "autogroup:internet for somebody else",
        grant: r#"{"src": ["bob@"], "dst": ["autogroup:internet"], "ip": ["*"]}"#,
        ports: &[],
    },
];

impl Case {
    fn policy(&self) -> String {
        format!(r#"{{{TAGS}, "grants": [{SEEN}, {}]}}"#, self.grant)
    }
}

pub fn on_headscale(lab: &Lab, table: &mut Table) -> Result<()> {
    table.area("Headscale's policies about what is behind a router, for lowroad and for stock");
    let server = Server::start(lab, server::Kind::Headscale, &CASES[0].policy())?;
    let key = server.auth_key("ann", KeyOptions::default())?;
    let tagged = KeyOptions {
        tags: "tag:router",
        ..KeyOptions::default()
    };
    let lowroad = Member::behind(lab, Kind::Lowroad, "lowroad", 21, Nat::Easy)?;
    let stock = Member::behind(lab, Kind::Stock, "stock", 22, Nat::Easy)?;
    let users = [&lowroad, &stock];
    for user in users {
        user.up(&key)?;
        user.cli(&["set", "--accept-routes"])?;
    }
    let router = routes::gateway(lab, ROUTER, 24, &server.auth_key("ann", tagged)?)?;
    let all = format!("{SUBNET},0.0.0.0/0,::/0");
    router.node.cli(&["set", "--advertise-exit-node"])?;
    for route in all.split(',') {
        server.wait_for_offer(ROUTER, route, LIMIT)?;
    }
    server.approve_routes(ROUTER, &all)?;
    let _second_port = traffic::Server::start(&router.inside, 81)?;
    for case in CASES {
        table.try_it(case.name, || {
            if case.ports.is_empty() {
                // Else nothing would tell when it has come into force.
                server.set_policy(&SUBNET_AT_A_PORT.policy())?;
                SUBNET_AT_A_PORT.holds(users, &router)?;
            }
            server.set_policy(&case.policy())?;
            case.holds(users, &router)
        });
    }
    Ok(())
}

impl Case {
    fn holds(&self, users: [&Member; 2], router: &Gateway) -> Result<String> {
        let to: IpAddr = INSIDE.parse()?;
        for user in users {
            user.wait_for_peer(router.node.name(), LIMIT)?;
            for port in [80, 81] {
                let is_open = || {
                    let to = SocketAddr::new(to, port);
                    traffic::get(user.namespace(), to, 100, SILENCE).is_ok()
                };
                let wanted = self.ports.contains(&port);
                let what = format!(
                    "{port} {} for {}",
                    if wanted { "open" } else { "closed" },
                    user.name()
                );
                wait::wait_for(&what, LIMIT, || Ok((is_open() == wanted).then_some(())))?;
                ensure!(is_open() == wanted, "{what}, and then not");
            }
        }
        // What they are shown of it: routes in either order.
        let (shown, _) = wait::wait_for("the same at both", LIMIT, || {
            let [lowroad, stock] = users.map(|user| shown(user, router.node.name()));
            let (lowroad, stock) = (lowroad?, stock?);
            ensure!(lowroad == stock, "stock {stock:?}, lowroad {lowroad:?}");
            Ok(Some(stock))
        })?;
        Ok(format!(
            "open: {:?}; in both statuses {}",
            self.ports,
            Value::from(shown)
        ))
    }
}

/// Whether a peer may be the exit node, its routes and its addresses.
fn shown(by: &Member, peer: &str) -> Result<Vec<Value>> {
    let peer = by.peer(peer)?.unwrap_or_default();
    let fields = ["ExitNodeOption", "PrimaryRoutes", "AllowedIPs"];
    Ok(fields
        .map(|field| {
            let mut value = peer[field].clone();
            if let Some(list) = value.as_array_mut() {
                list.sort_by_key(Value::to_string);
            }
            value
        })
        .into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_are_json() {
        for case in CASES {
            let policy: Value = serde_json::from_str(&case.policy()).unwrap();
            assert_eq!(policy["grants"].as_array().map(Vec::len), Some(2));
        }
    }
}
