//! The pool against a relay built from the same codecs, by TLS on loopback.

mod relay;
mod silent;

use std::time::{Duration, Instant};

use bytes::Bytes;
use lowroad_wire::{
    control::{DerpMap, DerpNode, DerpRegion, RegionId},
    derp::{Frame, GoneReason},
    key::{NodePrivate, NodePublic},
};
use tokio::{sync::mpsc, time::timeout};

use self::relay::Relay;
use super::{DerpEvent, DerpPool, Packets, Timings, Why};
use crate::tls::TlsConfig;

const HOME: RegionId = RegionId(901);
const OTHER: RegionId = RegionId(902);
/// Nothing that a test waits for takes longer, on the slowest machine.
const PATIENCE: Duration = Duration::from_secs(20);

#[tokio::test]
async fn two_nodes_exchange_packets_by_their_home_relays() {
    let (home, other) = (Relay::start().await, Relay::start().await);
    let mut alice = Client::start(1, &[(HOME, &home), (OTHER, &other)], Some(HOME)).await;
    let mut bob = Client::start(2, &[(HOME, &home), (OTHER, &other)], Some(OTHER)).await;
    alice
        .pool
        .send(OTHER, bob.key, Bytes::from_static(b"hello"));
    assert_eq!(
        bob.packet().await,
        (OTHER, alice.key, Bytes::from_static(b"hello"))
    );
    assert!(
        alice.pool.is_connected(OTHER),
        "a region is connected to on demand"
    );
    bob.pool
        .send(OTHER, alice.key, Bytes::from_static(b"you too"));
    assert_eq!(
        alice.packet().await,
        (OTHER, bob.key, Bytes::from_static(b"you too"))
    );
}

#[tokio::test]
async fn the_home_relay_is_told_that_it_is_home_and_when_it_no_longer_is() {
    let (home, other) = (Relay::start().await, Relay::start().await);
    let client = Client::start(1, &[(HOME, &home), (OTHER, &other)], Some(HOME)).await;
    home.saw(|frame| *frame == Frame::NotePreferred(true)).await;
    client.pool.set_home(Some(OTHER));
    home.saw(|frame| *frame == Frame::NotePreferred(false))
        .await;
    other
        .saw(|frame| *frame == Frame::NotePreferred(true))
        .await;
}

#[tokio::test]
async fn an_idle_region_closes_and_home_stays() {
    let (home, other) = (Relay::start().await, Relay::start().await);
    let timings = Timings {
        idle: Duration::from_millis(100),
        sweep: Duration::from_millis(20),
        ..Default::default()
    };
    let regions = [(HOME, &home), (OTHER, &other)];
    let mut client = Client::start_with(1, &regions, Some(HOME), timings).await;
    client
        .pool
        .send(OTHER, client.key, Bytes::from_static(b"to myself"));
    client
        .event(|event| *event == DerpEvent::Connected { region: OTHER })
        .await;
    client
        .event(|event| {
            *event
                == DerpEvent::Disconnected {
                    region: OTHER,
                    why: Why::Idle,
                }
        })
        .await;
    assert!(client.pool.is_connected(HOME));
    assert_eq!(home.connections(), 1);
    client
        .pool
        .send(OTHER, client.key, Bytes::from_static(b"again"));
    client
        .event(|event| *event == DerpEvent::Connected { region: OTHER })
        .await;
}

#[tokio::test]
async fn a_relay_that_comes_back_is_found_again() {
    let home = Relay::start().await;
    let mut client = Client::start(1, &[(HOME, &home)], Some(HOME)).await;
    for round in 1..=3 {
        home.drop_connections();
        client
            .event(|event| {
                matches!(
                    event,
                    DerpEvent::Disconnected {
                        why: Why::Failed(_),
                        ..
                    }
                )
            })
            .await;
        client
            .event(|event| *event == DerpEvent::Connected { region: HOME })
            .await;
        assert_eq!(home.connections(), 1 + round);
    }
    client
        .pool
        .send(HOME, client.key, Bytes::from_static(b"still here"));
    assert_eq!(client.packet().await.2, "still here");
}

