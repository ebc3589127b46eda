//! The kept netmap: what an agent that starts goes on with until the server answers.

use std::time::{Duration, Instant};

use time::OffsetDateTime;
use tokio::{task::spawn_blocking, time::timeout};
use tracing::info;

use super::{Engine, session::Session};
use crate::state::{NetmapWrite, Of};

/// How long a write of the netmap may hold up the end of the agent.
const END_PATIENCE: Duration = Duration::from_secs(2);

/// Whether the own key has ended by the kept netmap; only the server can say after that that it is good.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Ended {
    #[default]
    No,
    /// And the kernel may hold what it allowed.
    InForce,
    /// And the kernel holds nothing of it.
    Done,
}

impl Engine {
    /// Goes on with the netmap that was kept, if there is one of this node.
    pub(super) async fn resume(&mut self, session: &mut Session, now: Instant) {
        if self.ended == Ended::InForce {
            // The file says so, perhaps of a key before this one: it stays until what was found is gone.
            return;
        }
        let (Some(of), Some(node)) = (self.whose(), &mut session.node) else {
            return;
        };
        let clock = OffsetDateTime::now_utc();
        let Some(cached) = self.cache.load(&of, clock).await else {
            return;
        };
        let map = &cached.map;
        if self.ended != Ended::No || map.own_key_has_expired(map.control_time(clock)) {
            info!("this node's key has expired since the netmap was kept: nothing of it holds");
            self.ended = Ended::InForce;
            self.reconcile_at = now;
            // What is found goes before the file does: an agent that takes over in between has to know it as well.
            if !node.void_what_was_found() {
                self.note_void().await;
            }
            return;
        }
        if map.self_node.is_none() {
            info!("the kept netmap has no node of ours: nothing of it holds");
            node.void_what_was_found();
            self.reconcile_at = now;
            return self.cache.forget().await;
        }
        info!(
            peers = map.peers.len(),
            age_s = (clock - cached.saved).whole_seconds(),
            "going on with the kept netmap until the server answers"
        );
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

    /// The own key may end while the kept netmap is in use.
    pub(super) fn drop_expired_cache(&mut self) {
        let session = self.session.as_mut();
        let node = session.and_then(|session| session.node.as_mut());
        if node.is_some_and(|node| node.drop_expired_cache(OffsetDateTime::now_utc())) {
            self.ended = Ended::InForce;
        }
    }

    /// The kernel holds nothing of an ended key.
    pub(super) async fn note_void(&mut self) {
        if self.ended == Ended::InForce {
            self.ended = Ended::Done;
            self.cache.forget().await;
        }
    }

    /// What is kept holds no more. That of an ended key goes when the kernel holds nothing of it.
    pub(super) async fn forget_kept(&mut self) {
        // It may have ended since the last look.
        self.drop_expired_cache();
        match self.ended {
            Ended::InForce => self.cache.put_off(),
            Ended::No | Ended::Done => self.cache.forget().await,
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
        let session = self.session.as_ref();
        let map = session.and_then(|session| session.node.as_ref()?.map.as_ref());
        let (Some(of), Some(map)) = (whose, map.filter(|map| map.self_node.is_some())) else {
            self.forget_kept().await;
            return None;
        };
        self.cache.begin(now, of, map)
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
