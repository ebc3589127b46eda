//! A client of the control protocol with keys of its own: how the hostile peer gets into the tailnet.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, Response, StatusCode, body::Incoming, client::conn::http2::SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use lowroad_wire::{
    control::{
        Hostinfo, MapRequest, MapResponse, NetInfo, OverTlsPublicKey, RegionId, RegisterAuth,
        RegisterRequest, RegisterResponse,
    },
    framing::{Compression, MessageReader},
    key::{DiscoPrivate, MachinePrivate, MachinePublic, NodePrivate},
    netmap::NetMap,
    noise::{Initiator, NoiseStream},
};
use serde_json::to_vec;
use time::OffsetDateTime;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

pub const VERSION: u16 = 130;

pub struct Member {
    pub server: SocketAddr,
    pub machine: MachinePrivate,
    pub node: NodePrivate,
    pub disco: DiscoPrivate,
    pub home: u16,
    /// What began its channel, as anybody on the way sees it.
    pub initiation: Vec<u8>,
    http: SendRequest<Full<Bytes>>,
}

impl Member {
    /// The same keys for the same seed: every attack comes from the same member.
    pub async fn connect(server: SocketAddr, seed: [u8; 32]) -> Result<Self> {
        let machine = MachinePrivate::from_random(seed);
        let (http, initiation) = open(server, &machine, 65_535).await?;
        Ok(Self {
            server,
            initiation,
            http,
            machine,
            node: NodePrivate::from_random(seed.map(|byte| byte ^ 1)),
            disco: DiscoPrivate::from_random(seed.map(|byte| byte ^ 2)),
            home: 999,
        })
    }

    /// Another channel of the same machine, whose streams have this window at first.
    pub async fn channel(&self, window: u32) -> Result<SendRequest<Full<Bytes>>> {
        open(self.server, &self.machine, window)
            .await
            .map(|(http, _)| http)
    }

    /// The answer, on the member's first channel.
    pub async fn ask(&mut self, path: &str, body: Vec<u8>) -> Result<Response<Incoming>> {
        post(&mut self.http, path, body).await
    }

    /// Whether the server has ended that channel.
    pub fn is_closed(&self) -> bool {
        self.http.is_closed()
    }

    pub fn hostinfo(&self, name: &str) -> Hostinfo {
        Hostinfo {
            hostname: name.to_owned(),
            os: "linux".to_owned(),
            net_info: Some(NetInfo {
                preferred_derp: Some(RegionId(self.home)),
                ..NetInfo::default()
            }),
            ..Hostinfo::default()
        }
    }

    pub fn register_request(&self, name: &str, auth_key: Option<&str>) -> RegisterRequest {
        RegisterRequest {
            version: VERSION,
            node_key: Some(self.node.public()),
            auth: auth_key.map(|key| RegisterAuth {
                auth_key: key.to_owned(),
            }),
            hostinfo: Some(self.hostinfo(name)),
            ..RegisterRequest::default()
        }
    }

    pub async fn join(&mut self, name: &str, auth_key: &str) -> Result<()> {
        let request = self.register_request(name, Some(auth_key));
        let answer = self.ask("/machine/register", to_vec(&request)?).await?;
        let (status, body) = whole(answer).await?;
        ensure!(status == StatusCode::OK, "{status}: {body:?}");
        let answer: RegisterResponse = serde_json::from_slice(&body)?;
        ensure!(answer.machine_authorized, "not let in: {answer:?}");
        Ok(())
    }

    pub fn map_request(&self, name: &str, endpoints: &[SocketAddr]) -> MapRequest {
        MapRequest {
            version: VERSION,
            node_key: Some(self.node.public()),
            disco_key: Some(self.disco.public()),
            hostinfo: Some(self.hostinfo(name)),
            endpoints: endpoints.to_vec(),
            ..MapRequest::default()
        }
    }

