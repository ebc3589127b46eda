//! Each rule by which messages change the netmap (protocol.md 1.7), on JSON as servers write it.

#![expect(
    clippy::unwrap_used,
    reason = "a test fails by panicking, in its helpers too"
)]

use std::collections::BTreeSet;

use lowroad_wire::{
    control::{Malformed, MapResponse, NodeId, RegionId, UserId},
    netmap::{Changes, NetMap},
};
use serde_json::{Value, json};
use time::{Duration, OffsetDateTime};

const NOW: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;

#[test]
fn a_netmap_that_is_written_and_read_is_the_same() {
    let mut netmap = with_peers(&[1, 2]);
    apply(
        &mut netmap,
        json!({
            "Node": {"ID": 9, "Key": format!("nodekey:{:064x}", 9), "KeyExpiry": "2030-01-01T00:00:00Z", "CapMap": {"https://x/cap": [{"a": [1]}], "bare": null}},
            "DERPMap": {"Regions": {"7": {"RegionID": 7, "RegionCode": "lab", "Nodes": [{"Name": "7a", "RegionID": 7, "HostName": "h", "IPv4": "192.0.2.1"}]}},
                        "HomeParams": {"RegionScore": {"7": 0.5}}},
            "PacketFilters": {"base": [{"SrcIPs": ["*"], "DstPorts": [{"IP": "*", "Ports": {"First": 22, "Last": 23}}]}],
                              "grants": [{"SrcIPs": ["100.64.0.0/10"], "CapGrant": [{"Dsts": ["100.64.0.9/32"], "CapMap": {"x": [1, "two"]}}]}], "empty": []},
            "DNSConfig": {"Proxied": true}, "Domain": "lab", "UserProfiles": [{"ID": 4, "LoginName": "ann@"}],
            "Health": ["so so"], "DisplayMessages": {"m": {"Title": "t", "Text": "x"}}, "OnlineChange": {"1": true}, "PeerSeenChange": {"2": true},
        }),
    );
    assert_eq!(reread(&netmap), netmap);
    assert_eq!(reread(&NetMap::default()), NetMap::default());
}

fn reread(netmap: &NetMap) -> NetMap {
    let text = serde_json::to_vec(&netmap.to_response()).unwrap();
    let (response, malformed) = MapResponse::parse(&text).unwrap();
    assert!(malformed.is_empty(), "{malformed:?}");
    let mut again = NetMap::default();
    again.apply(response, NOW);
    again
}

#[test]
fn an_empty_or_absent_list_of_peers_changes_nothing() {
    let mut netmap = with_peers(&[1, 2]);
    for message in [json!({"Peers": []}), json!({"Peers": null}), json!({})] {
        assert!(apply(&mut netmap, message).is_empty());
    }
    assert_eq!(ids(&netmap), [1, 2]);
}

#[test]
fn a_full_list_of_peers_replaces_and_other_deltas_of_the_message_are_ignored() {
    let mut netmap = with_peers(&[1, 2]);
    let changes = apply(
        &mut netmap,
        json!({"Peers": [peer(2), peer(3)], "PeersRemoved": [3], "PeersChanged": [peer(4)],
               "OnlineChange": {"2": true}, "PeersChangedPatch": [{"NodeID": 2, "Cap": 9}]}),
    );
    assert_eq!(ids(&netmap), [2, 3]);
    assert_eq!(netmap.peers[&NodeId(2)].online, None);
    let expected = Changes {
        peers_added: set(&[3]),
        peers_removed: set(&[1]),
        ..Default::default()
    };
    assert_eq!(changes, expected);
}

#[test]
fn deltas_apply_in_the_order_that_the_protocol_lays_down() {
    let mut netmap = with_peers(&[1, 2, 3]);
    let changes = apply(
        &mut netmap,
        json!({
            "PeersRemoved": [1, 2, 99],
            "PeersChanged": [peer(2), peer(4)],
            "PeerSeenChange": {"3": true, "98": true},
            "OnlineChange": {"3": true, "4": true, "97": false},
            "PeersChangedPatch": [{"NodeID": 4, "Online": false, "DERPRegion": 7}, {"NodeID": 96, "Online": true}],
        }),
    );
    assert_eq!(ids(&netmap), [2, 3, 4]);
    assert_eq!(netmap.peers[&NodeId(3)].last_seen, Some(NOW));
    assert_eq!(netmap.peers[&NodeId(3)].online, Some(true));
    assert_eq!(
        netmap.peers[&NodeId(4)].online,
        Some(false),
        "patches come after OnlineChange"
    );
    assert_eq!(netmap.peers[&NodeId(4)].home_region(), Some(RegionId(7)));
    let expected = Changes {
        peers_added: set(&[4]),
        peers_changed: set(&[2, 3]),
        peers_removed: set(&[1]),
        ..Default::default()
    };
    assert_eq!(changes, expected);
    apply(&mut netmap, json!({"PeerSeenChange": {"3": false}}));
    assert_eq!(netmap.peers[&NodeId(3)].last_seen, None);
}

