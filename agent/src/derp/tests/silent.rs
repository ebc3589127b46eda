//! A relay that falls silent, or says a byte a second for ever: the dial ends at its bound, and the region is tried again.

use bytes::BytesMut;
use lowroad_wire::derp::Codec;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::Instant,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::codec::Encoder as _;

use super::*;
use crate::mute::{self, Mute, Voice, at_its_bound};

/// How far the relay goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// It has read what begins TLS.
    Accepted,
    /// It has been asked to switch to DERP.
    Upgrade,
    /// It has switched.
    Key,
    /// It has said who it is, and the client who that is.
    Info,
}

impl Stage {
    /// What comes next: right as far as the bytes go that come in time, and it never ends.
    fn rest(self) -> impl Iterator<Item = u8> {
        let begins: &[u8] = match self {
            // A long TLS handshake record.
            Self::Accepted => &[0x16, 3, 3, 0x3f, 0xff],
            Self::Upgrade => b"HTTP/1.1 101 Switching Protocols\r\nX: ",
            // Frames of 40 and 256 bytes.
            Self::Key => &[1, 0, 0, 0, 40],
            Self::Info => &[3, 0, 0, 1, 0],
        };
        begins.iter().copied().chain(std::iter::repeat(b' '))
    }
}

/// A relay that ends up at the same stage with every connection.
async fn start(stage: Stage, voice: Voice) -> (Mute, DerpNode) {
    let (acceptor, certificate) = relay::identity();
    let relay = Mute::start(voice, move |stream, arrived| {
        let acceptor = acceptor.clone();
        async move {
            let _ = serve(stream, &acceptor, stage, arrived).await;
        }
    })
    .await;
    let node = relay::pinned("1b", HOME, relay.address, &certificate);
    (relay, node)
}

/// Until the client closes the connection.
async fn serve(
    mut stream: TcpStream,
    acceptor: &TlsAcceptor,
    stage: Stage,
    arrived: mute::Stage,
) -> std::io::Result<()> {
    if stage == Stage::Accepted {
        stream.read_u8().await?;
        arrived.reached(stream, stage.rest()).await;
        return Ok(());
    }
    let mut stream = acceptor.accept(stream).await?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    let mut said = BytesMut::new();
    if stage != Stage::Upgrade {
        said.extend_from_slice(b"HTTP/1.1 101 Switching Protocols\r\n\r\n");
    }
    if stage == Stage::Info {
        let key = Frame::ServerKey(NodePrivate::from_random([9; 32]).public());
        Codec::server().encode(key, &mut said).unwrap();
    }
    stream.write_all(&said).await?;
    stream.flush().await?;
    if stage == Stage::Info {
        stream.read_u8().await?;
    }
    arrived.reached(stream, stage.rest()).await;
    Ok(())
}

/// Why the client gives up, which it does at the bound.
async fn gives_up(client: &mut Client, since: Instant, bound: Duration) -> String {
    let event = at_its_bound(since, bound, client.events.recv()).await;
    match event.expect("the pool lives") {
        DerpEvent::Disconnected {
            region: HOME,
            why: Why::Failed(why),
        } => why,
        event => panic!("{event:?}"),
    }
}

/// A client whose home has these nodes.
fn at_home(nodes: Vec<DerpNode>, timings: Timings) -> Client {
    let client = Client::idle(1, &[], timings);
    let region = DerpRegion {
        region_id: HOME,
        nodes,
        ..Default::default()
    };
    client.pool.set_map(&DerpMap {
        regions: [(HOME, region)].into(),
        ..Default::default()
    });
    client.pool.set_home(Some(HOME));
    client
}

async fn is_left(stage: Stage, voice: Voice) {
    let (mut relay, node) = start(stage, voice).await;
    let since = Instant::now();
    let mut client = at_home(vec![node], Timings::default());
    relay.until_reached().await;
    let why = gives_up(&mut client, since, Timings::default().connect).await;
    assert_eq!(why, "no connection within 10.0s", "{stage:?} {voice:?}");
    relay.until_closed().await;
    relay.until_reached().await;
}

#[tokio::test]
async fn a_relay_that_accepts_and_never_answers_is_left_after_ten_seconds() {
    for stage in [Stage::Accepted, Stage::Upgrade, Stage::Key, Stage::Info] {
        is_left(stage, Voice::Silent).await;
    }
}

#[tokio::test]
async fn a_relay_that_answers_a_byte_a_second_is_left_after_ten_seconds() {
    for stage in [Stage::Accepted, Stage::Upgrade, Stage::Key, Stage::Info] {
        is_left(stage, Voice::Trickle).await;
    }
}

#[tokio::test]
async fn a_silent_node_of_a_region_keeps_nobody_from_the_next() {
    let home = Relay::start().await;
    let timings = Timings {
        connect: Duration::from_secs(2),
        ..Default::default()
    };
    for stage in [Stage::Accepted, Stage::Info] {
        let (mut silent, node) = start(stage, Voice::Silent).await;
        let mut client = at_home(vec![node, home.node(HOME)], timings);
        silent.until_reached().await;
        client
            .event(|event| *event == DerpEvent::Connected { region: HOME })
            .await;
    }
}

#[tokio::test]
async fn a_relay_that_has_greeted_and_says_nothing_for_two_minutes_is_left_and_tried_again() {
    let home = Relay::start().await;
    let since = Instant::now();
    let mut client = Client::start(1, &[(HOME, &home)], Some(HOME)).await;
    home.saw(|frame| *frame == Frame::NotePreferred(true)).await;
    let why = gives_up(&mut client, since, Timings::default().silence).await;
    assert_eq!(why, "the relay said nothing for 120s");
    client
        .event(|event| *event == DerpEvent::Connected { region: HOME })
        .await;
    assert_eq!(home.connections(), 2);
}
