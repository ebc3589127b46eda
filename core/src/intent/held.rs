//! What the kernel held of that which has changed since it was last brought up to date.

use std::{collections::BTreeMap, net::SocketAddr};

use ipnet::IpNet;
use lowroad_wire::key::NodePublic;

use super::{Change, Intent, into_tunnel};
use crate::desired::{Desired, Observed, ObservedDevice, Peer};

/// Peers and routes that changes have touched, as they were before the first of them. Empty: the kernel holds what is wanted.
///
/// What nothing has wanted for a while is not relied on: WireGuard keeps the endpoint of a peer that needs none, but has followed the peer since, wherever
/// that went. One that is wanted again is set again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Held {
    pub(super) peers: BTreeMap<NodePublic, Option<Peer>>,
    pub(super) routes: BTreeMap<IpNet, bool>,
}

impl Held {
    /// Adds what a change of `intent` has touched and made different. `endpoint` is what the kernel has, or is about to get, as the endpoint of a peer.
    pub fn note(
        &mut self,
        change: Change,
        intent: &Intent,
        endpoint: impl Fn(&NodePublic) -> Option<SocketAddr>,
    ) {
        for (key, mut before) in change.peers {
            if let Some(peer) = &mut before {
                peer.endpoint = endpoint(&key).or(peer.endpoint);
            }
            if before != intent.peer(&key, &endpoint) {
                self.peers.entry(key).or_insert(before);
            }
        }
        for (prefix, before) in change.routes {
            if before != intent.has_route(&prefix) {
                self.routes.entry(prefix).or_insert(before);
            }
        }
    }

    /// Whether the kernel is behind with this peer.
    pub fn has(&self, peer: &NodePublic) -> bool {
        self.peers.contains_key(peer)
    }

    pub fn is_empty(&self) -> bool {
        self.peers.is_empty() && self.routes.is_empty()
    }

    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// The kernel as it is, as far as it is about to change.
    pub(super) fn observed(&self, desired: &Desired) -> Observed {
        let peers = self
            .peers
            .iter()
            .filter_map(|(key, peer)| Some((*key, peer.clone()?)));
        let routes = self.routes.iter().filter(|(_, held)| **held);
        Observed {
            device: Some(ObservedDevice {
                mtu: desired.mtu,
                up: true,
                filter_attached: true,
                addresses: desired.addresses.clone(),
                public_key: Some(desired.wireguard.private_key.public()),
                listen_port: desired.wireguard.listen_port,
                fwmark: desired.wireguard.fwmark,
                peers: peers.collect(),
            }),
            routes: routes.map(|(prefix, _)| into_tunnel(*prefix)).collect(),
            rules: desired.rules.clone(),
        }
    }
}
