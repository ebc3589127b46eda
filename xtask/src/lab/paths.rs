//! Relay where nothing else works, direct where it does, and the way from one to the other.

use std::{net::SocketAddr, time::Instant};

use anyhow::{Result, ensure};

use super::{ALLOW_ALL, Lab, ms, secs};
use crate::{
    tailnet::{Client as _, Coordinator, Node, PathKind},
    topology::Nat,
    traffic::{self, Pinger},
    wait,
};

struct Pair {
    _coordinator: Coordinator,
    alpha: Node,
    bravo: Node,
}

/// Two nodes, each behind a router of its own; both are up.
fn behind_routers(lab: &Lab, one: Nat, other: Nat) -> Result<Pair> {
    let coordinator = lab.coordinator(ALLOW_ALL)?;
    let key = coordinator.auth_key("ann", "")?;
    let alpha = lab.node_behind("alpha", 21, one)?;
    let bravo = lab.node_behind("bravo", 22, other)?;
    alpha.up(&key)?;
    bravo.up(&key)?;
    Ok(Pair {
        _coordinator: coordinator,
        alpha,
        bravo,
    })
}

pub fn two_easy_nats_are_crossed_within_a_second_without_loss(lab: &Lab) -> Result<()> {
    let pair = behind_routers(lab, Nat::Easy, Nat::Easy)?;
    upgrade(lab, &pair.alpha, &pair.bravo)
}

pub fn a_node_behind_a_hard_nat_reaches_a_public_one_directly(lab: &Lab) -> Result<()> {
    let coordinator = lab.coordinator(ALLOW_ALL)?;
    let key = coordinator.auth_key("ann", "")?;
    let alpha = lab.node_behind("alpha", 21, Nat::Hard)?;
    let bravo = lab.public_node("bravo", 31)?;
    alpha.up(&key)?;
    bravo.up(&key)?;
    upgrade(lab, &alpha, &bravo)
}

/// A connection by an address that the host has lost is dead, and TCP would need many seconds to find out.
pub fn a_relayed_node_that_moves_is_back_within_seconds(lab: &Lab) -> Result<()> {
    let coordinator = lab.coordinator(ALLOW_ALL)?;
    let key = coordinator.auth_key("ann", "")?;
    let alpha = lab.public_node("alpha", 31)?;
    let bravo = lab.node_behind("bravo", 22, Nat::UdpBlocked)?;
    alpha.up(&key)?;
    bravo.up(&key)?;
    let ping = Pinger::start(&alpha.namespace, bravo.ip(4)?, ms(20))?;
    ping.first_answer(secs(20))?;
    // Whether the relay still answers is asked after the first change; nobody hears it, and the second must not wait for that.
    lab.net.cut(31)?;
    alpha.namespace.ip("addr add 203.0.113.131/24 dev wan0")?;
    wait::wait_for("the new address seen", secs(20), || {
        let own = alpha.status()?["Self"]["Addrs"].to_string();
        Ok(own.contains("203.0.113.131").then_some(()))
    })?;
    // A second address of one network goes with the first.
    alpha
        .namespace
        .ip("addr flush dev wan0\naddr add 203.0.113.131/24 dev wan0")?;
    lab.net.heal(31)?;
    let healed = Instant::now();
    let before = ping.answered();
    wait::wait_for("answers by the relay", secs(60), || {
        Ok((ping.answered() > before + 20).then_some(()))
    })?;
    let back = healed.elapsed();
    let report = ping.stop();
    let path = alpha.path_to("bravo")?;
    ensure!(matches!(path, PathKind::Relay(_)), "the path is {path:?}");
    lab.note(&format!("{report}"));
    lab.within("answers after it is connected again", back, secs(2))
}

