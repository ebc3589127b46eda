use lowroad_wire::control::{Malformed, MapResponse};
use serde_json::{Value, json};

use super::*;
use crate::desired::DEFAULT_MARK;

mod follow;

fn choices(accept_routes: bool) -> Choices {
    Choices {
        device: "lowroad0".into(),
        listen_port: 41641,
        mark: DEFAULT_MARK,
        private_key: NodePrivate::from_random([1; 32]),
        accept_routes,
        shields_up: false,
        disco: [7; 32],
    }
}

fn key(n: u8) -> NodePublic {
    NodePublic::from_bytes([n; 32])
}

fn peer(n: u8, allowed: &[&str]) -> Value {
    let own = format!("100.64.0.{n}/32");
    let allowed: Vec<_> = std::iter::once(own.as_str())
        .chain(allowed.iter().copied())
        .collect();
    json!({"ID": n, "Key": key(n).to_string(), "HomeDERP": 999, "Addresses": [own], "AllowedIPs": allowed})
}

fn map(peers: &[Value]) -> NetMap {
    let (map, malformed) = map_of(&["100.64.0.1/32", "fd7a:115c:a1e0::1/128"], peers);
    assert!(malformed.is_empty(), "{malformed:?}");
    map
}

/// With these addresses of our own, and what of it was left out.
fn map_of(own: &[&str], peers: &[Value]) -> (NetMap, Vec<Malformed>) {
    let message =
        json!({"Node": {"ID": 1, "Key": key(1).to_string(), "Addresses": own}, "Peers": peers});
    let (response, malformed) = MapResponse::parse(message.to_string().as_bytes()).unwrap();
    let mut map = NetMap::default();
    map.apply(response, OffsetDateTime::UNIX_EPOCH);
    (map, malformed)
}

fn want(map: &NetMap, accept_routes: bool) -> Desired {
    desired(
        map,
        &choices(accept_routes),
        |_| None,
        OffsetDateTime::UNIX_EPOCH,
    )
}

fn prefixes(desired: &Desired, n: u8) -> Vec<String> {
    desired.wireguard.peers[&key(n)]
        .allowed_ips
        .iter()
        .map(ToString::to_string)
        .collect()
}

#[test]
fn subnet_routes_are_taken_only_if_accepted_and_default_routes_never() {
    let map = map(&[peer(2, &["10.77.0.0/24", "0.0.0.0/0", "::/0"])]);
    assert_eq!(prefixes(&want(&map, false), 2), ["100.64.0.2/32"]);
    assert_eq!(
        prefixes(&want(&map, true), 2),
        ["10.77.0.0/24", "100.64.0.2/32"]
    );
}

#[test]
fn a_prefix_that_two_claim_goes_to_whose_address_it_is_then_to_the_primary_then_to_the_first() {
    let mut primary = peer(3, &["10.1.0.0/16", "10.2.0.0/16"]);
    primary["PrimaryRoutes"] = json!(["10.2.0.0/16"]);
    let map = map(&[
        peer(2, &["10.1.0.0/16", "10.2.0.0/16", "100.64.0.3/32"]),
        primary,
    ]);
    let desired = want(&map, true);
    assert_eq!(prefixes(&desired, 2), ["10.1.0.0/16", "100.64.0.2/32"]);
    assert_eq!(prefixes(&desired, 3), ["10.2.0.0/16", "100.64.0.3/32"]);
}

#[test]
fn nobody_else_answers_for_our_own_address() {
    let map = map(&[peer(2, &["100.64.0.1/32"])]);
    assert_eq!(prefixes(&want(&map, true), 2), ["100.64.0.2/32"]);
}

#[test]
fn expired_and_unreachable_peers_and_our_own_key_are_no_peers() {
    let mut expired = peer(2, &[]);
    expired["Expired"] = json!(true);
    let mut past = peer(3, &[]);
    past["KeyExpiry"] = json!("1969-01-01T00:00:00Z");
    let mut nowhere = peer(4, &[]);
    nowhere["HomeDERP"] = json!(0);
    let mut ourselves = peer(5, &[]);
    ourselves["Key"] = json!(key(1).to_string());
    let map = map(&[expired, past, nowhere, ourselves, peer(6, &[])]);
    assert_eq!(
        want(&map, true)
            .wireguard
            .peers
            .keys()
            .copied()
            .collect::<Vec<_>>(),
        [key(6)]
    );
}

