//! A peer that writes other addresses than its own into its packets.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
};

use anyhow::{Context, Result, ensure};

use super::{ALLOW_ALL, Lab, ms, secs, survival::find_direct_path};
use crate::{
    tailnet::{Client as _, Node},
    traffic::Flood,
    wait,
};

const LIMIT: std::time::Duration = secs(60);
const PORT: u16 = 81;
const ENOUGH: u64 = 20;

pub fn a_peer_sends_from_its_own_addresses_only(lab: &Lab) -> Result<()> {
    let coordinator = lab.coordinator(ALLOW_ALL)?;
    let key = coordinator.auth_key("ann", "")?;
    let alpha = lab.single_path_node("alpha", 30)?;
    let mut bravo = lab.single_path_node("bravo", 31)?;
    let charlie = lab.single_path_node("charlie", 32)?;
    for node in [&alpha, &bravo, &charlie] {
        node.up(&key)?;
    }
    find_direct_path(&bravo, &alpha)?;
    let (own, others) = (bravo.ip(4)?, charlie.ip(4)?);
    let host = bravo.namespace.clone();
    let flood = || {
        let to = SocketAddr::new(alpha.ip(4)?, PORT);
        Flood::start(&host, &alpha.namespace, to, ms(20))
    };
    comes_through(&flood()?)?;

    // It does as it likes without an agent that puts its addresses right.
    bravo.kill_9();
    let becomes = |from: IpAddr, to: IpAddr| {
        let commands = format!("addr add {to}/32 dev lowroad0\naddr del {from}/32 dev lowroad0");
        host.ip(&commands)
    };
    becomes(own, others)?;
    let before = refused_by_wireguard(&alpha)?;
    let spoofed = flood()?;
    wait::wait_for("packets that WireGuard refuses", LIMIT, || {
        Ok((refused_by_wireguard(&alpha)? >= before + ENOUGH).then_some(()))
    })?;
    ensure!(
        spoofed.received() == 0,
        "{} packets of bravo's were taken for charlie's",
        spoofed.received()
    );
    lab.note(&format!(
        "{} packets from another's address, {} refused by WireGuard, 0 received",
        spoofed.sent(),
        refused_by_wireguard(&alpha)? - before
    ));
    drop(spoofed);
    becomes(others, own)?;
    comes_through(&flood()?)
}

fn comes_through(flood: &Flood) -> Result<()> {
    wait::wait_for("packets from its own address", LIMIT, || {
        Ok((flood.received() >= ENOUGH).then_some(()))
    })
    .map(drop)
}

/// Packets whose inner source is not of the peer that sent them: `rx_frame_errors` (drivers/net/wireguard/receive.c).
fn refused_by_wireguard(node: &Node) -> Result<u64> {
    let devices = node
        .namespace
        .enter(|| fs::read_to_string("/proc/thread-self/net/dev"))??;
    let line = devices
        .lines()
        .find_map(|line| line.trim().strip_prefix("lowroad0:"));
    // bytes packets errs drop fifo frame …
    let frame = line.and_then(|line| line.split_whitespace().nth(5));
    Ok(frame.context("no lowroad0 in /proc/net/dev")?.parse()?)
}
