//! How large a netmap may become, by one message and by many.

#![expect(
    clippy::unwrap_used,
    reason = "a test fails by panicking, in its helpers too"
)]

use lowroad_wire::{
    control::{MapResponse, UserId},
    netmap::{Changes, NetMap},
};
use serde_json::{Value, json};
use time::OffsetDateTime;

#[test]
fn no_number_of_differences_makes_the_netmap_grow_without_bound() {
    let mut netmap = NetMap::default();
    let mut left_out = 0;
    for n in 0..300 {
        let changes = apply(
            &mut netmap,
            json!({"PacketFilters": {n.to_string(): []}, "DisplayMessages": {n.to_string(): {"Title": "x"}}}),
        );
        left_out += changes.left_out;
    }
    assert_eq!(
        (
            netmap.filters.len(),
            netmap.display_messages.len(),
            left_out
        ),
        (256, 256, 88)
    );
    let changes = apply(
        &mut netmap,
        json!({"PacketFilters": {"0": null, "new": []}}),
    );
    assert_eq!((changes.left_out, netmap.filters.len()), (0, 256));

    let profile = json!({"UserProfiles": [{"ID": 1, "LoginName": "a"}]});
    apply(&mut netmap, profile);
    let user = netmap.users[&UserId(1)].clone();
    netmap.users = (0..1 << 17).map(|n| (UserId(n), user.clone())).collect();
    let known =
        json!({"UserProfiles": [{"ID": 5, "LoginName": "b"}, {"ID": 1_000_000, "LoginName": "c"}]});
    assert_eq!(apply(&mut netmap, known).left_out, 1);
    assert_eq!(netmap.users[&UserId(5)].login_name, "b");
}

#[test]
fn a_list_of_too_many_peers_is_refused_as_a_whole() {
    let nodes = |count: usize| {
        let node = |number| format!(r#"{{"ID":{number},"Key":"nodekey:{number:064x}"}}"#);
        let nodes: Vec<_> = (1..=count).map(node).collect();
        format!(r#"{{"Domain":"x","Peers":[{}]}}"#, nodes.join(","))
    };
    let most = lowroad_wire::netmap::MAX_NODES;
    let (map, malformed) = MapResponse::parse(nodes(most).as_bytes()).unwrap();
    assert_eq!((map.peers.len(), malformed.len()), (most, 0));
    let error = MapResponse::parse(nodes(most + 1).as_bytes()).unwrap_err();
    assert!(error.to_string().contains("peers"), "{error}");

    // Neither is half of a difference taken.
    let mut netmap = NetMap::default();
    netmap.apply(map, OffsetDateTime::UNIX_EPOCH);
    let (first, new) = (
        most as i64 + 1,
        |id: i64| json!({"ID": id, "Key": format!("nodekey:{id:064x}")}),
    );
    apply(&mut netmap, json!({"PeersRemoved": [7]}));
    let two = json!({"PeersChanged": [new(first), new(first + 1)]});
    assert_eq!(apply(&mut netmap, two).left_out, 2);
    let one_and_known = json!({"PeersChanged": [new(first), new(5)]});
    assert_eq!(apply(&mut netmap, one_and_known).left_out, 0);
    assert_eq!(netmap.peers.len(), most);
}

#[test]
fn a_peer_that_takes_too_much_room_is_skipped_and_a_text_that_does_is_refused() {
    let node = |tags: usize| {
        let tags = vec!["tag:x".repeat(100); tags];
        json!({"ID": 1, "Key": format!("nodekey:{:064x}", 1), "Tags": tags})
    };
    let parse = |message: Value| MapResponse::parse(message.to_string().as_bytes());
    let (map, malformed) = parse(json!({"PeersChanged": [node(10), node(200)]})).unwrap();
    assert_eq!((map.peers_changed.len(), malformed.len()), (1, 1));
    assert!(malformed[0].why.contains("bytes"), "{malformed:?}");
    let error = parse(json!({"Domain": "x".repeat(1 << 20)})).unwrap_err();
    assert!(error.to_string().contains("too long"), "{error}");
}

fn apply(netmap: &mut NetMap, message: Value) -> Changes {
    let (response, malformed) = MapResponse::parse(message.to_string().as_bytes()).unwrap();
    assert_eq!(malformed, []);
    netmap.apply(response, OffsetDateTime::UNIX_EPOCH)
}
