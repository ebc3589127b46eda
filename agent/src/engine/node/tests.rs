use std::time::Duration;

use lowroad_core::desired::{DEFAULT_MARK, Observed};
use lowroad_core::filter::{self, Evaluator};
use lowroad_wire::{control::MapResponse, key::NodePrivate};
use serde_json::{Value, json};

use super::{netmap::MAX_MALFORMED, *};
use crate::kernel::{
    Dataplane,
    fake::{self, FakeHandle},
};

mod policy;

fn own_key() -> NodePrivate {
    NodePrivate::from_random([1; 32])
}

fn choices() -> Choices {
    Choices {
        device: "lowroad0".into(),
        listen_port: 41641,
        mark: DEFAULT_MARK,
        private_key: own_key(),
        accept_routes: false,
        shields_up: false,
        disco: [7; 32],
    }
}

async fn node_on(change: impl FnOnce(&mut Observed)) -> (Node, FakeHandle) {
    let (started, handle) = fake::start(Dataplane::Kernel).await.unwrap();
    handle.change(change);
    let node = Node::adopt(
        started.kernel,
        choices(),
        DiscoPrivate::from_random([2; 32]),
        [3; 32],
    )
    .await
    .unwrap();
    (node, handle)
}

/// The kernel holds what a netmap of these peers wants.
async fn running(peers: std::ops::RangeInclusive<u16>) -> (Node, FakeHandle) {
    let (mut node, kernel) = node_on(|_| {}).await;
    take(&mut node, &netmap(peers));
    reconcile(&mut node).await;
    (node, kernel)
}

fn peer_key(n: u16) -> NodePublic {
    let mut random = [5; 32];
    random[8..10].copy_from_slice(&n.to_be_bytes());
    NodePrivate::from_random(random).public()
}

fn peer(n: u16) -> Value {
    json!({"ID": n + 1, "StableID": format!("s{n}"), "Name": format!("p{n}.tail.lab."), "Key": peer_key(n).to_string(),
        "DiscoKey": format!("discokey:{:064x}", n + 1), "HomeDERP": 999,
        "Addresses": [format!("100.64.{}.{}/32", 1 + n / 250, 1 + n % 250)], "Endpoints": [format!("192.0.2.1:{}", 1000 + n)]})
}

fn own() -> Value {
    json!({"ID": 1, "StableID": "self", "Name": "me.tail.lab.", "Key": own_key().public().to_string(), "Addresses": ["100.64.0.1/32"], "MachineAuthorized": true})
}

fn take(node: &mut Node, message: &Value) -> Consequences {
    let (response, malformed) = MapResponse::parse(message.to_string().as_bytes()).unwrap();
    node.take_map(
        response,
        &malformed,
        Instant::now(),
        OffsetDateTime::UNIX_EPOCH,
    )
}

async fn reconcile(node: &mut Node) -> usize {
    node.reconcile(Instant::now(), OffsetDateTime::UNIX_EPOCH)
        .await
        .unwrap()
}

fn netmap(peers: impl IntoIterator<Item = u16>) -> Value {
    let peers: Vec<_> = peers.into_iter().map(peer).collect();
    json!({"Node": own(), "Peers": peers, "PacketFilter": [{"SrcIPs": ["*"], "DstPorts": [{"IP": "*", "Ports": {"First": 22, "Last": 22}}]}]})
}

#[tokio::test]
async fn a_change_of_one_of_a_thousand_peers_touches_only_that_peer() {
    let (mut node, kernel) = running(1..=1000).await;
    assert_eq!(kernel.observed().device.unwrap().peers.len(), 1000);
    kernel.take_steps();

    assert_eq!(
        reconcile(&mut node).await,
        0,
        "a second time changes nothing"
    );
    let mut changed = peer(500);
    changed["Addresses"] = json!(["100.64.99.1/32"]);
    take(&mut node, &json!({"PeersChanged": [changed]}));
    reconcile(&mut node).await;
    let steps = kernel.take_steps();
    assert!(!steps.is_empty());
    for step in &steps {
        let of_peer = matches!(step, Step::UpdatePeer { key, .. } if *key == peer_key(500));
        assert!(
            of_peer || matches!(step, Step::AddRoute(_) | Step::RemoveRoute(_)),
            "{step:?}"
        );
    }
    assert_eq!(steps.len(), 3, "{steps:?}");
}

