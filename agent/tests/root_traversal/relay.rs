//! The door to the relays.

use std::{
    fs,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use lowroad_agent::traversal::{
    relay::{FromRelay, RelayDoor, RelayEntry, RelayEvent, RelayTable},
    shortcut::Shortcut,
};

use super::*;

const RELAY_PORT: u16 = PORT + 1;

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
            door.change([(key(1), Some(entry(1, Some(REGION), endpoint)))]);
            let data = a_data_packet(500);
            door.deliver(&[from_relay(1, &data)]);
            assert_eq!(receive(&own).await, (data, endpoint));
            let relayed = door.relayed();
            assert_eq!((relayed.received, relayed.received_bytes), (1, 500));
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
fn with_a_shortcut_relayed_packets_pass_both_ways_without_the_kernel() {
    in_fresh_netns(|| async {
        let (v4, _v6) = wireguard().await;
        let sent = Arc::new(Mutex::new(Vec::new()));
        let sink = sent.clone();
        let (door, _events) =
            RelayDoor::start(RELAY_PORT, PORT, MARK, move |region, key, bytes| {
                sink.lock().unwrap().push((region, key, bytes));
            })
            .unwrap();
        let (shortcut, mut injected) = Shortcut::new();
        door.take(&shortcut);
        let endpoint: SocketAddr = "203.0.113.9:4000".parse().unwrap();
        door.set_table(RelayTable::from([(
            key(1),
            entry(1, Some(REGION), endpoint),
        )]));
        let data: Bytes = a_data_packet(1300).into();
        door.deliver(&[from_relay(1, &data)]);
        assert_eq!(injected.try_recv().unwrap(), (endpoint, data.clone()));
        assert!(v4.try_recv(&mut [0; 2000]).is_err(), "also over lo");

        let of = |number| (address(number), data.clone());
        shortcut.send(&mut vec![of(1), of(9)]);
        assert_eq!(*sent.lock().unwrap(), [(REGION, key(1), data.clone())]);
        drop(door);
        shortcut.send(&mut vec![of(1)]);
        assert_eq!(sent.lock().unwrap().len(), 1, "the door is closed");
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
        let initiation = an_initiation(7);
        door.deliver(&[
            from_relay(1, &initiation),
            from_relay(2, &a_data_packet(148)),
        ]);
        let relay = |number| SocketAddr::from((address(number), RELAY_PORT));
        door.set_table(RelayTable::from([(
            key(2),
            entry(2, Some(REGION), relay(2)),
        )]));
        door.change([(key(1), Some(entry(1, Some(REGION), relay(1))))]);
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
fn the_last_handshake_to_a_peer_without_a_region_waits_for_one() {
    in_fresh_netns(|| async {
        let (v4, _v6) = wireguard().await;
        let (sender, mut sent) = tokio::sync::mpsc::unbounded_channel();
        let (door, mut events) =
            RelayDoor::start(RELAY_PORT, PORT, MARK, move |region, key, bytes| {
                sender.send((region, key, bytes.to_vec())).unwrap();
            })
            .unwrap();
        let relay = |number| SocketAddr::from((address(number), RELAY_PORT));
        door.set_table(RelayTable::from([
            (key(1), entry(1, None, relay(1))),
            (key(2), entry(2, None, relay(2))),
        ]));
        for bytes in [an_initiation(7), a_data_packet(60), an_initiation(8)] {
            v4.send_to(&bytes, relay(1)).await.unwrap();
        }
        // The door takes packets in order: once it has told of this one, it has seen the others.
        v4.send_to(&a_data_packet(60), relay(2)).await.unwrap();
        let deadline = Instant::now() + DEADLINE;
        let second = RelayEvent::Outgoing { peer: key(2) };
        while events.try_recv().ok().as_ref() != Some(&second) {
            assert!(Instant::now() < deadline, "nothing was seen to leave");
            tokio::task::yield_now().await;
        }
        assert!(sent.try_recv().is_err(), "where would it go?");
        door.change([(key(1), Some(entry(1, Some(REGION), relay(1))))]);
        assert_eq!(sent.try_recv().unwrap(), (REGION, key(1), an_initiation(8)));
        door.change([(key(2), Some(entry(2, Some(REGION), relay(2))))]);
        assert!(sent.try_recv().is_err(), "once, and nothing but handshakes");
        let relayed = door.relayed();
        assert_eq!((relayed.sent, relayed.sent_bytes), (1, 148));
    });
}

#[test]
fn the_last_handshake_that_a_relay_took_is_given_once_unless_it_was_answered() {
    in_fresh_netns(|| async {
        let (v4, _v6) = wireguard().await;
        let (sender, mut sent) = tokio::sync::mpsc::unbounded_channel();
        let (door, _events) = RelayDoor::start(RELAY_PORT, PORT, MARK, move |_, key, bytes| {
            sender.send((key, bytes.to_vec())).unwrap();
        })
        .unwrap();
        let relay = |number| SocketAddr::from((address(number), RELAY_PORT));
        let peers = [1, 2].map(|number| (key(number), entry(number, Some(REGION), relay(number))));
        door.set_table(RelayTable::from(peers));
        assert_eq!(door.take_unanswered(&key(1)), None);
        let packets = [
            (1, an_initiation(7)),
            (1, a_data_packet(148)),
            (2, an_initiation(9)),
            (1, an_initiation(8)),
        ];
        for (number, bytes) in packets {
            v4.send_to(&bytes, relay(number)).await.unwrap();
            assert_eq!(sent.recv().await, Some((key(number), bytes)));
        }
        let mut answer = vec![0; 92];
        answer[0] = 2;
        door.deliver(&[from_relay(2, &answer)]);
        assert_eq!(door.take_unanswered(&key(2)), None, "it was answered");
        let unanswered = door.take_unanswered(&key(1));
        assert_eq!(unanswered.as_deref(), Some(&an_initiation(8)[..]));
        assert_eq!(door.take_unanswered(&key(1)), None);
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

fn an_initiation(mark: u8) -> Vec<u8> {
    let mut initiation = vec![mark; 148];
    initiation[..4].copy_from_slice(&[1, 0, 0, 0]);
    initiation
}

async fn receive(socket: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    let mut buffer = vec![0; 65_536];
    let received = timeout(DEADLINE, socket.recv_from(&mut buffer)).await;
    let (length, from) = received.expect("a packet arrives in time").unwrap();
    buffer.truncate(length);
    (buffer, from)
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
