//! A client of the control protocol, no larger than the tests need.

use std::{
    net::SocketAddr,
    pin::Pin,
    sync::atomic::{AtomicU32, Ordering},
    task::{self, Context},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Either, Full};
use hyper::{
    Request, StatusCode,
    body::{Frame, Incoming},
    client::conn::http2::SendRequest,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use lowroad_wire::{
    control::{
        Hostinfo, MapRequest, MapResponse, NetInfo, OverTlsPublicKey, RegionId, RegisterAuth,
        RegisterRequest, RegisterResponse,
    },
    framing::{Compression, MessageReader},
    key::{DiscoPrivate, MachinePrivate, NodePrivate},
    netmap::NetMap,
    noise::{Initiator, NoiseStream},
};
use serde::Serialize;
use time::OffsetDateTime;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

pub const VERSION: u16 = 130;
/// For what should come at once.
pub const SOON: Duration = Duration::from_secs(10);

static SEED: AtomicU32 = AtomicU32::new(1);

fn seed() -> [u8; 32] {
    let number = SEED.fetch_add(1, Ordering::Relaxed).to_le_bytes();
    std::array::from_fn(|at| number[at % 4])
}

type Sent = Either<Full<Bytes>, Never>;

/// A body that never comes.
pub struct Never;

impl hyper::body::Body for Never {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> task::Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        task::Poll::Pending
    }
}

pub struct Client {
    pub address: SocketAddr,
    pub machine: MachinePrivate,
    pub node: NodePrivate,
    pub disco: DiscoPrivate,
    pub hostinfo: Hostinfo,
    pub initiation: Vec<u8>,
    http: SendRequest<Sent>,
}

impl Client {
    pub async fn new(address: SocketAddr, hostname: &str) -> Self {
        let machine = MachinePrivate::from_random(seed());
        let hostinfo = Hostinfo {
            hostname: hostname.to_owned(),
            os: "linux".to_owned(),
            ..Hostinfo::default()
        };
        let (http, initiation) = open(address, &machine).await;
        Self {
            address,
            initiation,
            http,
            machine,
            node: NodePrivate::from_random(seed()),
            disco: DiscoPrivate::from_random(seed()),
            hostinfo,
        }
    }

    /// A client that is in, by auth key.
    pub async fn joined(address: SocketAddr, hostname: &str, key: &str) -> Self {
        let mut client = Self::new(address, hostname).await;
        let response = client.register(Some(key)).await.unwrap();
        assert!(response.machine_authorized, "{response:?}");
        client
    }

    pub async fn reconnect(&mut self, address: SocketAddr) {
        self.address = address;
        (self.http, self.initiation) = open(address, &self.machine).await;
    }

    /// Stays open as long as it is held.
    pub async fn another_channel(&self) -> impl Sized + use<> {
        open(self.address, &self.machine).await
    }

    pub fn new_node_key(&mut self) {
        self.node = NodePrivate::from_random(seed());
    }

    pub fn request(&self, auth_key: Option<&str>) -> RegisterRequest {
        RegisterRequest {
            version: VERSION,
            node_key: Some(self.node.public()),
            auth: auth_key.map(|key| RegisterAuth {
                auth_key: key.to_owned(),
            }),
            hostinfo: Some(self.hostinfo.clone()),
            ..RegisterRequest::default()
        }
    }

    pub async fn register(
        &mut self,
        auth_key: Option<&str>,
    ) -> Result<RegisterResponse, (StatusCode, String)> {
        let request = self.request(auth_key);
        self.send_register(&request).await
    }

    pub async fn send_register(
        &mut self,
        request: &RegisterRequest,
    ) -> Result<RegisterResponse, (StatusCode, String)> {
        let (status, bytes) = self.post("/machine/register", request).await;
        if status == StatusCode::OK {
            return Ok(serde_json::from_slice(&bytes).unwrap());
        }
        Err((status, String::from_utf8_lossy(&bytes).into_owned()))
    }

    pub async fn post(&mut self, path: &str, body: &impl Serialize) -> (StatusCode, Bytes) {
        self.post_bytes(path, serde_json::to_vec(body).unwrap())
            .await
    }

