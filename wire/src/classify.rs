//! Telling apart what arrives on the one UDP port (protocol.md 3.1).

use crate::{disco, geneve, stun};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    Stun,
    Disco,
    /// Disco or WireGuard by way of a peer relay.
    Geneve,
    WireGuard,
    Other,
}

/// The shortest WireGuard message: an empty data packet.
const WIREGUARD_MIN: usize = 32;

pub fn classify(datagram: &[u8]) -> Kind {
    if stun::looks_like(datagram) {
        Kind::Stun
    } else if disco::looks_like(datagram) {
        Kind::Disco
    } else if geneve::looks_like(datagram) {
        Kind::Geneve
    } else if matches!(datagram, [1..=4, 0, 0, 0, ..] if datagram.len() >= WIREGUARD_MIN) {
        Kind::WireGuard
    } else {
        Kind::Other
    }
}
