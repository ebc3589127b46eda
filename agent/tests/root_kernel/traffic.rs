//! Packets: two nodes with each other, disco and STUN beside WireGuard, and the way relays are reached.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use lowroad_agent::kernel::{Dataplane, DataplaneChoice, start};
use lowroad_agent::traversal::relay::{RelayDoor, RelayEntry};
use lowroad_core::desired::{DEFAULT_MARK, PeerStats};
use lowroad_wire::{control::RegionId, key::NodePublic};
use tokio::{net::UdpSocket, sync::mpsc};

use crate::netns::Netns;
use crate::node::{
    PORT, assert_settled, desired, eventually, options, own_addresses, peer, private, reconcile, up,
};

pub fn two_nodes_talk_over_both_families_and_a_new_endpoint_keeps_the_session(
    dataplane: DataplaneChoice,
) {
    let (left, right) = (Netns::new(), Netns::new());
    left.connect(
        &right,
        ("left0", &["192.0.2.1/24", "2001:db8::1/64"]),
        ("right0", &["192.0.2.2/24", "2001:db8::2/64"]),
    );
    let (left_runtime, right_runtime) = (left.runtime(), right.runtime());
    let [mut left_wants, mut right_wants] = [1, 2].map(desired);
    left_wants
        .wireguard
        .peers
        .extend([peer(2, Some(SocketAddr::from(([192, 0, 2, 2], PORT))))]);
    right_wants
        .wireguard
        .peers
        .extend([peer(1, Some(SocketAddr::from(([192, 0, 2, 1], PORT))))]);
    let mut a =
        left.run(|| left_runtime.block_on(up(options(dataplane, "talk-left"), &left_wants)));
    let mut b =
        right.run(|| right_runtime.block_on(up(options(dataplane, "talk-right"), &right_wants)));
    let echo = right_runtime.spawn(echo_on(
        own_addresses(2).map(|address| SocketAddr::new(address, 7)),
    ));

    let began = std::time::Instant::now();
    for to in own_addresses(2) {
        left.run(|| left_runtime.block_on(expect_echo(SocketAddr::new(to, 7))));
    }
    println!("first answers after {:?}", began.elapsed());
    let before = left.run(|| left_runtime.block_on(stats_of(&mut a, 2)));
    assert!(
        before.rx_bytes > 0 && before.tx_bytes > 0 && before.last_handshake.is_some(),
        "{before:?}"
    );

    let over_v6: SocketAddr = "[2001:db8::2]:41641".parse().unwrap();
    left_wants
        .wireguard
        .peers
        .get_mut(&private(2).public())
        .unwrap()
        .endpoint = Some(over_v6);
    let after = left.run(|| {
        left_runtime.block_on(async {
            reconcile(&mut a, &left_wants).await.unwrap();
            expect_echo(SocketAddr::new(own_addresses(2)[0], 7)).await;
            stats_of(&mut a, 2).await
        })
    });
    assert_eq!(after.endpoint, Some(over_v6));
    assert!(
        after.rx_bytes > before.rx_bytes,
        "the counters go on: {after:?}"
    );
    let drift = after
        .last_handshake
        .unwrap()
        .abs_diff(before.last_handshake.unwrap());
    assert!(
        drift < Duration::from_millis(100),
        "no new handshake: {drift:?}"
    );

    let roamed = right.run(|| right_runtime.block_on(stats_of(&mut b, 1)));
    assert_eq!(
        roamed.endpoint,
        Some("[2001:db8::1]:41641".parse().unwrap()),
        "the other side follows"
    );

    // A new node key, as after a new login, on the running device.
    let stale = private(1).public();
    left_wants.wireguard.private_key = private(11);
    let known = right_wants.wireguard.peers.remove(&stale).unwrap();
    right_wants
        .wireguard
        .peers
        .insert(private(11).public(), known);
    right
        .run(|| right_runtime.block_on(reconcile(&mut b, &right_wants)))
        .unwrap();
    left.run(|| {
        left_runtime.block_on(async {
            reconcile(&mut a, &left_wants).await.unwrap();
            assert_settled(&mut a, &left_wants).await;
            expect_echo(SocketAddr::new(own_addresses(2)[0], 7)).await;
        })
    });
    echo.abort();
    left.run(|| left_runtime.block_on(a.kernel.teardown()))
        .unwrap();
    right
        .run(|| right_runtime.block_on(b.kernel.teardown()))
        .unwrap();
}

