//! HTTP/1 over the agent's Unix socket.

use std::{
    io,
    path::{Path, PathBuf},
};

use bytes::{Buf, Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use hyper::{Method, Request, StatusCode, body::Incoming};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use tokio::net::UnixStream;

/// The Host header that stock clients send and stock daemons ask for.
pub const HOST: &str = "local-tailscaled.sock";

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("cannot reach the lowroad agent at {path}: {why}")]
    Unreachable { path: PathBuf, why: String },
    #[error("the connection to the lowroad agent broke: {0}")]
    Broken(String),
    /// The agent's own words.
    #[error("{message}")]
    Refused { status: StatusCode, message: String },
    #[error(
        "the agent's answer cannot be read: {0}: are `lowroad` and the running agent of the same version?"
    )]
    Unreadable(#[from] serde_json::Error),
}

#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    pub fn new(socket: &Path) -> Self {
        Self {
            socket: socket.to_owned(),
        }
    }

    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.call(Method::GET, path, Bytes::new()).await
    }

    pub async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, ClientError> {
        self.call(Method::POST, path, serde_json::to_vec(body)?.into())
            .await
    }

    pub async fn patch<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, ClientError> {
        self.call(Method::PATCH, path, serde_json::to_vec(body)?.into())
            .await
    }

    /// A request whose answer is a stream of JSON lines.
    pub async fn stream(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> Result<Lines, ClientError> {
        let body = self
            .send(method, path, serde_json::to_vec(body)?.into())
            .await?;
        Ok(Lines {
            body,
            buffer: BytesMut::new(),
        })
    }

    async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<T, ClientError> {
        let answer = self.send(method, path, body).await?;
        let bytes = answer
            .collect()
            .await
            .map_err(|error| ClientError::Broken(error.to_string()))?
            .to_bytes();
        Ok(serde_json::from_slice(if bytes.is_empty() {
            b"null"
        } else {
            &bytes
        })?)
    }

    async fn send(&self, method: Method, path: &str, body: Bytes) -> Result<Incoming, ClientError> {
        let broken = |error: hyper::Error| ClientError::Broken(error.to_string());
        let stream = UnixStream::connect(&self.socket)
            .await
            .map_err(|error| self.unreachable(&error))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(broken)?;
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("Host", HOST)
            .header("Content-Type", "application/json")
            .body(Full::new(body))
            .map_err(|error| ClientError::Broken(error.to_string()))?;
        let response = sender.send_request(request).await.map_err(broken)?;
        let status = response.status();
        if status.is_success() {
            return Ok(response.into_body());
        }
        let bytes = response
            .into_body()
            .collect()
            .await
            .map(|body| body.to_bytes())
            .unwrap_or_default();
        Err(ClientError::Refused {
            status,
            message: error_text(&bytes).unwrap_or_else(|| format!("the agent answered {status}")),
        })
    }

    fn unreachable(&self, error: &io::Error) -> ClientError {
        let why = match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => "it doesn't appear to be running (start it with `lowroad agent` or `systemctl start lowroad`)".to_owned(),
            io::ErrorKind::PermissionDenied => "permission denied (use sudo, join the agent's operator group, or have root name you with `lowroad set --operator=$USER`)".to_owned(),
            _ => error.to_string(),
        };
        ClientError::Unreachable {
            path: self.socket.clone(),
            why,
        }
    }
}

fn error_text(body: &[u8]) -> Option<String> {
    let value: serde_json::Value = serde_json::from_slice(body).ok()?;
    Some(value.get("error")?.as_str()?.to_owned())
}

/// A response body read line by line.
#[derive(Debug)]
pub struct Lines {
    body: Incoming,
    buffer: BytesMut,
}

impl Lines {
    /// The next JSON line; `None` when the agent has closed the stream.
    pub async fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, ClientError> {
        loop {
            if let Some(end) = self.buffer.iter().position(|b| *b == b'\n') {
                let line = self.buffer.split_to(end);
                self.buffer.advance(1);
                return Ok(Some(serde_json::from_slice(&line)?));
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(Err(error)) => return Err(ClientError::Broken(error.to_string())),
                Some(Ok(frame)) => {
                    if let Some(data) = frame.data_ref() {
                        self.buffer.extend_from_slice(data);
                    }
                }
            }
        }
    }
}
