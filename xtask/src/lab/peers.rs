//! Peers come, change and go one by one: every call by which the agent tells its kernel is read, and what stays keeps its session.

use anyhow::{Context, Result, ensure};

use super::{ALLOW_ALL, Lab, ms, secs};
use crate::{
    faults::{self, DeviceSet, Fault, PeerSet, Watched},
    tailnet::{Client as _, Node},
    topology::Events,
    traffic::Pinger,
    wait,
};

const LIMIT: std::time::Duration = secs(120);

/// The agent under watch, from outside by its system calls and by what the kernel announces.
struct Watch<'a> {
    node: &'a Node,
    calls: &'a Watched,
    events: Option<Events>,
    changes: usize,
}

/// What one change came to.
struct Seen {
    /// To WireGuard, one after another.
    sets: Vec<DeviceSet>,
    /// To everything else in the network: kinds of messages.
    messages: Vec<String>,
    /// What the kernel says has changed among links, addresses, routes and rules.
    events: Vec<String>,
}

pub fn peers_come_and_go_without_a_word_about_those_that_stay(lab: &Lab) -> Result<()> {
    // Dropped last: a watch ends when its agent has ended.
    let mut watches = Vec::new();
    let coordinator = lab.coordinator(ALLOW_ALL)?;
    let key = coordinator.auth_key("ann", "")?;
    let mut alpha = lab.single_path_node("alpha", 30)?;
    let bravo = lab.single_path_node("bravo", 31)?;
    alpha.up(&key)?;
    bravo.up(&key)?;
    let ping = Pinger::start(&alpha.namespace, bravo.ip(4)?, ms(50))?;
    alpha.wait_for_direct("bravo", LIMIT)?;
    bravo.wait_for_direct("alpha", LIMIT)?;
    // A watched agent is a slow one: the way to a direct path is not its subject.
    alpha.stop_agent();
    let mut command = alpha.agent_command();
    faults::prepare(&mut command);
    alpha.start_agent_as(&mut command, |pid| {
        watches.push(Watched::attach(pid)?);
        Ok(())
    })?;
    alpha.wait_until_running(LIMIT)?;
    let mut watch = Watch {
        node: &alpha,
        calls: &watches[0],
        events: None,
        changes: 0,
    };
    watch.calls.quiet(LIMIT)?;
    let before = alpha.wireguard_peer_with(&prefix(&bravo)?)?;

    watch.begin(lab)?;
    let charlie = lab.single_path_node("charlie", 32)?;
    charlie.up(&key)?;
    let charlies = prefix(&charlie)?;
    let (known, _) = wait::wait_for("charlie in alpha's WireGuard", LIMIT, || {
        alpha.wireguard_peer_with(&charlies).map(Some)
    })?;
    let seen = watch.end(lab, "a peer came")?;
    let peer = seen.only_peer(&known.key)?;
    ensure!(
        !peer.remove && !peer.update_only && peer.prefixes == 2 && peer.endpoint.is_some(),
        "a peer came by {peer:?}"
    );
    // That of its IPv4 address: all of IPv6 share one.
    seen.routes("RTM_NEWROUTE", 1)?;

    watch.begin(lab)?;
    coordinator.cli(&["nodes", "rename", "charlie", "carol"])?;
    wait::wait_for("charlie's new name", LIMIT, || {
        let name = alpha.peer("charlie")?.context("no charlie")?["DNSName"].take();
        let renamed = name.as_str().is_some_and(|name| name.starts_with("carol."));
        Ok(renamed.then_some(()))
    })?;
    let seen = watch.end(lab, "a peer got another name")?;
    ensure!(seen.sets.is_empty(), "a name came to {:?}", seen.sets);
    seen.routes("RTM_NEWROUTE", 0)?;

    watch.begin(lab)?;
    let second = Pinger::start(&alpha.namespace, charlie.ip(4)?, ms(50))?;
    alpha.wait_for_direct("charlie", LIMIT)?;
    second.first_answer(LIMIT)?;
    let seen = watch.end(lab, "a peer's path became direct")?;
    drop(second);
    // More than once, if a packet that was under way by the relay had moved the endpoint back meanwhile.
    ensure!(!seen.sets.is_empty(), "WireGuard wasn't told");
    let only_endpoints = seen.sets.iter().all(DeviceSet::moves_endpoints_only);
    let others = seen.sets.iter().flat_map(|set| &set.peers);
    ensure!(
        only_endpoints && others.into_iter().all(|peer| peer.key == known.key),
        "an endpoint changed by {:?}",
        seen.sets
    );
    seen.routes("RTM_NEWROUTE", 0)?;

    watch.begin(lab)?;
    coordinator.cli(&["nodes", "delete", "carol"])?;
    wait::wait_for("charlie gone from alpha's WireGuard", LIMIT, || {
        let peers = alpha.wireguard()?;
        Ok((!peers.iter().any(|peer| peer.key == known.key)).then_some(()))
    })?;
    let seen = watch.end(lab, "a peer went")?;
    let peer = seen.only_peer(&known.key)?;
    ensure!(peer.remove, "a peer went by {peer:?}");
    seen.routes("RTM_DELROUTE", 1)?;

    let after = alpha.wireguard_peer_with(&prefix(&bravo)?)?;
    before.has_become(&after).map_err(anyhow::Error::msg)?;
    ensure!(after.received > before.received, "nothing was received");
    let report = ping.stop();
    lab.note(&report.to_string());
    ensure!(report.lost() == 0, "{report}");
    Ok(())
}

