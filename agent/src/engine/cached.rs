//! The kept netmap: what an agent that starts goes on with until the server answers.

use std::time::{Duration, Instant};

use time::OffsetDateTime;
use tokio::{task::spawn_blocking, time::timeout};
use tracing::info;

use super::{Engine, session::Session};
use crate::state::{NetmapWrite, Of};

/// How long a write of the netmap may hold up the end of the agent.
const END_PATIENCE: Duration = Duration::from_secs(2);

impl Engine {
    /// Goes on with the netmap that was kept, if there is one of this node.
    pub(super) async fn resume(&mut self, session: &mut Session, now: Instant) {
        let (Some(of), Some(node)) = (self.whose(), &mut session.node) else {
            return;
        };
        let clock = OffsetDateTime::now_utc();
        let Some(cached) = self.cache.load(&of, clock).await else {
            return;
        };
        let control_time = cached.map.control_time(clock);
        if cached.map.own_key_has_expired(control_time) {
            info!("the kept netmap is of no use: this node's key has expired since");
            if !node.found_device {
                return self.cache.forget().await;
            }
            // The earlier agent's peers and rules are in force still: what follows from this netmap takes them out. The file stays until it has, for an agent that
            // takes over before that has to know it as well.
        } else {
            info!(
                peers = cached.map.peers.len(),
                age_s = (clock - cached.saved).whole_seconds(),
                "going on with the kept netmap until the server answers"
            );
        }
        node.take_cached(cached.map, cached.saved, now, clock);
        session.set_derp_map();
        self.reconcile_at = now;
    }

    fn whose(&self) -> Option<Of> {
        Some(Of {
            node_key: self.state.node_key.as_ref()?.public(),
            server: self.state.registered_at.clone()?,
        })
        .filter(|of| of.server == self.prefs.control_url)
    }

    /// A kept netmap has done all it can once the kernel holds what follows from the end of the own key.
    pub(super) async fn forget_expired(&mut self) {
        let has_ended = |session: &Session| {
            let mut node = session.node.iter();
            session.is_expired() && node.any(|node| node.cached.is_some() && node.programmed)
        };
        if self.session.as_ref().is_some_and(has_ended) {
            self.cache.forget().await;
        }
    }

    /// Writes the netmap in use, in the background.
    pub(super) async fn keep_netmap(&mut self, now: Instant) {
        if let Some(write) = self.begin_write(now).await {
            spawn_blocking(move || write.run(OffsetDateTime::now_utc()));
        }
    }

    /// The same for an agent that ends: a write that is due is not put off.
    pub(super) async fn keep_netmap_now(&mut self) {
        self.cache.settle().await;
        self.cache.idle(END_PATIENCE).await;
        if self.cache.due().is_some()
            && !self.cache.is_kept()
            && let Some(write) = self.begin_write(Instant::now()).await
        {
            let write = spawn_blocking(move || write.run(OffsetDateTime::now_utc()));
            // What comes late is lost, and with it nothing but the file.
            let _ = timeout(END_PATIENCE, write).await;
        }
    }

    async fn begin_write(&mut self, now: Instant) -> Option<NetmapWrite> {
        let whose = self.whose();
        let node = self
            .session
            .as_ref()
            .and_then(|session| session.node.as_ref());
        match (whose, node.and_then(|node| node.map.as_ref())) {
            (Some(of), Some(map)) => self.cache.begin(now, of, map),
            _ => {
                self.cache.forget().await;
                None
            }
        }
    }

    /// The kernel holds what a netmap wants. The first time, it is told how long that took.
    pub(super) fn note_adoption(&mut self, steps: usize) {
        let programmed = |session: &Session| session.node.as_ref().map(|node| node.programmed);
        if self.adopted_after.is_none() && self.session.as_ref().and_then(programmed) == Some(true)
        {
            let after = self.began.elapsed();
            self.adopted_after = Some(after);
            info!(
                ms = after.as_millis() as u64,
                steps, "adopted: the kernel holds what the netmap wants"
            );
        }
    }
}
