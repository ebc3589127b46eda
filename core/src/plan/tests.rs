use std::net::{Ipv4Addr, SocketAddr};

use proptest::collection::{btree_map, btree_set};
use proptest::prelude::*;

use super::*;
use crate::desired::{DEFAULT_MARK, Mark, RouteKind, WireGuard, policy_rules};

proptest! {
    #[test]
    fn applying_the_plan_to_a_model_gives_what_is_desired(desired in any_desired(), observed in any_observed()) {
        let after = apply_all(&observed, &plan(&desired, &observed));
        assert_holds(&desired, &after)?;
    }

    #[test]
    fn a_plan_after_the_plan_is_empty(desired in any_desired(), observed in any_observed()) {
        let after = apply_all(&observed, &plan(&desired, &observed));
        prop_assert!(plan(&desired, &after).is_empty(), "{:?}", plan(&desired, &after));
    }

    #[test]
    fn a_plan_that_stopped_halfway_is_finished_by_the_next(
        desired in any_desired(), observed in any_observed(), part in 0.0..1.0,
    ) {
        let steps = plan(&desired, &observed);
        let halfway = apply_all(&observed, &steps[..(steps.len() as f64 * part) as usize]);
        assert_holds(&desired, &apply_all(&halfway, &plan(&desired, &halfway)))?;
    }

    #[test]
    fn a_peer_that_exists_is_never_removed_and_added_again(desired in any_desired(), observed in any_observed()) {
        let current = observed.device.clone().unwrap_or_default().peers;
        for step in plan(&desired, &observed) {
            match step {
                Step::AddPeer { key, .. } => prop_assert!(!current.contains_key(&key)),
                Step::RemovePeer(key) => prop_assert!(!desired.wireguard.peers.contains_key(&key)),
                _ => {}
            }
        }
    }

    #[test]
    fn narrowing_takes_what_is_not_wanted_from_peers_and_the_plan_goes_on_from_there(
        desired in any_desired(), observed in any_observed(),
    ) {
        let mut narrowed = observed.clone();
        let steps = narrow(&desired, &mut narrowed);
        prop_assert_eq!(&apply_all(&observed, &steps), &narrowed);
        let wanted = without_double_owners(&desired.wireguard.peers);
        let now = narrowed.device.clone().unwrap_or_default().peers;
        for (key, before) in observed.device.clone().unwrap_or_default().peers {
            let left = wanted.get(&key).map(|peer| before.allowed_ips.intersection(&peer.allowed_ips).copied().collect());
            prop_assert_eq!(now.get(&key).map(|peer| peer.allowed_ips.clone()), left);
        }
        prop_assert!(narrow(&desired, &mut narrowed.clone()).is_empty());
        assert_holds(&desired, &apply_all(&narrowed, &plan(&desired, &narrowed)))?;
    }

    #[test]
    fn the_filter_is_attached_before_the_link_goes_up(desired in any_desired(), observed in any_observed()) {
        let mut model = observed.clone();
        for step in plan(&desired, &observed) {
            if matches!(step, Step::LinkUp) {
                prop_assert!(model.device.as_ref().is_some_and(|device| device.filter_attached));
            }
            apply_to_model(&mut model, &step);
        }
    }

    #[test]
    fn a_desired_prefix_is_never_nobodys_while_peers_swap_it(desired in any_desired(), observed in any_observed()) {
        let owned = |model: &Observed, prefix: &IpNet| {
            model.device.iter().flat_map(|device| device.peers.values()).any(|peer| peer.allowed_ips.contains(prefix))
        };
        let kept: Vec<IpNet> = desired.wireguard.peers.values().flat_map(|peer| peer.allowed_ips.iter().copied())
            .filter(|prefix| owned(&observed, prefix)).collect();
        let mut model = observed.clone();
        for step in plan(&desired, &observed) {
            // Only a peer whose prefixes are rewritten as a whole may let go of one that another peer gets later.
            let rewrite = matches!(&step, Step::UpdatePeer { allowed_ips: AllowedIps::Replace(_), .. });
            apply_to_model(&mut model, &step);
            if rewrite {
                break;
            }
            for prefix in &kept {
                prop_assert!(owned(&model, prefix), "{prefix} after {step:?}");
            }
        }
    }
}

