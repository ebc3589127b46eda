//! State of UDP and SCTP flows, which lets answers in.
//!
//! Keys are whole words: stack that is written in smaller parts makes the kernel's verifier follow more ways.

/// Flows remembered of each family; beyond, the least recently used go.
pub const FLOW_ENTRIES: usize = 65_536;

/// What both families' keys end with: ports as in a packet of the remote's, protocol, whether the peer is jailed, and the epoch's lower 23 bits.
///
/// The epoch is that of the settings: raising it forgets every flow. Flows with jailed peers are apart, so that one recorded before a peer was jailed is not its way in.
#[inline(always)]
const fn tail(ports: u32, protocol: u8, jailed: bool, epoch: u32) -> u64 {
    ports as u64 | (protocol as u64) << 32 | (jailed as u64) << 40 | (epoch as u64) << 41
}

/// A UDP or SCTP flow in IPv6 as seen from this node; addresses as in packets.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FlowKey {
    remote: [u64; 2],
    local: [u64; 2],
    tail: u64,
}

impl FlowKey {
    #[inline(always)]
    pub const fn new(
        (remote, local): ([u64; 2], [u64; 2]),
        ports: u32,
        protocol: u8,
        jailed: bool,
        epoch: u32,
    ) -> Self {
        Self {
            remote,
            local,
            tail: tail(ports, protocol, jailed, epoch),
        }
    }
}

/// The same in IPv4, where a shorter key costs half to look up.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FlowKey4 {
    addresses: u64,
    tail: u64,
}

impl FlowKey4 {
    #[inline(always)]
    pub const fn new(
        (remote, local): (u32, u32),
        ports: u32,
        protocol: u8,
        jailed: bool,
        epoch: u32,
    ) -> Self {
        Self {
            addresses: remote as u64 | (local as u64) << 32,
            tail: tail(ports, protocol, jailed, epoch),
        }
    }
}

const _: () = assert!(size_of::<FlowKey4>() == 16);
const _: () = assert!(size_of::<FlowKey>() == 40 && align_of::<FlowKey>() == 8);
