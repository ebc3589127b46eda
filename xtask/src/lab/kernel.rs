//! The VM's suite: kernel WireGuard, by a direct path and by the relay, and agents beside others.

use std::net::SocketAddr;

use anyhow::{Result, ensure};

use super::{Lab, host, ms, policy, secs};
use crate::{
    tailnet::{Client as _, Node, PathKind},
    topology::Nat,
    traffic::{self, Pinger},
    wait,
};

const WEB: &str = r#"{"acls": [{"action": "accept", "src": ["*"], "dst": ["*:80"]}]}"#;

/// Moved over TCP, byte by byte compared.
const DIRECT: usize = 100_000_000;
/// As many take over a minute by the relay on an emulated CPU: with `LOWROAD_LONG`, and always on the host, by the userspace device.
const RELAYED: [usize; 2] = [10_000_000, DIRECT];

pub fn nodes_join_and_talk_directly_and_over_the_relay(lab: &Lab) -> Result<()> {
    let coordinator = lab.coordinator(WEB)?;
    let key = coordinator.auth_key("ann", "")?;
    let alpha = lab.node_behind("alpha", 21, Nat::Easy)?;
    let mut bravo = lab.node_behind("bravo", 22, Nat::Easy)?;
    let blocked = lab.node_behind("blocked", 23, Nat::UdpBlocked)?;
    for node in [&alpha, &bravo, &blocked] {
        let time = node.up(&key)?;
        lab.note(&format!(
            "{} up after {:.2} s",
            node.name,
            time.as_secs_f64()
        ));
        let plane = node.dataplane()?;
        ensure!(plane == "kernel", "{}'s data plane is {plane}", node.name);
    }
    talk(lab, &alpha, &blocked, false)?;
    // Three agents on one machine: what one of them takes away is its own.
    let before = [host::standing(&alpha)?, host::standing(&bravo)?];
    blocked.cli(&["down"])?;
    let after = [host::standing(&alpha)?, host::standing(&bravo)?];
    ensure!(before == after, "`down` made of {before:?} {after:?}");
    talk(lab, &alpha, &bravo, true)?;
    bravo.clean_up()?;
    let left = host::standing(&alpha)?;
    ensure!(before[0] == left, "--cleanup made of {before:?} {left:?}");
    Ok(())
}

/// Pings, bytes and what is refused, by the path that there should be.
fn talk(lab: &Lab, alpha: &Node, to: &Node, direct: bool) -> Result<()> {
    let ping = Pinger::start(&alpha.namespace, to.ip(4)?, ms(100))?;
    let first = ping.first_answer(secs(60))?;
    lab.within("first answer", first, secs(1))?;
    if direct {
        let (path, time) = alpha.wait_for_direct(&to.name, secs(60))?;
        lab.within(&format!("direct by {path}"), time, secs(1))?;
    }
    let before = ping.answered();
    wait::wait_for("more answers", secs(60), || {
        Ok((ping.answered() > before + 20).then_some(()))
    })?;
    // Before the TCP connection: that one fills queues until they drop something, as it should.
    let report = ping.stop();
    ensure!(report.lost() == 0, "{report}");
    let _server = traffic::Server::start(&to.namespace, 80)?;
    let _closed = traffic::Server::start(&to.namespace, 81)?;
    let at = |port| Ok::<_, anyhow::Error>(SocketAddr::new(to.ip(4)?, port));
    let bytes = if direct {
        DIRECT
    } else {
        RELAYED[usize::from(lab.long)]
    };
    let fetched = traffic::get(&alpha.namespace, at(80)?, bytes, secs(600))?;
    let path = alpha.path_to(&to.name)?;
    lab.note(&format!(
        "{} MB byte-exact, {path:?}: {:.0} Mbit/s",
        bytes / 1_000_000,
        fetched.megabits_per_second()
    ));
    ensure!(path.is_direct() == direct, "the path is {path:?}");
    ensure!(path != PathKind::None, "the path is unknown");
    policy::refused(alpha, at(81)?)?;
    let (event, _) = wait::wait_for("the drop event", secs(20), || to.drop_event(81))?;
    lab.note(&event);
    Ok(())
}

pub fn device_index(node: &Node) -> Result<u32> {
    let name = c"lowroad0";
    // SAFETY: a terminated string that outlives the call.
    let index = node
        .namespace
        .enter(|| unsafe { libc::if_nametoindex(name.as_ptr()) })?;
    ensure!(index != 0, "{} has no lowroad0", node.name);
    Ok(index)
}
