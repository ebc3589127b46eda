use std::time::Duration;

use super::*;
use nat::Nat;
use sim::{PORT, World};

mod asleep;
mod hostile;
mod nat;
mod sim;

const TICK: Duration = Duration::from_millis(10);

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

#[test]
fn two_hosts_on_one_network_are_direct_at_once_and_lose_nothing() {
    let mut world = World::new(&[(Nat::Easy, 2)]);
    let lost = world.talk((0, 1), millis(300), TICK);
    assert_eq!(lost, []);
    let address = world.hosts[1].address;
    assert_eq!(world.direct(0, 1), Some(address));
    assert!(world.direct(1, 0).is_some());
}

#[test]
fn two_easy_nats_are_crossed_within_a_second_without_loss() {
    let mut world = World::new(&[(Nat::Easy, 1), (Nat::Easy, 1)]);
    let lost = world.talk((0, 1), millis(800), TICK);
    assert_eq!(lost, []);
    assert!(world.direct(0, 1).is_some() && world.direct(1, 0).is_some());
}

#[test]
fn a_running_ping_is_upgraded_without_loss_whatever_the_netmap_knows() {
    for known in [true, false] {
        let mut world = World::new(&[(Nat::Easy, 1), (Nat::Easy, 1)]);
        for host in [0, 1].into_iter().filter(|_| !known) {
            // Endpoints have not reached the netmap yet: there is nothing but CallMeMaybe.
            let mut peers = world.netmap_of(host);
            peers[0].1.endpoints.clear();
            let now = world.now;
            world.hosts[host]
                .paths
                .set_peers(now, vec![peers.remove(0).1]);
        }
        assert_eq!(world.ping((0, 1), 8), 0);
        assert!(world.direct(0, 1).is_some() && world.direct(1, 0).is_some());
        assert_eq!(world.ping((0, 1), 600), 0);
    }
}

#[test]
fn an_easy_nat_and_a_public_host_are_direct_within_a_second() {
    for sites in [
        [(Nat::None, 1), (Nat::Easy, 1)],
        [(Nat::Easy, 1), (Nat::None, 1)],
    ] {
        let mut world = World::new(&sites);
        assert_eq!(world.talk((0, 1), millis(800), TICK), []);
        assert!(world.direct(0, 1).is_some() && world.direct(1, 0).is_some());
    }
}

#[test]
fn a_hard_nat_and_a_public_host_are_direct_by_the_endpoint_learned_from_pings() {
    let mut world = World::new(&[(Nat::Hard, 1), (Nat::None, 1)]);
    assert_eq!(world.talk((0, 1), millis(800), TICK), []);
    assert!(world.direct(0, 1).is_some() && world.direct(1, 0).is_some());
}

#[test]
fn a_hard_and_an_easy_nat_stay_on_the_relay_without_loss_and_without_a_storm() {
    let mut world = World::new(&[(Nat::Hard, 1), (Nat::Easy, 1)]);
    assert_eq!(world.talk((0, 1), secs(60), TICK), []);
    assert_eq!((world.direct(0, 1), world.direct(1, 0)), (None, None));
    for host in &world.hosts {
        assert!(
            host.disco_sent < 200,
            "{} disco messages in a minute",
            host.disco_sent
        );
    }
}

#[test]
fn a_cut_path_falls_back_to_the_relay_within_the_trust_time() {
    let mut world = World::new(&[(Nat::Easy, 1), (Nat::Easy, 1)]);
    world.talk((0, 1), secs(10), TICK);
    assert!(world.direct(0, 1).is_some());
    world.cut.extend([(0, 1), (1, 0)]);
    let cut_at = world.now - world.start;
    let lost = world.talk((0, 1), secs(20), TICK);
    let last = lost
        .last()
        .map(|(at, _)| *at - cut_at)
        .expect("some are lost");
    assert!(
        last < millis(4500),
        "the last loss came {last:?} after the cut"
    );
    assert_eq!((world.direct(0, 1), world.direct(1, 0)), (None, None));
}

#[test]
fn a_path_cut_in_one_direction_ends_on_the_relay_for_both_or_loses_nothing() {
    let mut world = World::new(&[(Nat::Easy, 1), (Nat::Easy, 1)]);
    world.talk((0, 1), secs(10), TICK);
    world.cut.insert((0, 1));
    world.talk((0, 1), secs(30), TICK);
    let lost = world.talk((0, 1), secs(60), TICK);
    assert_eq!(lost, []);
}

