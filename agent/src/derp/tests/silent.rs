//! A relay that falls silent, or says a byte a second for ever: the dial ends at its bound, and the region is tried again.
//!
//! All that is said on sockets is said in real time. Once nobody has anything to say any more, time is paused, and passes at once.

use bytes::BytesMut;
use lowroad_wire::derp::Codec;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::{Instant, pause, resume, sleep},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::codec::Encoder as _;

use super::*;

/// The clock of timers goes by milliseconds.
const TICKS: Duration = Duration::from_millis(5);

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

/// What it does then.
#[derive(Clone, Copy, Debug)]
enum Voice {
    Silent,
    Trickle,
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

/// A relay of which every connection ends up at the same stage.
struct Mute {
    node: DerpNode,
    /// Of each connection: that it is there, and that the client has closed it.
    reached: mpsc::UnboundedReceiver<()>,
    closed: mpsc::UnboundedReceiver<()>,
}

impl Mute {
    async fn start(stage: Stage, voice: Voice) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (acceptor, certificate) = relay::identity();
        let node = relay::pinned("1b", HOME, listener.local_addr().unwrap(), &certificate);
        let (reach, reached) = mpsc::unbounded_channel();
        let (close, closed) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, reach, close) = (acceptor.clone(), reach.clone(), close.clone());
                tokio::spawn(async move {
                    let _ = serve(stream, &acceptor, stage, voice, &reach).await;
                    let _ = close.send(());
                });
            }
        });
        Self {
            node,
            reached,
            closed,
        }
    }

    async fn until_reached(&mut self) {
        let reached = timeout(PATIENCE, self.reached.recv()).await;
        reached.expect("the client comes").unwrap();
    }

    async fn until_closed(&mut self) {
        let closed = timeout(PATIENCE, self.closed.recv()).await;
        closed.expect("the client closes its connection").unwrap();
    }
}

/// Until the client closes the connection.
async fn serve(
    mut stream: TcpStream,
    acceptor: &TlsAcceptor,
    stage: Stage,
    voice: Voice,
    reach: &mpsc::UnboundedSender<()>,
) -> std::io::Result<()> {
    if stage == Stage::Accepted {
        stream.read_u8().await?;
        let _ = reach.send(());
        go_on(stream, stage, voice).await;
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
    let _ = reach.send(());
    go_on(stream, stage, voice).await;
    Ok(())
}

async fn go_on(stream: impl AsyncRead + AsyncWrite, stage: Stage, voice: Voice) {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let mut heard = Vec::new();
    let speaks = async {
        for byte in stage.rest() {
            match voice {
                Voice::Silent => std::future::pending().await,
                Voice::Trickle => sleep(Duration::from_secs(1)).await,
            }
            if writer.write_u8(byte).await.is_err() || writer.flush().await.is_err() {
                break;
            }
        }
    };
    tokio::select! {
        _ = reader.read_to_end(&mut heard) => {}
        () = speaks => {}
    }
}

/// Everybody takes what has come: on loopback nothing is under way for longer than that.
async fn settle() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

/// Nobody says more than that from now on. The client gives up at the bound, neither sooner nor later: it has not begun to wait before `since`, but now it waits.
async fn gives_up(client: &mut Client, since: Instant, bound: Duration) -> String {
    settle().await;
    pause();
    let begun = Instant::now();
    let event = timeout(2 * bound, client.events.recv()).await;
    let (waited, at_most) = (begun.elapsed(), since.elapsed());
    resume();
    let event = event.expect("there is a bound").expect("the pool lives");
    let DerpEvent::Disconnected {
        region: HOME,
        why: Why::Failed(why),
    } = event
    else {
        panic!("{event:?}")
    };
    assert!(waited <= bound + TICKS, "after {waited:?}: {why}");
    assert!(at_most >= bound, "after {at_most:?} already: {why}");
    why
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
    let mut relay = Mute::start(stage, voice).await;
    let since = Instant::now();
    let mut client = at_home(vec![relay.node.clone()], Timings::default());
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
        let mut silent = Mute::start(stage, Voice::Silent).await;
        let mut client = at_home(vec![silent.node.clone(), home.node(HOME)], timings);
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
