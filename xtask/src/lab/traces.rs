//! `down`, and an `up` that fails or is killed at any of its steps, leave the host as it was; and at each step no device is up without its filter.
//!
//! The steps are the agent's system calls that change the kernel's state, counted and spoilt from outside ([`faults`]).

use std::{
    collections::BTreeMap,
    process::Command,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};

use super::{ALLOW_ALL, Lab, host, secs};
use crate::{
    faults::{self, Account, Fault, Watched},
    process::Finished,
    tailnet::{Coordinator, Node, URL},
};

/// What ends in the background (tasks, RCU grace periods of eBPF objects) is given this time.
const SETTLE: Duration = secs(20);

struct Watcher {
    node: Node,
    watched: Option<Watched>,
    key: String,
}

impl Drop for Watcher {
    /// The watch ends when the agent has ended.
    fn drop(&mut self) {
        self.node.kill_9();
    }
}

impl Watcher {
    fn new(lab: &Lab, name: &str, last: u8, key: &str) -> Result<Self> {
        let mut node = lab.public_node(name, last)?;
        node.stop_agent();
        node.all_capabilities = lab.emulated;
        let mut watcher = Self {
            node,
            watched: None,
            key: key.to_owned(),
        };
        watcher.start()?;
        // The first one makes a key and registers: later ones are alike.
        watcher.up()?.ok("up")?;
        watcher.node.cli(&["down"])?;
        Ok(watcher)
    }

    /// (Re)starts the agent under watch.
    fn start(&mut self) -> Result<()> {
        self.end();
        let mut command = self.node.agent_command();
        faults::prepare(&mut command);
        let watched = &mut self.watched;
        self.node.start_agent_as(&mut command, |pid| {
            *watched = Some(Watched::attach(pid)?);
            Ok(())
        })
    }

    fn end(&mut self) {
        self.node.kill_9();
        self.watched = None;
    }

    fn watched(&self) -> Result<&Watched> {
        self.watched.as_ref().context("the agent isn't watched")
    }

    fn up(&self) -> Result<Finished> {
        let server = format!("--login-server={URL}");
        let key = format!("--auth-key={}", self.key);
        let hostname = format!("--hostname={}", self.node.name);
        self.node
            .try_cli(&["up", &server, &key, &hostname, "--timeout=30s"])
    }

    /// `up` with a fault in it.
    fn faulty_up(&self, fault: Fault) -> Result<(Finished, Account)> {
        self.watched()?.arm(fault);
        let finished = self.up()?;
        Ok((finished, self.watched()?.disarm()))
    }

    /// From now on, looks before each change whether a device is up without its filter; what it found is in the list.
    fn guard(&self) -> Result<Arc<Mutex<Vec<String>>>> {
        let found = Arc::new(Mutex::new(Vec::new()));
        let (list, namespace) = (Arc::clone(&found), self.node.namespace.clone());
        self.watched()?.observe(Box::new(move |change| {
            if let Err(error) = host::is_guarded(&namespace) {
                let mut list = list.lock().unwrap_or_else(PoisonError::into_inner);
                list.push(format!("before {change}: {error:#}"));
            }
        }));
        Ok(found)
    }
}

/// A server, and a node that is away: something to program for others.
fn tailnet(lab: &Lab) -> Result<(Coordinator, String)> {
    let coordinator = lab.coordinator(ALLOW_ALL)?;
    let key = coordinator.auth_key("ann", "")?;
    let peer = lab.public_node("peer", 39)?;
    peer.up(&key)?;
    peer.cli(&["down"])?;
    Ok((coordinator, key))
}

/// Two at a time: steps wait for timers and the kernel more than they work. In the emulated machine one, so that all its eBPF objects can be counted.
const fn workers(lab: &Lab) -> u8 {
    if lab.emulated { 1 } else { 2 }
}

/// Does something for each step with nodes of their own, and gathers what comes of it.
fn for_steps<T: Send>(
    lab: &Lab,
    key: &str,
    steps: &[usize],
    work: impl Fn(&mut Watcher, &[usize]) -> Result<Vec<T>> + Sync,
) -> Result<Vec<T>> {
    let workers = workers(lab);
    let results: Vec<Result<Vec<T>>> = thread::scope(|scope| {
        let workers: Vec<_> = (0..workers)
            .map(|worker| {
                let share = steps.iter().skip(worker.into()).step_by(workers.into());
                let share: Vec<usize> = share.copied().collect();
                let work = &work;
                scope.spawn(move || {
                    let mut watcher =
                        Watcher::new(lab, &format!("node{worker}"), 40 + worker, key)?;
                    work(&mut watcher, &share)
                })
            })
            .collect();
        let join = |worker: thread::ScopedJoinHandle<'_, Result<Vec<T>>>| {
            worker
                .join()
                .unwrap_or_else(|_| Err(anyhow!("a worker panicked")))
        };
        workers.into_iter().map(join).collect()
    });
    let mut all = Vec::new();
    for result in results {
        all.extend(result?);
    }
    Ok(all)
}

