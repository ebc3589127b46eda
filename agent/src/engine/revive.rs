//! Sessions after a restart with the userspace device, which die with the agent.
//!
//! The other side keeps encrypting for the dead session, and WireGuard gives it up after 15 s only. But a peer with which traffic flows speaks disco to us
//! every 3 s. Such a peer that we have no session with is sent a TSMP ping: that begins a new one, and whatever stands behind its filter never sees it.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use lowroad_wire::{
    control::Node as NodeFacts,
    key::NodePublic,
    netmap::NetMap,
    tsmp::{Message, Packet},
};

/// Later, a peer without a session is one that nobody talks to.
const WINDOW: Duration = Duration::from_secs(60);
/// A connection that has just begun gets its handshake done within this time by itself.
const PATIENCE: Duration = Duration::from_millis(500);
/// A peer is pinged at most this often, as WireGuard repeats a handshake.
const PAUSE: Duration = Duration::from_secs(5);
/// Between two looks through the peers.
const LOOK_PAUSE: Duration = Duration::from_millis(10);

#[derive(Debug)]
pub struct Revival {
    until: Instant,
    looked: Option<Instant>,
    heard: BTreeMap<NodePublic, Heard>,
}

#[derive(Debug)]
struct Heard {
    first: Instant,
    pinged: Option<Instant>,
}

impl Revival {
    pub fn new(now: Instant) -> Self {
        Self {
            until: now + WINDOW,
            looked: None,
            heard: BTreeMap::new(),
        }
    }

    pub fn is_over(&self, now: Instant) -> bool {
        now >= self.until
    }

    /// True if there is time to look who has spoken disco: strangers can send any amount of it.
    pub fn may_look(&mut self, now: Instant) -> bool {
        let may = self
            .looked
            .is_none_or(|at| now.duration_since(at) >= LOOK_PAUSE);
        if may {
            self.looked = Some(now);
        }
        may
    }

    /// A peer without a session has spoken disco. True if a session is to be begun now.
    pub fn on_disco(&mut self, now: Instant, peer: NodePublic) -> bool {
        let heard = self.heard.entry(peer).or_insert(Heard {
            first: now,
            pinged: None,
        });
        let due = now.duration_since(heard.first) >= PATIENCE
            && heard
                .pinged
                .is_none_or(|at| now.duration_since(at) >= PAUSE);
        if due {
            heard.pinged = Some(now);
        }
        due && !self.is_over(now)
    }
}

/// A TSMP ping to this peer, if we have an address of a family in common.
pub fn ping(map: &NetMap, peer: &NodeFacts, data: [u8; 8]) -> Option<Vec<u8>> {
    let own = map.self_node.as_ref()?;
    let (source, destination) = own.ips().find_map(|source| {
        Some((
            source,
            peer.ips().find(|ip| ip.is_ipv4() == source.is_ipv4())?,
        ))
    })?;
    Packet {
        source,
        destination,
        message: Message::Ping(data),
    }
    .encode()
    .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_that_goes_on_without_a_session_is_pinged_once_in_five_seconds_for_a_minute() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let (a, b) = (
            NodePublic::from_bytes([1; 32]),
            NodePublic::from_bytes([2; 32]),
        );
        let mut revival = Revival::new(start);
        assert!(!revival.on_disco(at(0), a), "a handshake may be on its way");
        assert!(!revival.on_disco(at(100), a));
        assert!(revival.on_disco(at(3000), a));
        assert!(!revival.on_disco(at(6000), a));
        assert!(revival.on_disco(at(9000), a));
        assert!(!revival.on_disco(at(59_000), b));
        assert!(!revival.on_disco(at(62_000), b), "the time is over");
    }
}
