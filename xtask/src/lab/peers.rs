//! Peers come, change and go one by one: every call by which the agent tells its kernel is read, and what stays keeps its session.

use anyhow::{Context, Result, bail, ensure};

use super::{ALLOW_ALL, Lab, ms, secs};
use crate::{
    faults::{self, DeviceSet, Fault, PeerSet, Watched},
    tailnet::{Client as _, Coordinator, Node, WgPeer},
    topology::Events,
    traffic::Pinger,
    wait,
};

const LIMIT: std::time::Duration = secs(120);
const NEW: &str = "RTM_NEWROUTE";
const DELETED: &str = "RTM_DELROUTE";

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
    /// To the filter: calls that write its maps, or put other programs in place of its own.
    filter: Vec<String>,
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
    let [peer] = seen.peers::<1>(&known.key)?;
    ensure!(
        !peer.remove && !peer.update_only && peer.prefixes == 2 && peer.endpoint.is_some(),
        "a peer came by {peer:?}"
    );
    // That of its IPv4 address: all of IPv6 share one.
    seen.routes(&[NEW])?;

    watch.begin(lab)?;
    coordinator.cli(&["nodes", "rename", "charlie", "carol"])?;
    wait::wait_for("charlie's new name", LIMIT, || {
        let name = alpha.peer("charlie")?.context("no charlie")?["DNSName"].take();
        let renamed = name.as_str().is_some_and(|name| name.starts_with("carol."));
        Ok(renamed.then_some(()))
    })?;
    let seen = watch.end(lab, "a peer got another name")?;
    ensure!(seen.sets.is_empty(), "a name came to {:?}", seen.sets);
    seen.routes(&[])?;

    watch.begin(lab)?;
    let second = Pinger::start(&alpha.namespace, charlie.ip(6)?, ms(50))?;
    alpha.wait_for_direct("charlie", LIMIT)?;
    second.first_answer(LIMIT)?;
    let seen = watch.end(lab, "a peer's path became direct")?;
    // More than once, if a packet that was under way by the relay had moved the endpoint back meanwhile.
    ensure!(!seen.sets.is_empty(), "WireGuard wasn't told");
    let only_endpoints = seen.sets.iter().all(DeviceSet::moves_endpoints_only);
    let others = seen.sets.iter().flat_map(|set| &set.peers);
    ensure!(
        only_endpoints && others.into_iter().all(|peer| peer.key == known.key),
        "an endpoint changed by {:?}",
        seen.sets
    );
    seen.routes(&[])?;

    let known = alpha.wireguard_peer_with(&charlies)?;
    watch.begin(lab)?;
    loses_a_prefix_for_a_while(&coordinator, &alpha, (&known, &charlies))?;
    drop(second);
    coordinator.cli(&["nodes", "delete", "carol"])?;
    wait::wait_for("charlie gone from alpha's WireGuard", LIMIT, || {
        let peers = alpha.wireguard()?;
        Ok((!peers.iter().any(|peer| peer.key == known.key)).then_some(()))
    })?;
    let mut seen = watch.end(lab, "a peer lost a prefix, got it back, and went")?;
    // As above; the endpoint that it has in the end is compared below.
    seen.sets.retain(|set| !set.moves_endpoints_only());
    let [lost, back, went] = seen.peers::<3>(&known.key)?;
    ensure!(
        lost.moves_prefixes_only() && lost.replace && lost.prefixes == 1,
        "a prefix went by {lost:?}"
    );
    ensure!(
        back.moves_prefixes_only() && !back.replace && back.prefixes == 1,
        "a prefix came back by {back:?}"
    );
    ensure!(went.remove, "a peer went by {went:?}");
    seen.routes(&[DELETED, NEW, DELETED])?;

    let after = alpha.wireguard_peer_with(&prefix(&bravo)?)?;
    before.has_become(&after).map_err(anyhow::Error::msg)?;
    ensure!(after.received > before.received, "nothing was received");
    let report = ping.stop();
    lab.note(&report.to_string());
    ensure!(report.lost() == 0, "{report}");
    Ok(())
}

/// The policy takes this prefix, its IPv4 address, away from a peer under a ping by its other one, and gives it back. The peer stays: session, counters and
/// endpoint are what they were, and go on.
fn loses_a_prefix_for_a_while(
    coordinator: &Coordinator,
    alpha: &Node,
    (before, prefix): (&WgPeer, &str),
) -> Result<()> {
    let now = || {
        let mut peers = alpha.wireguard()?.into_iter();
        let found = peers.find(|peer| peer.key == before.key);
        found.context("the peer is gone")
    };
    let address = prefix.trim_end_matches("/32");
    let without = format!(
        r#"{{"nodeAttrs": [{{"target": ["{address}"], "attr": ["disable-ipv4"]}}], {}"#,
        &ALLOW_ALL[1..]
    );
    for (policy, has) in [(&*without, false), (ALLOW_ALL, true)] {
        coordinator.set_policy(policy)?;
        let what = format!("whether alpha's WireGuard has {prefix}: {has}");
        wait::wait_for(&what, LIMIT, || {
            let there = now()?.prefixes.split(',').any(|one| one == prefix);
            Ok((there == has).then_some(()))
        })?;
    }
    let back = now()?;
    let (after, _) = wait::wait_for("more bytes from the peer", LIMIT, || {
        Ok(Some(now()?).filter(|peer| peer.received > back.received))
    })?;
    before.has_become(&after).map_err(anyhow::Error::msg)
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
        let all = |begin: &str| {
            let changes = account.changes.iter();
            let found = changes.filter(|change| change.starts_with(begin));
            found.cloned().collect::<Vec<_>>()
        };
        let mut messages = all("RTM_");
        // wireguard-control sees by one that changes nothing whether the device is there; the kernel's own word on links is among the events.
        messages.retain(|message| message != "RTM_NEWLINK");
        let seen = Seen {
            sets: sets.context("a message to WireGuard that cannot be read")?,
            messages,
            filter: all("bpf "),
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
    /// WireGuard was told so many times, and of this peer only.
    fn peers<const N: usize>(&self, key: &str) -> Result<[&PeerSet; N]> {
        let mut peers = Vec::new();
        for DeviceSet { device, peers: of } in &self.sets {
            ensure!(device.is_empty(), "the device was set: {device:?}");
            match &of[..] {
                [peer] if peer.key == key => peers.push(peer),
                others => bail!("WireGuard was told of {others:?}, not of {key} alone"),
            }
        }
        let told = peers.len();
        let Ok(peers) = <[&PeerSet; N]>::try_from(peers) else {
            bail!("WireGuard was told {told} times: {:?}", self.sets);
        };
        Ok(peers)
    }

    /// These routes came and went, by the agent's calls and by the kernel's word, and nothing else did: not even the filter was written.
    fn routes(&self, kinds: &[&str]) -> Result<()> {
        ensure!(
            self.messages == kinds,
            "{:?} and not {kinds:?}",
            self.messages
        );
        let expected = |(line, kind): (&String, &&str)| {
            let of_ours = line.contains("dev lowroad0 table 7052");
            of_ours && line.starts_with("Deleted ") == (*kind == DELETED)
        };
        ensure!(
            self.events.len() == kinds.len() && self.events.iter().zip(kinds).all(expected),
            "the kernel announced {:?}",
            self.events
        );
        ensure!(
            self.filter.is_empty(),
            "a policy that is the same was written by {:?}",
            self.filter
        );
        Ok(())
    }
}
