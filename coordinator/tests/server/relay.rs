//! The relay inside the server: who may use it, and for how long.

use futures_util::{SinkExt as _, StreamExt as _};
use lowroad_coordinator::admin::api::Ask;
use lowroad_wire::{
    derp::{ClientInfo, Codec, Frame, client_info},
    key::NodePrivate,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};
use tokio_util::codec::Framed;

use crate::{
    client::{Client, SOON, get, raw},
    lab::Lab,
};

/// A relay connection over plain HTTP, as far as the server's first answer.
async fn relay(lab: &Lab, key: &NodePrivate) -> Option<Framed<TcpStream, Codec>> {
    let mut stream = TcpStream::connect(lab.address()).await.unwrap();
    stream
        .write_all(b"GET /derp HTTP/1.1\r\nHost: x\r\nUpgrade: DERP\r\nConnection: Upgrade\r\n\r\n")
        .await
        .unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    assert!(head.starts_with(b"HTTP/1.1 101 "));
    let mut framed = Framed::new(stream, Codec::client());
    let Some(Ok(Frame::ServerKey(server))) = framed.next().await else {
        panic!("the server begins with its key");
    };
    let info = client_info(key, &server, [5; 24], &ClientInfo::default());
    framed.send(info).await.unwrap();
    match timeout(SOON, framed.next()).await.unwrap() {
        Some(Ok(Frame::ServerInfo { .. })) => Some(framed),
        _ => None,
    }
}

#[tokio::test]
async fn the_relay_is_for_nodes_and_ends_with_them() {
    let lab = Lab::new().await;
    let a = Client::joined(lab.address(), "a", &lab.key().await).await;
    assert!(
        relay(&lab, &NodePrivate::from_random([99; 32]))
            .await
            .is_none()
    );
    let mut connection = relay(&lab, &a.node).await.unwrap();
    lab.ask(Ask::NodesDelete {
        node: "a".to_owned(),
    })
    .await
    .unwrap();
    let end = async { while let Some(Ok(_)) = connection.next().await {} };
    timeout(SOON, end)
        .await
        .expect("the connection ends with the node");
    assert!(relay(&lab, &a.node).await.is_none());
}

#[tokio::test]
async fn the_relay_map_pins_the_servers_own_certificate() {
    let lab = Lab::new().await;
    let mut a = Client::joined(lab.address(), "a", &lab.key().await).await;
    let mut poll = a.poll().await;
    poll.until("a relay map", |netmap| !netmap.derp_map.regions.is_empty())
        .await;
    let region = poll.netmap.derp_map.regions.values().next().unwrap();
    assert!(region.nodes[0].cert_name.starts_with("sha256-raw:"));
    assert_eq!(region.nodes[0].stun_port(), None, "the lab runs without");
    assert!(
        get(lab.address(), "/derp")
            .await
            .starts_with("HTTP/1.1 426")
    );
}

#[tokio::test]
async fn relays_elsewhere_may_ask_who_is_a_node() {
    let lab = Lab::new().await;
    let a = Client::joined(lab.address(), "a", &lab.key().await).await;
    for (key, allowed) in [
        (a.node.public(), "{\"Allow\":true}"),
        (
            NodePrivate::from_random([99; 32]).public(),
            "{\"Allow\":false}",
        ),
    ] {
        let body = format!("{{\"NodePublic\":\"{key}\",\"Source\":\"192.0.2.1\"}}");
        let request = format!(
            "POST /verify HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let answer = raw(lab.address(), &request).await;
        assert!(answer.ends_with(allowed), "{answer}");
    }
}
