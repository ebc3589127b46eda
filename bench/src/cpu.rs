//! CPU time: of the whole machine, and of processes.
//!
//! Softirqs and kernel threads, where kernel WireGuard works, are in no process's time, so what counts is how busy the machine was. What
//! runs at a lower priority than we (a build at `nice 19`) is told apart there by its user time; the rest of a machine has to be quiet.

use std::{collections::BTreeSet, fs, time::Duration};

use anyhow::{Context, Result};
use xtask::process::{Stat, ticks_per_second};

/// CPU time spent since the start of the machine, and of each process that is still there.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sample {
    pub machine: Duration,
    pub processes: Duration,
}

impl Sample {
    /// `groups` are process groups; this process is always counted.
    pub fn take(groups: &BTreeSet<u32>) -> Result<Self> {
        let ticks = ticks_per_second();
        let stat = fs::read_to_string("/proc/stat").context("read /proc/stat")?;
        let line = stat.lines().next().unwrap_or_default();
        let machine = busy_ticks(line, own_nice() == 0)
            .with_context(|| format!("/proc/stat begins with {line:?}"))?;
        let processes = processes(groups).map(|process| process.ticks).sum::<u64>();
        Ok(Self {
            machine: Duration::from_secs_f64(machine as f64 / ticks),
            processes: Duration::from_secs_f64(processes as f64 / ticks),
        })
    }

    pub fn since(&self, before: &Self) -> Self {
        Self {
            machine: self.machine.saturating_sub(before.machine),
            processes: self.processes.saturating_sub(before.processes),
        }
    }
}

/// user nice system idle iowait irq softirq steal …
fn busy_ticks(line: &str, without_nice: bool) -> Option<u64> {
    let mut fields = line.strip_prefix("cpu ")?.split_whitespace();
    let mut next = || fields.next()?.parse::<u64>().ok();
    let (user, nice, system) = (next()?, next()?, next()?);
    let (_idle, _iowait) = (next()?, next()?);
    let (irq, softirq) = (next()?, next()?);
    let nice = if without_nice { 0 } else { nice };
    Some(user + nice + system + irq + softirq)
}

fn processes(groups: &BTreeSet<u32>) -> impl Iterator<Item = Stat> + '_ {
    let own = std::process::id().to_string();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(move |entry| {
        let name = entry.file_name();
        let name = name.to_str()?;
        name.parse::<u32>().ok()?;
        let process = Stat::parse(&fs::read_to_string(entry.path().join("stat")).ok()?)?;
        (name == own || groups.contains(&process.group)).then_some(process)
    })
}

fn own_nice() -> i32 {
    // SAFETY: no pointers; an error reads as -1, which isn't 0 either.
    unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_waiting_and_stolen_time_is_not_busy() {
        let line = "cpu  1000 200 30 99999 88888 4 5 77777 0 0";
        assert_eq!(busy_ticks(line, false), Some(1239));
        assert_eq!(busy_ticks(line, true), Some(1039));
        assert_eq!(busy_ticks("cpu 1 2", true), None);
    }

    #[test]
    fn a_process_is_read_whatever_its_name() {
        let stat = "7 (a) b (c) S 1 42 7 0 -1 4194560 1 0 0 0 250 50 0 0 20 0 1 0 1 1 1";
        let process = Stat::parse(stat).unwrap();
        assert_eq!((process.group, process.ticks), (42, 300));
    }

    #[test]
    fn work_is_seen_in_both_figures() {
        let before = Sample::take(&BTreeSet::new()).unwrap();
        let deadline = std::time::Instant::now() + Duration::from_secs(20);
        loop {
            for n in 0..1_000_000_u64 {
                std::hint::black_box(n.wrapping_mul(n));
            }
            let spent = Sample::take(&BTreeSet::new()).unwrap().since(&before);
            let enough = Duration::from_millis(50);
            if spent.processes >= enough && (spent.machine >= enough || own_nice() != 0) {
                return;
            }
            assert!(std::time::Instant::now() < deadline, "{spent:?}");
        }
    }
}
