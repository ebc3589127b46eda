//! The IP packets that answer what the kernel programs punt (`protocol.md` 3.7).

use std::net::IpAddr;

use lowroad_wire::tsmp::{self, Message, Packet, Reason, Rejected};

use super::FlowTuple;

/// IP protocol of in-tunnel control messages.
pub(super) const TSMP: u8 = tsmp::PROTOCOL;

/// The answer to a ping: addresses swapped, the eight bytes of the question, our peer API's port.
pub(super) fn pong(ping: &FlowTuple, question: [u8; 8], peer_api_port: u16) -> Vec<u8> {
    let message = Message::Pong {
        data: question,
        peer_api_port,
    };
    packet(ping.destination.ip(), ping.source.ip(), message)
}

/// Tells the sender of a TCP SYN that it was refused, and why.
pub(super) fn reject(refused: &FlowTuple, reason: u8) -> Vec<u8> {
    const TCP: u8 = 6;
    let message = Message::Rejected(Rejected {
        protocol: TCP,
        reason: Reason::from(reason),
        source_port: refused.source.port(),
        destination_port: refused.destination.port(),
        maybe_broken: false,
    });
    packet(refused.destination.ip(), refused.source.ip(), message)
}

/// An IP packet of TSMP; empty if the families differ, which no packet's two addresses do.
fn packet(source: IpAddr, destination: IpAddr, message: Message) -> Vec<u8> {
    Packet {
        source,
        destination,
        message,
    }
    .encode()
    .unwrap_or_default()
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
        assert!(lowroad_wire::checksum::is_right(&[&out[..20]]));
    }

    #[test]
    fn a_reject_names_the_ports_of_the_refused_flow() {
        let out = reject(&tuple("[fd7a::2]:4000", "[fd7a::1]:22"), b'A');
        assert_eq!(&out[40..], &[b'!', 6, b'A', 0x0f, 0xa0, 0, 22]);
        assert_eq!(out[6], TSMP);
        assert_eq!(&out[4..6], &[0, 7]);
    }
}
