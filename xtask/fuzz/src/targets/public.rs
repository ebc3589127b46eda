//! The coordinator's public port, as a server that runs: what strangers send, and what a machine asks on its channel.

use std::{cell::RefCell, net::SocketAddr, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, StatusCode, client::conn::http2::SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use lowroad_coordinator::{
    admin::{self, api::Ask},
    args::{Serve, StunAddr},
    config::Config,
    server::Server,
};
use lowroad_wire::{
    control::{Hostinfo, MapRequest, RegisterAuth, RegisterRequest},
    key::{MachinePrivate, MachinePublic, NodePrivate},
    noise::{Initiator, NoiseStream},
};
use serde::Serialize;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    runtime::Runtime,
    time::timeout,
};

use super::coordinator::folder;

const VERSION: u16 = 130;
/// What isn't there by then doesn't come.
const PATIENCE: Duration = Duration::from_secs(20);
/// Of an answer; a poll's first message is shorter.
const MOST: usize = 256 << 10;

/// A server of this thread, with its runtime; both end with the thread.
struct Scene {
    runtime: Runtime,
    server: Server,
    control: MachinePublic,
    auth_key: String,
    /// The channel of the machine that has a node.
    channel: Option<SendRequest<Full<Bytes>>>,
}

thread_local!(static SCENE: RefCell<Scene> = RefCell::new(Scene::start()));

impl Scene {
    fn start() -> Self {
        let runtime = super::runtime();
        let flags = Serve {
            listen: Some(SocketAddr::from(([127, 0, 0, 1], 0))),
            url: Some("http://127.0.0.1:1".to_owned()),
            stun: Some(StunAddr::Off),
            base_domain: Some("tail.internal".to_owned()),
            ..Serve::default()
        };
        let state_dir = folder("server");
        let (server, auth_key) = runtime.block_on(async {
            let config = Config::load(&state_dir, &flags).expect("flags that fit");
            let server = Server::start(config).await.expect("a free port");
            let key = serde_json::json!({"command": "auth-keys-create", "user": "ann", "reusable": true, "ephemeral": false,
                "expiry_seconds": 1_000_000, "tags": []});
            let ask: Ask = serde_json::from_value(key).expect("a request");
            let made = admin::client::ask(&state_dir, &ask).await.expect("a key");
            (server, made["key"].as_str().expect("its text").to_owned())
        });
        let control = server.hub.keys.control.public();
        Self {
            runtime,
            server,
            control,
            auth_key,
            channel: None,
        }
    }
}

/// Connections of strangers, one after another, with a zero byte between: `METHOD path`, lines of headers, an empty line and the
/// body; after `raw `: bytes as they are, TLS for instance.
pub fn coordinator_http(input: &[u8]) {
    SCENE.with_borrow_mut(|scene| {
        let address = scene.server.address;
        scene.runtime.block_on(async {
            for request in input.split(|byte| *byte == 0).take(8) {
                // What begins like TLS is that, whatever follows.
                let tls = (request.first() == Some(&0x16)).then_some(request);
                let raw = request.strip_prefix(b"raw ").or(tls);
                let bytes = raw.map_or_else(|| http(request), <[u8]>::to_vec);
                let answer = converse(address, &bytes, raw.is_some()).await;
                let tls_alert = answer.first() == Some(&0x15);
                assert!(
                    raw.is_some() && (answer.is_empty() || tls_alert)
                        || answer.starts_with(b"HTTP/1."),
                    "{} bytes that are no answer to {:?}",
                    answer.len(),
                    String::from_utf8_lossy(&bytes)
                );
                assert!(
                    answer.get(8..11) != Some(b" 50") || answer.get(11) == Some(&b'1'),
                    "a stranger makes the server fail"
                );
            }
            let health = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n";
            let answer = converse(address, health, false).await;
            assert!(answer.starts_with(b"HTTP/1.1 200 "), "it serves others");
        });
    });
}

/// What the server says until it closes, or until we do: when it has begun to answer, and, for `at_once`, before that.
async fn converse(address: SocketAddr, bytes: &[u8], at_once: bool) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).await.expect("it listens");
    let _ = stream.write_all(bytes).await;
    let mut answer = Vec::new();
    let talk = async {
        if !at_once {
            let _ = stream.read_buf(&mut answer).await;
        }
        // An upgraded connection would stay.
        let _ = stream.shutdown().await;
        let mut rest = stream.take(MOST as u64);
        let _ = rest.read_to_end(&mut answer).await;
    };
    assert!(timeout(PATIENCE, talk).await.is_ok(), "it never ends");
    answer
}

