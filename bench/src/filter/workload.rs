//! Rule sets and packets.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use lowroad_core::filter::{Direction, Input, PeerFacts};
use lowroad_wire::control::{FilterRule, NetPortRange, PortRange};

pub const OWN: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 1);
pub const OWN_6: Ipv6Addr = Ipv6Addr::new(0xfd7a, 0x115c, 0xa1e0, 0, 0, 0, 0, 1);
/// The port that is open to the measured peer, by the last rule.
pub const PORT: u16 = 8080;
/// A port that no rule opens.
pub const CLOSED: u16 = 23;

pub const TCP: u8 = 6;
const UDP: u8 = 17;
pub const SYN: u8 = 0x02;
pub const ACK: u8 = 0x10;

/// What the filter holds.
#[derive(Clone, Copy, Debug)]
pub enum RuleSet {
    /// So many rules, each admitting a peer of its own, in both families, to a port; the last one opens [`PORT`] to the measured peer.
    Rules(usize),
    /// So many peers, all in one rule.
    Nodes(usize),
}

impl RuleSet {
    pub fn name(self) -> String {
        match self {
            Self::Rules(count) => format!("{count} rules"),
            Self::Nodes(count) => format!("{count} nodes"),
        }
    }

    /// Which port each peer may use.
    pub fn ports(self) -> impl Iterator<Item = (usize, u16)> {
        let (Self::Rules(count) | Self::Nodes(count)) = self;
        (0..count.max(1)).rev().map(move |n| match (self, n) {
            (Self::Nodes(_), _) | (_, 0) => (n, PORT),
            // None of them is [`PORT`] or [`CLOSED`].
            _ => (n, 10_000 + (n % 40_000) as u16),
        })
    }

    pub fn input(self) -> Input {
        let addresses = |n| [IpAddr::from(peer(n)), IpAddr::from(peer_6(n))];
        let text = |n| addresses(n).map(|a| a.to_string()).to_vec();
        let rules = match self {
            Self::Rules(_) => self.ports().map(|(n, port)| rule(text(n), port)).collect(),
            Self::Nodes(_) => {
                let sources = self.ports().flat_map(|(n, _)| text(n));
                vec![rule(sources.collect(), PORT)]
            }
        };
        let facts = |(n, _)| PeerFacts {
            addresses: addresses(n).to_vec(),
            ..PeerFacts::default()
        };
        Input {
            rules,
            local: vec![IpAddr::from(OWN).into(), IpAddr::from(OWN_6).into()],
            peers: self.ports().map(facts).collect(),
            own_addresses: vec![OWN.into(), OWN_6.into()],
            ..Input::default()
        }
    }
}

pub fn rule(sources: Vec<String>, port: u16) -> FilterRule {
    let to = |ip: String| NetPortRange {
        ip,
        ports: PortRange {
            first: port,
            last: port,
        },
    };
    FilterRule {
        src_ips: sources,
        dst_ports: vec![to(OWN.to_string()), to(OWN_6.to_string())],
        ..FilterRule::default()
    }
}

pub fn peer(n: usize) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(100, 65, 0, 1)) + n as u32)
}

pub fn peer_6(n: usize) -> Ipv6Addr {
    Ipv6Addr::from(u128::from(Ipv6Addr::new(0xfd7a, 0x115c, 0xa1e0, 0, 0, 0, 1, 0)) + n as u128)
}

/// A packet and what becomes of it.
pub struct Case {
    pub name: &'static str,
    pub packet: Vec<u8>,
    pub direction: Direction,
    pub passes: bool,
}

