//! Agents, coordinator and relay die and come back.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{ALLOW_ALL, Lab, ms, secs};
use crate::{
    tailnet::{Client as _, Coordinator, Node},
    topology::Nat,
    traffic::Pinger,
    wait,
};

/// WireGuard gives up a session that the other side has forgotten after 15 s without an answer (KEEPALIVE_TIMEOUT plus
/// REKEY_TIMEOUT), then makes a new one.
const NEW_SESSION: Duration = secs(17);

/// From the start of the process until the kernel holds what the kept netmap wants.
const ADOPTED: Duration = ms(300);

struct Pair {
    coordinator: Coordinator,
    alpha: Node,
    bravo: Node,
}

fn pair(lab: &Lab, nat: Nat) -> Result<Pair> {
    let coordinator = lab.coordinator(ALLOW_ALL)?;
    let key = coordinator.auth_key("ann", "")?;
    let alpha = lab.node_behind("alpha", 21, nat)?;
    let bravo = lab.node_behind("bravo", 22, nat)?;
    alpha.up(&key)?;
    bravo.up(&key)?;
    Ok(Pair {
        coordinator,
        alpha,
        bravo,
    })
}

/// Natively, with the userspace device, the tunnel dies with the agent: this shows loss and recovery. With the kernel's
/// WireGuard nothing is lost (the VM's suite).
pub fn a_killed_agent_comes_back_without_up_and_its_peers_find_it(lab: &Lab) -> Result<()> {
    let mut pair = pair(lab, Nat::Easy)?;
    let ping = Pinger::start(&pair.alpha.namespace, pair.bravo.ip(4)?, ms(50))?;
    pair.alpha.wait_for_direct("bravo", secs(30))?;
    let kernel = pair.bravo.dataplane()? == "kernel";
    let address = pair.bravo.ip(4)?;
    pair.bravo.kill_9();
    wait::pass(secs(3))?;
    let lost_while_dead = ping.report().lost();
    pair.bravo.start_agent()?;
    let before = ping.answered();
    let (_, time) = wait::wait_for("answers from the new agent", secs(60), || {
        Ok((ping.answered() > before).then_some(()))
    })?;
    lab.within("answers after the agent's restart", time, NEW_SESSION)?;
    pair.bravo.wait_until_running(secs(30))?;
    ensure!(pair.bravo.ip(4)? == address, "another address");
    let report = ping.stop();
    lab.note(&format!(
        "agent dead for 3 s: {lost_while_dead} pings unanswered meanwhile, {} of {} in all",
        report.lost(),
        report.sent
    ));
    ensure!(!kernel || report.lost() == 0, "{report}");
    Ok(())
}

pub fn a_stopped_agent_starts_again_where_it_was(lab: &Lab) -> Result<()> {
    let mut pair = pair(lab, Nat::Easy)?;
    let before = pair.alpha.status()?["Self"]["PublicKey"].clone();
    pair.alpha.stop_agent_gracefully()?;
    pair.alpha.start_agent()?;
    let time = pair.alpha.wait_until_running(secs(30))?;
    lab.note(&format!("running again after {:.2} s", time.as_secs_f64()));
    let status = pair.alpha.status()?;
    ensure!(status["Self"]["PublicKey"] == before, "another node key");
    let ping = Pinger::start(&pair.bravo.namespace, pair.alpha.ip(4)?, ms(100))?;
    ping.first_answer(secs(30))?;
    Ok(())
}

pub fn without_the_coordinator_direct_traffic_goes_on_and_nobody_registers_again(
    lab: &Lab,
) -> Result<()> {
    let mut pair = pair(lab, Nat::Easy)?;
    let ping = Pinger::start(&pair.alpha.namespace, pair.bravo.ip(4)?, ms(50))?;
    pair.alpha.wait_for_direct("bravo", secs(30))?;
    let nodes = pair.coordinator.cli(&["nodes", "list"])?;
    let sent = ping.report().sent;
    pair.coordinator.kill_9();
    wait::wait_for("pings without a coordinator", secs(20), || {
        Ok((ping.report().sent > sent + 80).then_some(()))
    })?;
    pair.coordinator.start_again()?;
    let (after, time) = wait::wait_for("both nodes online at the coordinator", secs(60), || {
        let list = pair.coordinator.cli(&["nodes", "list"])?;
        let nodes = list.as_array().context("not a list")?;
        let online = nodes.iter().filter(|node| node["online"] == true);
        Ok((online.count() == 2).then_some(list.clone()))
    })?;
    lab.within("both nodes connected again", time, secs(10))?;
    let key = pair.coordinator.auth_key("ann", "")?;
    let newcomer = lab.public_node("newcomer", 40)?;
    newcomer.up(&key)?;
    for node in [&pair.alpha, &pair.bravo] {
        node.wait_for_peer("newcomer", secs(10))?;
    }
    let count = |value: &serde_json::Value| value.as_array().map(Vec::len);
    ensure!(
        count(&nodes) == count(&after),
        "before {nodes}, after {after}"
    );
    let report = ping.stop();
    lab.note(&report.to_string());
    ensure!(report.lost() == 0, "{report}");
    Ok(())
}

