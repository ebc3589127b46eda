//! A node on Headscale, from the first login to the administrator's last word: lowroad's, and a stock one's to compare with.

mod keys;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::{
    Age, Lab, Login,
    member::{Kind, Member},
    policies,
    server::{self, KeyOptions, Server},
    single_use,
    table::Table,
};
use crate::{
    lab::{ALLOW_ALL, secs},
    tailnet::Client,
    topology::Namespace,
    traffic::Pinger,
    wait,
};

const LIMIT: Duration = secs(30);
const PACE: Duration = Duration::from_millis(20);
const POLICY: &str = r#"{"acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}],
    "tagOwners": {"tag:web": ["ann@"]}}"#;
/// Headscale looks for ephemeral nodes that have gone after 70 s, as the matrix configures it.
const FORGOTTEN: Duration = secs(150);
/// Longer than a stock client waits for a word of its server, 120 s.
const BLACK_HOLE: Duration = secs(150);
/// From there: for what is tried again once in a while.
const BACK: Duration = secs(120);
/// As a firewall that says nothing: nothing is refused, nothing gets through.
const HOLE: &str = "table inet hole {
    chain in { type filter hook input priority 0; iifname wan0 counter drop; }
    chain out { type filter hook output priority 0; oifname wan0 drop; }
}";
const NO_HOLE: &str = "delete table inet hole";

pub fn on_headscale(lab: &Lab, table: &mut Table, kind: Kind) -> Result<()> {
    table.area(&format!("a {} node on Headscale", kind.name()));
    let mut server = Server::start(lab, server::Kind::Headscale, POLICY)?;
    let key = server.auth_key("ann", KeyOptions::default())?;
    let mut node = Member::public(lab, kind, "subject", 30)?;
    let peer = Member::public(lab, Kind::Stock, "peer", 31)?;
    peer.up(&key)?;
    logins(lab, table, &server, &mut node, &peer)?;
    single_use::rows(table, &server, &mut node, &peer, Age::New)?;
    administered(table, &server, &mut node, &peer)?;
    ends_by_itself(table, &server, &node, &peer)?;
    asks_for_tags(lab, table, &server, &peer, kind)?;
    ephemeral(lab, table, &server, &peer, kind)?;
    outage(table, &mut server, &node, &peer)?;
    black_hole(table, &server, &node, &peer)
}

fn state(node: &Member, state: &str) -> Result<Duration> {
    let what = format!("{} {state}", node.name());
    let is = || Ok((node.status()?["BackendState"] == state).then_some(()));
    wait::wait_for(&what, LIMIT, is).map(|(_, time)| time)
}

/// Headscale tells the others only: the node hears of it when it registers the next time.
fn deleted(server: &Server, node: &mut Member, peer: &Member) -> Result<String> {
    server.to_node("delete", "subject")?;
    wait::wait_for("gone from the peer", LIMIT, || {
        Ok(peer.peer("subject")?.is_none().then_some(()))
    })?;
    node.restart()?;
    let time = state(node, "NeedsLogin")?;
    Ok(format!("needs a login after {:.2} s", time.as_secs_f64()))
}

/// Logins as somebody else make nodes of their own, and leave the older ones.
fn only(server: &Server, node: &Member) -> Result<()> {
    server.leave_only(node.name(), &node.node_key()?)
}

