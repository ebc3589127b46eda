//! Bytes of raw packets: UDP headers, checksums, and the filter that picks our datagrams out of WireGuard's.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

use lowroad_wire::checksum;

use super::sys::Instruction;

pub(super) const UDP_HEADER: usize = 8;
const IPV4_HEADER: usize = 20;
const IPV6_HEADER: usize = 40;
const UDP: u8 = 17;
const HOP_LIMIT: u8 = 64;

/// Where the UDP header starts in what a raw socket sees.
#[derive(Clone, Copy, Debug)]
pub(super) enum Start {
    /// IPv4: the packet begins with its IP header.
    AfterIpv4Header,
    /// IPv6: the kernel has taken the IP header off.
    AtOnce,
}

/// A classic BPF program that accepts disco messages and STUN responses for `port`. Loads beyond the end of a
/// packet reject it.
pub(super) fn filter(port: u16, start: Start) -> Vec<Instruction> {
    const LOAD_HALF: u16 = (libc::BPF_LD | libc::BPF_H | libc::BPF_IND) as u16;
    const LOAD_WORD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_IND) as u16;
    const IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const AND: u16 = (libc::BPF_ALU | libc::BPF_AND | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let op = |code, k| Instruction {
        code,
        jt: 0,
        jf: 0,
        k,
    };
    let jump = |k, jt, jf| Instruction {
        code: IF_EQUAL,
        jt,
        jf,
        k,
    };
    // X = length of what precedes the UDP header.
    let skip = match start {
        Start::AfterIpv4Header => op((libc::BPF_LDX | libc::BPF_B | libc::BPF_MSH) as u16, 0),
        Start::AtOnce => op((libc::BPF_LDX | libc::BPF_W | libc::BPF_IMM) as u16, 0),
    };
    vec![
        skip,
        op(LOAD_HALF, 2),
        jump(port.into(), 0, 9),
        // Disco: "TS" and the speech bubble.
        op(LOAD_WORD, 8),
        jump(0x5453_f09f, 0, 2),
        op(LOAD_HALF, 12),
        jump(0x92ac, 6, 5),
        // STUN: the cookie, two zero bits, a second byte of 1.
        op(LOAD_WORD, 12),
        jump(0x2112_a442, 0, 3),
        op(LOAD_HALF, 8),
        op(AND, 0xc0ff),
        jump(0x0001, 1, 0),
        op(RETURN, 0),
        op(RETURN, u32::MAX),
    ]
}

/// The UDP header and payload of a raw IPv4 packet, with its checksum.
pub(super) fn udp4(
    source: (Ipv4Addr, u16),
    to: (Ipv4Addr, u16),
    payload: &[u8],
) -> Option<Vec<u8>> {
    let mut packet = udp(source.1, to.1, payload)?;
    let (head, payload) = packet.split_at(UDP_HEADER);
    let sum = udp_checksum([&source.0.octets(), &to.0.octets()], [head, payload]);
    packet[6..8].copy_from_slice(&sum);
    Some(packet)
}

/// The UDP header and payload of a raw IPv6 packet; the kernel fills in the checksum.
pub(super) fn udp(source: u16, to: u16, payload: &[u8]) -> Option<Vec<u8>> {
    let length = u16::try_from(UDP_HEADER + payload.len()).ok()?;
    let mut packet = Vec::with_capacity(usize::from(length));
    for field in [source, to, length, 0] {
        packet.extend_from_slice(&field.to_be_bytes());
    }
    packet.extend_from_slice(payload);
    Some(packet)
}

/// IP and UDP headers of a packet to a port of this host, as if it came from `source`: what a relay brought.
pub(super) struct InjectedHeader {
    bytes: [u8; IPV6_HEADER + UDP_HEADER],
    length: usize,
}

impl InjectedHeader {
    /// To `to`, an address of this host and of the source's family. `None` if the families differ or the payload is too
    /// long for a packet.
    pub fn new(source: SocketAddr, to: SocketAddr, payload: &[u8]) -> Option<Self> {
        match (source, to) {
            (SocketAddr::V4(source), SocketAddr::V4(to)) => Self::v4(source, to, payload),
            (SocketAddr::V6(source), SocketAddr::V6(to)) => Self::v6(source, to, payload),
            _ => None,
        }
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }

    fn v4(source: SocketAddrV4, to: SocketAddrV4, payload: &[u8]) -> Option<Self> {
        let total = u16::try_from(IPV4_HEADER + UDP_HEADER + payload.len()).ok()?;
        let mut bytes = [0; IPV6_HEADER + UDP_HEADER];
        bytes[0] = 0x45;
        bytes[2..4].copy_from_slice(&total.to_be_bytes());
        bytes[8] = HOP_LIMIT;
        bytes[9] = UDP;
        bytes[12..16].copy_from_slice(&source.ip().octets());
        bytes[16..20].copy_from_slice(&to.ip().octets());
        // The kernel fills in the header's checksum. The UDP checksum stays absent: the packet stays in memory,
        // and WireGuard authenticates it.
        put_udp(
            &mut bytes[IPV4_HEADER..],
            source.port(),
            to.port(),
            total - IPV4_HEADER as u16,
        );
        let length = IPV4_HEADER + UDP_HEADER;
        Some(Self { bytes, length })
    }

