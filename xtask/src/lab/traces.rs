//! `down`, and an `up` that fails or is killed at any of its steps, leave the host as it was; and at each step no device is up without its filter.
//!
//! The steps are the agent's system calls that change the kernel's state, counted and spoilt from outside ([`faults`]).

mod watcher;

use std::{
    collections::BTreeMap,
    process::Command,
    sync::{Arc, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use self::watcher::{Watcher, for_steps, tailnet};
use super::{Lab, host, secs};
use crate::{faults::Fault, process::Finished, tailnet::Client as _};

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

/// Kinds of steps with how many there are of each: `12 bpf MAP_UPDATE_ELEM, 4 RTM_NEWRULE`.
pub fn kinds(changes: &[String]) -> String {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for change in changes {
        let words = if change.starts_with("bpf") { 2 } else { 1 };
        let kind: Vec<&str> = change.split(' ').take(words).collect();
        *counts.entry(kind.join(" ")).or_default() += 1;
    }
    let list: Vec<String> = counts
        .iter()
        .map(|(kind, count)| format!("{count} {kind}"))
        .collect();
    list.join(", ")
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
    interrupt_down(lab, &key, &Steps::count(lab, &key)?)
}

/// All of it in one tailnet, where starting one takes long; and on a machine of our own, without a bpffs: agents mount it, and take it away again.
pub fn no_trace_is_left_by_the_kernels_wireguard(lab: &Lab) -> Result<()> {
    crate::shell::output(Command::new("umount").arg("/sys/fs/bpf"))?;
    let (_coordinator, key) = tailnet(lab)?;
    let steps = go_down(lab, &key)?;
    refuse_each(lab, &key, &steps)?;
    kill_at_each(lab, &key, &steps)?;
    interrupt_down(lab, &key, &steps)
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

/// Which steps are tried: all, or where each takes ten times as long, those around which there is a device without something.
fn chosen(lab: &Lab, changes: &[String]) -> Vec<usize> {
    if !lab.emulated {
        return (1..=changes.len()).collect();
    }
    let last = |kind: &str| changes.iter().rposition(|change| change == kind);
    let mut steps: Vec<usize> = [
        "WG_CMD_SET_DEVICE",
        "bpf LINK_CREATE",
        "RTM_SETLINK",
        "RTM_NEWRULE",
    ]
    .into_iter()
    .filter_map(|kind| Some(last(kind)? + 1))
    .collect();
    steps.sort_unstable();
    steps
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
    let results = for_steps(lab, key, &chosen(lab, steps), |watcher, share| {
        let before = Arc::clone(&watcher.before);
        let mut results = Vec::new();
        for &step in share {
            results.push(refuse(lab, watcher, Fault::Refused(step), &before)?);
            if !lab.emulated && is_message(&steps[step - 1]) {
                results.push(refuse(lab, watcher, Fault::Unsent(step), &before)?);
            }
        }
        Ok(results)
    })?;
    let (mut failed, mut went_on, mut lines) = (0, Vec::new(), BTreeMap::new());
    for result in results {
        match result {
            Refused::Failed { step, line } => {
                failed += 1;
                lines.entry(kinds(&[step])).or_insert(line);
            }
            Refused::WentOn { step } => went_on.push(step),
            Refused::Missed => {}
        }
    }
    lab.note(&format!(
        "{} refusals at {} steps in {:.0} s: {failed} failed `up` and left nothing, {} it did without ({})",
        failed + went_on.len(),
        steps.len(),
        start.elapsed().as_secs_f32(),
        went_on.len(),
        kinds(&went_on),
    ));
    for (step, line) in lines {
        lab.note(&format!("{step}: {line}"));
    }
    ensure!(
        failed > went_on.len() / 2,
        "hardly any refusal made `up` fail"
    );
    Ok(())
}

fn is_message(step: &str) -> bool {
    step.starts_with("RTM_") || step.starts_with("WG_")
}

fn refuse(lab: &Lab, watcher: &Watcher, fault: Fault, before: &host::Footprint) -> Result<Refused> {
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
    Ok(result)
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

fn kill_at_each(lab: &Lab, key: &str, steps: &Steps) -> Result<()> {
    let steps = &steps.up;
    let start = Instant::now();
    let results = for_steps(lab, key, &chosen(lab, steps), |watcher, share| {
        watcher.end();
        let before = Arc::clone(&watcher.before);
        let killed = |step: &usize| kill(lab, watcher, *step, &before);
        share.iter().map(killed).collect()
    })?;
    let count = |what: fn(&Killed) -> bool| results.iter().filter(|result| what(result)).count();
    let (killed, left) = (count(|result| result.hit), count(|result| result.left));
    lab.note(&format!(
        "killed at {killed} of {} steps in {:.0} s; something was left after {left} of them, and removed by the next command",
        steps.len(),
        start.elapsed().as_secs_f32(),
    ));
    ensure!(
        killed > results.len() / 2 && left > 0,
        "agents were not killed at work"
    );
    Ok(())
}

struct Killed {
    hit: bool,
    /// Something was left for the next command to remove.
    left: bool,
}

fn kill(lab: &Lab, watcher: &mut Watcher, step: usize, before: &host::Footprint) -> Result<Killed> {
    watcher.start()?;
    let (_, account) = watcher.faulty_up(Fault::Killed(step))?;
    let name = account.changes.last().cloned().unwrap_or_default();
    let what = format!("an agent killed at step {step} of `up` ({name})");
    watcher.end();
    host::is_guarded(&watcher.node.namespace).context(what.clone())?;
    let left = !before
        .difference(&host::of(&watcher.node, lab.emulated)?)
        .is_empty();
    clean_after_death(lab, watcher, step, before).context(what)?;
    Ok(Killed {
        hit: account.hit,
        left,
    })
}

/// By one of the two ways that there are.
fn clean_after_death(
    lab: &Lab,
    watcher: &mut Watcher,
    step: usize,
    before: &host::Footprint,
) -> Result<()> {
    let (how, cleaned) = if step % 4 < 2 {
        ("`agent --cleanup`", watcher.node.clean_up())
    } else {
        ("a new agent and `down`", restart_and_down(watcher))
    };
    cleaned.context(how)?;
    host::is_as_before(&watcher.node, before, lab.emulated, SETTLE).context(how)
}

fn restart_and_down(watcher: &mut Watcher) -> Result<()> {
    watcher.node.start_agent()?;
    host::is_guarded(&watcher.node.namespace)?;
    watcher.node.cli(&["down"])?;
    watcher.node.stop_agent();
    Ok(())
}

/// A `down` that fails half way says so, goes on as far as it can, and the next one does the rest; after one that is killed, cleaning up does.
fn interrupt_down(lab: &Lab, key: &str, steps: &Steps) -> Result<()> {
    let steps = &steps.down;
    let start = Instant::now();
    // The first and the last of each kind: it removes many things of a kind.
    let kind = |at: usize| kinds(&steps[at..=at]);
    let mut tried: Vec<usize> = (0..steps.len())
        .filter(|&at| {
            at == 0 || at + 1 == steps.len() || kind(at - 1) != kind(at) || kind(at + 1) != kind(at)
        })
        .map(|at| at + 1)
        .collect();
    if lab.emulated {
        tried.retain(|step| steps[step - 1] == "RTM_DELLINK");
    }
    let results = for_steps(lab, key, &tried, |watcher, share| {
        watcher.end();
        let before = Arc::clone(&watcher.before);
        let mut failed = 0;
        for &step in share {
            watcher.start()?;
            failed += usize::from(refuse_down(lab, watcher, step, &before)?);
            watcher.up()?.ok("up")?;
            watcher.faulty_down(Fault::Killed(step))?;
            watcher.end();
            let what = format!("an agent killed at step {step} of `down`");
            host::is_guarded(&watcher.node.namespace).context(what.clone())?;
            clean_after_death(lab, watcher, step, &before).context(what)?;
        }
        Ok(vec![failed])
    })?;
    lab.note(&format!(
        "`down` refused and killed at {} of {} steps in {:.0} s: it failed {} times, and the next command removed the rest",
        tried.len(),
        steps.len(),
        start.elapsed().as_secs_f32(),
        results.iter().sum::<usize>(),
    ));
    Ok(())
}

/// Says whether the `down` failed.
fn refuse_down(
    lab: &Lab,
    watcher: &Watcher,
    step: usize,
    before: &host::Footprint,
) -> Result<bool> {
    watcher.up()?.ok("up")?;
    let (finished, account) = watcher.faulty_down(Fault::Refused(step))?;
    let name = account.changes.last().cloned().unwrap_or_default();
    let what = format!("`down` refused at step {step} ({name})");
    host::is_guarded(&watcher.node.namespace).context(what.clone())?;
    let failed = !finished.status.success();
    if failed {
        one_clear_line(&finished).context(what.clone())?;
        watcher.node.cli(&["down"]).context(what.clone())?;
    }
    host::is_as_before(&watcher.node, before, lab.emulated, SETTLE).context(what)?;
    Ok(failed)
}
