//! Bodies: those we send, and reading those of strangers within limits.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Limited};
use hyper::{
    Response, StatusCode,
    body::{Frame, Incoming, SizeHint},
    header,
};
use serde::Serialize;
use tokio::sync::{Semaphore, SemaphorePermit};

use super::{
    channel::Turn,
    outlet::{Pieces, take_piece},
};
use crate::{Error, policy::MAX_POLICY};

/// Of machines that own a node; as Headscale's limit.
const MAX_BODY: usize = 1 << 20;
/// Of machines that don't: a registration with the largest host info that is taken, and then some.
const MAX_OF_STRANGERS: usize = 64 << 10;
/// Of relays that ask about a node key.
const MAX_VERIFY: usize = 4 << 10;
/// Of administrators: a policy of the largest size, with every byte escaped.
const MAX_ADMIN: usize = 2 * MAX_POLICY + (64 << 10);
/// A body that is not there by then is somebody's attempt to keep us busy.
const READ_TIMEOUT: Duration = Duration::from_secs(10);
/// Bodies of each kind that may be in memory at once, so that none keeps others out.
const READING_NODES: usize = 256;
const READING_RELAYS: usize = 64;
const READING_ADMINS: usize = 8;
/// Of one channel. That of a stranger has no other limit: the number of their channels is one.
const READING_OF_NODE: usize = 4;
const READING_OF_STRANGER: usize = 1;

/// A whole answer, or one that comes piece by piece.
#[derive(Debug)]
pub enum Body {
    Whole(Bytes),
    /// A whole netmap for a client that does not poll, and its turn.
    Netmap(Bytes, Option<Turn>),
    Poll(Pieces),
}

impl Default for Body {
    fn default() -> Self {
        Self::Whole(Bytes::new())
    }
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let piece = match &mut *self {
            Self::Whole(bytes) => Poll::Ready(take_piece(bytes)),
            Self::Netmap(bytes, turn) => {
                let piece = take_piece(bytes);
                if bytes.is_empty() {
                    *turn = None;
                }
                Poll::Ready(piece)
            }
            Self::Poll(pieces) => Pin::new(pieces).poll_next(context),
        };
        piece.map(|piece| piece.map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(bytes) | Self::Netmap(bytes, _) => bytes.is_empty(),
            Self::Poll(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) | Self::Netmap(bytes, _) => SizeHint::with_exact(bytes.len() as u64),
            Self::Poll(_) => SizeHint::default(),
        }
    }
}

pub fn respond(
    status: StatusCode,
    content_type: &'static str,
    bytes: impl Into<Bytes>,
) -> Response<Body> {
    with_type(status, content_type, Body::Whole(bytes.into()))
}

pub fn with_type(status: StatusCode, content_type: &'static str, body: Body) -> Response<Body> {
    Response::builder()
        .status(status)
        .header(header::CONTENT_TYPE, content_type)
        .header(header::X_CONTENT_TYPE_OPTIONS, "nosniff")
        .body(body)
        .expect("all parts are valid")
}

pub fn text(status: StatusCode, text: impl Into<String>) -> Response<Body> {
    respond(status, "text/plain; charset=utf-8", text.into())
}

pub fn json(status: StatusCode, value: &impl Serialize) -> Response<Body> {
    match serde_json::to_vec(value) {
        Ok(bytes) => respond(status, "application/json", bytes),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}

pub fn error(error: &Error) -> Response<Body> {
    text(error.status(), error.to_string())
}

/// Whose body it is.
#[derive(Debug, Clone, Copy)]
pub enum Sender<'a> {
    /// A machine that owns a node.
    Node(&'a OfChannel),
    Stranger(&'a OfChannel),
    /// Whoever asks whether a relay should serve a node.
    Relay,
    Admin,
}

/// Bodies of one channel.
#[derive(Debug)]
pub struct OfChannel {
    node: Semaphore,
    stranger: Semaphore,
}

impl Default for OfChannel {
    fn default() -> Self {
        Self {
            node: Semaphore::new(READING_OF_NODE),
            stranger: Semaphore::new(READING_OF_STRANGER),
        }
    }
}

/// Who may read a body at the moment.
#[derive(Debug)]
pub struct Readers {
    nodes: Semaphore,
    relays: Semaphore,
    admins: Semaphore,
}

impl Default for Readers {
    fn default() -> Self {
        Self {
            nodes: Semaphore::new(READING_NODES),
            relays: Semaphore::new(READING_RELAYS),
            admins: Semaphore::new(READING_ADMINS),
        }
    }
}

impl Readers {
    /// The whole body, if it comes in time and is not too long.
    pub async fn read(&self, body: Incoming, sender: Sender<'_>) -> Result<Bytes, Error> {
        let (own, shared, limit) = match sender {
            Sender::Node(channel) => (Some(&channel.node), Some(&self.nodes), MAX_BODY),
            Sender::Stranger(channel) => (Some(&channel.stranger), None, MAX_OF_STRANGERS),
            Sender::Relay => (None, Some(&self.relays), MAX_VERIFY),
            Sender::Admin => (None, Some(&self.admins), MAX_ADMIN),
        };
        let read = async {
            let _own = permit(own).await?;
            let _shared = permit(shared).await?;
            let collected = Limited::new(body, limit).collect().await;
            collected
                .map(|collected| collected.to_bytes())
                .map_err(|error| {
                    if error.is::<http_body_util::LengthLimitError>() {
                        Error::refused(
                            StatusCode::PAYLOAD_TOO_LARGE,
                            format!("the request is longer than {limit} bytes"),
                        )
                    } else {
                        Error::bad_request(format!("the request broke off: {error}"))
                    }
                })
        };
        let late = |_| {
            Error::refused(
                StatusCode::REQUEST_TIMEOUT,
                "the request took too long to arrive",
            )
        };
        tokio::time::timeout(READ_TIMEOUT, read)
            .await
            .map_err(late)?
    }
}

async fn permit(semaphore: Option<&Semaphore>) -> Result<Option<SemaphorePermit<'_>>, Error> {
    let Some(semaphore) = semaphore else {
        return Ok(None);
    };
    let closed = |_| {
        Error::refused(
            StatusCode::SERVICE_UNAVAILABLE,
            "the server ends; try again",
        )
    };
    semaphore.acquire().await.map(Some).map_err(closed)
}
