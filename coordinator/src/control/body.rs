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
use tokio::sync::{Semaphore, mpsc};

use crate::Error;

/// As Headscale's limit.
const MAX_BODY: usize = 1 << 20;
/// A body that is not there by then is somebody's attempt to keep us busy.
const READ_TIMEOUT: Duration = Duration::from_secs(10);
/// Bodies that may be in memory at once; two limits, so that strangers cannot keep nodes out.
const READING_NODES: usize = 256;
const READING_STRANGERS: usize = 64;

/// A whole answer, or one that comes piece by piece.
#[derive(Debug)]
pub enum Body {
    Whole(Option<Bytes>),
    Pieces(mpsc::Receiver<Bytes>),
}

impl Default for Body {
    fn default() -> Self {
        Self::Whole(None)
    }
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        match &mut *self {
            Self::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Pieces(pieces) => pieces
                .poll_recv(context)
                .map(|piece| piece.map(|bytes| Ok(Frame::data(bytes)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Whole(None))
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
            Self::Pieces(_) => SizeHint::default(),
        }
    }
}

pub fn respond(
    status: StatusCode,
    content_type: &'static str,
    bytes: impl Into<Bytes>,
) -> Response<Body> {
    let bytes = bytes.into();
    let body = Body::Whole(Some(bytes).filter(|bytes| !bytes.is_empty()));
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

/// Who may read a body at the moment.
#[derive(Debug)]
pub struct Readers {
    nodes: Semaphore,
    strangers: Semaphore,
}

impl Default for Readers {
    fn default() -> Self {
        Self {
            nodes: Semaphore::new(READING_NODES),
            strangers: Semaphore::new(READING_STRANGERS),
        }
    }
}

impl Readers {
    /// The whole body, if it comes in time and is not too long. `known`: of a machine that owns a node.
    pub async fn read(&self, body: Incoming, known: bool) -> Result<Bytes, Error> {
        let semaphore = if known { &self.nodes } else { &self.strangers };
        let busy = || {
            Error::refused(
                StatusCode::SERVICE_UNAVAILABLE,
                "too many requests at once; try again",
            )
        };
        let read = async {
            let _permit = semaphore.acquire().await.map_err(|_| busy())?;
            let collected = Limited::new(body, MAX_BODY).collect().await;
            collected
                .map(|collected| collected.to_bytes())
                .map_err(|error| {
                    if error.is::<http_body_util::LengthLimitError>() {
                        Error::refused(
                            StatusCode::PAYLOAD_TOO_LARGE,
                            format!("the request is longer than {MAX_BODY} bytes"),
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
