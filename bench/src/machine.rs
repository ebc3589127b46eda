//! The machine that figures come from.

use std::{env, fs};

use serde::{Deserialize, Serialize};

use crate::scenario::Place;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Machine {
    pub cpu: String,
    pub cores: usize,
    pub memory_mb: u64,
    pub kernel: String,
    /// Native, or on an emulated CPU, whose figures are good for ratios only.
    pub emulated: bool,
    /// Commit of what was measured.
    pub commit: String,
    /// Runnable processes beside ours at the start, as /proc/loadavg counts: a busy machine's figures are worth less.
    pub load: f64,
}

impl Machine {
    pub fn here() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let cpuinfo = read("/proc/cpuinfo");
        let field = |text: &str, name: &str| {
            let line = text.lines().find(|line| line.starts_with(name))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        };
        let memory = field(&read("/proc/meminfo"), "MemTotal").unwrap_or_default();
        let kilobytes: u64 = memory
            .split(' ')
            .next()
            .and_then(|number| number.parse().ok())
            .unwrap_or_default();
        let load = read("/proc/loadavg");
        Self {
            cpu: field(&cpuinfo, "model name").unwrap_or_else(|| "unknown CPU".to_owned()),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_mb: kilobytes / 1024,
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            emulated: place() == Place::Vm,
            commit: env::var("LOWROAD_BENCH_COMMIT").unwrap_or_else(|_| "unknown".to_owned()),
            load: load
                .split(' ')
                .next()
                .and_then(|number| number.parse().ok())
                .unwrap_or_default(),
        }
    }
}

/// The VM's init says that it is one.
pub fn place() -> Place {
    if env::var_os("LOWROAD_EMULATED").is_some() {
        Place::Vm
    } else {
        Place::Native
    }
}
