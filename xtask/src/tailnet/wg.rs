//! What the kernel itself says of a node's WireGuard peers: sessions, counters, endpoints.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, Result, ensure};

use super::Node;
use crate::{process, shell::find_program};

const LIMIT: Duration = Duration::from_secs(30);
const DEVICE: &str = "lowroad0";
/// WireGuard makes a new session by itself when the old one is this old (REKEY_AFTER_TIME); it tells whole seconds.
const REKEY: u64 = 120 - 1;

/// One line of `wg show … dump`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WgPeer {
    pub key: String,
    pub endpoint: Option<SocketAddr>,
    /// As `wg` lists them.
    pub prefixes: String,
    /// Time of the last handshake, in seconds since 1970; 0 before the first.
    pub handshake: u64,
    pub received: u64,
    pub sent: u64,
}

impl Node {
    /// The peers of `lowroad0`, by the kernel.
    pub fn wireguard(&self) -> Result<Vec<WgPeer>> {
        let dump = self.wg(&["show", DEVICE, "dump"])?;
        // The first line is the device's own, private key included.
        dump.lines().skip(1).map(parse).collect()
    }

    /// The peer to which this prefix is routed.
    pub fn wireguard_peer_with(&self, prefix: &str) -> Result<WgPeer> {
        let peers = self.wireguard()?;
        let mut found = peers
            .into_iter()
            .filter(|peer| peer.prefixes.split(',').any(|one| one == prefix));
        found
            .next()
            .with_context(|| format!("no WireGuard peer of {} has {prefix}", self.name))
    }

    /// Sets a peer's endpoint behind the agent's back.
    pub fn set_endpoint(&self, key: &str, endpoint: SocketAddr) -> Result<()> {
        let endpoint = endpoint.to_string();
        self.wg(&["set", DEVICE, "peer", key, "endpoint", &endpoint])
            .map(drop)
    }

    fn wg(&self, arguments: &[&str]) -> Result<String> {
        let program = find_program("wg").context("there is no wg: run `cargo xtask setup`")?;
        let mut command = self.namespace.command(program);
        let finished = process::run(command.args(arguments), "", LIMIT)?;
        // Its output is left out of any error: it has the private key.
        ensure!(
            finished.status.success(),
            "{}: wg {}: {}",
            self.name,
            arguments.join(" "),
            finished.stderr.trim()
        );
        Ok(finished.stdout)
    }
}

impl WgPeer {
    /// What has become of it, if that is not what should have.
    pub fn has_become(&self, after: &Self) -> Result<(), String> {
        if after.key != self.key {
            return Err("another key".to_owned());
        }
        if after.received < self.received || after.sent < self.sent {
            return Err("the counters began anew".to_owned());
        }
        if after.endpoint != self.endpoint {
            return Err(format!(
                "the endpoint was {:?} and is {:?}",
                self.endpoint, after.endpoint
            ));
        }
        let age = after.handshake.saturating_sub(self.handshake);
        if age != 0 && age < REKEY {
            return Err(format!("a new session after {age} s"));
        }
        Ok(())
    }
}

fn parse(line: &str) -> Result<WgPeer> {
    let fields: Vec<&str> = line.split('\t').collect();
    let [key, _, endpoint, prefixes, handshake, received, sent, ..] = fields[..] else {
        anyhow::bail!("`wg` printed a line of {} fields", fields.len());
    };
    Ok(WgPeer {
        key: key.to_owned(),
        endpoint: endpoint.parse().ok(),
        prefixes: prefixes.to_owned(),
        handshake: handshake.parse()?,
        received: received.parse()?,
        sent: sent.parse()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_dump_is_read_by_its_tabs() {
        let line =
            "a2V5\t(none)\t192.0.2.1:41641\t100.64.0.2/32,fd7a::2/128\t1763885000\t10\t20\toff";
        let peer = parse(line).unwrap();
        assert_eq!(peer.endpoint, Some("192.0.2.1:41641".parse().unwrap()));
        assert_eq!(
            (peer.handshake, peer.received, peer.sent),
            (1_763_885_000, 10, 20)
        );
        assert!(parse("x\ty").is_err());
    }
}
