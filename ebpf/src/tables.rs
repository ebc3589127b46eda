//! The maps. Those of rule sets are arrays of maps, one element per place; `ACTIVE` says which place counts, and is the one write that switches.

use aya_ebpf::{
    Global,
    btf_maps::{
        Array, ArrayOfMaps, HashMap, LpmTrie, LruHashMap, PerCpuArray, PerCpuHashMap, RingBuf,
    },
    macros::btf_map,
};
use lowroad_abi::{
    Address, COUNTER_SLOTS, Count, EventRecord, FLOW_ENTRIES, FlowKey, MAX_COUNTED_RULES, PairKey,
    PortKey, RATE_SLOTS, RateWindow, SLOTS, Settings,
};

/// `BPF_F_NO_PREALLOC`.
const NO_PREALLOC: usize = 1;

/// Packets with all bits of this mark are the agent's; zero: none are.
#[unsafe(no_mangle)]
pub static AGENT_MARK: Global<u32> = Global::new(0);

/// Place of the rule set in force, plus one. Zero: none was installed.
#[btf_map]
pub static ACTIVE: Array<u32, 1> = Array::new();
#[btf_map]
pub static SETTINGS: Array<Settings, SLOTS> = Array::new();

// Sizes of inner maps are examples: those put in have the size of their rule set. Their values are words, not structs:
// before Linux 6.2 a map without BTF (aya creates those put in without) may only stand for one whose BTF has no struct.
#[btf_map]
pub static HOSTS: ArrayOfMaps<HashMap<Address, [u32; 2], 1>, SLOTS> = ArrayOfMaps::new();
#[btf_map]
pub static PREFIXES: ArrayOfMaps<LpmTrie<Address, [u32; 2], 1>, SLOTS> = ArrayOfMaps::new();
#[btf_map]
pub static PORTS: ArrayOfMaps<LpmTrie<PortKey, [u64; 2], 1>, SLOTS> = ArrayOfMaps::new();
#[btf_map]
pub static PAIRS: ArrayOfMaps<HashMap<PairKey, u64, 1>, SLOTS> = ArrayOfMaps::new();

/// Counters of rules, by key; the agent makes the entries.
#[btf_map]
pub static RULES: PerCpuHashMap<u64, Count, MAX_COUNTED_RULES, NO_PREALLOC> = PerCpuHashMap::new();
/// Counters of outcomes.
#[btf_map]
pub static COUNTERS: PerCpuArray<Count, COUNTER_SLOTS> = PerCpuArray::new();

/// Flows that went out, with when they began.
#[btf_map]
pub static FLOWS: LruHashMap<FlowKey, u64, FLOW_ENTRIES> = LruHashMap::new();

/// 4,096 records.
#[btf_map]
pub static EVENTS: RingBuf<EventRecord, { 256 * 1024 }> = RingBuf::new();
#[btf_map]
pub static RATES: PerCpuArray<RateWindow, RATE_SLOTS> = PerCpuArray::new();