#[test]
fn a_node_whose_own_key_has_expired_has_no_peers() {
    let second = OffsetDateTime::UNIX_EPOCH + time::Duration::seconds(1);
    let ends = |json: Value| {
        let mut own = json!({"ID": 1, "Key": key(1).to_string(), "Addresses": ["100.64.0.1/32"]});
        own.as_object_mut()
            .unwrap()
            .extend(json.as_object().unwrap().clone());
        let rule = json!({"SrcIPs": ["*"], "DstPorts": [{"IP": "*", "Ports": {"First": 0, "Last": 65535}}]});
        let message =
            json!({"Node": own, "Peers": [peer(2, &["10.77.0.0/24"])], "PacketFilter": [rule]});
        let (response, _) = MapResponse::parse(message.to_string().as_bytes()).unwrap();
        let mut map = NetMap::default();
        map.apply(response, OffsetDateTime::UNIX_EPOCH);
        map
    };
    let wanted = |map: &NetMap, now| {
        let desired = desired(map, &choices(true), |_| None, now);
        let rules = filter_input(map, &choices(true), now).rules;
        (
            desired.wireguard.peers.len(),
            desired.routes.len(),
            rules.len(),
        )
    };
    let (none, some) = ((0, 0, 0), (1, 2, 1));
    let by_its_time = ends(json!({"KeyExpiry": "1970-01-01T00:00:01Z"}));
    assert_eq!(wanted(&by_its_time, OffsetDateTime::UNIX_EPOCH), some);
    assert_eq!(wanted(&by_its_time, second), none);
    let by_the_servers_word = ends(json!({"Expired": true}));
    assert_eq!(
        wanted(&by_the_servers_word, OffsetDateTime::UNIX_EPOCH),
        none
    );
}

#[test]
fn a_node_key_that_two_numbers_have_is_one_peer() {
    let mut twin = peer(3, &[]);
    twin["Key"] = json!(key(2).to_string());
    let desired = want(&map(&[peer(2, &[]), twin]), true);
    assert_eq!(desired.wireguard.peers.len(), 1);
    assert_eq!(prefixes(&desired, 2), ["100.64.0.2/32"]);
}

#[test]
fn a_prefix_with_host_bits_is_skipped() {
    let map = map(&[peer(2, &["10.77.0.9/24"])]);
    assert_eq!(prefixes(&want(&map, true), 2), ["100.64.0.2/32"]);
}

#[test]
fn the_filter_knows_our_addresses_as_the_only_destinations() {
    let input = filter_input(
        &map(&[peer(2, &["10.77.0.0/24"])]),
        &choices(false),
        OffsetDateTime::UNIX_EPOCH,
    );
    assert_eq!(
        input
            .local
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>(),
        ["100.64.0.1/32", "fd7a:115c:a1e0::1/128"]
    );
    assert_eq!(
        input.peers[0]
            .allowed_ips
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>(),
        ["100.64.0.2/32"]
    );
}

#[test]
fn an_empty_netmap_wants_a_device_without_peers() {
    let desired = want(&NetMap::default(), true);
    assert!(
        desired.wireguard.peers.is_empty()
            && desired.addresses.is_empty()
            && desired.routes.is_empty()
    );
}

#[test]
fn a_network_named_as_a_peers_address_is_a_route_and_no_address() {
    let mut sly = peer(2, &["0.0.0.0/0", "0.0.0.0/1", "10.0.0.0/8"]);
    sly["Addresses"] = json!(["100.64.0.2/32", "0.0.0.0/0", "0.0.0.0/1", "10.0.0.0/8"]);
    let (map, malformed) = map_of(&["100.64.0.1/32"], &[sly]);
    assert_eq!(malformed.len(), 1, "{malformed:?}");
    assert_eq!(prefixes(&want(&map, false), 2), ["100.64.0.2/32"]);
    assert!(!prefixes(&want(&map, true), 2).contains(&"0.0.0.0/0".to_owned()));
}

/// An address of the LAN's router, of a name server, of loopback: a control server that says it is a node's takes over what is sent to it.
#[test]
fn an_address_outside_of_the_ranges_of_tailnets_is_no_nodes_and_the_user_is_told() {
    const OTHERS: [&str; 5] = [
        "192.168.1.1/32",
        "8.8.8.8/32",
        "127.0.0.53/32",
        "2001:4860:4860::8888/128",
        "fd7a:115c:a1e1::1/128",
    ];
    let mut sly = peer(2, &OTHERS);
    sly["Addresses"] = json!([&["100.64.0.2/32"][..], &OTHERS].concat());
    let own = [&["100.64.0.1/32"][..], &OTHERS].concat();
    let (map, malformed) = map_of(&own, &[sly]);
    let want_it = want(&map, false);
    let addresses: Vec<_> = want_it.addresses.iter().map(ToString::to_string).collect();
    assert_eq!(addresses, ["100.64.0.1/32"]);
    assert_eq!(prefixes(&want_it, 2), ["100.64.0.2/32"]);
    let input = filter_input(&map, &choices(false), OffsetDateTime::UNIX_EPOCH);
    assert_eq!(input.peers[0].addresses.len(), 1);
    assert_eq!(malformed.len(), 2, "{malformed:?}");
    assert!(malformed[0].to_string().contains("192.168.1.1/32"));
    // As subnet routes they are for the user to accept.
    assert_eq!(prefixes(&want(&map, true), 2).len(), 1 + OTHERS.len());
}
