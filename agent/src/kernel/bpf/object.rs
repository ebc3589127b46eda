//! The compiled programs, and their maps by name and type.

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
};

use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, ArrayOfMaps, HashMap, LpmTrie, Map, MapData, MapError, PerCpuArray},
    programs::SchedClassifier,
    util::nr_cpus,
};
use lowroad_abi::{
    Active, Address, Bucket, COUNTER_BLOCKS, Class, Count, CounterBlock, Numbered, Settings,
    TABLE_SIZES,
};
use lowroad_core::filter::Direction;

use super::{FilterError, FilterOptions, bpffs::PinDir, delete};

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/lowroad.o"));

/// Maps that outlive the agent, so that what they hold does too.
const PINNED: [&str; 12] = [
    "ACTIVE", "SETTINGS", "TABLE_0", "TABLE_1", "TABLE_2", "PREFIXES", "RULES", "NUMBERS",
    "COUNTERS", "FLOWS", "FLOWS_4", "EVENTS",
];
/// By size.
const TABLES: [&str; TABLE_SIZES.len()] = ["TABLE_0", "TABLE_1", "TABLE_2"];

/// Memory for the counters of rules, of all CPUs together: with more than 16 of them there are fewer counters.
const COUNTER_MEMORY: usize = 16 << 20;

/// `AYA_LOG_LEVEL`: nothing at all (the verifier removes the code), or up to debug.
const NO_TRACES: u8 = 0;
const TRACES: u8 = 4;

/// Loads both programs. Maps that are pinned already are taken as they are.
pub(super) fn load(options: &FilterOptions, pins: Option<&PinDir>) -> Result<Ebpf, FilterError> {
    let level = if options.traces { TRACES } else { NO_TRACES };
    let ticks = ticks_per_second();
    let mut loader = EbpfLoader::new();
    loader.override_global("TICKS_PER_SECOND", &ticks, true);
    loader.map_max_entries("RULES", counter_blocks()?);
    loader.override_global("AGENT_MARK", &options.mark, true);
    loader.override_global("AYA_LOG_LEVEL", &level, true);
    if let Some(pins) = pins {
        pins.create()?;
        for name in PINNED {
            loader.map_pin_path(name, pins.map(name));
        }
    }
    let mut programs = loader.load(OBJECT).map_err(|e| FilterError::Load {
        source: with_causes(&e),
    })?;
    for direction in [Direction::In, Direction::Out] {
        program(&mut programs, direction)?
            .load()
            .map_err(|e| FilterError::Load {
                source: with_causes(&e),
            })?;
    }
    Ok(programs)
}

/// Elements of the map of rules' counters on this machine.
fn counter_blocks() -> Result<u32, FilterError> {
    let cpus = nr_cpus().map_err(|(what, e)| FilterError::kernel(what, e))?;
    let blocks = COUNTER_MEMORY / size_of::<CounterBlock>() / cpus;
    Ok(blocks.clamp(1, COUNTER_BLOCKS) as u32)
}

/// The kernel's `HZ`: its coarse clocks advance once a tick, and say so.
fn ticks_per_second() -> u32 {
    const NANOSECONDS: u64 = 1_000_000_000;
    // The most that kernels have: a limit per second would be stricter, never laxer.
    const FASTEST: u32 = 1000;
    // SAFETY: zeroes are a valid `timespec`.
    let mut tick: libc::timespec = unsafe { std::mem::zeroed() };
    // SAFETY: a struct of ours, alive during the call.
    let result = unsafe { libc::clock_getres(libc::CLOCK_MONOTONIC_COARSE, &raw mut tick) };
    match u64::try_from(tick.tv_nsec) {
        Ok(tick) if result == 0 && tick > 0 => (NANOSECONDS / tick) as u32,
        _ => FASTEST,
    }
}

/// The error with its sources: aya's keep the reason there.
pub(super) fn with_causes(
    error: &dyn std::error::Error,
) -> Box<dyn std::error::Error + Send + Sync> {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        let more = next.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = next.source();
    }
    // What the verifier has to say fills pages, for the log and not for whoever waits for one line.
    let line = match text.split_once('\n') {
        Some((line, _)) => {
            tracing::error!(%text, "the kernel refuses the packet filter");
            format!("{line} (the agent's log has the rest)")
        }
        None => text,
    };
    line.into()
}

/// The program for a direction.
pub(super) fn program(
    programs: &mut Ebpf,
    direction: Direction,
) -> Result<&mut SchedClassifier, FilterError> {
    named(programs, name(direction))
}

