//! A control server that means harm, from the agent's first byte to it on.

mod poll;

use std::{
    cell::RefCell,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::BytesMut;
use lowroad_agent::{
    control::{Control, ControlEvent, ControlOptions, Facts},
    tls::{TlsConfig, Verification},
};
use lowroad_wire::{
    framing::{self, Compression},
    key::{ChallengePublic, DiscoPrivate, MachinePrivate, NodePrivate},
    noise::{self, NoiseStream},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    runtime::Runtime,
    time::timeout,
};

/// Who is left waiting for longer after the server has hung up hangs.
const PATIENCE: Duration = Duration::from_secs(20);
/// What an event says beside the server's own words: prose, a key, an address.
const PROSE: usize = 1000;
/// Of plain text in one Noise record.
const RECORD: usize = 4000;

/// What the words of the input stand for; all before it is as it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// The answer to `GET /key`.
    Key,
    /// The answer to the request for an upgrade.
    Upgrade,
    /// The answer to the Noise initiation.
    Handshake,
    /// What is said inside the channel: the early payload, HTTP/2.
    Channel,
    /// The messages of the map stream, a line each.
    Poll,
}

struct Scene {
    runtime: Runtime,
    listener: TcpListener,
    tls: TlsConfig,
}

thread_local!(static SCENE: RefCell<Scene> = RefCell::new(Scene::start()));

impl Scene {
    fn start() -> Self {
        let runtime = super::runtime();
        Self {
            listener: runtime
                .block_on(TcpListener::bind("127.0.0.1:0"))
                .expect("a free port"),
            tls: TlsConfig::system().expect("TLS"),
            runtime,
        }
    }
}

/// The agent's control client at a server that behaves up to the stage that the first byte names, says the rest, and hangs up: the
/// client says why it is without a connection, and has not talked much.
pub fn control_client(input: &[u8]) {
    let (stage, words) = match input.split_first() {
        Some((first, words)) => (Stage::of(*first), words),
        None => (Stage::Key, &[][..]),
    };
    SCENE.with_borrow_mut(|scene| {
        let Scene {
            runtime,
            listener,
            tls,
        } = scene;
        runtime.block_on(async {
            let port = listener.local_addr().expect("it listens").port();
            let (control, mut events) = Control::start(options(port, tls), Facts::default());
            let server = Server {
                listener,
                stage,
                words,
                heard: Arc::default(),
            };
            let ended = async {
                let mut told = 0;
                loop {
                    told += match events.recv().await.expect("it says why it ends") {
                        ControlEvent::Lost { why, .. } | ControlEvent::Failed(why) => {
                            break told + why.to_string().len();
                        }
                        ControlEvent::Visit(url) => url.len(),
                        ControlEvent::NodeKey { kept, .. } => {
                            kept.send(()).expect("the client waits for it");
                            0
                        }
                        _ => 0,
                    }
                }
            };
            let both = async {
                tokio::select! {
                    told = ended => told,
                    () = server.run() => unreachable!("it serves for ever"),
                }
            };
            let told = timeout(PATIENCE, both).await;
            let told = told.expect("a server that hangs up is left");
            drop(control);
            let most = PROSE + 4 * input.len();
            assert!(told <= most, "{told} bytes told of {}", input.len());
            let heard = server.heard.load(Ordering::Relaxed);
            let most = 8000 + 8 * input.len();
            assert!(heard <= most, "{heard} bytes said to {}", input.len());
        });
    });
}

impl Stage {
    fn of(byte: u8) -> Self {
        match byte % 5 {
            0 => Self::Key,
            1 => Self::Upgrade,
            2 => Self::Handshake,
            3 => Self::Channel,
            _ => Self::Poll,
        }
    }
}

fn options(port: u16, tls: &TlsConfig) -> ControlOptions {
    ControlOptions {
        url: format!("http://127.0.0.1:{port}"),
        machine: MachinePrivate::from_random([1; 32]),
        node: Some(NodePrivate::from_random([2; 32])),
        old_node: None,
        accepted: true,
        left: vec![NodePrivate::from_random([4; 32])],
        disco: DiscoPrivate::from_random([3; 32]).public(),
        auth_key: None,
        force_reauth: false,
        known_server: None,
        fwmark: 0,
        tls: tls.client(&Verification::Roots).expect("TLS"),
    }
}

struct Server<'a> {
    listener: &'a TcpListener,
    stage: Stage,
    words: &'a [u8],
    /// Bytes that the client said.
    heard: Arc<AtomicUsize>,
}

impl Server<'_> {
    async fn run(&self) {
        loop {
            let (stream, _) = self.listener.accept().await.expect("a connection");
            self.serve(stream).await;
        }
    }

    /// One connection, to its end.
    async fn serve(&self, mut stream: TcpStream) {
        let head = head(&mut stream).await;
        self.heard.fetch_add(head.len(), Ordering::Relaxed);
        let answer = match (head.starts_with(b"GET /key"), self.stage) {
            (true, Stage::Key) => self.words.to_vec(),
            (true, _) => key_answer(),
            (false, Stage::Key) => Vec::new(),
            (false, Stage::Upgrade) => self.words.to_vec(),
            (false, Stage::Handshake) => [UPGRADED, self.words].concat(),
            (false, Stage::Channel) => channel_answer(&head, self.words),
            (false, Stage::Poll) => match accept(&head) {
                Some((answer, channel)) => {
                    let _ = stream.write_all(&answer).await;
                    return poll::serve(self, NoiseStream::new(stream, channel, &[])).await;
                }
                None => Vec::new(),
            },
        };
        let _ = stream.write_all(&answer).await;
        let _ = stream.shutdown().await;
        let mut said = Vec::new();
        let _ = stream.take(1 << 20).read_to_end(&mut said).await;
        self.heard.fetch_add(said.len(), Ordering::Relaxed);
    }
}

