//! A rule set into the kernel: built beside the one in force, read back, switched by one write.

use std::collections::HashSet;

use aya::{
    maps::{MapError, PerCpuValues, lpm_trie::Key},
    util::nr_cpus,
};
use lowroad_abi::{Count, MAX_COUNTED_RULES, SLOTS, Settings};
use lowroad_core::filter::{Compiled, Tables};

use super::{
    FilterError,
    object::{Hosts, Maps, Pairs, Ports, Prefixes},
};

/// `BPF_F_NO_PREALLOC`, which tries must have.
const NO_PREALLOC: u32 = 1;
/// `BPF_NOEXIST`: a counter that is there goes on.
const NOEXIST: u64 = 1;

/// Writes the rule set into the next place and switches to it.
pub(super) fn install(maps: &mut Maps, compiled: &Compiled) -> Result<(), FilterError> {
    let before = maps.active()?;
    // Places take turns (`lowroad_abi::SLOTS`): from zero, none, to the first.
    let slot = before % SLOTS as u32;
    let settings = settings(maps, before, compiled)?;
    let built =
        Built::new(&compiled.tables).map_err(|e| FilterError::kernel("building a rule set", e))?;
    built.read_back(&compiled.tables)?;
    // Each of these waits for all running programs: from here on none looks at what was in this place.
    let put = |result: Result<(), MapError>| {
        result.map_err(|e| FilterError::kernel("placing a rule set", e))
    };
    put(maps.hosts.set(slot, &built.hosts, 0))?;
    put(maps.prefixes.set(slot, &built.prefixes, 0))?;
    put(maps.ports.set(slot, &built.ports, 0))?;
    put(maps.pairs.set(slot, &built.pairs, 0))?;
    put(maps.settings.set(slot, settings, 0))?;
    add_counters(maps, compiled)?;
    maps.set_active(slot + 1)?;
    let in_force = maps.settings.get(&slot, 0);
    if maps.active()? != slot + 1 || in_force.ok() != Some(settings) {
        return Err(FilterError::ReadBack { what: "settings" });
    }
    Ok(())
}

/// Raising the epoch forgets all flows: when shields go up, what was allowed to answer is not any more. After the filter was closed, the last epoch counts.
fn settings(maps: &Maps, active: u32, compiled: &Compiled) -> Result<Settings, FilterError> {
    let of = |slot: u32| {
        let read = maps.settings.get(&slot, 0);
        read.map_err(|e| FilterError::kernel("reading the settings in force", e))
    };
    let before = match active.checked_sub(1) {
        Some(slot) => of(slot)?,
        None => {
            let all: Result<Vec<_>, _> = (0..SLOTS as u32).map(of).collect();
            let latest = all?.into_iter().max_by_key(Settings::epoch);
            latest.expect("there is more than one slot")
        }
    };
    let raised = compiled.shields_up && !before.has(Settings::SHIELDS_UP);
    let epoch = before.epoch().wrapping_add(u32::from(raised));
    Ok(Settings::new(
        compiled.shields_up,
        compiled.tables.jail,
        epoch,
        compiled.peer_api_port,
        compiled.disco,
    ))
}

/// A rule set's maps, not yet in force.
struct Built {
    hosts: Hosts,
    prefixes: Prefixes,
    ports: Ports,
    pairs: Pairs,
}

impl Built {
    fn new(tables: &Tables) -> Result<Self, MapError> {
        let mut out = Self {
            hosts: Hosts::create(size(tables.hosts.len()), 0)?,
            prefixes: Prefixes::create(size(tables.prefixes.len()), NO_PREALLOC)?,
            ports: Ports::create(size(tables.ports.len()), NO_PREALLOC)?,
            pairs: Pairs::create(size(tables.pairs.len()), 0)?,
        };
        for (address, class) in &tables.hosts {
            out.hosts.insert(address, class, 0)?;
        }
        for (bits, address, class) in &tables.prefixes {
            out.prefixes.insert(&Key::new(*bits, *address), class, 0)?;
        }
        for (bits, key, service) in &tables.ports {
            out.ports.insert(&Key::new(*bits, *key), service, 0)?;
        }
        for (pair, rule) in &tables.pairs {
            out.pairs.insert(pair, rule, 0)?;
        }
        Ok(out)
    }

    fn read_back(&self, tables: &Tables) -> Result<(), FilterError> {
        same("hosts", self.hosts.iter(), tables.hosts.iter().copied())?;
        let prefixes = tables
            .prefixes
            .iter()
            .map(|(bits, address, class)| ((*bits, *address), *class));
        same("prefixes", self.prefixes.iter().map(unpack), prefixes)?;
        let ports = tables
            .ports
            .iter()
            .map(|(bits, key, service)| ((*bits, *key), *service));
        same("ports", self.ports.iter().map(unpack), ports)?;
        same("pairs", self.pairs.iter(), tables.pairs.iter().copied())
    }
}

/// A map cannot be empty.
fn size(entries: usize) -> u32 {
    entries.max(1) as u32
}

fn unpack<K: aya::Pod, V>(entry: Result<(Key<K>, V), MapError>) -> Result<((u32, K), V), MapError> {
    entry.map(|(key, value)| ((key.prefix_len(), key.data()), value))
}

/// Compares what the kernel has with what was written, in any order.
fn same<T: Ord>(
    what: &'static str,
    kernel: impl Iterator<Item = Result<T, MapError>>,
    wanted: impl Iterator<Item = T>,
) -> Result<(), FilterError> {
    let kernel: Result<Vec<T>, MapError> = kernel.collect();
    let mut kernel = kernel.map_err(|e| FilterError::kernel(format!("reading back {what}"), e))?;
    let mut wanted: Vec<T> = wanted.collect();
    kernel.sort_unstable();
    wanted.sort_unstable();
    if kernel == wanted {
        Ok(())
    } else {
        Err(FilterError::ReadBack { what })
    }
}

/// Makes counters for rules that have none.
fn add_counters(maps: &mut Maps, compiled: &Compiled) -> Result<(), FilterError> {
    let failed = |e: MapError| FilterError::kernel("making a rule's counter", e);
    let cpus = nr_cpus().map_err(|(what, e)| FilterError::kernel(what, e))?;
    let zero = || PerCpuValues::try_from(vec![Count::default(); cpus]);
    for rule in compiled.rules.iter().take(MAX_COUNTED_RULES) {
        let values = zero().map_err(|e| FilterError::kernel("making a rule's counter", e))?;
        match maps.rules.insert(rule.key, values, NOEXIST) {
            Err(MapError::SyscallError(e)) if e.io_error.raw_os_error() == Some(libc::EEXIST) => {}
            // Full of the counters of the rule set before: this one is enforced uncounted until the next installation.
            Err(MapError::SyscallError(e)) if e.io_error.raw_os_error() == Some(libc::E2BIG) => {
                tracing::warn!(rule = %rule.id, "no room for the counters of this rule and those after it");
                return Ok(());
            }
            other => other.map_err(failed)?,
        }
    }
    Ok(())
}

/// Removes the counters of rules that are not in force any more.
pub(super) fn prune_counters(maps: &mut Maps, compiled: &Compiled) -> Result<(), FilterError> {
    let failed = |e: MapError| FilterError::kernel("removing a rule's counter", e);
    let keep: HashSet<u64> = compiled.rules.iter().map(|r| r.key).collect();
    let keys: Result<Vec<u64>, MapError> = maps.rules.keys().collect();
    for key in keys.map_err(failed)? {
        if !keep.contains(&key) {
            maps.rules.remove(&key).map_err(failed)?;
        }
    }
    Ok(())
}
