//! The hash table of a rule set: buckets of 64 bytes in an array map.
//!
//! The kernel inlines lookups in arrays; each lookup in one of its own hash maps is a call, which costs more than all the rest of a verdict. A key has two buckets that it
//! may be in, and is in the second only if the first is marked as spilled. *Narrow* entries (a key and a value) stand four in a bucket, *wide* ones (an IPv6 address, its side, a
//! value) two; both kinds have buckets of their own. Values are never zero.

use crate::Side;

/// One element of the array map.
pub type Bucket = [u64; 8];

/// Numbers of buckets that the array of a rule set can have: the kernel inlines lookups only where it knows the size.
/// The example of each is allocated with the programs, so the largest is no larger than 100,000 rules in both families need.
pub const TABLE_SIZES: [u32; 3] = [1 << 9, 1 << 14, 3 << 17];

/// Narrow entries in a bucket.
pub const NARROW: usize = 4;
/// Wide entries in a bucket.
pub const WIDE: usize = 2;

/// In every value, so that none is zero.
pub const VALID: u64 = 1 << 63;
/// In a bucket's first key (of wide entries: in its side): some keys are in their other bucket, because this one was full.
const SPILLED: u64 = 1 << 63;

/// Bits of the numbers of classes and services in keys.
pub const NUMBER_BITS: u32 = 24;

const HOST: u64 = 1 << 60;
const PORT: u64 = 2 << 60;
const PAIR: u64 = 3 << 60;

/// An IPv4 address in network order (as bytes in memory), looked up for one side.
#[inline(always)]
pub const fn host_key(side: Side, address: [u8; 4]) -> u64 {
    HOST | (side as u64) << 32 | u32::from_ne_bytes(address) as u64
}

/// A block of `2^(16-bits)` ports from `port` on, of a destination class and protocol.
#[inline(always)]
pub const fn port_key(class: u32, protocol: u8, bits: u32, port: u16) -> u64 {
    PORT | (class as u64) << 29 | (protocol as u64) << 21 | (bits as u64) << 16 | port as u64
}

/// A source class and a service.
#[inline(always)]
pub const fn pair_key(source: u32, service: u32) -> u64 {
    PAIR | (source as u64) << NUMBER_BITS | service as u64
}

/// Hash of a narrow key.
#[inline(always)]
pub const fn narrow_hash(key: u64, seed: u64) -> u64 {
    mix(key ^ seed)
}

/// Hash of a wide key: the halves of an address, as they are in memory.
#[inline(always)]
pub const fn wide_hash(address: [u64; 2], side: Side, seed: u64) -> u64 {
    mix(address[0].wrapping_mul(0xff51_afd7_ed55_8ccd) ^ mix(address[1] ^ seed) ^ side as u64)
}

#[inline(always)]
const fn mix(word: u64) -> u64 {
    let a = (word ^ word >> 32).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (a ^ a >> 32).wrapping_mul(0xd6e8_feb8_6659_fd93)
}

/// The bucket, of so many, where a key with this hash is unless it is full.
#[inline(always)]
pub const fn first(hash: u64, buckets: u32) -> u32 {
    (((hash >> 32) * buckets as u64) >> 32) as u32
}

/// The bucket where it is then.
#[inline(always)]
pub const fn second(hash: u64, buckets: u32) -> u32 {
    (((hash & 0xffff_ffff) * buckets as u64) >> 32) as u32
}

/// Whether a bucket's marked word says that some of its keys are in their other bucket: the first of narrow entries, the third of wide ones.
#[inline(always)]
pub const fn is_marked(word: u64) -> bool {
    word & SPILLED != 0
}

/// The word without that.
#[inline(always)]
pub const fn unmarked(word: u64) -> u64 {
    word & !SPILLED
}

/// Writes a bucket of narrow entries.
pub fn narrow_bucket(entries: &[(u64, u64)], spilled: bool) -> Bucket {
    let mut out = [0; 8];
    for (n, (key, value)) in entries.iter().take(NARROW).enumerate() {
        out[2 * n] = *key;
        out[2 * n + 1] = *value;
    }
    out[0] |= if spilled { SPILLED } else { 0 };
    out
}

/// Writes a bucket of wide entries.
pub fn wide_bucket(entries: &[([u64; 2], Side, u64)], spilled: bool) -> Bucket {
    let mut out = [0; 8];
    for (n, (address, side, value)) in entries.iter().take(WIDE).enumerate() {
        out[4 * n] = address[0];
        out[4 * n + 1] = address[1];
        out[4 * n + 2] = *side as u64;
        out[4 * n + 3] = *value;
    }
    out[2] |= if spilled { SPILLED } else { 0 };
    out
}
