//! The sockets of path discovery in network namespaces of their own, beside a UDP socket that stands for
//! WireGuard's.
#![expect(
    clippy::unwrap_used,
    reason = "a helper of a test that cannot go on stops the test"
)]

use std::{
    collections::BTreeSet,
    fs, io,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use bytes::Bytes;
use lowroad_agent::traversal::{
    endpoints::local_addresses,
    port::{Datagram, Port},
    relay::{FromRelay, RelayDoor, RelayEntry, RelayEvent, RelayTable},
    stun::Prober,
};
use lowroad_core::netcheck;
use lowroad_wire::{
    control::{DerpMap, DerpNode, DerpRegion, EndpointType, RegionId},
    disco::{self, Message, Ping, SharedKey, TxId},
    key::{DiscoPrivate, NodePublic},
    stun,
};
use netns::{in_fresh_netns, in_two_netns};
use tokio::{
    net::UdpSocket,
    sync::{mpsc, oneshot},
    time::timeout,
};

#[path = "traversal_support/netns.rs"]
mod netns;

const PORT: u16 = 41641;
const RELAY_PORT: u16 = PORT + 1;
const MARK: u32 = 0x0200_0000;
const DEADLINE: Duration = Duration::from_secs(5);
const REGION: RegionId = RegionId(7);

#[test]
fn disco_and_stun_beside_wireguard_are_seen_and_nothing_else_is() {
    in_fresh_netns(|| async {
        let _wireguard = wireguard().await;
        let (_port, mut datagrams) = Port::raw(PORT, MARK).unwrap();
        for host in ["127.0.0.1", "::1"] {
            let sender = UdpSocket::bind((host, 0)).await.unwrap();
            let from = sender.local_addr().unwrap();
            let to = SocketAddr::new(host.parse().unwrap(), PORT);
            let other_port = SocketAddr::new(to.ip(), PORT + 9);
            let disco = a_ping();
            let stun = stun::response(TxId([3; 12]), from);
            let short = &disco[..20];
            sender.send_to(&a_data_packet(300), to).await.unwrap();
            sender.send_to(b"TS", to).await.unwrap();
            sender.send_to(b"", to).await.unwrap();
            sender.send_to(&[0; 1400], to).await.unwrap();
            let _ = sender.send_to(&disco, other_port).await;
            // Looks like ours to the filter; that it is none is for others to find out.
            sender.send_to(short, to).await.unwrap();
            sender.send_to(&disco, to).await.unwrap();
            sender.send_to(&stun, to).await.unwrap();
            for expected in [short, &disco, &stun] {
                assert_eq!(
                    next(&mut datagrams).await,
                    Datagram {
                        from,
                        bytes: expected.to_vec().into()
                    }
                );
            }
        }
        assert!(datagrams.try_recv().is_err());
    });
}

#[test]
fn what_the_port_sends_comes_from_wireguards_port_with_right_checksums() {
    let (done, finished) = oneshot::channel();
    in_two_netns(
        || async move {
            let _wireguard = wireguard().await;
            let (port, mut datagrams) = Port::raw(PORT, MARK).unwrap();
            for (to, own) in [("10.9.0.2:5000", "10.9.0.1"), ("[fd09::2]:5000", "fd09::1")] {
                let to: SocketAddr = to.parse().unwrap();
                // The other side may still be binding, and IPv6 looking for its neighbour.
                let echoed = retry(async || {
                    port.send(to, &a_ping()).ok()?;
                    timeout(Duration::from_millis(200), datagrams.recv())
                        .await
                        .ok()?
                });
                let echoed = echoed.await;
                assert_eq!(echoed.from, to);
                // The echo begins with a ping and ends with the source that the other side saw.
                let seen = SocketAddr::new(own.parse().unwrap(), PORT).to_string();
                assert!(
                    echoed.bytes.ends_with(seen.as_bytes()),
                    "{:?}",
                    echoed.bytes
                );
            }
            done.send(()).unwrap();
        },
        || async move {
            let v4 = echo("10.9.0.2:5000").await;
            let v6 = echo("[fd09::2]:5000").await;
            finished.await.unwrap();
            v4.abort();
            v6.abort();
        },
    );
}

#[test]
fn an_unreachable_network_is_an_error_of_its_own() {
    in_fresh_netns(|| async {
        let (port, _datagrams) = Port::raw(PORT, 0).unwrap();
        for to in ["198.51.100.1:1", "[2001:db8::1]:1"] {
            let error = port.send(to.parse().unwrap(), &a_ping()).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::NetworkUnreachable, "{to}");
        }
    });
}

