//! What the kernel programs report.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use lowroad_abi::{EventKind, EventRecord, Tuple};

use super::{Direction, DropReason, Pass, RuleId, answer};

/// Ends and protocol of a packet, from its sender's view. Ports are zero where the protocol has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowTuple {
    pub source: SocketAddr,
    pub destination: SocketAddr,
    pub protocol: u8,
}

/// A record of the ring buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FilterEvent {
    /// A packet was dropped. Sampled: at most [`lowroad_abi::DROP_EVENTS_PER_SECOND`] per CPU; counters know of all.
    Drop {
        /// Monotonic time since boot.
        time: Duration,
        direction: Direction,
        reason: DropReason,
        /// `None` where the packet was too broken to tell.
        tuple: Option<FlowTuple>,
        /// Bytes of the IP packet.
        length: u32,
    },
    /// Something for the agent to answer.
    Punt {
        time: Duration,
        tuple: FlowTuple,
        punt: Punt,
    },
}

/// What a punted packet asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Punt {
    /// Write this IP packet to the device, with the agent's mark: the pong of a TSMP ping, or the TSMP reject of a refused TCP SYN.
    Answer(Vec<u8>),
    /// The peer refused a connection of ours: `flow` as we sent it, and the reason's letter (`protocol.md` 3.7).
    Rejected { flow: FlowTuple, reason: char },
}

impl FilterEvent {
    /// Reads a record. `peer_api_port` goes into pongs, `shields_up` into rejects. `None`: a record of another version, or one that asks for nothing.
    pub fn decode(record: &EventRecord, peer_api_port: u16, shields_up: bool) -> Option<Self> {
        let time = Duration::from_nanos(record.nanoseconds);
        let tuple = flow_tuple(&record.tuple);
        if record.kind == EventKind::Drop as u8 {
            return Some(Self::Drop {
                time,
                direction: if record.direction == Direction::Out as u8 {
                    Direction::Out
                } else {
                    Direction::In
                },
                reason: DropReason::from_number(record.reason)?,
                tuple,
                length: record.length,
            });
        }
        let tuple = tuple?;
        let punt = if record.kind == EventKind::TsmpPing as u8 {
            Punt::Answer(answer::pong(&tuple, record.tsmp, peer_api_port))
        } else if record.kind == EventKind::TcpReject as u8 {
            Punt::Answer(answer::reject(&tuple, if shields_up { b'S' } else { b'A' }))
        } else if record.kind == EventKind::TsmpRejected as u8 {
            let [protocol, reason, s0, s1, d0, d1, ..] = record.tsmp;
            // It comes back the way the refused packet went: its source is where ours was going.
            Punt::Rejected {
                flow: FlowTuple {
                    source: SocketAddr::new(tuple.destination.ip(), u16::from_be_bytes([s0, s1])),
                    destination: SocketAddr::new(tuple.source.ip(), u16::from_be_bytes([d0, d1])),
                    protocol,
                },
                reason: if reason.is_ascii_alphanumeric() {
                    char::from(reason)
                } else {
                    '?'
                },
            }
        } else {
            return None;
        };
        Some(Self::Punt { time, tuple, punt })
    }
}

fn flow_tuple(tuple: &Tuple) -> Option<FlowTuple> {
    let address = |b: [u8; 16]| -> Option<IpAddr> {
        match tuple.family {
            4 => Some(Ipv4Addr::new(b[0], b[1], b[2], b[3]).into()),
            6 => Some(Ipv6Addr::from(b).into()),
            _ => None,
        }
    };
    Some(FlowTuple {
        source: SocketAddr::new(
            address(tuple.source)?,
            u16::from_be_bytes(tuple.source_port),
        ),
        destination: SocketAddr::new(
            address(tuple.destination)?,
            u16::from_be_bytes(tuple.destination_port),
        ),
        protocol: tuple.protocol,
    })
}

/// Counters since the filter was first attached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FilterCounters {
    /// Of the installed rules, in their order.
    pub rules: Vec<RuleCount>,
    pub passed: Vec<(Direction, Pass, Count)>,
    pub dropped: Vec<(Direction, DropReason, Count)>,
}

/// Packets and bytes.
pub type Count = lowroad_abi::Count;

/// What a rule admitted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleCount {
    pub rule: RuleId,
    /// The rule for people.
    pub text: String,
    pub count: Count,
    /// False if there was no counter left for it.
    pub counted: bool,
}

impl FilterCounters {
    /// Packets dropped for this reason, both directions.
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.dropped
            .iter()
            .filter(|(_, r, _)| *r == reason)
            .map(|(_, _, c)| c.packets)
            .sum()
    }
    /// Packets that passed this way, both directions.
    pub fn passed(&self, pass: Pass) -> u64 {
        self.passed
            .iter()
            .filter(|(_, p, _)| *p == pass)
            .map(|(_, _, c)| c.packets)
            .sum()
    }
}
