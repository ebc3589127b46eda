//! What waits to be written to one connection.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use bytes::{Bytes, BytesMut};
use lowroad_wire::derp::{Codec, Frame, put_recv_packet};
use lowroad_wire::key::NodePublic;
use tokio::sync::Notify;
use tokio_util::codec::Encoder;

/// Packets per queue, about what TCP inside a tunnel sends at once. With 32, a fast stream lost 3 % of its packets here.
const CAPACITY: usize = 128;

/// Bytes per queue: a client's two stay below 4 MiB, however large the packets are.
const CAPACITY_BYTES: usize = 2 << 20;

/// Other frames that may wait; they are small, and a client that reads takes them at once.
const CONTROL_CAPACITY: usize = 64;

/// A batch is closed when it reaches this many bytes.
const BATCH_BYTES: usize = 64 << 10;

#[derive(Debug)]
struct Packet {
    from: NodePublic,
    bytes: Bytes,
}

/// The oldest give way to the newest.
#[derive(Debug, Default)]
struct Packets {
    queue: VecDeque<Packet>,
    bytes: usize,
}

impl Packets {
    /// Returns how many had to go.
    fn push(&mut self, packet: Packet) -> u64 {
        let mut dropped = 0;
        while (self.queue.len() >= CAPACITY || self.bytes + packet.bytes.len() > CAPACITY_BYTES)
            && self.pop().is_some()
        {
            dropped += 1;
        }
        self.bytes += packet.bytes.len();
        self.queue.push_back(packet);
        dropped
    }

    fn pop(&mut self) -> Option<Packet> {
        let packet = self.queue.pop_front()?;
        self.bytes -= packet.bytes.len();
        Some(packet)
    }
}

#[derive(Debug, Default)]
struct Waiting {
    control: VecDeque<Frame>,
    disco: Packets,
    other: Packets,
    closed: bool,
}

/// The queues of one connection.
#[derive(Debug, Default)]
pub(super) struct Queue {
    waiting: Mutex<Waiting>,
    wake: Notify,
}

/// What was taken from the queues into a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Taken {
    pub(super) packets: u64,
    pub(super) bytes: u64,
}

impl Queue {
    fn lock(&self) -> std::sync::MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a packet in; says how many old ones had to go for it.
    pub(super) fn packet(&self, from: NodePublic, bytes: Bytes, is_disco: bool) -> u64 {
        let mut waiting = self.lock();
        let queue = match is_disco {
            true => &mut waiting.disco,
            false => &mut waiting.other,
        };
        let dropped = queue.push(Packet { from, bytes });
        drop(waiting);
        self.wake.notify_one();
        dropped
    }

    /// Puts another frame in; the oldest goes if there are too many.
    pub(super) fn frame(&self, frame: Frame) {
        let mut waiting = self.lock();
        if waiting.control.len() == CONTROL_CAPACITY {
            waiting.control.pop_front();
        }
        waiting.control.push_back(frame);
        drop(waiting);
        self.wake.notify_one();
    }

    /// The connection is to end.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.wake.notify_one();
    }

    pub(super) fn is_closed(&self) -> bool {
        self.lock().closed
    }

    /// Waits until there may be something to take, or the connection is to end.
    pub(super) async fn ready(&self) {
        self.wake.notified().await;
    }

    /// Encodes what waits: other frames first, then disco packets, which find paths that need no relay.
    pub(super) fn take(&self, batch: &mut BytesMut) -> Taken {
        let mut codec = Codec::server();
        let mut taken = Taken::default();
        let waiting = &mut *self.lock();
        for frame in waiting.control.drain(..) {
            codec
                .encode(frame, batch)
                .expect("frames without packets have no limit");
        }
        for queue in [&mut waiting.disco, &mut waiting.other] {
            while batch.len() < BATCH_BYTES
                && let Some(packet) = queue.pop()
            {
                put_recv_packet(batch, &packet.from, &packet.bytes)
                    .expect("packets were measured when they came in");
                taken.packets += 1;
                taken.bytes += packet.bytes.len() as u64;
            }
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use lowroad_wire::derp::MAX_PACKET;

    use super::*;

    const FROM: NodePublic = NodePublic::from_bytes([1; 32]);

    fn push_all(queue: &Queue, size: usize, count: usize) -> u64 {
        (0..count)
            .map(|_| queue.packet(FROM, vec![4; size].into(), false))
            .sum()
    }

    #[test]
    fn a_queue_is_full_by_number_or_by_size_and_then_the_oldest_go() {
        let small = Queue::default();
        assert_eq!(push_all(&small, 1280, CAPACITY + 3), 3);
        let large = Queue::default();
        assert_eq!(
            push_all(&large, MAX_PACKET, CAPACITY_BYTES / MAX_PACKET + 1),
            1
        );
        // Large packets take the room of many small ones.
        let largest = CAPACITY_BYTES / MAX_PACKET;
        assert_eq!(push_all(&small, MAX_PACKET, largest), CAPACITY as u64);
        let mut batch = BytesMut::new();
        assert_eq!(small.take(&mut batch).packets, 1);
    }
}
