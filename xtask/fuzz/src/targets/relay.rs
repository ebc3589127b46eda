//! DERP: frames of either side, and the relay with a client that has a key and no manners.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use lowroad_coordinator::derp::DerpServer;
use lowroad_wire::{
    derp::{self, ClientInfo, Codec, Frame, GoneReason, ServerInfo},
    key::{NodePrivate, NodePublic},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio_util::codec::{Decoder, Encoder};

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
