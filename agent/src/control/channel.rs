//! The ts2021 channel: HTTP upgrade, Noise, then HTTP/2 inside.

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http_body_util::{Empty, Full};
use hyper::{Method, Request, Response, StatusCode, body::Incoming, client::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use lowroad_wire::{
    control::CAPABILITY_VERSION,
    key::{MachinePrivate, MachinePublic, NodePublic},
    noise::{Initiator, NoiseStream},
};
use tokio::{task::AbortHandle, time::timeout};
use tracing::debug;

use super::{ControlError, dial::Server, dial::error_text};

/// Upgrade and Noise handshake.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// A netmap of ten thousand peers shall not wait for window updates.
const WINDOW: u32 = 4 << 20;

/// One Noise connection; all requests are multiplexed on it. Dropping it closes it.
#[derive(Debug)]
pub struct Channel {
    requests: Requests,
    connection: AbortHandle,
}

/// The requests of a channel; one that has been closed answers each with an error.
#[derive(Clone, Debug)]
pub struct Requests {
    sender: http2::SendRequest<Full<Bytes>>,
    authority: String,
}

impl Drop for Channel {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Channel {
    pub async fn open(
        server: &Server,
        machine: &MachinePrivate,
        control: &MachinePublic,
    ) -> Result<Self, ControlError> {
        let late = |_| ControlError::Connect {
            server: server.url(),
            why: "the encrypted channel was not set up in time".to_owned(),
        };
        timeout(
            HANDSHAKE_TIMEOUT,
            Self::open_patiently(server, machine, control),
        )
        .await
        .map_err(late)?
    }

    async fn open_patiently(
        server: &Server,
        machine: &MachinePrivate,
        control: &MachinePublic,
    ) -> Result<Self, ControlError> {
        let broken = |error: hyper::Error| ControlError::Broken(error.to_string());
        let mut ephemeral = [0; 32];
        getrandom::fill(&mut ephemeral).map_err(|error| ControlError::Broken(error.to_string()))?;
        let (initiator, initiation) =
            Initiator::new(CAPABILITY_VERSION, machine, control, ephemeral)
                .map_err(|error| ControlError::Channel(error.to_string()))?;
        let request = Request::post("/ts2021")
            .header("Host", &server.authority)
            .header("Upgrade", "tailscale-control-protocol")
            .header("Connection", "upgrade")
            .header("X-Tailscale-Handshake", STANDARD.encode(&initiation))
            .body(Empty::<Bytes>::new())
            .map_err(|error| ControlError::Broken(error.to_string()))?;
        let response = server
            .http1()
            .await?
            .send_request(request)
            .await
            .map_err(broken)?;
        let status = response.status();
        if status.is_server_error() {
            return Err(ControlError::Status {
                request: "/ts2021",
                status,
                text: error_text(response.into_body()).await,
            });
        }
        if status != StatusCode::SWITCHING_PROTOCOLS {
            return Err(ControlError::NotTailnet {
                server: server.url(),
                why: format!("it answers {status} to /ts2021"),
            });
        }
        let upgraded = hyper::upgrade::on(response).await.map_err(broken)?;
        let (stream, _challenge) = NoiseStream::connect(TokioIo::new(upgraded), initiator, &[])
            .await
            .map_err(|error| match error.kind() {
                std::io::ErrorKind::InvalidData => ControlError::Channel(error.to_string()),
                _ => ControlError::Broken(error.to_string()),
            })?;
        let (requests, connection) = http2::Builder::new(TokioExecutor::new())
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(WINDOW)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(broken)?;
        let task = tokio::spawn(async move {
            if let Err(error) = connection.await {
                debug!(%error, "the control channel ended");
            }
        });
        Ok(Self {
            requests: Requests {
                sender: requests,
                authority: server.authority.clone(),
            },
            connection: task.abort_handle(),
        })
    }

    pub fn clone_requests(&self) -> Requests {
        self.requests.clone()
    }

    /// As [`Requests::request`].
    pub async fn request(
        &self,
        method: Method,
        path: &str,
        load_balancer: &[NodePublic],
        body: Bytes,
    ) -> Result<Response<Incoming>, ControlError> {
        self.requests
            .request(method, path, load_balancer, body)
            .await
    }
}

impl Requests {
    /// One request; the answer's body is still to be read. `load_balancer` names the node keys in the body.
    pub async fn request(
        &self,
        method: Method,
        path: &str,
        load_balancer: &[NodePublic],
        body: Bytes,
    ) -> Result<Response<Incoming>, ControlError> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("https://{}{path}", self.authority));
        for key in load_balancer {
            request = request.header("Ts-Lb", key.to_string());
        }
        let request = request
            .body(Full::new(body))
            .map_err(|error| ControlError::Broken(error.to_string()))?;
        self.sender
            .clone()
            .send_request(request)
            .await
            .map_err(|error| ControlError::Broken(error.to_string()))
    }
}
