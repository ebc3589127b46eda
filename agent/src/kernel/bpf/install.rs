//! A rule set into the kernel: built beside the one in force, read back, switched by one write.

use aya::maps::{MapError, lpm_trie::Key};
use lowroad_abi::{Active, Address, Class, Geometry, SLOTS, Settings, TABLE_SIZES};
use lowroad_core::filter::{Compiled, Layout};

use super::{
    FilterError,
    counters::Numbers,
    object::{Maps, Prefixes, Table},
};

/// `BPF_F_NO_PREALLOC`, which tries must have.
const NO_PREALLOC: u32 = 1;
/// A bucket as it is in a new map.
const EMPTY: lowroad_abi::Bucket = [0; 8];

/// Writes the rule set into the next place and switches to it. Says which counters are its rules'.
pub(super) fn install(maps: &mut Maps, compiled: &Compiled) -> Result<Numbers, FilterError> {
    let before = maps.active()?;
    // Places take turns (`lowroad_abi::SLOTS`).
    let slot = before.next();
    let now = Active::place(slot);
    let mut numbers = Numbers::choose(maps, &compiled.rules)?;
    let layout = Layout::new(&compiled.tables, |rule| numbers.of(rule))
        .map_err(|e| FilterError::kernel("building a rule set", e))?;
    let settings = settings(maps, before, compiled, layout.geometry)?;
    let built = Built::new(&layout).map_err(|e| FilterError::kernel("building a rule set", e))?;
    built.read_back(&layout)?;
    for (size, tables) in (0..).zip(&mut maps.tables) {
        // What was in this place when its turn was before.
        if size != layout.geometry.size {
            tables.free(slot)?;
        }
    }
    // Each of these waits for all running programs: from here on none looks at what was in this place.
    let put = |result: Result<(), MapError>| {
        result.map_err(|e| FilterError::kernel("placing a rule set", e))
    };
    put(maps.tables[layout.geometry.size as usize].set(slot, &built.table))?;
    put(maps.prefixes.set(slot, &built.prefixes, 0))?;
    put(maps.settings.set(slot, settings, 0))?;
    numbers.keep(maps)?;
    maps.set_active(now)?;
    let in_force = maps.settings.get(&slot, 0);
    if maps.active()? != now || in_force.ok() != Some(settings) {
        return Err(FilterError::ReadBack { what: "settings" });
    }
    if let Some(last) = before.last()
        && let Err(error) = free_if_large(maps, last, (slot, &built.prefixes))
    {
        tracing::warn!(%error, "a rule set that is not in force any more takes memory");
    }
    Ok(numbers)
}

/// A table of the largest size (25 MB) does not stay until its place's turn comes. Smaller ones do, which saves a wait.
fn free_if_large(
    maps: &mut Maps,
    slot: u32,
    (in_force, prefixes): (u32, &Prefixes),
) -> Result<(), FilterError> {
    let failed = |e: MapError| FilterError::kernel("freeing the rule set before", e);
    let largest = TABLE_SIZES.len() - 1;
    let size = maps.settings.get(&slot, 0).map_err(failed)?.geometry().size;
    if size as usize != largest {
        return Ok(());
    }
    // Programs that began before the switch may be looking at it: writing what is there already waits for them.
    maps.prefixes.set(in_force, prefixes, 0).map_err(failed)?;
    maps.tables[largest].free(slot)
}

/// Raising the epoch forgets all flows: when shields go up, what was allowed to answer is not any more. After the filter was closed, those before count.
fn settings(
    maps: &Maps,
    before: Active,
    compiled: &Compiled,
    geometry: Geometry,
) -> Result<Settings, FilterError> {
    let of = |slot: u32| {
        let read = maps.settings.get(&slot, 0);
        read.map_err(|e| FilterError::kernel("reading the settings in force", e))
    };
    let all: Vec<Settings> = (0..SLOTS as u32).map(of).collect::<Result<_, _>>()?;
    // Before the first rule set: zeroes.
    let before = all[before.last().unwrap_or(0) as usize];
    let seed = all.iter().map(Settings::flow_seed).find(|seed| *seed != 0);
    let raised = compiled.shields_up && !before.has(Settings::SHIELDS_UP);
    let epoch = before.epoch().wrapping_add(u32::from(raised));
    Ok(Settings::new(
        compiled.shields_up,
        compiled.tables.jail,
        epoch,
        compiled.peer_api_port,
        compiled.disco,
        geometry,
    )
    .with_flow_seed(seed.unwrap_or_else(rand::random)))
}

/// A rule set's maps, not yet in force.
struct Built {
    table: Table,
    prefixes: Prefixes,
}

impl Built {
    fn new(layout: &Layout) -> Result<Self, MapError> {
        let size = TABLE_SIZES[layout.geometry.size as usize];
        let mut out = Self {
            table: Table::create(size, 0)?,
            // A map cannot be empty.
            prefixes: Prefixes::create(layout.prefixes.len().max(1) as u32, NO_PREALLOC)?,
        };
        for (index, bucket) in (0..).zip(&layout.buckets) {
            if *bucket != EMPTY {
                out.table.set(index, bucket, 0)?;
            }
        }
        for (bits, address, class) in &layout.prefixes {
            out.prefixes.insert(&Key::new(*bits, *address), class, 0)?;
        }
        Ok(out)
    }

    /// Compares what the kernel has with what was written. Buckets that were not are the kernel's own zeroes.
    fn read_back(&self, layout: &Layout) -> Result<(), FilterError> {
        let failed = |e: MapError| FilterError::kernel("reading back a rule set", e);
        for (index, bucket) in (0..).zip(&layout.buckets) {
            if *bucket != EMPTY && self.table.get(&index, 0).map_err(failed)? != *bucket {
                return Err(FilterError::ReadBack { what: "table" });
            }
        }
        type Entry = (u32, Address, Class);
        let kernel: Result<Vec<Entry>, MapError> = self
            .prefixes
            .iter()
            .map(|entry| entry.map(|(key, class)| (key.prefix_len(), key.data(), class)))
            .collect();
        let (mut kernel, mut wanted) = (kernel.map_err(failed)?, layout.prefixes.clone());
        kernel.sort_unstable();
        wanted.sort_unstable();
        if kernel == wanted {
            Ok(())
        } else {
            Err(FilterError::ReadBack { what: "prefixes" })
        }
    }
}
