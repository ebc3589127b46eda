//! The maps. Those of rule sets are arrays of maps, one element per place; `ACTIVE` says which place counts, and is the one write that switches.
//!
//! What every packet looks at are arrays: the kernel inlines their lookups, while one in a hash map or a trie is a call, and costs as much as the rest of a verdict together.

use aya_ebpf::{
    Global,
    btf_maps::{Array, ArrayOfMaps, HashMap, LpmTrie, PerCpuArray, RingBuf},
    macros::btf_map,
};
use lowroad_abi::{
    Address, Bucket, COUNTER_BLOCKS, COUNTER_SLOTS, Count, CounterBlock, EventRecord, FLOW_SETS,
    FlowSet4, FlowSet6, MAX_COUNTERS, Numbered, RATE_SLOTS, RateWindow, SLOTS, Settings,
    TABLE_SIZES,
};

/// `BPF_F_NO_PREALLOC`.
const NO_PREALLOC: usize = 1;

/// Packets with all bits of this mark are the agent's; zero: none are.
#[unsafe(no_mangle)]
pub static AGENT_MARK: Global<u32> = Global::new(0);
/// Ticks of the kernel's clock in a second (`HZ`).
#[unsafe(no_mangle)]
pub static TICKS_PER_SECOND: Global<u32> = Global::new(100);

/// Which place holds the rule set in force (`lowroad_abi::Active`).
#[btf_map]
pub static ACTIVE: Array<u32, 1> = Array::new();
#[btf_map]
pub static SETTINGS: Array<Settings, SLOTS> = Array::new();

// A rule set's hash table is in one of these, by its size: an inner map must have exactly the size of its example for lookups to be inlined.
// Values are words, not structs: before Linux 6.2 a map without BTF (aya creates those put in without) may only stand for one whose BTF has no struct.
type Table<const SIZE: usize> = ArrayOfMaps<Array<Bucket, SIZE>, SLOTS>;
#[btf_map]
pub static TABLE_0: Table<{ TABLE_SIZES[0] as usize }> = ArrayOfMaps::new();
#[btf_map]
pub static TABLE_1: Table<{ TABLE_SIZES[1] as usize }> = ArrayOfMaps::new();
#[btf_map]
pub static TABLE_2: Table<{ TABLE_SIZES[2] as usize }> = ArrayOfMaps::new();
/// The size of inner tries is an example: those put in have the size of their rule set.
#[btf_map]
pub static PREFIXES: ArrayOfMaps<LpmTrie<Address, [u32; 2], 1>, SLOTS> = ArrayOfMaps::new();

/// Counters of rules, by number.
#[btf_map]
pub static RULES: PerCpuArray<CounterBlock, COUNTER_BLOCKS> = PerCpuArray::new();
/// Numbers of the counters of rules, by key: the agent's, who makes them outlive it here.
#[btf_map]
pub static NUMBERS: HashMap<u64, Numbered, MAX_COUNTERS, NO_PREALLOC> = HashMap::new();
/// Counters of outcomes.
#[btf_map]
pub static COUNTERS: PerCpuArray<Count, COUNTER_SLOTS> = PerCpuArray::new();

/// Flows that went out.
#[btf_map]
pub static FLOWS: Array<FlowSet6, FLOW_SETS> = Array::new();
#[btf_map]
pub static FLOWS_4: Array<FlowSet4, FLOW_SETS> = Array::new();

/// 4,096 records.
#[btf_map]
pub static EVENTS: RingBuf<EventRecord, { 256 * 1024 }> = RingBuf::new();
#[btf_map]
pub static RATES: PerCpuArray<RateWindow, RATE_SLOTS> = PerCpuArray::new();