#[test]
fn a_stun_round_finds_our_address_and_the_home_region() {
    in_fresh_netns(|| async {
        let _wireguard = wireguard().await;
        netns::ip("address add 192.0.2.7/24 dev lo");
        let server = UdpSocket::bind("192.0.2.7:3478").await.unwrap();
        let stun = tokio::spawn(async move {
            let mut buffer = [0; 1500];
            loop {
                let (length, from) = server.recv_from(&mut buffer).await.unwrap();
                let tx = stun::parse_request(&buffer[..length]).unwrap();
                server
                    .send_to(&stun::response(tx, from), from)
                    .await
                    .unwrap();
            }
        });
        let (port, mut datagrams) = Port::raw(PORT, MARK).unwrap();
        let config = netcheck::Config {
            port: PORT,
            seed: [4; 32],
            stable: 0,
        };
        let (prober, mut probed) = Prober::start(port, config, "lowroad0".into());
        prober.set_map(one_region("192.0.2.7"));
        let report = loop {
            tokio::select! {
                Some(datagram) = datagrams.recv() => prober.on_datagram(datagram),
                Some(found) = probed.recv() => if found.complete { break found },
            }
        };
        let own: SocketAddr = "192.0.2.7:41641".parse().unwrap();
        assert_eq!(report.report.global_v4, Some(own));
        assert_eq!(report.report.preferred, Some(REGION));
        assert_eq!(
            (report.endpoints[0].address, report.endpoints[0].kind),
            (own, EndpointType::STUN)
        );
        stun.abort();
    });
}

#[test]
fn local_addresses_are_those_of_the_interfaces_that_are_up() {
    in_fresh_netns(|| async {
        netns::ip("link add lr1 type veth peer name lr2");
        netns::ip("address add 192.0.2.1/24 dev lr1");
        netns::ip("address add 192.0.2.65/25 dev lr2");
        netns::ip("link set lr2 up");
        let found = || {
            let found = local_addresses("lowroad0").unwrap().into_iter();
            found
                .map(|local| (local.address.to_string(), local.prefix))
                .collect::<BTreeSet<_>>()
        };
        assert!(
            found().contains(&("192.0.2.65".into(), 25)),
            "{:?}",
            found()
        );
        assert!(!found().contains(&("192.0.2.1".into(), 24)));
        assert!(
            local_addresses("lr2")
                .unwrap()
                .iter()
                .all(|local| local.prefix != 25)
        );
    });
}

#[test]
fn relayed_packets_arrive_from_the_programmed_endpoint_with_strict_reverse_path_filters() {
    in_fresh_netns(|| async {
        // The thread's own view: /proc/sys shows the namespace of the thread that opens it.
        for device in ["all", "default", "lo"] {
            fs::write(format!("/proc/sys/net/ipv4/conf/{device}/rp_filter"), "1").unwrap();
        }
        let (v4, v6) = wireguard().await;
        let (door, _events) = RelayDoor::start(RELAY_PORT, PORT, MARK, |_, _, _| {}).unwrap();
        for endpoint in [
            "203.0.113.9:4000",
            "127.128.0.5:41642",
            "[2001:db8::9]:4000",
        ] {
            let endpoint: SocketAddr = endpoint.parse().unwrap();
            door.set_table(RelayTable::from([(
                key(1),
                entry(5, Some(REGION), endpoint),
            )]));
            let socket = if endpoint.is_ipv4() { &v4 } else { &v6 };
            let packets: Vec<_> = [32, 33, 148, 1452, 9000, 60_000].map(a_data_packet).into();
            door.deliver(
                &packets
                    .iter()
                    .map(|bytes| from_relay(1, bytes))
                    .collect::<Vec<_>>(),
            );
            for packet in packets {
                let (received, from) = receive(socket).await;
                assert_eq!((received.len(), from), (packet.len(), endpoint));
                assert_eq!(received, packet);
            }
        }
    });
}

