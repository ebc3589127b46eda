//! How many bytes went to peers and came from them directly, by the family of the underlay: WireGuard's counters of each peer since the last
//! look at them, by the endpoint that the peer had at this look. While anything passes they are read each second, among more than 256 peers every 3 s; while there are
//! only peers with silent agents on direct paths, every 10 s; and when somebody asks. A relayed packet that is brought in with a direct endpoint as its source counts here as
//! well, beside the relays' own count: WireGuard does not know of the relay.

use std::{collections::BTreeMap, net::IpAddr};

use lowroad_core::desired::PeerStats;
use lowroad_wire::key::NodePublic;

use crate::traversal::relay::relay_address;

/// As WireGuard counts them: its own messages, headers of UDP and IP left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bytes {
    pub received: u64,
    pub sent: u64,
}

/// Since this identity was taken on: at the start of the session, and with each new node key. The device's counters and the filter's go on meanwhile.
#[derive(Debug)]
pub struct Direct {
    pub v4: Bytes,
    pub v6: Bytes,
    /// The counters at the last look; `None` before the first one at a device that an earlier agent left.
    last: Option<BTreeMap<NodePublic, Bytes>>,
}

impl Direct {
    /// What an earlier agent's device has counted is not ours.
    pub fn new(found_device: bool) -> Self {
        Self {
            v4: Bytes::default(),
            v6: Bytes::default(),
            last: (!found_device).then(BTreeMap::new),
        }
    }

    pub fn count(&mut self, stats: &[PeerStats]) {
        let now = stats.iter().map(|peer| (peer.key, counters(peer)));
        let now: BTreeMap<_, _> = now.filter(|(_, now)| *now != Bytes::default()).collect();
        if let Some(last) = &self.last {
            for peer in stats {
                let direct = peer
                    .endpoint
                    .filter(|endpoint| relay_address(*endpoint).is_none());
                let sum = match direct.map(|endpoint| endpoint.ip().to_canonical()) {
                    Some(IpAddr::V4(_)) => &mut self.v4,
                    Some(IpAddr::V6(_)) => &mut self.v6,
                    None => continue,
                };
                let last = last.get(&peer.key).copied().unwrap_or_default();
                sum.received += since(last.received, peer.rx_bytes);
                sum.sent += since(last.sent, peer.tx_bytes);
            }
        }
        self.last = Some(now);
    }
}

fn counters(peer: &PeerStats) -> Bytes {
    Bytes {
        received: peer.rx_bytes,
        sent: peer.tx_bytes,
    }
}

/// A smaller number than before means that the peer was added anew.
fn since(last: u64, now: u64) -> u64 {
    now.checked_sub(last).unwrap_or(now)
}

#[cfg(test)]
mod tests {
    use super::*;

    const V4: &str = "192.0.2.1:41641";
    const V6: &str = "[2001:db8::1]:41641";
    const RELAY: &str = "127.128.0.1:41642";

    fn stats(endpoint: &str, rx_bytes: u64, tx_bytes: u64) -> PeerStats {
        PeerStats {
            key: NodePublic::from_bytes([1; 32]),
            endpoint: Some(endpoint.parse().unwrap()),
            rx_bytes,
            tx_bytes,
            last_handshake: None,
        }
    }

    fn bytes(received: u64, sent: u64) -> Bytes {
        Bytes { received, sent }
    }

    #[test]
    fn bytes_count_for_the_family_of_the_endpoint_and_relayed_ones_for_none() {
        let mut direct = Direct::new(false);
        for (endpoint, rx, tx) in [
            (V4, 10, 1),
            (V4, 30, 5),
            (V6, 130, 25),
            (RELAY, 1130, 525),
            (V4, 1131, 527),
            ("[::ffff:192.0.2.1]:41641", 1132, 528),
        ] {
            direct.count(&[stats(endpoint, rx, tx)]);
        }
        assert_eq!(direct.v4, bytes(32, 8));
        assert_eq!(direct.v6, bytes(100, 20));
    }

    #[test]
    fn a_peer_that_comes_anew_counts_from_zero_and_an_earlier_agents_bytes_do_not_count() {
        let mut direct = Direct::new(true);
        direct.count(&[stats(V4, 1000, 2000)]);
        assert_eq!(direct.v4, bytes(0, 0));
        direct.count(&[stats(V4, 1007, 2009)]);
        assert_eq!(direct.v4, bytes(7, 9));
        direct.count(&[stats(V4, 3, 4)]);
        assert_eq!(direct.v4, bytes(10, 13));
        direct.count(&[]);
        direct.count(&[stats(V4, 5, 6)]);
        assert_eq!(direct.v4, bytes(15, 19));
    }
}
