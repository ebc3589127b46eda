//! What waits to be written to one connection.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use bytes::{Bytes, BytesMut};
use lowroad_wire::derp::{Codec, Frame, put_recv_packet};
use lowroad_wire::key::NodePublic;
use tokio::sync::Notify;
use tokio_util::codec::Encoder;

/// Packets per queue. With packets of 64 KiB at most, a client's two queues stay below 4 MiB.
const CAPACITY: usize = 32;

/// Other frames that may wait; they are small, and a client that reads takes them at once.
const CONTROL_CAPACITY: usize = 64;

/// A batch is closed when it reaches this many bytes.
const BATCH_BYTES: usize = 64 << 10;

#[derive(Debug)]
struct Packet {
    from: NodePublic,
    bytes: Bytes,
}

#[derive(Debug, Default)]
struct Waiting {
    control: VecDeque<Frame>,
    disco: VecDeque<Packet>,
    other: VecDeque<Packet>,
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

    /// Puts a packet in; says whether the oldest had to go for it.
    pub(super) fn packet(&self, from: NodePublic, bytes: Bytes, is_disco: bool) -> bool {
        let mut waiting = self.lock();
        let queue = match is_disco {
            true => &mut waiting.disco,
            false => &mut waiting.other,
        };
        let full = queue.len() == CAPACITY;
        if full {
            queue.pop_front();
        }
        queue.push_back(Packet { from, bytes });
        drop(waiting);
        self.wake.notify_one();
        full
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
                && let Some(packet) = queue.pop_front()
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
