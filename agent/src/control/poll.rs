//! The netmap poll, and the reports beside it (protocol.md 1.7).

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::{Method, StatusCode, body::Incoming};
use lowroad_wire::{
    control::{CAPABILITY_VERSION, Hostinfo, Malformed, MapRequest, MapResponse},
    framing::{Compression, MessageReader},
    key::{DiscoPublic, NodePublic},
};
use tokio::{
    sync::{mpsc, watch},
    time::{sleep, timeout},
};
use tracing::{debug, warn};

use super::{Channel, ControlError, ControlEvent, Facts, backoff, dial::error_text};
use crate::process::{give_memory_back, without_stalling};

const PATH: &str = "/machine/map";
/// Silence after which the connection counts as dead; servers send something at least every 60 s.
pub const WATCHDOG: Duration = Duration::from_secs(120);
/// How long a report may go unanswered. Reports follow changes of this host's addresses, which is when connections die silently: one that is not answered
/// ends the connection.
pub const REPORT_TIMEOUT: Duration = Duration::from_secs(10);
/// Of an unpacked message in bytes: what it took is given back.
const LONG: usize = 1 << 20;
/// A report's answer is not looked at, but read so that its stream ends.
const REPORT_LIMIT: usize = 16 << 20;

#[derive(Clone, Copy, Debug)]
pub struct Identity {
    pub node: NodePublic,
    pub disco: DiscoPublic,
}

/// The running long poll.
#[derive(Debug)]
pub struct Poll {
    body: Incoming,
    reader: MessageReader,
}

impl Poll {
    pub async fn start(
        channel: &Channel,
        identity: &Identity,
        hostinfo: &Hostinfo,
    ) -> Result<Self, ControlError> {
        let request = MapRequest {
            keep_alive: true,
            stream: true,
            ..request(identity, hostinfo)
        };
        let response = timeout(
            WATCHDOG,
            channel.request(Method::POST, PATH, &[identity.node], body(&request)),
        )
        .await
        .map_err(|_| ControlError::Silent(WATCHDOG))??;
        if response.status() != StatusCode::OK {
            return Err(ControlError::Status {
                request: PATH,
                status: response.status(),
                text: error_text(response.into_body()).await,
            });
        }
        Ok(Self {
            body: response.into_body(),
            reader: MessageReader::new(Compression::Zstd),
        })
    }

    /// Takes a second for the longest that may be.
    fn parse(&mut self) -> Result<Option<(MapResponse, Vec<Malformed>)>, lowroad_wire::Error> {
        let Some(message) = self.reader.next_message()? else {
            return Ok(None);
        };
        let parsed = MapResponse::parse(&message);
        if message.len() > LONG {
            drop(message);
            give_memory_back();
        }
        parsed.map(Some)
    }

    /// The next message, keep-alives included. Cancel-safe.
    pub async fn next(&mut self) -> Result<(MapResponse, Vec<Malformed>), ControlError> {
        let unreadable = |source| ControlError::Unreadable {
            request: PATH,
            source,
        };
        loop {
            let parsed = match self.reader.is_complete() {
                true => without_stalling(|| self.parse()),
                // Or it is too long.
                false => self.parse(),
            };
            if let Some(message) = parsed.map_err(unreadable)? {
                return Ok(message);
            }
            match timeout(WATCHDOG, self.body.frame()).await {
                Err(_) => return Err(ControlError::Silent(WATCHDOG)),
                Ok(None) => return Err(ControlError::Closed),
                Ok(Some(Err(error))) => return Err(ControlError::Broken(error.to_string())),
                Ok(Some(Ok(frame))) => {
                    if let Some(data) = frame.data_ref() {
                        self.reader.push(data);
                    }
                }
            }
        }
    }
}

/// Reports the newest facts, at once and after every change, until the engine is gone. One report at a time; failed ones are repeated with backoff.
pub async fn report_changes(
    channel: &Channel,
    identity: &Identity,
    mut facts: watch::Receiver<Facts>,
    events: mpsc::Sender<ControlEvent>,
) -> Result<(), ControlError> {
    let mut backoff = backoff();
    loop {
        let newest = facts.borrow_and_update().clone();
        match report(channel, identity, &newest).await {
            Ok(()) => {
                backoff.reset();
                if events
                    .send(ControlEvent::Acknowledged(newest.generation))
                    .await
                    .is_err()
                    || facts.changed().await.is_err()
                {
                    return Ok(());
                }
            }
            Err(error @ (ControlError::Broken(_) | ControlError::Silent(_))) => return Err(error),
            Err(error) => {
                warn!(%error, "the control server does not take a report");
                sleep(backoff.next(rand::random())).await;
            }
        }
    }
}

async fn report(channel: &Channel, identity: &Identity, facts: &Facts) -> Result<(), ControlError> {
    let request = MapRequest {
        omit_peers: true,
        endpoints: facts
            .endpoints
            .iter()
            .map(|(address, _)| *address)
            .collect(),
        endpoint_types: facts.endpoints.iter().map(|(_, kind)| *kind).collect(),
        ..request(identity, &facts.hostinfo)
    };
    let exchange = async {
        let response = channel
            .request(Method::POST, PATH, &[identity.node], body(&request))
            .await?;
        if response.status() != StatusCode::OK {
            return Err(ControlError::Status {
                request: PATH,
                status: response.status(),
                text: error_text(response.into_body()).await,
            });
        }
        if let Err(error) = Limited::new(response.into_body(), REPORT_LIMIT)
            .collect()
            .await
        {
            debug!(%error, "the answer to a report is cut off");
        }
        Ok(())
    };
    timeout(REPORT_TIMEOUT, exchange)
        .await
        .map_err(|_| ControlError::Silent(REPORT_TIMEOUT))?
}

fn request(identity: &Identity, hostinfo: &Hostinfo) -> MapRequest {
    MapRequest {
        version: CAPABILITY_VERSION,
        compress: "zstd".to_owned(),
        keep_alive: true,
        node_key: Some(identity.node),
        disco_key: Some(identity.disco),
        hostinfo: Some(hostinfo.clone()),
        ..MapRequest::default()
    }
}

fn body(request: &MapRequest) -> Bytes {
    serde_json::to_vec(request)
        .expect("a map request always serialises")
        .into()
}