#[tokio::test]
async fn a_packet_sent_while_connecting_arrives() {
    let home = Relay::start().await;
    home.refuse(1);
    let mut client = Client::idle(1, &[(HOME, &home)], Timings::default());
    client
        .pool
        .send(HOME, client.key, Bytes::from_static(b"first contact"));
    client
        .event(|event| {
            matches!(
                event,
                DerpEvent::Disconnected {
                    why: Why::Failed(_),
                    ..
                }
            )
        })
        .await;
    assert_eq!(client.packet().await.2, "first contact");
}

#[tokio::test]
async fn after_a_change_of_links_a_relay_that_does_not_answer_is_left_and_one_that_does_is_kept() {
    let (home, other) = (Relay::start().await, Relay::start().await);
    let timings = Timings {
        ping: Duration::from_millis(300),
        ..Default::default()
    };
    let regions = [(HOME, &home), (OTHER, &other)];
    let mut client = Client::start_with(1, &regions, Some(HOME), timings).await;
    client
        .pool
        .send(OTHER, client.key, Bytes::from_static(b"open"));
    client.packet().await;
    home.mute();
    client.pool.link_changed();
    client
        .event(|event| {
            matches!(
                event,
                DerpEvent::Disconnected {
                    region: HOME,
                    why: Why::Failed(_)
                }
            )
        })
        .await;
    client
        .event(|event| *event == DerpEvent::Connected { region: HOME })
        .await;
    assert_eq!((home.connections(), other.connections()), (2, 1));
}

#[tokio::test]
async fn pings_are_answered() {
    let home = Relay::start().await;
    let _client = Client::start(1, &[(HOME, &home)], Some(HOME)).await;
    home.say(Frame::Ping(*b"whoisit?"));
    home.saw(|frame| *frame == Frame::Pong(*b"whoisit?")).await;
}

#[tokio::test]
async fn what_the_relay_says_of_itself_is_passed_on_the_latest_of_it() {
    let home = Relay::start().await;
    let mut client = Client::start(1, &[(HOME, &home)], Some(HOME)).await;
    let health = |text: &str| DerpEvent::Health {
        region: HOME,
        text: text.to_owned(),
    };
    home.say(Frame::Health("two of you".to_owned()));
    client.event(|event| *event == health("two of you")).await;
    for number in 0..20_000 {
        home.say(Frame::Health(format!("{number}")));
    }
    home.say(Frame::Health("done".to_owned()));
    let mut told = 0;
    let done = client.event(|event| {
        told += 1;
        *event == health("done")
    });
    done.await;
    assert!(told < 30, "{told} events");
}

/// Nobody reads events meanwhile, as while the engine is busy.
#[tokio::test]
async fn a_relay_that_floods_keeps_no_packet_of_another_from_arriving() {
    let (home, other) = (Relay::start().await, Relay::start().await);
    let regions = [(HOME, &home), (OTHER, &other)];
    let mut client = Client::start(1, &regions, Some(HOME)).await;
    client
        .pool
        .send(OTHER, client.key, Bytes::from_static(b"open"));
    client.packet().await;
    let stranger = NodePublic::from_bytes([9; 32]);
    for _ in 0..10_000 {
        other.say(Frame::PeerGone {
            key: stranger,
            reason: GoneReason::NotHere,
        });
        other.say(Frame::Health("hear me".to_owned()));
        other.say(Frame::RecvPacket {
            from: stranger,
            packet: Bytes::from_static(b"noise"),
        });
    }
    other.say(Frame::Ping(*b"read all"));
    other.saw(|frame| *frame == Frame::Pong(*b"read all")).await;
    home.say(Frame::RecvPacket {
        from: stranger,
        packet: Bytes::from_static(b"good"),
    });
    home.say(Frame::Ping(*b"carried?"));
    home.saw(|frame| *frame == Frame::Pong(*b"carried?")).await;
    // Far behind what the other one has sent, were there one queue.
    let mut packets = Vec::new();
    client.packets.recv_many(&mut packets, 64).await;
    let good = packets.iter().find(|packet| packet.region == HOME);
    assert_eq!(good.expect("it has its turn").bytes, "good");
}

