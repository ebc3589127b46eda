//! A control server that does all as it should, but for what its map stream says.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, atomic::Ordering},
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::{
    Request, Response,
    body::{Body, Frame, Incoming},
    server::conn::http2,
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use lowroad_wire::{
    control::MapRequest,
    framing::{self, Compression},
    noise::NoiseStream,
};
use tokio::{io::AsyncWriteExt, net::TcpStream};

use super::{Server, head};
use crate::targets::netmaps;

/// How often the stream looks around after its messages before it ends: in between, everybody gets a turn.
const TURNS: usize = 2000;

/// Pings that are right, and what answers them; a stream of one of them ends when it is answered.
const PINGS: [(&str, &str); 3] = [
    (
        r#"{"KeepAlive":true,"PingRequest":{"URL":"https://x/ping/1","URLIsNoise":true}}"#,
        "HEAD /ping/1",
    ),
    (
        r#"{"KeepAlive":true,"PingRequest":{"URL":"http://127.0.0.1/ping/2"}}"#,
        "HEAD /ping/2",
    ),
    (
        r#"{"KeepAlive":true,"PingRequest":{"URL":"https://x/ping/3","Types":"c2n","Payload":"UE9TVCAvZWNobyBIVFRQLzEuMQ0KDQpoYWxsbw=="}}"#,
        "POST /ping/3",
    ),
];
/// Of another host, of another type, without base64, without a URL.
const UNANSWERED: &str = r#"{"KeepAlive":true,"PingRequest":{"URL":"http://192.0.2.1/ping/4"}}
{"KeepAlive":true,"PingRequest":{"URL":"https://x/ping/5","Types":"disco,TSMP","IP":"100.64.0.1"}}
{"KeepAlive":true,"PingRequest":{"URL":"https://x/ping/6","Types":"c2n","Payload":"-"}}
{"KeepAlive":true,"PingRequest":{"URL":"\u0000"}}"#;

pub fn seeds() -> impl Iterator<Item = String> {
    let pings = PINGS.map(|(line, _)| line.to_owned());
    let own = format!(r#"{{"Node":{}}}"#, netmaps::node(1));
    let all = [&[own][..], &pings].concat().join("\n");
    pings.into_iter().chain([all, UNANSWERED.to_owned()])
}

/// Serves a channel until the client has gone, and what it asks on other connections meanwhile.
pub(super) async fn serve(server: &Server<'_>, channel: NoiseStream<TcpStream>) {
    let asked = Arc::new(Asked::default());
    let right = PINGS
        .iter()
        .find(|(line, _)| line.as_bytes() == server.words);
    let polled = Answer {
        text: Some(messages(server.words)).filter(|text| !text.is_empty()),
        end: match right {
            Some(&(_, answer)) => End::Answered(asked.clone(), answer),
            None => End::Turns(TURNS),
        },
    };
    let heard = server.heard.clone();
    let note = move |request: String, length: usize| {
        heard.fetch_add(request.len() + length, Ordering::Relaxed);
        asked.requests().push(request);
    };
    let inside = {
        let note = note.clone();
        service_fn(move |request| answer(request, note.clone(), polled.clone()))
    };
    let connection =
        http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(channel), inside);
    let beside = async {
        loop {
            let (mut stream, _) = server.listener.accept().await.expect("a connection");
            let head = head(&mut stream).await;
            let text = String::from_utf8_lossy(&head);
            let words: Vec<&str> = text.split(' ').take(2).collect();
            note(words.join(" "), head.len());
            let ok = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
            let _ = stream.write_all(ok).await;
        }
    };
    tokio::select! {
        _ = connection => {}
        () = beside => unreachable!("it serves for ever"),
    }
}

/// A message of each line.
fn messages(lines: &[u8]) -> Bytes {
    let lines = lines.split(|byte| *byte == b'\n');
    let lines = lines.filter(|line| !line.is_empty());
    let messages = lines.map(|line| framing::encode(line, Compression::Zstd).expect("short"));
    messages.collect::<Vec<_>>().concat().into()
}

/// Methods and paths.
#[derive(Default)]
struct Asked(Mutex<Vec<String>>);

impl Asked {
    fn requests(&self) -> MutexGuard<'_, Vec<String>> {
        self.0.lock().expect("nobody panics holding it")
    }
}

async fn answer(
    request: Request<Incoming>,
    note: impl Fn(String, usize),
    polled: Answer,
) -> Result<Response<Answer>, Infallible> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map(|body| body.to_bytes());
    let body = body.unwrap_or_default();
    let path = head.uri.path();
    note(format!("{} {path}", head.method), body.len());
    let polls = serde_json::from_slice::<MapRequest>(&body).is_ok_and(|request| request.stream);
    let text: &'static [u8] = match path {
        "/machine/register" => br#"{"MachineAuthorized":true,"User":{"ID":1}}"#,
        "/machine/map" if polls => return Ok(Response::new(polled)),
        _ => b"",
    };
    Ok(Response::new(Answer {
        text: Some(Bytes::from_static(text)).filter(|text| !text.is_empty()),
        end: End::AtOnce,
    }))
}

/// A body: a text, and an end that may be later.
#[derive(Clone)]
struct Answer {
    text: Option<Bytes>,
    end: End,
}

#[derive(Clone)]
enum End {
    AtOnce,
    Turns(usize),
    /// When this has been asked.
    Answered(Arc<Asked>, &'static str),
}

impl End {
    fn is_here(&mut self) -> bool {
        match self {
            Self::AtOnce | Self::Turns(0) => true,
            Self::Turns(left) => {
                *left -= 1;
                false
            }
            Self::Answered(asked, how) => asked.requests().iter().any(|request| request == *how),
        }
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if let Some(text) = self.text.take() {
            return Poll::Ready(Some(Ok(Frame::data(text))));
        }
        if self.end.is_here() {
            return Poll::Ready(None);
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }

    fn is_end_stream(&self) -> bool {
        self.text.is_none() && matches!(self.end, End::AtOnce)
    }
}
