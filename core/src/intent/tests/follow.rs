//! Following a netmap comes to the same as reading it anew: what is wanted, the plan, and whether the filter is another one.

use std::{collections::BTreeMap, sync::Arc};

use lowroad_wire::control::{
    FilterRule, MapResponse, NetPortRange, NodeId, PeerChange, PortRange, RegionId,
};
use proptest::{collection::vec, prelude::*};

use super::*;
use crate::plan::{AllowedIps, Model, Step, plan};

const NOW: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn any_sequence_of_changes_leads_to_what_the_whole_netmap_wants(
        first in vec(any_node(), 0..7), changes in vec(any_change(), 1..12), accept_routes in any::<bool>(),
    ) {
        let first = MapResponse { node: Some(own(1)), peers: first, packet_filter: Some(rules(0)), ..MapResponse::default() };
        let mut follower = Follower::new(first, choices(accept_routes));
        for change in changes {
            follower.take(change)?;
        }
    }
}

#[test]
fn an_address_of_a_jailed_peer_that_goes_changes_the_filter() {
    let mut jailed = peer(2, &[]);
    jailed["IsJailed"] = json!(true);
    jailed["AllowedIPs"] = json!([]);
    let mut map = super::map(&[jailed.clone()]);
    let mut intent = Intent::new(&map, &choices(false), NOW);
    jailed["Addresses"] = json!([]);
    let (response, _) =
        MapResponse::parse(json!({"PeersChanged": [jailed]}).to_string().as_bytes()).unwrap();
    let changes = map.apply(response, NOW);
    assert!(intent.update(&map, changes.peers(), NOW).filter);
}

#[test]
fn a_peer_that_needs_no_path_any_more_is_programmed_with_its_own_endpoint() {
    let mut node = peer(2, &[]);
    node["Endpoints"] = json!(["198.51.100.9:51820"]);
    let mut map = super::map(&[node.clone()]);
    let mut intent = Intent::new(&map, &choices(false), NOW);
    node["IsWireGuardOnly"] = json!(true);
    let (response, _) =
        MapResponse::parse(json!({"PeersChanged": [node]}).to_string().as_bytes()).unwrap();
    let changes = map.apply(response, NOW);
    let change = intent.update(&map, changes.peers(), NOW);
    let mut held = Held::default();
    held.note(change, &intent, |_| endpoint(4000));
    assert!(held.has(&key(2)), "the kernel has the path's endpoint");
    let wanted = intent.peer(&key(2), |_| endpoint(4000)).unwrap();
    assert_eq!(wanted.endpoint, Some("198.51.100.9:51820".parse().unwrap()));
}

#[test]
fn an_endpoint_that_was_not_wanted_for_a_while_is_set_again() {
    let with = |id, only, removed: Option<i64>| {
        let mut node = Node {
            id: NodeId(id),
            key: key(2),
            home_derp: Some(RegionId(1)),
            ..Node::default()
        };
        node.is_wireguard_only = only;
        node.endpoints = vec!["198.51.100.9:51820".parse().unwrap()];
        Event::Message(Box::new(MapResponse {
            peers_changed: vec![Arc::new(node)],
            peers_removed: removed.map(NodeId).into_iter().collect(),
            ..MapResponse::default()
        }))
    };
    let first = MapResponse {
        node: Some(own(1)),
        ..MapResponse::default()
    };
    let mut follower = Follower::new(first, choices(false));
    for event in [
        Event::Program,
        with(2, true, None),
        Event::Program,
        with(3, false, Some(2)),
        Event::Program,
        with(2, true, Some(3)),
        Event::Program,
    ] {
        follower.take(event).unwrap();
    }
    let peers = &follower.kernel.observed().device.as_ref().unwrap().peers;
    let wanted = "198.51.100.9:51820".parse().unwrap();
    assert_eq!(peers[&key(2)].endpoint, Some(wanted));
}

/// A netmap, what follows it, and a kernel that is brought up to date by nothing but the differences.
struct Follower {
    map: NetMap,
    intent: Intent,
    held: Held,
    whole: bool,
    kernel: Model,
    choices: Choices,
    paths: BTreeMap<NodePublic, u16>,
    now: OffsetDateTime,
}