fn http(request: &[u8]) -> Vec<u8> {
    let cut = request.windows(2).position(|window| window == b"\n\n");
    let (head, body) = cut.map_or((request, &[][..]), |at| {
        (&request[..at], &request[at + 2..])
    });
    let mut lines = head.split(|byte| *byte == b'\n');
    let mut bytes = lines.next().unwrap_or_default().to_vec();
    let length = body.len();
    bytes.extend(format!(" HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n").into_bytes());
    // Lengths and encodings that don't fit leave the server waiting for more; `raw` says how that ends.
    let misleading = |line: &[u8]| {
        let line = String::from_utf8_lossy(line).to_lowercase();
        line.contains("content-length")
            || line.contains("transfer-encoding")
            || line.contains("expect")
    };
    for line in lines.filter(|line| !misleading(line)) {
        bytes.extend_from_slice(line);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(b"\r\n");
    bytes.extend_from_slice(body);
    bytes
}

pub fn coordinator_http_seeds() -> Vec<Vec<u8>> {
    let node = NodePrivate::from_random([7; 32]).public();
    let machine = MachinePrivate::from_random([8; 32]);
    let (_, initiation) =
        Initiator::new(VERSION, &machine, &machine.public(), [9; 32]).expect("good keys");
    let requests = [
        "GET /key?v=130".to_owned(),
        "GET /\nUser-Agent: Mozilla".to_owned(),
        "GET /generate_204\nX-Tailscale-Challenge: ts_abc-9".to_owned(),
        "GET /register/hskey-abc%20<b>".to_owned(),
        format!("POST /verify\n\n{{\"NodePublic\":\"{node}\",\"Source\":\"198.51.100.7\"}}"),
        "POST /verify\n\n{\"NodePublic\":\"nodekey:zz\"}".to_owned(),
        format!(
            "POST /ts2021\nUpgrade: tailscale-control-protocol\nConnection: upgrade\nX-Tailscale-Handshake: {}",
            STANDARD.encode(initiation)
        ),
        "GET /derp\nUpgrade: DERP\nConnection: Upgrade".to_owned(),
        "GET /derp/probe\nOrigin: x".to_owned(),
        "HEAD /health".to_owned(),
        "POST /machine/ping-response".to_owned(),
        "raw GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nffffffff\r\n".to_owned(),
        "raw PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(),
    ];
    let mut seeds: Vec<Vec<u8>> = requests
        .iter()
        .map(|text| text.clone().into_bytes())
        .collect();
    seeds.push(requests.join("\0").into_bytes());
    // The beginning of a TLS 1.3 handshake.
    seeds.push(
        [
            &b"raw \x16\x03\x01\x00\x2d\x01\x00\x00\x29\x03\x03"[..],
            &[7; 32],
            b"\x00\x00\x02\x13\x01\x01\x00",
        ]
        .concat(),
    );
    seeds
}

/// What a machine with a node asks on its channel, with a zero byte between: `path`, a line feed and the body.
pub fn coordinator_channel(input: &[u8]) {
    SCENE.with_borrow_mut(|scene| {
        let Scene {
            runtime,
            server,
            control,
            auth_key,
            channel,
        } = scene;
        runtime.block_on(async {
            let machine = MachinePrivate::from_random([8; 32]);
            let open = match channel.take() {
                Some(open) if !open.is_closed() => open,
                _ => open_channel(server.address, &machine, control).await,
            };
            let http = channel.insert(open);
            // Inputs before may have expired or replaced its key.
            let (status, _) = post(http, "/machine/register", json(&register(auth_key))).await;
            assert_eq!(status, StatusCode::OK, "a good key lets it in");
            for request in input.split(|byte| *byte == 0).take(8) {
                let cut = request
                    .iter()
                    .position(|byte| *byte == b'\n')
                    .unwrap_or(request.len());
                let Ok(path) = std::str::from_utf8(&request[..cut]) else {
                    continue;
                };
                let body = request.get(cut + 1..).unwrap_or_default();
                let (status, _) = post(http, path, Bytes::copy_from_slice(body)).await;
                assert!(
                    !status.is_server_error() || status == StatusCode::NOT_IMPLEMENTED,
                    "{status} for {path}"
                );
            }
        });
    });
}

fn json(value: &impl Serialize) -> Bytes {
    serde_json::to_vec(value).expect("plain").into()
}

fn node() -> NodePrivate {
    NodePrivate::from_random([7; 32])
}

fn register(auth_key: &str) -> RegisterRequest {
    RegisterRequest {
        version: VERSION,
        node_key: Some(node().public()),
        auth: Some(RegisterAuth {
            auth_key: auth_key.to_owned(),
        }),
        hostinfo: Some(Hostinfo {
            hostname: "gate".to_owned(),
            ..Hostinfo::default()
        }),
        ..RegisterRequest::default()
    }
}

async fn open_channel(
    address: SocketAddr,
    machine: &MachinePrivate,
    control: &MachinePublic,
) -> SendRequest<Full<Bytes>> {
    let (initiator, initiation) =
        Initiator::new(VERSION, machine, control, [9; 32]).expect("good keys");
    let mut stream = TcpStream::connect(address).await.expect("it listens");
    let request = format!(
        "POST /ts2021 HTTP/1.1\r\nHost: x\r\nUpgrade: tailscale-control-protocol\r\nConnection: upgrade\r\n\
         X-Tailscale-Handshake: {}\r\nContent-Length: 0\r\n\r\n",
        STANDARD.encode(initiation)
    );
    stream
        .write_all(request.as_bytes())
        .await
        .expect("it reads");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.expect("it answers"));
    }
    let connect = NoiseStream::connect(stream, initiator, &[]);
    let (stream, _) = connect.await.expect("a good handshake");
    let (http, connection) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
        .handshake(TokioIo::new(stream))
        .await
        .expect("HTTP/2");
    tokio::spawn(connection);
    http
}

