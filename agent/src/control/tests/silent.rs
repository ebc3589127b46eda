//! A control server that falls silent, or says a byte a second for ever: whatever it was asked for ends at its bound, and the client tries again.

use tokio::{
    io::AsyncReadExt,
    net::TcpStream,
    time::{Instant, pause, resume},
};

use super::*;
use crate::{
    control::{
        channel::HANDSHAKE_TIMEOUT,
        dial::CONNECT_TIMEOUT,
        poll::{REPORT_TIMEOUT, WATCHDOG},
        register::ANSWER_TIMEOUT,
    },
    mute::{self, Mute, PATIENCE, Voice, at_its_bound, settle},
};

/// How far the server goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// It has read something.
    Accepted,
    /// It has been asked for its key.
    Asked,
    /// It has begun to tell its key.
    Key,
    /// It has told its key, and been asked for a channel.
    Upgrade,
    /// It has switched protocols.
    Noise,
}

impl Stage {
    /// What it has said of its last answer.
    fn said(self) -> &'static [u8] {
        match self {
            Self::Accepted | Self::Asked | Self::Upgrade => b"",
            Self::Key => b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n",
            Self::Noise => {
                b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: tailscale-control-protocol\r\nConnection: upgrade\r\n\r\n"
            }
        }
    }

    /// How that goes on: right as far as the bytes go that come in time, and it never ends.
    fn rest(self) -> impl Iterator<Item = u8> {
        let begins: &[u8] = match self {
            // A long TLS handshake record.
            Self::Accepted => &[0x16, 3, 3, 0x3f, 0xff],
            Self::Asked | Self::Upgrade => b"HTTP/1.1 200 OK\r\nX: ",
            Self::Key => b"{",
            // A response of 48 bytes.
            Self::Noise => &[2, 0, 48],
        };
        begins.iter().copied().chain(std::iter::repeat(b' '))
    }
}

/// Ends up at the same stage with every connection.
async fn start(stage: Stage, voice: Voice) -> Mute {
    Mute::start(voice, move |mut stream, arrived: mute::Stage| async move {
        if advance(&mut stream, stage).await {
            arrived.reached(stream, stage.rest()).await;
        }
    })
    .await
}

/// True if the connection is at its stage; false if it was another's, and is done.
async fn advance(stream: &mut TcpStream, stage: Stage) -> bool {
    let mut heard = Vec::new();
    while heard.is_empty() || (stage != Stage::Accepted && !heard.ends_with(b"\r\n\r\n")) {
        match stream.read_u8().await {
            Ok(byte) => heard.push(byte),
            Err(_) => return false,
        }
    }
    let tells_key = matches!(stage, Stage::Upgrade | Stage::Noise);
    if tells_key && heard.starts_with(b"GET /key") {
        let key = MachinePrivate::from_random([7; 32]).public();
        let body = json!({"publicKey": key}).to_string();
        let length = body.len();
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{body}");
        let _ = stream.write_all(answer.as_bytes()).await;
        return false;
    }
    stream.write_all(stage.said()).await.is_ok()
}

/// Why the client gives up, which it does at the bound.
async fn gives_up(client: &mut Client, since: Instant, bound: Duration) -> ControlError {
    let lost = async {
        loop {
            let event = client.events.recv().await.expect("the client runs");
            if let ControlEvent::Lost { why, .. } = event {
                break why;
            }
        }
    };
    at_its_bound(since, bound, lost).await
}

/// Nothing of `voice` keeps the client at that stage for longer than the bound, nor its connection there; and it comes back.
async fn is_left(scheme: &str, stage: Stage, voice: Voice, bound: Duration, says: &str) {
    let mut server = start(stage, voice).await;
    let since = Instant::now();
    let mut client = Client::start(options(&format!("{scheme}://{}", server.address)));
    server.until_reached().await;
    let why = gives_up(&mut client, since, bound).await;
    assert!(
        matches!(&why, ControlError::Connect { why, .. } if why.contains(says)),
        "{stage:?} {voice:?}: {why}"
    );
    assert!(!why.ends_up() && !why.needs_user());
    server.until_closed().await;
    server.until_reached().await;
}

#[tokio::test]
async fn a_server_that_begins_no_tls_is_left_after_ten_seconds() {
    for voice in [Voice::Silent, Voice::Trickle] {
        let says = "no answer within 10 s";
        is_left("https", Stage::Accepted, voice, CONNECT_TIMEOUT, says).await;
    }
}

#[tokio::test]
async fn a_server_that_does_not_tell_its_key_is_left_after_ten_seconds() {
    for stage in [Stage::Asked, Stage::Key] {
        for voice in [Voice::Silent, Voice::Trickle] {
            let says = "accepts connections but does not answer";
            is_left("http", stage, voice, CONNECT_TIMEOUT, says).await;
        }
    }
}

