//! Peers that come and go while no agent runs, or while one dies: the next one changes what differs, and nothing else.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{
    Lab, foreign,
    peers::prefix,
    secs,
    survival::{
        Load, POLICY, Row, find_direct_path, start_watched, what_was_refused_would_have_been_seen,
    },
};
use crate::{
    faults::{Account, Fault, Watched},
    tailnet::{Client as _, Coordinator, Node},
    traffic::Stalls,
    wait,
};

const LIMIT: Duration = secs(120);
/// Our own routes, one for each peer.
const TABLE: &str = "route show table 7052";

/// A node whose agent is in trouble, and its netmap.
struct Trouble<'a> {
    coordinator: &'a Coordinator,
    alpha: Node,
    /// Keys of the peers that it should have.
    wanted: Vec<String>,
    /// And of those that it should have no more.
    gone: Vec<String>,
    /// Members that only wait to be deleted.
    members: Vec<Member>,
}

struct Member {
    node: Node,
    prefix: String,
}

pub fn what_changed_meanwhile_is_all_that_the_next_agent_changes(lab: &Lab) -> Result<()> {
    // Dropped last: a watch ends when its agent has ended.
    let mut watches = Vec::new();
    let coordinator = lab.coordinator(POLICY)?;
    let key = coordinator.auth_key("ann", "")?;
    let members = [("one", 33), ("two", 34), ("three", 35), ("four", 36)];
    let members = members.map(|(name, last)| Member::join(lab, &key, name, last));
    let members: Vec<Member> = members.into_iter().collect::<Result<_>>()?;
    let bravo = lab.single_path_node("bravo", 31)?;
    let alpha = lab.single_path_node("alpha", 30)?;
    bravo.up(&key)?;
    alpha.up(&key)?;
    find_direct_path(&alpha, &bravo)?;
    let stalls = Stalls::watch();
    let load = Load::start(&bravo, &alpha)?;
    load.goes_on(&alpha)?;
    let before = alpha.wireguard_peer_with(&prefix(&bravo)?)?;

    let mut trouble = Trouble {
        coordinator: &coordinator,
        wanted: keys(&alpha)?,
        gone: Vec::new(),
        alpha,
        members,
    };
    let late = || Member::join(lab, &key, "late", 37);
    let calls = trouble.the_next_changes_what_differs(lab, late, &mut watches)?;
    let steps = trouble.steps_of_a_removal(calls)?;
    trouble.is_killed_at_some(lab, &steps, &mut watches)?;

    load.goes_on(&trouble.alpha)?;
    let mut row = load.end("bravo to alpha", &trouble.alpha)?;
    let after = trouble.alpha.wireguard_peer_with(&prefix(&bravo)?)?;
    row.session = before.has_become(&after);
    trouble.judge(lab, &bravo, &row, &stalls)
}

impl Member {
    fn join(lab: &Lab, key: &str, name: &str, last: u8) -> Result<Self> {
        let mut node = lab.single_path_node(name, last)?;
        node.up(key)?;
        let prefix = prefix(&node)?;
        // That it is in the netmap is enough.
        node.stop_agent();
        Ok(Self { node, prefix })
    }
}

/// WireGuard was told of the peers that came and went, and other peers at most where they are; a route came and a route went.
fn tells_of(account: &Account, come: &[String], gone: &str) -> Result<()> {
    let sets: Option<Vec<_>> = account.wireguard.iter().cloned().collect();
    for set in sets.context("a message to WireGuard that cannot be read")? {
        ensure!(
            set.device.is_empty(),
            "the device was set: {:?}",
            set.device
        );
        for peer in &set.peers {
            let as_wanted = match &peer.key {
                key if *key == gone => peer.remove,
                key if come.contains(key) => !peer.remove,
                _ => peer.update_only && !peer.remove && !peer.replace && peer.prefixes == 0,
            };
            ensure!(as_wanted, "WireGuard was told {peer:?}");
        }
    }
    let routes = |kind: &str| account.changes.iter().filter(|one| *one == kind).count();
    let (came, went) = (routes("RTM_NEWROUTE"), routes("RTM_DELROUTE"));
    ensure!(
        (came, went) == (1, 1),
        "{came} routes were made and {went} removed"
    );
    Ok(())
}