/// Status, and the answer as far as its first piece: a poll's goes on. What cannot be asked is answered like a bad request.
async fn post(http: &mut SendRequest<Full<Bytes>>, path: &str, body: Bytes) -> (StatusCode, Bytes) {
    let asked = async {
        http.ready().await.expect("the channel stays");
        let Ok(request) = Request::post(format!("https://control{path}")).body(Full::new(body))
        else {
            return (StatusCode::BAD_REQUEST, Bytes::new());
        };
        let mut answer = http.send_request(request).await.expect("an answer");
        let status = answer.status();
        let piece = answer.body_mut().frame().await;
        let bytes = piece.and_then(|piece| piece.expect("whole").into_data().ok());
        let bytes = bytes.unwrap_or_default();
        assert!(bytes.len() <= MOST, "{} bytes", bytes.len());
        (status, bytes)
    };
    timeout(PATIENCE, asked).await.expect("an answer in time")
}

pub fn coordinator_channel_seeds() -> Vec<Vec<u8>> {
    let with = |path: &str, body: &[u8]| [path.as_bytes(), b"\n", body].concat();
    let map = MapRequest {
        version: VERSION,
        node_key: Some(node().public()),
        hostinfo: Some(Hostinfo::default()),
        ..MapRequest::default()
    };
    let poll = MapRequest {
        stream: true,
        keep_alive: true,
        compress: "zstd".to_owned(),
        ..map.clone()
    };
    let update = MapRequest {
        omit_peers: true,
        endpoints: vec!["192.0.2.1:41641".parse().expect("an address")],
        ..map.clone()
    };
    let old = MapRequest {
        version: 112,
        ..map.clone()
    };
    let parts = format!(
        r#"{{"Version":130,"Hostinfo":{{"TPM":[{}]}}}}"#,
        vec!["{}"; 700].join(",")
    );
    let mut seeds = vec![
        with("/machine/map", &json(&map)),
        with("/machine/map", &json(&poll)),
        with("/machine/map", &json(&update)),
        with("/machine/map", &json(&old)),
        with(
            "/machine/map",
            b"{\"Version\":130,\"NodeKey\":\"nodekey:zz\"}",
        ),
        with("/machine/register", &json(&register("wrong"))),
        with(
            "/machine/register",
            b"{\"Version\":130,\"Followup\":\"http://127.0.0.1:1/register/x\"}",
        ),
        with("/machine/register", parts.as_bytes()),
        with("/machine/set-dns?x", b""),
        with("*", b"{}"),
    ];
    seeds.push(seeds[..4].join(&0));
    seeds
}
