//! A `down` that fails half way says so, goes on as far as it can, and the next one does the rest; after one that is killed, cleaning up does.

use std::{collections::BTreeSet, sync::Arc, time::Instant};

use anyhow::{Context, Result, ensure};

use super::{
    Broom, Hits, Lab, SETTLE, Spoilt, Steps, Watcher, host, kind, one_clear_line, some, until_hit,
    watcher::for_steps,
};
use crate::{faults::Fault, tailnet::Client as _};

pub fn interrupt(lab: &Lab, key: &str, steps: &Steps) -> Result<()> {
    let steps = &steps.down;
    let start = Instant::now();
    let [to_refuse, to_kill] = [Spoilt::Refused, Spoilt::Killed].map(|how| chosen(lab, steps, how));
    let tried: BTreeSet<usize> = to_refuse.iter().chain(&to_kill).copied().collect();
    let tried: Vec<usize> = tried.into_iter().collect();
    let results = for_steps(lab, key, &tried, |watcher, share| {
        watcher.end();
        let mut results = Vec::new();
        for (turn, &step) in share.iter().enumerate() {
            if to_refuse.contains(&step) {
                watcher.start()?;
                results.push(until_hit(lab, step, |step| refuse(lab, watcher, step))?);
            }
            if to_kill.contains(&step) {
                for broom in Broom::of(lab, turn) {
                    let spoil = |step| kill(lab, watcher, step, *broom);
                    results.push(until_hit(lab, step, spoil)?);
                }
            }
        }
        Ok(results)
    })?;
    let hits = |how: Spoilt| {
        let those = results.iter().filter(|one| one.result.how == how);
        Hits::of(those, |tried| tried.hit)
    };
    let (refused, killed) = (hits(Spoilt::Refused), hits(Spoilt::Killed));
    let failed = results.iter().filter(|one| one.result.failed).count();
    lab.note(&format!(
        "`down` refused {} and killed {} times at {} of {} steps in {:.0} s: it failed {failed} times, and the next command removed the rest",
        refused.happened(),
        killed.happened(),
        tried.len(),
        steps.len(),
        start.elapsed().as_secs_f32(),
    ));
    for (hits, what) in [(refused, "`down` refused"), (killed, "`down` killed")] {
        hits.tell(lab, what, steps);
        hits.judge(what)?;
    }
    ensure!(failed > 0, "no refusal made `down` fail");
    Ok(())
}

/// The first and the last of each run of a kind: it removes many things of a kind. Where each takes long, [`some`].
fn chosen(lab: &Lab, steps: &[String], how: Spoilt) -> Vec<usize> {
    if lab.emulated && !lab.long {
        return some(steps, how);
    }
    let other = |at: Option<&String>, step: &String| at.is_none_or(|at| kind(at) != kind(step));
    let ends = |(at, step): &(usize, &String)| {
        other(at.checked_sub(1).and_then(|before| steps.get(before)), step)
            || other(steps.get(at + 1), step)
    };
    steps
        .iter()
        .enumerate()
        .filter(ends)
        .map(|(at, _)| at + 1)
        .collect()
}

struct Tried {
    how: Spoilt,
    hit: bool,
    /// `down` said that it could not.
    failed: bool,
}

/// What came of it, and at which step the fault could have happened if it did not.
fn refuse(lab: &Lab, watcher: &Watcher, step: usize) -> Result<(Tried, Option<usize>)> {
    watcher.up()?.ok("up")?;
    let fault = Fault::Refused(step);
    let (finished, account) = watcher.faulty_down(fault)?;
    let name = account.changes.last().cloned().unwrap_or_default();
    let what = format!("`down` refused at step {step} ({name})");
    host::is_guarded(&watcher.node.namespace).context(what.clone())?;
    let failed = !finished.status.success();
    if failed {
        ensure!(
            account.hit,
            "{what} failed without a fault: {}",
            finished.stderr
        );
        one_clear_line(&finished).context(what.clone())?;
        watcher.node.cli(&["down"]).context(what.clone())?;
    }
    host::is_as_before(&watcher.node, &watcher.before, lab.emulated, SETTLE).context(what)?;
    let tried = Tried {
        how: Spoilt::Refused,
        hit: account.hit,
        failed,
    };
    Ok((tried, account.instead_of(fault)))
}

/// As [`refuse`].
fn kill(
    lab: &Lab,
    watcher: &mut Watcher,
    step: usize,
    broom: Broom,
) -> Result<(Tried, Option<usize>)> {
    let before = Arc::clone(&watcher.before);
    watcher.start()?;
    watcher.up()?.ok("up")?;
    let fault = Fault::Killed(step);
    let (_, account) = watcher.faulty_down(fault)?;
    watcher.end();
    let what = format!("an agent killed at step {step} of `down`");
    host::is_guarded(&watcher.node.namespace).context(what.clone())?;
    broom.sweep(lab, watcher, &before).context(what)?;
    let tried = Tried {
        how: Spoilt::Killed,
        hit: account.hit,
        failed: false,
    };
    Ok((tried, account.instead_of(fault)))
}