/// The steps of an `up` without a fault.
fn clean_up(lab: &Lab, key: &str) -> Result<Vec<String>> {
    let watcher = Watcher::new(lab, "alpha", 30, key)?;
    let (finished, clean) = watcher.faulty_up(Fault::None)?;
    finished.ok("up")?;
    watcher.node.cli(&["down"])?;
    Ok(clean.changes)
}

/// Kinds of steps with how many there are of each: `12 bpf MAP_UPDATE_ELEM, 4 RTM_NEWRULE`.
fn kinds(changes: &[String]) -> String {
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
    if lab.emulated {
        // In a machine of our own: an agent mounts what is missing, and takes it away again.
        crate::shell::output(Command::new("umount").arg("/sys/fs/bpf"))?;
    }
    let (_coordinator, key) = tailnet(lab)?;
    let watcher = Watcher::new(lab, "alpha", 30, &key)?;
    let node = &watcher.node;
    let before = host::of(node, lab.emulated)?;
    lab.note(&format!(
        "{} listings of the host compared",
        before.sections()
    ));
    let found = watcher.guard()?;
    let rounds = if lab.emulated { 1 } else { 2 };
    for round in 1..=rounds {
        let (finished, ups) = watcher.faulty_up(Fault::None)?;
        finished.ok("up")?;
        let during = host::of(node, lab.emulated)?;
        let seen = before.difference(&during);
        for trace in ["lowroad0", "7052", "pins:", "udp "] {
            ensure!(
                seen.contains(trace),
                "the listings don't show {trace:?} while it runs:\n{seen}"
            );
        }
        watcher.watched()?.arm(Fault::None);
        node.cli(&["down"])?;
        let downs = watcher.watched()?.disarm();
        host::is_as_before(node, &before, lab.emulated, SETTLE)
            .with_context(|| format!("`down`, round {round}"))?;
        lab.note(&format!("up: {}", kinds(&ups.changes)));
        lab.note(&format!("down: {}", kinds(&downs.changes)));
    }
    let found = found.lock().unwrap_or_else(PoisonError::into_inner);
    ensure!(
        found.is_empty(),
        "a device was up without its filter: {found:?}"
    );
    Ok(())
}

/// Which steps are tried: all, or where each takes ten times as long, those around which there is a device without something.
fn chosen(lab: &Lab, changes: &[String]) -> Vec<usize> {
    if !lab.emulated {
        return (1..=changes.len()).collect();
    }
    let last = |kind: &str| changes.iter().rposition(|change| change == kind);
    let mut steps: Vec<usize> = [
        "RTM_NEWLINK",
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

pub fn an_up_that_is_refused_a_step_leaves_no_trace(lab: &Lab) -> Result<()> {
    let (_coordinator, key) = tailnet(lab)?;
    let steps = clean_up(lab, &key)?;
    let start = Instant::now();
    let results = for_steps(lab, &key, &chosen(lab, &steps), |watcher, share| {
        let before = host::of(&watcher.node, lab.emulated)?;
        let mut results = Vec::new();
        for &step in share {
            results.push(refuse(lab, watcher, Fault::Refused(step), &before)?);
            if is_message(&steps[step - 1]) {
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
        "{} of {} steps refused in {:.0} s: {failed} failed `up` and left nothing, {} it did without ({})",
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

pub fn an_up_that_is_killed_at_a_step_leaves_nothing_that_cleaning_up_does_not_remove(
    lab: &Lab,
) -> Result<()> {
    let (_coordinator, key) = tailnet(lab)?;
    let steps = clean_up(lab, &key)?;
    let start = Instant::now();
    let results = for_steps(lab, &key, &chosen(lab, &steps), |watcher, share| {
        watcher.end();
        let before = host::of(&watcher.node, lab.emulated)?;
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
    let (how, cleaned) = if step % 4 < 2 {
        ("`agent --cleanup`", watcher.node.clean_up())
    } else {
        ("a new agent and `down`", restart_and_down(watcher))
    };
    cleaned.with_context(|| format!("{how} after {what}"))?;
    host::is_as_before(&watcher.node, before, lab.emulated, SETTLE)
        .with_context(|| format!("{how} after {what}"))?;
    Ok(Killed {
        hit: account.hit,
        left,
    })
}

fn restart_and_down(watcher: &mut Watcher) -> Result<()> {
    watcher.node.start_agent()?;
    host::is_guarded(&watcher.node.namespace)?;
    watcher.node.cli(&["down"])?;
    watcher.node.stop_agent();
    Ok(())
}
