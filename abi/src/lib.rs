//! The contract between the kernel programs in `ebpf/` and the agent: keys and values of maps, ring buffer records, numbers of outcomes.
//!
//! Addresses and ports are byte arrays in network order. Everything is `repr(C)` with its padding spelled out, so that a key built here and a key built in the kernel have the same bytes.
#![no_std]

pub mod cell;
mod event;
mod flow;
mod outcome;
mod settings;
mod table;
#[cfg(feature = "user")]
#[expect(unsafe_code, reason = "aya::Pod is an unsafe trait")]
mod user;

pub use cell::{Bucket, TABLE_SIZES};
pub use event::{DROP_EVENTS_PER_SECOND, EventKind, EventRecord, PUNTS_PER_SECOND, Tuple};
pub use flow::{
    FLOW_4_WORDS, FLOW_6_WORDS, FLOW_ENTRIES, FLOW_SETS, FLOW_WAYS, FlowKey4, FlowKey6, FlowSet4,
    FlowSet6, flow_hash, flow_set, flow_tail,
};
pub use outcome::{COUNTER_SLOTS, Direction, DropReason, Pass, counter_slot};
pub use settings::{Active, Geometry, RATE_SLOTS, RateWindow, SLOTS, Settings};
pub use table::{
    Address, COUNTER_BLOCKS, COUNTERS_PER_BLOCK, Class, Count, CounterBlock, CounterNumber,
    MAX_COUNTERS, Numbered, ServiceWord, Side,
};

/// Version of this contract. Maps pinned under another one are not adopted.
pub const VERSION: u32 = 5;

/// First bytes of every disco message.
pub const DISCO_MAGIC: [u8; 6] = *b"TS\xf0\x9f\x92\xac";
/// Magic, sender's key and nonce: nothing shorter is disco.
pub const DISCO_MIN_LEN: usize = 6 + 32 + 24;
