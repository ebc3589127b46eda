//! An agent beside others on one machine: what it takes away is its own.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};

use super::{
    Lab, host,
    losses::Traffic,
    ms, policy, secs,
    survival::{POLICY, find_direct_path},
};
use crate::{
    tailnet::{Client as _, Coordinator, Node},
    traffic::{self, Pinger, Report, Stalls, unmade_answers},
    wait,
};

const LIMIT: Duration = secs(60);

/// Of three agents one goes down, comes up and is cleaned up: a ping between the other two loses nothing meanwhile, and all that is theirs stays.
pub fn anothers_end_is_not_noticed(lab: &Lab) -> Result<()> {
    let coordinator = lab.coordinator(POLICY)?;
    let [alpha, bravo, mut neighbour] = three(lab, &coordinator)?;
    let stalls = Stalls::watch();
    let (start, unmade) = (Instant::now(), unmade_answers(&bravo.namespace)?);
    let ping = Pinger::start(&alpha.namespace, bravo.ip(4)?, ms(10))?;
    let report = under(ping, || ends_twice(&mut neighbour, &alpha, &bravo))?;
    lab.note(&format!(
        "beside another agent's `down` and --cleanup: {report}"
    ));
    let traffic = Traffic {
        what: "alpha to bravo beside another agent's end",
        ran: (start, Instant::now()),
        ping: &report,
        unmade: unmade_answers(&bravo.namespace)?.saturating_sub(unmade),
        stream: None,
        refused: None,
    };
    for (from, to) in [(&alpha, &bravo), (&bravo, &alpha)] {
        let path = from.path_to(&to.name)?;
        let (from, to) = (&from.name, &to.name);
        ensure!(path.is_direct(), "from {from} to {to} it is {path:?}");
    }
    // New connections, too.
    serves_and_refuses(&alpha, &bravo)?;
    lab.lost(&[traffic], &stalls)
}

/// The first two have found their path, and there is no other.
fn three(lab: &Lab, coordinator: &Coordinator) -> Result<[Node; 3]> {
    let key = coordinator.auth_key("ann", "")?;
    let node = |name, last| {
        let node = lab.single_path_node(name, last)?;
        node.up(&key)?;
        let plane = node.dataplane()?;
        ensure!(plane == "kernel", "{name}'s data plane is {plane}");
        Ok::<_, anyhow::Error>(node)
    };
    let nodes = [
        node("alpha", 30)?,
        node("bravo", 31)?,
        node("neighbour", 32)?,
    ];
    find_direct_path(&nodes[0], &nodes[1])?;
    Ok(nodes)
}

/// Does something under a ping, which is answered before and after.
fn under(ping: Pinger, work: impl FnOnce() -> Result<()>) -> Result<Report> {
    ping.first_answer(LIMIT)?;
    work()?;
    let answered = ping.answered();
    wait::wait_for("answers after another agent's end", LIMIT, || {
        Ok((ping.answered() > answered + 100).then_some(()))
    })?;
    Ok(ping.stop())
}

/// By `down` and by `--cleanup`: what stands of the others stays as it is.
fn ends_twice(neighbour: &mut Node, alpha: &Node, bravo: &Node) -> Result<()> {
    let standing = || Ok::<_, anyhow::Error>([host::standing(alpha)?, host::standing(bravo)?]);
    let before = standing()?;
    neighbour.cli(&["down"])?;
    let after = standing()?;
    ensure!(before == after, "`down` made of {before:?} {after:?}");
    // Or there would be nothing to clean up.
    neighbour.cli(&["up"])?;
    wait::wait_for("the other agent's device", LIMIT, || {
        host::standing(neighbour).map(Some)
    })?;
    neighbour.clean_up()?;
    let after = standing()?;
    ensure!(before == after, "--cleanup made of {before:?} {after:?}");
    Ok(())
}

fn serves_and_refuses(alpha: &Node, to: &Node) -> Result<()> {
    let _server = traffic::Server::start(&to.namespace, 80)?;
    let _closed = traffic::Server::start(&to.namespace, 81)?;
    let address = to.ip(4)?;
    let at = |port| SocketAddr::new(address, port);
    traffic::get(&alpha.namespace, at(80), 10_000_000, secs(600))?;
    policy::refused(alpha, at(81))
}
