//! A peer that nothing has passed to or from yet: so it stays with most of ten thousand, and one that is awake takes four times as much.

use std::net::Ipv4Addr;

use super::*;
use crate::path::PeerStats;

/// What the netmap says of it.
pub struct Asleep {
    pub disco: Option<DiscoPublic>,
    home: Option<RegionId>,
    relay_address: Ipv4Addr,
    /// Those that may be used.
    endpoints: Box<[SocketAddr]>,
    /// WireGuard's counters have been read, and were zero.
    counted: bool,
}

impl Asleep {
    pub fn new(facts: &PathPeer) -> Self {
        let endpoints = facts.endpoints.iter().filter_map(|at| usable(*at));
        Self {
            disco: facts.disco,
            home: facts.home,
            relay_address: facts.relay_address,
            endpoints: endpoints.take(MAX_NETMAP_ENDPOINTS).collect(),
            counted: false,
        }
    }

    /// What changed in the netmap; false if there is more to do than to note it.
    pub fn update(&mut self, facts: &PathPeer) -> bool {
        let stays = self.relay_address == facts.relay_address;
        if stays {
            *self = Self {
                counted: self.counted,
                ..Self::new(facts)
            };
        }
        stays
    }

    /// WireGuard's counters; false if they say that something has passed, or that the peer is elsewhere.
    pub fn note_stats(&mut self, stats: &PeerStats, relay_port: u16) -> bool {
        let relay = self.endpoint(relay_port);
        let stays = (stats.rx_bytes, stats.tx_bytes) == (0, 0)
            && stats.endpoint.is_none_or(|endpoint| endpoint == relay);
        self.counted |= stays;
        stays
    }

    /// The relay's.
    pub fn endpoint(&self, relay_port: u16) -> SocketAddr {
        SocketAddr::from((self.relay_address, relay_port))
    }

    pub fn status(&self) -> PathStatus {
        PathStatus {
            current: None,
            latency: None,
            relay: self.home,
            active: false,
        }
    }

    pub fn wake(self, key: NodePublic, relay_port: u16) -> Peer {
        let facts = PathPeer {
            key,
            disco: self.disco,
            home: self.home,
            endpoints: self.endpoints.into_vec(),
            relay_address: self.relay_address,
            adopted: None,
        };
        Peer {
            counters: self.counted.then_some(Counters { rx: 0, tx: 0 }),
            ..Peer::new(&facts, relay_port)
        }
    }
}
