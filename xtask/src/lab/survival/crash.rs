//! Agents that are killed in the middle of what they change.

use anyhow::{Context, Result, ensure};

use super::{Case, LIMIT, POLICY, adoptions, installs};
use crate::{
    faults::{self, DeviceSet, Fault, Watched},
    lab::{Lab, traces::kinds},
    tailnet::{Client as _, Coordinator, Node},
    wait,
};

/// Killed at one step after another of what an agent changes: while it adopts, and while it brings a new policy into force.
pub fn in_mid_reconcile(lab: &Lab, coordinator: &Coordinator, case: &mut Case) -> Result<()> {
    let mut watches = Vec::new();
    let result = crash_at_steps(lab, coordinator, case, &mut watches);
    // A watch ends with its agent, and not before.
    case.node.kill_9();
    drop(watches);
    result?;
    case.start_agent()
}

fn crash_at_steps(
    lab: &Lab,
    coordinator: &Coordinator,
    case: &mut Case,
    watches: &mut Vec<Watched>,
) -> Result<()> {
    let mut policies = (1000..).map(|port| POLICY.replace("*:80", &format!("*:80,{port}")));
    let mut change_policy = || {
        let policy = policies.next().context("numbers don't run out")?;
        coordinator.set_policy(&policy)
    };
    // Once without a fault, to know the steps.
    case.node.kill_9();
    let known = adoptions(&case.node.log())?;
    let watched = start_watched(&mut case.node, Fault::None, watches)?;
    case.adopts(known)?;
    let adopting = watched.disarm().changes;
    lab.note(&format!("adopting changes {}", kinds(&adopting)));
    let foreign = adopting.iter().find(|change| !is_of_filter(change));
    ensure!(foreign.is_none(), "adopting does {foreign:?}");
    watched.quiet(LIMIT)?;
    let known = installs(&case.node.log())?;
    watched.arm(Fault::None);
    change_policy()?;
    case.settles(known)?;
    let account = watched.disarm();
    let installing = account.changes;
    lab.note(&format!("a policy changes {}", kinds(&installing)));
    let mut sets = account.wireguard.iter();
    ensure!(
        sets.all(|set| set.as_ref().is_some_and(DeviceSet::moves_endpoints_only))
            && !installing.iter().any(|change| change.starts_with("RTM_")),
        "a policy does {:?} to WireGuard",
        account.wireguard
    );

    for step in spread(adopting.len()) {
        at_step(step, |step| {
            case.node.kill_9();
            let watched = start_watched(&mut case.node, Fault::Killed(step), watches)?;
            case.died(watched, |node| {
                Ok(node.status()?["BackendState"] == "Running")
            })
        })?;
    }
    for step in spread(installing.len()) {
        at_step(step, |step| {
            case.node.kill_9();
            let known = adoptions(&case.node.log())?;
            let watched = start_watched(&mut case.node, Fault::None, watches)?;
            case.adopts(known)?;
            let known = installs(&case.node.log())?;
            watched.arm(Fault::Killed(step));
            change_policy()?;
            case.died(watched, |node| Ok(installs(&node.log())? > known))
        })?;
    }
    lab.note(&format!("killed at: {}", case.crashed_at.join(", ")));
    Ok(())
}

/// Has the agent killed at this step. What it does is not always the same number of steps: where it was over before, the last of them is taken.
fn at_step(mut step: usize, mut kill_at: impl FnMut(usize) -> Result<Option<usize>>) -> Result<()> {
    const ATTEMPTS: usize = 4;
    for _ in 0..ATTEMPTS {
        match kill_at(step)? {
            None => return Ok(()),
            Some(count) => step = count.max(1),
        }
    }
    anyhow::bail!("the agent was not killed in {ATTEMPTS} attempts, the last at step {step}")
}

/// The filter's programs and maps, and the agent's own files: all that may change when one agent takes over from another.
fn is_of_filter(change: &str) -> bool {
    // Without TCX, a program is replaced by a message.
    ["bpf ", "RTM_NEWTFILTER", "unlink ", "rename ", "mkdir "]
        .iter()
        .any(|kind| change.starts_with(kind))
}

/// The first of `count` steps, the last, and one in the middle.
fn spread(count: usize) -> [usize; 3] {
    [1, count.div_ceil(2), count]
}

/// Starts an agent whose changes are counted from its first on.
pub fn start_watched<'a>(
    node: &mut Node,
    fault: Fault,
    watches: &'a mut Vec<Watched>,
) -> Result<&'a Watched> {
    let mut command = node.agent_command();
    faults::prepare(&mut command);
    let known = watches.len();
    let started = node.start_agent_as(&mut command, |pid| {
        let watch = Watched::attach(pid)?;
        watch.arm(fault);
        watches.push(watch);
        Ok(())
    });
    // It may have been killed before its socket was there.
    if fault == Fault::None || !node.agent_has_ended() {
        started?;
    }
    watches.get(known).context("the agent was shown to us")
}

impl Case {
    /// Waits until the fault has happened, or all is over; says how many changes there were if it has not.
    fn died(
        &mut self,
        watched: &Watched,
        over: impl Fn(&Node) -> Result<bool>,
    ) -> Result<Option<usize>> {
        wait::wait_for("the agent's end in mid-reconcile", LIMIT, || {
            Ok((self.node.agent_has_ended() || over(&self.node)?).then_some(()))
        })?;
        if !self.node.agent_has_ended() {
            watched.quiet(LIMIT)?;
        }
        let account = watched.disarm();
        if !account.hit {
            ensure!(
                !self.node.agent_has_ended(),
                "the agent ended without the fault"
            );
            return Ok(Some(account.changes.len()));
        }
        self.crashed_at.extend(account.changes.last().cloned());
        Ok(None)
    }
}