#[test]
fn a_patch_changes_what_it_names_and_nothing_else() {
    let mut netmap = with_peers(&[1]);
    let full = json!({"PeersChangedPatch": [{
        "NodeID": 1, "DERPRegion": 3, "Cap": 131, "CapMap": {"a": null}, "Endpoints": ["192.0.2.1:1"],
        "Key": key("nodekey", 9), "DiscoKey": key("discokey", 9), "Online": true,
        "LastSeen": "2026-01-01T00:00:00Z", "KeyExpiry": "2027-01-01T00:00:00Z", "KeySignature": "c2ln",
    }]});
    assert_eq!(apply(&mut netmap, full).peers_changed, set(&[1]));
    let before = netmap.clone();
    let peer = &before.peers[&NodeId(1)];
    assert_eq!(peer.home_derp, Some(RegionId(3)));
    assert_eq!(peer.cap, 131);
    assert_eq!(peer.cap_map.len(), 1);
    assert_eq!(peer.endpoints, ["192.0.2.1:1".parse().unwrap()]);
    assert_eq!(peer.key.as_bytes(), &[9; 32]);
    assert_eq!(peer.disco_key.unwrap().as_bytes(), &[9; 32]);
    assert!(peer.last_seen.is_some() && peer.key_expiry.is_some() && peer.online == Some(true));
    let empty =
        json!({"PeersChangedPatch": [{"NodeID": 1, "DERPRegion": 0, "Cap": 0, "Endpoints": []}]});
    assert!(apply(&mut netmap, empty).is_empty());
    assert_eq!(netmap, before);
}

#[test]
fn filters_are_replaced_and_deleted_by_name() {
    let rule = |port: u16| json!({"SrcIPs": ["*"], "DstPorts": [{"IP": "*", "Ports": {"First": port, "Last": port}}]});
    let ports = |netmap: &NetMap| -> Vec<u16> {
        netmap
            .filter_rules()
            .map(|rule| rule.dst_ports[0].ports.first)
            .collect()
    };
    let mut netmap = NetMap::default();
    assert!(apply(&mut netmap, json!({"PacketFilter": [rule(1)]})).filter);
    assert!(
        apply(
            &mut netmap,
            json!({"PacketFilters": {"z": [rule(3)], "c": [rule(2)]}})
        )
        .filter
    );
    assert_eq!(ports(&netmap), [1, 2, 3], "in the order of their names");
    assert!(!apply(&mut netmap, json!({})).filter);
    assert!(
        !apply(
            &mut netmap,
            json!({"PacketFilter": null, "PacketFilters": null})
        )
        .filter
    );
    assert!(apply(&mut netmap, json!({"PacketFilters": {"c": null}})).filter);
    assert_eq!(ports(&netmap), [1, 3]);
    apply(
        &mut netmap,
        json!({"PacketFilter": [rule(4)], "PacketFilters": {"base": [rule(5)]}}),
    );
    assert_eq!(
        ports(&netmap),
        [5, 3],
        "the named field comes after the other"
    );
    assert!(
        apply(
            &mut netmap,
            json!({"PacketFilters": {"*": null, "new": [rule(6)]}})
        )
        .filter
    );
    assert_eq!(ports(&netmap), [6]);
    apply(&mut netmap, json!({"PacketFilter": []}));
    assert!(netmap.filters["base"].is_empty());
    assert!(apply(&mut netmap, json!({"PacketFilters": {"*": null}})).filter);
    assert_eq!(netmap.filter_rules().count(), 0);
}