#[tokio::test]
async fn a_change_reads_nothing_back_and_what_the_kernel_lost_is_put_right_by_comparing() {
    let (mut node, kernel) = running(1..=3).await;
    kernel.fail_observe(true);
    let consequences = take(&mut node, &json!({"OnlineChange": {"2": true}}));
    assert!(consequences.netmap && !consequences.kernel && node.programmed);
    assert!(
        take(
            &mut node,
            &json!({"PeersChanged": [peer(4)], "PeersRemoved": [2]})
        )
        .kernel
    );
    assert!(!node.programmed);
    reconcile(&mut node).await;
    kernel.heal();
    let keys = |kernel: &FakeHandle| -> Vec<_> {
        kernel
            .observed()
            .device
            .unwrap()
            .peers
            .into_keys()
            .collect()
    };
    let mut expected = [peer_key(2), peer_key(3), peer_key(4)];
    expected.sort();
    assert_eq!(keys(&kernel), expected);

    kernel.change(|observed| observed.device.as_mut().unwrap().peers.clear());
    assert_eq!(reconcile(&mut node).await, 0);
    node.compare_whole();
    assert_eq!(reconcile(&mut node).await, 3);
    assert_eq!(keys(&kernel), expected);
}

#[tokio::test]
async fn a_part_that_fails_is_made_up_for_by_comparing_everything_at_once() {
    let (mut node, kernel) = running(1..=3).await;
    kernel.change(|observed| observed.device = None);
    let mut failures = 1;
    kernel.fail_steps(move |step| {
        let fails = failures > 0 && matches!(step, Step::AddPeer { .. });
        failures -= i32::from(fails);
        fails
    });
    take(&mut node, &json!({"PeersChanged": [peer(4)]}));
    reconcile(&mut node).await;
    assert_eq!(kernel.observed().device.unwrap().peers.len(), 4);
    assert!(node.programmed);
}

#[tokio::test]
async fn a_relay_entry_follows_its_peer_and_waits_until_the_kernel_has_it() {
    let (mut node, _kernel) = node_on(|_| {}).await;
    let changes = |node: &mut Node| match node.take_relays() {
        Relays::Changes(changes) => changes,
        Relays::Whole(table) => panic!("of all {} peers", table.len()),
    };
    take(&mut node, &netmap(1..=3));
    assert!(changes(&mut node).is_empty());
    reconcile(&mut node).await;
    assert!(matches!(node.take_relays(), Relays::Whole(table) if table.len() == 3));
    let mut moved = peer(1);
    moved["HomeDERP"] = json!(7);
    take(
        &mut node,
        &json!({"PeersChanged": [moved, peer(4)], "PeersRemoved": [3]}),
    );
    let region = |entry: &Option<crate::traversal::relay::RelayEntry>| {
        entry.map(|entry| entry.region.unwrap().0)
    };
    let told: BTreeMap<_, _> = changes(&mut node)
        .iter()
        .map(|(key, entry)| (*key, region(entry)))
        .collect();
    assert_eq!(
        told,
        [(peer_key(1), Some(7))].into(),
        "the kernel is behind with the others"
    );
    reconcile(&mut node).await;
    let told: BTreeMap<_, _> = changes(&mut node)
        .iter()
        .map(|(key, entry)| (*key, region(entry)))
        .collect();
    assert_eq!(told, [(peer_key(2), None), (peer_key(4), Some(999))].into());
    assert!(changes(&mut node).is_empty());
}

#[tokio::test]
async fn an_endpoint_is_set_without_touching_anything_else() {
    let (mut node, kernel) = running(1..=10).await;
    kernel.take_steps();
    let endpoint = "192.0.2.7:41641".parse().unwrap();
    node.set_endpoint(peer_key(3), endpoint).await.unwrap();
    let steps = kernel.take_steps();
    assert!(
        matches!(&steps[..], [Step::UpdatePeer { key, endpoint: Some(to), allowed_ips: AllowedIps::Keep }] if *key == peer_key(3) && *to == endpoint),
        "{steps:?}"
    );
}

