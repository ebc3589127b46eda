//! Who is connected, by key. A key may be connected several times; the connection that wrote last is active.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use arc_swap::ArcSwapOption;
use lowroad_wire::derp::{Frame, GoneReason};
use lowroad_wire::key::NodePublic;

use super::queue::Queue;

/// Connections of one key; a node has one, and may leave dead ones behind when it moves. Beyond it the oldest end.
const MAX_OF_ONE: usize = 8;

/// What connections of the same key are told.
const DUPLICATE: &str = "another connection uses this node's key; is its state directory copied?";

/// A connected key. It stays the same as long as any connection of the key lasts.
#[derive(Debug)]
pub(super) struct Peer {
    active: ArcSwapOption<Queue>,
    duplicate: AtomicBool,
    rest: Mutex<Rest>,
}

#[derive(Debug, Default)]
struct Rest {
    connections: Vec<Arc<Queue>>,
    /// Whom connections that have ended sent packets.
    sent_to: HashSet<NodePublic>,
}

impl Peer {
    /// The queue for packets to this key; `None` once it has left.
    pub(super) fn active(&self) -> Option<arc_swap::Guard<Option<Arc<Queue>>>> {
        let active = self.active.load();
        active.is_some().then_some(active)
    }

    /// Notes that a connection of this key wrote.
    pub(super) fn wrote(&self, queue: &Arc<Queue>) {
        if self.duplicate.load(Ordering::Relaxed) {
            let _in_turn = self.rest.lock().unwrap_or_else(PoisonError::into_inner);
            self.active.store(Some(queue.clone()));
        }
    }
}

/// All connected keys.
#[derive(Debug, Default)]
pub(super) struct Peers(RwLock<HashMap<NodePublic, Arc<Peer>>>);

impl Peers {
    pub(super) fn len(&self) -> usize {
        self.0.read().unwrap_or_else(PoisonError::into_inner).len()
    }

    pub(super) fn get(&self, key: &NodePublic) -> Option<Arc<Peer>> {
        let peers = self.0.read().unwrap_or_else(PoisonError::into_inner);
        peers.get(key).cloned()
    }

    /// Adds a connection, which becomes the active one of its key.
    pub(super) fn add(&self, key: NodePublic, queue: &Arc<Queue>) -> Arc<Peer> {
        let mut peers = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let peer = peers.entry(key).or_insert_with(|| {
            Arc::new(Peer {
                active: ArcSwapOption::empty(),
                duplicate: AtomicBool::new(false),
                rest: Mutex::default(),
            })
        });
        let mut rest = peer.rest.lock().unwrap_or_else(PoisonError::into_inner);
        rest.connections.push(queue.clone());
        peer.active.store(Some(queue.clone()));
        let older = rest.connections.iter().rev().skip(MAX_OF_ONE);
        older.for_each(|connection| connection.close());
        if rest.connections.len() > 1 {
            peer.duplicate.store(true, Ordering::Relaxed);
            for connection in &rest.connections {
                connection.frame(Frame::Health(DUPLICATE.to_owned()));
            }
        }
        drop(rest);
        peer.clone()
    }

    /// Removes a connection. With the last one of a key, everybody to whom its connections sent
    /// packets is told that it has gone, if `tell`.
    pub(super) fn remove(
        &self,
        key: &NodePublic,
        queue: &Arc<Queue>,
        sent_to: impl Iterator<Item = NodePublic>,
        tell: bool,
    ) {
        let mut peers = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let Some(peer) = peers.get(key).cloned() else {
            return;
        };
        let mut rest = peer.rest.lock().unwrap_or_else(PoisonError::into_inner);
        rest.connections.retain(|other| !Arc::ptr_eq(other, queue));
        // Only keys that are here can be told later, so that the set stays as small as the tailnet.
        rest.sent_to
            .extend(sent_to.filter(|other| peers.contains_key(other)));
        match rest.connections.as_slice() {
            [] => {
                peer.active.store(None);
                peers.remove(key);
                for other in rest.sent_to.drain().filter(|_| tell) {
                    if let Some(active) =
                        peers.get(&other).and_then(|other| other.active.load_full())
                    {
                        active.frame(Frame::PeerGone {
                            key: *key,
                            reason: GoneReason::Disconnected,
                        });
                    }
                }
            }
            [only] => {
                peer.duplicate.store(false, Ordering::Relaxed);
                peer.active.store(Some(only.clone()));
                only.frame(Frame::Health(String::new()));
            }
            [.., newest] => {
                let was_active = peer
                    .active
                    .load()
                    .as_ref()
                    .is_some_and(|active| Arc::ptr_eq(active, queue));
                if was_active {
                    peer.active.store(Some(newest.clone()));
                }
            }
        }
    }

    /// Ends all connections of a key.
    pub(super) fn close(&self, key: &NodePublic) {
        if let Some(peer) = self.get(key) {
            let rest = peer.rest.lock().unwrap_or_else(PoisonError::into_inner);
            for connection in &rest.connections {
                connection.close();
            }
        }
    }
}
