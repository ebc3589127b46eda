//! SCTP by raw sockets, as a host's kernel need not have the protocol: packets that nobody answers, and whether one gets through.

use std::{
    io,
    net::{SocketAddr, UdpSocket},
    os::fd::{FromRawFd, OwnedFd},
    sync::atomic::{AtomicU16, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use crate::topology::Namespace;

/// Between two packets.
const PACE: Duration = Duration::from_millis(20);
/// Each try has a port of its own: what comes late from the one before is none of its packets.
static SOURCES: AtomicU16 = AtomicU16::new(20_000);

/// Whether a packet to `target`, an address of `to`, arrives within `limit`.
pub fn passes(
    from: &Namespace,
    to: &Namespace,
    target: SocketAddr,
    limit: Duration,
) -> Result<bool> {
    let open = |host: &Namespace| {
        host.enter(|| raw(target.is_ipv6()))?
            .with_context(|| format!("open a raw SCTP socket in {}", host.name()))
    };
    let (source, sink) = (open(from)?, open(to)?);
    let packet = packet(SOURCES.fetch_add(1, Ordering::Relaxed), target.port());
    // A raw socket's addresses have no ports.
    let host = SocketAddr::new(target.ip(), 0);
    let end = Instant::now() + limit;
    while Instant::now() < end {
        source.send_to(&packet, host)?;
        if receives(&sink, &packet) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// A common header and an ABORT chunk (RFC 9260, 3), which hosts that know of no such association discard without a word; so they do for its checksum.
fn packet(source: u16, destination: u16) -> [u8; 16] {
    let mut packet = [0; 16];
    packet[..2].copy_from_slice(&source.to_be_bytes());
    packet[2..4].copy_from_slice(&destination.to_be_bytes());
    packet[12..].copy_from_slice(&[6, 0, 0, 4]);
    packet
}

/// Over IPv4 the socket shows the IP header, too.
fn receives(sink: &UdpSocket, packet: &[u8]) -> bool {
    let mut buffer = [0; 256];
    match sink.recv(&mut buffer) {
        Ok(length) => buffer[..length].ends_with(packet),
        Err(_) => false,
    }
}

/// The standard library's UDP type serves as its handle: the calls are the same.
fn raw(is_ipv6: bool) -> io::Result<UdpSocket> {
    let family = if is_ipv6 {
        libc::AF_INET6
    } else {
        libc::AF_INET
    };
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
    // SAFETY: no pointers.
    let descriptor = unsafe { libc::socket(family, kind, libc::IPPROTO_SCTP) };
    if descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a fresh descriptor that nobody else owns.
    let socket = UdpSocket::from(unsafe { OwnedFd::from_raw_fd(descriptor) });
    socket.set_read_timeout(Some(PACE))?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_says_where_it_comes_from_and_where_it_goes() {
        let packet = packet(20_000, 9_000);
        assert_eq!(packet[..4], [0x4e, 0x20, 0x23, 0x28]);
        assert_ne!(packet, super::packet(20_001, 9_000));
    }
}