/// The head of a request, or as much of it as comes.
async fn head(stream: &mut TcpStream) -> Vec<u8> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => break,
        }
    }
    head
}

const UPGRADED: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: tailscale-control-protocol\r\nConnection: upgrade\r\n\r\n";

fn key_answer() -> Vec<u8> {
    let key = serde_json::json!({"publicKey": server_key().public()}).to_string();
    let length = key.len();
    format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{key}").into_bytes()
}

fn server_key() -> MachinePrivate {
    MachinePrivate::from_random([7; 32])
}

/// The right answer to the request for an upgrade, and the words sealed after it.
fn channel_answer(head: &[u8], words: &[u8]) -> Vec<u8> {
    let Some((mut answer, mut channel)) = upgrade(head) else {
        return Vec::new();
    };
    answer.extend(sealed(&mut channel, words));
    answer
}

/// The same up to what comes before HTTP/2.
fn accept(head: &[u8]) -> Option<(Vec<u8>, noise::Channel)> {
    let (mut answer, mut channel) = upgrade(head)?;
    answer.extend(sealed(&mut channel, &early()));
    Some((answer, channel))
}

/// The right answer to the initiation in the request's head. A ping that is answered on a connection of its own carries none.
fn upgrade(head: &[u8]) -> Option<(Vec<u8>, noise::Channel)> {
    let lower = head.to_ascii_lowercase();
    let at = lower
        .windows(HANDSHAKE.len())
        .position(|window| window == HANDSHAKE)?;
    let line = head[at + HANDSHAKE.len()..]
        .split(|byte| *byte == b'\r')
        .next()?;
    let initiation = STANDARD.decode(line.trim_ascii()).ok()?;
    let (_, response, channel) =
        noise::respond(&initiation, &server_key(), [9; 32]).expect("a right initiation");
    Some(([UPGRADED, &response].concat(), channel))
}

fn sealed(channel: &mut noise::Channel, words: &[u8]) -> BytesMut {
    let mut records = BytesMut::new();
    for words in words.chunks(RECORD) {
        channel.seal(words, &mut records).expect("short enough");
    }
    records
}

fn early() -> Vec<u8> {
    noise::early_payload(&ChallengePublic::from_bytes([1; 32]))
}

const HANDSHAKE: &[u8] = b"x-tailscale-handshake:";

/// An HTTP/2 frame.
fn h2(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = payload.len() as u32;
    let mut frame = length.to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// `:status: 200` and a body; `last` ends the stream.
fn h2_answer(stream: u32, last: bool, body: &[u8]) -> Vec<u8> {
    let headers = h2(1, 4, stream, &[0x88]);
    [headers, h2(0, u8::from(last), stream, body)].concat()
}

pub fn control_client_seeds() -> Vec<Vec<u8>> {
    let at = |stage: u8, words: &[u8]| [&[stage][..], words].concat();
    let settings = [h2(4, 0, 0, &[]), h2(4, 1, 0, &[])].concat();
    let begin = [early(), settings].concat();
    let inside = |words: &[u8]| at(3, &[&begin[..], words].concat());
    let accepted = h2_answer(1, true, br#"{"MachineAuthorized":true,"User":{"ID":1}}"#);
    let message = framing::encode(br#"{"KeepAlive":true}"#, Compression::Zstd).expect("short");
    let polled = h2_answer(3, false, &message);
    let late = [
        &b"HTTP/1.1 100 Continue\r\n\r\n"[..],
        &key_answer(),
        b"HTTP/1.1 200 OK\r\n\r\n",
    ];
    let mut seeds = vec![
        at(0, &key_answer()),
        at(0, &late.concat()),
        at(0, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{\"pub\r\nffffffffffffffff\r\n"),
        at(0, b"HTTP/1.1 200 OK\r\n\r\n{\"publicKey\":\"mkey:00\",\"legacyPublicKey\":\"mkey:\"}"),
        at(0, b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno"),
        at(0, b"HTTP/1.1 503 Busy\r\nRetry-After: 1\r\n\r\n"),
        at(0, b"HTTP/1.1 301 Moved\r\nLocation: http://127.0.0.1:1/key\r\n\r\n"),
        at(0, UPGRADED),
        at(0, b"\x15\x03\x01\x00\x02\x02\x46"),
        at(0, &[b'a'; 3000]),
        at(1, UPGRADED),
        at(1, b"HTTP/1.1 400 Bad Request\r\nContent-Length: 3\r\n\r\nbad"),
        at(1, b"HTTP/1.1 500 Oops\r\n\r\n\x1b[2Jwhy"),
        at(1, b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n"),
        at(2, &noise::error_frame("no")),
        at(2, &[&[2, 0, 48][..], &[7; 48]].concat()),
        at(2, &[2, 0xff, 0xff]),
        at(3, b"PRI"),
        inside(&[]),
        inside(&h2(7, 0, 0, &[0, 0, 0, 0, 0, 0, 0, 11, b'c', b'a', b'l', b'm'])),
        inside(&h2(4, 0, 0, &[0, 5, 0xff, 0xff, 0xff, 0xff])),
        inside(&h2_answer(1, true, br#"{"Error":"no such key"}"#)),
        inside(&h2_answer(1, true, br#"{"AuthURL":"http://x/a"}"#)),
        inside(&accepted),
        inside(&[accepted, polled].concat()),
    ];
    seeds.extend(poll::seeds().map(|lines| at(4, lines.as_bytes())));
    seeds
}
