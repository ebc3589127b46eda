//! What changes of the netmap mean for the kernel, the paths and the relays, peer by peer.

use std::{collections::BTreeSet, net::SocketAddr, time::Instant};

use lowroad_core::{
    intent::{Held, Intent},
    path::PathPeer,
};
use lowroad_wire::{
    control::{Node as Facts, NodeId},
    key::NodePublic,
    netmap::Changes,
};
use time::OffsetDateTime;

use super::Node;
use crate::traversal::relay::{RelayEntry, RelayTable};

/// What the relay door is to be told.
#[derive(Debug)]
pub enum Relays {
    Whole(RelayTable),
    /// `None`: no longer a peer.
    Changes(Vec<(NodePublic, Option<RelayEntry>)>),
}

impl Node {
    /// Peers that came or changed, and those that went, since the last call; `told` are those that are known, before and after.
    pub fn take_news(
        &mut self,
        told: &mut BTreeSet<NodeId>,
    ) -> (BTreeSet<NodeId>, BTreeSet<NodeId>) {
        self.news.take(self.map.as_ref(), told)
    }

    /// The next look at the netmap is at all of it.
    pub(super) fn read_anew(&mut self) {
        self.whole = true;
        self.policy_changed();
        self.programmed = false;
        self.held = Held::default();
        // Its peers are known again by the paths.
        self.relay_whole = true;
        if let Some(intent) = self.intent.take() {
            self.relay_changed
                .extend(intent.peers().map(|node| node.key));
        }
    }

    /// Takes over what messages and time have changed of the netmap.
    pub(super) fn follow(&mut self, changes: &Changes, now: Instant, clock: OffsetDateTime) {
        let Some(map) = &self.map else { return };
        let clock = map.control_time(clock);
        let follows = |intent: &&mut Intent| intent.follows(map, &self.choices, clock);
        let touched: BTreeSet<NodePublic> = match self.intent.as_mut().filter(follows) {
            Some(intent) => {
                if changes.filter {
                    intent.set_rules(map);
                }
                let change = intent.update(map, changes.peers(), clock);
                let policy = changes.filter || change.filter;
                self.whole |= change.whole;
                let touched = change.peers.keys().copied().collect();
                self.held
                    .note(change, intent, |key| self.paths.endpoint(key));
                if policy {
                    self.policy_changed();
                }
                touched
            }
            None => self.begin(clock),
        };
        self.programmed &= !self.whole && !self.filter_stale && self.held.is_empty();
        for key in &touched {
            self.update_path(now, key);
        }
        self.adopted.clear();
        self.relay_changed.extend(touched);
    }

    /// Reads the whole netmap. Returns the peers that were or are.
    fn begin(&mut self, clock: OffsetDateTime) -> BTreeSet<NodePublic> {
        self.read_anew();
        let map = self.map.as_ref().expect("only called with a netmap");
        let intent = Intent::new(map, &self.choices, clock);
        let mut touched = std::mem::take(&mut self.relay_changed);
        touched.extend(self.adopted.keys());
        touched.extend(intent.peers().map(|node| node.key));
        self.intent = Some(intent);
        touched
    }

    pub(super) fn intent(&self) -> &Intent {
        self.intent
            .as_ref()
            .expect("follow() makes one before anything is brought about")
    }

    /// The peer of this key, if it takes part in the search for paths.
    fn with_path(&self, key: &NodePublic) -> Option<&Facts> {
        let node = self.intent.as_ref()?.node(key)?;
        (!node.is_wireguard_only).then_some(node)
    }

    fn update_path(&mut self, now: Instant, key: &NodePublic) {
        let Some(node) = self.with_path(key) else {
            self.paths.remove_peer(key);
            self.relays.forget(key);
            self.stats.remove(key);
            return;
        };
        let mut peer = PathPeer {
            key: *key,
            disco: node.disco_key,
            home: node.home_region(),
            endpoints: node.endpoints.clone(),
            relay_address: std::net::Ipv4Addr::UNSPECIFIED,
            adopted: self.adopted.get(key).copied(),
        };
        peer.relay_address = self.relays.of(*key);
        self.paths.set_peer(now, &peer);
    }

    /// What has changed of how peers are relayed, since the last call. Those that WireGuard doesn't have yet have to wait for it.
    pub fn take_relays(&mut self) -> Relays {
        if self.whole {
            return Relays::Changes(Vec::new());
        }
        if std::mem::take(&mut self.relay_whole) {
            self.relay_changed.clear();
            return Relays::Whole(self.relay_table());
        }
        let changed = std::mem::take(&mut self.relay_changed);
        let (wait, ready) = changed.into_iter().partition(|key| self.held.has(key));
        self.relay_changed = wait;
        let ready: BTreeSet<NodePublic> = ready;
        let entries = ready.into_iter().map(|key| (key, self.relay_entry(&key)));
        Relays::Changes(entries.collect())
    }

    /// How every peer is relayed.
    pub fn relay_table(&mut self) -> RelayTable {
        let peers = self.intent.iter().flat_map(Intent::peers);
        let keys: Vec<_> = peers.map(|node| node.key).collect();
        keys.into_iter()
            .filter_map(|key| Some((key, self.relay_entry(&key)?)))
            .collect()
    }

    fn relay_entry(&mut self, key: &NodePublic) -> Option<RelayEntry> {
        let home = self.with_path(key)?.home_region();
        let address = self.relays.of(*key);
        let heard = self.paths.status(key).and_then(|status| status.relay);
        let by_relay = SocketAddr::new(address.into(), self.relay_port);
        Some(RelayEntry {
            address,
            region: heard.or(home),
            endpoint: self.paths.endpoint(key).unwrap_or(by_relay),
        })
    }
}
