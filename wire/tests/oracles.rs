//! The official Rust crates as the other side: their clients against our servers' code, our client against their responder.

#![expect(
    clippy::unwrap_used,
    reason = "a test fails by panicking, in its helpers too"
)]

use std::convert::Infallible;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::{Bytes, BytesMut};
use futures_util::{SinkExt as _, StreamExt as _};
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, Response, body::Incoming, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use lowroad_wire::{
    control::{
        CAPABILITY_VERSION, DerpMap, DerpNode, DerpRegion, FilterRule, MapRequest, MapResponse,
        NetPortRange, Node, NodeId, OverTlsPublicKey, PeerChange, PortRange, RegionId,
        RegisterRequest, RegisterResponse, StableId,
    },
    derp::{self, Codec, Frame, ServerInfo},
    framing::{self, Compression, MessageReader},
    key::{ChallengePrivate, MachinePrivate, MachinePublic, NodePrivate, NodePublic},
    noise::{self, Initiator, NoiseStream},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, duplex},
    net::{TcpListener, TcpStream},
};
use tokio_util::codec::Framed;

#[tokio::test]
async fn the_official_control_client_joins_over_our_server_code() {
    let url: url::Url = serve().await.parse().unwrap();
    let keys = ts_keys::NodeState::generate();
    let connection = ts_control::client::connect(&url, &keys.machine_keys)
        .await
        .unwrap();
    let config = ts_control::Config {
        server_url: url.clone(),
        ..Default::default()
    };
    ts_control::register(&config, &url, Some("auth"), None, &keys, &connection)
        .await
        .unwrap();
    let updates = ts_control::client::start_stream(&url, &keys, &config, connection)
        .await
        .unwrap();
    let updates: Vec<_> = updates.collect().await;

    assert_eq!(updates.len(), 3, "netmap, keep-alive, delta");
    let node = updates[0]
        .node
        .as_ref()
        .expect("the first message brings oneself");
    assert_eq!(node.node_key, keys.node_keys.public);
    assert!(updates[0].derp.as_ref().is_some_and(|map| map.len() == 1));
    assert!(updates[0].packetfilter.is_some());
    match &updates[0].peer_update {
        Some(ts_control::PeerUpdate::Full(peers)) => assert_eq!(peers.len(), 1),
        other => panic!("not all of the peers: {other:?}"),
    }
    match &updates[2].peer_update {
        Some(ts_control::PeerUpdate::Delta { patch, .. }) => assert_eq!(patch.len(), 1),
        other => panic!("not a patch: {other:?}"),
    }
}

#[tokio::test]
async fn our_client_joins_over_our_server_code_with_zstd() {
    let (mut requests, challenge) = connect().await;
    assert_eq!(challenge, Some(challenge_key().public()));
    let request = RegisterRequest {
        version: CAPABILITY_VERSION,
        node_key: Some(node_key().public()),
        ..Default::default()
    };
    let response: RegisterResponse =
        serde_json::from_slice(&post(&mut requests, "/machine/register", &request).await).unwrap();
    assert!(response.machine_authorized);

    let request = MapRequest {
        version: CAPABILITY_VERSION,
        compress: "zstd".to_owned(),
        node_key: Some(node_key().public()),
        stream: true,
        ..Default::default()
    };
    let mut reader = MessageReader::new(Compression::Zstd);
    reader.push(&post(&mut requests, "/machine/map", &request).await);
    let mut responses = Vec::new();
    while let Some(json) = reader.next_message().unwrap() {
        let (response, malformed) = MapResponse::parse(&json).unwrap();
        assert_eq!(malformed, []);
        responses.push(response);
    }
    assert_eq!(responses, map_responses(node_key().public()));
}

