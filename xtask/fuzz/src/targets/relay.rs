//! DERP: frames of either side, and the relay with a client that has a key and no manners.

use std::{cell::RefCell, time::Duration};

use bytes::{Bytes, BytesMut};
use lowroad_agent::{
    derp::{DerpEvent, DerpPool},
    tls::TlsConfig,
};
use lowroad_coordinator::{
    derp::DerpServer,
    tls::{Front, FrontStream},
};
use lowroad_wire::{
    control::{DerpMap, RegionId},
    derp::{self, ClientInfo, Codec, Frame, GoneReason, ServerInfo},
    key::{NodePrivate, NodePublic},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream},
    net::TcpListener,
    runtime::Runtime,
};
use tokio_util::codec::{Decoder, Encoder};

use super::coordinator::folder;
use crate::script::Script;

/// A stream of frames, cut anywhere: the same frames, and each can be written and read again.
pub fn derp_frames(input: &[u8]) {
    let mut script = Script::new(input);
    let codec = if script.flag() {
        Codec::client
    } else {
        Codec::server
    };
    let piece = usize::from(script.byte()) + 1;
    let stream = script.rest();
    let whole = frames(codec(), std::iter::once(stream));
    let cut = frames(codec(), stream.chunks(piece));
    assert_eq!(whole, cut);
    let own = NodePrivate::from_random([1; 32]);
    for frame in whole.0 {
        match &frame {
            Frame::ClientInfo { key, sealed } => drop(derp::open_client_info(&own, key, sealed)),
            Frame::ServerInfo { sealed } => {
                drop(derp::open_server_info(&own, &own.public(), sealed))
            }
            _ => {}
        }
        let mut bytes = BytesMut::new();
        codec()
            .encode(frame.clone(), &mut bytes)
            .expect("what was read can be written");
        let again = codec()
            .decode(&mut bytes)
            .expect("our own")
            .expect("it is whole");
        // Flags stand behind the address, so they go with it; text is cut where it is long.
        if !matches!(
            &frame,
            Frame::PeerPresent { address: None, .. } | Frame::Health(_)
        ) {
            assert_eq!(again, frame);
        }
    }
}

/// The frames, and whether the stream is still good.
fn frames<'a>(mut codec: Codec, pieces: impl Iterator<Item = &'a [u8]>) -> (Vec<Frame>, bool) {
    let (mut buffer, mut out) = (BytesMut::new(), Vec::new());
    for piece in pieces {
        buffer.extend_from_slice(piece);
        loop {
            match codec.decode(&mut buffer) {
                Ok(Some(frame)) => out.push(frame),
                Ok(None) => break,
                Err(_) => return (out, false),
            }
        }
    }
    (out, true)
}

fn every_frame() -> Vec<Frame> {
    let key = NodePublic::from_bytes([7; 32]);
    let (packet, sealed) = (Bytes::from_static(b"packet"), Bytes::from_static(&[3; 60]));
    vec![
        Frame::ServerKey(key),
        Frame::ClientInfo {
            key,
            sealed: sealed.clone(),
        },
        Frame::ServerInfo { sealed },
        Frame::SendPacket {
            to: key,
            packet: packet.clone(),
        },
        Frame::RecvPacket {
            from: key,
            packet: packet.clone(),
        },
        Frame::ForwardPacket {
            from: key,
            to: key,
            packet,
        },
        Frame::KeepAlive,
        Frame::NotePreferred(true),
        Frame::PeerGone {
            key,
            reason: GoneReason::NotHere,
        },
        Frame::PeerPresent {
            key,
            address: "198.51.100.7:1".parse().ok(),
            flags: 3,
        },
        Frame::WatchConns,
        Frame::ClosePeer(key),
        Frame::Ping([1; 8]),
        Frame::Pong([1; 8]),
        Frame::Health("ill".to_owned()),
        Frame::Restarting {
            reconnect_in: Duration::from_millis(5),
            try_for: Duration::from_secs(1),
        },
        Frame::Unknown(0x55),
    ]
}

fn encoded(frame: Frame) -> Vec<u8> {
    let mut bytes = BytesMut::new();
    Codec::client().encode(frame, &mut bytes).expect("short");
    bytes.to_vec()
}

pub fn derp_frames_seeds() -> Vec<Vec<u8>> {
    let frames: Vec<Vec<u8>> = every_frame().into_iter().map(encoded).collect();
    let mut seeds: Vec<Vec<u8>> = frames
        .iter()
        .map(|frame| [&[1, 4][..], frame].concat())
        .collect();
    seeds.push([&[0, 6][..], &frames.concat()].concat());
    seeds.push([&[1, 0][..], &[4, 0xff, 0xff, 0xff, 0xff]].concat());
    seeds.push([&[0, 0][..], &[4, 0, 4, 0, 0]].concat());
    seeds
}