#[test]
fn what_is_injected_comes_to_the_address_that_answers_leave_from() {
    in_two_netns(
        || async move {
            let endpoint: SocketAddr = "[fd09::2]:41641".parse().unwrap();
            // Only what is sent to this address arrives. WireGuard would answer from `::1` to what comes there.
            let own = UdpSocket::bind("[fd09::1]:41641").await.unwrap();
            let (door, _events) = RelayDoor::start(RELAY_PORT, PORT, MARK, |_, _, _| {}).unwrap();
            door.set_entry(key(1), entry(1, Some(REGION), endpoint));
            let data = a_data_packet(500);
            door.deliver(&[from_relay(1, &data)]);
            assert_eq!(receive(&own).await, (data, endpoint));
        },
        || async {},
    );
}

#[test]
fn peers_are_told_apart_by_their_loopback_address_and_only_wireguard_is_heard() {
    in_fresh_netns(|| async {
        let (v4, _v6) = wireguard().await;
        let sent = Arc::new(Mutex::new(Vec::new()));
        let sink = sent.clone();
        let (door, mut events) =
            RelayDoor::start(RELAY_PORT, PORT, MARK, move |region, key, bytes| {
                sink.lock().unwrap().push((region, key, bytes));
            })
            .unwrap();
        let relay = |number| SocketAddr::from((address(number), RELAY_PORT));
        door.set_table(RelayTable::from([
            (key(1), entry(1, Some(REGION), relay(1))),
            (key(2), entry(2, Some(RegionId(8)), relay(2))),
            (key(3), entry(3, None, relay(3))),
        ]));
        let stranger = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        stranger
            .send_to(&a_data_packet(40), relay(1))
            .await
            .unwrap();
        for number in [1, 2, 3, 99, 1] {
            v4.send_to(&a_data_packet(100 + usize::from(number)), relay(number))
                .await
                .unwrap();
        }
        let deadline = Instant::now() + DEADLINE;
        while sent.lock().unwrap().len() < 3 && Instant::now() < deadline {
            tokio::task::yield_now().await;
        }
        // A peer without a home is answered by the region that it speaks by.
        door.deliver(&[from_relay(3, &a_data_packet(60))]);
        v4.send_to(&a_data_packet(103), relay(3)).await.unwrap();
        while sent.lock().unwrap().len() < 4 && Instant::now() < deadline {
            tokio::task::yield_now().await;
        }
        let sent: Vec<_> = sent
            .lock()
            .unwrap()
            .iter()
            .map(|(r, k, b)| (*r, *k, b.len()))
            .collect();
        let expected = [
            (REGION, key(1), 101),
            (RegionId(8), key(2), 102),
            (REGION, key(1), 101),
            (REGION, key(3), 103),
        ];
        assert_eq!(sent, expected);
        let mut told = Vec::new();
        while let Ok(event) = events.try_recv() {
            told.push(event);
        }
        told.retain(|event| matches!(event, RelayEvent::Outgoing { .. }));
        // Peer 1 twice within a second is told once; peer 3 has no region, but wants a path.
        assert_eq!(
            told,
            [1, 2, 3].map(|peer| RelayEvent::Outgoing { peer: key(peer) })
        );
    });
}