#[tokio::test]
async fn our_channel_opens_with_the_official_responder_and_carries_its_records() {
    let machine = MachinePrivate::from_random(random());
    let control = ts_keys::dalek::X25519KeyPair::random();
    let control_public = MachinePublic::from_bytes(control.public.to_bytes());
    let (initiator, mut initiation) =
        Initiator::new(CAPABILITY_VERSION, &machine, &control_public, random()).unwrap();

    let prologue = format!("Tailscale Control Protocol v{CAPABILITY_VERSION}");
    let theirs =
        ts_noise::ik::ReceivedHandshake::new(&mut initiation[5..], prologue.as_bytes(), &control)
            .unwrap();
    assert_eq!(
        theirs.peer_static_pub.as_bytes(),
        machine.public().as_bytes()
    );
    let mut response = vec![2, 0, 48];
    response.resize(3 + ts_noise::ik::ReceivedHandshake::RESP_SIZE, 0);
    let session = theirs.finish(&mut response[3..]);

    let (ours, mut transport) = duplex(1 << 16);
    transport.write_all(&response).await.unwrap();
    let mut theirs = Framed::new(transport, ts_control_noise::BiCodec::from(session));
    theirs
        .send(&b"HTTP/2 begins at once, without early payload"[..])
        .await
        .unwrap();
    let (mut ours, challenge) = NoiseStream::connect(ours, initiator, &[]).await.unwrap();
    assert_eq!(challenge, None);
    let mut text = [0; 44];
    ours.read_exact(&mut text).await.unwrap();
    assert_eq!(&text, b"HTTP/2 begins at once, without early payload");

    let long: Vec<u8> = (0..20_000_u32).map(|number| number as u8).collect();
    ours.write_all(&long).await.unwrap();
    ours.flush().await.unwrap();
    let mut got = BytesMut::new();
    while got.len() < long.len() {
        got.extend_from_slice(&theirs.next().await.unwrap().unwrap());
    }
    assert_eq!(got, long);
}

#[tokio::test]
async fn a_refusal_reaches_the_client_in_the_servers_words() {
    let machine = MachinePrivate::from_random(random());
    let (initiator, _) =
        Initiator::new(CAPABILITY_VERSION, &machine, &machine.public(), random()).unwrap();
    let (ours, mut transport) = duplex(1 << 10);
    transport
        .write_all(&noise::error_frame("too old\n"))
        .await
        .unwrap();
    let error = NoiseStream::connect(ours, initiator, &[])
        .await
        .unwrap_err();
    assert!(error.to_string().ends_with("too old "), "{error}");
}

#[tokio::test]
async fn the_official_derp_client_talks_through_our_server_code() {
    let (client, server) = duplex(1 << 16);
    let server = tokio::spawn(derp_echo(server));
    let keys = ts_keys::NodeKeyPair::random();
    let client = ts_derp::Client::handshake(client, &keys).await.unwrap();
    for packet in [&b""[..], b"ping", &[7; 60_000]] {
        client.send_one(keys.public, packet).await.unwrap();
        let (from, echo) = client.recv_one().await.unwrap();
        assert_eq!((from, echo.as_ref()), (keys.public, packet));
    }
    drop(client);
    server.await.unwrap();
}

#[tokio::test]
async fn our_derp_client_side_talks_through_our_server_code() {
    let (client, server) = duplex(1 << 16);
    let server = tokio::spawn(derp_echo(server));
    let node = NodePrivate::from_random(random());
    let mut client = Framed::new(client, Codec::client());
    let Some(Ok(Frame::ServerKey(server_key))) = client.next().await else {
        panic!("no greeting")
    };
    let info = derp::ClientInfo {
        can_ack_pings: true,
        ..Default::default()
    };
    client
        .send(derp::client_info(&node, &server_key, random(), &info))
        .await
        .unwrap();
    let Some(Ok(Frame::ServerInfo { sealed })) = client.next().await else {
        panic!("no server info")
    };
    assert_eq!(
        derp::open_server_info(&node, &server_key, &sealed).unwrap(),
        ServerInfo::default()
    );
    let packet = Bytes::from_static(b"hello");
    client
        .send(Frame::SendPacket {
            to: node.public(),
            packet: packet.clone(),
        })
        .await
        .unwrap();
    assert_eq!(
        client.next().await.unwrap().unwrap(),
        Frame::RecvPacket {
            from: node.public(),
            packet
        }
    );
    drop(client);
    server.await.unwrap();
}

