//! The local API: HTTP/1 on a Unix socket, for our CLI, the stock one, and programs written against the stock daemon (protocol.md 8).
//!
//! Who may change things is decided by the peer's credentials: root, the agent's own user, the configured operator and the members of one group; others
//! read. Requests from web
//! pages are refused. Everything is answered by the engine, through [`Ask`]s.

mod operator;
mod places;
mod routes;
mod socket;
pub mod watch;

use std::{net::IpAddr, os::fd::AsFd, sync::Arc, time::Duration};

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited, combinators::BoxBody};
use hyper::{Method, Request, Response, StatusCode, body::Incoming, header, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use lowroad_wire::{control::CAPABILITY_VERSION, key::NodePublic};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::{
    net::{UnixListener, UnixStream},
    sync::{broadcast, mpsc, oneshot},
    time::timeout,
};
use tracing::debug;

use self::places::Places;
pub use self::{
    operator::user_id,
    socket::{SocketError, bind},
};
use crate::{
    prefs::{AuthKey, Change},
    status::{Flow, PingKind, PingResult, Progress, Status, WhoIs, version},
};

/// Largest request body.
const BODY_LIMIT: usize = 1 << 20;
/// Largest head, and what is read ahead of one.
const HEAD_LIMIT: usize = 64 << 10;
/// A request's head may take this long, also the next one's on the same connection; and so may its body.
const REQUEST_WITHIN: Duration = Duration::from_secs(30);
const HOST: &str = "local-tailscaled.sock";

/// Body of `POST /lowroad/v0/up`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct UpRequest {
    pub change: Change,
    /// Settings that `change` does not name go back to their defaults.
    pub reset: bool,
    #[serde(
        deserialize_with = "AuthKey::deserialize_some",
        skip_serializing_if = "Option::is_none"
    )]
    pub auth_key: Option<AuthKey>,
    pub force_reauth: bool,
    pub accept_server_key: bool,
    /// 0: wait as long as it takes.
    pub timeout_ms: u64,
}

/// What somebody on the socket wants of the engine.
#[derive(Debug)]
pub enum Ask {
    Status {
        peers: bool,
        reply: oneshot::Sender<Status>,
    },
    WhoIs {
        who: Who,
        reply: oneshot::Sender<Option<WhoIs>>,
    },
    Prefs {
        reply: oneshot::Sender<Value>,
    },
    /// Errors are for the user.
    Set {
        change: Change,
        reply: oneshot::Sender<Result<Value, String>>,
    },
    /// Connect, and tell how it goes until `Done` or `Failed`. When the receiver is dropped before, the attempt is given up.
    Up {
        request: Box<UpRequest>,
        progress: mpsc::Sender<Progress>,
    },
    /// Connect without waiting for it.
    Start {
        auth_key: Option<AuthKey>,
        change: Change,
        reply: oneshot::Sender<Result<(), String>>,
    },
    /// A login, anew if somebody is logged in; doesn't wait for it.
    Login {
        reply: oneshot::Sender<Result<(), String>>,
    },
    Down {
        reply: oneshot::Sender<Result<(), String>>,
    },
    Logout {
        reply: oneshot::Sender<Result<(), String>>,
    },
    Ping {
        ip: IpAddr,
        kind: PingKind,
        reply: oneshot::Sender<PingResult>,
    },
    DerpMap {
        reply: oneshot::Sender<Value>,
    },
    Netcheck {
        reply: oneshot::Sender<Value>,
    },
    /// Prometheus text.
    Metrics {
        reply: oneshot::Sender<String>,
    },
    Counters {
        reply: oneshot::Sender<Value>,
    },
    /// What the filter refused of late, and what it will.
    Flows {
        reply: oneshot::Sender<(Vec<Flow>, broadcast::Receiver<Flow>)>,
    },
    /// What a watcher of the IPN bus is told first, if it asks for that, and what it is told from now on.
    Watch {
        mask: u64,
        reply: oneshot::Sender<(Vec<Value>, watch::Watcher)>,
    },
}

impl Ask {
    /// True if it changes nothing, so that anybody may ask.
    pub fn only_reads(&self) -> bool {
        !matches!(
            self,
            Self::Set { .. }
                | Self::Up { .. }
                | Self::Start { .. }
                | Self::Login { .. }
                | Self::Down { .. }
                | Self::Logout { .. }
        )
    }
}

/// Of whom `whois` is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    Address(IpAddr),
    Key(NodePublic),
}

pub type Body = BoxBody<Bytes, std::convert::Infallible>;

/// Serves the socket until the engine is gone.
#[derive(Clone, Debug)]
pub struct Server {
    asks: mpsc::Sender<Ask>,
    rights: Rights,
    places: Arc<Places>,
    request_within: Duration,
}

/// Who besides root may change things.
#[derive(Clone, Debug, Default)]
pub struct Rights {
    /// User id that the agent runs as.
    pub own_user: u32,
    /// User id of the operator.
    pub operator: Arc<ArcSwapOption<u32>>,
    /// Name or number of the group whose members are operators, too; empty: none.
    pub group: String,
}

impl Rights {
    /// Of a process of this user that is in these groups.
    fn may_write(&self, user: u32, is_in: impl FnOnce(u32) -> bool) -> bool {
        user == 0
            || user == self.own_user
            || self.operator.load().as_deref() == Some(&user)
            // Looked up each time: a group made later counts.
            || (!self.group.is_empty() && operator::group_id(&self.group).is_some_and(is_in))
    }

