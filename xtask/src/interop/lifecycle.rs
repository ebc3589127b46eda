//! A node on Headscale, from the first login to the administrator's last word: lowroad's, and a stock one's to compare with.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{
    Lab, Login,
    member::{Kind, Member},
    policies,
    server::{self, KeyOptions, Server},
    table::Table,
};
use crate::{
    lab::{ALLOW_ALL, secs},
    tailnet::Client,
    traffic::Pinger,
    wait,
};

const LIMIT: Duration = secs(30);
const PACE: Duration = Duration::from_millis(20);
const POLICY: &str = r#"{"acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}],
    "tagOwners": {"tag:web": ["ann@"]}}"#;
/// Headscale looks for ephemeral nodes that have gone after 70 s, as the matrix configures it.
const FORGOTTEN: Duration = secs(150);

pub fn on_headscale(lab: &Lab, table: &mut Table, kind: Kind) -> Result<()> {
    table.area(&format!("a {} node on Headscale", kind.name()));
    let mut server = Server::start(lab, server::Kind::Headscale, POLICY)?;
    let key = server.auth_key("ann", KeyOptions::default())?;
    let mut node = Member::public(lab, kind, "subject", 30)?;
    let peer = Member::public(lab, Kind::Stock, "peer", 31)?;
    peer.up(&key)?;
    logins(lab, table, &server, &mut node, &peer)?;
    administered(table, &server, &mut node, &peer)?;
    ephemeral(lab, table, &server, &peer, kind)?;
    outage(table, &mut server, &node, &peer)
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
    server.leave_only(node.name(), &node.status()?["Self"]["PublicKey"])
}

fn answers(from: &Member, to: &Member) -> Result<Duration> {
    let ping = Pinger::start(from.namespace(), to.ip(4)?, PACE)?;
    ping.first_answer(LIMIT)
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
        answers(node, peer)?;
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
        answers(peer, node)?;
        Ok(format!("{:.2} s", time.as_secs_f64()))
    });
    table.try_it("as another user", || {
        let key = server.auth_key("bob", KeyOptions::default())?;
        node.up_with(&key, &["--force-reauth"])?;
        let all = server.nodes()?;
        let now = all.iter().filter(|node| node["name"] == "subject");
        let users: Vec<_> = now.map(|node| node["user"]["name"].to_string()).collect();
        ensure!(users.iter().any(|user| user.contains("bob")), "{users:?}");
        answers(peer, node)?;
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
        answers(peer, node)?;
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
        answers(peer, node).map(|_| String::new())
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
        server.to_node("expire", "subject")?;
        let time = state(node, "NeedsLogin")?;
        let ping = Pinger::start(
            peer.namespace(),
            node.status()?["Self"]["TailscaleIPs"][0]
                .as_str()
                .context("no address left")?
                .parse()?,
            PACE,
        )?;
        wait::pass(secs(1))?;
        let report = ping.stop();
        ensure!(report.answered == 0, "it still answers: {report}");
        Ok(format!(
            "told after {:.2} s, answers nobody",
            time.as_secs_f64()
        ))
    });
    table.try_it("and renewed", || {
        node.up_with(&key, &["--force-reauth"])?;
        state(node, "Running")?;
        answers(peer, node)?;
        Ok(String::new())
    });
    table.try_it("deleted by the administrator, and restarted", || {
        deleted(server, node, peer)
    });
    table.try_it("and back", || {
        node.up_with(&key, &["--force-reauth"])?;
        answers(peer, node)?;
        Ok(String::new())
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
    answers(peer, &node)?;
    table.try_it(
        "ephemeral: its agent restarts, and it is still there",
        || {
            node.restart()?;
            node.wait_until_running(LIMIT)?;
            answers(peer, &node).map(|_| String::new())
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

fn outage(table: &mut Table, server: &mut Server, node: &Member, peer: &Member) -> Result<()> {
    let warm = Pinger::start(node.namespace(), peer.ip(4)?, PACE)?;
    node.wait_for_direct("peer", LIMIT)?;
    peer.wait_for_direct("subject", LIMIT)?;
    drop(warm);
    let ping = Pinger::start(node.namespace(), peer.ip(4)?, PACE)?;
    ping.first_answer(LIMIT)?;
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
        answers(peer, node)?;
        Ok(format!(
            "closed within {:.2} s, open again",
            time.as_secs_f64()
        ))
    });
    Ok(())
}
