//! Headers of a packet, read as `protocol.md` 5.3 step 2 reads them. Written for the reference: slices, no tables, nothing shared with the kernel programs.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{DropReason, Family, answer::TSMP};

pub(super) const ICMP: u8 = 1;
pub(super) const IGMP: u8 = 2;
pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;
pub(super) const ICMPV6: u8 = 58;
pub(super) const SCTP: u8 = 132;
const FRAGMENT_HEADER: u8 = 44;

/// A later fragment nearer to the packet's begin than this, in blocks of 8 bytes, could overwrite transport headers.
const MIN_FRAGMENT_BLOCKS: u16 = 10;

/// A packet with a whole header.
#[derive(Clone, Copy, Debug)]
pub(super) struct Packet<'a> {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub protocol: u8,
    /// A fragment other than the first: no transport header.
    pub later_fragment: bool,
    /// What follows the IP headers, as far as the IP length goes.
    pub transport: &'a [u8],
}

impl<'a> Packet<'a> {
    /// Steps 2 of the order of judgement.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, DropReason> {
        let raw = match bytes.first().ok_or(DropReason::TooShort)? >> 4 {
            _ if bytes.len() < 20 => return Err(DropReason::TooShort),
            4 => Raw::v4(bytes)?,
            6 => Raw::v6(bytes)?,
            _ => return Err(DropReason::UnknownProtocol),
        };
        raw.check()
    }

    pub fn family(&self) -> Family {
        Family::of(self.destination)
    }

    /// Whether the protocol is the ICMP of this family.
    pub fn is_icmp(&self) -> bool {
        self.protocol == icmp_of(self.family())
    }

    /// SYN without ACK.
    pub fn is_tcp_syn(&self) -> bool {
        const SYN: u8 = 0x02;
        const ACK: u8 = 0x10;
        self.protocol == TCP
            && self
                .transport
                .get(13)
                .is_some_and(|flags| flags & (SYN | ACK) == SYN)
    }

    /// Source and destination port; zero for protocols without.
    pub fn ports(&self) -> (u16, u16) {
        match (self.protocol, self.transport) {
            (TCP | UDP | SCTP, [a, b, c, d, ..]) if !self.later_fragment => {
                (u16::from_be_bytes([*a, *b]), u16::from_be_bytes([*c, *d]))
            }
            _ => (0, 0),
        }
    }
}

/// The protocol number of a family's own ICMP.
pub(super) const fn icmp_of(family: Family) -> u8 {
    match family {
        Family::V4 => ICMP,
        Family::V6 => ICMPV6,
    }
}

/// Headers before the checks common to both families.
struct Raw<'a> {
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    fragment_blocks: u16,
    more_fragments: bool,
    transport: &'a [u8],
}

impl<'a> Raw<'a> {
    fn v4(bytes: &'a [u8]) -> Result<Self, DropReason> {
        let header = usize::from(bytes[0] & 15) * 4;
        let length = usize::from(u16::from_be_bytes([bytes[2], bytes[3]]));
        if header < 20 || length > bytes.len() || header > length {
            return Err(DropReason::TooShort);
        }
        let fragment = u16::from_be_bytes([bytes[6], bytes[7]]);
        let address = |at: usize| {
            Ipv4Addr::new(bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]).into()
        };
        Ok(Self {
            source: address(12),
            destination: address(16),
            protocol: bytes[9],
            fragment_blocks: fragment & 0x1fff,
            more_fragments: fragment & 0x2000 != 0,
            transport: &bytes[header..length],
        })
    }

    fn v6(bytes: &'a [u8]) -> Result<Self, DropReason> {
        if bytes.len() < 40 {
            return Err(DropReason::TooShort);
        }
        let length = 40 + usize::from(u16::from_be_bytes([bytes[4], bytes[5]]));
        let payload = bytes.get(40..length).ok_or(DropReason::TooShort)?;
        let address = |at: usize| {
            let octets: [u8; 16] = bytes[at..at + 16].try_into().expect("a slice of 16 bytes");
            Ipv6Addr::from(octets).into()
        };
        let mut out = Self {
            source: address(8),
            destination: address(24),
            protocol: bytes[6],
            fragment_blocks: 0,
            more_fragments: false,
            transport: payload,
        };
        if out.protocol == FRAGMENT_HEADER {
            let (header, transport) = payload
                .split_first_chunk::<8>()
                .ok_or(DropReason::TooShort)?;
            let fragment = u16::from_be_bytes([header[2], header[3]]);
            out.protocol = header[0];
            out.fragment_blocks = fragment >> 3;
            out.more_fragments = fragment & 1 != 0;
            out.transport = transport;
        }
        Ok(out)
    }

    fn check(self) -> Result<Packet<'a>, DropReason> {
        let family = Family::of(self.destination);
        let later_fragment = self.fragment_blocks > 0;
        if later_fragment {
            if self.fragment_blocks < MIN_FRAGMENT_BLOCKS {
                return Err(DropReason::Fragment);
            }
        } else {
            if matches!(self.protocol, 0 | 255) {
                return Err(DropReason::UnknownProtocol);
            }
            if self.transport.len() < min_transport(family, self.protocol) {
                return Err(DropReason::TooShort);
            }
            if self.protocol == TSMP && self.more_fragments && family == Family::V4 {
                return Err(DropReason::Fragment);
            }
        }
        Ok(Packet {
            source: self.source,
            destination: self.destination,
            protocol: self.protocol,
            later_fragment,
            transport: self.transport,
        })
    }
}

fn min_transport(family: Family, protocol: u8) -> usize {
    match (protocol, family) {
        (TCP, _) => 20,
        (UDP, _) => 8,
        (SCTP, _) => 12,
        (TSMP, _) => 7,
        (ICMP, Family::V4) | (ICMPV6, Family::V6) => 4,
        (IGMP, Family::V4) => 8,
        _ => 0,
    }
}