/// The first packet goes over the relay at once, then the path becomes direct, and no ping is lost meanwhile.
fn upgrade(lab: &Lab, from: &Node, to: &Node) -> Result<()> {
    let ping = Pinger::start(&from.namespace, to.ip(4)?, ms(20))?;
    let (path, direct) = from.wait_for_direct(&to.name, secs(30))?;
    lab.within(
        "ping started when the second `up` returned",
        ping.first_answer(secs(20))?,
        secs(1),
    )?;
    lab.within("direct after the first packet", direct, secs(1))?;
    // Some answers on the new path, too.
    let before = ping.answered();
    wait::wait_for("answers on the direct path", secs(10), || {
        Ok((ping.answered() > before + 20).then_some(()))
    })?;
    let report = ping.stop();
    let median = report.median.unwrap_or_default().as_secs_f64() * 1e3;
    lab.note(&format!(
        "direct by {path}; {report}, median {median:.1} ms"
    ));
    ensure!(report.lost() == 0, "the upgrade lost pings: {report}");
    let server = traffic::Server::start(&to.namespace, 80)?;
    let fetched = traffic::get(
        &from.namespace,
        SocketAddr::new(to.ip(4)?, 80),
        4_000_000,
        secs(60),
    )?;
    drop(server);
    lab.note(&format!("{:.0} Mbit/s", fetched.megabits_per_second()));
    Ok(())
}

pub fn with_udp_blocked_everything_goes_over_the_relay(lab: &Lab) -> Result<()> {
    let pair = behind_routers(lab, Nat::UdpBlocked, Nat::Easy)?;
    stays_on_relay(lab, &pair, 100_000_000)
}

pub fn two_hard_nats_stay_on_the_relay(lab: &Lab) -> Result<()> {
    let pair = behind_routers(lab, Nat::Hard, Nat::Hard)?;
    stays_on_relay(lab, &pair, 2_000_000)
}

fn stays_on_relay(lab: &Lab, pair: &Pair, bytes: usize) -> Result<()> {
    let (alpha, bravo) = (&pair.alpha, &pair.bravo);
    let ping = Pinger::start(&alpha.namespace, bravo.ip(4)?, ms(50))?;
    let first = ping.first_answer(secs(20))?;
    lab.within("ping started when the second `up` returned", first, secs(1))?;
    let _server = traffic::Server::start(&bravo.namespace, 80)?;
    let server = SocketAddr::new(bravo.ip(4)?, 80);
    let fetched = traffic::get(&alpha.namespace, server, bytes, secs(90))?;
    lab.note(&format!(
        "{} MB byte-exact over the relay: {:.0} Mbit/s",
        bytes / 1_000_000,
        fetched.megabits_per_second()
    ));
    // A new one: while TCP fills the relay's queues, they drop something now and then, as they should.
    drop(ping);
    let ping = Pinger::start(&alpha.namespace, bravo.ip(4)?, ms(50))?;
    // Long enough for several rounds of discovery.
    wait::wait_for("pings over the relay", secs(20), || {
        Ok((ping.answered() > 100).then_some(()))
    })?;
    let path = alpha.path_to("bravo")?;
    ensure!(matches!(path, PathKind::Relay(_)), "the path is {path:?}");
    let report = ping.stop();
    ensure!(report.lost() == 0, "{report}");
    // Each ping and its answer.
    let (relayed, pings) = (alpha.relayed_packets()?.all(), 2 * report.sent as u64);
    ensure!(
        relayed >= pings,
        "{relayed} packets relayed, for {pings} pings and answers"
    );
    Ok(())
}

pub fn after_a_partition_the_direct_path_comes_back(lab: &Lab) -> Result<()> {
    let pair = behind_routers(lab, Nat::Easy, Nat::Easy)?;
    let ping = Pinger::start(&pair.alpha.namespace, pair.bravo.ip(4)?, ms(50))?;
    pair.alpha.wait_for_direct("bravo", secs(30))?;
    lab.net.cut(22)?;
    let answered = ping.answered();
    wait::pass(secs(8))?;
    ensure!(ping.answered() <= answered + 2, "the network isn't cut");
    lab.net.heal(22)?;
    let before = ping.answered();
    let (_, time) = wait::wait_for("answers after the partition", secs(60), || {
        Ok((ping.answered() > before).then_some(()))
    })?;
    lab.within("answers after the partition", time, secs(10))?;
    let (_, time) = pair.alpha.wait_for_direct("bravo", secs(60))?;
    lab.note(&format!("direct again {:.1} s later", time.as_secs_f64()));
    Ok(())
}
