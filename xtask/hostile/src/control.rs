//! A control server that means harm. It lets everybody in and makes them each other's peers, so that there is something to
//! lose; a file whose text is the mode, `mode` in `dir=`, says what it does beside. `met-MODE` there has a line for each time that it did it: to whom.

mod messages;

use std::{
    convert::Infallible,
    fs::OpenOptions,
    io::Write as _,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, Result};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    Request, Response, StatusCode,
    body::{Frame, Incoming},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use lowroad_wire::{
    framing::{self, Compression},
    key::{ChallengePublic, MachinePrivate, MachinePublic},
    noise::{NoiseStream, early_payload, respond},
};
use serde_json::{Value, json};
use tokio::{
    io::AsyncWriteExt as _,
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::{sleep, timeout},
};

use crate::Args;

type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;

/// How often the mode is looked at.
const LOOK: Duration = Duration::from_millis(50);
/// For what never ends, but for the scenario.
const BURST: usize = 64 << 20;

/// What the server knows.
pub struct Tailnet {
    dir: PathBuf,
    key: MachinePrivate,
    /// Of the only relay.
    relay: SocketAddr,
    nodes: Mutex<Vec<Known>>,
}

#[derive(Clone)]
pub struct Known {
    pub machine: MachinePublic,
    /// As the node's last request said it.
    pub request: Value,
}

impl Tailnet {
    fn nodes(&self) -> MutexGuard<'_, Vec<Known>> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn met(&self, how: &str, whom: &str) -> Result<()> {
        let path = self.dir.join(format!("met-{how}"));
        let mut file = OpenOptions::new().append(true).create(true).open(path)?;
        Ok(file.write_all(format!("{whom}\n").as_bytes())?)
    }
}

pub async fn run(args: &Args) -> Result<()> {
    let address: SocketAddr = args.get("listen")?;
    let tailnet = Arc::new(Tailnet {
        dir: PathBuf::from(args.text("dir")?),
        key: MachinePrivate::from_random([0x99; 32]),
        relay: args.get("relay")?,
        nodes: Mutex::default(),
    });
    let listener = TcpListener::bind(address).await?;
    loop {
        let (stream, from) = listener.accept().await?;
        let tailnet = tailnet.clone();
        tokio::spawn(async move {
            // How it ends is the victim's affair.
            let _ = connection(stream, from.ip().to_string(), tailnet).await;
        });
    }
}

fn mode(dir: &Path) -> String {
    std::fs::read_to_string(dir.join("mode"))
        .map(|text| text.trim().to_owned())
        .unwrap_or_default()
}

async fn connection(mut stream: TcpStream, whom: String, tailnet: Arc<Tailnet>) -> Result<()> {
    stream.set_nodelay(true)?;
    let how = mode(&tailnet.dir);
    match how.as_str() {
        "close" => return tailnet.met(&how, &whom),
        "silent" => {
            tailnet.met(&how, &whom)?;
            while mode(&tailnet.dir) == how {
                sleep(LOOK).await;
            }
            return Ok(());
        }
        "http-garbage" => {
            let noise: Vec<u8> = (0..1 << 20).map(|_| rand::random()).collect();
            tailnet.met(&how, &whom)?;
            return Ok(stream.write_all(&noise).await?);
        }
        "endless-headers" => {
            stream.write_all(b"HTTP/1.1 200 OK\r\n").await?;
            tailnet.met(&how, &whom)?;
            for _ in 0..BURST / 1024 {
                stream.write_all(&b"X-Header: x\r\n".repeat(80)).await?;
            }
            return Ok(());
        }
        "trickle-head" => {
            tailnet.met(&how, &whom)?;
            for byte in b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n"
                .iter()
                .cycle()
            {
                stream.write_all(&[*byte]).await?;
                sleep(Duration::from_millis(200)).await;
                if mode(&tailnet.dir) != how {
                    return Ok(());
                }
            }
        }
        _ => {}
    }
    let service = service_fn(move |request| {
        let (tailnet, whom) = (tailnet.clone(), whom.clone());
        async move { Ok::<_, Infallible>(outer(request, whom, tailnet)) }
    });
    hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await?;
    Ok(())
}

