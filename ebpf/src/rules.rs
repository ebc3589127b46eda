//! Lookups in a rule set's table: a few for each packet, however many rules there are.

use aya_ebpf::btf_maps::lpm_trie::Key;
use lowroad_abi::{
    Address, Bucket, Class, CounterNumber, Geometry, ServiceWord, Settings, Side, cell,
};

use crate::{
    packet::{Packet, SCTP, TCP, UDP},
    tables::{PREFIXES, TABLE_0, TABLE_1, TABLE_2},
};

/// The rule set in force.
#[derive(Clone, Copy)]
pub struct RuleSet {
    pub slot: u32,
    pub settings: &'static Settings,
}

impl RuleSet {
    /// What an address is: as a host of its own, else by the longest prefix around it, else nothing.
    #[inline(always)]
    fn class(self, side: Side, family: u8, address: [u32; 4]) -> Class {
        let found = if family == 4 {
            self.find(cell::host_key(side, address[0].to_ne_bytes()))
        } else {
            self.find_wide(side, address)
        };
        if found != 0 {
            return Class::from_word(found);
        }
        if self.settings.geometry().prefixes & Geometry::prefixes_of(side, family) != 0
            && let Some(prefixes) = PREFIXES.get(self.slot)
        {
            let key = prefix_key(side, family, address);
            // SAFETY: as long as this struct, which has no alignment to speak of, and any bytes are a valid one.
            let key = unsafe { &*(&raw const key).cast::<Key<Address>>() };
            if let Some([first, then]) = prefixes.get(key) {
                return Class::from_word(words(*first, *then));
            }
        }
        Class::new(0, 0)
    }

    #[inline(always)]
    pub fn source_class(self, packet: &Packet) -> Class {
        self.class(Side::Source, packet.family as u8, packet.source)
    }

    #[inline(always)]
    pub fn destination_class(self, packet: &Packet) -> Class {
        self.class(Side::Destination, packet.family as u8, packet.destination)
    }

    /// Whether the peer that an outbound packet is for is jailed.
    #[inline(always)]
    pub fn is_jailed_destination(self, packet: &Packet) -> bool {
        self.settings.has(Settings::JAIL)
            && self
                .class(Side::Source, packet.family as u8, packet.destination)
                .has(Class::JAILED)
    }

    /// Number of the counter of the rule that admits the packet to this class of destinations, if one does.
    #[inline(always)]
    pub fn admitting(self, packet: &Packet, destination: Class) -> Option<CounterNumber> {
        let port = match packet.protocol {
            TCP | UDP | SCTP => packet.destination_port(),
            _ => 0,
        };
        let service = self.service(destination, packet.protocol as u8, port);
        if service == 0 {
            return None;
        }
        let service = ServiceWord::from_word(service);
        if service.admits_everybody() {
            return Some(service.low());
        }
        let source = self.source_class(packet).number();
        match self.find(cell::pair_key(source, service.low())) {
            0 => None,
            rule => Some(rule as u32),
        }
    }

    /// The service of the block of ports around this one: blocks of a destination class and protocol do not overlap, so the first found is the only one.
    #[inline(always)]
    fn service(self, destination: Class, protocol: u8, port: u16) -> u64 {
        let class = destination.number();
        let blocks = destination.blocks();
        // Those of one port and of all ports are the most common.
        if blocks & 1 << 16 != 0 {
            let found = self.find(cell::port_key(class, protocol, 16, port));
            if found != 0 {
                return found;
            }
        }
        if blocks & 1 != 0 {
            let found = self.find(cell::port_key(class, protocol, 0, 0));
            if found != 0 {
                return found;
            }
        }
        let mut bits = 16 - Class::BLOCK_STEP;
        while bits > 0 {
            if blocks & 1 << bits != 0 {
                let first = port & !(0xffff >> bits);
                let found = self.find(cell::port_key(class, protocol, bits, first));
                if found != 0 {
                    return found;
                }
            }
            bits -= Class::BLOCK_STEP;
        }
        0
    }