/// Greets, pings once, then gives every packet back.
async fn derp_echo(stream: tokio::io::DuplexStream) {
    let server = NodePrivate::from_random(random());
    let mut stream = Framed::new(stream, Codec::server());
    stream
        .send(Frame::ServerKey(server.public()))
        .await
        .unwrap();
    let Some(Ok(Frame::ClientInfo { key, sealed })) = stream.next().await else {
        panic!("no client info")
    };
    derp::open_client_info(&server, &key, &sealed).unwrap();
    stream
        .send(derp::server_info(
            &server,
            &key,
            random(),
            &ServerInfo::default(),
        ))
        .await
        .unwrap();
    while let Some(Ok(frame)) = stream.next().await {
        if let Frame::SendPacket { to, packet } = frame {
            stream
                .send(Frame::RecvPacket { from: to, packet })
                .await
                .unwrap();
        }
    }
}

fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).unwrap();
    bytes
}

fn control_key() -> MachinePrivate {
    MachinePrivate::from_random([42; 32])
}

fn challenge_key() -> ChallengePrivate {
    ChallengePrivate::from_random([43; 32])
}

fn node_key() -> NodePrivate {
    NodePrivate::from_random([44; 32])
}

/// A control server on loopback that plays one fixed session; its URL.
async fn serve() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let service = service_fn(|request| async { Ok::<_, Infallible>(outer(request)) });
                let connection = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service);
                let _ = connection.with_upgrades().await;
            });
        }
    });
    url
}

fn outer(mut request: Request<Incoming>) -> Response<Full<Bytes>> {
    if request.uri().path() == "/key" {
        let key = OverTlsPublicKey {
            legacy_public_key: None,
            public_key: Some(control_key().public()),
        };
        return Response::new(serde_json::to_vec(&key).unwrap().into());
    }
    let initiation = STANDARD
        .decode(&request.headers()["x-tailscale-handshake"])
        .unwrap();
    let (peer, response, channel) = noise::respond(&initiation, &control_key(), random()).unwrap();
    assert!(peer.version >= 113);
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let mut transport = TokioIo::new(upgrade.await.unwrap());
        transport.write_all(&response).await.unwrap();
        let mut stream = NoiseStream::new(transport, channel, &[]);
        stream
            .write_all(&noise::early_payload(&challenge_key().public()))
            .await
            .unwrap();
        let service = service_fn(|request| async { Ok::<_, Infallible>(inner(request).await) });
        let http2 = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        let _ = http2.serve_connection(TokioIo::new(stream), service).await;
    });
    let upgrade = Response::builder()
        .status(101)
        .header("Upgrade", "tailscale-control-protocol");
    upgrade
        .header("Connection", "upgrade")
        .body(Full::default())
        .unwrap()
}

async fn inner(request: Request<Incoming>) -> Response<Full<Bytes>> {
    let path = request.uri().path().to_owned();
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let answer = match path.as_str() {
        "/machine/register" => {
            let request: RegisterRequest = serde_json::from_slice(&body).unwrap();
            assert!(request.node_key.is_some());
            serde_json::to_vec(&RegisterResponse {
                machine_authorized: true,
                ..Default::default()
            })
            .unwrap()
        }
        "/machine/map" => {
            let request: MapRequest = serde_json::from_slice(&body).unwrap();
            let compression = Compression::from_request(&request.compress);
            let responses = map_responses(request.node_key.unwrap());
            let messages = responses
                .iter()
                .map(|response| serde_json::to_vec(response).unwrap());
            messages
                .flat_map(|json| framing::encode(&json, compression).unwrap())
                .collect()
        }
        other => panic!("what is {other}?"),
    };
    Response::new(answer.into())
}

