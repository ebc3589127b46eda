//! The first handshake with a peer of whom the netmap has not said enough yet.
//!
//! A node that has just joined starts to talk before everybody has heard of it, and WireGuard repeats an
//! unanswered initiation only after 5 s. So the last initiation of every unknown node key that a relay brings
//! is kept for a moment, and handed over when the netmap brings the peer; and so is the last one to every peer
//! whose home relay is not known yet, until it is, and the last one that went by a relay, until there is a direct path.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use lowroad_wire::key::NodePublic;

/// How long an initiation is kept. WireGuard refuses none for its age, but its sender gives up after 5 s.
pub const KEEP: Duration = Duration::from_secs(3);
/// How many keys are remembered; a relay lets anybody speak to us.
pub const MAX_HELD: usize = 256;

/// Bytes of an initiation.
pub const INITIATION_LEN: usize = 148;
const INITIATION_START: [u8; 4] = [1, 0, 0, 0];

/// Held initiations: at most one per key, [`MAX_HELD`] in all, for [`KEEP`].
#[derive(Debug, Default)]
pub struct FirstContact {
    held: BTreeMap<NodePublic, (Instant, Box<[u8]>)>,
}

impl FirstContact {
    /// Keeps a packet of or to this key if it is a handshake initiation; a newer one replaces an older one.
    /// When full, the oldest goes.
    pub fn hold(&mut self, now: Instant, key: NodePublic, packet: &[u8]) {
        if packet.len() != INITIATION_LEN || !packet.starts_with(&INITIATION_START) {
            return;
        }
        self.held.retain(|_, (at, _)| is_fresh(*at, now));
        if self.held.len() >= MAX_HELD && !self.held.contains_key(&key) {
            let oldest = self.held.iter().min_by_key(|(_, (at, _))| *at);
            if let Some(key) = oldest.map(|(key, _)| *key) {
                self.held.remove(&key);
            }
        }
        self.held.insert(key, (now, packet.into()));
    }

    /// The initiation of a key that has become known, unless it is too old.
    pub fn take(&mut self, now: Instant, key: &NodePublic) -> Option<Box<[u8]>> {
        let (at, packet) = self.held.remove(key)?;
        is_fresh(at, now).then_some(packet)
    }

    /// The keys that wait.
    pub fn keys(&self) -> impl Iterator<Item = &NodePublic> {
        self.held.keys()
    }
}

fn is_fresh(at: Instant, now: Instant) -> bool {
    now.saturating_duration_since(at) < KEEP
}

#[cfg(test)]
mod tests {
    use super::*;

    fn initiation(mark: u8) -> Vec<u8> {
        let mut packet = vec![mark; INITIATION_LEN];
        packet[..4].copy_from_slice(&INITIATION_START);
        packet
    }

    fn key(number: u16) -> NodePublic {
        let mut bytes = [7; 32];
        bytes[..2].copy_from_slice(&number.to_be_bytes());
        NodePublic::from_bytes(bytes)
    }

    #[test]
    fn the_last_initiation_is_kept_for_three_seconds_and_given_once() {
        let start = Instant::now();
        let mut held = FirstContact::default();
        held.hold(start, key(1), &initiation(1));
        held.hold(start, key(1), &initiation(2));
        let later = start + Duration::from_millis(2900);
        assert_eq!(
            held.take(later, &key(1)).as_deref(),
            Some(&initiation(2)[..])
        );
        assert_eq!(held.take(later, &key(1)), None);
        held.hold(start, key(1), &initiation(1));
        assert_eq!(held.take(start + KEEP, &key(1)), None);
    }

    #[test]
    fn only_initiations_are_kept() {
        let start = Instant::now();
        let mut held = FirstContact::default();
        held.hold(start, key(1), &[4; INITIATION_LEN]);
        held.hold(start, key(1), &initiation(1)[..147]);
        held.hold(start, key(1), &[]);
        assert_eq!(held.keys().count(), 0);
    }

    #[test]
    fn a_flood_of_keys_pushes_out_the_oldest_and_grows_no_further() {
        let start = Instant::now();
        let mut held = FirstContact::default();
        for number in 0..1000 {
            held.hold(
                start + Duration::from_millis(u64::from(number)),
                key(number),
                &initiation(0),
            );
        }
        assert_eq!(held.keys().count(), MAX_HELD);
        let now = start + Duration::from_secs(1);
        assert!(held.take(now, &key(999)).is_some() && held.take(now, &key(0)).is_none());
    }
}