#[test]
fn the_relay_map_keeps_what_an_update_does_not_name() {
    let region = |id: u16| json!({"RegionID": id, "RegionCode": "x", "Nodes": [{"Name": "a", "HostName": "h"}]});
    let mut netmap = NetMap::default();
    let first = json!({"DERPMap": {"HomeParams": {"RegionScore": {"1": 0.5}}, "Regions": {"1": region(1), "2": null}}});
    assert!(apply(&mut netmap, first.clone()).derp);
    assert!(!apply(&mut netmap, first).derp);
    assert_eq!(netmap.derp_map.regions.len(), 1, "null regions are dropped");
    assert!(
        apply(
            &mut netmap,
            json!({"DERPMap": {"HomeParams": {"RegionScore": {"1": 2.0}}}})
        )
        .derp
    );
    assert_eq!(netmap.derp_map.regions.len(), 1);
    assert!(
        apply(
            &mut netmap,
            json!({"DERPMap": {"Regions": {"3": region(3)}}})
        )
        .derp
    );
    assert!(netmap.derp_map.regions.keys().eq(&[RegionId(3)]));
    assert_eq!(
        netmap.derp_map.home_params.region_score.as_ref().unwrap()[&RegionId(1)],
        2.0
    );
}

#[test]
fn what_is_said_beside_the_peers_is_kept_until_said_otherwise() {
    let mut netmap = NetMap::default();
    let first = json!({
        "Node": peer(7), "Domain": "tail.lab", "DNSConfig": {"Proxied": true, "Routes": {"x": null}}, "Health": ["sick"],
        "UserProfiles": [{"ID": 1, "LoginName": "a"}], "SSHPolicy": {"rules": null}, "CollectServices": true,
        "DisplayMessages": {"m": {"Title": "t"}, "n": {"Title": "u"}},
    });
    let changes = apply(&mut netmap, first);
    assert!(
        changes.self_node
            && changes.domain
            && changes.dns
            && changes.health
            && changes.users
            && changes.ssh
    );
    let before = netmap.clone();
    assert!(apply(&mut netmap, json!({"Domain": ""})).is_empty());
    assert_eq!(netmap, before);
    apply(
        &mut netmap,
        json!({"Health": [], "UserProfiles": [{"ID": 2}], "DisplayMessages": {"m": null}, "DNSConfig": {}}),
    );
    assert!(netmap.health.is_empty() && !netmap.dns.proxied);
    assert!(netmap.users.keys().eq(&[UserId(1), UserId(2)]));
    assert!(netmap.display_messages.keys().eq(["n"]));
    apply(&mut netmap, json!({"DisplayMessages": {"*": null}}));
    assert!(netmap.display_messages.is_empty());
}

#[test]
fn a_keep_alive_brings_no_netmap() {
    let mut netmap = with_peers(&[1]);
    let message = json!({"KeepAlive": true, "Peers": [peer(2)], "PacketFilter": [], "ControlTime": "1970-01-01T01:00:00Z"});
    assert!(apply(&mut netmap, message).is_empty());
    assert_eq!(ids(&netmap), [1]);
    assert_eq!(netmap.control_time(NOW), NOW + Duration::HOUR);
}

#[test]
fn expiry_is_judged_by_the_servers_clock_unless_the_skew_is_small() {
    let mut netmap = with_peers(&[1]);
    apply(
        &mut netmap,
        json!({"PeersChangedPatch": [{"NodeID": 1, "KeyExpiry": "1970-01-01T00:30:00Z"}]}),
    );
    let expired = |netmap: &NetMap| netmap.peers[&NodeId(1)].is_expired(netmap.control_time(NOW));
    assert!(!expired(&netmap));
    apply(&mut netmap, json!({"ControlTime": "1970-01-01T00:00:59Z"}));
    assert_eq!(netmap.control_time(NOW), NOW);
    apply(&mut netmap, json!({"ControlTime": "1970-01-01T00:31:00Z"}));
    assert!(expired(&netmap));
}

#[test]
fn the_own_key_expires_at_its_time_or_by_the_servers_word() {
    let minutes = |n| NOW + Duration::minutes(n);
    let own = |more: Value| {
        let mut own = peer(9);
        own.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        let mut netmap = NetMap::default();
        apply(&mut netmap, json!({ "Node": own }));
        netmap
    };
    let ends = own(json!({"KeyExpiry": "1970-01-01T00:30:00Z"}));
    assert!(!ends.own_key_has_expired(minutes(29)));
    assert!(ends.own_key_has_expired(minutes(30)));
    assert!(own(json!({"Expired": true})).own_key_has_expired(NOW));
    assert!(!own(json!({})).own_key_has_expired(minutes(1_000_000)));
    assert!(!with_peers(&[1]).own_key_has_expired(NOW));
}

