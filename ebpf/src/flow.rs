//! UDP and SCTP flows: what went out lets answers in.
//!
//! As with the rules' tables, lookups in arrays are inlined and everything in a set is looked at, whatever is found. The kernel's own LRU map would cost as much as all the
//! rest of a verdict.

use lowroad_abi::{
    FLOW_4_WORDS, FLOW_6_WORDS, FLOW_WAYS, FlowKey4, FlowKey6, Settings, flow_hash, flow_set,
    flow_tail,
};

use crate::{
    packet::{Packet, SCTP, UDP},
    rules::words,
    tables::{FLOWS, FLOWS_4},
};

#[inline(always)]
pub fn has_flows(packet: &Packet) -> bool {
    packet.protocol == UDP || packet.protocol == SCTP
}

/// Whether an inbound packet answers one of ours. Looking keeps the flow from being forgotten.
#[inline(always)]
pub fn answers(packet: &Packet, settings: &Settings, jailed: bool) -> bool {
    let ends = (packet.source, packet.destination);
    let tail = tail(packet, packet.head, settings, jailed);
    if packet.family == 4 {
        match Set4::of(&key4(ends, tail), settings) {
            Some(set) => set.has(&key4(ends, tail)),
            None => false,
        }
    } else {
        match Set6::of(&key6(ends, tail), settings) {
            Some(set) => set.has(&key6(ends, tail)),
            None => false,
        }
    }
}

/// Remembers an outbound packet's flow.
#[inline(always)]
pub fn record(packet: &Packet, settings: &Settings, jailed: bool) {
    let ends = (packet.destination, packet.source);
    let tail = tail(packet, packet.head.rotate_left(16), settings, jailed);
    if packet.family == 4 {
        let key = key4(ends, tail);
        if let Some(set) = Set4::of(&key, settings)
            && !set.has(&key)
        {
            set.add(&key);
        }
    } else {
        let key = key6(ends, tail);
        if let Some(set) = Set6::of(&key, settings)
            && !set.has(&key)
        {
            set.add(&key);
        }
    }
}

/// Addresses of the remote and of this node.
type Ends = ([u32; 4], [u32; 4]);

#[inline(always)]
fn tail(packet: &Packet, ports: u32, settings: &Settings, jailed: bool) -> u64 {
    flow_tail(ports, packet.protocol as u8, jailed, settings.epoch())
}

#[inline(always)]
fn key4((remote, local): Ends, tail: u64) -> FlowKey4 {
    [words(remote[0], local[0]), tail]
}

#[inline(always)]
fn key6((r, l): Ends, tail: u64) -> FlowKey6 {
    [
        words(r[0], r[1]),
        words(r[2], r[3]),
        words(l[0], l[1]),
        words(l[2], l[3]),
        tail,
    ]
}

/// The set that a key belongs to.
struct Set<const KEY: usize, const ENTRY: usize> {
    /// Of `FLOW_WAYS` entries of `ENTRY` words: a key of `KEY` words, its hash, and whether it was used.
    words: *mut u64,
    hash: u64,
}

type Set4 = Set<2, FLOW_4_WORDS>;
type Set6 = Set<5, FLOW_6_WORDS>;

impl Set4 {
    #[inline(always)]
    fn of(key: &FlowKey4, settings: &Settings) -> Option<Self> {
        let hash = flow_hash(key, settings.flow_seed());
        let words = FLOWS_4.get_ptr_mut(flow_set(hash))?.cast();
        Some(Self { words, hash })
    }
}

impl Set6 {
    #[inline(always)]
    fn of(key: &FlowKey6, settings: &Settings) -> Option<Self> {
        let hash = flow_hash(key, settings.flow_seed());
        let words = FLOWS.get_ptr_mut(flow_set(hash))?.cast();
        Some(Self { words, hash })
    }
}

impl<const KEY: usize, const ENTRY: usize> Set<KEY, ENTRY> {
    const HASH: usize = KEY;
    const USED: usize = KEY + 1;

    /// Whether the flow is there; marks it as used.
    #[inline(always)]
    fn has(&self, key: &[u64; KEY]) -> bool {
        let (mut found, mut way) = (FLOW_WAYS, 0);
        while way < FLOW_WAYS {
            let mut different = self.read(way, Self::HASH) ^ self.hash;
            let mut n = 0;
            while n < KEY {
                different |= self.read(way, n) ^ key[n];
                n += 1;
            }
            if different == 0 {
                found = way;
            }
            way += 1;
        }
        if found == FLOW_WAYS {
            return false;
        }
        // Mostly it is, and CPUs need not take the cache line from each other.
        if self.read(found, Self::USED) == 0 {
            self.mark(found);
        }
        true
    }

    /// Puts the flow into a place that is empty or was not used lately. The hash is written last: until then the entry is none.
    #[inline(always)]
    fn add(&self, key: &[u64; KEY]) {
        let (mut chosen, mut way) = (0, 0);
        while way < FLOW_WAYS {
            if self.read(way, Self::USED) == 0 {
                chosen = way;
            }
            way += 1;
        }
        self.write(chosen, Self::HASH, 0);
        let mut n = 0;
        while n < KEY {
            self.write(chosen, n, key[n]);
            n += 1;
        }
        self.write(chosen, Self::HASH, self.hash);
        self.mark(chosen);
    }

    /// Marks an entry as used; once all are, only this one stays so (the last used is never the next to go).
    #[inline(always)]
    fn mark(&self, used: usize) {
        self.write(used, Self::USED, 1);
        let (mut unused, mut way) = (0, 0);
        while way < FLOW_WAYS {
            unused |= self.read(way, Self::USED) ^ 1;
            way += 1;
        }
        if unused == 0 {
            way = 0;
            while way < FLOW_WAYS {
                self.write(way, Self::USED, 0);
                way += 1;
            }
            self.write(used, Self::USED, 1);
        }
    }

    #[inline(always)]
    fn read(&self, way: usize, word: usize) -> u64 {
        // SAFETY: inside the set; volatile because other CPUs write it, too.
        unsafe { self.words.add(way * ENTRY + word).read_volatile() }
    }

    #[inline(always)]
    fn write(&self, way: usize, word: usize, value: u64) {
        // SAFETY: as in `read`.
        unsafe { self.words.add(way * ENTRY + word).write_volatile(value) };
    }
}