#[derive(Clone, Debug)]
enum Event {
    Message(Box<MapResponse>),
    Time(i64),
    /// The path of a peer changes.
    Path(u8, u16),
    AcceptRoutes(bool),
    /// The kernel is brought up to date.
    Program,
}

impl Follower {
    fn new(first: MapResponse, choices: Choices) -> Self {
        let mut map = NetMap::default();
        map.apply(first, NOW);
        Self {
            intent: Intent::new(&map, &choices, NOW),
            map,
            held: Held::default(),
            whole: true,
            kernel: Model::default(),
            choices,
            paths: BTreeMap::new(),
            now: NOW,
        }
    }

    fn take(&mut self, event: Event) -> Result<(), TestCaseError> {
        let filter_before = filter::compile(&self.intent.filter_input(&self.map, &self.choices));
        let rules_before = self.map.filters.clone();
        let mut nodes = Vec::new();
        match event {
            Event::Message(response) => {
                let changes = self.map.apply(*response, self.now);
                nodes.extend(
                    changes
                        .peers_added
                        .iter()
                        .chain(&changes.peers_changed)
                        .chain(&changes.peers_removed)
                        .copied(),
                );
                if changes.filter {
                    self.intent.set_rules(&self.map);
                }
            }
            Event::Time(seconds) => self.now = NOW + time::Duration::seconds(seconds),
            Event::Path(n, port) => {
                // As the agent does: at once, unless the next plan has to do with that peer anyway.
                let known = self
                    .intent
                    .node(&key(n))
                    .is_some_and(|node| !node.is_wireguard_only);
                if known && !self.whole && !self.held.has(&key(n)) {
                    self.kernel.apply(&Step::UpdatePeer {
                        key: key(n),
                        endpoint: endpoint(port),
                        allowed_ips: AllowedIps::Keep,
                    });
                }
                if known {
                    self.paths.insert(key(n), port);
                }
            }
            Event::AcceptRoutes(accept) => self.choices.accept_routes = accept,
            Event::Program => self.program()?,
        }
        if self.intent.follows(&self.map, &self.choices, self.now) {
            let change = self.intent.update(&self.map, nodes, self.now);
            if !change.filter && self.map.filters == rules_before {
                let after = filter::compile(&self.intent.filter_input(&self.map, &self.choices));
                prop_assert_eq!(filter_before, after);
            }
            self.whole |= change.whole;
            let paths = &self.paths;
            self.held
                .note(change, &self.intent, |key| endpoint(*paths.get(key)?));
        } else {
            self.intent = Intent::new(&self.map, &self.choices, self.now);
            self.whole = true;
        }
        self.paths.retain(|key, _| {
            self.intent
                .node(key)
                .is_some_and(|node| !node.is_wireguard_only)
        });
        prop_assert_eq!(
            &self.intent,
            &Intent::new(&self.map, &self.choices, self.now)
        );
        Ok(())
    }

    fn program(&mut self) -> Result<(), TestCaseError> {
        let paths = |key: &NodePublic| endpoint(*self.paths.get(key)?);
        let desired = self.intent.desired(&self.choices, paths);
        let steps = plan(&desired, self.kernel.observed());
        if !self.whole {
            let (part, observed) = self.intent.part(&self.held, &self.choices, paths);
            let of_part = plan(&part, &observed);
            prop_assert_eq!(format!("{:?}", of_part), format!("{:?}", steps));
        }
        steps.iter().for_each(|step| self.kernel.apply(step));
        self.held.clear();
        self.whole = false;
        let left = plan(&desired, self.kernel.observed());
        prop_assert!(left.is_empty(), "{left:?}");
        // Peers without a path have been heard from elsewhere by the next time.
        for (key, peer) in &desired.wireguard.peers {
            if peer.endpoint.is_none() {
                let elsewhere = SocketAddr::from(([203, 0, 113, 1], 41641));
                self.kernel.roam(key, elsewhere);
            }
        }
        Ok(())
    }
}

fn endpoint(port: u16) -> Option<SocketAddr> {
    Some(SocketAddr::from(([192, 0, 2, 1], port)))
}

fn own(n: u8) -> Node {
    Node {
        id: NodeId(100),
        key: key(99),
        addresses: vec![prefix(n)],
        ..Node::default()
    }
}