#[tokio::test]
async fn a_server_that_is_silent_in_the_middle_of_its_handshake_is_left_after_ten_seconds() {
    for stage in [Stage::Upgrade, Stage::Noise] {
        for voice in [Voice::Silent, Voice::Trickle] {
            let says = "the encrypted channel was not set up in time";
            is_left("http", stage, voice, HANDSHAKE_TIMEOUT, says).await;
        }
    }
}

/// As the client says it of a server that was silent for so long.
fn is_silence(why: &ControlError, bound: Duration) -> bool {
    !why.needs_user() && matches!(why, ControlError::Silent(silent) if *silent == bound)
}

#[tokio::test]
async fn a_registration_that_is_not_answered_is_given_up_after_thirty_seconds() {
    for trickles in [false, true] {
        let mut server = TestServer::start(7).await;
        let since = Instant::now();
        let mut client = Client::start(options(&server.url));
        let mut unanswered = Some(server.expect("/machine/register").await);
        if trickles && let Some(call) = unanswered.take() {
            call.answer(Reply::Trickle);
        }
        let why = gives_up(&mut client, since, ANSWER_TIMEOUT).await;
        assert!(is_silence(&why, ANSWER_TIMEOUT), "{why}");
        drop(unanswered);
        server.expect("/machine/register").await.json(accepted());
        poll(&mut server).await;
    }
}

#[tokio::test]
async fn a_poll_that_is_not_answered_is_given_up_after_two_minutes() {
    let mut server = TestServer::start(7).await;
    let since = Instant::now();
    let mut client = Client::start(options(&server.url));
    server.expect("/machine/register").await.json(accepted());
    let unanswered = poll(&mut server).await;
    let why = gives_up(&mut client, since, WATCHDOG).await;
    assert!(is_silence(&why, WATCHDOG), "{why}");
    drop(unanswered);
    poll(&mut server).await;
}

/// A client that has a netmap and whose report was acknowledged, and its map stream.
async fn connected(server: &mut TestServer) -> (Client, mpsc::Sender<Value>) {
    let mut client = Client::start(options(&server.url));
    server.expect("/machine/register").await.json(accepted());
    let stream = poll(server).await.stream();
    let node = json!({"Node": self_node(&format!("nodekey:{:064x}", 1))});
    stream.send(node).await.unwrap();
    server.expect("/machine/map").await.json(json!({}));
    let (mut netmap, mut acknowledged) = (false, false);
    let both = |event| {
        netmap |= matches!(event, ControlEvent::Map { .. });
        acknowledged |= matches!(event, ControlEvent::Acknowledged(_));
        (netmap && acknowledged).then_some(())
    };
    client.until(both).await;
    (client, stream)
}

#[tokio::test]
async fn a_map_stream_without_a_word_for_two_minutes_is_given_up_and_one_with_words_is_not() {
    let mut server = TestServer::start(7).await;
    let (mut client, stream) = connected(&mut server).await;
    let mut since = Instant::now();
    for _ in 0..5 {
        settle().await;
        pause();
        sleep(WATCHDOG - PATIENCE).await;
        assert!(client.events.try_recv().is_err(), "there is no news");
        resume();
        since = Instant::now();
        // One that tells the time is passed on, so that it is known to have arrived.
        let keep_alive = json!({"KeepAlive": true, "ControlTime": "2026-11-30T00:00:00Z"});
        stream.send(keep_alive).await.unwrap();
        let arrived = |event| matches!(event, ControlEvent::Map { .. }).then_some(());
        client.until(arrived).await;
    }
    let why = gives_up(&mut client, since, WATCHDOG).await;
    assert!(is_silence(&why, WATCHDOG), "{why}");
    poll(&mut server).await;
}

#[tokio::test]
async fn a_report_that_is_not_answered_ends_the_connection_after_ten_seconds() {
    for trickles in [false, true] {
        let mut server = TestServer::start(7).await;
        let (mut client, _stream) = connected(&mut server).await;
        let since = Instant::now();
        client.control.report(Facts {
            generation: 1,
            ..Facts::default()
        });
        let mut unanswered = Some(server.expect("/machine/map").await);
        if trickles && let Some(call) = unanswered.take() {
            call.answer(Reply::Trickle);
        }
        let why = gives_up(&mut client, since, REPORT_TIMEOUT).await;
        assert!(is_silence(&why, REPORT_TIMEOUT), "{why}");
        drop(unanswered);
        poll(&mut server).await;
    }
}
