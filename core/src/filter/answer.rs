//! The IP packets that answer what the kernel programs punt (`protocol.md` 3.7).

use std::net::IpAddr;

use super::FlowTuple;

/// IP protocol of in-tunnel control messages.
pub(super) const TSMP: u8 = 99;
const HOP_LIMIT: u8 = 64;

/// The answer to a ping: addresses swapped, the eight bytes of the question, our peer API's port.
pub(super) fn pong(ping: &FlowTuple, question: [u8; 8], peer_api_port: u16) -> Vec<u8> {
    let mut message = vec![b'o'];
    message.extend(question);
    message.extend(peer_api_port.to_be_bytes());
    packet(ping.destination.ip(), ping.source.ip(), &message)
}

/// Tells the sender of a TCP SYN that it was refused, and why.
pub(super) fn reject(refused: &FlowTuple, reason: u8) -> Vec<u8> {
    const TCP: u8 = 6;
    let mut message = vec![b'!', TCP, reason];
    message.extend(refused.source.port().to_be_bytes());
    message.extend(refused.destination.port().to_be_bytes());
    packet(refused.destination.ip(), refused.source.ip(), &message)
}

/// An IP packet of TSMP; empty if the families differ, which no packet's two addresses do.
fn packet(source: IpAddr, destination: IpAddr, message: &[u8]) -> Vec<u8> {
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let mut out = vec![0x45, 0];
            out.extend((20 + message.len() as u16).to_be_bytes());
            out.extend([0, 0, 0, 0, HOP_LIMIT, TSMP, 0, 0]);
            out.extend(source.octets());
            out.extend(destination.octets());
            let sum = checksum(&out);
            out[10..12].copy_from_slice(&sum.to_be_bytes());
            out.extend(message);
            out
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let mut out = vec![0x60, 0, 0, 0];
            out.extend((message.len() as u16).to_be_bytes());
            out.extend([TSMP, HOP_LIMIT]);
            out.extend(source.octets());
            out.extend(destination.octets());
            out.extend(message);
            out
        }
        _ => Vec::new(),
    }
}

/// Internet checksum (RFC 1071) of a header with an even number of bytes.
fn checksum(header: &[u8]) -> u16 {
    let mut sum: u32 = header
        .chunks_exact(2)
        .map(|c| u32::from(u16::from_be_bytes([c[0], c[1]])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;

    fn tuple(source: &str, destination: &str) -> FlowTuple {
        let parse = |s: &str| s.parse::<SocketAddr>().expect("socket address");
        FlowTuple {
            source: parse(source),
            destination: parse(destination),
            protocol: 6,
        }
    }

    #[test]
    fn a_pong_carries_the_question_back() {
        let out = pong(&tuple("100.64.0.2:0", "100.64.0.1:0"), *b"abcdefgh", 0x1234);
        assert_eq!(out.len(), 31);
        assert_eq!(&out[12..20], &[100, 64, 0, 1, 100, 64, 0, 2]);
        assert_eq!(&out[20..], b"oabcdefgh\x12\x34");
        assert_eq!(checksum(&out[..20]), 0, "a right checksum sums to zero");
    }

    #[test]
    fn a_reject_names_the_ports_of_the_refused_flow() {
        let out = reject(&tuple("[fd7a::2]:4000", "[fd7a::1]:22"), b'A');
        assert_eq!(&out[40..], &[b'!', 6, b'A', 0x0f, 0xa0, 0, 22]);
        assert_eq!(out[6], TSMP);
        assert_eq!(&out[4..6], &[0, 7]);
    }
}
