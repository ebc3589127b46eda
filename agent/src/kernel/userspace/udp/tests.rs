use std::{net::Ipv4Addr, time::Duration};

use tokio::time::timeout;

use super::*;

const SOON: Duration = Duration::from_secs(10);

fn packet(pool: &PacketBufPool, byte: u8, length: usize) -> Packet {
    let mut packet = pool.get();
    packet.truncate(length);
    packet.fill(byte);
    packet
}

#[tokio::test]
async fn what_relays_bring_and_what_the_socket_brings_both_come_to_wireguard() {
    let sockets = Sockets::bind(0, 0).unwrap();
    let port = sockets.v4.local_addr().unwrap().port();
    let (datagrams, _disco) = mpsc::channel(DATAGRAMS);
    let (shortcut, injected) = Shortcut::new();
    let mut factory = Factory::new(sockets, datagrams, shortcut.clone(), injected);
    let (_sender, mut receiver) = factory.bind(&params()).await.unwrap();
    let peer: SocketAddr = "203.0.113.9:4000".parse().unwrap();
    let too_large = vec![4; 1 << 16];
    shortcut.inject([(peer, too_large.into()), (peer, vec![4; 1300].into())].into_iter());
    let other = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    other
        .send_to(&[4; 200], (Ipv4Addr::LOCALHOST, port))
        .await
        .unwrap();

    let (mut pool, mut slots, mut packets) = (PacketBufPool::new(0), Slots::default(), Vec::new());
    while packets.len() < 2 {
        let more = receiver.recv_many_from(&mut slots, &mut pool, &mut packets);
        timeout(SOON, more).await.unwrap().unwrap();
    }
    let mut got: Vec<_> = packets
        .iter()
        .map(|(packet, from)| (packet.len(), *from))
        .collect();
    got.sort_unstable();
    assert_eq!(got, [(200, other.local_addr().unwrap()), (1300, peer)]);
}

#[tokio::test]
async fn packets_for_relay_addresses_go_to_the_door_and_others_by_the_socket() {
    let sockets = Sockets::bind(0, 0).unwrap();
    let (shortcut, _injected) = Shortcut::new();
    let sender = Sender::new(sockets, shortcut.clone());
    let other = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let direct = other.local_addr().unwrap();
    let relay = Ipv4Addr::new(127, 128, 0, 7);
    let (door, mut taken) = mpsc::unbounded_channel();
    shortcut.open(Box::new(move |packets| {
        packets.drain(..).for_each(|packet| drop(door.send(packet)));
    }));
    let pool = PacketBufPool::new(0);
    let mut packets = vec![
        (packet(&pool, 1, 100), (relay, 41642).into()),
        (packet(&pool, 2, 200), direct),
        (packet(&pool, 3, 300), (relay, 41642).into()),
    ];
    sender.send_many_to(&mut (), &mut packets).await.unwrap();
    let last = packet(&pool, 4, 400);
    sender.send_to(last, (relay, 41642).into()).await.unwrap();

    for (byte, length) in [(1, 100), (3, 300), (4, 400)] {
        assert_eq!(
            taken.try_recv().unwrap(),
            (relay, vec![byte; length].into())
        );
    }
    let mut buffer = [0; 1000];
    let received = timeout(SOON, other.recv(&mut buffer)).await.unwrap();
    assert_eq!(buffer[..received.unwrap()], [2; 200]);
    shortcut.close();
    let lost = packet(&pool, 5, 500);
    sender.send_to(lost, (relay, 41642).into()).await.unwrap();
    assert!(taken.try_recv().is_err(), "there is no door");
}

fn params() -> UdpTransportFactoryParams {
    UdpTransportFactoryParams {
        addr: None,
        port: 0,
        fwmark: None,
    }
}
