//! The compiled programs, and their maps by name and type.

use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, ArrayOfMaps, HashMap, LpmTrie, Map, MapData, PerCpuArray, PerCpuHashMap},
    programs::SchedClassifier,
};
use lowroad_abi::{Address, Class, Count, PairKey, PortKey, Service, Settings};
use lowroad_core::filter::Direction;

use super::{FilterError, FilterOptions, bpffs::PinDir};

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/lowroad.o"));

/// Maps that outlive the agent, so that what they hold does too.
const PINNED: [&str; 10] = [
    "ACTIVE", "SETTINGS", "HOSTS", "PREFIXES", "PORTS", "PAIRS", "RULES", "COUNTERS", "FLOWS",
    "EVENTS",
];

/// `AYA_LOG_LEVEL`: nothing at all (the verifier removes the code), or up to debug.
const NO_TRACES: u8 = 0;
const TRACES: u8 = 4;

/// Loads both programs. Maps that are pinned already are taken as they are.
pub(super) fn load(options: &FilterOptions, pins: Option<&PinDir>) -> Result<Ebpf, FilterError> {
    let level = if options.traces { TRACES } else { NO_TRACES };
    let mut loader = EbpfLoader::new();
    loader.override_global("AGENT_MARK", &options.mark, true);
    loader.override_global("AYA_LOG_LEVEL", &level, true);
    if let Some(pins) = pins {
        pins.create()?;
        for name in PINNED {
            loader.map_pin_path(name, pins.map(name));
        }
    }
    let mut programs = loader.load(OBJECT).map_err(|e| FilterError::Load {
        source: with_causes(e),
    })?;
    for direction in [Direction::In, Direction::Out] {
        program(&mut programs, direction)?
            .load()
            .map_err(|e| FilterError::Load {
                source: with_causes(e),
            })?;
    }
    Ok(programs)
}

/// aya's errors keep the reason in their sources.
fn with_causes(error: impl std::error::Error) -> Box<dyn std::error::Error + Send + Sync> {
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
    let name = match direction {
        Direction::In => "overlay_ingress",
        Direction::Out => "overlay_egress",
    };
    let missing = || FilterError::kernel(name, "not in the eBPF object");
    let program = programs.program_mut(name).ok_or_else(missing)?;
    program.try_into().map_err(|e| FilterError::kernel(name, e))
}

pub(super) type Hosts = HashMap<MapData, Address, Class>;
pub(super) type Prefixes = LpmTrie<MapData, Address, Class>;
pub(super) type Ports = LpmTrie<MapData, PortKey, Service>;
pub(super) type Pairs = HashMap<MapData, PairKey, u64>;

/// The maps that the agent reads and writes.
pub(super) struct Maps {
    pub active: Array<MapData, u32>,
    pub settings: Array<MapData, Settings>,
    pub hosts: ArrayOfMaps<MapData, Hosts>,
    pub prefixes: ArrayOfMaps<MapData, Prefixes>,
    pub ports: ArrayOfMaps<MapData, Ports>,
    pub pairs: ArrayOfMaps<MapData, Pairs>,
    pub rules: PerCpuHashMap<MapData, u64, Count>,
    pub counters: PerCpuArray<MapData, Count>,
}

impl Maps {
    pub fn take(programs: &mut Ebpf) -> Result<Self, FilterError> {
        Ok(Self {
            active: take(programs, "ACTIVE")?,
            settings: take(programs, "SETTINGS")?,
            hosts: take(programs, "HOSTS")?,
            prefixes: take(programs, "PREFIXES")?,
            ports: take(programs, "PORTS")?,
            pairs: take(programs, "PAIRS")?,
            rules: take(programs, "RULES")?,
            counters: take(programs, "COUNTERS")?,
        })
    }

    /// Place of the rule set in force, plus one; zero: none.
    pub fn active(&self) -> Result<u32, FilterError> {
        self.active
            .get(&0, 0)
            .map_err(|e| FilterError::kernel("reading which rule set is in force", e))
    }

    pub fn set_active(&mut self, place: u32) -> Result<(), FilterError> {
        self.active
            .set(0, place, 0)
            .map_err(|e| FilterError::kernel("switching the rule set", e))
    }
}

pub(super) fn take<T>(programs: &mut Ebpf, name: &'static str) -> Result<T, FilterError>
where
    T: TryFrom<Map, Error = aya::maps::MapError>,
{
    let missing = || FilterError::kernel(name, "not in the eBPF object");
    T::try_from(programs.take_map(name).ok_or_else(missing)?)
        .map_err(|e| FilterError::kernel(format!("opening the map {name}"), e))
}