#[tokio::test]
async fn garbage_from_a_relay_ends_the_connection_and_nothing_else() {
    let (home, other) = (Relay::start().await, Relay::start().await);
    let mut client = Client::start(1, &[(HOME, &home), (OTHER, &other)], Some(HOME)).await;
    for garbage in [
        &[0xff; 64][..],
        &[0x05, 0, 0, 0, 3, 1, 2, 3],
        &[0x05, 0xff, 0xff, 0xff, 0xff],
    ] {
        home.say_raw(garbage);
        client
            .event(|event| matches!(event, DerpEvent::Disconnected { region: HOME, .. }))
            .await;
        client
            .event(|event| *event == DerpEvent::Connected { region: HOME })
            .await;
    }
    client
        .pool
        .send(OTHER, client.key, Bytes::from_static(b"fine"));
    assert_eq!(client.packet().await.2, "fine");
}

#[tokio::test]
async fn a_relay_with_another_certificate_than_the_pinned_one_is_refused() {
    let (home, impostor) = (Relay::start().await, Relay::start().await);
    let mut map = map(&[(HOME, &impostor)]);
    map.regions.get_mut(&HOME).unwrap().nodes[0].cert_name = home.node(HOME).cert_name;
    let mut client = Client::idle(1, &[], Timings::default());
    client.pool.set_map(&map);
    client.pool.set_home(Some(HOME));
    let refused = client.event(|_| true).await;
    let DerpEvent::Disconnected {
        why: Why::Failed(why),
        ..
    } = refused
    else {
        panic!("{refused:?}")
    };
    assert!(why.contains("not trusted"), "{why}");
    assert_eq!(impostor.connections(), 0);
}

#[tokio::test]
async fn a_relay_is_trusted_by_the_roots_and_the_name_that_the_map_expects() {
    let home = Relay::start().await;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(home.certificate()).unwrap();
    for (cert_name, reached) in [("relay.test", true), ("other.test", false)] {
        let mut map = map(&[(HOME, &home)]);
        map.regions.get_mut(&HOME).unwrap().nodes[0].cert_name = cert_name.to_owned();
        let tls = TlsConfig::with_roots(roots.clone()).unwrap();
        let mut client = Client::new(1, tls, Timings::default());
        client.pool.set_map(&map);
        client.pool.set_home(Some(HOME));
        let event = client.event(|_| true).await;
        assert_eq!(
            event == DerpEvent::Connected { region: HOME },
            reached,
            "{cert_name}: {event:?}"
        );
    }
}

#[tokio::test]
async fn the_next_node_of_a_region_takes_over_from_one_that_is_down() {
    let home = Relay::start().await;
    let mut map = map(&[(HOME, &home)]);
    let nodes = &mut map.regions.get_mut(&HOME).unwrap().nodes;
    let stun_only = DerpNode {
        stun_only: true,
        ..Default::default()
    };
    let down = DerpNode {
        derp_port: relay::unused_port(),
        ..home.node(HOME)
    };
    nodes.splice(0..0, [stun_only, down]);
    let mut client = Client::idle(1, &[], Timings::default());
    client.pool.set_map(&map);
    client.pool.set_home(Some(HOME));
    client
        .event(|event| *event == DerpEvent::Connected { region: HOME })
        .await;
}

