//! How much memory a netmap may take. A message is bounded, and so is how many peers there are; but differences can make each of them as long as a message
//! allows, one after another.

use std::io;

use serde::Serialize;

/// Tailnets of a hundred thousand peers take about as much. (Little, where this crate is tested.)
const MAX: usize = if cfg!(test) { 1 << 20 } else { 512 << 20 };
/// What a value, a list or an entry of a map takes beside its text.
const PART: usize = 32;

/// Bytes of memory, as an estimate from above. It follows from the rest of a netmap, and makes no difference between two.
#[derive(Clone, Copy, Debug, Default)]
pub struct Room(usize);

impl PartialEq for Room {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Room {
    /// Of a value, by how it is written.
    pub(super) fn of<T: Serialize>(value: &T) -> Self {
        let mut counter = Counter(size_of::<T>());
        // Nothing of a netmap fails to be written, and neither does counting.
        let _ = serde_json::to_writer(&mut counter, value);
        Self(counter.0)
    }

    pub(super) fn has_room_for(self, more: Self) -> bool {
        self.0.saturating_add(more.0) <= MAX
    }

    pub(super) fn take(&mut self, more: Self) {
        self.0 = self.0.saturating_add(more.0);
    }

    pub(super) fn give(&mut self, less: Self) {
        self.0 = self.0.saturating_sub(less.0);
    }
}

impl std::iter::Sum for Room {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        let add = |mut sum: Self, one| {
            sum.take(one);
            sum
        };
        all.fold(Self::default(), add)
    }
}

struct Counter(usize);

impl io::Write for Counter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let parts = bytes
            .iter()
            .filter(|byte| matches!(byte, b',' | b':' | b'[' | b'{'));
        self.0 += bytes.len() + PART * parts.count();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use time::OffsetDateTime;

    use crate::{
        control::{MapResponse, NodeId},
        netmap::{Changes, NetMap},
    };

    fn apply(map: &mut NetMap, message: &Value) -> Changes {
        let (response, malformed) = MapResponse::parse(message.to_string().as_bytes()).unwrap();
        assert_eq!(malformed, []);
        map.apply(response, OffsetDateTime::UNIX_EPOCH)
    }

    fn peer(id: usize, bytes: usize) -> Value {
        json!({"ID": id, "Key": format!("nodekey:{id:064x}"), "Name": "x".repeat(bytes)})
    }

    #[test]
    fn peers_that_there_is_no_room_for_are_refused_with_the_others_of_their_message_and_the_rest_is_taken()
     {
        let mut map = NetMap::default();
        let mut id = 0;
        let refused = loop {
            id += 2;
            let message = json!({"PeersChanged": [peer(id, 50_000), peer(id + 1, 10)], "PeersRemoved": [3], "Domain": format!("d{id}")});
            let changes = apply(&mut map, &message);
            if changes.left_out > 0 {
                break changes;
            }
        };
        assert!((10..60).contains(&id), "{id}");
        assert_eq!((refused.left_out, map.domain), (2, format!("d{id}")));
        assert!(
            !map.peers.contains_key(&NodeId(id as i64 + 1)) && !map.peers.contains_key(&NodeId(3))
        );

        let mut map = NetMap {
            domain: String::new(),
            ..map
        };
        let patch = |bytes: usize| json!({"PeersChangedPatch": [{"NodeID": 2, "CapMap": {"x".repeat(bytes): null}}]});
        let left_out: usize = (0..3)
            .map(|_| apply(&mut map, &patch(60_000)).left_out)
            .sum();
        assert!(left_out > 0, "patches make peers larger as well");
        let gone: Vec<_> = (2..id).step_by(2).collect();
        apply(&mut map, &json!({"PeersRemoved": gone}));
        assert_eq!(apply(&mut map, &patch(60_000)).left_out, 0, "no such peer");
        let all: Vec<_> = (1..10).map(|id| peer(id, 50_000)).collect();
        assert_eq!(apply(&mut map, &json!({"Peers": all})).left_out, 0);
        assert_eq!(map.peers.len(), 9);
    }

    #[test]
    fn a_whole_list_and_users_that_there_is_no_room_for_are_refused() {
        let mut map = NetMap::default();
        apply(&mut map, &json!({"Peers": [peer(1, 10)]}));
        let all: Vec<_> = (2..40).map(|id| peer(id, 50_000)).collect();
        assert_eq!(apply(&mut map, &json!({"Peers": all})).left_out, 38);
        assert_eq!(map.peers.keys().copied().collect::<Vec<_>>(), [NodeId(1)]);
        let users = |from: usize| -> Vec<_> {
            (from..from + 20)
                .map(|id| json!({"ID": id, "LoginName": "x".repeat(30_000)}))
                .collect()
        };
        assert_eq!(
            apply(&mut map, &json!({"UserProfiles": users(0)})).left_out,
            0
        );
        assert!(apply(&mut map, &json!({"UserProfiles": users(20)})).left_out > 0);
        assert!(map.users.len() < 40);
        assert_eq!(
            apply(&mut map, &json!({"UserProfiles": users(0)})).left_out,
            0,
            "known ones take no more"
        );
    }

    #[test]
    fn a_filter_that_there_is_no_room_for_admits_nothing() {
        let mut map = NetMap::default();
        let rules = |sources: usize| json!([{"SrcIPs": vec!["100.64.0.1"; sources], "DstPorts": [{"IP": "*", "Ports": {"First": 1, "Last": 2}}]}]);
        assert_eq!(
            apply(
                &mut map,
                &json!({"PacketFilters": {"a": rules(10), "b": rules(10)}})
            )
            .left_out,
            0
        );
        let changes = apply(&mut map, &json!({"PacketFilters": {"a": rules(50_000)}}));
        assert!(changes.left_out == 1 && changes.filter);
        assert_eq!(map.filter_rules().count(), 1, "the other one is in force");
        assert_eq!(
            apply(&mut map, &json!({"PacketFilter": rules(50_000)})).left_out,
            1
        );
    }
}
