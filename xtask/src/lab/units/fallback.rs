//! The same unit where the kernel has no WireGuard: it has to carry the userspace device, direct and over the relay.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
};

use anyhow::{Result, ensure};

use super::{AGENT, journal, lowroad, status, systemd, wait_for_agent};
use crate::{
    lab::{Lab, ms, policy, secs},
    tailnet::{Client as _, Node},
    topology::Nat,
    traffic::{self, Pinger},
};

const DROP_IN: &str = "/run/systemd/system/lowroad.service.d/userspace.conf";
const USERSPACE: &str =
    "[Service]\nExecStart=\nExecStart=/usr/local/bin/lowroad agent --dataplane userspace\n";

/// Ports 80 and 81 are served here, and the policy opens the first.
pub(super) fn carries_the_userspace_device(lab: &Lab, bravo: &Node, key: &str) -> Result<()> {
    let charlie = lab.node_behind("charlie", 41, Nat::UdpBlocked)?;
    charlie.up(key)?;
    use_userspace()?;
    lowroad(&["up", "--timeout=60s"])?;
    let status = status()?;
    ensure!(status["Lowroad"]["Dataplane"] == "userspace", "{status}");
    let address: IpAddr = lowroad(&["ip", "-4"])?.trim().parse()?;
    for (node, how) in [(bravo, "directly"), (&charlie, "over the relay")] {
        let ping = Pinger::start(&node.namespace, address, ms(100))?;
        let first = ping.first_answer(secs(60))?;
        lab.note(&format!(
            "userspace device, {how}: first answer after {:.1} s",
            first.as_secs_f32()
        ));
        let at = |port| SocketAddr::new(address, port);
        policy::refused(node, at(81))?;
        traffic::get(&node.namespace, at(80), 100_000, secs(60))?;
    }
    bravo.wait_for_direct("alpha", secs(60))?;
    let path = charlie.path_to("alpha")?;
    ensure!(!path.is_direct(), "no UDP gets through: {path:?}");
    let log = journal(AGENT)?;
    ensure!(
        !log.contains("Operation not permitted"),
        "the unit keeps the agent from something:\n{log}"
    );
    lowroad(&["down"])?;
    Ok(())
}

fn use_userspace() -> Result<()> {
    let folder = std::path::Path::new(DROP_IN).parent();
    folder.map_or(Ok(()), fs::create_dir_all)?;
    fs::write(DROP_IN, USERSPACE)?;
    systemd("systemctl", &["daemon-reload"])?;
    systemd("systemctl", &["restart", AGENT])?;
    wait_for_agent()
}