#[test]
fn a_malformed_peer_is_skipped_and_reported_and_the_rest_stays() {
    let mut bad_prefix = peer(2);
    bad_prefix["AllowedIPs"] = json!(["100.64.0.2/99"]);
    let mut bad_key = peer(3);
    bad_key["Key"] = json!("nodekey:zz");
    let mut no_key = peer(4);
    no_key.as_object_mut().unwrap().remove("Key");
    let mut bad_hostinfo = peer(5);
    bad_hostinfo["Hostinfo"] = json!(7);
    bad_hostinfo["Endpoints"] = json!(["no", "192.0.2.1:5", null, 3]);
    bad_hostinfo["HomeDERP"] = json!(1_i64 << 40);
    let message = json!({"Peers": [peer(1), bad_prefix, bad_key, no_key, bad_hostinfo, 17, null, {"ID": -1, "Key": key("nodekey", 1)}]});
    let (response, malformed) = MapResponse::parse(message.to_string().as_bytes()).unwrap();
    let mut netmap = NetMap::default();
    netmap.apply(response, NOW);
    assert_eq!(
        ids(&netmap),
        [1, 5],
        "what only informs does not cost the peer"
    );
    let odd = &netmap.peers[&NodeId(5)];
    assert_eq!((odd.endpoints.len(), odd.home_derp), (1, None));
    let reported: Vec<Option<i64>> = malformed
        .iter()
        .map(|bad| bad.node.map(|id| id.0))
        .collect();
    assert_eq!(reported, [Some(2), Some(3), Some(4), None, None, Some(-1)]);
}

#[test]
fn a_malformed_field_costs_that_field_only() {
    let message = json!({
        "Node": peer(1), "DERPMap": 3, "DNSConfig": "x", "Domain": 5, "UserProfiles": [{"ID": "x"}, {"ID": 2}],
        "PeersChanged": {"no": "list"}, "PeersRemoved": ["x", 4], "ControlTime": "yesterday", "Health": [1, "ill"],
    });
    let (response, malformed) = MapResponse::parse(message.to_string().as_bytes()).unwrap();
    assert!(response.node.is_some());
    assert_eq!(response.user_profiles.len(), 1);
    assert_eq!(response.peers_removed, [NodeId(4)]);
    assert_eq!(response.health, Some(vec!["ill".to_owned()]));
    let mut fields: Vec<&str> = malformed.iter().map(|bad| bad.field).collect();
    fields.sort_unstable();
    let expected = [
        "ControlTime",
        "DERPMap",
        "DNSConfig",
        "Domain",
        "Health",
        "PeersChanged",
        "PeersRemoved",
        "UserProfiles",
    ];
    assert_eq!(fields, expected);
}

#[test]
fn a_malformed_filter_blocks_and_a_malformed_rule_allows_nothing() {
    let good =
        json!({"SrcIPs": ["*"], "DstPorts": [{"IP": "*", "Ports": {"First": 0, "Last": 1}}]});
    let wide = json!({"SrcIPs": ["10.0.0.0"], "SrcBits": [8], "DstPorts": [{"IP": "*", "Ports": {"First": 0, "Last": 1}}]});
    let bits = json!({"SrcIPs": ["*"], "DstPorts": [{"IP": "10.0.0.0", "Bits": 8, "Ports": {"First": 0, "Last": 1}}]});
    let port =
        json!({"SrcIPs": ["*"], "DstPorts": [{"IP": "*", "Ports": {"First": 0, "Last": 65536}}]});
    let message =
        json!({"PacketFilter": "all", "PacketFilters": {"a": [good, wide, bits, port, 3], "b": 7}});
    let (response, malformed) = MapResponse::parse(message.to_string().as_bytes()).unwrap();
    assert_eq!(response.packet_filter, Some(vec![]));
    assert_eq!(response.packet_filters["a"].as_ref().unwrap().len(), 1);
    assert_eq!(response.packet_filters["b"], Some(vec![]));
    assert_eq!(malformed.len(), 6);
}