/// Few enough to collide: addresses of nodes of both families, routes, and one that isn't well formed.
fn prefix(n: u8) -> IpNet {
    let texts = [
        "100.64.0.1/32",
        "100.64.0.2/32",
        "100.64.0.3/32",
        "100.64.0.4/32",
        "100.64.0.5/32",
        "100.64.0.6/32",
        "100.64.0.7/32",
        "fd7a:115c:a1e0::1/128",
        "fd7a:115c:a1e0::2/128",
        "fd7a:115c:a1e0::/48",
        "100.64.0.0/10",
        "10.0.0.0/8",
        "10.1.0.0/16",
        "10.1.0.1/16",
        "0.0.0.0/0",
        "192.0.2.1/32",
    ];
    texts[usize::from(n) % texts.len()].parse().unwrap()
}

fn any_node() -> impl Strategy<Value = Arc<Node>> {
    let prefixes =
        || vec(0..16u8, 0..4).prop_map(|all| all.into_iter().map(prefix).collect::<Vec<_>>());
    let flags = vec(prop::bool::weighted(0.1), 4);
    let expiry = prop::option::weighted(0.4, 0..10i64);
    (
        1..9i64,
        0..7u8,
        prefixes(),
        prop::option::of(prefixes()),
        prefixes(),
        flags,
        expiry,
        0..4u8,
    )
        .prop_map(
            |(id, n, addresses, allowed_ips, primary_routes, flags, expiry, caps)| {
                Arc::new(Node {
                    id: NodeId(id),
                    // The last one is our own.
                    key: key(if n == 6 { 99 } else { n + 1 }),
                    key_expiry: expiry.map(|seconds| NOW + time::Duration::seconds(seconds)),
                    addresses,
                    allowed_ips,
                    primary_routes,
                    home_derp: (!flags[0]).then_some(RegionId(1)),
                    is_jailed: flags[1],
                    unsigned_peer_api_only: flags[2],
                    is_wireguard_only: flags[3],
                    endpoints: vec![SocketAddr::from(([198, 51, 100, 1], 1000 + u16::from(n)))],
                    cap_map: (0..caps / 2)
                        .map(|n| (format!("c{n}"), Vec::new()))
                        .collect(),
                    ..Node::default()
                })
            },
        )
}

fn any_change() -> impl Strategy<Value = Event> {
    let message = |response| Event::Message(Box::new(response));
    prop_oneof![
        4 => (vec(any_node(), 0..3), vec((1..9i64).prop_map(NodeId), 0..2)).prop_map(move |(peers_changed, peers_removed)| {
            message(MapResponse { peers_changed, peers_removed, ..MapResponse::default() })
        }),
        1 => vec(any_node(), 1..7).prop_map(move |peers| message(MapResponse { peers, ..MapResponse::default() })),
        2 => (1..9i64, prop::option::of(0..6u8), any::<bool>(), prop::option::of(0..10i64)).prop_map(move |(id, n, online, expiry)| {
            let patch = PeerChange {
                node_id: NodeId(id),
                key: n.map(|n| key(n + 1)),
                online: Some(online),
                key_expiry: expiry.map(|seconds| NOW + time::Duration::seconds(seconds)),
                ..PeerChange::default()
            };
            message(MapResponse { peers_changed_patch: vec![patch], ..MapResponse::default() })
        }),
        1 => (0..3u8, prop::option::weighted(0.3, 0..10i64)).prop_map(move |(n, expiry)| {
            let key_expiry = expiry.map(|seconds| NOW + time::Duration::seconds(seconds));
            message(MapResponse { node: Some(Node { key_expiry, ..own(n) }), ..MapResponse::default() })
        }),
        1 => (0..3u8).prop_map(move |n| message(MapResponse { packet_filter: Some(rules(n)), ..MapResponse::default() })),
        2 => (0..12i64).prop_map(Event::Time),
        3 => (1..7u8, 1..4u16).prop_map(|(n, port)| Event::Path(n, port)),
        1 => any::<bool>().prop_map(Event::AcceptRoutes),
        6 => Just(Event::Program),
    ]
}

fn rules(n: u8) -> Vec<FilterRule> {
    let source = ["*", "100.64.0.2", "cap:c0"][usize::from(n)];
    let to_all = NetPortRange {
        ip: "*".to_owned(),
        ports: PortRange::ANY,
    };
    vec![FilterRule {
        src_ips: vec![source.to_owned()],
        dst_ports: vec![to_all],
        ..FilterRule::default()
    }]
}
