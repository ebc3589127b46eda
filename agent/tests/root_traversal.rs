//! The sockets of path discovery in network namespaces of their own, beside a UDP socket that stands for
//! WireGuard's.
#![expect(
    clippy::unwrap_used,
    reason = "a helper of a test that cannot go on stops the test"
)]

use std::{
    collections::BTreeSet,
    io,
    net::{Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};

use lowroad_agent::traversal::{
    endpoints::local_addresses,
    port::{Datagram, Port},
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
#[path = "root_traversal/relay.rs"]
mod relay;

const PORT: u16 = 41641;
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

fn key(number: u8) -> NodePublic {
    NodePublic::from_bytes([number; 32])
}
