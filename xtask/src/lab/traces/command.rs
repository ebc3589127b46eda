//! A `lowroad up` that is interrupted, or killed, is taken back by the agent: nobody waits for it any more. One that comes too late for that has connected.

use std::{
    fs,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{
    CLOSE, Hits, Lab, SETTLE, Steps, Watcher, host, last_of_each_kind, until_hit,
    watcher::for_steps,
};
use crate::{
    process::Daemon,
    tailnet::{Client as _, Node},
    wait,
};

pub fn kill_at_each_kind(lab: &Lab, key: &str, steps: &Steps) -> Result<()> {
    let start = Instant::now();
    let mut tried = last_of_each_kind(&steps.up);
    if lab.emulated && !lab.long {
        tried.retain(|step| CLOSE.contains(&&*steps.up[step - 1]));
    }
    let results = for_steps(lab, key, &tried, |watcher, share| {
        let kill = |&step: &usize| until_hit(lab, step, |step| kill(lab, watcher, step));
        share.iter().map(kill).collect()
    })?;
    let back = results.iter().filter(|one| one.result == End::TakenBack);
    let back = back.count();
    let hits = Hits::of(&results, |end| *end != End::Missed);
    lab.note(&format!(
        "the command of an `up` killed {} times at {} of {} steps in {:.0} s: taken back {back} times, else it had connected",
        hits.happened(),
        tried.len(),
        steps.up.len(),
        start.elapsed().as_secs_f32(),
    ));
    hits.tell(lab, "the command killed", &steps.up);
    hits.judge("the command killed")?;
    ensure!(
        back > hits.happened() / 2,
        "an `up` without its command mostly went on"
    );
    Ok(())
}

#[derive(Debug, PartialEq, Eq)]
enum End {
    TakenBack,
    Connected,
    /// It had ended before the step.
    Missed,
}

/// What became of it, and how many steps there were if it had ended before.
fn kill(lab: &Lab, watcher: &Watcher, step: usize) -> Result<(End, Option<usize>)> {
    let what = format!("an `up` whose command was killed at step {step}");
    let missed = kill_command(lab, watcher, step).context(what.clone())?;
    host::is_guarded(&watcher.node.namespace).context(what.clone())?;
    // It is undecided as long as the agent still connects or takes back.
    let (connected, _) = wait::wait_for("what becomes of it", SETTLE, || {
        let status = watcher.node.status()?;
        Ok(match status["BackendState"].as_str() {
            Some("Running") => wants_to_run(&watcher.node)?.then_some(true),
            Some("Stopped" | "NeedsLogin") => Some(false),
            _ => None,
        })
    })
    .context(what.clone())?;
    if connected {
        watcher.node.cli(&["down"])?;
    }
    host::is_as_before(&watcher.node, &watcher.before, lab.emulated, SETTLE).context(what)?;
    let end = match (missed, connected) {
        (Some(_), _) => End::Missed,
        (None, false) => End::TakenBack,
        (None, true) => End::Connected,
    };
    Ok((end, missed))
}

/// As it is kept for the next agent: written when an `up` is done.
fn wants_to_run(node: &Node) -> Result<bool> {
    let state = fs::read(node.state_folder().join("state.json"))?;
    let state: Value = serde_json::from_slice(&state)?;
    let kept = &state["prefs"]["WantRunning"];
    kept.as_bool()
        .with_context(|| format!("the state says that it wants to run: {kept}"))
}

/// While the agent waits to make its step. By turns as by Ctrl-C and by `kill -9`. Says how many steps there were if the command had ended
/// before.
fn kill_command(lab: &Lab, watcher: &Watcher, step: usize) -> Result<Option<usize>> {
    let command: Arc<Mutex<Option<Daemon>>> = Arc::default();
    let watched = watcher.watched()?;
    let (victim, mut number) = (Arc::clone(&command), 0);
    let hit = Arc::new(Mutex::new(false));
    let noted = Arc::clone(&hit);
    // Held until the command's process is known: the first step may come before.
    let mut running = lock(&command);
    watched.observe(Box::new(move |_| {
        number += 1;
        if let (true, Some(command)) = (number == step, lock(&victim).as_mut()) {
            *lock(&noted) = command.ended().is_none();
            if step.is_multiple_of(2) {
                command.kill_9();
            } else {
                command.interrupt();
            }
        }
    }));
    watched.arm(crate::faults::Fault::None);
    let log = lab
        .net
        .folder()
        .join(format!("{}-up.log", watcher.node.name));
    *running = Some(Daemon::spawn(&mut watcher.up_command(), &log)?);
    drop(running);
    let ended = wait::wait_for("the end of the command", super::secs(60), || {
        Ok(lock(&command).as_mut().and_then(Daemon::ended))
    });
    let steps = watched.disarm().changes.len();
    watched.observe(Box::new(|_| {}));
    ended?;
    let hit = *lock(&hit);
    Ok((!hit).then_some(steps))
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
