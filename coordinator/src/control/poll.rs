//! `POST /machine/map`: update requests, and the polls that carry the netmap.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use hyper::{Response, StatusCode};
use lowroad_wire::{
    control::{MapRequest, MapResponse},
    framing::{self, Compression},
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{
    Body,
    body::{text, with_type},
    machine::Peer,
    outlet::{Outlet, Unsent, outlet},
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
        // Nobody but a hostile client has two under way.
        let turn = if omit_peers {
            None
        } else {
            Some(peer.site.channels.turn(machine).ok_or_else(busy)?)
        };
        let (id, receipt) = hub.change(|state| state.update(machine, request, now()));
        let id = id?;
        // Once the answer is there, who asks next sees what was said.
        let snapshot = hub.published(receipt).await?;
        if omit_peers {
            return Ok(text(StatusCode::OK, ""));
        }
        let first = Sent::first(id, &snapshot, &hub.common(), now());
        let (_, message) = first.ok_or_else(gone)?;
        let body = Body::Netmap(encode(&message, compression)?, turn);
        return Ok(with_type(StatusCode::OK, "application/json", body));
    }
    let (attached, receipt) = hub.change(|state| {
        let id = state.update(machine, request, now())?;
        Ok::<_, Error>(state.attach(id, now()))
    });
    let session = Session {
        attached: attached?,
        hub: hub.clone(),
        compression,
        channel: peer.end.clone(),
    };
    let snapshot = hub.published(receipt).await?;
    // One message may wait for its reader; what changes meanwhile becomes part of the next.
    let (out, pieces) = outlet();
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
    tokio::spawn(session.run(sent, bytes, out));
    Ok(Response::new(Body::Poll(pieces)))
}

fn gone() -> Error {
    Error::not_found("node not found; it has just been deleted")
}

fn busy() -> Error {
    Error::refused(
        StatusCode::TOO_MANY_REQUESTS,
        "a netmap is under way to this machine already",
    )
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
    /// Ends the channel of the poll.
    channel: CancellationToken,
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
    async fn run(self, mut sent: Sent, first: Bytes, out: Outlet) {
        let node = self.attached.node;
        tracing::debug!(%node, bytes = first.len(), "poll begun");
        let end = match self.send(&out, first).await {
            Ok(()) => self.follow(&mut sent, &out).await,
            Err(end) => end,
        };
        if matches!(end, End::Superseded | End::Deleted) {
            self.bid_farewell(sent, out).await;
        }
        match end {
            End::Slow => {
                tracing::warn!(%node, "poll and channel ended: the client does not read");
                // What else is under way on it would not be read either.
                self.channel.cancel();
            }
            end => tracing::debug!(%node, ?end, "poll ended"),
        }
    }

    async fn follow(&self, sent: &mut Sent, out: &Outlet) -> End {
        let mut snapshots = self.hub.snapshots();
        // What was published since the first message was made.
        snapshots.mark_changed();
        let mut silence_ends = Instant::now() + self.silence();
        loop {
            let bytes = tokio::select! {
                () = self.attached.cancelled.cancelled() => return End::Superseded,
                () = out.closed() => return End::Disconnected,
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
            if let Err(end) = self.send(out, bytes).await {
                return end;
            }
            silence_ends = Instant::now() + self.silence();
        }
    }

    /// Tells a node that has been deleted.
    async fn bid_farewell(&self, sent: Sent, out: Outlet) {
        let node = self.attached.node;
        if self.hub.read(|state| state.node(node).is_some()) {
            return;
        }
        let farewell = self.write(&sent.last(now()));
        // The netmap is not kept for a reader that takes its time.
        drop(sent);
        if let Some(farewell) = farewell {
            out.end(farewell).await;
        }
    }

    fn write(&self, message: &MapResponse) -> Option<Bytes> {
        let node = self.attached.node;
        encode(message, self.compression)
            .inspect_err(|error| tracing::error!(%node, %error))
            .ok()
    }

    async fn send(&self, out: &Outlet, bytes: Bytes) -> Result<(), End> {
        tokio::select! {
            () = self.attached.cancelled.cancelled() => Err(End::Superseded),
            sent = out.send(bytes, self.hub.settings.timing.write_timeout) => sent.map_err(|unsent| match unsent {
                Unsent::Gone => End::Disconnected,
                Unsent::Slow => End::Slow,
            }),
        }
    }

    /// How long to be silent: with jitter, or all polls of a restarted server would be kept alive at once.
    fn silence(&self) -> Duration {
        let base = self.hub.settings.timing.keep_alive;
        base + base.mul_f64(f64::from(random::<1>()[0]) / 255.0 * 0.18)
    }
}
