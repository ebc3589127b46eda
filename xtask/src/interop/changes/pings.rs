//! Pings between two nodes: both directions, over IPv4 and IPv6.

use std::thread;

use anyhow::{Context, Result, anyhow};

use super::{LIMIT, PACE};
use crate::{
    interop::member::Member,
    tailnet::Client,
    traffic::{Pinger, Report},
    wait,
};

/// So many answers are no coincidence.
const ANSWERS: usize = 25;

/// Each with its way.
pub struct Pings(Vec<(String, Pinger)>);

impl Pings {
    pub fn between(first: &Member, second: &Member) -> Result<Self> {
        let mut pings = Vec::new();
        for (from, to) in [(first, second), (second, first)] {
            for family in [4, 6] {
                let way = format!("{} to {}, IPv{family}", from.name(), to.name());
                let ping = Pinger::start(from.namespace(), to.ip(family)?, PACE)?;
                pings.push((way, ping));
            }
        }
        Ok(Self(pings))
    }

    pub fn first_answers(&self) -> Result<()> {
        for (way, ping) in &self.0 {
            ping.first_answer(LIMIT).with_context(|| way.clone())?;
        }
        Ok(())
    }

    /// Waits until each is answered again.
    pub fn go_on(&self) -> Result<()> {
        let so_far = self.0.iter().map(|(_, ping)| ping.answered());
        let so_far: Vec<usize> = so_far.collect();
        for ((way, ping), so_far) in self.0.iter().zip(so_far) {
            wait::wait_for("answers", LIMIT, || {
                Ok((ping.answered() >= so_far + ANSWERS).then_some(()))
            })
            .with_context(|| way.clone())?;
        }
        Ok(())
    }

    /// All at once: else what comes late to one is waited for while the next goes on.
    pub fn stop(self) -> Result<Vec<(String, Report)>> {
        thread::scope(|scope| {
            let pings = self.0.into_iter();
            let stopping: Vec<_> = pings
                .map(|(way, ping)| (way, scope.spawn(move || ping.stop())))
                .collect();
            let stopped = stopping.into_iter().map(|(way, thread)| {
                let report = thread.join();
                let report = report.map(|report| (way, report));
                report.map_err(|_| anyhow!("panicked"))
            });
            stopped.collect()
        })
    }
}
