mod client;

use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use lowroad_wire::derp::{ClientInfo, Codec, Frame, GoneReason, client_info};
use lowroad_wire::disco;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, timeout};
use tokio_util::codec::Framed;

use super::*;
use client::*;

/// What the server's magic makes a disco packet.
fn disco_packet(number: u8) -> Vec<u8> {
    let mut packet = disco::MAGIC.to_vec();
    packet.extend([number; 80]);
    packet
}

async fn until(what: &str, holds: impl Fn() -> bool) {
    let wait = async {
        while !holds() {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, wait)
        .await
        .unwrap_or_else(|_| panic!("waited for: {what}"));
}

#[tokio::test]
async fn two_clients_exchange_packets_over_tcp() {
    let server = server();
    let address = listen(&server).await;
    let mut one = Client::join_by_tcp(address, 1).await;
    let mut two = Client::join_by_tcp(address, 2).await;
    one.settle().await;
    two.settle().await;
    for round in 0..200_u8 {
        let packet = vec![round; usize::from(round) * 300];
        one.send(2, &packet).await;
        two.expect_packet(1, &packet).await;
        two.send(1, &packet).await;
        one.expect_packet(2, &packet).await;
    }
    let status = server.status();
    assert_eq!(
        (status.clients, status.connections, status.accepted),
        (2, 2, 2)
    );
    assert_eq!((status.packets_received, status.packets_sent), (400, 400));
    assert_eq!(status.bytes_received, status.bytes_sent);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_flood_every_packet_is_relayed_in_order_or_counted_as_dropped() {
    const PACKETS: u32 = 20_000;
    let server = server();
    let address = listen(&server).await;
    let mut one = Client::join_by_tcp(address, 1).await;
    let mut two = Client::join_by_tcp(address, 2).await;
    two.settle().await;
    let started = Instant::now();
    let sender = tokio::spawn(async move {
        for number in 0..PACKETS {
            let mut packet = [0; 1300];
            packet[..4].copy_from_slice(&number.to_be_bytes());
            let packet = Bytes::copy_from_slice(&packet);
            let to = public(2);
            one.framed
                .feed(Frame::SendPacket { to, packet })
                .await
                .unwrap();
        }
        one.settle().await;
        started.elapsed()
    });
    let (mut received, mut last) = (0, None);
    // The newest packet is never the one that is dropped.
    while last != Some(PACKETS - 1) {
        if let Frame::RecvPacket { packet, .. } = two.next().await {
            let number = u32::from_be_bytes(packet[..4].try_into().unwrap());
            assert!(
                last.is_none_or(|last| last < number),
                "{last:?} before {number}"
            );
            last = Some(number);
            received += 1;
        }
    }
    let sent_in = sender.await.unwrap();
    let status = server.status();
    assert_eq!(status.packets_received, u64::from(PACKETS));
    assert_eq!(received + status.dropped_queue_full, u64::from(PACKETS));
    println!("{PACKETS} packets of 1300 bytes sent in {sent_in:?}, {received} arrived");
}

#[tokio::test]
async fn only_known_keys_that_are_proven_get_in() {
    let server = server();
    // Nobody knows this key.
    let mut framed = Framed::new(connect(&server, 4096), Codec::client());
    framed.next().await.unwrap().unwrap();
    let info = client_info(
        &private(50),
        &server.public_key(),
        [5; 24],
        &ClientInfo::default(),
    );
    framed.send(info).await.unwrap();
    assert!(framed.next().await.is_none());
    // This key is known, but the box was made with another one.
    let mut framed = Framed::new(connect(&server, 4096), Codec::client());
    framed.next().await.unwrap().unwrap();
    let info = client_info(
        &private(50),
        &server.public_key(),
        [5; 24],
        &ClientInfo::default(),
    );
    let Frame::ClientInfo { sealed, .. } = info else {
        unreachable!("it is one")
    };
    let stolen = Frame::ClientInfo {
        key: public(1),
        sealed,
    };
    framed.send(stolen).await.unwrap();
    assert!(framed.next().await.is_none());
    until("two refusals", || server.status().refused == 2).await;
    assert_eq!(server.status().accepted, 0);
}

#[tokio::test]
async fn garbage_ends_the_connection_that_it_came_on_and_no_other() {
    let server = server();
    let mut good = Client::join(&server, 1).await;
    for garbage in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        &[0xff; 400],
        &[0x02, 0x7f, 0xff, 0xff, 0xff],
        &[0x02, 0, 0, 0, 3, 1, 2, 3],
        &[0x04, 0, 0, 0, 0],
    ] {
        let mut stream = connect(&server, 4096);
        stream.write_all(garbage).await.unwrap();
        let mut rest = Vec::new();
        timeout(PATIENCE, stream.read_to_end(&mut rest))
            .await
            .expect("it ends")
            .unwrap();
        let mut late = Client::join(&server, 2).await;
        let raw = late.framed.get_mut();
        raw.write_all(&[0x04, 0, 0, 0, 1, 9]).await.unwrap();
        late.expect_end().await;
    }
    // A frame of an unknown type is skipped, a large packet is not.
    good.framed
        .get_mut()
        .write_all(&[0x77, 0, 0, 0, 2, 1, 2])
        .await
        .unwrap();
    good.settle().await;
    for mesh_only in [Frame::WatchConns, Frame::ClosePeer(public(1))] {
        let mut pretender = Client::join(&server, 3).await;
        pretender.framed.send(mesh_only).await.unwrap();
        pretender.expect_end().await;
    }
    good.settle().await;
    until("only the good client is left", || {
        server.status().connections == 1
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_greet_is_dropped_after_ten_seconds() {
    let server = server();
    let started = Instant::now();
    let mut stream = connect(&server, 4096);
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).await.unwrap();
    assert_eq!(started.elapsed().as_secs(), 10);
    assert_eq!(server.status().refused, 1);
}

#[tokio::test(start_paused = true)]
async fn a_crowd_that_does_not_greet_pushes_out_itself_and_keeps_nobody_out() {
    let server = server();
    let began = Instant::now();
    let slow = connect(&server, 4096);
    let crowd = SocketAddr::from(([198, 51, 100, 7], 1));
    let mut idle = Vec::new();
    for _ in 0..2 * MAX_GREETING {
        let mut stream = connect_from(crowd, &server, 4096);
        stream.read_u8().await.expect("the relay begins to greet");
        idle.push(stream);
    }
    // Who comes after the crowd, and who came before it.
    Client::join(&server, 1).await.settle().await;
    Client::greet(slow, &private(2)).await.settle().await;
    let mut rest = Vec::new();
    idle[0].read_to_end(&mut rest).await.unwrap();
    assert_eq!(began.elapsed(), Duration::ZERO, "nobody ran into a timeout");
}

#[tokio::test(start_paused = true)]
async fn whoever_sends_disco_to_nobody_is_told_three_times_at_once_then_once_a_second() {
    let server = server();
    let mut one = Client::join(&server, 1).await;
    let not_here = Frame::PeerGone {
        key: public(2),
        reason: GoneReason::NotHere,
    };
    for _ in 0..10 {
        one.send(2, b"no disco").await;
    }
    assert_eq!(one.settle().await, []);
    for _ in 0..10 {
        one.send(2, &disco_packet(1)).await;
    }
    assert_eq!(one.settle().await, vec![not_here.clone(); 3]);
    tokio::time::advance(Duration::from_secs(1)).await;
    for _ in 0..10 {
        one.send(2, &disco_packet(1)).await;
    }
    assert_eq!(one.settle().await, [not_here]);
    assert_eq!(server.status().dropped_not_here, 30);
}

#[tokio::test]
async fn whoever_sent_to_a_client_is_told_when_it_leaves_and_reaches_it_when_it_is_back() {
    let server = server();
    let mut one = Client::join(&server, 1).await;
    let mut stranger = Client::join(&server, 3).await;
    for _ in 0..2 {
        let mut two = Client::join(&server, 2).await;
        two.settle().await;
        two.send(1, b"hello").await;
        one.expect_packet(2, b"hello").await;
        drop(two);
        // One is told because two sent to it, also without having sent anything itself.
        let gone = Frame::PeerGone {
            key: public(2),
            reason: GoneReason::Disconnected,
        };
        assert_eq!(one.next().await, gone);
    }
    assert_eq!(stranger.settle().await, []);
    let mut two = Client::join(&server, 2).await;
    one.send(2, b"again").await;
    two.expect_packet(1, b"again").await;
}

#[tokio::test(start_paused = true)]
async fn a_client_that_reads_nothing_loses_the_oldest_packets_and_is_dropped_after_two_seconds() {
    let server = server();
    let mut one = Client::join(&server, 1).await;
    let mut stalled = Client::join_with_buffer(&server, 2, 256).await;
    let mut reader = Client::join(&server, 3).await;
    let started = Instant::now();
    for number in 0..1000_u32 {
        one.send(2, &[number as u8; 1000]).await;
    }
    one.settle().await;
    one.send(3, b"others are served meanwhile").await;
    reader
        .expect_packet(1, b"others are served meanwhile")
        .await;
    assert_eq!(started.elapsed().as_secs(), 0);
    // One batch at least went out of the queue; of the rest, 128 are left.
    let dropped = server.status().dropped_queue_full;
    assert!((700..=871).contains(&dropped), "{dropped} dropped");
    let gone = async {
        while server.status().clients == 3 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    gone.await;
    assert_eq!(started.elapsed().as_secs(), 2);
    assert_eq!(server.status().stalled, 1);
    stalled.expect_end().await;
    one.settle().await;
}

#[tokio::test(start_paused = true)]
async fn a_client_that_reads_slowly_keeps_its_connection_and_the_newest_packets() {
    let server = server();
    let mut one = Client::join(&server, 1).await;
    let mut slow = Client::join_with_buffer(&server, 2, 256).await;
    for number in 0..200_u8 {
        one.send(2, &[number; 1000]).await;
        one.send(2, &disco_packet(number)).await;
    }
    one.settle().await;
    let mut numbers = Vec::new();
    let count = |numbers: &[u8], number| numbers.iter().filter(|&&seen| seen == number).count();
    while count(&numbers, 199) < 2 {
        // Slow, but never two seconds without taking anything.
        tokio::time::sleep(Duration::from_millis(50)).await;
        if let Frame::RecvPacket { packet, .. } = slow.next().await {
            numbers.push(packet[packet.len() - 1]);
        }
    }
    for newest in 168..=199 {
        assert_eq!(count(&numbers, newest), 2, "of each queue's {newest}");
    }
    assert_eq!(server.status().stalled, 0);
}

#[tokio::test]
async fn of_connections_with_the_same_key_the_last_to_write_gets_the_packets() {
    let server = server();
    let mut sender = Client::join(&server, 1).await;
    let mut first = Client::join(&server, 2).await;
    first.settle().await;
    let mut second = Client::join(&server, 2).await;
    let warned =
        |frames: Vec<Frame>| matches!(&frames[..], [Frame::Health(text)] if !text.is_empty());
    assert!(warned(second.settle().await) && warned(first.settle().await));
    sender.send(2, b"to the newest").await;
    second.expect_packet(1, b"to the newest").await;
    first.send(1, b"I wrote last").await;
    sender.expect_packet(2, b"I wrote last").await;
    sender.send(2, b"to the last writer").await;
    first.expect_packet(1, b"to the last writer").await;
    drop(first);
    assert_eq!(second.next().await, Frame::Health(String::new()));
    sender.send(2, b"to who is left").await;
    second.expect_packet(1, b"to who is left").await;
    assert_eq!(server.status().clients, 2);
    drop(second);
    let gone = Frame::PeerGone {
        key: public(2),
        reason: GoneReason::Disconnected,
    };
    assert_eq!(
        sender.next().await,
        gone,
        "told once, when the last has left"
    );
}

#[tokio::test]
async fn a_key_with_too_many_connections_loses_the_oldest() {
    let server = server();
    let mut first = Client::join(&server, 1).await;
    first.settle().await;
    let mut others = Vec::new();
    for _ in 0..8 {
        others.push(Client::join(&server, 1).await);
    }
    first.expect_end().await;
    others[0].settle().await;
}

#[tokio::test(start_paused = true)]
async fn keep_alives_come_every_60_to_65_seconds() {
    let server = server();
    let mut one = Client::join(&server, 1).await;
    for _ in 0..3 {
        let started = Instant::now();
        let frame = one.framed.next().await.unwrap().unwrap();
        assert_eq!(frame, Frame::KeepAlive);
        let waited = started.elapsed();
        assert!((60.0..65.1).contains(&waited.as_secs_f64()), "{waited:?}");
    }
}

#[tokio::test]
async fn shutdown_gives_clients_what_is_queued_and_tells_them_to_come_back() {
    let server = server();
    let mut one = Client::join(&server, 1).await;
    let mut two = Client::join(&server, 2).await;
    one.send(2, b"last words").await;
    one.settle().await;
    timeout(PATIENCE, server.shutdown())
        .await
        .expect("shutdown ends");
    two.expect_packet(1, b"last words").await;
    assert!(matches!(two.next().await, Frame::Restarting { .. }));
    two.expect_end().await;
    assert!(matches!(one.next().await, Frame::Restarting { .. }));
    assert_eq!(server.status().connections, 0);
    let mut late = connect(&server, 4096);
    let mut rest = Vec::new();
    timeout(PATIENCE, late.read_to_end(&mut rest))
        .await
        .expect("closed at once")
        .unwrap();
}

#[tokio::test]
async fn a_key_that_is_no_longer_wanted_is_disconnected() {
    let server = server();
    let mut one = Client::join(&server, 1).await;
    let mut two = Client::join(&server, 2).await;
    one.settle().await;
    server.disconnect(&public(1));
    one.expect_end().await;
    two.settle().await;
    until("one has left", || server.status().clients == 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn steady_traffic_keeps_neither_a_disconnect_nor_a_shutdown_waiting() {
    let server = server();
    let flood = |seed: u8| {
        let server = server.clone();
        tokio::spawn(async move {
            let mut sender = Client::join(&server, seed).await;
            let packet = Bytes::from_static(&[1; 1000]);
            let to = public(9);
            let frame = || Frame::SendPacket {
                to,
                packet: packet.clone(),
            };
            while sender.framed.feed(frame()).await.is_ok() {}
        })
    };
    let floods = [flood(1), flood(2), flood(3)];
    for stop in [false, true] {
        let mut receiver = Client::join(&server, 9).await;
        for _ in 0..1000 {
            receiver.next().await;
        }
        if stop {
            let shutdown = async { tokio::join!(server.shutdown(), receiver.expect_end()) };
            timeout(PATIENCE, shutdown).await.expect("shutdown ends");
        } else {
            server.disconnect(&public(9));
            receiver.expect_end().await;
        }
    }
    for flood in floods {
        timeout(PATIENCE, flood)
            .await
            .expect("senders are disconnected")
            .unwrap();
    }
}

#[tokio::test]
async fn a_key_shut_out_while_its_client_greets_does_not_slip_in() {
    let asked = AtomicU32::new(0);
    let server = Arc::new(DerpServer::new(private(99), move |_| {
        asked.fetch_add(1, Ordering::Relaxed) == 0
    }));
    Client::join(&server, 1).await.expect_end().await;
    assert_eq!(server.peers.len(), 0);
}

#[tokio::test]
async fn admission_is_asked_for_the_proven_key_only() {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let record = asked.clone();
    let server = Arc::new(DerpServer::new(private(99), move |key| {
        record.lock().expect("nobody panicked").push(*key);
        true
    }));
    let mut stream = connect(&server, 4096);
    stream.write_all(&[0xff; 40]).await.unwrap();
    Client::join(&server, 1).await.settle().await;
    // Once when it has proven its key, once when it can be shut out.
    assert_eq!(*asked.lock().unwrap(), [public(1); 2]);
}