impl Case {
    #[rustfmt::skip]
    pub fn all() -> Vec<Self> {
        let inward = |name, packet, passes| Self { name, packet, direction: Direction::In, passes };
        let outward = |name, packet| Self { name, packet, direction: Direction::Out, passes: true };
        let from_4 = |segment: Vec<u8>| v4(peer(0), OWN, &segment);
        let from_6 = |segment: Vec<u8>| v6(peer_6(0), OWN_6, &segment);
        vec![
            inward("in, v4: TCP SYN, hit", from_4(tcp(SYN, PORT)), true),
            inward("in, v4: TCP SYN, miss", from_4(tcp(SYN, CLOSED)), false),
            inward("in, v4: TCP data", from_4(tcp(ACK, PORT)), true),
            inward("in, v4: UDP, hit", from_4(udp(PORT)), true),
            inward("in, v4: UDP, miss", from_4(udp(CLOSED)), false),
            inward("in, v6: TCP SYN, hit", from_6(tcp(SYN, PORT)), true),
            inward("in, v6: TCP SYN, miss", from_6(tcp(SYN, CLOSED)), false),
            inward("in, v6: TCP data", from_6(tcp(ACK, PORT)), true),
            inward("in, v6: UDP, hit", from_6(udp(PORT)), true),
            inward("in, v6: UDP, miss", from_6(udp(CLOSED)), false),
            outward("out, v4: TCP data", v4(OWN, peer(0), &tcp(ACK, 443))),
            outward("out, v4: UDP", v4(OWN, peer(0), &udp(443))),
            outward("out, v6: TCP data", v6(OWN_6, peer_6(0), &tcp(ACK, 443))),
            outward("out, v6: UDP", v6(OWN_6, peer_6(0), &udp(443))),
        ]
    }
}

/// Protocol and bytes of a TCP header. Its checksum is none: neither the filter nor nftables looks at it.
pub fn tcp(flags: u8, port: u16) -> Vec<u8> {
    let mut out = vec![TCP];
    out.extend(40_000u16.to_be_bytes());
    out.extend(port.to_be_bytes());
    out.extend([0; 8]);
    out.extend([0x50, flags, 0, 0, 0, 0, 0, 0]);
    out
}

/// Protocol and bytes of a UDP datagram. Answers to what goes out come from its port: [`PORT`] and [`CLOSED`] are others.
pub fn udp(port: u16) -> Vec<u8> {
    let mut out = vec![UDP];
    out.extend(40_000u16.to_be_bytes());
    out.extend(port.to_be_bytes());
    out.extend([0, 16, 0, 0]);
    out.extend([0; 8]);
    out
}

pub fn v4(source: Ipv4Addr, destination: Ipv4Addr, segment: &[u8]) -> Vec<u8> {
    let mut out = vec![0x45, 0, 0, 19 + segment.len() as u8, 0, 0, 0, 0, 64];
    out.extend([segment[0], 0, 0]);
    out.extend(source.octets());
    out.extend(destination.octets());
    let sum = checksum(&out);
    out[10..12].copy_from_slice(&sum.to_be_bytes());
    out.extend(&segment[1..]);
    out
}

/// Of an IPv4 header (RFC 1071), without which nothing gets as far as nftables.
fn checksum(header: &[u8]) -> u16 {
    let words = header
        .chunks_exact(2)
        .map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
    let sum: u32 = words.sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !((folded & 0xffff) + (folded >> 16)) as u16
}

pub fn v6(source: Ipv6Addr, destination: Ipv6Addr, segment: &[u8]) -> Vec<u8> {
    let mut out = vec![0x60, 0, 0, 0, 0, segment.len() as u8 - 1, segment[0], 64];
    out.extend(source.octets());
    out.extend(destination.octets());
    out.extend(&segment[1..]);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_of_a_header_with_its_checksum_is_zero() {
        let mut header = [
            0x45, 0, 0, 0x73, 0, 0, 0x40, 0, 0x40, 0x11, 0, 0, 192, 168, 0, 1, 192, 168, 0, 199,
        ];
        assert_eq!(checksum(&header), 0xb861);
        header[10..12].copy_from_slice(&[0xb8, 0x61]);
        assert_eq!(checksum(&header), 0);
        for case in Case::all().iter().filter(|case| case.packet[0] == 0x45) {
            assert_eq!(checksum(&case.packet[..20]), 0, "{}", case.name);
        }
    }
}