    pub async fn post_bytes(&mut self, path: &str, body: Vec<u8>) -> (StatusCode, Bytes) {
        let response = self.send(path, body).await;
        let status = response.status();
        (
            status,
            response.into_body().collect().await.unwrap().to_bytes(),
        )
    }

    /// A request through the channel that asks for something.
    pub async fn get(&mut self, path: &str) -> (StatusCode, Bytes) {
        self.http.ready().await.unwrap();
        let request = Request::get(format!("https://control{path}"));
        let body = Either::Left(Full::new(Bytes::new()));
        let sent = self.http.send_request(request.body(body).unwrap());
        let response = timeout(SOON, sent).await.unwrap().unwrap();
        let status = response.status();
        (
            status,
            response.into_body().collect().await.unwrap().to_bytes(),
        )
    }

    /// The request is sent when this returns; the answer is waited for by what it returns.
    pub async fn post_later(
        &mut self,
        path: &str,
        body: &RegisterRequest,
    ) -> impl Future<Output = (StatusCode, Bytes)> + use<> {
        let sent = self
            .send_later(path, serde_json::to_vec(body).unwrap())
            .await;
        async move {
            let response = sent.await.unwrap();
            let status = response.status();
            (
                status,
                response.into_body().collect().await.unwrap().to_bytes(),
            )
        }
    }

    /// The answer's body is left where it is.
    pub async fn post_unread(
        &mut self,
        path: &str,
        body: &impl Serialize,
    ) -> hyper::Response<Incoming> {
        self.send(path, serde_json::to_vec(body).unwrap()).await
    }

    /// Whether the channel still takes requests.
    pub async fn is_open(&mut self) -> bool {
        tokio::time::sleep(Duration::from_millis(10)).await;
        !self.http.is_closed()
    }

    /// Begins a request whose body never comes. Goes on as long as what it returns is held.
    pub async fn begin(mut self, path: &str) -> impl Sized + use<> {
        let sent = self.send_body(path, Either::Right(Never)).await;
        (self, sent)
    }

    async fn send_later(
        &mut self,
        path: &str,
        body: Vec<u8>,
    ) -> impl Future<Output = hyper::Result<hyper::Response<Incoming>>> + use<> {
        self.send_body(path, Either::Left(Full::new(Bytes::from(body))))
            .await
    }

    async fn send_body(
        &mut self,
        path: &str,
        body: Sent,
    ) -> impl Future<Output = hyper::Result<hyper::Response<Incoming>>> + use<> {
        self.http.ready().await.unwrap();
        let request = Request::post(format!("https://control{path}"))
            .body(body)
            .unwrap();
        self.http.send_request(request)
    }

    async fn send(&mut self, path: &str, body: Vec<u8>) -> hyper::Response<Incoming> {
        timeout(SOON, self.send_later(path, body).await)
            .await
            .unwrap()
            .unwrap()
    }

    pub fn map_request(&self) -> MapRequest {
        MapRequest {
            version: VERSION,
            node_key: Some(self.node.public()),
            disco_key: Some(self.disco.public()),
            hostinfo: Some(self.hostinfo.clone()),
            ..MapRequest::default()
        }
    }

    /// An update request, as after gathering endpoints.
    pub async fn update(&mut self, endpoints: &[&str], home: Option<u16>) {
        self.hostinfo.net_info = home.map(|region| NetInfo {
            preferred_derp: Some(RegionId(region)),
            ..NetInfo::default()
        });
        let endpoints = endpoints
            .iter()
            .map(|endpoint| endpoint.parse().unwrap())
            .collect();
        let request = MapRequest {
            omit_peers: true,
            endpoints,
            ..self.map_request()
        };
        let (status, _) = self.post("/machine/map", &request).await;
        assert_eq!(status, StatusCode::OK);
    }

    pub async fn poll(&mut self) -> Poll {
        self.poll_with(Compression::Zstd).await.unwrap()
    }

    pub async fn poll_with(&mut self, compression: Compression) -> Result<Poll, StatusCode> {
        let compress = if compression == Compression::Zstd {
            "zstd"
        } else {
            ""
        };
        let request = MapRequest {
            stream: true,
            keep_alive: true,
            compress: compress.to_owned(),
            ..self.map_request()
        };
        let response = self
            .send("/machine/map", serde_json::to_vec(&request).unwrap())
            .await;
        match response.status() {
            StatusCode::OK => Ok(Poll {
                body: response.into_body(),
                reader: MessageReader::new(compression),
                netmap: NetMap::default(),
                log: Vec::new(),
            }),
            status => Err(status),
        }
    }
}