pub fn disco_and_stun_come_out_before_and_while_wireguard_runs(dataplane: DataplaneChoice) {
    let netns = Netns::new();
    netns.block_on(async {
        let mut started = start(options(dataplane, "disco")).await.unwrap();
        let stun = [&[1, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42][..], &[5; 12]].concat();
        let disco = ["TS💬".as_bytes(), &[7; 80]].concat();
        let garbage = vec![9; 40];
        let mut wants = desired(1);
        for round in 0..2 {
            for to in ["127.0.0.1", "::1"] {
                let to = SocketAddr::new(to.parse().unwrap(), PORT);
                let socket = UdpSocket::bind((to.ip(), 0)).await.unwrap();
                for bytes in [&garbage, &disco, &stun] {
                    // The kernel has no socket on the port before its device is up; raw sockets see it all the same, and the ICMP
                    // error is the sender's to ignore.
                    let _ = socket.send_to(bytes, to).await;
                }
                for expected in [&disco, &stun] {
                    let got =
                        tokio::time::timeout(Duration::from_secs(5), started.datagrams.recv())
                            .await;
                    let got = got
                        .unwrap_or_else(|_| panic!("round {round}: a datagram by {to} comes out"))
                        .unwrap();
                    assert_eq!(
                        (&got.bytes[..], got.from),
                        (&expected[..], socket.local_addr().unwrap())
                    );
                }
            }
            wants.wireguard.peers.extend([peer(2, None)]);
            reconcile(&mut started, &wants).await.unwrap();
        }
        started.kernel.teardown().await.unwrap();
    });
}

/// How relays are reached: the peer's endpoint is a loopback address of its own, whose packets the door takes, over `lo` or inside the process.
pub fn a_peer_behind_a_loopback_address_is_reached_through_the_relay_door(
    dataplane: DataplaneChoice,
) {
    let netns = Netns::new();
    netns.block_on(async {
        let address = Ipv4Addr::new(127, 128, 0, 5);
        let endpoint = SocketAddr::from((address, PORT + 1));
        let mut wants = desired(1);
        wants.wireguard.peers.extend([peer(2, Some(endpoint))]);
        let mut started = up(options(dataplane, "loopback"), &wants).await;
        let (sender, mut relayed) = mpsc::unbounded_channel();
        let send = move |region, key, bytes| drop(sender.send((region, key, bytes)));
        let (door, _events) = RelayDoor::start(PORT + 1, PORT, DEFAULT_MARK.value, send).unwrap();
        let shortcut = started.port.shortcut();
        assert_eq!(
            shortcut.is_some(),
            started.dataplane == Dataplane::Userspace
        );
        shortcut
            .into_iter()
            .for_each(|shortcut| door.take(shortcut));
        let entry = RelayEntry {
            address,
            region: Some(RegionId(1)),
            endpoint,
        };
        door.set_table([(private(2).public(), entry)].into());
        let socket = UdpSocket::bind((own_addresses(1)[0], 0)).await.unwrap();
        socket
            .send_to(b"hello", (own_addresses(2)[0], 7))
            .await
            .unwrap();
        let (region, key, packet): (RegionId, NodePublic, Bytes) =
            tokio::time::timeout(Duration::from_secs(5), relayed.recv())
                .await
                .expect("a handshake initiation")
                .unwrap();
        assert_eq!((region, key), (RegionId(1), private(2).public()));
        assert_eq!((packet.len(), packet[0]), (148, 1));
        // Counted after the batch has left.
        let counted = async {
            while door.relayed().sent != 1 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(5), counted)
            .await
            .expect("the packet is counted");
        started.kernel.teardown().await.unwrap();
    });
}

async fn stats_of(started: &mut lowroad_agent::kernel::Started, n: u8) -> PeerStats {
    let stats = started.kernel.peer_stats().await.unwrap();
    stats
        .into_iter()
        .find(|stats| stats.key == private(n).public())
        .unwrap()
}

async fn echo_on(addresses: [SocketAddr; 2]) {
    let [a, b] = addresses;
    let (a, b) = (
        UdpSocket::bind(a).await.unwrap(),
        UdpSocket::bind(b).await.unwrap(),
    );
    let echo = async |socket: UdpSocket| {
        let mut buffer = [0; 2000];
        loop {
            let (length, from) = socket.recv_from(&mut buffer).await.unwrap();
            socket.send_to(&buffer[..length], from).await.unwrap();
        }
    };
    tokio::join!(echo(a), echo(b));
}

async fn expect_echo(to: SocketAddr) {
    let local: IpAddr = if to.is_ipv4() {
        [0; 4].into()
    } else {
        [0u8; 16].into()
    };
    let socket = UdpSocket::bind((local, 0)).await.unwrap();
    let mut buffer = [0; 2000];
    eventually("an echo through the tunnel", async || {
        socket.send_to(b"hello", to).await.ok()?;
        let answer =
            tokio::time::timeout(Duration::from_millis(500), socket.recv_from(&mut buffer)).await;
        answer.ok()?.ok()
    })
    .await;
}
