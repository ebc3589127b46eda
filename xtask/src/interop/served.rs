//! Stock nodes on our coordinator, which is their only relay and STUN server as well.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::{
    Lab, Login, hosts,
    member::{Kind, Member},
    server::{self, KeyOptions, Server},
    table::Table,
};
use crate::{
    lab::secs,
    process,
    tailnet::{COORDINATOR, Client},
    topology::Nat,
    traffic::{self, Pinger},
    wait,
};

const LIMIT: Duration = secs(30);
/// A command that is told why; one that is not waits for its limit of a minute.
const ENDS_BY_ITSELF: Duration = secs(10);
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
const INTERNET: &str = "198.51.100.2";

pub fn stock_nodes(lab: &Lab, table: &mut Table, which: &str) -> Result<()> {
    table.area(&format!("stock nodes on our coordinator{which}"));
    let mut server = Server::start(lab, server::Kind::Ours, WITH_TAGS)?;
    let key = server.auth_key("ann", KeyOptions::default())?;
    let one = Member::behind(lab, Kind::Stock, "one", 21, Nat::Easy)?;
    let router = lab.net.router("two-nat", 22, Nat::Hard)?;
    // An "internet" that only the second's router knows the way to: an exit node forwards to no private range, nor to its own segment.
    let address = format!("route add {INTERNET} via 203.0.113.{COORDINATOR}");
    router.namespace.ip(&address)?;
    server
        .namespace
        .ip(&format!("addr add {INTERNET}/32 dev lo"))?;
    let two = Member::start(lab, Kind::Stock, "two", &lab.net.behind("two", &router, 2)?)?;
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
    healthy(table, &one, "after the first minute of use")?;
    views(table, &one)?;
    derp(table, &one);
    names(table, &one, &two)?;
    policy(table, &server, &one, &two)?;
    preferences(table, &server, &one, &two)?;
    restarted(table, &mut server, &one, &two)?;
    logins(lab, table, &server, &one, &two)?;
    refusals(lab, table, &server)?;
    healthy(table, &one, "at the end")
}

fn healthy(table: &mut Table, node: &Member, when: &str) -> Result<()> {
    table.try_it(&format!("no health warning {when}"), || {
        super::healthy(node).map(|()| String::new())
    });
    Ok(())
}

/// What its debugging commands show of what we served.
fn views(table: &mut Table, node: &Member) -> Result<()> {
    for (arguments, wanted) in [
        (&["debug", "derp-map"][..], "\"999\""),
        (&["debug", "netmap"], "two.tail.lab."),
        (&["netcheck"], "Nearest DERP: lowroad"),
        (&["dns", "status"], "tail.lab"),
    ] {
        table.try_it(&arguments.join(" "), || {
            let text = node.cli(arguments)?;
            ensure!(text.contains(wanted), "no {wanted} in {text}");
            Ok(format!("has {wanted}"))
        });
    }
    Ok(())
}

/// Its check of a relay, which tries IPv6 as well: these hosts have none.
fn derp(table: &mut Table, node: &Member) {
    table.try_it("debug derp 999", || {
        let text = node.cli(&["debug", "derp", "999"])?;
        let said: Value = serde_json::from_str(&text)?;
        let info = said["Info"].to_string();
        for wanted in ["established a DERP connection", "STUN response"] {
            ensure!(info.contains(wanted), "{info}");
        }
        let errors = said["Errors"].as_array().cloned().unwrap_or_default();
        let other = errors
            .iter()
            .find(|text| !text.to_string().contains("over IPv6"));
        ensure!(other.is_none(), "{errors:?}");
        Ok("connection and STUN".to_owned())
    });
}