#[tokio::test]
async fn a_map_without_the_region_closes_it_and_a_dropped_pool_closes_all() {
    let (home, other) = (Relay::start().await, Relay::start().await);
    let mut client = Client::start(1, &[(HOME, &home), (OTHER, &other)], Some(HOME)).await;
    client.pool.set_map(&map(&[(OTHER, &other)]));
    client
        .event(|event| {
            *event
                == DerpEvent::Disconnected {
                    region: HOME,
                    why: Why::Moved,
                }
        })
        .await;
    assert!(!client.pool.is_connected(HOME));
    client
        .pool
        .send(HOME, client.key, Bytes::from_static(b"into the void"));
    client.pool.set_home(Some(OTHER));
    client
        .event(|event| *event == DerpEvent::Connected { region: OTHER })
        .await;
    let Client {
        pool, mut events, ..
    } = client;
    drop(pool);
    while timeout(PATIENCE, events.recv())
        .await
        .expect("all tasks end")
        .is_some()
    {}
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_of_packets_arrives_in_order_and_whole() {
    const PACKETS: u32 = 50_000;
    /// Below what the queues of pool and relay hold.
    const WINDOW: u32 = 128;
    let home = Relay::start().await;
    let mut client = Client::start(1, &[(HOME, &home)], Some(HOME)).await;
    let start = Instant::now();
    let mut sent = 0;
    for received in 0..PACKETS {
        while sent < PACKETS && sent < received + WINDOW {
            let mut packet = vec![0; 1400];
            packet[..4].copy_from_slice(&sent.to_be_bytes());
            client.pool.send(HOME, client.key, packet.into());
            sent += 1;
        }
        let (_, _, packet) = client.packet().await;
        assert_eq!(
            (packet.len(), &packet[..4]),
            (1400, &received.to_be_bytes()[..])
        );
    }
    assert_eq!(client.pool.dropped(), 0);
    let rate = f64::from(PACKETS) / start.elapsed().as_secs_f64();
    println!("{rate:.0} packets/s there and back through TLS");
}

struct Client {
    pool: DerpPool,
    packets: Packets,
    events: mpsc::Receiver<DerpEvent>,
    key: NodePublic,
}

impl Client {
    fn new(seed: u8, tls: TlsConfig, timings: Timings) -> Self {
        let node = NodePrivate::from_random([seed; 32]);
        let key = node.public();
        let (pool, packets, events) = DerpPool::start_with(node, tls, 0, timings);
        Self {
            pool,
            packets,
            events,
            key,
        }
    }

    /// With a map, but no home.
    fn idle(seed: u8, regions: &[(RegionId, &Relay)], timings: Timings) -> Self {
        let tls = TlsConfig::with_roots(rustls::RootCertStore::empty()).unwrap();
        let client = Self::new(seed, tls, timings);
        client.pool.set_map(&map(regions));
        client
    }

    /// Connected to its home.
    async fn start(seed: u8, regions: &[(RegionId, &Relay)], home: Option<RegionId>) -> Self {
        Self::start_with(seed, regions, home, Timings::default()).await
    }

    async fn start_with(
        seed: u8,
        regions: &[(RegionId, &Relay)],
        home: Option<RegionId>,
        timings: Timings,
    ) -> Self {
        let mut client = Self::idle(seed, regions, timings);
        client.pool.set_home(home);
        if let Some(region) = home {
            client
                .event(|event| *event == DerpEvent::Connected { region })
                .await;
        }
        client
    }

    /// The next event that fits.
    async fn event(&mut self, mut fits: impl FnMut(&DerpEvent) -> bool) -> DerpEvent {
        let next = async {
            loop {
                let event = self.events.recv().await.expect("the pool lives");
                if fits(&event) {
                    return event;
                }
            }
        };
        timeout(PATIENCE, next).await.expect("the event comes")
    }

    async fn packet(&mut self) -> (RegionId, NodePublic, Bytes) {
        let mut packets = Vec::new();
        let next = self.packets.recv_many(&mut packets, 1);
        timeout(PATIENCE, next).await.expect("the packet comes");
        let packet = packets.remove(0);
        (packet.region, packet.from, packet.bytes)
    }
}

fn map(regions: &[(RegionId, &Relay)]) -> DerpMap {
    let region = |(id, relay): &(RegionId, &Relay)| {
        let region = DerpRegion {
            region_id: *id,
            nodes: vec![relay.node(*id)],
            ..Default::default()
        };
        (*id, region)
    };
    DerpMap {
        regions: regions.iter().map(region).collect(),
        ..Default::default()
    }
}