#[test]
fn a_change_of_one_of_a_thousand_peers_is_a_step_for_that_peer_only() {
    let mut desired = desired_with_peers(1_000);
    let observed = apply_all(&Observed::default(), &plan(&desired, &Observed::default()));
    let key = node(500);
    desired.wireguard.peers.get_mut(&key).unwrap().endpoint = Some("192.0.2.9:1".parse().unwrap());

    let steps = plan(&desired, &observed);
    assert!(
        matches!(&steps[..], [Step::UpdatePeer { key: changed, endpoint: Some(_), allowed_ips: AllowedIps::Keep }] if *changed == key),
        "{steps:?}"
    );
}

#[test]
fn one_more_prefix_is_appended_and_one_less_rewrites_the_peer() {
    let mut desired = desired_with_peers(3);
    let observed = apply_all(&Observed::default(), &plan(&desired, &Observed::default()));
    let route: IpNet = "10.1.0.0/16".parse().unwrap();

    desired
        .wireguard
        .peers
        .get_mut(&node(1))
        .unwrap()
        .allowed_ips
        .insert(route);
    let steps = plan(&desired, &observed);
    assert!(
        matches!(&steps[..], [Step::UpdatePeer { allowed_ips: AllowedIps::Append(added), .. }] if added.len() == 1)
    );

    let with_route = apply_all(&observed, &steps);
    desired
        .wireguard
        .peers
        .get_mut(&node(1))
        .unwrap()
        .allowed_ips
        .remove(&route);
    let steps = plan(&desired, &with_route);
    assert!(
        matches!(&steps[..], [Step::UpdatePeer { allowed_ips: AllowedIps::Replace(all), .. }] if all.len() == 1)
    );
}

#[test]
fn a_prefix_that_moves_to_another_peer_leaves_the_first_by_that_alone() {
    let mut desired = desired_with_peers(3);
    let route: IpNet = "10.1.0.0/16".parse().unwrap();
    desired
        .wireguard
        .peers
        .get_mut(&node(1))
        .unwrap()
        .allowed_ips
        .insert(route);
    let observed = apply_all(&Observed::default(), &plan(&desired, &Observed::default()));

    desired
        .wireguard
        .peers
        .get_mut(&node(1))
        .unwrap()
        .allowed_ips
        .remove(&route);
    desired
        .wireguard
        .peers
        .get_mut(&node(2))
        .unwrap()
        .allowed_ips
        .insert(route);
    let steps = plan(&desired, &observed);
    assert!(
        matches!(&steps[..], [Step::UpdatePeer { key, allowed_ips: AllowedIps::Append(_), .. }] if *key == node(2)),
        "{steps:?}"
    );
}

#[test]
fn the_rules_have_the_stock_shape_with_our_numbers_in_both_families() {
    let rules = policy_rules(Mark {
        value: 0x1000,
        mask: 0xf000,
    });
    assert_eq!(rules.len(), 8);
    assert!(
        rules
            .iter()
            .all(|rule| crate::desired::RULE_PRIORITIES.contains(&rule.priority))
    );
    assert_eq!(rules.iter().filter(|rule| rule.mark.is_none()).count(), 2);
}

fn apply_all(observed: &Observed, steps: &[Step]) -> Observed {
    let mut model = observed.clone();
    steps
        .iter()
        .for_each(|step| apply_to_model(&mut model, step));
    model
}

fn assert_holds(desired: &Desired, after: &Observed) -> Result<(), TestCaseError> {
    let device = after.device.as_ref().expect("the plan creates it");
    prop_assert_eq!(&after.routes, &desired.routes);
    prop_assert_eq!(&after.rules, &desired.rules);
    prop_assert_eq!(&device.addresses, &desired.addresses);
    prop_assert!(device.up && device.filter_attached && device.mtu == desired.mtu);
    prop_assert_eq!(
        device.public_key,
        Some(desired.wireguard.private_key.public())
    );
    prop_assert_eq!(
        (device.listen_port, device.fwmark),
        (desired.wireguard.listen_port, desired.wireguard.fwmark)
    );
    prop_assert!(device.peers.keys().eq(desired.wireguard.peers.keys()));
    let wanted = without_double_owners(&desired.wireguard.peers);
    for (key, peer) in &device.peers {
        prop_assert_eq!(&peer.allowed_ips, &wanted[key].allowed_ips);
        prop_assert!(wanted[key].endpoint.is_none() || wanted[key].endpoint == peer.endpoint);
    }
    Ok(())
}