fn map_responses(key: NodePublic) -> Vec<MapResponse> {
    let region = RegionId(900);
    let node = |id: i64, key| Node {
        id: NodeId(id),
        stable_id: StableId(format!("n{id}")),
        name: format!("n{id}.tail.lab."),
        key,
        addresses: vec![
            format!("100.64.0.{id}/32").parse().unwrap(),
            format!("fd7a:115c:a1e0::{id}/128").parse().unwrap(),
        ],
        home_derp: Some(region),
        cap: CAPABILITY_VERSION,
        machine_authorized: true,
        ..Default::default()
    };
    let derp_node = DerpNode {
        name: "900a".into(),
        region_id: region,
        host_name: "127.0.0.1".into(),
        ..Default::default()
    };
    let derp_region = DerpRegion {
        region_id: region,
        region_code: "lab".into(),
        nodes: vec![derp_node],
        ..Default::default()
    };
    let rule = FilterRule {
        src_ips: vec!["*".into()],
        dst_ports: vec![NetPortRange {
            ip: "*".into(),
            ports: PortRange::ANY,
        }],
        ..Default::default()
    };
    let first = MapResponse {
        node: Some(node(1, key)),
        peers: vec![node(2, key).into()],
        domain: "tail.lab".into(),
        derp_map: Some(
            DerpMap {
                regions: [(region, derp_region)].into(),
                ..Default::default()
            }
            .into(),
        ),
        packet_filters: [("base".into(), Some(vec![rule]))].into(),
        ..Default::default()
    };
    let keep_alive = MapResponse {
        keep_alive: true,
        ..Default::default()
    };
    assert_eq!(
        serde_json::to_vec(&keep_alive).unwrap(),
        framing::KEEP_ALIVE
    );
    let patch = PeerChange {
        node_id: NodeId(2),
        derp_region: Some(RegionId(901)),
        endpoints: vec!["192.0.2.1:41641".parse().unwrap()],
        ..Default::default()
    };
    vec![
        first,
        keep_alive,
        MapResponse {
            peers_changed_patch: vec![patch],
            ..Default::default()
        },
    ]
}

type Requests = hyper::client::conn::http2::SendRequest<Full<Bytes>>;

/// Our client's way in: upgrade, handshake, early payload, HTTP/2.
async fn connect() -> (Requests, Option<lowroad_wire::key::ChallengePublic>) {
    let address = serve()
        .await
        .trim_start_matches("http://")
        .trim_end_matches('/')
        .to_owned();
    let machine = MachinePrivate::from_random(random());
    let (initiator, initiation) = Initiator::new(
        CAPABILITY_VERSION,
        &machine,
        &control_key().public(),
        random(),
    )
    .unwrap();
    let transport = TokioIo::new(TcpStream::connect(&address).await.unwrap());
    let (mut http1, connection) = hyper::client::conn::http1::handshake(transport)
        .await
        .unwrap();
    tokio::spawn(connection.with_upgrades());
    let request = Request::post("/ts2021")
        .header("Host", &address)
        .header("Upgrade", "tailscale-control-protocol")
        .header("Connection", "upgrade")
        .header("X-Tailscale-Handshake", STANDARD.encode(initiation))
        .body(Full::<Bytes>::default())
        .unwrap();
    let response = http1.send_request(request).await.unwrap();
    assert_eq!(response.status(), 101);
    let transport = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
    let (stream, challenge) = NoiseStream::connect(transport, initiator, &[])
        .await
        .unwrap();
    let (requests, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
    tokio::spawn(connection);
    (requests, challenge)
}

async fn post(requests: &mut Requests, path: &str, body: &impl serde::Serialize) -> Bytes {
    let body = Full::new(serde_json::to_vec(body).unwrap().into());
    let request = Request::post(format!("https://control{path}"))
        .body(body)
        .unwrap();
    requests
        .send_request(request)
        .await
        .unwrap()
        .into_body()
        .collect()
        .await
        .unwrap()
        .to_bytes()
}