fn logins(
    lab: &Lab,
    table: &mut Table,
    server: &Server,
    node: &mut Member,
    peer: &Member,
) -> Result<()> {
    table.try_it("up by web sign-in", || {
        let login = Login::begin(lab, node, &[])?;
        ensure!(login.page.starts_with(server::URL), "{}", login.page);
        server.approve_login(&login.page, "ann")?;
        let time = state(node, "Running")?;
        node.answered_by(peer)?;
        Ok(format!("{:.2} s after the approval", time.as_secs_f64()))
    });
    let key = server.auth_key("ann", KeyOptions::default())?;
    table.try_it("logout", || {
        node.cli(&["logout"])?;
        state(node, "NeedsLogin")?;
        wait::wait_for("gone or offline at the peer", LIMIT, || {
            let seen = peer.peer("subject")?;
            Ok(seen
                .is_none_or(|peer| peer["Online"] == false || peer["Expired"] == true)
                .then_some(()))
        })?;
        Ok(String::new())
    });
    table.try_it("and back by auth key", || {
        let time = node.up(&key)?;
        only(server, node)?;
        peer.answered_by(node)?;
        Ok(format!("{:.2} s", time.as_secs_f64()))
    });
    table.try_it("as another user", || {
        let key = server.auth_key("bob", KeyOptions::default())?;
        node.up_with(&key, &["--force-reauth"])?;
        let all = server.nodes()?;
        let now = all.iter().filter(|node| node["name"] == "subject");
        let users: Vec<_> = now.map(|node| node["user"]["name"].to_string()).collect();
        ensure!(users.iter().any(|user| user.contains("bob")), "{users:?}");
        peer.answered_by(node)?;
        only(server, node)?;
        Ok(format!("nodes of this name by users {users:?}"))
    });
    table.try_it("with tags by the key", || {
        let options = KeyOptions {
            tags: "tag:web",
            ..KeyOptions::default()
        };
        let key = server.auth_key("ann", options)?;
        node.up_with(&key, &["--force-reauth"])?;
        let tags = node.status()?["Self"]["Tags"].clone();
        ensure!(tags.to_string().contains("tag:web"), "{tags}");
        only(server, node)?;
        wait::wait_for("the tags at the peer", LIMIT, || {
            let seen = peer.peer("subject")?.context("no such peer")?;
            Ok(seen["Tags"].to_string().contains("tag:web").then_some(()))
        })?;
        peer.answered_by(node)?;
        Ok(tags.to_string())
    });
    table.try_it(
        "tagged, deleted by the administrator, and restarted",
        || deleted(server, node, peer),
    );
    table.try_it("and back to a user", || {
        node.up_with(&key, &["--force-reauth"])?;
        let tags = node.status()?["Self"]["Tags"].clone();
        ensure!(tags.as_array().is_none_or(Vec::is_empty), "{tags}");
        peer.answered_by(node).map(|_| String::new())
    });
    Ok(())
}

fn administered(
    table: &mut Table,
    server: &Server,
    node: &mut Member,
    peer: &Member,
) -> Result<()> {
    let key = server.auth_key("ann", KeyOptions::default())?;
    table.try_it("renamed", || {
        server.rename("subject", "other")?;
        let named = |node: &Member| -> Result<bool> {
            let name = node.status()?["Self"]["DNSName"].to_string();
            Ok(name.contains("other.tail.lab"))
        };
        let (_, time) = wait::wait_for("the new name", LIMIT, || Ok(named(node)?.then_some(())))?;
        wait::wait_for("the new name at the peer", LIMIT, || {
            let all = peer.status()?["Peer"].to_string();
            Ok(all.contains("other.tail.lab").then_some(()))
        })?;
        Ok(format!("seen after {:.2} s", time.as_secs_f64()))
    });
    table.try_it("key expired by the administrator", || {
        keys::expired(server, node, peer)
    });
    table.try_it("and renewed", || {
        node.up_with(&key, &["--force-reauth"])?;
        state(node, "Running")?;
        peer.answered_by(node)?;
        Ok(String::new())
    });
    table.try_it("deleted by the administrator, and restarted", || {
        deleted(server, node, peer)
    });
    table.try_it("and back", || {
        node.up_with(&key, &["--force-reauth"])?;
        peer.answered_by(node)?;
        Ok(String::new())
    });
    Ok(())
}