#[test]
fn disco_from_relays_becomes_events_and_garbage_goes_nowhere() {
    in_fresh_netns(|| async {
        let (v4, _v6) = wireguard().await;
        let (door, mut events) = RelayDoor::start(RELAY_PORT, PORT, MARK, |_, _, _| {}).unwrap();
        let endpoint = "203.0.113.9:4000".parse().unwrap();
        door.set_table(RelayTable::from([(
            key(1),
            entry(1, Some(REGION), endpoint),
        )]));
        let stun = stun::response(TxId([1; 12]), endpoint);
        let too_long = a_data_packet(65_530);
        let inputs = [&b""[..], b"garbage", &[0; 2000], &stun, &too_long];
        for garbage in inputs {
            door.deliver(&[from_relay(1, garbage), from_relay(2, garbage)]);
        }
        let disco = a_ping();
        door.deliver(&[from_relay(2, &disco), from_relay(1, &a_data_packet(200))]);
        assert_eq!(receive(&v4).await.0.len(), 200);
        // Of the packet that no socket takes, the door knows only that it came.
        let incoming = RelayEvent::Incoming { peer: key(1) };
        assert_eq!(events.try_recv(), Ok(incoming));
        let bytes = disco.into();
        let expected = RelayEvent::Disco {
            region: REGION,
            from: key(2),
            bytes,
        };
        assert_eq!(events.try_recv(), Ok(expected));
        assert!(events.try_recv().is_err());
    });
}

#[test]
fn the_first_handshake_of_an_unknown_key_waits_for_its_peer() {
    in_fresh_netns(|| async {
        let (v4, _v6) = wireguard().await;
        let (door, _events) = RelayDoor::start(RELAY_PORT, PORT, MARK, |_, _, _| {}).unwrap();
        let mut initiation = vec![7; 148];
        initiation[..4].copy_from_slice(&[1, 0, 0, 0]);
        door.deliver(&[
            from_relay(1, &initiation),
            from_relay(2, &a_data_packet(148)),
        ]);
        let relay = |number| SocketAddr::from((address(number), RELAY_PORT));
        door.set_table(RelayTable::from([(
            key(2),
            entry(2, Some(REGION), relay(2)),
        )]));
        door.set_entry(key(1), entry(1, Some(REGION), relay(1)));
        assert_eq!(receive(&v4).await, (initiation, relay(1)));
        door.deliver(&[from_relay(2, &a_data_packet(50))]);
        assert_eq!(
            receive(&v4).await.0.len(),
            50,
            "data of a stranger is not kept"
        );
    });
}

#[test]
fn a_taken_port_is_said_and_a_dropped_door_frees_it() {
    in_fresh_netns(|| async {
        let open = || RelayDoor::start(RELAY_PORT, PORT, MARK, |_, _, _| {});
        let first = open().unwrap();
        assert_eq!(open().unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(first);
        let reopened = retry(async || {
            tokio::task::yield_now().await;
            open().ok()
        });
        reopened.await;
    });
}

#[test]
fn the_relay_path_carries_many_packets_through_both_directions() {
    in_fresh_netns(|| async {
        const COUNT: usize = 50_000;
        let (v4, _v6) = wireguard().await;
        // What leaves for peer 1 comes back as if peer 1 had sent it.
        let (loop_back, mut returned) = mpsc::unbounded_channel();
        let (door, _events) =
            RelayDoor::start(RELAY_PORT, PORT, MARK, move |region, from, bytes| {
                let _ = loop_back.send(FromRelay {
                    region,
                    from,
                    bytes,
                });
            })
            .unwrap();
        let inlet = door.inlet();
        let relay = SocketAddr::from((address(1), RELAY_PORT));
        door.set_table(RelayTable::from([(key(1), entry(1, Some(REGION), relay))]));
        tokio::spawn(async move {
            let mut batch = Vec::new();
            while returned.recv_many(&mut batch, 64).await > 0 {
                inlet.deliver(&batch);
                batch.clear();
            }
        });
        let start = Instant::now();
        let packet = a_data_packet(1420);
        let mut buffer = vec![0; 2000];
        let (mut sent, mut received) = (0, 0);
        let deadline = start + 6 * DEADLINE;
        while received < COUNT && Instant::now() < deadline {
            // A window, as a TCP flow has: nothing is lost for want of a buffer.
            while sent < COUNT && sent - received < 128 && v4.try_send_to(&packet, relay).is_ok() {
                sent += 1;
            }
            while v4.try_recv_from(&mut buffer).is_ok() {
                received += 1;
            }
            tokio::task::yield_now().await;
        }
        let time = start.elapsed();
        println!(
            "{received} packets out and back in {time:?}: {:?} each",
            time / COUNT as u32
        );
        assert_eq!(received, COUNT);
    });
}

/// Sockets that stand for WireGuard's.
async fn wireguard() -> (UdpSocket, UdpSocket) {
    let v6 = socket2::Socket::new(socket2::Domain::IPV6, socket2::Type::DGRAM, None).unwrap();
    v6.set_only_v6(true).unwrap();
    v6.set_nonblocking(true).unwrap();
    v6.bind(&SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, PORT)).into())
        .unwrap();
    let v4 = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT))
        .await
        .unwrap();
    (v4, UdpSocket::from_std(v6.into()).unwrap())
}

