//! `POST /machine/map`: update requests, and the polls that carry the netmap.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use hyper::{Response, StatusCode};
use lowroad_wire::{
    control::{MapRequest, MapResponse},
    framing::{self, Compression},
};
use tokio::{sync::mpsc, time::Instant};

use super::{
    Body,
    body::{respond, text},
    machine::Peer,
};
use crate::{
    Error,
    delta::Sent,
    hub::{Hub, now, random},
    state::Attached,
};

pub async fn map(peer: &Peer, request: MapRequest) -> Result<Response<Body>, Error> {
    let hub = &peer.site.hub;
    let compression = Compression::from_request(&request.compress);
    let (stream, omit_peers) = (request.stream, request.omit_peers);
    let machine = peer.machine;
    if !stream {
        let (id, receipt) = hub.change(|state| state.update(machine, request, now()));
        let id = id?;
        // Once the answer is there, who asks next sees what was said.
        let snapshot = hub.published(receipt).await;
        if omit_peers {
            return Ok(text(StatusCode::OK, ""));
        }
        let first = Sent::first(id, &snapshot, &hub.common(), now());
        let (_, message) = first.ok_or_else(gone)?;
        return Ok(respond(
            StatusCode::OK,
            "application/json",
            encode(&message, compression)?,
        ));
    }
    let (attached, receipt) = hub.change(|state| {
        let id = state.update(machine, request, now())?;
        Ok::<_, Error>(state.attach(id, now()))
    });
    let session = Session {
        attached: attached?,
        hub: hub.clone(),
        compression,
    };
    let snapshot = hub.published(receipt).await;
    // One message may wait for its reader; what changes meanwhile becomes part of the next.
    let (pieces, receiver) = mpsc::channel(1);
    let hub = hub.clone();
    let first = move || {
        let id = session.attached.node;
        let (sent, message) = Sent::first(id, &snapshot, &hub.common(), now()).ok_or_else(gone)?;
        let bytes = encode(&message, compression)?;
        Ok::<_, Error>((session, sent, bytes))
    };
    // A large tailnet's first message takes a while to write down.
    let first = tokio::task::spawn_blocking(first).await;
    let (session, sent, bytes) = first.map_err(|error| Error::Setting(error.to_string()))??;
    tokio::spawn(session.run(sent, bytes, pieces));
    Ok(Response::new(Body::Pieces(receiver)))
}

fn gone() -> Error {
    Error::not_found("node not found; it has just been deleted")
}

fn encode(message: &MapResponse, compression: Compression) -> Result<Bytes, Error> {
    let cannot =
        |error: &dyn std::fmt::Display| Error::Setting(format!("cannot write a netmap: {error}"));
    let json = serde_json::to_vec(message).map_err(|error| cannot(&error))?;
    framing::encode(&json, compression).map_err(|error| cannot(&error))
}

/// A running poll. Dropping it, however that comes about, tells the state.
struct Session {
    attached: Attached,
    hub: Arc<Hub>,
    compression: Compression,
}

impl Drop for Session {
    fn drop(&mut self) {
        let Attached { node, serial, .. } = self.attached;
        self.hub
            .change(|state| state.detach(node, serial, std::time::Instant::now()));
    }
}

/// Why a poll ended.
#[derive(Debug)]
enum End {
    Superseded,
    Disconnected,
    Slow,
    Deleted,
    Failed,
}

impl Session {
    async fn run(self, mut sent: Sent, first: Bytes, pieces: mpsc::Sender<Bytes>) {
        let node = self.attached.node;
        tracing::debug!(%node, bytes = first.len(), "poll begun");
        let end = match self.send(&pieces, first).await {
            Ok(()) => self.follow(&mut sent, &pieces).await,
            Err(end) => end,
        };
        match end {
            End::Slow => tracing::warn!(%node, "poll ended: the client does not read"),
            end => tracing::debug!(%node, ?end, "poll ended"),
        }
    }

    async fn follow(&self, sent: &mut Sent, pieces: &mpsc::Sender<Bytes>) -> End {
        let mut snapshots = self.hub.snapshots();
        // What was published since the first message was made.
        snapshots.mark_changed();
        let mut silence_ends = Instant::now() + self.silence();
        loop {
            let bytes = tokio::select! {
                () = self.attached.cancelled.cancelled() => return End::Superseded,
                () = pieces.closed() => return End::Disconnected,
                changed = snapshots.changed() => match changed {
                    Ok(()) => {
                        let snapshot = snapshots.borrow_and_update().clone();
                        match sent.difference(&snapshot, now()) {
                            Ok(None) => continue,
                            Ok(Some(message)) => match self.write(&message) {
                                Some(bytes) => bytes,
                                None => return End::Failed,
                            },
                            Err(crate::delta::Gone) => return End::Deleted,
                        }
                    }
                    Err(_) => return End::Disconnected,
                },
                () = tokio::time::sleep_until(silence_ends) => match framing::encode(framing::KEEP_ALIVE, self.compression) {
                    Ok(bytes) => bytes,
                    Err(_) => return End::Failed,
                },
            };
            if let Err(end) = self.send(pieces, bytes).await {
                return end;
            }
            silence_ends = Instant::now() + self.silence();
        }
    }

    fn write(&self, message: &MapResponse) -> Option<Bytes> {
        let node = self.attached.node;
        encode(message, self.compression)
            .inspect_err(|error| tracing::error!(%node, %error))
            .ok()
    }

    async fn send(&self, pieces: &mpsc::Sender<Bytes>, bytes: Bytes) -> Result<(), End> {
        tokio::select! {
            () = self.attached.cancelled.cancelled() => Err(End::Superseded),
            sent = tokio::time::timeout(self.hub.settings.timing.write_timeout, pieces.send(bytes)) => match sent {
                Ok(Ok(())) => Ok(()),
                Ok(Err(_)) => Err(End::Disconnected),
                Err(_) => Err(End::Slow),
            },
        }
    }

    /// How long to be silent: with jitter, or all polls of a restarted server would be kept alive at once.
    fn silence(&self) -> Duration {
        let base = self.hub.settings.timing.keep_alive;
        base + base.mul_f64(f64::from(random::<1>()[0]) / 255.0 * 0.18)
    }
}