#[test]
fn a_cut_path_that_heals_is_used_again() {
    let mut world = World::new(&[(Nat::Easy, 1), (Nat::Easy, 1)]);
    world.talk((0, 1), secs(5), TICK);
    world.cut.extend([(0, 1), (1, 0)]);
    world.talk((0, 1), secs(20), TICK);
    world.cut.clear();
    assert_eq!(world.talk((0, 1), secs(10), TICK), []);
    assert!(world.direct(0, 1).is_some() && world.direct(1, 0).is_some());
}

#[test]
fn a_peer_whose_agent_is_dead_keeps_its_direct_path() {
    let mut world = World::new(&[(Nat::Easy, 1), (Nat::Easy, 1)]);
    world.talk((0, 1), secs(5), TICK);
    world.hosts[1].agent_dead = true;
    let lost = world.talk((0, 1), secs(120), TICK);
    assert_eq!(lost, []);
    assert!(world.direct(0, 1).is_some());
}

#[test]
fn a_peer_with_a_dead_agent_keeps_its_direct_path_through_a_pause() {
    let mut world = World::new(&[(Nat::Easy, 1), (Nat::Easy, 1)]);
    world.talk((0, 1), secs(5), TICK);
    world.hosts[1].agent_dead = true;
    assert_eq!(world.talk((0, 1), secs(20), TICK), []);
    world.run(secs(100));
    assert_eq!(world.talk((0, 1), secs(60), TICK), []);
}

#[test]
fn an_agent_that_died_while_idle_is_found_by_the_last_direct_path() {
    let mut world = World::new(&[(Nat::Easy, 1), (Nat::Easy, 1)]);
    world.talk((0, 1), secs(5), TICK);
    world.run(secs(100));
    assert_eq!(world.direct(0, 1), None);
    world.hosts[1].agent_dead = true;
    world.hosts[1].kernel.get_mut(&0).unwrap().endpoint = world.hosts[0].address;
    world.talk((0, 1), secs(6), TICK);
    assert!(world.direct(0, 1).is_some());
}

#[test]
fn a_dead_agent_whose_kernel_speaks_first_is_followed() {
    let mut world = World::new(&[(Nat::None, 1), (Nat::None, 1)]);
    world.talk((0, 1), secs(5), TICK);
    let direct = world.hosts[1].kernel[&0].endpoint;
    world.run(secs(100));
    world.hosts[1].agent_dead = true;
    world.hosts[1].kernel.get_mut(&0).unwrap().endpoint = direct;
    world.send(1, 0, 1);
    world.run(millis(100));
    let stats = world.stats(0);
    world.hosts[0].paths.on_stats(world.now, &stats);
    world.run(Duration::ZERO);
    assert_eq!(world.talk((0, 1), secs(60), TICK), []);
}

#[test]
fn a_restarted_agent_keeps_the_path_that_it_finds() {
    let mut world = World::new(&[(Nat::Easy, 1), (Nat::Easy, 1)]);
    world.talk((0, 1), secs(5), TICK);
    world.hosts[1].agent_dead = true;
    assert_eq!(world.talk((0, 1), secs(10), TICK), []);
    world.restart_agent(1, 77);
    assert_eq!(world.talk((0, 1), secs(60), TICK), []);
    assert!(world.direct(0, 1).is_some() && world.direct(1, 0).is_some());
}

#[test]
fn a_rebound_nat_is_followed_within_three_seconds() {
    let mut world = World::new(&[(Nat::Easy, 1), (Nat::None, 1)]);
    world.talk((0, 1), secs(10), TICK);
    world.rebind(0);
    let at = world.now - world.start;
    let lost = world.talk((0, 1), secs(20), TICK);
    if let Some((last, _)) = lost.last() {
        assert!(*last - at < secs(3), "{:?}", *last - at);
    }
    assert!(world.direct(1, 0).is_some());
}

#[test]
fn both_nats_rebound_are_crossed_again() {
    let mut world = World::new(&[(Nat::Easy, 1), (Nat::Easy, 1)]);
    world.talk((0, 1), secs(10), TICK);
    world.rebind(0);
    world.rebind(1);
    world.talk((0, 1), secs(60), TICK);
    assert_eq!(world.talk((0, 1), secs(10), TICK), []);
    assert!(world.direct(0, 1).is_some() && world.direct(1, 0).is_some());
}

#[test]
fn a_change_of_links_that_hurts_no_path_loses_nothing() {
    let mut world = World::new(&[(Nat::Easy, 1), (Nat::Easy, 1)]);
    world.talk((0, 1), secs(5), TICK);
    for _ in 0..5 {
        world.link_change(0);
        assert_eq!(world.talk((0, 1), secs(1), TICK), []);
    }
    assert!(world.direct(0, 1).is_some());
}

