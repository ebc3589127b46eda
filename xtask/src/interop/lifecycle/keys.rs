//! Auth keys that are good for one login, and node keys that are good no more.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{LIMIT, answers, on_the_direct_path, only, state};
use crate::{
    interop::{
        member::{Kind, Member},
        server::{KeyOptions, Server},
        table::Table,
    },
    lab::secs,
    tailnet::{COORDINATOR, Client},
    topology::Namespace,
    wait,
};

/// Where what a host does not hear of its server is dropped.
const DEAF: &str = "table inet deaf";

/// The key that a node has, which a stock one knows by its netmap.
fn of_node(node: &Member) -> Result<Value> {
    Ok(node.status()?["Self"]["PublicKey"].clone())
}

/// Logs in anew, which has to end with another node key than this, and one that the other end of a ping knows.
fn renewed(node: &Member, peer: &Member, before: &Value, key: &str) -> Result<String> {
    let time = node.up_with(key, &["--force-reauth"])?;
    wait::wait_for("another node key", LIMIT, || {
        Ok((of_node(node)? != *before).then_some(()))
    })?;
    answers(peer, node)?;
    Ok(format!("{:.2} s", time.as_secs_f64()))
}

/// A login that has to fail. Says why, as the command does.
fn refused(node: &Member, key: &str) -> Result<String> {
    let server = format!("--login-server={}", node.server());
    let hostname = format!("--hostname={}", node.name());
    let key = format!("--auth-key={key}");
    let flags = ["--force-reauth", "--timeout=20s"];
    let up = [&["up", &server, &hostname, &key][..], &flags].concat();
    let finished = node.try_cli(&up)?;
    let said = format!("{} {}", finished.stderr.trim(), finished.stdout.trim());
    ensure!(finished.code() != 0, "it was let in: {said}");
    Ok(said)
}

pub fn single_use(
    table: &mut Table,
    server: &Server,
    node: &mut Member,
    peer: &Member,
) -> Result<()> {
    let first = server.single_use_key("ann")?;
    table.try_it("logout, and up by a single-use key", || {
        node.cli(&["logout"])?;
        state(node, "NeedsLogin")?;
        let time = node.up(&first)?;
        only(server, node)?;
        answers(peer, node)?;
        Ok(format!("{:.2} s", time.as_secs_f64()))
    });
    table.try_it("its agent restarts, and needs no login", || {
        let before = of_node(node)?;
        node.restart()?;
        let time = node.wait_until_running(LIMIT)?;
        ensure!(of_node(node)? == before, "another node key");
        answers(peer, node)?;
        Ok(format!("{:.2} s", time.as_secs_f64()))
    });
    let second = server.single_use_key("ann")?;
    table.try_it("up --force-reauth by another single-use key", || {
        renewed(node, peer, &of_node(node)?, &second)
    });
    let third = server.single_use_key("ann")?;
    table.try_it("the same of a node that is stopped", || {
        let before = of_node(node)?;
        node.cli(&["down"])?;
        state(node, "Stopped")?;
        renewed(node, peer, &before, &third)
    });
    table.try_it(
        "by a key that is spent: refused, and the old login is in force",
        || {
            let before = of_node(node)?;
            let said = refused(node, &third)?;
            // This Headscale refuses by an HTTP status, of which a stock client tells nobody, and tries on.
            match node.kind() {
                Kind::Lowroad => ensure!(said.contains("already used"), "{said}"),
                Kind::Stock => node.restart()?,
            }
            node.wait_until_running(LIMIT)?;
            ensure!(of_node(node)? == before, "another node key");
            let known = server.node_of_key(&before)?;
            ensure!(known.is_some(), "Headscale has another");
            answers(peer, node)?;
            Ok(said)
        },
    );
    // Whatever came of it: what follows is about something else.
    let key = server.auth_key("ann", KeyOptions::default())?;
    node.up_with(&key, &["--force-reauth"])?;
    only(server, node)
}

/// Of a peer that cannot hear of the end, and goes on sending.
pub fn expired(server: &Server, node: &Member, peer: &Member) -> Result<String> {
    let ping = on_the_direct_path(peer, node)?;
    let silent = without_server(peer.namespace(), || {
        server.to_node("expire", "subject")?;
        let time = state(node, "NeedsLogin")?;
        // Answers that are under way.
        wait::pass(Duration::from_millis(500))?;
        let (sent, before) = (sent_to(peer, node)?, ping.report().answered);
        wait::pass(secs(1))?;
        let answered = ping.report().answered - before;
        ensure!(answered == 0, "{answered} answers in a second");
        let seen = peer.peer("subject")?.context("no such peer")?;
        ensure!(seen["Expired"] != true, "the peer has been told");
        let sent = sent_to(peer, node)?.saturating_sub(sent);
        ensure!(sent > 0, "the peer sends nothing any more");
        Ok(format!(
            "told after {:.2} s; of {sent} bytes of a peer that has not been told nothing was answered",
            time.as_secs_f64()
        ))
    })?;
    wait::wait_for("the end at the peer", LIMIT, || {
        let seen = peer.peer("subject")?;
        Ok(seen
            .is_none_or(|seen| seen["Expired"] == true)
            .then_some(()))
    })?;
    Ok(silent)
}

/// Bytes that have gone to this peer through the tunnel.
fn sent_to(from: &Member, to: &Member) -> Result<u64> {
    let seen = from.peer(to.name())?.context("no such peer")?;
    seen["TxBytes"].as_u64().context("no TxBytes")
}

/// What happens while a host hears nothing of its server, and its server nothing of it.
fn without_server<T>(host: &Namespace, meanwhile: impl FnOnce() -> Result<T>) -> Result<T> {
    let (v4, v6) = (
        format!("203.0.113.{COORDINATOR}"),
        format!("2001:db8::{COORDINATOR}"),
    );
    host.nft(&format!(
        "{DEAF} {{
            chain in {{ type filter hook input priority 0; ip saddr {v4} drop; ip6 saddr {v6} drop; }}
            chain out {{ type filter hook output priority 0; ip daddr {v4} drop; ip6 daddr {v6} drop; }}
        }}"
    ))?;
    let result = meanwhile();
    // Also where it failed: the other cases want the server.
    host.nft(&format!("delete {DEAF}"))?;
    result
}
