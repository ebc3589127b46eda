//! What stock clients and a Headscale server said to each other, replayed (`samples/captures/wire-*.jsonl`).

#![expect(
    clippy::unwrap_used,
    reason = "a test fails by panicking, in its helpers too"
)]

#[path = "support/samples.rs"]
mod samples;

use std::collections::BTreeSet;

use lowroad_wire::{
    control::{MapRequest, MapResponse, Node, NodeId, RegionId, RegisterRequest, RegisterResponse},
    netmap::{Changes, NetMap},
};
use serde_json::Value;
use time::OffsetDateTime;

const A: NodeId = NodeId(1);
const B: NodeId = NodeId(2);
const C: NodeId = NodeId(3);
const D: NodeId = NodeId(4);

#[test]
fn no_field_that_we_know_is_lost_on_the_way_through_our_types() {
    for file in ["captures/wire-a.jsonl", "captures/wire-b.jsonl"] {
        let Some(lines) = lines(file) else { return };
        let mut bodies = 0;
        for (number, line) in lines.iter().enumerate() {
            let body = &line["body"];
            let again = match line["kind"].as_str() {
                None => continue,
                Some("RegisterRequest") => again::<RegisterRequest>(body),
                Some("RegisterResponse") => again::<RegisterResponse>(body),
                Some("MapRequest") => again::<MapRequest>(body),
                Some("MapResponse") => {
                    let (response, malformed) =
                        MapResponse::parse(body.to_string().as_bytes()).unwrap();
                    assert_eq!(malformed, [], "{file}:{}", number + 1);
                    serde_json::to_value(&response).unwrap()
                }
                Some(other) => panic!("what is {other}?"),
            };
            assert_eq!(pruned(&again), pruned(body), "{file}:{}", number + 1);
            bodies += 1;
        }
        assert!(bodies > 40, "{file}: only {bodies} bodies");
    }
}

#[test]
fn the_netmap_of_node_a_is_what_the_marks_say() {
    let Some(states) = replay("captures/wire-a.jsonl") else {
        return;
    };
    let marks: Vec<&str> = states.iter().map(|state| state.mark.as_str()).collect();
    assert_eq!(marks.len(), 10, "{marks:?}");

    let at = |mark: &str| {
        states
            .iter()
            .find(|state| state.mark == mark)
            .expect("the mark is in the capture")
    };
    let online = |mark: &str| {
        at(mark)
            .netmap
            .peers
            .values()
            .map(|peer| (peer.id, peer.online))
            .collect::<Vec<_>>()
    };

    let state = at("a up");
    assert_eq!(state.me().id, A);
    assert_eq!(state.netmap.domain, "hs.lab");
    assert!(state.netmap.peers.is_empty());
    assert_eq!(state.netmap.derp_map.regions.len(), 1);
    assert!(state.netmap.dns.proxied);

    // Headscale tells of a new peer as offline first, and completes it after the next mark.
    assert_eq!(online("b up as router"), [(B, Some(false))]);
    let router = &at("b up as router").netmap.peers[&B];
    assert_eq!(router.tags, ["tag:router"]);
    assert!(router.disco_key.is_some() && router.endpoints.is_empty());

    assert_eq!(online("c up as web"), [(B, Some(true)), (C, Some(false))]);
    assert!(!at("c up as web").netmap.peers[&B].endpoints.is_empty());
    assert_eq!(
        online("d up, same user as a"),
        [(B, Some(true)), (C, Some(true)), (D, Some(true))]
    );
    let complete =
        |peer: &Node| !peer.endpoints.is_empty() && peer.home_region() == Some(RegionId(999));
    assert!(
        at("d up, same user as a")
            .netmap
            .peers
            .values()
            .all(|peer| complete(peer))
    );
    assert_eq!(
        at("d up, same user as a").netmap.peers[&D].user,
        state.me().user
    );

    let filtered = |mark: &str| at(mark).changes.iter().any(|changes| changes.filter);
    assert!(
        filtered("d up, same user as a"),
        "d may reach its own user's node"
    );
    assert!(
        !filtered("policy change"),
        "it was about others: the same rules came again"
    );
    assert_eq!(online("policy change"), online("d up, same user as a"));

    assert_eq!(
        online("c goes offline (SIGKILL)"),
        [(B, Some(true)), (C, Some(false)), (D, Some(true))]
    );
    assert!(
        at("c goes offline (SIGKILL)").netmap.peers[&C]
            .last_seen
            .is_some()
    );
    assert_eq!(
        online("c back"),
        [(B, Some(true)), (C, Some(true)), (D, Some(true))]
    );

    let logged_out = at("d logs out");
    let d = &logged_out.netmap.peers[&D];
    assert!(
        d.is_expired(d.key_expiry.expect("a logout expires the key")),
        "{d:?}"
    );
    assert!(!d.is_routable(logged_out.netmap.control_time(logged_out.now)));

    assert_eq!(
        at("c deleted")
            .netmap
            .peers
            .keys()
            .copied()
            .collect::<Vec<_>>(),
        [B, D]
    );
    assert!(
        at("c deleted")
            .changes
            .iter()
            .any(|changes| changes.peers_removed == BTreeSet::from([C]))
    );

    let exit = at("a set exit node");
    let details = exit.me().hostinfo.details.as_ref().unwrap();
    assert_eq!(details.exit_node_id, "2");
    assert!(exit.changes.iter().all(|changes| !changes.any_peers()));
}

