//! What the nodes' daemons use, also those that have ended.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{MINUTE, Node};
use crate::{
    interop::member::{Kind, Member},
    lab::secs,
    process::{cpu_time, memory},
    tailnet::Client,
};

/// So many at the end are told of by themselves.
pub const MINUTES: u64 = 5;
/// CPU time that any node may use beside twice what stock's do: of another place, or of what happened to it.
const BESIDE: Duration = secs(5);

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

    /// Of all of it, what was used since the mark.
    fn since_mark(&self, all: Used) -> Result<Used> {
        let mark = self.mark.context("its minutes were not watched")?;
        Ok(Used {
            cpu: all.cpu.saturating_sub(mark.cpu),
            daemons: all.daemons - mark.daemons,
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
        let Used { cpu, daemons } = usage.since_mark(all)?;
        ensure!(cpu < busy, "{}: {cpu:.1?} of CPU", member.name());
        let again = match daemons {
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

/// No lowroad node uses much more than stock's in the last minutes. A start costs what it costs: who was started again there is left out.
pub fn compared(nodes: &[Node]) -> Result<String> {
    let (mut lowroad, mut stock) = (Vec::new(), Vec::new());
    for Node { member, usage, .. } in nodes {
        let used = usage.since_mark(usage.all(member)?)?;
        if used.daemons > 0 {
            continue;
        }
        match member.kind() {
            Kind::Lowroad => lowroad.push((member.name(), used.cpu)),
            Kind::Stock => stock.push(used.cpu),
        }
    }
    within_bounds(&lowroad, stock)
}

fn within_bounds(lowroad: &[(&str, Duration)], mut stock: Vec<Duration>) -> Result<String> {
    stock.sort_unstable();
    let median = stock.get(stock.len() / 2).copied();
    let median = median.context("every stock node was started again")?;
    let most = lowroad.iter().max_by_key(|(_, cpu)| *cpu);
    let (name, most) = *most.context("every lowroad node was started again")?;
    ensure!(
        most <= median * 2 + BESIDE,
        "{name} used {most:.1?}, and stock's median is {median:.1?}"
    );
    Ok(format!(
        "at most {:.2} CPU-s of {} lowroad nodes, median {:.2} CPU-s of {} stock ones",
        most.as_secs_f64(),
        lowroad.len(),
        median.as_secs_f64(),
        stock.len()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_spins_at_less_than_half_a_core_is_found_by_what_stock_nodes_use() {
        let stock = || [1, 2, 4].map(secs).to_vec();
        let bounds = |most| within_bounds(&[("a", secs(1)), ("b", most)], stock());
        assert!(bounds(secs(9)).is_ok());
        let error = bounds(secs(120)).expect_err("40 % of five minutes");
        assert!(error.to_string().starts_with("b used 120.0s"), "{error}");
        assert!(within_bounds(&[], stock()).is_err());
        assert!(within_bounds(&[("a", secs(1))], Vec::new()).is_err());
    }
}
