//! What came by the relays and waits for its reader: apart for each region, and taken from each in turn, so that what one relay floods us with costs the others nothing.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use lowroad_wire::{control::RegionId, key::NodePublic};
use tokio::sync::Notify;

/// Packets of one region that may wait; those beyond are dropped, as a full socket would.
const PACKETS: usize = 4096;
/// And their bytes: as many packets of the tunnel's size.
const BYTES: usize = 8 << 20;
/// Packets that are taken from a region before it is another one's turn.
const TURN: usize = 16;

/// A packet that a relay brought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FromRelay {
    pub region: RegionId,
    pub from: NodePublic,
    pub bytes: Bytes,
}

/// Shared by the regions' tasks and the reader.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    waiting: Mutex<Waiting>,
    wake: Notify,
    dropped: AtomicU64,
}

#[derive(Debug, Default)]
struct Waiting {
    /// None of them empty.
    regions: HashMap<RegionId, Pile>,
    /// Their order.
    turns: VecDeque<RegionId>,
}

#[derive(Debug, Default)]
struct Pile {
    packets: VecDeque<FromRelay>,
    bytes: usize,
}

impl Inbox {
    /// Nobody waits for a reader that does not keep up: a packet lost here is a packet lost on the way.
    pub fn push(&self, packet: FromRelay) {
        let mut waiting = self.waiting();
        let was_empty = waiting.turns.is_empty();
        let region = packet.region;
        let pile = waiting.regions.entry(region).or_default();
        let size = packet.bytes.len();
        if pile.packets.len() >= PACKETS || pile.bytes + size > BYTES {
            self.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        pile.bytes += size;
        pile.packets.push_back(packet);
        if pile.packets.len() == 1 {
            waiting.turns.push_back(region);
        }
        drop(waiting);
        if was_empty {
            self.wake.notify_one();
        }
    }

    /// How many packets were dropped.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    fn take(&mut self, into: &mut Vec<FromRelay>, limit: usize) {
        while into.len() < limit
            && let Some(region) = self.turns.pop_front()
        {
            let Some(pile) = self.regions.get_mut(&region) else {
                continue;
            };
            let turn = TURN.min(limit - into.len()).min(pile.packets.len());
            for packet in pile.packets.drain(..turn) {
                pile.bytes -= packet.bytes.len();
                into.push(packet);
            }
            if pile.packets.is_empty() {
                self.regions.remove(&region);
            } else {
                self.turns.push_back(region);
            }
        }
    }
}

/// The only reader of what the relays bring.
#[derive(Debug)]
pub struct Packets(pub(super) Arc<Inbox>);

impl Packets {
    /// Adds at most `limit` packets to `into`, once there are any.
    pub async fn recv_many(&mut self, into: &mut Vec<FromRelay>, limit: usize) {
        let limit = into.len() + limit;
        let before = into.len();
        loop {
            self.0.waiting().take(into, limit);
            if into.len() > before {
                return;
            }
            self.0.wake.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(region: u16, number: usize, size: usize) -> FromRelay {
        let mut bytes = number.to_be_bytes().to_vec();
        bytes.resize(size, 0);
        FromRelay {
            region: RegionId(region),
            from: NodePublic::from_bytes([7; 32]),
            bytes: bytes.into(),
        }
    }

    fn all(inbox: &Inbox) -> Vec<FromRelay> {
        let mut taken = Vec::new();
        inbox.waiting().take(&mut taken, usize::MAX);
        taken
    }

    #[test]
    fn a_region_that_floods_fills_its_own_share_and_the_others_have_their_turns() {
        let inbox = Inbox::default();
        for number in 0..2 * PACKETS {
            inbox.push(packet(1, number, 8));
        }
        inbox.push(packet(2, 0, 8));
        assert_eq!(inbox.dropped(), PACKETS as u64);
        let mut taken = Vec::new();
        inbox.waiting().take(&mut taken, TURN + 1);
        assert_eq!(taken.last(), Some(&packet(2, 0, 8)));
        let rest = all(&inbox);
        assert_eq!(rest.len(), PACKETS - TURN);
        assert_eq!(rest[0], packet(1, TURN, 8), "in order");
        assert!(inbox.waiting().regions.is_empty());
    }

    #[test]
    fn long_packets_are_bounded_by_their_bytes() {
        let inbox = Inbox::default();
        for number in 0..PACKETS {
            inbox.push(packet(1, number, 64 << 10));
        }
        let bytes: usize = all(&inbox).iter().map(|packet| packet.bytes.len()).sum();
        assert_eq!(bytes, BYTES);
        inbox.push(packet(1, 0, 64 << 10));
        assert_eq!(all(&inbox).len(), 1, "there is room again");
    }
}
