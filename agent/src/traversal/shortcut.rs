//! The way between the relay door and an embedded WireGuard: in this process, instead of through the kernel's loopback device.
//!
//! A relayed packet crosses `lo` twice otherwise, once from WireGuard to the door and once back in at the other end: measured, that is
//! a quarter of all that relaying costs. Addresses are the same as on `lo`, so nobody else has to know which way is in use.

use std::{
    fmt,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
};

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use tokio::sync::mpsc;

/// Packets for WireGuard that wait to be read, as a socket's buffer would hold; more are dropped.
const WAITING: usize = 1024;

/// A packet, and the endpoint of its peer.
pub type Inward = (SocketAddr, Bytes);

/// What takes packets for relayed peers, each with the peer's relay address.
type Door = Box<dyn Fn(&mut Vec<(Ipv4Addr, Bytes)>) + Send + Sync>;

/// Both ends' handle.
#[derive(Clone)]
pub struct Shortcut(Arc<Ends>);

struct Ends {
    inward: mpsc::Sender<Inward>,
    door: ArcSwapOption<Door>,
}

impl fmt::Debug for Shortcut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Shortcut")
    }
}

impl Shortcut {
    /// The receiver is for WireGuard.
    pub fn new() -> (Self, mpsc::Receiver<Inward>) {
        let (inward, packets) = mpsc::channel(WAITING);
        let ends = Ends {
            inward,
            door: ArcSwapOption::empty(),
        };
        (Self(Arc::new(ends)), packets)
    }

    /// Gives WireGuard packets that relays brought.
    pub fn inject(&self, packets: impl Iterator<Item = Inward>) {
        for packet in packets {
            if self.0.inward.try_send(packet).is_err() {
                tracing::trace!("WireGuard does not keep up with relayed packets");
            }
        }
    }

    /// Takes packets that WireGuard sends to relayed peers, out of `packets`. Without a door they are lost, as on `lo`.
    pub fn send(&self, packets: &mut Vec<(Ipv4Addr, Bytes)>) {
        match &*self.0.door.load() {
            Some(door) => door(packets),
            None => packets.clear(),
        }
    }

    pub(crate) fn open(&self, door: Door) {
        self.0.door.store(Some(Arc::new(door)));
    }

    pub(crate) fn close(&self) {
        self.0.door.store(None);
    }
}