pub(super) const fn name(direction: Direction) -> &'static str {
    match direction {
        Direction::In => "overlay_ingress",
        Direction::Out => "overlay_egress",
    }
}

/// The program that does nothing, loaded when first asked for.
pub(super) fn nothing(programs: &mut Ebpf) -> Result<&mut SchedClassifier, FilterError> {
    let program = named(programs, "nothing")?;
    if program.fd().is_err() {
        program.load().map_err(|e| FilterError::Load {
            source: with_causes(&e),
        })?;
    }
    Ok(program)
}

fn named<'a>(
    programs: &'a mut Ebpf,
    name: &'static str,
) -> Result<&'a mut SchedClassifier, FilterError> {
    let missing = || FilterError::kernel(name, "not in the eBPF object");
    let program = programs.program_mut(name).ok_or_else(missing)?;
    program.try_into().map_err(|e| FilterError::kernel(name, e))
}

pub(super) type Table = Array<MapData, Bucket>;
pub(super) type Prefixes = LpmTrie<MapData, Address, Class>;

/// The places for tables of one size.
pub(super) struct Tables {
    maps: ArrayOfMaps<MapData, Table>,
    /// The same, for what aya doesn't do.
    descriptor: OwnedFd,
}

impl Tables {
    fn take(programs: &mut Ebpf, name: &'static str) -> Result<Self, FilterError> {
        let map = take_map(programs, name)?;
        let descriptor = match &map {
            Map::ArrayOfMaps(data) => data.fd().as_fd().try_clone_to_owned(),
            _ => Err(io::Error::other("not an array of maps")),
        };
        Ok(Self {
            descriptor: descriptor.map_err(|e| FilterError::kernel(opening(name), e))?,
            maps: ArrayOfMaps::try_from(map).map_err(|e| FilterError::kernel(opening(name), e))?,
        })
    }

    /// Waits for all running programs.
    pub fn set(&mut self, slot: u32, table: &Table) -> Result<(), MapError> {
        self.maps.set(slot, table, 0)
    }

    /// Frees the table in this place, if there is one: no program may be looking at it.
    pub fn free(&mut self, slot: u32) -> Result<(), FilterError> {
        delete::element(self.descriptor.as_fd(), slot)
            .map_err(|e| FilterError::kernel("freeing a rule set's table", e))
    }
}

/// The maps that the agent reads and writes.
pub(super) struct Maps {
    pub active: Array<MapData, u32>,
    pub settings: Array<MapData, Settings>,
    /// By size.
    pub tables: Vec<Tables>,
    pub prefixes: ArrayOfMaps<MapData, Prefixes>,
    pub rules: PerCpuArray<MapData, CounterBlock>,
    pub numbers: HashMap<MapData, u64, Numbered>,
    pub counters: PerCpuArray<MapData, Count>,
}

impl Maps {
    pub fn take(programs: &mut Ebpf) -> Result<Self, FilterError> {
        Ok(Self {
            active: take(programs, "ACTIVE")?,
            settings: take(programs, "SETTINGS")?,
            tables: TABLES
                .iter()
                .map(|name| Tables::take(programs, name))
                .collect::<Result<_, _>>()?,
            prefixes: take(programs, "PREFIXES")?,
            rules: take(programs, "RULES")?,
            numbers: take(programs, "NUMBERS")?,
            counters: take(programs, "COUNTERS")?,
        })
    }

    /// Which rule set is in force.
    pub fn active(&self) -> Result<Active, FilterError> {
        let word = self
            .active
            .get(&0, 0)
            .map_err(|e| FilterError::kernel("reading which rule set is in force", e))?;
        Ok(Active::from_word(word))
    }

    pub fn set_active(&mut self, active: Active) -> Result<(), FilterError> {
        self.active
            .set(0, active.word(), 0)
            .map_err(|e| FilterError::kernel("switching the rule set", e))
    }

    /// From here on no rule set is in force.
    pub fn close(&mut self) -> Result<(), FilterError> {
        self.set_active(self.active()?.closed())
    }
}

pub(super) fn take<T>(programs: &mut Ebpf, name: &'static str) -> Result<T, FilterError>
where
    T: TryFrom<Map, Error = MapError>,
{
    T::try_from(take_map(programs, name)?).map_err(|e| FilterError::kernel(opening(name), e))
}

fn take_map(programs: &mut Ebpf, name: &'static str) -> Result<Map, FilterError> {
    let missing = || FilterError::kernel(name, "not in the eBPF object");
    programs.take_map(name).ok_or_else(missing)
}

fn opening(name: &str) -> String {
    format!("opening the map {name}")
}
