//! Machines join, see each other, and leave; changes reach everybody.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, Result, ensure};

use super::{ALLOW_ALL, Lab, host, ms, policy::pong, secs};
use crate::{
    tailnet::{Client as _, Node},
    topology::Nat,
    traffic::{self, Pinger},
    wait,
};

/// Also over a relay, and with a handshake to make.
const REACH: Duration = secs(10);

pub fn two_nodes_join_and_reach_each_other(lab: &Lab) -> Result<()> {
    let coordinator = lab.coordinator(ALLOW_ALL)?;
    let key = coordinator.auth_key("ann", "")?;
    let alpha = lab.public_node("alpha", 30)?;
    let bravo = lab.public_node("bravo", 31)?;
    let _server = traffic::Server::start(&bravo.namespace, 80)?;
    lab.note(&format!("first up: {:.2} s", alpha.up(&key)?.as_secs_f64()));
    lab.note(&format!(
        "second up: {:.2} s",
        bravo.up(&key)?.as_secs_f64()
    ));

    let ping = Pinger::start(&alpha.namespace, bravo.ip(4)?, ms(100))?;
    let first = ping.first_answer(secs(20))?;
    lab.within("ping started when the second `up` returned", first, secs(1))?;
    drop(ping);

    for family in [4, 6] {
        let server = SocketAddr::new(bravo.ip(family)?, 80);
        let fetched = traffic::get(&alpha.namespace, server, 2_000_000, secs(30))?;
        lab.note(&format!(
            "TCP over IPv{family}: {:.0} Mbit/s",
            fetched.megabits_per_second()
        ));
        let address = alpha.ip(family)?;
        let ping = Pinger::start(&bravo.namespace, address, ms(50))?;
        ping.first_answer(REACH)?;
        for kind in ["--tsmp", "--icmp"] {
            pong(&bravo, kind, &address.to_string())?;
        }
    }
    let status = alpha.status()?;
    ensure!(status["BackendState"] == "Running", "{status}");
    let peer = alpha.peer("bravo")?.context("bravo isn't in the status")?;
    ensure!(peer["Online"] == true, "{peer}");
    lab.note(&format!("data plane: {}", alpha.dataplane()?));
    Ok(())
}

pub fn down_leaves_the_host_as_it_was_and_up_joins_again(lab: &Lab) -> Result<()> {
    let coordinator = lab.coordinator(ALLOW_ALL)?;
    let key = coordinator.auth_key("ann", "")?;
    let mut alpha = Node::not_started(lab.net, "alpha", lab.net.public("alpha", 30)?, &[])?;
    let before = host::of(&alpha, lab.emulated)?;
    alpha.start_agent()?;
    let bravo = lab.public_node("bravo", 31)?;
    alpha.up(&key)?;
    bravo.up(&key)?;
    let address = alpha.ip(4)?;
    ensure!(
        alpha.namespace.has_device("lowroad0")?,
        "there is no device"
    );
    alpha.cli(&["down"])?;
    host::is_as_before(&alpha, &before, lab.emulated, secs(20))?;
    alpha.cli(&["up"])?;
    ensure!(alpha.ip(4)? == address, "another address after `up`");
    let ping = Pinger::start(&bravo.namespace, address, ms(100))?;
    ping.first_answer(secs(20))?;
    Ok(())
}

pub fn changes_reach_connected_nodes_without_reconnect(lab: &Lab) -> Result<()> {
    let coordinator = lab.coordinator(ALLOW_ALL)?;
    let key = coordinator.auth_key("ann", "")?;
    let alpha = lab.public_node("alpha", 30)?;
    let bravo = lab.public_node("bravo", 31)?;
    alpha.up(&key)?;
    bravo.up(&key)?;
    let seen = alpha.wait_for_peer("bravo", secs(10))?;
    lab.within("a new peer seen after its `up`", seen, secs(1))?;

    bravo.cli(&["down"])?;
    let (_, time) = wait::wait_for("bravo offline", secs(30), || {
        Ok(alpha.peer("bravo")?.filter(|peer| peer["Online"] != true))
    })?;
    lab.note(&format!("offline seen after {:.2} s", time.as_secs_f64()));
    bravo.cli(&["up"])?;
    wait::wait_for("bravo online", secs(10), || {
        Ok(alpha.peer("bravo")?.filter(|peer| peer["Online"] == true))
    })?;

    coordinator.cli(&["nodes", "delete", "bravo"])?;
    let (_, time) = wait::wait_for("bravo gone", secs(10), || {
        Ok(alpha.peer("bravo")?.is_none().then_some(()))
    })?;
    lab.within("a deleted peer gone", time, secs(1))
}

pub fn two_nodes_behind_one_router_talk_over_its_lan(lab: &Lab) -> Result<()> {
    let coordinator = lab.coordinator(ALLOW_ALL)?;
    let key = coordinator.auth_key("ann", "")?;
    let router = lab.net.router("router", 21, Nat::Easy)?;
    let alpha = Node::start(lab.net, "alpha", lab.net.behind("alpha", &router, 2)?)?;
    let bravo = Node::start(lab.net, "bravo", lab.net.behind("bravo", &router, 3)?)?;
    alpha.up(&key)?;
    bravo.up(&key)?;
    let ping = Pinger::start(&alpha.namespace, bravo.ip(4)?, ms(50))?;
    let (path, time) = alpha.wait_for_direct("bravo", secs(20))?;
    lab.within("direct over the LAN", time, secs(1))?;
    ensure!(path == "192.168.21.3:41641", "direct by {path}");
    let report = ping.stop();
    ensure!(report.lost() == 0, "{report}");
    Ok(())
}
