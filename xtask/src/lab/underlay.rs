//! Kernel WireGuard on unfriendly ground: no IPv4, strict reverse-path filters, a firewall that is closed, a small MTU.

use std::net::SocketAddr;

use anyhow::{Result, ensure};

use super::{ALLOW_ALL, Lab, ms, secs};
use crate::{
    tailnet::{Client as _, Coordinator, Node, PathKind, URL_V6},
    topology::{Namespace, Nat},
    traffic::{self, Pinger},
    wait,
};

/// The device's own.
const MTU: usize = 1280;
/// Just enough for a packet of [`MTU`] in WireGuard over IPv6: 40 for IP, 8 for UDP, 32 for WireGuard.
const UNDERLAY_MTU: usize = MTU + 80;
const V6_HEADER: usize = 40;
const V4_HEADER: usize = 20;
const ICMP_HEADER: usize = 8;
const LIMIT: std::time::Duration = secs(60);

/// Both nodes behind IPv6 routers that let in only answers, and without any IPv4: from the relay to a direct path.
pub fn without_ipv4_the_upgrade_to_a_direct_path_loses_nothing(lab: &Lab) -> Result<()> {
    let coordinator = Coordinator::start_at(lab.net, ALLOW_ALL, URL_V6)?;
    let node = |name: &str, last| {
        let router = lab.net.router_v6(&format!("router-{name}"), last)?;
        let mut node = Node::start(lab.net, name, lab.net.behind_v6(name, &router, 2)?)?;
        node.server = URL_V6;
        Ok::<_, anyhow::Error>(node)
    };
    let (alpha, bravo) = (node("alpha", 21)?, node("bravo", 22)?);
    lab.net.route_to_v6_lans(&coordinator.namespace)?;
    for node in [&alpha, &bravo] {
        node.namespace
            .ip(&format!("link set eth0 mtu {UNDERLAY_MTU}"))?;
    }
    let key = coordinator.auth_key("ann", "")?;
    alpha.up(&key)?;
    bravo.up(&key)?;
    let path = upgrade(lab, &alpha, &bravo)?;
    ensure!(path.starts_with("[2001:db8:"), "direct by {path}");
    full_packets_fit(&alpha, &bravo)?;
    carry(lab, &alpha, &bravo, 4_000_000)
}

/// Reverse paths strictly filtered, nothing let in but the WireGuard port (and answers, and loopback, as everywhere: WireGuard hands the
/// agent there what is for a relay), and an MTU that leaves no byte to spare.
pub fn strict_filters_a_closed_firewall_and_a_small_mtu_change_nothing(lab: &Lab) -> Result<()> {
    let coordinator = lab.coordinator(ALLOW_ALL)?;
    let key = coordinator.auth_key("ann", "")?;
    let mut nodes = Vec::new();
    for (name, last, nat) in [
        ("alpha", 21, Nat::Easy),
        ("bravo", 22, Nat::Easy),
        ("blocked", 23, Nat::UdpBlocked),
    ] {
        let node = lab.node_behind(name, last, nat)?;
        harden(&node.namespace)?;
        node.up(&key)?;
        nodes.push(node);
    }
    let [alpha, bravo, blocked] = &nodes[..] else {
        unreachable!("three were made")
    };
    upgrade(lab, alpha, bravo)?;
    full_packets_fit(alpha, bravo)?;

    let ping = Pinger::start(&alpha.namespace, blocked.ip(4)?, ms(100))?;
    ping.first_answer(LIMIT)?;
    answers(&ping, 30)?;
    let report = ping.stop();
    let path = alpha.path_to("blocked")?;
    ensure!(matches!(path, PathKind::Relay(_)), "the path is {path:?}");
    lab.note(&format!("relayed: {report}"));
    ensure!(report.lost() == 0, "{report}");
    full_packets_fit(alpha, blocked)?;

    // The firewall is in force: the policy lets this in, the host doesn't; and only that is in the way.
    let _server = traffic::Server::start(&bravo.namespace, 80)?;
    let closed = SocketAddr::new(bravo.ip(4)?, 80);
    super::policy::refused(alpha, closed)?;
    bravo.namespace.nft("delete table inet closed")?;
    traffic::get(&alpha.namespace, closed, 1000, secs(20)).map(drop)
}