fn names(table: &mut Table, one: &Member, two: &Member) -> Result<()> {
    let getent = |database: &str, name: &str| -> Result<String> {
        let mut command = one.namespace().command("getent");
        let found = process::run(command.args([database, name]), "", secs(10))?;
        Ok(found.ok("getent")?.stdout)
    };
    for (family, database, of_family) in [(4, "ahostsv4", ""), (6, "ahostsv6", ", IPv6")] {
        let address = two.ip(family)?.to_string();
        for name in ["two.tail.lab", "two"] {
            table.try_it(&format!("MagicDNS: {name}{of_family}"), || {
                let (text, _) = wait::wait_for("the name", secs(10), || {
                    let found = getent(database, name).ok();
                    Ok(found.filter(|text| text.contains(&address)))
                })?;
                Ok(text.lines().next().unwrap_or_default().to_owned())
            });
        }
    }
    Ok(())
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
    table.try_it("exit node, offered and used", || {
        let _web = traffic::Server::start(&server.namespace, 8000)?;
        two.namespace().sysctl("net/ipv4/ip_forward", "1")?;
        two.cli(&["set", "--advertise-exit-node"])?;
        server.wait_for_offer("two", "0.0.0.0/0", LIMIT)?;
        server.approve_routes("two", "0.0.0.0/0,::/0,10.77.0.0/24")?;
        wait::wait_for("the option at the peer", LIMIT, || {
            let peer = one.peer("two")?.context("no such peer")?;
            Ok((peer["ExitNodeOption"] == true).then_some(()))
        })?;
        let to = SocketAddr::new(INTERNET.parse()?, 8000);
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

fn logins(lab: &Lab, table: &mut Table, server: &Server, one: &Member, two: &Member) -> Result<()> {
    let user = |name: &str| -> Result<String> {
        let node = server.node(name)?.context("the server does not know it")?;
        Ok(node["user"]["name"].as_str().unwrap_or("tags").to_owned())
    };
    table.try_it("logout, and back as another user", || {
        two.cli(&["logout"])?;
        wait::wait_for("needs a login", LIMIT, || {
            Ok((two.status()?["BackendState"] == "NeedsLogin").then_some(()))
        })?;
        let key = server.auth_key("bob", KeyOptions::default())?;
        two.up(&key)?;
        // The other user's node is another one; the first has expired.
        server.to_node("delete", "two")?;
        ensure!(user("two")?.starts_with("bob"), "of {}", user("two")?);
        one.wait_for_peer("two", LIMIT)?;
        Ok(String::new())
    });
    table.try_it("up --force-reauth", || {
        let key = server.auth_key("bob", KeyOptions::default())?;
        let before = two.status()?["Self"]["PublicKey"].clone();
        two.up_with(&key, &["--force-reauth"])?;
        ensure!(
            two.status()?["Self"]["PublicKey"] != before,
            "the same node key"
        );
        Ok("with a new node key".to_owned())
    });
    table.try_it("up --advertise-tags", || {
        let key = server.auth_key("ann", KeyOptions::default())?;
        two.up_with(&key, &["--force-reauth", "--advertise-tags=tag:web"])?;
        let node = server.node("two")?.context("no such node")?;
        ensure!(node["tags"].to_string().contains("tag:web"), "{node}");
        Ok(String::new())
    });
    table.try_it("key expiry, and a new login", || {
        server.to_node("expire", "two")?;
        wait::wait_for("needs a login", LIMIT, || {
            let state = two.status()?["BackendState"].clone();
            Ok((state == "NeedsLogin").then_some(()))
        })?;
        let key = server.auth_key("ann", KeyOptions::default())?;
        two.up_with(&key, &["--force-reauth", "--advertise-tags="])?;
        Ok(String::new())
    });
    table.try_it("deleted, and a new login", || {
        server.to_node("delete", "two")?;
        wait::wait_for("gone from the peer", LIMIT, || {
            Ok(one.peer("two")?.is_none().then_some(()))
        })?;
        let key = server.auth_key("ann", KeyOptions::default())?;
        two.up_with(&key, &["--force-reauth", "--reset"])?;
        one.wait_for_peer("two", LIMIT)?;
        Ok(String::new())
    });
    by_page(lab, table, server, two)
}

/// Signs in at the login page, which an administrator approves.
fn by_page(lab: &Lab, table: &mut Table, server: &Server, node: &Member) -> Result<()> {
    table.try_it("up by login page", || {
        node.cli(&["logout"])?;
        let login = Login::begin(lab, node, &[])?;
        ensure!(login.page.starts_with(server::URL), "{}", login.page);
        server.approve_login(&login.page, "eve")?;
        node.wait_until_running(LIMIT)?;
        Ok(format!("at https://{}/…", hosts::SERVER))
    });
    Ok(())
}

/// A key that nobody has made, and a tag asked for with the key of a user whom the policy does not name among its owners.
fn refusals(lab: &Lab, table: &mut Table, server: &Server) -> Result<()> {
    let node = Member::public(lab, Kind::Stock, "greedy", 40)?;
    let key = server.auth_key("bob", KeyOptions::default())?;
    let wrong = "lrkey-auth-000000000000-0";
    let tag = "--advertise-tags=tag:web";
    for (what, key, flag, why) in [
        (
            "up by a key that is not known",
            wrong,
            "--reset",
            "not known",
        ),
        (
            "up with another owner's tag",
            key.as_str(),
            tag,
            "requested tag",
        ),
    ] {
        table.try_it(&format!("{what}: refused, and told why"), || {
            let start = Instant::now();
            let Err(error) = node.up_with(key, &[flag]) else {
                bail!("it was let in: {}", node.status()?["Self"]["Tags"]);
            };
            let time = start.elapsed();
            ensure!(time < ENDS_BY_ITSELF, "only after {time:.1?}: {error:#}");
            let said = format!("{error:#}");
            let at = said.find(why).with_context(|| said.clone())?;
            ensure!(
                server.node("greedy")?.is_none(),
                "the server has a node of it"
            );
            Ok(said[at..].chars().take(120).collect())
        });
    }
    table.try_it("and up with neither", || {
        let time = node.up_with(&key, &["--reset"])?;
        Ok(format!("{:.2} s", time.as_secs_f64()))
    });
    Ok(())
}