/// A client that has greeted properly, or not at all, then sends anything; another one is there to be talked to.
pub fn derp_relay(input: &[u8]) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let server = DerpServer::new(NodePrivate::from_random([1; 32]), |key| !key.is_zero());
        let (quiet, far_quiet) = tokio::io::duplex(1 << 16);
        let (rude, far_rude) = tokio::io::duplex(1 << 16);
        let remote = "198.51.100.7:1".parse().expect("an address");
        let greets = input.first().is_some_and(|byte| byte & 1 == 1);
        let rude = async {
            let rude = if greets { greet(rude, 2).await } else { rude };
            let (mut reader, mut writer) = tokio::io::split(rude);
            let say = async {
                // The relay may hang up.
                let _ = writer.write_all(input.get(1..).unwrap_or_default()).await;
                let _ = writer.shutdown().await;
            };
            tokio::join!(say, drain(&mut reader)).1
        };
        let scene = async {
            let (mut listening, mut speaking) = tokio::io::split(greet(quiet, 7).await);
            let act = async {
                let got = tokio::join!(rude, server.serve(far_rude, remote)).0;
                assert!(
                    got <= 64 * input.len() + 4096,
                    "{got} bytes of answers to {} bytes",
                    input.len()
                );
                speaking
                    .shutdown()
                    .await
                    .expect("the relay still serves the other client");
            };
            tokio::join!(drain(&mut listening), act);
        };
        tokio::join!(scene, server.serve(far_quiet, remote));
    });
}

/// What the agent's pool of relays makes of one that means harm: its answer to the upgrade if the first byte is even, else what
/// comes after a right greeting. Then it hangs up.
pub fn derp_client(input: &[u8]) {
    SCENE.with_borrow_mut(|scene| {
        let Scene {
            runtime,
            listener,
            front,
            tls,
        } = scene;
        let (greets, words) = match input.split_first() {
            Some((first, words)) => (first & 1 == 1, words),
            None => (false, &[][..]),
        };
        runtime.block_on(async {
            let port = listener.local_addr().expect("it listens").port();
            let node = NodePrivate::from_random([2; 32]);
            let (pool, mut packets, mut events) = DerpPool::start(node.clone(), tls.clone(), 0);
            pool.set_map(&map(port, front.pin().expect("it is our own")));
            pool.set_home(Some(REGION));
            let relay = async {
                let (stream, _) = listener.accept().await.expect("a connection");
                let mut stream = front.accept(stream).await.expect("TLS");
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(stream.read_u8().await.expect("a request"));
                }
                if greets {
                    welcome(&mut stream, &node).await;
                }
                let _ = stream.write_all(words).await;
                let _ = stream.shutdown().await;
                let mut said = Vec::new();
                let _ = stream.take(1 << 20).read_to_end(&mut said).await;
                said.len()
            };
            let ended = async {
                let (mut known, mut brought) = (0, Vec::new());
                loop {
                    let event = tokio::select! {
                        biased;
                        () = packets.recv_many(&mut brought, 16) => {
                            known += brought.drain(..).map(|packet| packet.bytes.len()).sum::<usize>();
                            continue;
                        }
                        event = events.recv() => event.expect("the pool lives"),
                    };
                    match event {
                        DerpEvent::Disconnected { .. } => return known,
                        DerpEvent::Health { text, .. } => known += text.len(),
                        DerpEvent::Connected { .. } => {}
                    }
                }
            };
            let both = async { tokio::join!(relay, ended) };
            let both = tokio::time::timeout(Duration::from_secs(20), both).await;
            let (said, known) = both.expect("a relay that hangs up is left");
            assert!(
                known <= 3 * input.len(),
                "{known} bytes of events from {}",
                input.len()
            );
            assert!(said <= 1000 + 8 * input.len(), "{said} bytes of answers");
            drop(pool);
        });
    });
}

const REGION: RegionId = RegionId(901);

struct Scene {
    runtime: Runtime,
    listener: TcpListener,
    front: Front,
    tls: TlsConfig,
}

thread_local!(static SCENE: RefCell<Scene> = RefCell::new(Scene::start()));

