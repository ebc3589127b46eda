//! What changes in a namespace while one looks: links, addresses, routes and rules, as `ip monitor` tells of them.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};

use super::Namespace;
use crate::{process::Daemon, shell::find_program, wait};

const LIMIT: Duration = Duration::from_secs(30);
/// Of routing tables that nobody has.
const MARKS: [u32; 2] = [7_100, 7_101];

/// Ends with this value.
#[derive(Debug)]
pub struct Events {
    namespace: Namespace,
    log: PathBuf,
    _monitor: Daemon,
}

impl Events {
    /// Begins to look; what is seen is kept in the file `log`.
    pub fn watch(namespace: &Namespace, log: &Path) -> Result<Self> {
        let _ = fs::remove_file(log);
        let program = find_program("ip").context("there is no ip")?;
        let mut command = namespace.command(program);
        command.args(["-o", "monitor", "link", "address", "route", "rule"]);
        let events = Self {
            namespace: namespace.clone(),
            log: log.to_owned(),
            _monitor: Daemon::spawn(&mut command, log)?,
        };
        events.mark(MARKS[0])?;
        Ok(events)
    }

    /// Everything since the start. It is complete: a change of our own comes out behind it.
    pub fn seen(&self) -> Result<Vec<String>> {
        self.mark(MARKS[1])?;
        let log = fs::read_to_string(&self.log)?;
        let ours = |line: &&str| MARKS.iter().any(|mark| line.contains(&mark.to_string()));
        Ok(log
            .lines()
            .filter(|line| !line.trim().is_empty() && !ours(line))
            .map(str::to_owned)
            .collect())
    }

    /// Changes something until the monitor tells of it.
    fn mark(&self, table: u32) -> Result<()> {
        let told = format!("table {table}");
        wait::wait_for("the monitor's word", LIMIT, || {
            let route = format!("route add blackhole 192.0.2.0/24 {told}");
            self.namespace.ip(&route)?;
            self.namespace.ip(&route.replace("add", "del"))?;
            let log = fs::read_to_string(&self.log)?;
            Ok(log.contains(&told).then_some(()))
        })
        .map(drop)
    }
}
