//! What waits to be sent by one region.

use std::{
    collections::VecDeque,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use lowroad_wire::{
    derp::{Codec, Frame, ServerInfo, put_send_packet},
    disco,
    key::NodePublic,
};
use tokio::sync::Notify;
use tokio_util::codec::Encoder as _;

/// Packets of either sort that may wait: about 20 ms of 500 Mbit/s. Longer, and they come too late anyhow.
const LIMIT: usize = 1024;
/// What has waited longer for a connection comes too late. A WireGuard handshake is repeated only after 5 s, so not sooner.
const MAX_AGE: Duration = Duration::from_secs(3);
/// Frames of our own (pongs, home notes) that may wait.
const FRAMES: usize = 16;

/// Shared by whoever sends and the region's task.
#[derive(Debug, Default)]
pub struct Queue {
    waiting: Mutex<Waiting>,
    wake: Notify,
    connected: AtomicBool,
    sent: AtomicU64,
    dropped: AtomicU64,
}

#[derive(Debug, Default)]
struct Waiting {
    frames: VecDeque<Frame>,
    /// Goes before data: a flood must not keep two nodes from finding a path around the relay.
    disco: VecDeque<Outgoing>,
    data: VecDeque<Outgoing>,
}

#[derive(Debug)]
struct Outgoing {
    to: NodePublic,
    packet: Bytes,
    since: Instant,
}

impl Waiting {
    fn is_empty(&self) -> bool {
        self.frames.is_empty() && self.disco.is_empty() && self.data.is_empty()
    }
}

impl Queue {
    pub fn push(&self, to: NodePublic, packet: Bytes) {
        let mut waiting = self.waiting();
        let was_empty = waiting.is_empty();
        let Waiting { disco, data, .. } = &mut *waiting;
        let queue = if disco::looks_like(&packet) {
            disco
        } else {
            data
        };
        if queue.len() >= LIMIT {
            queue.pop_front();
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
        queue.push_back(Outgoing {
            to,
            packet,
            since: Instant::now(),
        });
        drop(waiting);
        if was_empty {
            self.wake.notify_one();
        }
    }

    /// A frame of our own; the oldest gives way.
    pub fn push_frame(&self, frame: Frame) {
        let mut waiting = self.waiting();
        if waiting.frames.len() >= FRAMES {
            waiting.frames.pop_front();
        }
        waiting.frames.push_back(frame);
        drop(waiting);
        self.wake.notify_one();
    }

    /// Until there is something to send.
    pub async fn ready(&self) {
        while self.waiting().is_empty() {
            self.wake.notified().await;
        }
    }

    pub fn is_empty(&self) -> bool {
        self.waiting().is_empty()
    }

    /// Moves what waits into `out`, as frames, until it holds about `limit` bytes.
    pub fn drain(&self, out: &mut BytesMut, limit: usize, bucket: &mut TokenBucket) {
        let mut waiting = self.waiting();
        while let Some(frame) = waiting.frames.pop_front() {
            let _ = Codec::client().encode(frame, out);
        }
        while out.len() < limit {
            let disco = waiting.disco.pop_front();
            let Some(Outgoing { to, packet, .. }) = disco.or_else(|| waiting.data.pop_front())
            else {
                break;
            };
            if bucket.take(packet.len()) && put_send_packet(out, &to, &packet).is_ok() {
                self.sent.fetch_add(1, Ordering::Relaxed);
            } else {
                self.dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Drops what has waited for too long, and our frames: they were for a connection that is gone.
    pub fn expire(&self) {
        let mut waiting = self.waiting();
        waiting.frames.clear();
        let before = waiting.disco.len() + waiting.data.len();
        waiting
            .disco
            .retain(|packet| packet.since.elapsed() < MAX_AGE);
        waiting
            .data
            .retain(|packet| packet.since.elapsed() < MAX_AGE);
        let lost = before - waiting.disco.len() - waiting.data.len();
        self.dropped.fetch_add(lost as u64, Ordering::Relaxed);
    }

    pub fn set_connected(&self, connected: bool) {
        self.connected.store(connected, Ordering::Relaxed);
    }

    pub fn is_connected(&self) -> bool {
        self.connected.load(Ordering::Relaxed)
    }

    /// Packets handed to connections so far.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a server allows us to send, if it says.
#[derive(Debug)]
pub struct TokenBucket {
    rate: Option<Rate>,
}

#[derive(Debug)]
struct Rate {
    bytes_per_second: f64,
    burst: f64,
    tokens: f64,
    filled: Instant,
}

impl TokenBucket {
    pub fn new(info: &ServerInfo) -> Self {
        let rate = (info.bytes_per_second > 0).then(|| {
            // A server that allows a rate but no burst would allow nothing.
            let burst = info.bytes_burst.max(info.bytes_per_second) as f64;
            Rate {
                bytes_per_second: info.bytes_per_second as f64,
                burst,
                tokens: burst,
                filled: Instant::now(),
            }
        });
        Self { rate }
    }

    fn take(&mut self, bytes: usize) -> bool {
        let Some(rate) = &mut self.rate else {
            return true;
        };
        let bytes = bytes as f64;
        if rate.tokens < bytes {
            let passed: Duration = rate.filled.elapsed();
            rate.filled += passed;
            rate.tokens =
                (rate.tokens + rate.bytes_per_second * passed.as_secs_f64()).min(rate.burst);
        }
        let allowed = rate.tokens >= bytes;
        if allowed {
            rate.tokens -= bytes;
        }
        allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TO: NodePublic = NodePublic::from_bytes([1; 32]);

    fn unlimited() -> TokenBucket {
        TokenBucket::new(&ServerInfo::default())
    }

    #[test]
    fn a_full_queue_drops_the_oldest() {
        let queue = Queue::default();
        for number in 0..LIMIT as u32 + 3 {
            queue.push(TO, Bytes::copy_from_slice(&number.to_be_bytes()));
        }
        assert_eq!(queue.dropped(), 3);
        let mut out = BytesMut::new();
        queue.drain(&mut out, usize::MAX, &mut unlimited());
        assert_eq!(out[5 + 32..][..4], 3_u32.to_be_bytes());
        assert_eq!(queue.sent(), LIMIT as u64);
        assert!(queue.is_empty());
    }

    #[test]
    fn disco_goes_before_data() {
        let queue = Queue::default();
        queue.push(TO, Bytes::from_static(&[4; 100]));
        let mut packet = disco::MAGIC.to_vec();
        packet.resize(100, 0);
        queue.push(TO, packet.clone().into());
        let mut out = BytesMut::new();
        queue.drain(&mut out, 1, &mut unlimited());
        assert_eq!(out[5 + 32..], packet);
        assert!(!queue.is_empty(), "the limit was reached");
    }

    #[test]
    fn what_the_server_does_not_allow_is_dropped() {
        let queue = Queue::default();
        for _ in 0..10 {
            queue.push(TO, Bytes::from_static(&[4; 100]));
        }
        let mut bucket = TokenBucket::new(&ServerInfo {
            bytes_per_second: 1,
            bytes_burst: 500,
            ..Default::default()
        });
        queue.drain(&mut BytesMut::new(), usize::MAX, &mut bucket);
        assert_eq!((queue.sent(), queue.dropped()), (5, 5));
    }
}
