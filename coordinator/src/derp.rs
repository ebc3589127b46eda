//! DERP server: relays packets between nodes that know each other by their keys (`protocol.md` 2).
//!
//! Each connection is one task: its reading half puts packets into the queue of the connection
//! that they are for, its writing half empties its own queue in batches. No packet makes a task,
//! and nothing waits for a slow client: its queues drop their oldest packets, and when it takes
//! nothing for two seconds it is dropped itself.

mod connection;
mod counters;
mod peers;
mod queue;

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use lowroad_wire::key::{NodePrivate, NodePublic};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;

pub use counters::Status;

use crate::fair::Places;
use counters::Counters;
use peers::Peers;

/// Decides whether the holder of a key may use the relay.
pub type Admission = Arc<dyn Fn(&NodePublic) -> bool + Send + Sync>;

/// Connections that may be greeting at the same time: until then nobody has proven anything. One more takes the place of
/// whoever has most.
const MAX_GREETING: usize = 512;

/// How long [`DerpServer::shutdown`] waits for clients to take the last frames.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(3);

/// The relay.
pub struct DerpServer {
    key: NodePrivate,
    admission: Admission,
    greeting: Arc<Places>,
    peers: Peers,
    counters: Counters,
    stop: watch::Sender<bool>,
}

impl fmt::Debug for DerpServer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("DerpServer")
            .field("key", &self.key.public())
            .field("status", &self.status())
            .finish_non_exhaustive()
    }
}

impl DerpServer {
    /// A relay with this identity; `admission` is asked when a client has proven its key, and once
    /// more when [`Self::disconnect`] can reach its connection.
    pub fn new(
        key: NodePrivate,
        admission: impl Fn(&NodePublic) -> bool + Send + Sync + 'static,
    ) -> Self {
        Self {
            key,
            admission: Arc::new(admission),
            greeting: Places::new(MAX_GREETING),
            peers: Peers::default(),
            counters: Counters::default(),
            stop: watch::Sender::new(false),
        }
    }

    /// The relay's public key.
    pub fn public_key(&self) -> NodePublic {
        self.key.public()
    }

    /// What the relay did since it started, and who is there.
    pub fn status(&self) -> Status {
        self.counters.status(self.peers.len())
    }

    /// Serves one client from after the HTTP upgrade until either side ends the connection.
    pub async fn serve<S>(&self, stream: S, remote: SocketAddr)
    where
        S: AsyncRead + AsyncWrite + Send,
    {
        let _open = self.counters.open.enter();
        let mut stop = self.stop.subscribe();
        match connection::run(self, stream, remote, &mut stop).await {
            Ok(()) => tracing::debug!(%remote, "relay connection closed"),
            Err(why) => tracing::debug!(%remote, %why, "relay connection ended"),
        }
    }

    /// Ends all connections of a key, as when its node is deleted.
    pub fn disconnect(&self, key: &NodePublic) {
        self.peers.close(key);
    }

    /// Tells all clients to come back, gives them what is queued, and closes the connections.
    /// Connections that come later are closed at once.
    pub async fn shutdown(&self) {
        self.stop.send_replace(true);
        let gone = self.counters.open.all_gone();
        if tokio::time::timeout(SHUTDOWN_TIMEOUT, gone).await.is_err() {
            tracing::warn!("some relay clients did not take their last frames");
        }
    }
}

#[cfg(test)]
mod tests;