#[tokio::test]
async fn malformed_peers_are_left_out_and_named_and_the_others_work() {
    let (mut node, kernel) = node_on(|_| {}).await;
    let mut message = netmap(1..=3);
    message["Peers"]
        .as_array_mut()
        .unwrap()
        .push(json!({"ID": 77, "Key": "nodekey:nonsense"}));
    take(&mut node, &message);
    reconcile(&mut node).await;
    assert_eq!(kernel.observed().device.unwrap().peers.len(), 3);
    assert_eq!(node.malformed.len(), 1);
    assert!(node.malformed[0].contains("77"), "{:?}", node.malformed);
}

#[tokio::test]
async fn without_a_netmap_nothing_is_made_and_without_rules_everything_is_dropped() {
    let (mut node, kernel) = node_on(|_| {}).await;
    assert_eq!(reconcile(&mut node).await, 0);
    assert!(kernel.observed().device.is_none());
    take(&mut node, &json!({"Node": own(), "Peers": [peer(1)]}));
    let mut judge = Evaluator::new(&lowroad_core::intent::filter_input(
        node.map.as_ref().unwrap(),
        &node.choices,
        OffsetDateTime::UNIX_EPOCH,
    ));
    let syn = [
        &[
            0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0, 100, 64, 1, 2, 100, 64, 0, 1,
        ][..],
        &[
            0x9c, 0x40, 0, 22, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 2, 0, 0, 0, 0, 0, 0,
        ],
    ]
    .concat();
    assert!(!judge.judge(filter::Direction::In, &syn).accepted());
    reconcile(&mut node).await;
    assert!(kernel.installed().last().unwrap().rules.is_empty());
}

#[tokio::test]
async fn what_failed_halfway_is_finished_the_next_time() {
    let (mut node, kernel) = node_on(|_| {}).await;
    take(&mut node, &netmap(1..=3));
    kernel.fail_steps(|step| matches!(step, Step::AddPeer { .. }));
    assert!(
        node.reconcile(Instant::now(), OffsetDateTime::UNIX_EPOCH)
            .await
            .is_err()
    );
    assert!(!node.programmed);
    assert_eq!(
        kernel.installed().len(),
        1,
        "the filter came before the peers"
    );
    kernel.heal();
    reconcile(&mut node).await;
    assert!(node.programmed);
    assert_eq!(kernel.observed().device.unwrap().peers.len(), 3);
    assert_eq!(
        kernel.installed().len(),
        1,
        "an installed filter is not installed again"
    );
}

#[tokio::test]
async fn a_restarted_agent_adopts_endpoints_and_changes_nothing_that_is_right() {
    let (mut before, kernel) = running(1..=5).await;
    let direct = "192.0.2.9:41641".parse().unwrap();
    before.set_endpoint(peer_key(2), direct).await.unwrap();
    let left = kernel.observed();

    let (mut after, kernel) = node_on(|observed| *observed = left.clone()).await;
    kernel.take_steps();
    assert_eq!(reconcile(&mut after).await, 0, "nothing without a netmap");
    take(&mut after, &netmap(1..=5));
    reconcile(&mut after).await;
    let steps = kernel.take_steps();
    assert!(steps.is_empty(), "{steps:?}");
    assert_eq!(
        kernel.observed().device.unwrap().peers[&peer_key(2)].endpoint,
        Some(direct)
    );
}

#[tokio::test]
async fn a_new_poll_replaces_the_netmap_only_with_its_first_message() {
    let (mut node, kernel) = running(1..=3).await;
    node.poll_started();
    reconcile(&mut node).await;
    assert_eq!(kernel.observed().device.unwrap().peers.len(), 3);
    take(&mut node, &netmap(2..=2));
    reconcile(&mut node).await;
    assert_eq!(
        kernel
            .observed()
            .device
            .unwrap()
            .peers
            .keys()
            .copied()
            .collect::<Vec<_>>(),
        [peer_key(2)]
    );
}

#[tokio::test]
async fn a_change_that_concerns_no_rule_and_no_peer_leaves_the_filter_alone() {
    let (mut node, kernel) = running(1..=3).await;
    take(&mut node, &json!({"OnlineChange": {"2": true}}));
    reconcile(&mut node).await;
    assert_eq!(kernel.installed().len(), 1);
    node.read_stats(Instant::now() + Duration::from_secs(1))
        .await
        .unwrap();
}