/// The control server cannot be reached, its relay can: a new agent takes the netmap that the last one kept.
pub fn an_agent_that_starts_without_control_goes_on_with_what_it_knew(lab: &Lab) -> Result<()> {
    let mut coordinator = lab.coordinator(ALLOW_ALL)?;
    let key = coordinator.auth_key("ann", "")?;
    let open = lab.public_node("open", 31)?;
    let hidden = lab.node_behind("hidden", 21, Nat::Hard)?;
    let mut bravo = lab.node_behind("bravo", 22, Nat::Hard)?;
    for node in [&open, &hidden, &bravo] {
        node.up(&key)?;
    }
    let direct = Pinger::start(&bravo.namespace, open.ip(4)?, ms(50))?;
    let relayed = Pinger::start(&bravo.namespace, hidden.ip(4)?, ms(50))?;
    relayed.first_answer(secs(20))?;
    bravo.wait_for_direct("open", secs(20))?;

    coordinator.cut_control()?;
    let kept = bravo.state_folder().join("netmap.cache");
    wait::wait_for("bravo's netmap on disk", secs(10), || {
        Ok(kept.exists().then_some(()))
    })?;
    bravo.kill_9();
    bravo.start_agent()?;
    bravo.wait_until_running(secs(10))?;
    let status = bravo.status()?;
    let own = &status["Lowroad"];
    ensure!(own["CachedNetmap"].is_string(), "not from the cache: {own}");
    let adopted = own["AdoptedMs"].as_u64().context("not adopted")?;
    lab.within("adopted after the agent's start", ms(adopted), ADOPTED)?;
    let health = status["Health"].to_string();
    ensure!(health.contains("runs on the netmap of"), "{health}");
    for (what, ping) in [("direct", &direct), ("relayed", &relayed)] {
        let before = ping.answered();
        let what = format!("{what} answers without control");
        let (_, time) = wait::wait_for(&what, secs(30), || {
            Ok((ping.answered() > before + 5).then_some(()))
        })?;
        lab.within(&what, time, NEW_SESSION)?;
    }
    let path = bravo.wait_for_direct("open", secs(10))?.0;
    lab.note(&format!("direct by {path}, with the server still away"));
    let (kernel, report) = (bravo.dataplane()? == "kernel", direct.report());
    lab.note(&format!("direct: {report}"));
    // The last one may be under way.
    ensure!(!kernel || report.lost() <= 1, "{report}");
    let own = bravo.status()?["Lowroad"].take();
    ensure!(own["CachedNetmap"].is_string(), "the server was not away");

    coordinator.heal_control()?;
    let (_, time) = wait::wait_for("a netmap from the server", secs(60), || {
        let status = bravo.status()?;
        Ok(status["Lowroad"]["CachedNetmap"].is_null().then_some(()))
    })?;
    lab.note(&format!(
        "connected again after {:.1} s",
        time.as_secs_f64()
    ));
    Ok(())
}

/// The relay is part of the coordinator: it goes and comes with it.
pub fn relayed_nodes_find_a_restarted_relay(lab: &Lab) -> Result<()> {
    let mut pair = pair(lab, Nat::Hard)?;
    let ping = Pinger::start(&pair.alpha.namespace, pair.bravo.ip(4)?, ms(100))?;
    ping.first_answer(secs(20))?;
    pair.coordinator.kill_9();
    wait::pass(secs(2))?;
    pair.coordinator.start_again()?;
    let before = ping.answered();
    let (_, time) = wait::wait_for("answers over the relay", secs(60), || {
        Ok((ping.answered() > before).then_some(()))
    })?;
    lab.within("answers after the relay's restart", time, secs(10))
}