    /// Begins to poll; goes on as long as the poll is held.
    pub async fn poll(&mut self, name: &str, endpoints: &[SocketAddr]) -> Result<Poll> {
        let request = MapRequest {
            stream: true,
            keep_alive: true,
            compress: "zstd".to_owned(),
            ..self.map_request(name, endpoints)
        };
        let answer = self.ask("/machine/map", to_vec(&request)?).await?;
        ensure!(answer.status() == StatusCode::OK, "{}", answer.status());
        Ok(Poll {
            body: answer.into_body(),
            reader: MessageReader::new(Compression::Zstd),
            netmap: NetMap::default(),
        })
    }
}

pub struct Poll {
    body: Incoming,
    reader: MessageReader,
    pub netmap: NetMap,
}

impl Poll {
    /// Takes in messages until `found` finds what it wants.
    pub async fn until<T>(&mut self, mut found: impl FnMut(&NetMap) -> Option<T>) -> Result<T> {
        loop {
            while let Some(json) = self.reader.next_message()? {
                let (message, _) = MapResponse::parse(&json)?;
                self.netmap.apply(message, OffsetDateTime::now_utc());
                if let Some(found) = found(&self.netmap) {
                    return Ok(found);
                }
            }
            let frame = self.body.frame().await.context("the poll ended")??;
            if let Ok(data) = frame.into_data() {
                self.reader.push(&data);
            }
        }
    }
}

pub async fn post(
    http: &mut SendRequest<Full<Bytes>>,
    path: &str,
    body: Vec<u8>,
) -> Result<Response<Incoming>> {
    http.ready().await?;
    let request = Request::post(format!("https://control{path}")).body(Full::from(body))?;
    Ok(http.send_request(request).await?)
}

pub async fn whole(answer: Response<Incoming>) -> Result<(StatusCode, Bytes)> {
    let status = answer.status();
    Ok((status, answer.into_body().collect().await?.to_bytes()))
}

/// The server's key, as every client asks for it first.
pub async fn control_key(server: SocketAddr) -> Result<MachinePublic> {
    let mut stream = TcpStream::connect(server).await?;
    let request = "GET /key?v=130 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let body = answer.split("\r\n\r\n").nth(1).context("no body")?;
    let keys: OverTlsPublicKey = serde_json::from_str(body)?;
    keys.public_key.context("the server has no key")
}

/// The upgrade to the Noise channel, up to where the server has answered it.
pub async fn upgraded(server: SocketAddr, initiation: &[u8]) -> Result<TcpStream> {
    let mut stream = TcpStream::connect(server).await?;
    stream.set_nodelay(true)?;
    let request = format!(
        "POST /ts2021 HTTP/1.1\r\nHost: x\r\nUpgrade: tailscale-control-protocol\r\nConnection: upgrade\r\n\
         X-Tailscale-Handshake: {}\r\nContent-Length: 0\r\n\r\n",
        STANDARD.encode(initiation)
    );
    stream.write_all(request.as_bytes()).await?;
    let head = head(&mut stream).await?;
    ensure!(head.starts_with("HTTP/1.1 101 "), "{head}");
    Ok(stream)
}

/// An HTTP head, byte by byte, so that nothing after it is taken.
pub async fn head(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") && head.len() < 16 << 10 {
        head.push(stream.read_u8().await?);
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}

async fn open(
    server: SocketAddr,
    machine: &MachinePrivate,
    window: u32,
) -> Result<(SendRequest<Full<Bytes>>, Vec<u8>)> {
    let key = control_key(server).await?;
    let (initiator, initiation) = Initiator::new(VERSION, machine, &key, rand::random())?;
    let stream = upgraded(server, &initiation).await?;
    let (stream, _) = NoiseStream::connect(stream, initiator, &[]).await?;
    let (http, connection) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
        .initial_stream_window_size(window)
        .initial_connection_window_size(65_535)
        .handshake(TokioIo::new(stream))
        .await?;
    tokio::spawn(connection);
    Ok((http, initiation))
}