fn desired_with_peers(count: u16) -> Desired {
    let peers = (0..count).map(|n| {
        let allowed_ips = BTreeSet::from([IpNet::from(std::net::IpAddr::V4(Ipv4Addr::from(
            0x6440_0000 + u32::from(n),
        )))]);
        (
            node(n),
            Peer {
                endpoint: Some(SocketAddr::from(([192, 0, 2, 1], 1000 + n))),
                allowed_ips,
            },
        )
    });
    Desired {
        device: "lowroad0".into(),
        mtu: 1280,
        addresses: BTreeSet::new(),
        wireguard: WireGuard {
            private_key: NodePrivate::from_random([7; 32]),
            listen_port: 41641,
            fwmark: DEFAULT_MARK.value,
            peers: peers.collect(),
        },
        routes: BTreeSet::new(),
        rules: policy_rules(DEFAULT_MARK),
    }
}

fn node(n: u16) -> NodePublic {
    let mut bytes = [1; 32];
    bytes[..2].copy_from_slice(&n.to_be_bytes());
    NodePublic::from_bytes(bytes)
}

/// Few different ones, so that the two sides overlap.
fn prefix() -> impl Strategy<Value = IpNet> {
    (0u8..6, prop_oneof![Just(24u8), Just(32)]).prop_map(|(n, length)| {
        IpNet::new(Ipv4Addr::new(10, 0, n, 0).into(), length)
            .expect("a valid length")
            .trunc()
    })
}

fn peers() -> impl Strategy<Value = BTreeMap<NodePublic, Peer>> {
    let endpoint =
        proptest::option::of((1u16..4).prop_map(|port| SocketAddr::from(([192, 0, 2, 1], port))));
    let peer = (endpoint, btree_set(prefix(), 0..4)).prop_map(|(endpoint, allowed_ips)| Peer {
        endpoint,
        allowed_ips,
    });
    btree_map((0u16..6).prop_map(node), peer, 0..6)
}

fn routes() -> impl Strategy<Value = BTreeSet<Route>> {
    let kind = prop_oneof![
        Just(RouteKind::Device),
        Just(RouteKind::Throw),
        Just(RouteKind::Blackhole)
    ];
    // One route a prefix, as in a kernel table.
    btree_map(prefix(), kind, 0..5).prop_map(|routes| {
        routes
            .into_iter()
            .map(|(prefix, kind)| Route { prefix, kind })
            .collect()
    })
}

fn rules() -> impl Strategy<Value = BTreeSet<Rule>> {
    proptest::sample::subsequence(
        policy_rules(DEFAULT_MARK).into_iter().collect::<Vec<_>>(),
        0..=8,
    )
    .prop_map(|rules| rules.into_iter().collect())
}

prop_compose! {
    fn any_desired()(
        addresses in btree_set(prefix(), 0..3), peers in peers(), routes in routes(), rules in rules(),
        listen_port in 1u16..3, fwmark in 0u32..2, mtu in 1280u32..1282, key in 0u8..2,
    ) -> Desired {
        let wireguard = WireGuard { private_key: NodePrivate::from_random([key; 32]), listen_port, fwmark, peers };
        Desired { device: "lowroad0".into(), mtu, addresses, wireguard, routes, rules }
    }
}

prop_compose! {
    fn any_observed()(
        present in any::<bool>(), up in any::<bool>(), filter_attached in any::<bool>(), desired in any_desired(),
    ) -> Observed {
        let device = ObservedDevice {
            mtu: desired.mtu, up, filter_attached, addresses: desired.addresses,
            public_key: Some(desired.wireguard.private_key.public()),
            listen_port: desired.wireguard.listen_port, fwmark: desired.wireguard.fwmark,
            peers: without_double_owners(&desired.wireguard.peers).into_owned(),
        };
        Observed { device: present.then_some(device), routes: desired.routes, rules: desired.rules }
    }
}