impl Trouble<'_> {
    /// One peer goes and one comes while no agent runs. Returns the watch of the next agent.
    fn the_next_changes_what_differs<'w>(
        &mut self,
        lab: &Lab,
        late: impl FnOnce() -> Result<Member>,
        watches: &'w mut Vec<Watched>,
    ) -> Result<&'w Watched> {
        self.alpha.kill_9();
        let gone = self.delete("one")?;
        self.members.push(late()?);
        let calls = start_watched(&mut self.alpha, Fault::None, watches)?;
        let come = self.settles(1)?;
        calls.quiet(LIMIT)?;
        let account = calls.disarm();
        lab.note(&format!("one went and one came: {:?}", account.wireguard));
        tells_of(&account, &come, &gone)?;
        Ok(calls)
    }

    /// Without a fault.
    fn steps_of_a_removal(&mut self, calls: &Watched) -> Result<Vec<String>> {
        calls.arm(Fault::None);
        self.delete("two")?;
        self.settles(0)?;
        calls.quiet(LIMIT)?;
        Ok(calls.disarm().changes)
    }

    fn is_killed_at_some(
        &mut self,
        lab: &Lab,
        steps: &[String],
        watches: &mut Vec<Watched>,
    ) -> Result<()> {
        for (name, at, left) in [
            ("three", "WG_CMD_SET_DEVICE", "peer and route"),
            ("four", "RTM_DELROUTE", "route"),
        ] {
            let step = steps.iter().position(|step| step == at);
            let step = step.with_context(|| format!("no {at} among {steps:?}"))? + 1;
            let was = self.is_killed_at(step, name, watches)?;
            ensure!(was == left, "killed at {at}, it left {was} and not {left}");
            lab.note(&format!("killed at {at}: it left {left}"));
        }
        Ok(())
    }

    /// What all of that did to the traffic from `bravo`.
    fn judge(&mut self, lab: &Lab, bravo: &Node, row: &Row, stalls: &Stalls) -> Result<()> {
        lab.note(&format!(
            "{}; {} of {} TCP segments lost; {} of {} refused packets counted, {} passed",
            row.ping,
            row.stream.lost,
            row.stream.segments,
            row.refused_counted,
            row.refused_sent,
            row.refused_passed
        ));
        row.check_kept()?;
        what_was_refused_would_have_been_seen(self.coordinator, bravo, &self.alpha)?;
        // A watch outlives no agent.
        self.alpha.stop_agent();
        lab.lost(&[row.traffic()], stalls)
    }

    /// The agent is killed in place of this step of the removal of a member; returns what was left of that, which the next agent removes, and no more.
    fn is_killed_at(
        &mut self,
        step: usize,
        name: &str,
        watches: &mut Vec<Watched>,
    ) -> Result<&'static str> {
        self.alpha.kill_9();
        let calls = start_watched(&mut self.alpha, Fault::None, watches)?;
        self.alpha.wait_until_running(LIMIT)?;
        calls.quiet(LIMIT)?;
        calls.disarm();
        calls.arm(Fault::Killed(step));
        let key = self.delete(name)?;
        wait::wait_for("the agent's end in mid-reconcile", LIMIT, || {
            Ok(self.alpha.agent_has_ended().then_some(()))
        })?;
        ensure!(calls.disarm().hit, "the agent ended without the fault");
        let peer = keys(&self.alpha)?.contains(&key);
        let route = routes(&self.alpha)? > self.wanted.len();
        let left = match (peer, route) {
            (true, true) => "peer and route",
            (true, false) => "peer",
            (false, true) => "route",
            (false, false) => "nothing",
        };

        let calls = start_watched(&mut self.alpha, Fault::None, watches)?;
        self.settles(0)?;
        calls.quiet(LIMIT)?;
        let account = calls.disarm();
        let sets: Option<Vec<_>> = account.wireguard.into_iter().collect();
        let sets = sets.context("a message to WireGuard that cannot be read")?;
        let mut peers = sets.iter().flat_map(|set| &set.peers);
        ensure!(
            peers.all(|one| one.key == key && one.remove),
            "after that WireGuard was told {sets:?}"
        );
        Ok(left)
    }

    /// Deletes a member; returns its key in WireGuard.
    fn delete(&mut self, name: &str) -> Result<String> {
        let mut members = self.members.iter();
        let member = members.find(|member| member.node.name == name);
        let prefix = &member.context("a member")?.prefix;
        let key = self.alpha.wireguard_peer_with(prefix)?.key;
        self.wanted.retain(|wanted| *wanted != key);
        self.gone.push(key.clone());
        self.coordinator.cli(&["nodes", "delete", name])?;
        Ok(key)
    }

    /// Waits until the kernel has the peers that are wanted and so many more, with a route each; returns those more.
    fn settles(&mut self, more: usize) -> Result<Vec<String>> {
        let what = format!("{} peers in the kernel", self.wanted.len() + more);
        let (new, _) = wait::wait_for(&what, LIMIT, || {
            let mut there = keys(&self.alpha)?;
            let all = self.wanted.iter().all(|wanted| there.contains(wanted))
                && !there.iter().any(|key| self.gone.contains(key));
            there.retain(|key| !self.wanted.contains(key));
            let routes = foreign::run(&self.alpha.namespace, "ip", TABLE)?;
            let routes = routes.lines().filter(|line| line.starts_with("100."));
            let settled = all && there.len() == more && routes.count() == self.wanted.len() + more;
            Ok(settled.then_some(there))
        })?;
        self.wanted.extend(new.clone());
        Ok(new)
    }
}

/// How many peers' IPv4 addresses are routed.
fn routes(node: &Node) -> Result<usize> {
    let routes = foreign::run(&node.namespace, "ip", TABLE)?;
    let routes = routes.lines().filter(|line| line.starts_with("100."));
    Ok(routes.count())
}

fn keys(node: &Node) -> Result<Vec<String>> {
    Ok(node.wireguard()?.into_iter().map(|peer| peer.key).collect())
}