    /// Value of a narrow key, or zero.
    #[inline(always)]
    fn find(self, key: u64) -> u64 {
        let geometry = self.settings.geometry();
        let hash = cell::narrow_hash(key, geometry.seed);
        let Some(bucket) = self.bucket(cell::first(hash, geometry.narrow)) else {
            return 0;
        };
        let (found, spilled) = narrow(bucket, key);
        if found != 0 || !spilled {
            return found;
        }
        match self.bucket(cell::second(hash, geometry.narrow)) {
            Some(bucket) => narrow(bucket, key).0,
            None => 0,
        }
    }

    #[inline(always)]
    fn find_wide(self, side: Side, [a, b, c, d]: [u32; 4]) -> u64 {
        let geometry = self.settings.geometry();
        let address = [words(a, b), words(c, d)];
        let hash = cell::wide_hash(address, side, geometry.seed);
        let Some(bucket) = self.bucket(geometry.narrow + cell::first(hash, geometry.wide)) else {
            return 0;
        };
        let (found, spilled) = wide(bucket, address, side);
        if found != 0 || !spilled {
            return found;
        }
        match self.bucket(geometry.narrow + cell::second(hash, geometry.wide)) {
            Some(bucket) => wide(bucket, address, side).0,
            None => 0,
        }
    }

    /// One bucket of the rule set's table.
    #[inline(always)]
    fn bucket(self, index: u32) -> Option<&'static Bucket> {
        let slot = self.slot;
        match self.settings.geometry().size {
            0 => TABLE_0.get_value(slot, &index),
            1 => TABLE_1.get_value(slot, &index),
            _ => TABLE_2.get_value(slot, &index),
        }
    }
}

// Everything in a bucket is read, whatever is found, and by volatile reads: where the place found becomes an offset, the verifier follows each place on its own.

/// A narrow key's value in this bucket, or zero; and whether keys of this bucket are in their other one.
#[inline(always)]
fn narrow(bucket: &Bucket, key: u64) -> (u64, bool) {
    let first = word(bucket, 0);
    let (mut found, mut n) = (0, 0);
    while n < cell::NARROW {
        let (here, value) = (word(bucket, 2 * n), word(bucket, 2 * n + 1));
        if cell::unmarked(here) == key {
            found = value;
        }
        n += 1;
    }
    (found, cell::is_marked(first))
}

/// The same of a wide key.
#[inline(always)]
fn wide(bucket: &Bucket, address: [u64; 2], side: Side) -> (u64, bool) {
    let mark = word(bucket, 2);
    let (mut found, mut n) = (0, 0);
    while n < cell::WIDE {
        let (a, b) = (word(bucket, 4 * n), word(bucket, 4 * n + 1));
        let (other, value) = (
            cell::unmarked(word(bucket, 4 * n + 2)),
            word(bucket, 4 * n + 3),
        );
        if (a ^ address[0]) | (b ^ address[1]) | (other ^ side as u64) == 0 {
            found = value;
        }
        n += 1;
    }
    (found, cell::is_marked(mark))
}

#[inline(always)]
fn word(bucket: &Bucket, n: usize) -> u64 {
    // SAFETY: a reference to one of the array's words.
    unsafe { (&raw const bucket[n]).read_volatile() }
}

/// A key of the trie: length in bits, tag, and address. As whole words, or the verifier would follow more ways.
#[inline(always)]
fn prefix_key(side: Side, family: u8, [a, b, c, d]: [u32; 4]) -> [u64; 3] {
    let tag = u32::from_ne_bytes(Address::tag(side, family));
    [
        words(Address::TAG_BITS + 128, tag),
        words(a, b),
        words(c, d),
    ]
}

const _: () = assert!(size_of::<Key<Address>>() == size_of::<[u64; 3]>());

/// Two words as one, as they are in memory.
#[inline(always)]
pub fn words(first: u32, then: u32) -> u64 {
    if cfg!(target_endian = "little") {
        first as u64 | (then as u64) << 32
    } else {
        (first as u64) << 32 | then as u64
    }
}

#[inline(always)]
pub fn bytes([a, b, c, d]: [u32; 4]) -> [u8; 16] {
    let (a, b, c, d) = (
        a.to_ne_bytes(),
        b.to_ne_bytes(),
        c.to_ne_bytes(),
        d.to_ne_bytes(),
    );
    [
        a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3], c[0], c[1], c[2], c[3], d[0], d[1], d[2],
        d[3],
    ]
}
