//! The receive path without its sockets, for tests that feed it with anything.

use std::fmt;
use std::net::SocketAddr;

use bytes::Bytes;
use gotatun::packet::{Packet, PacketBufPool};

use super::mmsg::Received;
use super::slots::Slots;
use crate::traversal::port::Datagram;
use crate::traversal::shortcut::Inward;

/// Buffers and their pool, used again for one batch after another as in the agent.
pub struct Arrivals {
    slots: Slots,
    pool: PacketBufPool,
}

impl fmt::Debug for Arrivals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Arrivals")
    }
}

impl Default for Arrivals {
    fn default() -> Self {
        Self {
            slots: Slots::default(),
            pool: PacketBufPool::new(0),
        }
    }
}

/// Who got what.
#[derive(Debug, Default)]
pub struct Sorted {
    pub wireguard: Vec<ForWireGuard>,
    /// Disco and STUN.
    pub engine: Vec<Datagram>,
}

#[derive(Debug)]
pub struct ForWireGuard {
    pub from: SocketAddr,
    pub bytes: Bytes,
    /// It has the form of a message of WireGuard's, for gotatun, which drops others.
    pub is_message: bool,
}

impl Arrivals {
    /// Datagrams that are read in one call; those beyond what one call reads wait for the next, and are left out.
    pub fn receive(&mut self, datagrams: &[Inward]) -> Sorted {
        let Self { slots, pool } = self;
        slots.fill(pool);
        let buffers = slots.buffers.iter_mut();
        let written = buffers.zip(datagrams).map(|(buffer, (from, bytes))| {
            // As recvmmsg(2) does with what is too long: its beginning is written.
            let buffer = buffer.as_mut();
            let length = bytes.len().min(buffer.len());
            buffer[..length].copy_from_slice(&bytes[..length]);
            (length == bytes.len()).then_some(Received {
                length,
                from: *from,
            })
        });
        slots.received.extend(written);
        let (mut keep, mut sorted) = (Vec::new(), Sorted::default());
        slots.sort(&mut keep, |from, bytes| {
            let bytes = Bytes::copy_from_slice(bytes);
            sorted.engine.push(Datagram { from, bytes });
        });
        sorted.wireguard = keep.into_iter().map(for_wireguard).collect();
        sorted
    }

    /// Packets that relays brought.
    pub fn inject(&mut self, packets: impl IntoIterator<Item = Inward>) -> Vec<ForWireGuard> {
        let mut keep = Vec::new();
        self.slots.injected.extend(packets);
        self.slots.take_injected(&self.pool, &mut keep);
        keep.into_iter().map(for_wireguard).collect()
    }
}

fn for_wireguard((packet, from): (Packet, SocketAddr)) -> ForWireGuard {
    ForWireGuard {
        from,
        bytes: Bytes::copy_from_slice(&packet),
        is_message: packet.try_into_wg().is_ok(),
    }
}