    fn of(&self, stream: &UnixStream) -> std::io::Result<bool> {
        let peer = stream.peer_cred()?;
        Ok(self.may_write(peer.uid(), |group| {
            let more = || operator::peer_groups(stream.as_fd()).unwrap_or_default();
            peer.gid() == group || more().contains(&group)
        }))
    }
}

impl Server {
    pub fn new(asks: mpsc::Sender<Ask>, rights: Rights) -> Self {
        Self {
            asks,
            rights,
            places: Arc::default(),
            request_within: REQUEST_WITHIN,
        }
    }

    pub async fn run(self, listener: UnixListener) {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    tokio::spawn(self.clone().connection(stream));
                }
                Err(error) => {
                    // Out of descriptors: they come back as connections end.
                    debug!(%error, "cannot accept a local connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    /// Serves one client until either side ends it.
    pub async fn connection(self, stream: UnixStream) {
        let Ok(may_write) = self.rights.of(&stream) else {
            return;
        };
        let Some(_place) = self.places.take(may_write) else {
            return debug!(may_write, "too many local connections");
        };
        let service = service_fn(|request| {
            let server = self.clone();
            async move { Ok::<_, std::convert::Infallible>(server.answer(request, may_write).await) }
        });
        if let Err(error) = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.request_within)
            .max_buf_size(HEAD_LIMIT)
            .serve_connection(TokioIo::new(stream), service)
            .await
        {
            debug!(%error, "a local connection ended");
        }
    }

    async fn answer(&self, request: Request<Incoming>, may_write: bool) -> Response<Body> {
        let mut response = match self.route(request, may_write).await {
            Ok(response) => response,
            Err(refusal) => refusal.response(),
        };
        let headers = response.headers_mut();
        headers.insert(
            "Tailscale-Version",
            header::HeaderValue::from_static(version()),
        );
        headers.insert("Tailscale-Cap", CAPABILITY_VERSION.into());
        response
    }

    async fn route(
        &self,
        request: Request<Incoming>,
        may_write: bool,
    ) -> Result<Response<Body>, Refusal> {
        check_origin(request.headers())?;
        let (parts, body) = request.into_parts();
        let body = match parts.method {
            Method::GET | Method::HEAD => Bytes::new(),
            _ => timeout(
                self.request_within,
                Limited::new(body, BODY_LIMIT).collect(),
            )
            .await
            .map_err(|_| Refusal::new(StatusCode::REQUEST_TIMEOUT, "the request is too slow"))?
            .map_err(|_| Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "the request is too long"))?
            .to_bytes(),
        };
        routes::dispatch(
            self,
            &routes::Call {
                method: parts.method,
                path: parts.uri.path(),
                query: parts.uri.query().unwrap_or_default(),
                body,
                may_write,
            },
        )
        .await
    }

    /// Puts a question to the engine and waits for its answer.
    async fn ask<T>(
        &self,
        may_write: bool,
        make: impl FnOnce(oneshot::Sender<T>) -> Ask,
    ) -> Result<T, Refusal> {
        let (reply, answer) = oneshot::channel();
        self.send(may_write, make(reply)).await?;
        answer.await.map_err(|_| Refusal::ending())
    }

    async fn send(&self, may_write: bool, ask: Ask) -> Result<(), Refusal> {
        if !may_write && !ask.only_reads() {
            return Err(Refusal::new(
                StatusCode::FORBIDDEN,
                "access denied: this needs root, a member of the group given to `lowroad agent --operator-group`, or the user named by `lowroad set --operator=USER`",
            ));
        }
        self.asks.send(ask).await.map_err(|_| Refusal::ending())
    }
}

/// Browsers send these; local programs don't. Without the Host check a web page could reach the socket's TCP relatives by DNS rebinding.
fn check_origin(headers: &header::HeaderMap) -> Result<(), Refusal> {
    if headers.contains_key(header::ORIGIN) || headers.contains_key(header::REFERER) {
        return Err(Refusal::new(
            StatusCode::FORBIDDEN,
            "requests from web pages are refused",
        ));
    }
    match headers.get(header::HOST).map(|host| host.to_str()) {
        None | Some(Ok("" | HOST)) => Ok(()),
        _ => Err(Refusal::new(
            StatusCode::FORBIDDEN,
            &format!("invalid localapi request: the Host header must be {HOST}"),
        )),
    }
}

/// An error answer in the stock shape.
#[derive(Debug)]
pub struct Refusal {
    status: StatusCode,
    message: String,
}

impl Refusal {
    fn new(status: StatusCode, message: &str) -> Self {
        Self {
            status,
            message: message.to_owned(),
        }
    }

    fn ending() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "the agent is ending")
    }

    fn response(self) -> Response<Body> {
        let mut response = json_response(&json!({"error": self.message}));
        *response.status_mut() = self.status;
        response
    }
}

fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).boxed()
}

fn json_response(value: &impl Serialize) -> Response<Body> {
    // Go's encoder ends values with a newline, and shell scripts got used to it.
    let mut text = serde_json::to_vec(value).expect("the shapes of status.rs always serialise");
    text.push(b'\n');
    let mut response = Response::new(full(text));
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        header::HeaderValue::from_static("application/json"),
    );
    response
}

#[cfg(test)]
mod tests;