#[test]
fn the_netmap_of_node_b_is_what_the_marks_say() {
    let Some(states) = replay("captures/wire-b.jsonl") else {
        return;
    };
    let at = |mark: &str| {
        states
            .iter()
            .find(|state| state.mark == mark)
            .expect("the mark is in the capture")
    };
    let online = |mark: &str| {
        at(mark)
            .netmap
            .peers
            .values()
            .map(|peer| (peer.id, peer.online))
            .collect::<Vec<_>>()
    };

    let first = at("b up as router");
    assert_eq!(first.me().id, B);
    assert_eq!(first.me().tags, ["tag:router"]);
    assert_eq!(online("b up as router"), [(A, Some(true))]);
    assert_eq!(online("c up as web"), [(A, Some(true)), (C, Some(false))]);
    assert_eq!(
        online("d up, same user as a"),
        [(A, Some(true)), (C, Some(true)), (D, Some(true))]
    );
    assert_eq!(
        online("c goes offline (SIGKILL)"),
        [(A, Some(true)), (C, Some(false)), (D, Some(true))]
    );
    assert_eq!(
        online("c back"),
        [(A, Some(true)), (C, Some(true)), (D, Some(true))]
    );
    assert!(at("d logs out").netmap.peers[&D].expired);
    assert_eq!(
        at("c deleted")
            .netmap
            .peers
            .keys()
            .copied()
            .collect::<Vec<_>>(),
        [A, D]
    );
    let filter = |mark| at(mark).netmap.filter_rules().count();
    assert_eq!(
        (
            filter("a up"),
            filter("b up as router"),
            filter("d up, same user as a"),
            filter("c deleted")
        ),
        (0, 1, 2, 1)
    );
    let last = states.last().expect("the capture has marks");
    assert!(!last.netmap.peers.contains_key(&C), "c was deleted");
    assert!(last.netmap.peers.contains_key(&A));
}

#[test]
fn a_delta_that_arrives_twice_changes_nothing_the_second_time() {
    let Some(lines) = lines("captures/wire-a.jsonl") else {
        return;
    };
    let mut netmap = NetMap::default();
    for line in lines.iter().filter(|line| line["kind"] == "MapResponse") {
        let (response, _) = MapResponse::parse(line["body"].to_string().as_bytes()).unwrap();
        let now = OffsetDateTime::UNIX_EPOCH;
        netmap.apply(response.clone(), now);
        let before = netmap.clone();
        assert_eq!(netmap.apply(response, now), Changes::default());
        assert_eq!(netmap, before);
    }
}

#[test]
fn every_netmap_of_a_capture_can_be_kept_and_read_again() {
    let Some(states) = replay("captures/wire-a.jsonl") else {
        return;
    };
    for state in &states {
        let text = serde_json::to_vec(&state.netmap.to_response()).unwrap();
        let (response, malformed) = MapResponse::parse(&text).unwrap();
        assert!(malformed.is_empty(), "{malformed:?}");
        let mut again = NetMap {
            clock_offset: state.netmap.clock_offset,
            ..NetMap::default()
        };
        again.apply(response, state.now);
        assert_eq!(again, state.netmap, "{}", state.mark);
    }
    assert!(!states.is_empty());
}

/// The netmap as it was when the next mark came.
struct State {
    mark: String,
    netmap: NetMap,
    changes: Vec<Changes>,
    now: OffsetDateTime,
}

impl State {
    fn me(&self) -> &Node {
        self.netmap
            .self_node
            .as_ref()
            .expect("the first message brings oneself")
    }
}

fn replay(file: &str) -> Option<Vec<State>> {
    let mut states: Vec<State> = Vec::new();
    let (mut netmap, mut now) = (NetMap::default(), OffsetDateTime::UNIX_EPOCH);
    for line in lines(file)? {
        if let Some(mark) = line["mark"].as_str() {
            states.push(State {
                mark: mark.to_owned(),
                netmap: netmap.clone(),
                changes: Vec::new(),
                now,
            });
        } else if line["kind"] == "MapRequest" && line["body"]["Stream"] == true {
            netmap = NetMap::default();
        } else if line["kind"] == "MapResponse" {
            let (response, _) = MapResponse::parse(line["body"].to_string().as_bytes()).unwrap();
            now = response.control_time.unwrap_or(now);
            let changes = netmap.apply(response, now);
            let Some(state) = states.last_mut() else {
                continue;
            };
            state.netmap = netmap.clone();
            state.changes.push(changes);
            state.now = now;
        }
    }
    Some(states)
}

fn lines(file: &str) -> Option<Vec<Value>> {
    let text = samples::read(file)?;
    Some(
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect(),
    )
}

fn again<T: serde::Serialize + serde::de::DeserializeOwned>(body: &Value) -> Value {
    let read: T = serde_json::from_str(&body.to_string()).unwrap();
    serde_json::to_value(&read).unwrap()
}

/// Without what means "nothing" in Go: null, false, 0, empty, the zero time, a zero key. What a capability's or a route's
/// name maps to stays, though it be empty: there the name alone says something.
fn pruned(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            let kept = fields.iter().map(|(name, value)| {
                let named = matches!(
                    name.as_str(),
                    "CapMap" | "Routes" | "PacketFilters" | "rules"
                );
                (
                    name.clone(),
                    if named { value.clone() } else { pruned(value) },
                )
            });
            Value::Object(kept.filter(|(_, value)| !is_nothing(value)).collect())
        }
        Value::Array(items) => Value::Array(items.iter().map(pruned).collect()),
        other => other.clone(),
    }
}

fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => {
            text.is_empty() || text == "0001-01-01T00:00:00Z" || text.ends_with(&"0".repeat(64))
        }
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
    }
}
