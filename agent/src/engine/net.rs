//! Relays, STUN and what they say of the networks this node is in.

use std::{io, net::SocketAddr, sync::Arc, time::Instant};

use bytes::Bytes;
use lowroad_wire::{
    control::{DerpMap, EndpointType, NetInfo, RegionId},
    key::{NodePrivate, NodePublic},
};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::{
    kernel::KernelOptions,
    traversal::{
        port::{Datagram, Port},
        relay::{RelayEvent, RelayTable},
    },
};

/// What of a relay's event concerns the paths.
#[derive(Debug)]
pub enum NetEvent {
    Outgoing(NodePublic),
    Incoming(NodePublic),
    Disco {
        region: RegionId,
        from: NodePublic,
        bytes: Bytes,
    },
}

#[derive(Debug)]
pub struct Net {
    endpoints: Vec<(SocketAddr, EndpointType)>,
    home: Option<RegionId>,
    _keep: mpsc::Sender<RelayEvent>,
}

impl Net {
    pub fn start(
        node: NodePrivate,
        port: Port,
        options: &KernelOptions,
        tls: Arc<rustls::ClientConfig>,
    ) -> io::Result<(Self, mpsc::Receiver<RelayEvent>)> {
        let _ = (node, port, options, tls);
        let (keep, events) = mpsc::channel(16);
        Ok((
            Self {
                endpoints: Vec::new(),
                home: None,
                _keep: keep,
            },
            events,
        ))
    }

    pub fn next_deadline(&self) -> Option<Instant> {
        None
    }

    pub fn on_timer(&mut self, _now: Instant) {}

    /// Looks at addresses and asks STUN again.
    pub fn refresh(&mut self, _now: Instant) {}

    pub fn set_derp_map(&mut self, _now: Instant, map: &DerpMap) {
        self.home = map.regions.keys().next().copied();
    }

    pub fn set_table(&self, _table: RelayTable) {}

    pub fn send(&self, _region: RegionId, _to: NodePublic, _bytes: Vec<u8>) {}

    pub fn on_stun(&mut self, _now: Instant, _datagram: &Datagram) {}

    pub fn on_relay(&mut self, _now: Instant, event: RelayEvent) -> Option<NetEvent> {
        Some(match event {
            RelayEvent::Outgoing { peer } => NetEvent::Outgoing(peer),
            RelayEvent::Incoming { peer } => NetEvent::Incoming(peer),
            RelayEvent::Disco {
                region,
                from,
                bytes,
            } => NetEvent::Disco {
                region,
                from,
                bytes,
            },
        })
    }

    /// True once endpoints and home are known as well as they can be.
    pub fn is_settled(&self) -> bool {
        true
    }

    pub fn home(&self) -> Option<RegionId> {
        self.home
    }

    pub fn is_connected(&self, _region: RegionId) -> bool {
        true
    }

    pub fn endpoints(&self) -> &[(SocketAddr, EndpointType)] {
        &self.endpoints
    }

    /// True once after the endpoints have changed.
    pub fn take_new_endpoints(&mut self) -> bool {
        false
    }

    /// For the control server. Latencies alone are no reason to report again: `before` is kept then.
    pub fn net_info(&self, _before: Option<&NetInfo>) -> NetInfo {
        NetInfo {
            preferred_derp: self.home,
            ..NetInfo::default()
        }
    }

    pub fn health(&self) -> Vec<String> {
        Vec::new()
    }

    /// As the stock client's `netcheck`.
    pub fn report(&self) -> Value {
        json!({})
    }
}
