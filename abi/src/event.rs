//! Records in the ring buffer.

use crate::Direction;

/// Drop events that one CPU writes per second; further drops are only counted.
pub const DROP_EVENTS_PER_SECOND: u64 = 200;
/// Punts that one CPU writes per second: a peer can cause them at will, and each costs the agent an answer.
pub const PUNTS_PER_SECOND: u64 = 100;

/// What a record is.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// A packet was dropped.
    Drop = 1,
    /// A TSMP ping request, for the agent to answer.
    TsmpPing = 2,
    /// A TCP SYN in IPv4 was refused: the agent tells the sender.
    TcpReject = 3,
    /// A peer says that it refused a connection of ours.
    TsmpRejected = 4,
    /// A peer announces a disco key (only noted).
    TsmpDisco = 5,
}

/// Addresses, ports and protocol of a packet, from its sender's view.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tuple {
    pub source: [u8; 16],
    pub destination: [u8; 16],
    pub source_port: [u8; 2],
    pub destination_port: [u8; 2],
    /// 4 or 6; 0 where the packet was too short to tell.
    pub family: u8,
    pub protocol: u8,
}

/// One record.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventRecord {
    /// `CLOCK_MONOTONIC`.
    pub nanoseconds: u64,
    /// [`EventKind`].
    pub kind: u8,
    /// [`Direction`].
    pub direction: u8,
    /// [`crate::DropReason`], zero where there is none.
    pub reason: u8,
    pub pad: u8,
    /// Length of the IP packet.
    pub length: u32,
    pub tuple: Tuple,
    pub pad2: [u8; 2],
    /// First bytes of a TSMP message after its type.
    pub tsmp: [u8; 8],
}

impl EventRecord {
    #[inline(always)]
    pub const fn new(
        nanoseconds: u64,
        kind: EventKind,
        direction: Direction,
        length: u32,
        tuple: Tuple,
    ) -> Self {
        Self {
            nanoseconds,
            kind: kind as u8,
            direction: direction as u8,
            reason: 0,
            pad: 0,
            length,
            tuple,
            pad2: [0; 2],
            tsmp: [0; 8],
        }
    }

    /// Reads a record from the ring buffer's bytes; `None` if they are of another length.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        fn part<const N: usize>(b: &[u8; 64], at: usize) -> [u8; N] {
            core::array::from_fn(|n| b[at + n])
        }
        let b: &[u8; 64] = bytes.try_into().ok()?;
        Some(Self {
            nanoseconds: u64::from_ne_bytes(part(b, 0)),
            kind: b[8],
            direction: b[9],
            reason: b[10],
            pad: 0,
            length: u32::from_ne_bytes(part(b, 12)),
            tuple: Tuple {
                source: part(b, 16),
                destination: part(b, 32),
                source_port: part(b, 48),
                destination_port: part(b, 50),
                family: b[52],
                protocol: b[53],
            },
            pad2: [0; 2],
            tsmp: part(b, 56),
        })
    }
}

const _: () = {
    assert!(size_of::<Tuple>() == 38 && align_of::<Tuple>() == 1);
    assert!(size_of::<EventRecord>() == 64);
};
