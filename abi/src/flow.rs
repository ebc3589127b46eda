//! State of UDP and SCTP flows, which lets answers in: sets of four flows in an array map for each family, which the programs write themselves.
//!
//! A set is written without a lock. Words are written whole, but an entry that two CPUs write at once, or one reads meanwhile, can be a mixture of two flows. It also holds the
//! hash of its flow, of 64 bits with a secret seed, and counts only for a flow that has both the words and the hash: a mixture is no flow, and admits nothing. What else
//! such races do is that a flow is forgotten early, or recorded twice; the next packet out records it again.

/// Flows in a set. When a fifth comes, one goes that was not used since others came.
pub const FLOW_WAYS: usize = 4;
/// Sets of each family: of 32,000 flows, one in 250 finds its set full, of 65,000 one in 20.
pub const FLOW_SETS: usize = 1 << FLOW_SET_BITS;
/// Flows that there is room for in each family.
pub const FLOW_ENTRIES: usize = FLOW_SETS * FLOW_WAYS;

const FLOW_SET_BITS: u32 = 15;

/// Words of an entry: key, hash, whether it was used lately, padding.
pub const FLOW_4_WORDS: usize = 4;
pub const FLOW_6_WORDS: usize = 8;
pub type FlowSet4 = [u64; FLOW_4_WORDS * FLOW_WAYS];
pub type FlowSet6 = [u64; FLOW_6_WORDS * FLOW_WAYS];

/// Remote and local address as in packets, then [`flow_tail`].
pub type FlowKey4 = [u64; 2];
pub type FlowKey6 = [u64; 5];

/// What both families' keys end with, and never zero: ports as in a packet of the remote's, protocol, whether the peer is jailed, and the epoch's lower 23 bits.
///
/// The epoch is that of the settings: raising it forgets every flow. Flows with jailed peers are apart, so that one recorded before a peer was jailed is not its way in.
#[inline(always)]
pub const fn flow_tail(ports: u32, protocol: u8, jailed: bool, epoch: u32) -> u64 {
    ports as u64 | (protocol as u64) << 32 | (jailed as u64) << 40 | (epoch as u64) << 41
}

/// Says which flow an entry holds, and where it is. The seed is secret: else a peer could have us answer it from ports that push out others' flows.
#[inline(always)]
pub fn flow_hash<const WORDS: usize>(key: &[u64; WORDS], seed: u64) -> u64 {
    let (mut hash, mut n) = (seed, 0);
    while n < WORDS {
        hash = (hash ^ key[n]).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        hash ^= hash >> 32;
        n += 1;
    }
    hash = hash.wrapping_mul(0xd6e8_feb8_6659_fd93);
    hash ^ hash >> 32
}

/// The set that a flow of this hash is in.
#[inline(always)]
pub const fn flow_set(hash: u64) -> u32 {
    (hash >> (64 - FLOW_SET_BITS)) as u32
}

const _: () = assert!(FLOW_WAYS.is_power_of_two());
