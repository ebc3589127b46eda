//! How soon a change of policy is in force, at a lowroad and at a stock node at once.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};

use super::{CLOSED, LIMIT};
use crate::{
    interop::{member::Member, server::Server},
    lab::ALLOW_ALL,
    tailnet::Client,
    traffic::Pinger,
    wait,
};

const PACE: Duration = Duration::from_millis(10);
/// Nothing more is answered where that has passed since the last answer.
const SILENCE: Duration = Duration::from_millis(700);
const ROUNDS: usize = 5;
/// By how much lowroad may be later, in the median.
const SLACK: Duration = Duration::from_millis(300);
const FAMILIES: [u8; 2] = [4, 6];

/// Pings of both by one node, over either family, as the policy closes and opens them.
pub fn in_force(server: &Server, from: &Member, nodes: [&Member; 2]) -> Result<String> {
    server.set_policy(ALLOW_ALL)?;
    let mut pings = Vec::new();
    for family in FAMILIES {
        for to in nodes {
            pings.push(Pinger::start(from.namespace(), to.ip(family)?, PACE)?);
        }
    }
    for ping in &pings {
        ping.first_answer(LIMIT)?;
    }
    let mut said = Vec::new();
    let mut times: [Vec<Vec<Duration>>; 2] = [false, true].map(|_| vec![Vec::new(); pings.len()]);
    for _ in 0..ROUNDS {
        for (opens, times) in [false, true].into_iter().zip(&mut times) {
            let policy = if opens { ALLOW_ALL } else { CLOSED };
            let changed = change(server, policy, opens, &pings)?;
            for (times, time) in times.iter_mut().zip(changed) {
                times.push(time);
            }
        }
    }
    for (what, times) in ["closed", "opened"].into_iter().zip(times) {
        let mut medians = times.into_iter().map(median);
        for family in FAMILIES {
            let (lowroad, stock) = medians.next().zip(medians.next()).context("no times")?;
            said.push(format!(
                "IPv{family} {what} after {:.2} s by lowroad, {:.2} s by stock",
                lowroad.as_secs_f64(),
                stock.as_secs_f64()
            ));
            ensure!(lowroad <= stock + SLACK, "{}", said.join("; "));
        }
    }
    Ok(format!(
        "{}: medians of {ROUNDS}, Headscale's command included",
        said.join("; ")
    ))
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

/// When the first answers came, or the last ones, since the command began that sets the policy.
fn change(server: &Server, policy: &str, opens: bool, pings: &[Pinger]) -> Result<Vec<Duration>> {
    let start = Instant::now();
    let mut answered: Vec<usize> = pings.iter().map(Pinger::answered).collect();
    let mut changed: Vec<Option<Duration>> = vec![None; pings.len()];
    thread::scope(|scope| {
        let command = scope.spawn(|| server.set_policy(policy));
        let mut ended = None;
        let watched = wait::wait_for("the policy in force", LIMIT, || {
            let now = start.elapsed();
            for ((ping, before), at) in pings.iter().zip(&mut answered).zip(&mut changed) {
                let count = ping.answered();
                if count > *before && !(opens && at.is_some()) {
                    *at = Some(now);
                }
                *before = count;
            }
            if !command.is_finished() {
                return Ok(None);
            }
            let ended = *ended.get_or_insert(now);
            let is_over = match opens {
                true => changed.iter().all(Option::is_some),
                false => {
                    let last = changed
                        .iter()
                        .flatten()
                        .fold(ended, |last, at| last.max(*at));
                    now - last >= SILENCE
                }
            };
            Ok(is_over.then_some(()))
        });
        command.join().map_err(|_| anyhow!("panicked"))??;
        watched
    })?;
    let times = changed.into_iter();
    times
        .map(|at| at.context("a ping without any answer"))
        .collect()
}