pub fn prefix(node: &Node) -> Result<String> {
    Ok(format!("{}/32", node.ip(4)?))
}

impl Watch<'_> {
    fn begin(&mut self, lab: &Lab) -> Result<()> {
        self.changes += 1;
        let log = lab.net.folder().join(format!("{}.events", self.changes));
        self.events = Some(Events::watch(&self.node.namespace, &log)?);
        self.calls.arm(Fault::None);
        Ok(())
    }

    fn end(&mut self, lab: &Lab, what: &str) -> Result<Seen> {
        self.calls.quiet(LIMIT)?;
        let account = self.calls.disarm();
        let events = self.events.take().context("begun")?.seen()?;
        let sets: Option<Vec<DeviceSet>> = account.wireguard.into_iter().collect();
        let seen = Seen {
            sets: sets.context("a message to WireGuard that cannot be read")?,
            messages: account
                .changes
                .into_iter()
                // wireguard-control sees by one that changes nothing whether the device is there; the kernel's own word on links is among the events.
                .filter(|change| change.starts_with("RTM_") && change != "RTM_NEWLINK")
                .collect(),
            events,
        };
        lab.note(&format!(
            "{what}: {} to WireGuard, {} to the rest of the network, {} announced",
            seen.sets.len(),
            seen.messages.len(),
            seen.events.len()
        ));
        Ok(seen)
    }
}

impl Seen {
    /// WireGuard was told once, and of this peer only.
    fn only_peer(&self, key: &str) -> Result<&PeerSet> {
        let [DeviceSet { device, peers }] = &self.sets[..] else {
            anyhow::bail!(
                "WireGuard was told {} times: {:?}",
                self.sets.len(),
                self.sets
            );
        };
        ensure!(device.is_empty(), "the device was set: {device:?}");
        match &peers[..] {
            [peer] if peer.key == key => Ok(peer),
            others => anyhow::bail!("WireGuard was told of {others:?}, not of {key} alone"),
        }
    }

    /// So many routes came or went, by the agent's calls and by the kernel's word, and nothing else.
    fn routes(&self, kind: &str, count: usize) -> Result<()> {
        ensure!(
            self.messages.len() == count && self.messages.iter().all(|message| message == kind),
            "{:?} and not {count} {kind}",
            self.messages
        );
        let deleted = kind == "RTM_DELROUTE";
        let expected = |line: &String| {
            line.contains("dev lowroad0 table 7052") && line.starts_with("Deleted ") == deleted
        };
        ensure!(
            self.events.len() == count && self.events.iter().all(expected),
            "the kernel announced {:?}",
            self.events
        );
        Ok(())
    }
}