#[test]
fn escapes_and_unknown_fields_are_read() {
    let message = json!({"Domain": "a & <b>", "Tomorrow": {"x": [1]}})
        .to_string()
        .replace('&', "\\u0026");
    let (response, malformed) = MapResponse::parse(message.as_bytes()).unwrap();
    assert_eq!(
        (response.domain.as_str(), malformed),
        ("a & <b>", Vec::<Malformed>::new())
    );
}

#[test]
fn a_node_without_allowed_ips_owns_its_addresses() {
    let read = |extra: Value| -> Vec<String> {
        let mut node = peer(1);
        node.as_object_mut()
            .unwrap()
            .extend(extra.as_object().unwrap().clone());
        let node: lowroad_wire::control::Node = serde_json::from_value(node).unwrap();
        node.allowed_ips().iter().map(ToString::to_string).collect()
    };
    assert_eq!(read(json!({})), ["100.64.0.1/32"]);
    assert_eq!(read(json!({"AllowedIPs": null})), ["100.64.0.1/32"]);
    assert_eq!(read(json!({"AllowedIPs": []})), [""; 0]);
    assert_eq!(read(json!({"AllowedIPs": ["10.0.0.0/8"]})), ["10.0.0.0/8"]);
    assert_eq!(
        read(json!({"AllowedIPs": ["10.0.0.0/8"], "UnsignedPeerAPIOnly": true})),
        ["100.64.0.1/32"]
    );
}

#[test]
fn addresses_of_a_peer_keep_no_spare_room() {
    let peer = json!({"ID": 1, "Key": key("nodekey", 1), "Addresses": ["100.64.0.1/32"], "AllowedIPs": ["100.64.0.1/32", "10.0.0.0/8"]});
    let mut netmap = NetMap::default();
    apply(&mut netmap, json!({"Peers": [peer]}));
    let peer = &netmap.peers[&NodeId(1)];
    let allowed = peer.allowed_ips.as_ref().map(Vec::capacity);
    assert_eq!((peer.addresses.capacity(), allowed), (1, Some(2)));
}

#[test]
fn the_home_region_is_read_from_either_field() {
    let read = |extra: Value| {
        let mut node = peer(1);
        node.as_object_mut()
            .unwrap()
            .extend(extra.as_object().unwrap().clone());
        serde_json::from_value::<lowroad_wire::control::Node>(node)
            .unwrap()
            .home_region()
    };
    assert_eq!(read(json!({"HomeDERP": 5})), Some(RegionId(5)));
    assert_eq!(read(json!({"DERP": "127.3.3.40:6"})), Some(RegionId(6)));
    assert_eq!(
        read(json!({"DERP": "127.3.3.40:6", "HomeDERP": 5})),
        Some(RegionId(5))
    );
    for nothing in [
        json!({}),
        json!({"HomeDERP": 0}),
        json!({"DERP": "127.3.3.40:0"}),
        json!({"DERP": "1.2.3.4:5"}),
    ] {
        assert_eq!(read(nothing), None);
    }
}

fn apply(netmap: &mut NetMap, message: Value) -> Changes {
    let (response, malformed) = MapResponse::parse(message.to_string().as_bytes()).unwrap();
    assert_eq!(malformed, []);
    netmap.apply(response, NOW)
}

fn with_peers(ids: &[i64]) -> NetMap {
    let mut netmap = NetMap::default();
    let peers: Vec<Value> = ids.iter().map(|id| peer(*id)).collect();
    let changes = apply(&mut netmap, json!({"Peers": peers}));
    assert_eq!(changes.peers_added, set(ids));
    netmap
}

fn peer(id: i64) -> Value {
    json!({"ID": id, "StableID": format!("n{id}"), "Name": format!("n{id}.tail.lab."), "Key": key("nodekey", id as u8),
           "Addresses": [format!("100.64.0.{id}/32")]})
}

fn key(prefix: &str, byte: u8) -> String {
    format!("{prefix}:{}", hex::encode([byte; 32]))
}

fn ids(netmap: &NetMap) -> Vec<i64> {
    netmap.peers.keys().map(|id| id.0).collect()
}

fn set(ids: &[i64]) -> BTreeSet<NodeId> {
    ids.iter().copied().map(NodeId).collect()
}
