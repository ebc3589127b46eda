//! What the nodes' daemons use, also those that have ended.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{MINUTE, Node};
use crate::{
    interop::member::Member,
    process::{cpu_time, memory},
    tailnet::Client,
};

/// So many at the end are told of by themselves.
pub const MINUTES: u64 = 5;

/// Of one node.
#[derive(Debug, Default)]
pub struct Usage {
    ended: Used,
    /// All that was used until then.
    mark: Option<Used>,
}

#[derive(Debug, Default, Clone, Copy)]
struct Used {
    cpu: Duration,
    daemons: u32,
}

impl Usage {
    /// Notes what the daemon has used, which is about to end.
    pub fn ends(&mut self, member: &Member) -> Result<()> {
        self.ended.cpu += cpu_time(member.pid()?)?;
        self.ended.daemons += 1;
        Ok(())
    }

    pub fn mark(&mut self, member: &Member) -> Result<()> {
        self.mark = Some(self.all(member)?);
        Ok(())
    }

    fn all(&self, member: &Member) -> Result<Used> {
        Ok(Used {
            cpu: self.ended.cpu + cpu_time(member.pid()?)?,
            daemons: self.ended.daemons,
        })
    }
}

/// Each node's memory, its CPU time in the last minutes, and that of all of them since they were started.
pub fn told<'a>(nodes: impl Iterator<Item = &'a Node>, minutes: u64) -> Result<String> {
    // Who turns round and round takes a CPU of its own.
    let busy = MINUTE * u32::try_from(minutes)? / 2;
    let mut told = Vec::new();
    let mut sum = Used::default();
    for Node { member, usage, .. } in nodes {
        let all = usage.all(member)?;
        let mark = usage.mark.context("its minutes were not watched")?;
        let cpu = all.cpu.saturating_sub(mark.cpu);
        ensure!(cpu < busy, "{}: {cpu:.1?} of CPU", member.name());
        let again = match all.daemons - mark.daemons {
            0 => "",
            _ => ", started again",
        };
        let memory = memory(member.pid()?, "VmRSS")?;
        let cpu = cpu.as_secs_f64();
        told.push(format!("{memory} MB, {cpu:.2} CPU-s{again}"));
        sum.cpu += all.cpu;
        sum.daemons += all.daemons;
    }
    Ok(format!(
        "in the last {minutes} minutes {}; in all {:.1} CPU-s of {} nodes, started again {} times",
        told.join("; "),
        sum.cpu.as_secs_f64(),
        told.len(),
        sum.daemons
    ))
}
