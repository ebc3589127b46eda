//! Keys and values of a rule set's tables.

/// Which end of a packet an address is looked up for.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Side {
    /// Who sent it.
    Source = 1,
    /// Whom it is for.
    Destination = 2,
}

/// An address of either family as looked up for one side. Also the data of a prefix trie's key, where the tag counts as the first [`Address::TAG_BITS`] bits.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address {
    side: u8,
    family: u8,
    pad: [u8; 2],
    bytes: [u8; 16],
}

impl Address {
    /// Bits of side, family and padding, which come before those of the address in a prefix.
    pub const TAG_BITS: u32 = 32;

    /// An IPv4 address: four bytes, the rest zero.
    #[inline(always)]
    pub const fn v4(side: Side, b: [u8; 4]) -> Self {
        Self {
            side: side as u8,
            family: 4,
            pad: [0; 2],
            bytes: [b[0], b[1], b[2], b[3], 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        }
    }

    /// An IPv6 address, IPv4-mapped ones included: those never equal an IPv4 one.
    #[inline(always)]
    pub const fn v6(side: Side, bytes: [u8; 16]) -> Self {
        Self {
            side: side as u8,
            family: 6,
            pad: [0; 2],
            bytes,
        }
    }

    /// An address as packets carry it: `family` 4 or 6, IPv4 in the first four bytes.
    #[inline(always)]
    pub const fn new(side: Side, family: u8, bytes: [u8; 16]) -> Self {
        Self {
            side: side as u8,
            family,
            pad: [0; 2],
            bytes,
        }
    }
}

/// What an address is to the rules.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Class {
    number: u32,
    flags: u32,
}

impl Class {
    /// A destination that packets may be for (`protocol.md` 5.2).
    pub const LOCAL: u32 = 1;
    /// One of the node's own addresses.
    pub const OWN: u32 = 2;
    /// A source that gets the treatment of shields up.
    pub const JAILED: u32 = 4;

    pub const fn new(number: u32, flags: u32) -> Self {
        Self { number, flags }
    }
    /// From what the kernel's map holds (`ebpf/src/tables.rs` says why words).
    #[inline(always)]
    pub const fn from_words([number, flags]: [u32; 2]) -> Self {
        Self { number, flags }
    }
    #[inline(always)]
    pub const fn number(&self) -> u32 {
        self.number
    }
    #[inline(always)]
    pub const fn has(&self, flag: u32) -> bool {
        self.flags & flag != 0
    }
}

/// Destination class, protocol and port. Data of a prefix trie's key: a block of `2^(16-n)` ports has a prefix of [`PortKey::ANY_PORT_BITS`]` + n` bits.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortKey {
    class: [u8; 4],
    protocol: u8,
    pad: u8,
    port: [u8; 2],
}

impl PortKey {
    /// Prefix bits of class and protocol alone.
    pub const ANY_PORT_BITS: u32 = 48;

    #[inline(always)]
    pub const fn new(class: u32, protocol: u8, port: [u8; 2]) -> Self {
        Self {
            class: class.to_be_bytes(),
            protocol,
            pad: 0,
            port,
        }
    }
}

/// The rules that a destination class, protocol and port select: one of them may admit every source, the others depend on who sends.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Service {
    any: u64,
    number: u64,
}

/// No rule.
pub const NO_RULE: u64 = 0;

impl Service {
    pub const fn new(number: u32, any: u64) -> Self {
        Self {
            any,
            number: number as u64,
        }
    }
    /// From what the kernel's map holds.
    #[inline(always)]
    pub const fn from_words([any, number]: [u64; 2]) -> Self {
        Self { any, number }
    }
    /// Number to look up with the source's class.
    #[inline(always)]
    pub const fn number(&self) -> u32 {
        self.number as u32
    }
    /// Key of the rule that admits every source, or [`NO_RULE`].
    #[inline(always)]
    pub const fn any(&self) -> u64 {
        self.any
    }
}

/// Source class and service: found means accepted, by the rule whose key is the value.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PairKey {
    source: u32,
    service: u32,
}

impl PairKey {
    #[inline(always)]
    pub const fn new(source: u32, service: u32) -> Self {
        Self { source, service }
    }
}

/// Packets and bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Count {
    pub packets: u64,
    pub bytes: u64,
}

/// Rules that have counters of their own; those beyond are enforced without.
pub const MAX_COUNTED_RULES: usize = 65_536;

const _: () = {
    assert!(size_of::<Address>() == 20 && align_of::<Address>() == 1);
    assert!(size_of::<Class>() == 8 && align_of::<Class>() == 4);
    assert!(size_of::<PortKey>() == 8);
    assert!(size_of::<Service>() == 16);
    assert!(size_of::<PairKey>() == 8);
    assert!(size_of::<Count>() == 16);
};
