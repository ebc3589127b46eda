//! What the relay counts.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;
use tokio::sync::Notify;

use super::queue::Taken;

/// Counts while something lasts, and knows when none is left.
#[derive(Debug, Default)]
pub(super) struct Gauge {
    count: AtomicU64,
    changed: Notify,
}

impl Gauge {
    pub(super) fn enter(&self) -> Inside<'_> {
        self.count.fetch_add(1, Ordering::SeqCst);
        Inside(self)
    }

    pub(super) fn load(&self, order: Ordering) -> u64 {
        self.count.load(order)
    }

    pub(super) async fn all_gone(&self) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if self.count.load(Ordering::SeqCst) == 0 {
                return;
            }
            changed.await;
        }
    }
}

/// Leaves the gauge when dropped.
#[derive(Debug)]
pub(super) struct Inside<'a>(&'a Gauge);

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.0.count.fetch_sub(1, Ordering::SeqCst);
        self.0.changed.notify_waiters();
    }
}

macro_rules! counters {
    ($($(#[doc = $doc:literal])* $name:ident),* $(,)?) => {
        #[derive(Debug, Default)]
        pub(super) struct Counters {
            /// Connections served, greeting or not.
            pub(super) open: Gauge,
            $($(#[doc = $doc])* pub(super) $name: AtomicU64,)*
        }

        /// The relay at one moment; counts are since its start.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
        pub struct Status {
            /// Open connections, greeting or not.
            pub connections: u64,
            /// Keys connected.
            pub clients: u64,
            $($(#[doc = $doc])* pub $name: u64,)*
        }

        impl Counters {
            pub(super) fn sent(&self, taken: Taken) {
                self.packets_sent.fetch_add(taken.packets, Ordering::Relaxed);
                self.bytes_sent.fetch_add(taken.bytes, Ordering::Relaxed);
            }

            pub(super) fn status(&self, clients: usize) -> Status {
                Status {
                    connections: self.open.load(Ordering::Relaxed),
                    clients: clients as u64,
                    $($name: self.$name.load(Ordering::Relaxed),)*
                }
            }
        }
    };
}

counters! {
    /// Clients that were let in.
    accepted,
    /// Connections refused: greeting failed or took too long, key not known, or others took its place.
    refused,
    /// Connections dropped because they took nothing for too long.
    stalled,
    /// Packets received from clients.
    packets_received,
    /// Bytes of those packets.
    bytes_received,
    /// Packets sent to clients.
    packets_sent,
    /// Bytes of those packets.
    bytes_sent,
    /// Packets dropped because the receiver's queue was full.
    dropped_queue_full,
    /// Packets dropped because the receiver isn't here.
    dropped_not_here,
}