#[test]
fn a_change_of_links_that_cuts_the_path_falls_back_quickly() {
    let mut world = World::new(&[(Nat::Easy, 1), (Nat::Easy, 1)]);
    world.talk((0, 1), secs(5), TICK);
    world.cut.extend([(0, 1), (1, 0)]);
    world.link_change(0);
    world.talk((0, 1), secs(3), TICK);
    assert_eq!(world.direct(0, 1), None);
}

#[test]
fn a_cut_path_on_which_only_one_side_sends_is_left_within_the_trust_time() {
    let mut world = World::new(&[(Nat::Easy, 1), (Nat::Easy, 1)]);
    world.talk((0, 1), secs(10), TICK);
    world.cut.extend([(0, 1), (1, 0)]);
    let cut = world.now;
    while world.direct(0, 1).is_some() {
        world.send(0, 1, 1);
        world.run(TICK);
        assert!(world.now - cut < secs(8));
    }
}

#[test]
fn a_one_way_stream_stays_direct() {
    let mut world = World::new(&[(Nat::Easy, 1), (Nat::Easy, 1)]);
    world.talk((0, 1), secs(5), TICK);
    for id in 0..12_000 {
        world.send(0, 1, id);
        world.run(TICK);
        assert!(world.direct(0, 1).is_some());
    }
    world.run(secs(1));
    assert_eq!(
        (0..12_000)
            .filter(|id| !world.hosts[1].received.contains_key(id))
            .count(),
        0
    );
}

#[test]
fn whose_endpoints_change_calls_its_direct_peers_by_the_relay() {
    let mut world = World::new(&[(Nat::None, 2)]);
    world.talk((0, 1), secs(5), TICK);
    assert!(world.direct(0, 1).is_some());
    let now = world.now;
    let mut calls = |endpoints: &[SocketAddr]| {
        let paths = &mut world.hosts[0].paths;
        paths.set_local_endpoints(now, endpoints.to_vec());
        let commands = std::iter::from_fn(|| paths.poll_command());
        commands
            .filter(|command| matches!(command, Command::SendRelay { .. }))
            .count()
    };
    let own = |last| SocketAddr::from(([203, 0, 113, last], PORT));
    calls(&[own(101)]);
    assert_eq!(calls(&[own(101)]), 0, "nothing changed");
    assert_eq!(
        calls(&[own(101), own(9)]),
        1,
        "what is named now can be taken back later"
    );
    assert_eq!(calls(&[own(9)]), 1, "the peer may still use the lost one");
    assert_eq!(calls(&[own(8)]), 1, "and is told at once, every time");
    assert_eq!(calls(&[]), 0, "there is nothing to say");
    assert_eq!(calls(&[own(7)]), 1, "but it is said once there is");
    let mut again = |after: Duration, region| {
        let paths = &mut world.hosts[0].paths;
        paths.on_relay_connected(now + after, region);
        let commands = std::iter::from_fn(|| paths.poll_command());
        let call = |command: &Command| matches!(command, Command::SendRelay { .. });
        commands.filter(call).count()
    };
    assert_eq!(again(millis(10), RegionId(77)), 0, "another relay");
    assert_eq!(again(millis(10), sim::HOME), 1, "the call may be lost");
    assert_eq!(again(secs(6), sim::HOME), 0, "that was long ago");
}

#[test]
fn a_late_relayed_packet_that_moves_wireguard_is_put_right() {
    let mut world = World::new(&[(Nat::Easy, 1), (Nat::Easy, 1)]);
    world.talk((0, 1), secs(5), TICK);
    let relay = SocketAddr::from((sim::relay_address(1), sim::RELAY_PORT));
    world.hosts[0].kernel.get_mut(&1).unwrap().endpoint = relay;
    world.send(0, 1, 1);
    assert_ne!(world.hosts[0].kernel[&1].endpoint, relay);
    assert_eq!(world.talk((0, 1), secs(5), TICK), []);
}

#[test]
fn ten_thousand_idle_peers_cost_no_pings_and_no_timer() {
    let mut world = World::new(&[(Nat::None, 2)]);
    let now = world.now;
    let facts = world.facts(1);
    let peers: Vec<_> = (0..10_000u32)
        .map(|number| {
            let mut key = [9; 32];
            key[..4].copy_from_slice(&number.to_be_bytes());
            let key = NodePublic::from_bytes(key);
            PathPeer {
                key,
                disco: Some(DiscoPublic::from_bytes(*key.as_bytes())),
                ..facts.clone()
            }
        })
        .collect();
    let last = peers[9999].key;
    let paths = &mut world.hosts[0].paths;
    paths.set_peers(now, peers);
    assert_eq!((paths.poll_command(), paths.next_deadline()), (None, None));
    paths.on_outgoing(now, last);
    let sent = std::iter::from_fn(|| paths.poll_command());
    assert!(
        sent.filter(|c| matches!(c, Command::SendDirect { .. }))
            .count()
            == 1
    );
}

