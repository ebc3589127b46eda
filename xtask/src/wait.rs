//! Waiting on conditions, never for a fixed time.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

use crate::signals;

const POLL: Duration = Duration::from_millis(10);

/// Polls `condition` until it yields a value; returns it and the time that took. Errors count as "not yet", and the
/// last one is named when the deadline passes.
pub fn wait_for<T>(
    what: &str,
    limit: Duration,
    mut condition: impl FnMut() -> Result<Option<T>>,
) -> Result<(T, Duration)> {
    let start = Instant::now();
    loop {
        let attempt = condition();
        signals::check()?;
        let last = match attempt {
            Ok(Some(value)) => return Ok((value, start.elapsed())),
            Ok(None) => String::new(),
            Err(error) => format!(" (last: {error:#})"),
        };
        if start.elapsed() > limit {
            bail!("{what}: not within {:.1} s{last}", limit.as_secs_f32());
        }
        thread::sleep(POLL);
    }
}

/// Lets time pass that is itself the subject (a watch over something that must hold), and still ends on a signal.
pub fn pass(time: Duration) -> Result<()> {
    let end = Instant::now() + time;
    while Instant::now() < end {
        signals::check()?;
        thread::sleep(POLL.min(end - Instant::now().min(end)));
    }
    signals::check()
}

/// Until Ctrl-C or SIGTERM.
pub fn for_signal() {
    while !signals::interrupted() {
        thread::sleep(POLL);
    }
}
