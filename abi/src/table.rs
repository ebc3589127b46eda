//! Keys and values of a rule set's tables.

use crate::cell::VALID;

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

    /// An address of either `family`, 4 or 6; IPv4 in the first four bytes.
    pub const fn new(side: Side, family: u8, bytes: [u8; 16]) -> Self {
        Self {
            side: side as u8,
            family,
            pad: [0; 2],
            bytes,
        }
    }
    /// What its memory begins with; then follow 16 bytes, of which IPv4 uses the first four.
    #[inline(always)]
    pub const fn tag(side: Side, family: u8) -> [u8; 4] {
        [side as u8, family, 0, 0]
    }
    pub const fn side(&self) -> Side {
        if self.side == Side::Source as u8 {
            Side::Source
        } else {
            Side::Destination
        }
    }
    /// 4 or 6.
    pub const fn family(&self) -> u8 {
        self.family
    }
    pub const fn bytes(&self) -> [u8; 16] {
        self.bytes
    }
}

/// What an address is to the rules; for a destination also which sizes of port blocks to look for.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Class {
    /// Number in the low half, flags above it, then a bit for each number of prefix bits of a block.
    word: u64,
}

impl Class {
    /// A destination that packets may be for (`protocol.md` 5.2).
    pub const LOCAL: u32 = 1;
    /// One of the node's own addresses.
    pub const OWN: u32 = 2;
    /// A source that gets the treatment of shields up.
    pub const JAILED: u32 = 4;

    /// Blocks in the kernel's tables have a multiple of this many prefix bits: few sizes to look for.
    pub const BLOCK_STEP: u32 = 4;

    const FLAGS_AT: u32 = 32;
    const BLOCKS_AT: u32 = 40;
    const BLOCKS: u64 = (1 << 17) - 1;

    pub const fn new(number: u32, flags: u32) -> Self {
        Self {
            word: number as u64 | (flags as u64) << Self::FLAGS_AT,
        }
    }
    /// With bit `n` of `blocks` for services of `2^(16-n)` ports.
    pub const fn with_blocks(self, blocks: u32) -> Self {
        Self {
            word: self.word | (blocks as u64 & Self::BLOCKS) << Self::BLOCKS_AT,
        }
    }
    /// From a value of the kernel's tables.
    #[inline(always)]
    pub const fn from_word(word: u64) -> Self {
        Self { word }
    }
    #[inline(always)]
    pub const fn word(&self) -> u64 {
        self.word
    }
    #[inline(always)]
    pub const fn number(&self) -> u32 {
        self.word as u32
    }
    #[inline(always)]
    pub const fn has(&self, flag: u32) -> bool {
        self.word & (flag as u64) << Self::FLAGS_AT != 0
    }
    #[inline(always)]
    pub const fn blocks(&self) -> u32 {
        (self.word >> Self::BLOCKS_AT & Self::BLOCKS) as u32
    }
}

/// Number of a rule's counter; zero: it has none.
pub type CounterNumber = u32;

/// What a service of the kernel's table is: a number to look up with the source's class, or the rule that admits everybody.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServiceWord(u64);

impl ServiceWord {
    const EVERYBODY: u64 = 1 << 32;

    pub const fn everybody(rule: CounterNumber) -> Self {
        Self(rule as u64 | Self::EVERYBODY | VALID)
    }
    pub const fn number(number: u32) -> Self {
        Self(number as u64 | VALID)
    }
    #[inline(always)]
    pub const fn from_word(word: u64) -> Self {
        Self(word)
    }
    #[inline(always)]
    pub const fn word(&self) -> u64 {
        self.0
    }
    #[inline(always)]
    pub const fn admits_everybody(&self) -> bool {
        self.0 & Self::EVERYBODY != 0
    }
    /// Of the counter if it admits everybody, else of the service.
    #[inline(always)]
    pub const fn low(&self) -> u32 {
        self.0 as u32
    }
}

/// Packets and bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Count {
    pub packets: u64,
    pub bytes: u64,
}

/// Which counter is a rule's, and what it had counted for another when this rule got it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Numbered {
    pub number: u64,
    pub before: Count,
}

/// Numbers of counters that there are at most, zero included; rules beyond are enforced without.
pub const MAX_COUNTERS: usize = 65_536;
/// Counters in one element of the map of rules' counters: few large elements are made and read faster.
pub const COUNTERS_PER_BLOCK: usize = 32;
/// Elements of that map.
pub const COUNTER_BLOCKS: usize = MAX_COUNTERS / COUNTERS_PER_BLOCK;
/// Counters whose number has the same upper bits.
pub type CounterBlock = [Count; COUNTERS_PER_BLOCK];

const _: () = {
    assert!(size_of::<Address>() == 20 && align_of::<Address>() == 1);
    assert!(size_of::<Class>() == 8);
    assert!(size_of::<Count>() == 16);
    assert!(size_of::<Numbered>() == 24);
};