/// Sends back what comes, with its source as text behind it.
async fn echo(address: &str) -> tokio::task::JoinHandle<()> {
    let socket = UdpSocket::bind(address).await.unwrap();
    tokio::spawn(async move {
        let mut buffer = [0; 2000];
        loop {
            let (length, from) = socket.recv_from(&mut buffer).await.unwrap();
            let answer = [&buffer[..length], from.to_string().as_bytes()].concat();
            socket.send_to(&answer, from).await.unwrap();
        }
    })
}

async fn receive(socket: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    let mut buffer = vec![0; 65_536];
    let received = timeout(DEADLINE, socket.recv_from(&mut buffer)).await;
    let (length, from) = received.expect("a packet arrives in time").unwrap();
    buffer.truncate(length);
    (buffer, from)
}

async fn next(datagrams: &mut mpsc::Receiver<Datagram>) -> Datagram {
    let datagram = timeout(DEADLINE, datagrams.recv()).await;
    datagram
        .expect("a datagram arrives in time")
        .expect("the port is open")
}

async fn retry<T>(mut attempt: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + DEADLINE;
    while Instant::now() < deadline {
        if let Some(result) = attempt().await {
            return result;
        }
    }
    panic!("did not succeed in time");
}

fn a_ping() -> Vec<u8> {
    let own = DiscoPrivate::from_random([1; 32]);
    let peer = DiscoPrivate::from_random([2; 32]);
    let shared = SharedKey::new(&own, &peer.public());
    let ping = Ping {
        tx: TxId([5; 12]),
        node: Some(key(1)),
        padding: 0,
    };
    disco::seal(own.public(), &shared, [6; 24], &Message::Ping(ping))
}

fn a_data_packet(length: usize) -> Vec<u8> {
    let mut packet: Vec<u8> = (0..length).map(|index| index as u8).collect();
    packet[..4].copy_from_slice(&[4, 0, 0, 0]);
    packet
}

fn from_relay(peer: u8, bytes: &[u8]) -> FromRelay {
    FromRelay {
        region: REGION,
        from: key(peer),
        bytes: Bytes::copy_from_slice(bytes),
    }
}

fn entry(number: u8, region: Option<RegionId>, endpoint: SocketAddr) -> RelayEntry {
    RelayEntry {
        address: address(number),
        region,
        endpoint,
    }
}

fn address(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(127, 128, 0, number)
}

fn key(number: u8) -> NodePublic {
    NodePublic::from_bytes([number; 32])
}

fn one_region(server: &str) -> DerpMap {
    let node = DerpNode {
        ipv4: server.into(),
        ipv6: "none".into(),
        ..DerpNode::default()
    };
    let region = DerpRegion {
        region_id: REGION,
        nodes: vec![node],
        ..DerpRegion::default()
    };
    DerpMap {
        regions: [(REGION, region)].into(),
        ..DerpMap::default()
    }
}