    fn v6(source: SocketAddrV6, to: SocketAddrV6, payload: &[u8]) -> Option<Self> {
        let udp_length = u16::try_from(UDP_HEADER + payload.len()).ok()?;
        let mut bytes = [0; IPV6_HEADER + UDP_HEADER];
        bytes[0] = 0x60;
        bytes[4..6].copy_from_slice(&udp_length.to_be_bytes());
        bytes[6] = UDP;
        bytes[7] = HOP_LIMIT;
        bytes[8..24].copy_from_slice(&source.ip().octets());
        bytes[24..40].copy_from_slice(&to.ip().octets());
        let ports = (source.port(), to.port());
        put_udp(&mut bytes[IPV6_HEADER..], ports.0, ports.1, udp_length);
        // IPv6 knows no absent checksum.
        let sum = udp_checksum(
            [&source.ip().octets(), &to.ip().octets()],
            [&bytes[IPV6_HEADER..], payload],
        );
        bytes[IPV6_HEADER + 6..].copy_from_slice(&sum);
        let length = IPV6_HEADER + UDP_HEADER;
        Some(Self { bytes, length })
    }
}

/// Source address, source port and UDP payload of what a raw IPv4 socket received.
pub fn parse_ipv4(packet: &[u8]) -> Option<(SocketAddr, &[u8])> {
    let header = usize::from(packet.first()? & 0x0f) * 4;
    let source: [u8; 4] = packet.get(12..16)?.try_into().ok()?;
    let (port, payload) = parse_udp(packet.get(header.max(IPV4_HEADER)..)?)?;
    Some((SocketAddr::from((source, port)), payload))
}

/// Source port and payload of a UDP datagram; bytes behind its length are left out.
pub fn parse_udp(datagram: &[u8]) -> Option<(u16, &[u8])> {
    let (header, _) = datagram.split_first_chunk::<UDP_HEADER>()?;
    let length = usize::from(u16::from_be_bytes([header[4], header[5]]));
    let payload = datagram.get(UDP_HEADER..length)?;
    Some((u16::from_be_bytes([header[0], header[1]]), payload))
}

fn put_udp(bytes: &mut [u8], source: u16, to: u16, length: u16) {
    for (field, value) in bytes.chunks_exact_mut(2).zip([source, to, length, 0]) {
        field.copy_from_slice(&value.to_be_bytes());
    }
}

/// Of a datagram whose own field is zero: header and payload.
fn udp_checksum(addresses: [&[u8]; 2], datagram: [&[u8]; 2]) -> [u8; 2] {
    let tail = checksum::pseudo_tail(UDP, datagram[0].len() + datagram[1].len());
    let [from, to] = addresses;
    // Zero would mean "no checksum".
    match checksum::of(&[from, to, &tail, datagram[0], datagram[1]]) {
        [0, 0] => [0xff, 0xff],
        sum => sum,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_datagram_with_its_checksum_sums_to_all_ones(
            from: [u8; 4], to: [u8; 4], ports: (u16, u16), payload in prop::collection::vec(any::<u8>(), 0..300)
        ) {
            let packet = udp4((from.into(), ports.0), (to.into(), ports.1), &payload).unwrap();
            let length = (packet.len() as u16).to_be_bytes();
            let whole = [&from[..], &to, &[0, UDP], &length, &packet].concat();
            prop_assert!(checksum::is_right(&[&whole]));
            prop_assert_eq!(parse_udp(&packet), Some((ports.0, &payload[..])));
        }

        #[test]
        fn an_injected_ipv6_header_carries_a_right_checksum(
            from: [u8; 16], to: [u8; 16], port: u16, payload in prop::collection::vec(any::<u8>(), 0..300)
        ) {
            let (from, to) = (SocketAddr::from((from, port)), SocketAddr::from((to, 51820)));
            let header = InjectedHeader::new(from, to, &payload).unwrap();
            let bytes = header.as_bytes();
            let length = ((UDP_HEADER + payload.len()) as u16).to_be_bytes();
            let whole = [&bytes[8..40], &[0, UDP], &length, &bytes[40..], &payload].concat();
            prop_assert!(checksum::is_right(&[&whole]));
        }

        #[test]
        fn parsing_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = (parse_ipv4(&bytes), parse_udp(&bytes));
        }
    }
}
