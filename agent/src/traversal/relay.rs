//! The door between WireGuard and the relays: a loopback address for every peer.

use std::{
    collections::HashMap,
    net::{Ipv4Addr, SocketAddr},
};

use bytes::Bytes;
use lowroad_wire::{control::RegionId, key::NodePublic};

/// How one peer is relayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RelayEntry {
    /// Its loopback address in 127.128.0.0/9.
    pub address: Ipv4Addr,
    /// The region to send by; `None` drops what leaves.
    pub region: Option<RegionId>,
    /// The endpoint that WireGuard has for it, the source of what is injected.
    pub endpoint: SocketAddr,
}

pub type RelayTable = HashMap<NodePublic, RelayEntry>;

#[derive(Debug)]
pub enum RelayEvent {
    /// Data left for this peer by the relay; at once after a pause, then about once a second.
    Outgoing { peer: NodePublic },
    /// Data came from this peer by the relay; likewise. For `Paths::on_relayed_data`.
    Incoming { peer: NodePublic },
    /// A disco message, for `Paths::on_relayed`.
    Disco {
        region: RegionId,
        from: NodePublic,
        bytes: Bytes,
    },
}
