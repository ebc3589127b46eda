//! The public side: what clients and browsers reach over HTTP (protocol.md 10.1).

pub mod body;
mod channel;
mod machine;
mod outlet;
mod page;
mod poll;
mod register;
mod ssh;

use std::{net::SocketAddr, sync::Arc};

use hyper::{Method, Request, Response, StatusCode, body::Incoming, header};
use hyper_util::rt::TokioIo;
use lowroad_wire::{control::OverTlsPublicKey, key::NodePublic};
use serde::{Deserialize, Serialize};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use body::Body;
use body::{Readers, Sender, json, text};
pub use channel::Channels;

use crate::{
    derp::DerpServer,
    hub::{Hub, now},
};

/// What all connections share.
#[derive(Debug)]
pub struct Site {
    pub hub: Arc<Hub>,
    /// Without a slash at its end.
    pub url: String,
    pub derp: Arc<DerpServer>,
    pub readers: Readers,
    pub channels: Channels,
    /// Fires when the server stops: upgraded connections end.
    pub stop: CancellationToken,
    /// What has to end before the server has stopped.
    pub upgraded: TaskTracker,
}

/// `POST /verify`: whether a relay run elsewhere should serve a node.
#[derive(Debug, Deserialize)]
struct Verify {
    #[serde(rename = "NodePublic")]
    node: NodePublic,
}

#[derive(Debug, Serialize)]
struct Verdict {
    #[serde(rename = "Allow")]
    allow: bool,
}

impl Site {
    pub async fn answer(
        self: Arc<Self>,
        remote: SocketAddr,
        request: Request<Incoming>,
    ) -> Response<Body> {
        let method = request.method().clone();
        let path = request.uri().path().to_owned();
        let is_get = method == Method::GET || method == Method::HEAD;
        match path.as_str() {
            "/key" if is_get => self.key(),
            "/ts2021" if method == Method::POST => channel::open(self, remote, request),
            "/ts2021" if is_get => text(
                StatusCode::NOT_IMPLEMENTED,
                "control over WebSocket is not supported; use POST",
            ),
            "/health" if is_get => self.health(),
            "/derp" if method == Method::GET => self.relay(remote, request),
            "/derp/probe" | "/derp/latency-check" if is_get => page::probe(),
            "/generate_204" if is_get => page::no_content(request.headers()),
            "/bootstrap-dns" if is_get => json(StatusCode::OK, &serde_json::json!({})),
            "/verify" if method == Method::POST => self.verify(request).await,
            // Where the pings that a server may ask of clients would arrive; we ask for none.
            "/machine/ping-response" => text(StatusCode::OK, ""),
            "/" if is_get => page::front(),
            _ => match path.strip_prefix("/register/") {
                Some(id) if is_get => {
                    page::register(id, self.hub.read(|state| state.who_waits(id)).as_ref())
                }
                _ => text(StatusCode::NOT_FOUND, "there is nothing here"),
            },
        }
    }

    fn key(&self) -> Response<Body> {
        let key = self.hub.keys.control.public();
        json(
            StatusCode::OK,
            &OverTlsPublicKey {
                legacy_public_key: None,
                public_key: Some(key),
            },
        )
    }

    fn health(&self) -> Response<Body> {
        if self.hub.is_healthy() {
            json(StatusCode::OK, &serde_json::json!({ "status": "pass" }))
        } else {
            let why = "the database takes no writes";
            json(
                StatusCode::SERVICE_UNAVAILABLE,
                &serde_json::json!({ "status": "fail", "output": why }),
            )
        }
    }

    async fn verify(&self, request: Request<Incoming>) -> Response<Body> {
        let bytes = match self.readers.read(request.into_body(), Sender::Relay).await {
            Ok(bytes) => bytes,
            Err(error) => return body::error(&error),
        };
        match serde_json::from_slice::<Verify>(&bytes) {
            Ok(verify) => json(
                StatusCode::OK,
                &Verdict {
                    allow: self.knows(verify.node),
                },
            ),
            Err(error) => text(
                StatusCode::BAD_REQUEST,
                format!("no verify request: {error}"),
            ),
        }
    }

    fn knows(&self, node: NodePublic) -> bool {
        self.hub.read(|state| state.may_relay(node, now()))
    }

    fn relay(
        self: Arc<Self>,
        remote: SocketAddr,
        mut request: Request<Incoming>,
    ) -> Response<Body> {
        let upgrade = request.headers().get(header::UPGRADE);
        if !upgrade.is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"derp")) {
            return text(
                StatusCode::UPGRADE_REQUIRED,
                "this is a relay; it takes `Upgrade: DERP`",
            );
        }
        let upgrade = hyper::upgrade::on(&mut request);
        let key = hex::encode(self.derp.public_key().as_bytes());
        self.upgraded.clone().spawn(async move {
            match upgrade.await {
                Ok(stream) => self.derp.serve(TokioIo::new(stream), remote).await,
                Err(error) => {
                    tracing::debug!(%remote, %error, "relay connection ended before it began")
                }
            }
        });
        Response::builder()
            .status(StatusCode::SWITCHING_PROTOCOLS)
            .header(header::UPGRADE, "DERP")
            .header(header::CONNECTION, "Upgrade")
            .header("Derp-Version", "2")
            .header("Derp-Public-Key", key)
            .body(Body::default())
            .expect("all parts are valid")
    }
}