/// Nobody does anything at the time.
fn ends_by_itself(table: &mut Table, server: &Server, node: &Member, peer: &Member) -> Result<()> {
    const SECONDS: u64 = 15;
    let key = server.auth_key("ann", KeyOptions::default())?;
    table.try_it(&format!("a key that ends in {SECONDS} s"), || {
        let start = Instant::now();
        server.expire_in("subject", SECONDS)?;
        state(node, "NeedsLogin")?;
        let time = start.elapsed();
        // The end has whole seconds.
        ensure!(time >= secs(SECONDS - 2), "already after {time:.1?}");
        Ok(format!("needs a login after {:.1} s", time.as_secs_f64()))
    });
    table.try_it("and is renewed", || {
        node.up_with(&key, &["--force-reauth"])?;
        peer.answered_by(node).map(|_| String::new())
    });
    Ok(())
}

/// Headscale lets a login at the page ask for tags, and one with a key not.
fn asks_for_tags(
    lab: &Lab,
    table: &mut Table,
    server: &Server,
    peer: &Member,
    kind: Kind,
) -> Result<()> {
    let flags = ["--advertise-tags=tag:web"];
    let asking = Member::public(lab, kind, "asking", 33)?;
    table.try_it(
        "up --advertise-tags, by web sign-in of the tag's owner",
        || {
            let login = Login::begin(lab, &asking, &flags)?;
            server.approve_login(&login.page, "ann")?;
            state(&asking, "Running")?;
            let tags = asking.status()?["Self"]["Tags"].to_string();
            ensure!(tags.contains("tag:web"), "{tags}");
            wait::wait_for("the tag at the peer", LIMIT, || {
                let seen = peer.peer("asking")?.context("no such peer")?;
                Ok(seen["Tags"].to_string().contains("tag:web").then_some(()))
            })?;
            peer.answered_by(&asking)?;
            Ok(tags)
        },
    );
    let greedy = Member::public(lab, kind, "greedy", 34)?;
    table.try_it("and of another user: refused", || {
        let login = Login::begin(lab, &greedy, &flags)?;
        let Err(error) = server.approve_login(&login.page, "bob") else {
            bail!("it was let in: {}", greedy.status()?["Self"]["Tags"]);
        };
        let said = format!("{error:#}");
        ensure!(said.contains("not permitted"), "{said}");
        let state = greedy.status()?["BackendState"].clone();
        ensure!(state != "Running", "{state}");
        ensure!(server.node("greedy")?.is_none(), "Headscale knows it");
        Ok(said)
    });
    Ok(())
}

fn ephemeral(
    lab: &Lab,
    table: &mut Table,
    server: &Server,
    peer: &Member,
    kind: Kind,
) -> Result<()> {
    let options = KeyOptions {
        ephemeral: true,
        ..KeyOptions::default()
    };
    let key = server.auth_key("ann", options)?;
    let mut node = Member::public(lab, kind, "brief", 32)?;
    node.up(&key)?;
    peer.answered_by(&node)?;
    table.try_it(
        "ephemeral: its agent restarts, and it is still there",
        || {
            node.restart()?;
            node.wait_until_running(LIMIT)?;
            peer.answered_by(&node).map(|_| String::new())
        },
    );
    table.try_it("ephemeral: forgotten after its logout", || {
        node.cli(&["logout"])?;
        let gone = || Ok(server.node("brief")?.is_none().then_some(()));
        let (_, time) = wait::wait_for("the server to forget it", FORGOTTEN, gone)?;
        Ok(format!("after {:.0} s", time.as_secs_f64()))
    });
    table.try_it("ephemeral: forgotten once it is gone", || {
        node.up(&key)?;
        drop(node);
        let gone = || Ok(server.node("brief")?.is_none().then_some(()));
        let (_, time) = wait::wait_for("the server to forget it", FORGOTTEN, gone)?;
        Ok(format!("after {:.0} s", time.as_secs_f64()))
    });
    Ok(())
}

/// Pings that begin there.
fn on_the_direct_path(from: &Member, to: &Member) -> Result<Pinger> {
    let warm = Pinger::start(from.namespace(), to.ip(4)?, PACE)?;
    from.wait_for_direct(to.name(), LIMIT)?;
    to.wait_for_direct(from.name(), LIMIT)?;
    drop(warm);
    let ping = Pinger::start(from.namespace(), to.ip(4)?, PACE)?;
    ping.first_answer(LIMIT)?;
    Ok(ping)
}