impl Scene {
    fn start() -> Self {
        let runtime = super::runtime();
        let names = ["127.0.0.1".to_owned()];
        Self {
            listener: runtime
                .block_on(TcpListener::bind("127.0.0.1:0"))
                .expect("a free port"),
            front: Front::self_signed(&folder("relay"), &names).expect("a certificate"),
            tls: TlsConfig::system().expect("TLS"),
            runtime,
        }
    }
}

fn map(port: u16, pin: &str) -> DerpMap {
    let map = serde_json::json!({"Regions": {"901": {"RegionID": 901, "RegionCode": "x", "Nodes": [{"Name": "901a", "RegionID": 901,
        "HostName": "127.0.0.1", "IPv4": "127.0.0.1", "IPv6": "none", "CertName": pin, "DERPPort": port}]}}});
    serde_json::from_value(map).expect("a relay map")
}

/// The upgrade, and a greeting that opens.
async fn welcome(stream: &mut FrontStream, client: &NodePrivate) {
    let own = NodePrivate::from_random([1; 32]);
    let info = derp::server_info(&own, &client.public(), [4; 24], &ServerInfo::default());
    let greeting = [
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n".to_vec(),
        encoded(Frame::ServerKey(own.public())),
        encoded(info),
    ];
    let _ = stream.write_all(&greeting.concat()).await;
}

pub fn derp_client_seeds() -> Vec<Vec<u8>> {
    let frames: Vec<Vec<u8>> = every_frame().into_iter().map(encoded).collect();
    let mut seeds: Vec<Vec<u8>> = frames
        .iter()
        .map(|frame| [&[1][..], frame].concat())
        .collect();
    let upgraded = b"\0HTTP/1.1 101 Switching Protocols\r\nUpgrade: DERP\r\n\r\n";
    seeds.push([&[1][..], &frames.concat()].concat());
    seeds.push([&upgraded[..], &frames[0], &frames[2]].concat());
    seeds.push([&upgraded[..], &[1, 0xff, 0xff, 0xff, 0xff]].concat());
    seeds.push(b"\0HTTP/1.1 403 Forbidden\r\n\r\n".to_vec());
    seeds.push([&b"\0"[..], &[b'a'; 9000]].concat());
    seeds
}

async fn greet(mut stream: DuplexStream, seed: u8) -> DuplexStream {
    let node = NodePrivate::from_random([seed; 32]);
    let mut buffer = BytesMut::new();
    let Frame::ServerKey(server) = next(&mut stream, &mut buffer).await else {
        panic!("the relay begins with its key");
    };
    let hello = encoded(derp::client_info(
        &node,
        &server,
        [9; 24],
        &ClientInfo {
            can_ack_pings: true,
            ..ClientInfo::default()
        },
    ));
    stream.write_all(&hello).await.expect("the relay listens");
    let Frame::ServerInfo { sealed } = next(&mut stream, &mut buffer).await else {
        panic!("the relay answers a right greeting");
    };
    let _: ServerInfo = derp::open_server_info(&node, &server, &sealed).expect("it is for us");
    stream
}

async fn next(stream: &mut DuplexStream, buffer: &mut BytesMut) -> Frame {
    loop {
        if let Some(frame) = Codec::client()
            .decode(buffer)
            .expect("the relay speaks DERP")
        {
            return frame;
        }
        assert!(
            stream.read_buf(buffer).await.expect("it stays") > 0,
            "the relay hung up"
        );
    }
}

/// Everything that comes until the end must be frames.
async fn drain(reader: &mut (impl AsyncReadExt + Unpin)) -> usize {
    let (mut buffer, mut codec, mut got) = (BytesMut::new(), Codec::client(), 0);
    while let Ok(count @ 1..) = reader.read_buf(&mut buffer).await {
        got += count;
        while codec
            .decode(&mut buffer)
            .expect("the relay speaks DERP")
            .is_some()
        {}
    }
    got
}

pub fn derp_relay_seeds() -> Vec<Vec<u8>> {
    let peer = NodePrivate::from_random([7; 32]).public();
    let packet = |len| {
        encoded(Frame::SendPacket {
            to: peer,
            packet: vec![5; len].into(),
        })
    };
    let frames: Vec<Vec<u8>> = every_frame().into_iter().map(encoded).collect();
    let mut seeds: Vec<Vec<u8>> = frames
        .iter()
        .map(|frame| [&[1][..], frame].concat())
        .collect();
    seeds.push([&[1][..], &packet(4), &packet(1200), &packet(4).repeat(40)].concat());
    seeds.push([&[1][..], &encoded(Frame::Ping([2; 8])).repeat(20)].concat());
    seeds.push([&[0][..], &frames[1]].concat());
    seeds
}