/// Reading counters reads those of all peers.
#[test]
fn peers_that_are_adopted_together_have_the_counters_read_once() {
    let mut world = World::new(&[(Nat::None, 2)]);
    let now = world.now;
    let facts = world.facts(1);
    let adopted = SocketAddr::from(([203, 0, 113, 7], PORT));
    let peers = (0..1000u32).map(|number| {
        let mut key = [9; 32];
        key[..4].copy_from_slice(&number.to_be_bytes());
        PathPeer {
            key: NodePublic::from_bytes(key),
            disco: Some(DiscoPublic::from_bytes(key)),
            adopted: Some(adopted),
            ..facts.clone()
        }
    });
    let paths = &mut world.hosts[0].paths;
    paths.set_peers(now, peers.collect());
    let reads = |paths: &mut Paths| {
        let commands = std::iter::from_fn(|| paths.poll_command());
        commands.filter(|c| *c == Command::ReadStats).count()
    };
    assert_eq!(reads(paths), 1);
    paths.on_link_change(now);
    assert_eq!(reads(paths), 1, "and again when links change");
}

#[test]
fn idle_peers_go_back_to_the_relay_and_cost_nothing() {
    let mut world = World::new(&[(Nat::Easy, 1), (Nat::Easy, 1)]);
    world.talk((0, 1), secs(5), TICK);
    world.run(secs(120));
    assert_eq!((world.direct(0, 1), world.direct(1, 0)), (None, None));
    let before: usize = world.hosts.iter().map(|host| host.disco_sent).sum();
    world.run(secs(600));
    assert_eq!(
        world
            .hosts
            .iter()
            .map(|host| host.disco_sent)
            .sum::<usize>(),
        before
    );
    assert_eq!(world.hosts[0].paths.next_deadline(), None);
    let lost = world.talk((0, 1), secs(2), TICK);
    assert_eq!(lost, []);
    assert!(world.direct(0, 1).is_some());
}

#[test]
fn a_ping_of_a_person_goes_over_the_relay_first_and_directly_then() {
    let mut world = World::new(&[(Nat::Easy, 1), (Nat::Easy, 1)]);
    let first = world.user_ping(0, 1);
    world.run(secs(1));
    assert!(matches!(
        world.hosts[0].pings[&first],
        PingResult::Relayed { .. }
    ));
    let second = world.user_ping(0, 1);
    world.run(secs(1));
    assert!(matches!(
        world.hosts[0].pings[&second],
        PingResult::Direct { .. }
    ));
}

#[test]
fn a_ping_of_a_person_to_a_silent_peer_times_out() {
    let mut world = World::new(&[(Nat::Easy, 1), (Nat::Easy, 1)]);
    world.hosts[1].agent_dead = true;
    let id = world.user_ping(0, 1);
    world.run(secs(6));
    assert_eq!(world.hosts[0].pings[&id], PingResult::TimedOut);
}

#[test]
fn relayed_data_injected_with_the_direct_source_keeps_no_dead_path_alive() {
    let mut world = World::new(&[(Nat::None, 1), (Nat::None, 1)]);
    world.talk((0, 1), secs(5), TICK);
    world.cut.extend([(0, 1), (1, 0)]);
    // Host 1 has given up already; what it sends reaches host 0 by injection.
    let relay = SocketAddr::from((sim::relay_address(0), sim::RELAY_PORT));
    world.hosts[1].kernel.get_mut(&0).unwrap().endpoint = relay;
    for id in 0..800 {
        world.hosts[1].kernel.get_mut(&0).unwrap().endpoint = relay;
        world.send(1, 0, id);
        world.run(TICK);
    }
    assert_eq!(world.direct(0, 1), None);
}

#[test]
fn a_netmap_patch_of_endpoints_probes_an_active_peer_at_once() {
    let mut world = World::new(&[(Nat::None, 1), (Nat::None, 1)]);
    let now = world.now;
    let mut bare = world.facts(1);
    let key = bare.key;
    bare.endpoints.clear();
    let paths = &mut world.hosts[0].paths;
    paths.set_peers(now, vec![bare.clone()]);
    paths.on_outgoing(now, key);
    while paths.poll_command().is_some() {}
    bare.endpoints = vec![world.hosts[1].address];
    let paths = &mut world.hosts[0].paths;
    paths.set_peers(now, vec![bare]);
    let commands: Vec<_> = std::iter::from_fn(|| paths.poll_command()).collect();
    let pinged = |c: &Command| matches!(c, Command::SendDirect { to, .. } if to.port() == PORT);
    assert!(commands.iter().any(pinged), "{commands:?}");
}