fn outage(table: &mut Table, server: &mut Server, node: &Member, peer: &Member) -> Result<()> {
    let ping = on_the_direct_path(node, peer)?;
    table.try_it("Headscale unreachable for 20 s, and back", || {
        server.stop();
        wait::pass(secs(20))?;
        server.start_again()?;
        let online = || {
            let known = server.node("subject")?.context("no such node")?;
            Ok((known["online"] == true).then_some(()))
        };
        let (_, time) = wait::wait_for("it online", secs(90), online)?;
        Ok(format!(
            "connected again {:.1} s after its start",
            time.as_secs_f64()
        ))
    });
    table.try_it("pings by the direct path meanwhile", || {
        let report = ping.stop();
        ensure!(report.lost() == 0, "{report}");
        Ok(report.to_string())
    });
    table.try_it("a change of policy after it", || {
        server.set_policy(&policies::one_way(node, peer)?)?;
        let silent = || -> Result<Option<()>> {
            let ping = Pinger::start(peer.namespace(), node.ip(4)?, PACE)?;
            wait::pass(Duration::from_millis(400))?;
            Ok((ping.report().answered == 0).then_some(()))
        };
        let (_, time) = wait::wait_for("silence", LIMIT, silent)?;
        ensure!(peer.peer("subject")?.is_some(), "it is no peer any more");
        server.set_policy(ALLOW_ALL)?;
        peer.answered_by(node)?;
        Ok(format!(
            "closed within {:.2} s, open again",
            time.as_secs_f64()
        ))
    });
    Ok(())
}

fn black_hole(table: &mut Table, server: &Server, node: &Member, peer: &Member) -> Result<()> {
    let pings = [
        on_the_direct_path(node, peer)?,
        on_the_direct_path(peer, node)?,
    ];
    // How many of the two have been told.
    let told = || -> Result<usize> {
        let seen = node.peer("peer")?.context("no such peer")?;
        let own = peer.status()?["Self"].clone();
        let names = [&seen["DNSName"], &own["DNSName"]].map(Value::to_string);
        let new = names.iter().filter(|name| name.contains("meanwhile."));
        Ok(new.count())
    };
    table.try_it("Headscale behind a black hole for 150 s, and back", || {
        let meanwhile = || -> Result<()> {
            wait::pass(BLACK_HOLE / 2)?;
            server.rename("peer", "meanwhile")?;
            wait::pass(BLACK_HOLE / 2)?;
            ensure!(told()? == 0, "the change got through the hole");
            Ok(())
        };
        let dropped = in_a_hole(&server.namespace, meanwhile)?;
        ensure!(dropped > 0, "nobody tried to get through");
        let both = || Ok((told()? == 2).then_some(()));
        let (_, time) = wait::wait_for("a change made meanwhile", BACK, both)?;
        Ok(format!(
            "both see a change made meanwhile {:.1} s after its end, by themselves",
            time.as_secs_f64()
        ))
    });
    table.try_it("pings both ways by the direct path all the while", || {
        let reports = pings.map(Pinger::stop);
        for report in &reports {
            ensure!(report.lost() == 0, "{report}");
        }
        Ok(reports.map(|report| report.to_string()).join("; "))
    });
    for member in [node, peer] {
        let what = format!("{}: no health warning after it", member.name());
        table.try_it(&what, || {
            let well = || super::healthy(member).map(Some);
            let (_, time) = wait::wait_for("health", BACK, well)?;
            Ok(format!("{:.1} s later", time.as_secs_f64()))
        });
    }
    Ok(())
}

/// What happens while nothing gets to this host or from it. Says how many packets did not get to it.
fn in_a_hole(host: &Namespace, meanwhile: impl FnOnce() -> Result<()>) -> Result<u64> {
    host.nft(HOLE)?;
    let result = meanwhile();
    let dropped = host.nft_counter("hole");
    // Also where it failed: the other cases want the server.
    host.nft(NO_HOLE)?;
    result?;
    dropped
}