/// A channel, and the initiation that began it, as anybody on the way sees it.
async fn open(address: SocketAddr, machine: &MachinePrivate) -> (SendRequest<Sent>, Vec<u8>) {
    let key = get(address, "/key?v=130").await;
    let key: OverTlsPublicKey =
        serde_json::from_str(key.split("\r\n\r\n").nth(1).unwrap()).unwrap();
    let (initiator, initiation) =
        Initiator::new(VERSION, machine, &key.public_key.unwrap(), seed()).unwrap();
    let stream = upgraded(address, &initiation).await;
    let (stream, challenge) = NoiseStream::connect(stream, initiator, &[]).await.unwrap();
    assert!(challenge.is_some());
    let (http, connection) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
        // That of the protocol; more would be taken without anybody reading.
        .initial_stream_window_size(65_535)
        .handshake(TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(connection);
    (http, initiation)
}

/// The connection after the server has answered the upgrade.
pub async fn upgraded(address: SocketAddr, initiation: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let request = format!(
        "POST /ts2021 HTTP/1.1\r\nHost: x\r\nUpgrade: tailscale-control-protocol\r\nConnection: upgrade\r\n\
         X-Tailscale-Handshake: {}\r\nContent-Length: 0\r\n\r\n",
        STANDARD.encode(initiation)
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    assert!(
        head.starts_with(b"HTTP/1.1 101 "),
        "{}",
        String::from_utf8_lossy(&head)
    );
    stream
}

/// Status line, headers and body of a plain request.
pub async fn get(address: SocketAddr, path: &str) -> String {
    raw(
        address,
        &format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"),
    )
    .await
}

pub async fn raw(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    let _ = timeout(SOON, stream.read_to_string(&mut answer))
        .await
        .expect("an answer, and the end of the connection");
    answer
}

/// A running poll, and the netmap by what it has brought.
pub struct Poll {
    body: Incoming,
    reader: MessageReader,
    pub netmap: NetMap,
    /// Every message so far.
    pub log: Vec<MapResponse>,
}

impl Poll {
    /// Takes in the next message; `false` if the poll has ended.
    pub async fn step(&mut self) -> bool {
        loop {
            if let Some(json) = self.reader.next_message().unwrap() {
                let (message, malformed) = MapResponse::parse(&json).unwrap();
                assert!(malformed.is_empty(), "{malformed:?}");
                self.netmap
                    .apply(message.clone(), OffsetDateTime::now_utc());
                self.log.push(message);
                return true;
            }
            match self.body.frame().await {
                Some(Ok(frame)) => self.reader.push(&frame.into_data().unwrap()),
                Some(Err(_)) | None => return false,
            }
        }
    }

    /// Waits until the netmap is as `is` wants it.
    pub async fn until(&mut self, what: &str, is: impl Fn(&NetMap) -> bool) {
        self.until_within(SOON, what, is).await;
    }

    pub async fn until_within(
        &mut self,
        limit: Duration,
        what: &str,
        is: impl Fn(&NetMap) -> bool,
    ) {
        let wait = async {
            while self.log.is_empty() || !is(&self.netmap) {
                assert!(self.step().await, "the poll ended before: {what}");
            }
        };
        if timeout(limit, wait).await.is_err() {
            let names: Vec<_> = self.netmap.peers.values().map(|node| &node.name).collect();
            panic!(
                "not within {limit:?}: {what}; the last message was {:#?}; peers are {names:?}",
                self.log.last()
            );
        }
    }

    /// Waits until the poll ends.
    pub async fn end(mut self) {
        timeout(SOON, async { while self.step().await {} })
            .await
            .expect("the poll should have ended");
    }

    pub fn peer(&self, name: &str) -> Option<&lowroad_wire::control::Node> {
        peer(&self.netmap, name)
    }
}

pub fn peer<'a>(netmap: &'a NetMap, name: &str) -> Option<&'a lowroad_wire::control::Node> {
    netmap
        .peers
        .values()
        .map(|node| &**node)
        .find(|node| node.name == format!("{name}.tail.test."))
}
