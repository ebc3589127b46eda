//! A control server for tests, made of `wire`: the test answers each request itself.

use std::{convert::Infallible, sync::Arc};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::{Bytes, BytesMut};
use futures_util::stream;
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::{Request, Response, StatusCode, body::Frame, body::Incoming, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use lowroad_wire::{
    framing::{self, Compression},
    key::{ChallengePublic, MachinePrivate, MachinePublic},
    noise::{NoiseStream, early_payload, respond},
};
use serde_json::{Value, json};
use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, TcpStream},
    sync::{mpsc, oneshot},
    time::{Duration, sleep, timeout},
};

/// A request inside the channel.
pub struct Call {
    pub path: String,
    pub body: Value,
    pub machine: MachinePublic,
    reply: oneshot::Sender<Reply>,
}

pub enum Reply {
    Json(Value),
    Status(StatusCode, &'static str),
    Stream(mpsc::Receiver<Value>),
    /// Ends before it should.
    Broken,
    /// A byte a second, for ever.
    Trickle,
}

impl Call {
    pub fn answer(self, reply: Reply) {
        let _ = self.reply.send(reply);
    }

    pub fn json(self, value: Value) {
        self.answer(Reply::Json(value));
    }

    /// A map stream; what is sent into it goes out.
    pub fn stream(self) -> mpsc::Sender<Value> {
        let (sender, receiver) = mpsc::channel(16);
        self.answer(Reply::Stream(receiver));
        sender
    }
}

pub struct TestServer {
    pub url: String,
    calls: mpsc::Receiver<Call>,
}

impl TestServer {
    pub async fn start(seed: u8) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (sender, calls) = mpsc::channel(16);
        let key = Arc::new(MachinePrivate::from_random([seed; 32]));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(outer(stream, key.clone(), sender.clone()));
            }
        });
        Self { url, calls }
    }

    pub async fn call(&mut self) -> Call {
        timeout(Duration::from_secs(20), self.calls.recv())
            .await
            .expect("the client asks nothing")
            .expect("the server runs")
    }

    /// A request that has come already.
    pub fn asked(&mut self) -> Option<Call> {
        self.calls.try_recv().ok()
    }

    /// The next request, which has to go there.
    pub async fn expect(&mut self, path: &str) -> Call {
        let call = self.call().await;
        assert_eq!(call.path, path, "{}", call.body);
        call
    }
}

async fn outer(stream: TcpStream, key: Arc<MachinePrivate>, calls: mpsc::Sender<Call>) {
    let service = service_fn(move |request| {
        let (key, calls) = (key.clone(), calls.clone());
        async move { Ok::<_, Infallible>(outer_request(request, &key, calls).await) }
    });
    let _ = hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await;
}

async fn outer_request(
    request: Request<Incoming>,
    key: &MachinePrivate,
    calls: mpsc::Sender<Call>,
) -> Response<Full<Bytes>> {
    match request.uri().path() {
        "/key" => Response::new(Full::from(json!({"publicKey": key.public()}).to_string())),
        "/ts2021" => {
            let initiation = STANDARD
                .decode(request.headers()["x-tailscale-handshake"].as_bytes())
                .unwrap();
            let (peer, answer, mut channel) = respond(&initiation, key, [9; 32]).unwrap();
            let mut early = BytesMut::new();
            channel
                .seal(
                    &early_payload(&ChallengePublic::from_bytes([1; 32])),
                    &mut early,
                )
                .unwrap();
            tokio::spawn(async move {
                let mut io = TokioIo::new(hyper::upgrade::on(request).await.unwrap());
                io.write_all(&answer).await.unwrap();
                io.write_all(&early).await.unwrap();
                let service =
                    service_fn(move |request| inner(request, peer.machine, calls.clone()));
                let stream = TokioIo::new(NoiseStream::new(io, channel, &[]));
                let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                    .serve_connection(stream, service)
                    .await;
            });
            let upgrade = Response::builder().status(StatusCode::SWITCHING_PROTOCOLS);
            upgrade
                .header("Upgrade", "tailscale-control-protocol")
                .header("Connection", "upgrade")
                .body(Full::default())
                .unwrap()
        }
        _ => Response::builder()
            .status(404)
            .body(Full::default())
            .unwrap(),
    }
}

async fn inner(
    request: Request<Incoming>,
    machine: MachinePublic,
    calls: mpsc::Sender<Call>,
) -> Result<Response<BoxBody<Bytes, Infallible>>, Infallible> {
    let path = request.uri().path().to_owned();
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let (reply, answer) = oneshot::channel();
    let call = Call {
        path,
        body: serde_json::from_slice(&body).unwrap_or(Value::Null),
        machine,
        reply,
    };
    let _ = calls.send(call).await;
    let mut response = Response::new(Full::from("").boxed());
    match answer.await {
        Ok(Reply::Json(value)) => *response.body_mut() = Full::from(value.to_string()).boxed(),
        Ok(Reply::Status(status, text)) => {
            *response.status_mut() = status;
            *response.body_mut() = Full::from(text).boxed();
        }
        Ok(Reply::Stream(messages)) => {
            let stream = stream::unfold(messages, |mut messages| async move {
                let message = framing::encode(
                    messages.recv().await?.to_string().as_bytes(),
                    Compression::Zstd,
                )
                .unwrap();
                Some((Ok(Frame::data(message)), messages))
            });
            *response.body_mut() = StreamBody::new(stream).boxed();
        }
        Ok(Reply::Broken) => {
            let length = hyper::header::CONTENT_LENGTH;
            response.headers_mut().insert(length, 10.into());
        }
        Ok(Reply::Trickle) => {
            let stream = stream::unfold((), |()| async {
                sleep(Duration::from_secs(1)).await;
                Some((Ok(Frame::data(Bytes::from_static(b" "))), ()))
            });
            *response.body_mut() = StreamBody::new(stream).boxed();
        }
        Err(_) => *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR,
    }
    Ok(response)
}