///
/// Pings are not tracked: two of a new flow that arrive in one batch become two connections to the kernel, the second of
/// which it drops (`insert_failed` in /proc/net/stat/nf_conntrack). That would be its loss, not the tunnel's.
fn harden(host: &Namespace) -> Result<()> {
    for interfaces in ["all", "default", "eth0", "lo"] {
        host.sysctl(&format!("net/ipv4/conf/{interfaces}/rp_filter"), "1")?;
    }
    host.ip(&format!("link set eth0 mtu {UNDERLAY_MTU}"))?;
    host.nft(
        "table inet closed {
            chain in { type filter hook input priority 0; policy drop;
                iif lo accept
                udp dport 41641 accept
                ct state established,related accept
                icmp type { echo-request, echo-reply } accept
                icmpv6 type { echo-request, echo-reply } accept
            }
            chain untracked_in { type filter hook prerouting priority raw;
                icmp type { echo-request, echo-reply } notrack
                icmpv6 type { echo-request, echo-reply } notrack
            }
            chain untracked_out { type filter hook output priority raw;
                icmp type { echo-request, echo-reply } notrack
                icmpv6 type { echo-request, echo-reply } notrack
            }
        }
        ",
    )
}

/// The first packet goes over the relay at once, then the path becomes direct, and no ping is lost meanwhile.
fn upgrade(lab: &Lab, from: &Node, to: &Node) -> Result<String> {
    let ping = Pinger::start(&from.namespace, to.ip(4)?, ms(50))?;
    let first = ping.first_answer(LIMIT)?;
    lab.within("first answer", first, secs(1))?;
    let (path, time) = from.wait_for_direct(&to.name, LIMIT)?;
    lab.within(&format!("direct by {path}"), time, secs(1))?;
    answers(&ping, 40)?;
    let report = ping.stop();
    lab.note(&format!("relay to direct: {report}"));
    ensure!(report.lost() == 0, "the upgrade lost pings: {report}");
    Ok(path)
}

fn answers(ping: &Pinger, more: usize) -> Result<()> {
    let before = ping.answered();
    wait::wait_for("more answers", LIMIT, || {
        Ok((ping.answered() > before + more).then_some(()))
    })
    .map(drop)
}

/// Packets of the device's whole MTU come through both ways, unfragmented, and larger ones are refused before they leave.
fn full_packets_fit(from: &Node, to: &Node) -> Result<()> {
    for (one, other) in [(from, to), (to, from)] {
        for (family, header) in [(4, V4_HEADER), (6, V6_HEADER)] {
            let (address, room) = (other.ip(family)?, MTU - header - ICMP_HEADER);
            let fits = |payload| traffic::fits(&one.namespace, address, payload, LIMIT);
            ensure!(fits(room)?, "{MTU} bytes to {address} are too many");
            ensure!(!fits(room + 1)?, "{} bytes to {address} fit", MTU + 1);
        }
    }
    Ok(())
}

/// Every byte is checked.
pub fn carry(lab: &Lab, from: &Node, to: &Node, bytes: usize) -> Result<()> {
    let _server = traffic::Server::start(&to.namespace, 80)?;
    let address = SocketAddr::new(to.ip(4)?, 80);
    let fetched = traffic::get(&from.namespace, address, bytes, secs(180))?;
    let path = from.path_to(&to.name)?;
    lab.note(&format!(
        "{:.0} MB over TCP, {path:?}: {:.0} Mbit/s",
        bytes as f64 / 1e6,
        fetched.megabits_per_second()
    ));
    Ok(())
}
