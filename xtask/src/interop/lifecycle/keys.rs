//! Node keys that are good no more.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{LIMIT, on_the_direct_path, state};
use crate::{
    interop::{member::Member, server::Server},
    lab::secs,
    tailnet::{COORDINATOR, Client},
    topology::Namespace,
    wait,
};

/// Where what a host does not hear of its server is dropped.
const DEAF: &str = "table inet deaf";

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