#[tokio::test]
async fn a_peer_whose_key_expires_without_a_message_leaves_kernel_filter_and_paths() {
    let (mut node, kernel) = node_on(|_| {}).await;
    let mut message = netmap(1..=2);
    message["Peers"][0]["KeyExpiry"] = json!("1970-01-01T01:00:00Z");
    take(&mut node, &message);
    reconcile(&mut node).await;
    assert!(node.paths.status(&peer_key(1)).is_some());
    let later = OffsetDateTime::UNIX_EPOCH + time::Duration::hours(2);
    node.reconcile(Instant::now(), later).await.unwrap();
    let peers = kernel.observed().device.unwrap().peers;
    assert_eq!(peers.keys().copied().collect::<Vec<_>>(), [peer_key(2)]);
    assert!(
        node.paths.status(&peer_key(1)).is_none(),
        "a path would add it to the kernel again"
    );
    assert!(node.paths.status(&peer_key(2)).is_some());
}

#[tokio::test]
async fn a_node_whose_own_key_has_expired_has_no_peers_until_it_is_renewed() {
    let (mut node, kernel) = node_on(|_| {}).await;
    let mut message = netmap(1..=2);
    message["Node"]["KeyExpiry"] = json!("1970-01-01T01:00:00Z");
    take(&mut node, &message);
    reconcile(&mut node).await;
    let peers = || kernel.observed().device.unwrap().peers.len();
    assert_eq!(peers(), 2);
    // The server may go on naming them, and need not say that the time has come.
    let later = OffsetDateTime::UNIX_EPOCH + time::Duration::hours(2);
    node.reconcile(Instant::now(), later).await.unwrap();
    assert_eq!(peers(), 0);
    assert!(
        node.paths.status(&peer_key(1)).is_none(),
        "a path would add it to the kernel again"
    );
    take(&mut node, &json!({"Node": own()}));
    node.reconcile(Instant::now(), later).await.unwrap();
    assert_eq!(peers(), 2);
}

#[tokio::test]
async fn what_is_told_of_malformed_peers_is_bounded() {
    let (mut node, _) = node_on(|_| {}).await;
    take(&mut node, &netmap(1..=1));
    for id in 0..200 {
        take(
            &mut node,
            &json!({"PeersChanged": [{"ID": id, "Key": "nodekey:nonsense"}]}),
        );
    }
    assert_eq!(node.malformed.len(), MAX_MALFORMED);
}

#[tokio::test]
async fn a_cached_netmap_is_in_force_until_the_server_sends_one_or_the_own_key_expires() {
    let (mut known, _) = node_on(|_| {}).await;
    let mut message = netmap(1..=3);
    message["Node"]["KeyExpiry"] = json!("1970-01-01T01:00:00Z");
    message["Peers"][2]["KeyExpiry"] = json!("1970-01-01T00:30:00Z");
    take(&mut known, &message);
    let cached = known.map.clone().unwrap();
    let minutes = |n| OffsetDateTime::UNIX_EPOCH + time::Duration::minutes(n);

    let (mut node, kernel) = node_on(|_| {}).await;
    node.take_cached(cached.clone(), minutes(0), Instant::now(), minutes(40));
    node.reconcile(Instant::now(), minutes(40)).await.unwrap();
    let peers = |kernel: &FakeHandle| kernel.observed().device.unwrap().peers.len();
    assert_eq!(peers(&kernel), 2, "the third has expired meanwhile");
    assert!(node.drop_expired_cache(minutes(61)));
    for clock in [61, 40] {
        node.reconcile(Instant::now(), minutes(clock))
            .await
            .unwrap();
        assert_eq!(peers(&kernel), 0, "so has the own key, at minute {clock}");
    }
    assert!(kernel.installed().last().unwrap().rules.is_empty());

    let (mut node, kernel) = node_on(|_| {}).await;
    node.take_cached(cached, minutes(0), Instant::now(), minutes(0));
    node.poll_started();
    take(&mut node, &json!({"KeepAlive": true}));
    assert!(node.cached.is_some(), "that was no netmap");
    take(&mut node, &netmap(2..=2));
    assert!(node.cached.is_none());
    reconcile(&mut node).await;
    assert_eq!(peers(&kernel), 1);
}

/// Another port than [`netmap`]'s, as a difference.
fn other_policy() -> Value {
    json!({"PacketFilter": [{"SrcIPs": ["*"], "DstPorts": [{"IP": "*", "Ports": {"First": 25, "Last": 25}}]}]})
}
