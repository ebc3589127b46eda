//! Taking in the netmap: message by message, as an earlier agent kept it, or none any more.

use std::time::Instant;

use lowroad_wire::{
    control::{Malformed, MapResponse},
    netmap::{Changes, NetMap},
};
use time::OffsetDateTime;
use tracing::{debug, warn};

use super::{Consequences, Node, news::News};

/// Pieces left out of the netmap that `status` can tell of.
pub(super) const MAX_MALFORMED: usize = 64;

impl Node {
    /// A new poll has begun: its first message replaces the netmap. The old one stays in force until then.
    pub fn poll_started(&mut self) {
        self.fresh = true;
    }

    /// Whether the next message begins a netmap.
    pub fn begins(&self) -> bool {
        self.fresh || self.map.is_none()
    }

    /// The netmap holds no more: no peers, no addresses, and a filter that drops everything.
    pub fn forget_map(&mut self) {
        self.map = Some(NetMap::default());
        self.news = News::default();
        self.cached = None;
        self.fresh = true;
        self.read_anew();
    }

    /// The same for what an earlier agent left; false if there is nothing.
    pub fn void_what_was_found(&mut self) -> bool {
        if self.found_device {
            self.forget_map();
        }
        self.found_device
    }

    /// Goes on with what an earlier agent knew, until the server sends a netmap.
    pub fn take_cached(
        &mut self,
        map: NetMap,
        saved: OffsetDateTime,
        now: Instant,
        clock: OffsetDateTime,
    ) {
        self.map = Some(map);
        self.news = News::default();
        self.cached = Some(saved);
        self.fresh = true;
        self.read_anew();
        self.follow(&Changes::default(), now, clock);
    }

    /// Nobody renews the own key while the server is away: with it ends what the kept netmap allowed, whatever the clock says later. True if that is now.
    pub fn drop_expired_cache(&mut self, clock: OffsetDateTime) -> bool {
        let map = self.map.as_ref().filter(|_| self.cached.is_some());
        let has_ended = map.is_some_and(|map| map.own_key_has_expired(map.control_time(clock)));
        if has_ended {
            warn!("this node's key has expired while the login server was out of reach");
            self.forget_map();
        }
        has_ended
    }

    /// Whether the kernel holds that there is no netmap any more.
    pub fn is_void(&self) -> bool {
        let map = self.map.as_ref();
        self.programmed && map.is_some_and(|map| map.self_node.is_none())
    }

    /// Takes in one netmap message.
    pub fn take_map(
        &mut self,
        response: MapResponse,
        malformed: &[Malformed],
        now: Instant,
        clock: OffsetDateTime,
    ) -> Consequences {
        if self.fresh {
            self.malformed.clear();
            self.left_out = 0;
        }
        for piece in malformed {
            warn!(%piece, "part of the netmap was left out");
            if self.malformed.len() < MAX_MALFORMED {
                self.malformed.push(piece.to_string());
            }
        }
        if response.keep_alive && self.fresh {
            // It begins nothing.
            return Consequences::default();
        }
        self.cached = None;
        let begins = std::mem::take(&mut self.fresh) || self.map.is_none();
        let old = self.map.take().unwrap_or_default();
        let (mut map, replaced) = match begins {
            true => (NetMap::default(), old.peers),
            false => (old, Default::default()),
        };
        let changes = map.apply(response, clock);
        self.news.note(&changes, replaced.into_keys());
        self.left_out = self.left_out.saturating_add(changes.left_out);
        if changes.left_out > 0 {
            warn!(
                pieces = changes.left_out,
                "the netmap is too large: part of it was left out"
            );
        }
        debug!(
            begins,
            added = changes.peers_added.len(),
            changed = changes.peers_changed.len(),
            removed = changes.peers_removed.len(),
            filter = changes.filter,
            "netmap"
        );
        self.map = Some(map);
        if begins {
            self.read_anew();
        }
        self.follow(&changes, now, clock);
        Consequences {
            begins,
            netmap: begins || !changes.is_empty(),
            derp_map: begins || changes.derp,
            kernel: !self.programmed,
        }
    }
}