fn outer(request: Request<Incoming>, whom: String, tailnet: Arc<Tailnet>) -> Response<Full<Bytes>> {
    match request.uri().path() {
        "/key" => {
            let mut answer = json!({"publicKey": tailnet.key.public()}).to_string();
            if mode(&tailnet.dir) == "endless-key" {
                answer = " ".repeat(BURST);
                let _ = tailnet.met("endless-key", &whom);
            }
            Response::new(Full::from(answer))
        }
        "/ts2021" => {
            tokio::spawn(async move {
                let _ = channel(request, whom, tailnet).await;
            });
            let mut answer = Response::new(Full::default());
            *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
            let headers = answer.headers_mut();
            headers.insert(
                "upgrade",
                hyper::header::HeaderValue::from_static("tailscale-control-protocol"),
            );
            headers.insert(
                "connection",
                hyper::header::HeaderValue::from_static("upgrade"),
            );
            answer
        }
        _ => {
            let mut answer = Response::new(Full::default());
            *answer.status_mut() = StatusCode::NOT_FOUND;
            answer
        }
    }
}

async fn channel(
    mut request: Request<Incoming>,
    whom: String,
    tailnet: Arc<Tailnet>,
) -> Result<()> {
    let header = request.headers().get("x-tailscale-handshake");
    let initiation = STANDARD.decode(header.context("no handshake")?.as_bytes())?;
    let (peer, response, mut channel) = respond(&initiation, &tailnet.key, rand::random())?;
    let mut io = TokioIo::new(hyper::upgrade::on(&mut request).await?);
    let how = mode(&tailnet.dir);
    let noise: Vec<u8> = (0..1 << 20).map(|_| rand::random()).collect();
    let met = || tailnet.met(&how, &whom);
    if how == "handshake-garbage" {
        met()?;
        return Ok(io.write_all(&noise).await?);
    }
    io.write_all(&response).await?;
    if how == "record-garbage" {
        met()?;
        return Ok(io.write_all(&noise).await?);
    }
    let mut early = BytesMut::new();
    channel.seal(
        &early_payload(&ChallengePublic::from_bytes([1; 32])),
        &mut early,
    )?;
    io.write_all(&early).await?;
    let mut stream = NoiseStream::new(io, channel, &[]);
    if how == "http2-garbage" {
        met()?;
        return Ok(stream.write_all(&noise).await?);
    }
    let service = service_fn(move |request| inner(request, peer.machine, tailnet.clone()));
    hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .serve_connection(TokioIo::new(stream), service)
        .await?;
    Ok(())
}

async fn inner(
    request: Request<Incoming>,
    machine: MachinePublic,
    tailnet: Arc<Tailnet>,
) -> Result<Answer, Infallible> {
    let path = request.uri().path().to_owned();
    let body = request.into_body().collect().await;
    let body = body.map(|body| body.to_bytes()).unwrap_or_default();
    // A client that hangs up in the middle of its request has not said that it has no key any more.
    let Ok(request) = serde_json::from_slice::<Value>(&body) else {
        return Ok(Response::new(Full::default().boxed_unsync()));
    };
    if path == "/machine/register" {
        let user = json!({"ID": 1, "LoginName": "ann", "DisplayName": "Ann"});
        let answer = json!({"MachineAuthorized": true, "User": user, "Login": user});
        return Ok(Response::new(Full::from(answer.to_string()).boxed_unsync()));
    }
    let streams = request["Stream"] == true;
    let number = learn(&tailnet, machine, request);
    if !streams {
        return Ok(Response::new(Full::default().boxed_unsync()));
    }
    let (pieces, mut receiver) = mpsc::channel::<Bytes>(1);
    tokio::spawn(async move {
        let _ = poll(&tailnet, number, &pieces).await;
    });
    let stream = futures(move |context| receiver.poll_recv(context));
    Ok(Response::new(StreamBody::new(stream).boxed_unsync()))
}

