//! What moves WireGuard's endpoints: middleboxes, and packets that come late.

use std::{net::SocketAddr, time::Instant};

use anyhow::{Context, Result, ensure};

use super::{ALLOW_ALL, Lab, ms, secs};
use crate::{
    tailnet::{Client as _, Coordinator, Node},
    traffic::Pinger,
    wait,
};

const LIMIT: std::time::Duration = secs(60);
/// What the middlebox writes over 203.0.113.31, and nobody has.
const MOVED: &str = "203.0.113.131";
/// How many packets at least go round by the relay.
const ROUNDS: u64 = 20;

struct Pair {
    _coordinator: Coordinator,
    alpha: Node,
    bravo: Node,
    /// Of the other in each one's WireGuard.
    alphas_prefix: String,
    bravos_prefix: String,
}

/// Two nodes on the public segment with a direct path.
fn direct_pair(lab: &Lab) -> Result<Pair> {
    let coordinator = lab.coordinator(ALLOW_ALL)?;
    let key = coordinator.auth_key("ann", "")?;
    let alpha = lab.single_path_node("alpha", 30)?;
    let bravo = lab.single_path_node("bravo", 31)?;
    alpha.up(&key)?;
    bravo.up(&key)?;
    Ok(Pair {
        alphas_prefix: format!("{}/32", alpha.ip(4)?),
        bravos_prefix: format!("{}/32", bravo.ip(4)?),
        _coordinator: coordinator,
        alpha,
        bravo,
    })
}

impl Pair {
    /// Where alpha's kernel sends what is for bravo.
    fn endpoint(&self) -> Result<SocketAddr> {
        let peer = self.alpha.wireguard_peer_with(&self.bravos_prefix)?;
        peer.endpoint.context("bravo has no endpoint")
    }

    fn wait_for_endpoint(&self, wanted: SocketAddr) -> Result<()> {
        let what = format!("the endpoint {wanted}");
        wait::wait_for(&what, LIMIT, || {
            Ok((self.endpoint()? == wanted).then_some(()))
        })
        .map(drop)
    }
}

pub fn an_endpoint_that_a_middlebox_moved_is_put_back(lab: &Lab) -> Result<()> {
    let pair = direct_pair(lab)?;
    let ping = Pinger::start(&pair.alpha.namespace, pair.bravo.ip(4)?, ms(50))?;
    let (direct, _) = pair.alpha.wait_for_direct("bravo", LIMIT)?;
    let direct: SocketAddr = direct.parse()?;
    pair.wait_for_endpoint(direct)?;
    // WireGuard's data (its first byte is 4), and nothing else: disco still tells the truth.
    let mangle = |action: &str| {
        let rules = format!(
            "table ip middlebox {{}}
             delete table ip middlebox
             table ip middlebox {{
                chain out {{ type filter hook output priority 0;
                    oifname wan0 udp sport 41641 @th,64,8 4 {action}
                }}
             }}
            "
        );
        pair.bravo.namespace.nft(&rules)
    };
    mangle(&format!("ip saddr set {MOVED}"))?;
    pair.wait_for_endpoint(SocketAddr::new(MOVED.parse()?, direct.port()))?;
    // From here on no packet of bravo's could move it back.
    mangle("drop")?;
    let start = Instant::now();
    pair.wait_for_endpoint(direct)?;
    let time = start.elapsed();
    lab.note(&format!("put back after {:.1} s", time.as_secs_f64()));
    mangle("accept")?;
    let before = ping.answered();
    wait::wait_for("answers after the middlebox", LIMIT, || {
        Ok((ping.answered() > before + 20).then_some(()))
    })?;
    ensure!(pair.alpha.path_to("bravo")?.is_direct(), "no longer direct");
    Ok(())
}

/// The relay still takes what is for a node whose connection brings it nothing any more.
pub fn a_handshake_that_the_relay_swallowed_goes_by_the_direct_path(lab: &Lab) -> Result<()> {
    let pair = direct_pair(lab)?;
    pair.alpha.wait_for_peer("bravo", LIMIT)?;
    pair.bravo.namespace.nft(
        "table inet silent {
            chain in { type filter hook input priority 0; iifname wan0 meta l4proto tcp drop; }
        }",
    )?;
    let before = pair.alpha.relayed_packets()?.sent;
    let ping = Pinger::start(&pair.alpha.namespace, pair.bravo.ip(4)?, ms(50))?;
    let first = ping.first_answer(LIMIT)?;
    let relayed = pair.alpha.relayed_packets()?.sent - before;
    ensure!(relayed > 0, "nothing went by the relay");
    lab.note(&format!("{relayed} packets by the relay in vain"));
    // WireGuard repeats a handshake after 5 s (`REKEY_TIMEOUT`).
    lab.within("first answer", first, secs(2))
}

pub fn what_comes_late_by_the_relay_moves_no_endpoint(lab: &Lab) -> Result<()> {
    let pair = direct_pair(lab)?;
    let idle = pair.bravo.wireguard_peer_with(&pair.alphas_prefix)?;
    let relay = idle.endpoint.context("alpha has no endpoint")?;
    ensure!(relay.ip().is_loopback(), "an idle peer is at {relay}");
    let ping = Pinger::start(&pair.bravo.namespace, pair.alpha.ip(4)?, ms(20))?;
    pair.bravo.wait_for_direct("alpha", LIMIT)?;
    let (direct, _) = pair.alpha.wait_for_direct("bravo", LIMIT)?;
    let direct: SocketAddr = direct.parse()?;
    pair.wait_for_endpoint(direct)?;
    let before = pair.alpha.relayed_packets()?;
    let by_relay = || {
        let now = pair.alpha.relayed_packets()?;
        // Even an endpoint that moved for a moment would show here.
        ensure!(
            now.sent == before.sent,
            "{} packets were answered by the relay",
            now.sent - before.sent
        );
        Ok(now.received - before.received)
    };
    let start = Instant::now();
    while by_relay()? < ROUNDS {
        ensure!(start.elapsed() < LIMIT, "only {} by the relay", by_relay()?);
        // The next packets go round by the relay, until an answer moves the endpoint back: none does, if that answer was under way.
        pair.bravo.set_endpoint(&idle.key, relay)?;
        let answered = ping.answered();
        wait::wait_for("answers", LIMIT, || {
            let now = pair.endpoint()?;
            if now != direct {
                return Ok(Some(Err(now)));
            }
            Ok((ping.answered() > answered + 5).then_some(Ok(())))
        })?
        .0
        .map_err(|now| anyhow::anyhow!("a relayed packet moved the endpoint to {now}"))?;
    }
    let by_relay = by_relay()?;
    let report = ping.stop();
    lab.note(&format!("{by_relay} packets came by the relay; {report}"));
    ensure!(report.lost() == 0, "{report}");
    Ok(())
}
