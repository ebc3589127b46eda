//! Peers that nothing has passed to or from yet.

use super::*;

#[test]
fn a_peer_is_asleep_until_something_passes_and_what_has_passed_before_wakes_nobody_up() {
    let mut world = World::new(&[(Nat::None, 2)]);
    let (now, facts) = (world.now, world.facts(1));
    let (key, relay) = (
        facts.key,
        SocketAddr::from((facts.relay_address, sim::RELAY_PORT)),
    );
    let read = |tx_bytes| PeerStats {
        key,
        endpoint: Some(relay),
        rx_bytes: 0,
        tx_bytes,
        last_handshake: None,
    };
    let adopted = PathPeer {
        adopted: Some(relay),
        ..facts.clone()
    };
    let paths = &mut world.hosts[0].paths;
    let anew = |paths: &mut Paths| {
        paths.set_peers(now, Vec::new());
        paths.set_peers(now, vec![adopted.clone()]);
    };
    anew(paths);
    paths.on_stats(now, &[read(0)]);
    paths.set_peers(now, vec![facts.clone()]);
    let idle = |paths: &mut Paths| (paths.poll_command(), paths.next_deadline());
    assert_eq!((paths.peers.len(), paths.endpoint(&key)), (0, Some(relay)));
    assert_eq!(idle(paths), (None, None));
    paths.on_stats(now, &[read(148)]);
    assert!(paths.status(&key).is_some_and(|status| status.active));
    assert_eq!((paths.peers.len(), paths.asleep.len()), (1, 0));

    anew(paths);
    while paths.poll_command().is_some() {}
    paths.on_stats(now, &[read(148)]);
    assert!(paths.status(&key).is_some_and(|status| !status.active));
    paths.set_peers(now, vec![adopted.clone()]);
    assert_eq!(idle(paths), (None, None));
    paths.on_stats(now, &[read(296)]);
    assert!(paths.status(&key).is_some_and(|status| status.active));
}

#[test]
fn a_peer_that_is_asleep_is_taken_at_its_last_word() {
    let mut world = World::new(&[(Nat::None, 2)]);
    let (now, facts) = (world.now, world.facts(1));
    let key = facts.key;
    let disco = DiscoPrivate::from_random([91; 32]).public();
    let changed = PathPeer {
        disco: Some(disco),
        home: Some(RegionId(7)),
        endpoints: vec![([203, 0, 113, 99], PORT).into()],
        ..facts
    };
    let paths = &mut world.hosts[0].paths;
    paths.set_peers(now, vec![changed.clone()]);
    assert_eq!(paths.status(&key).unwrap().relay, Some(RegionId(7)));
    assert_eq!(paths.nodes_with(disco).collect::<Vec<_>>(), [key]);
    paths.on_outgoing(now, key);
    let commands = std::iter::from_fn(|| paths.poll_command());
    let sent: Vec<_> = commands
        .filter_map(|command| match command {
            Command::SendDirect { to, .. } => Some(to),
            _ => None,
        })
        .collect();
    assert_eq!(sent, changed.endpoints);
    paths.set_peers(now, Vec::new());
    assert_eq!(paths.nodes_with(disco).count(), 0);
    assert_eq!(paths.endpoint(&key), None);
}

#[test]
fn a_peer_that_is_asleep_and_gets_another_relay_address_is_programmed_there() {
    let mut world = World::new(&[(Nat::None, 2)]);
    let (now, facts) = (world.now, world.facts(1));
    let moved = PathPeer {
        relay_address: sim::relay_address(9),
        ..facts
    };
    let endpoint = SocketAddr::from((moved.relay_address, sim::RELAY_PORT));
    let (peer, paths) = (moved.key, &mut world.hosts[0].paths);
    paths.set_peers(now, vec![moved]);
    let set = Command::SetEndpoint { peer, endpoint };
    assert_eq!(paths.poll_command(), Some(set));
}