/// A stream out of what a function says; there is one user.
fn futures(
    mut poll: impl FnMut(&mut std::task::Context<'_>) -> std::task::Poll<Option<Bytes>> + Unpin,
) -> impl futures_util::Stream<Item = Result<Frame<Bytes>, Infallible>> {
    futures_util::stream::poll_fn(move |context| {
        poll(context).map(|piece| piece.map(|bytes| Ok(Frame::data(bytes))))
    })
}

/// The node's number, from 0.
fn learn(tailnet: &Tailnet, machine: MachinePublic, request: Value) -> usize {
    let mut nodes = tailnet.nodes();
    let known = nodes.iter().position(|known| known.machine == machine);
    let Some(number) = known else {
        nodes.push(Known { machine, request });
        return nodes.len() - 1;
    };
    let old = std::mem::replace(&mut nodes[number].request, request);
    // A poll's request does not name endpoints.
    let request = &mut nodes[number].request;
    if request["Endpoints"].as_array().is_none_or(Vec::is_empty) {
        request["Endpoints"] = old["Endpoints"].clone();
    }
    number
}

/// A poll: the netmap as it should be, and after every change of the mode what that says.
async fn poll(tailnet: &Tailnet, number: usize, out: &mpsc::Sender<Bytes>) -> Result<()> {
    let mut last = Value::Null;
    let mut done = String::new();
    loop {
        let nodes = tailnet.nodes().clone();
        let netmap = messages::netmap(&nodes, number, tailnet.relay, &pin(&tailnet.dir));
        if netmap != last {
            out.send(encode(&netmap)?).await?;
            last = netmap;
        }
        let how = mode(&tailnet.dir);
        if how != done {
            // A mode that isn't for polls ends this one, whenever it looks: its node connects again, and meets it.
            attack(&how, number, out, || tailnet.met(&how, &number.to_string())).await?;
            done = how;
        }
        let gone = timeout(LOOK, out.closed());
        if gone.await.is_ok() {
            return Ok(());
        }
    }
}

fn pin(dir: &Path) -> String {
    std::fs::read_to_string(dir.join("pin")).unwrap_or_default()
}

fn encode(message: &Value) -> Result<Bytes> {
    Ok(framing::encode(
        message.to_string().as_bytes(),
        Compression::Zstd,
    )?)
}

async fn attack(
    how: &str,
    number: usize,
    out: &mpsc::Sender<Bytes>,
    met: impl Fn() -> Result<()>,
) -> Result<()> {
    let raw = |length: u32, body: Vec<u8>| {
        let mut bytes = length.to_le_bytes().to_vec();
        bytes.extend(body);
        Bytes::from(bytes)
    };
    match how {
        "stream-garbage" => {
            let noise: Vec<u8> = (0..100_000).map(|_| rand::random()).collect();
            out.send(raw(99_996, noise)).await?;
            met()?;
        }
        "length-garbage" => {
            out.send(raw(u32::MAX, vec![0; 1 << 20])).await?;
            met()?;
        }
        // As long as a message may be, and no zstd.
        "longest-message" => {
            out.send(raw(framing::MAX_MESSAGE as u32, Vec::new()))
                .await?;
            met()?;
            for _ in 0..framing::MAX_MESSAGE >> 16 {
                out.send(Bytes::from(vec![0; 1 << 16])).await?;
            }
        }
        "trickle" => {
            let message = encode(&json!({"Domain": "tail.lab"}))?;
            out.send(message.slice(..4)).await?;
            met()?;
            for byte in message.slice(4..).iter().take(6) {
                out.send(Bytes::copy_from_slice(&[*byte])).await?;
                sleep(Duration::from_millis(700)).await;
            }
        }
        _ => {
            for message in messages::hostile(how, number)? {
                out.send(message).await?;
                met()?;
            }
        }
    }
    Ok(())
}
