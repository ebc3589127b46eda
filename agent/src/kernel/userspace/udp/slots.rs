//! Packet buffers to read into, and who gets what came into them.

use std::net::SocketAddr;

use gotatun::packet::{Packet, PacketBufPool};
use lowroad_wire::{Kind, classify};

use super::mmsg::{BATCH, Received};
use crate::traversal::shortcut::Inward;

/// Kept between calls.
pub(in super::super) struct Slots {
    pub(super) buffers: Vec<Slot>,
    /// One for each buffer that was read into, from the first on.
    pub(super) received: Vec<Option<Received>>,
    /// What relays brought.
    pub(super) injected: Vec<Inward>,
    limit: usize,
}

impl Default for Slots {
    fn default() -> Self {
        Self::up_to(BATCH)
    }
}

impl Slots {
    pub(super) fn up_to(limit: usize) -> Self {
        Self {
            buffers: Vec::new(),
            received: Vec::new(),
            injected: Vec::new(),
            limit,
        }
    }

    pub(super) fn fill(&mut self, pool: &PacketBufPool) {
        self.received.clear();
        while self.buffers.len() < self.limit {
            self.buffers.push(Slot(pool.get()));
        }
    }

    /// Disco and STUN go to `take`, all else that was received is for WireGuard.
    pub(super) fn sort(
        &mut self,
        keep: &mut Vec<(Packet, SocketAddr)>,
        mut take: impl FnMut(SocketAddr, &[u8]),
    ) {
        let count = self.received.len();
        let packets = self.buffers.drain(..count).map(|Slot(packet)| packet);
        for (mut packet, received) in packets.zip(self.received.drain(..)) {
            let Some(Received { length, from }) = received else {
                continue;
            };
            packet.truncate(length);
            if matches!(classify(&packet), Kind::Disco | Kind::Stun) {
                take(from, &packet);
            } else {
                keep.push((packet, from));
            }
        }
    }

    /// A packet that fits into no buffer would have fitted into no tunnel.
    pub(super) fn take_injected(
        &mut self,
        pool: &PacketBufPool,
        keep: &mut Vec<(Packet, SocketAddr)>,
    ) {
        for (from, bytes) in self.injected.drain(..) {
            let mut packet = pool.get();
            if let Some(start) = packet.get_mut(..bytes.len()) {
                start.copy_from_slice(&bytes);
                packet.truncate(bytes.len());
                keep.push((packet, from));
            }
        }
    }
}

pub(super) struct Slot(Packet);

impl AsMut<[u8]> for Slot {
    fn as_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}
