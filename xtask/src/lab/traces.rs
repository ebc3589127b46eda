//! `down`, and an `up` that fails or is killed at any of its steps, leave the host as it was; and at each step no device is up without its filter.
//!
//! The steps are the agent's system calls that change the kernel's state, counted and spoilt from outside ([`faults`]).

mod choice;
mod command;
mod down;
mod watcher;

use std::{
    collections::BTreeMap,
    process::Command,
    sync::{Arc, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

pub use self::choice::kinds;
use self::{
    choice::{CLOSE, Hits, Spoilt, chosen, kind, last_of_each_kind, some, until_hit},
    watcher::{Watcher, for_steps, tailnet},
};
use super::{Lab, host, secs};
use crate::{
    faults::{Fault, is_message},
    process::Finished,
    tailnet::Client as _,
};

/// What ends in the background (tasks, RCU grace periods of eBPF objects) is given this time.
const SETTLE: Duration = secs(20);

/// What an `up` and a `down` change without a fault.
struct Steps {
    up: Vec<String>,
    down: Vec<String>,
}

impl Steps {
    fn of(watcher: &Watcher) -> Result<Self> {
        let (finished, up) = watcher.faulty_up(Fault::None)?;
        finished.ok("up")?;
        let (finished, down) = watcher.faulty_down(Fault::None)?;
        finished.ok("down")?;
        Ok(Self {
            up: up.changes,
            down: down.changes,
        })
    }

    fn count(lab: &Lab, key: &str) -> Result<Self> {
        Self::of(&Watcher::new(lab, "alpha", 30, key)?)
    }
}

pub fn down_leaves_no_trace(lab: &Lab) -> Result<()> {
    let (_coordinator, key) = tailnet(lab)?;
    go_down(lab, &key).map(drop)
}

pub fn an_up_that_is_refused_a_step_leaves_no_trace(lab: &Lab) -> Result<()> {
    let (_coordinator, key) = tailnet(lab)?;
    refuse_each(lab, &key, &Steps::count(lab, &key)?)
}

pub fn an_up_that_is_killed_at_a_step_leaves_nothing_that_cleaning_up_does_not_remove(
    lab: &Lab,
) -> Result<()> {
    let (_coordinator, key) = tailnet(lab)?;
    kill_at_each(lab, &key, &Steps::count(lab, &key)?)
}

pub fn an_interrupted_down_is_finished_by_the_next(lab: &Lab) -> Result<()> {
    let (_coordinator, key) = tailnet(lab)?;
    down::interrupt(lab, &key, &Steps::count(lab, &key)?)
}

pub fn an_up_whose_command_is_killed_is_taken_back(lab: &Lab) -> Result<()> {
    let (_coordinator, key) = tailnet(lab)?;
    command::kill_at_each_kind(lab, &key, &Steps::count(lab, &key)?)
}

/// All of it in one tailnet, where starting one takes long; and on a machine of our own, without a bpffs: agents mount it, and take it away again.
pub fn no_trace_is_left_by_the_kernels_wireguard(lab: &Lab) -> Result<()> {
    crate::shell::output(Command::new("umount").arg("/sys/fs/bpf"))?;
    let (_coordinator, key) = tailnet(lab)?;
    let steps = go_down(lab, &key)?;
    ensure!(
        steps.up.iter().any(|step| kind(step) == "write"),
        "no step of `up` puts the host's setting back that WireGuard changes"
    );
    refuse_each(lab, &key, &steps)?;
    kill_at_each(lab, &key, &steps)?;
    command::kill_at_each_kind(lab, &key, &steps)?;
    down::interrupt(lab, &key, &steps)
}

fn go_down(lab: &Lab, key: &str) -> Result<Steps> {
    let watcher = Watcher::new(lab, "alpha", 30, key)?;
    let node = &watcher.node;
    let before = &watcher.before;
    lab.note(&format!(
        "{} listings of the host compared",
        before.sections()
    ));
    watcher.up()?.ok("up")?;
    let seen = before.difference(&host::of(node, lab.emulated)?);
    for trace in ["lowroad0", "7052", "pins:", "udp "] {
        ensure!(
            seen.contains(trace),
            "the listings don't show {trace:?} while it runs:\n{seen}"
        );
    }
    node.cli(&["down"])?;
    host::is_as_before(node, before, lab.emulated, SETTLE).context("`down`")?;
    let found = watcher.guard()?;
    let steps = Steps::of(&watcher)?;
    host::is_as_before(node, before, lab.emulated, SETTLE).context("`down` again")?;
    lab.note(&format!("up: {}", kinds(&steps.up)));
    lab.note(&format!("down: {}", kinds(&steps.down)));
    let found = found.lock().unwrap_or_else(PoisonError::into_inner);
    ensure!(
        found.is_empty(),
        "a device was up without its filter: {found:?}"
    );
    Ok(steps)
}

/// What came of a refused step.
enum Refused {
    /// `up` said this.
    Failed { step: String, line: String },
    /// `up` could do without.
    WentOn { step: String },
    /// There were fewer steps this time.
    Missed,
}

fn refuse_each(lab: &Lab, key: &str, steps: &Steps) -> Result<()> {
    let steps = &steps.up;
    let start = Instant::now();
    let results = for_steps(
        lab,
        key,
        &chosen(lab, steps, Spoilt::Refused),
        |watcher, share| {
            let before = Arc::clone(&watcher.before);
            let mut results = Vec::new();
            for &step in share {
                let spoil = |fault: fn(usize) -> Fault| {
                    let spoil = |step| refuse(lab, watcher, fault(step), &before);
                    until_hit(lab, step, spoil)
                };
                results.push(spoil(Fault::Refused)?);
                if (!lab.emulated || lab.long) && is_message(&steps[step - 1]) {
                    results.push(spoil(Fault::Unsent)?);
                }
            }
            Ok(results)
        },
    )?;
    let hits = Hits::of(&results, |result| !matches!(result, Refused::Missed));
    let (mut failed, mut went_on, mut lines) = (0, Vec::new(), BTreeMap::new());
    for one in results {
        match one.result {
            Refused::Failed { step, line } => {
                failed += 1;
                lines.entry(kind(&step)).or_insert(line);
            }
            Refused::WentOn { step } => went_on.push(step),
            Refused::Missed => {}
        }
    }
    lab.note(&format!(
        "{} of {} refusals at {} steps in {:.0} s: {failed} failed `up` and left nothing, {} it did without ({})",
        hits.hit,
        hits.tried,
        steps.len(),
        start.elapsed().as_secs_f32(),
        went_on.len(),
        kinds(&went_on),
    ));
    for (step, line) in lines {
        lab.note(&format!("{step}: {line}"));
    }
    hits.tell(lab, "refused", steps);
    hits.judge("refused")?;
    ensure!(
        failed > went_on.len() / 2,
        "hardly any refusal made `up` fail"
    );
    Ok(())
}

/// What came of it, and at which step the fault could have happened if it did not.
fn refuse(
    lab: &Lab,
    watcher: &Watcher,
    fault: Fault,
    before: &host::Footprint,
) -> Result<(Refused, Option<usize>)> {
    let (finished, account) = watcher.faulty_up(fault)?;
    let name = account.changes.last().cloned().unwrap_or_default();
    let what = format!("`up` with {fault:?} ({name})");
    host::is_guarded(&watcher.node.namespace).context(what.clone())?;
    let result = if !finished.status.success() {
        ensure!(
            account.hit,
            "{what} failed without a fault: {}",
            finished.stderr
        );
        one_clear_line(&finished).context(what.clone())?;
        Refused::Failed {
            step: name,
            line: last_line(&finished),
        }
    } else {
        watcher.node.cli(&["down"]).context(what.clone())?;
        match account.hit {
            true => Refused::WentOn { step: name },
            false => Refused::Missed,
        }
    };
    host::is_as_before(&watcher.node, before, lab.emulated, SETTLE).context(what)?;
    Ok((result, account.instead_of(fault)))
}

fn last_line(finished: &Finished) -> String {
    finished
        .stderr
        .trim()
        .lines()
        .last()
        .unwrap_or_default()
        .to_owned()
}

/// Besides what it said to be waiting for before.
fn one_clear_line(finished: &Finished) -> Result<()> {
    let lines = finished.stderr.trim().lines();
    let said: Vec<&str> = lines
        .filter(|line| !line.starts_with("waiting for "))
        .collect();
    ensure!(said.len() == 1, "it said: {}", finished.stderr);
    ensure!(
        !said[0].contains("panicked"),
        "it panicked: {}",
        finished.stderr
    );
    Ok(())
}

/// How what a dead agent left is removed. The steps take turns, so that neighbours (which leave much the same) are removed by either.
#[derive(Debug, Clone, Copy)]
enum Broom {
    CleanUp,
    RestartAndDown,
}

impl Broom {
    /// One after the other; with `LOWROAD_LONG` both for each step.
    fn of(lab: &Lab, turn: usize) -> &'static [Self] {
        const BOTH: &[Broom] = &[Broom::CleanUp, Broom::RestartAndDown];
        if lab.long {
            return BOTH;
        }
        &BOTH[turn % 2..=turn % 2]
    }

    fn sweep(self, lab: &Lab, watcher: &mut Watcher, before: &host::Footprint) -> Result<()> {
        let swept = match self {
            Self::CleanUp => watcher.node.clean_up(),
            Self::RestartAndDown => restart_and_down(watcher),
        };
        swept
            .and_then(|()| host::is_as_before(&watcher.node, before, lab.emulated, SETTLE))
            .with_context(|| format!("{self:?}"))
    }
}

fn restart_and_down(watcher: &mut Watcher) -> Result<()> {
    watcher.node.start_agent()?;
    host::is_guarded(&watcher.node.namespace)?;
    watcher.node.cli(&["down"])?;
    watcher.node.stop_agent_gracefully()
}

fn kill_at_each(lab: &Lab, key: &str, steps: &Steps) -> Result<()> {
    let steps = &steps.up;
    let start = Instant::now();
    let results = for_steps(
        lab,
        key,
        &chosen(lab, steps, Spoilt::Killed),
        |watcher, share| {
            watcher.end();
            let mut results = Vec::new();
            for (turn, step) in share.iter().enumerate() {
                for broom in Broom::of(lab, turn) {
                    let spoil = |step| kill(lab, watcher, step, *broom);
                    results.push(until_hit(lab, *step, spoil)?);
                }
            }
            Ok(results)
        },
    )?;
    let hits = Hits::of(&results, |killed| killed.hit);
    let left = results.iter().filter(|one| one.result.left).count();
    lab.note(&format!(
        "killed {} of {} times at {} steps in {:.0} s; something was left {left} times, and removed by the next command",
        hits.hit,
        hits.tried,
        steps.len(),
        start.elapsed().as_secs_f32(),
    ));
    hits.tell(lab, "killed", steps);
    hits.judge("killed")?;
    ensure!(left > 0, "agents were not killed at work");
    Ok(())
}

struct Killed {
    hit: bool,
    /// Something was left for the next command to remove.
    left: bool,
}

/// As [`refuse`].
fn kill(
    lab: &Lab,
    watcher: &mut Watcher,
    step: usize,
    broom: Broom,
) -> Result<(Killed, Option<usize>)> {
    watcher.start()?;
    let fault = Fault::Killed(step);
    let (_, account) = watcher.faulty_up(fault)?;
    let name = account.changes.last().cloned().unwrap_or_default();
    let what = format!("an agent killed at step {step} of `up` ({name})");
    watcher.end();
    host::is_guarded(&watcher.node.namespace).context(what.clone())?;
    let before = Arc::clone(&watcher.before);
    let left = !before
        .difference(&host::of(&watcher.node, lab.emulated)?)
        .is_empty();
    broom.sweep(lab, watcher, &before).context(what)?;
    let hit = account.hit;
    Ok((Killed { hit, left }, account.instead_of(fault)))
}
