//! What WireGuard's counters say: life on a path without pongs, and peers that moved by themselves.

use super::*;
use crate::path::{PeerStats, score::better};

impl Peer {
    /// Data of this peer came by a relay; it is injected with the programmed endpoint as its source.
    pub fn on_relayed_data(&mut self, now: Instant, out: &mut Outbox) {
        self.relayed_data = Some(now);
        self.on_relay_life(now, out);
    }

    /// The peer's agent lives and is reached by the relay: a direct path that is merely held is left.
    pub(super) fn on_relay_life(&mut self, now: Instant, out: &mut Outbox) {
        self.life = Some(now);
        self.relay_life = Some(now);
        if self.best.is_some_and(|best| best.held) {
            self.leave(now, out);
        }
    }

    pub fn on_stats(&mut self, now: Instant, stats: &PeerStats, out: &mut Outbox) {
        let read = Counters {
            rx: stats.rx_bytes,
            tx: stats.tx_bytes,
        };
        let Some(last) = self.counters.replace(read) else {
            self.check_endpoint(now, stats.endpoint, false, out);
            return;
        };
        let received = read.rx > last.rx;
        if received {
            self.life = Some(now);
        }
        if read.tx > last.tx {
            self.on_data(now, out);
        }
        self.check_endpoint(now, stats.endpoint, received, out);
        if received {
            self.silent_since = None;
        } else if read.tx > last.tx {
            self.on_silence(now, out);
        }
    }

    /// Data leaves and nothing comes: asks more often than the heartbeat does, and does not wait for the trust to
    /// run out if the path answers none of it while the relay does.
    fn on_silence(&mut self, now: Instant, out: &mut Outbox) {
        let Some(best) = self.best else { return };
        let since = *self.silent_since.get_or_insert(now);
        let unanswered = |ping: &&Outstanding| {
            ping.to == Some(best.endpoint)
                && ping.sent >= since
                && now.duration_since(ping.sent) >= SILENT_PING
        };
        let unanswered = self.pings.values().filter(unanswered).count();
        let relayed = self
            .relay_life
            .is_some_and(|at| at > since && at > best.lived);
        if unanswered >= SILENT_PINGS && relayed {
            self.leave(now, out);
        } else {
            self.ping(now, Some(best.endpoint), None, out);
            // A stream in one direction looks silent too, but its pings are answered.
            if unanswered > 0 {
                self.ask_by_relay(now, out);
            }
        }
    }

    fn check_endpoint(
        &mut self,
        now: Instant,
        observed: Option<SocketAddr>,
        received: bool,
        out: &mut Outbox,
    ) {
        let Some(observed) = observed else { return };
        let observed = SocketAddr::new(observed.ip().to_canonical(), observed.port());
        if observed != self.programmed {
            self.on_foreign(now, observed, received, out);
        } else if received && !self.is_relaying(now) {
            self.on_life(now, observed);
        }
    }

    /// Authenticated bytes arrived from the path in use: as good as a pong.
    fn on_life(&mut self, now: Instant, observed: SocketAddr) {
        if let Some(best) = self.best.as_mut().filter(|best| best.endpoint == observed) {
            best.on_life(now);
            self.proven = Some(observed);
            self.contest = None;
        }
    }

    /// WireGuard follows the source of the last authenticated packet; whether we do is decided here.
    fn on_foreign(&mut self, now: Instant, observed: SocketAddr, received: bool, out: &mut Outbox) {
        let lingers = |(endpoint, at): (SocketAddr, Instant)| {
            endpoint == observed && now.duration_since(at) < LEFT_LINGERS
        };
        if self.candidates.learn(observed, now).is_none() {
            out.set_endpoint(self.key, self.programmed);
            return;
        }
        match self.best {
            // Nothing better is known, and packets do arrive from there.
            None if received && !self.left.is_some_and(lingers) => {
                self.wake(now, CALLED_ACTIVE);
                self.choose(now, Best::unproven(observed, now), out);
                self.ping(now, Some(observed), None, out);
            }
            None => {
                out.set_endpoint(self.key, self.programmed);
                if self.is_active(now) {
                    self.ping(now, Some(observed), None, out);
                }
            }
            Some(best) => self.start_contest(now, best.endpoint, observed, out),
        }
    }

    fn start_contest(
        &mut self,
        now: Instant,
        ours: SocketAddr,
        theirs: SocketAddr,
        out: &mut Outbox,
    ) {
        if self.contest.is_some() {
            return;
        }
        if self.active_until.is_none() {
            self.wake(now, CALLED_ACTIVE);
        }
        self.contest = Some(Contest {
            endpoint: theirs,
            start: now,
            answered: None,
        });
        self.ping(now, Some(theirs), None, out);
        self.ping(now, Some(ours), None, out);
    }

    /// True if this answer belongs to a contest, which is settled when its time is over.
    pub(super) fn note_contest_answer(&mut self, endpoint: SocketAddr, latency: Duration) -> bool {
        match &mut self.contest {
            Some(contest) if contest.endpoint == endpoint => {
                contest.answered = Some(latency);
                true
            }
            _ => false,
        }
    }

    pub(super) fn settle_contest(&mut self, now: Instant, out: &mut Outbox) {
        let (Some(contest), Some(best)) = (self.contest, self.best) else {
            return;
        };
        if now < contest.start + CONTEST {
            return;
        }
        self.contest = None;
        let ours_answered = best.ponged.is_some_and(|at| at >= contest.start);
        let theirs = match contest.answered {
            Some(latency) => Best::answered(contest.endpoint, latency, now),
            None => Best::unproven(contest.endpoint, now),
        };
        let switch = match (ours_answered, contest.answered) {
            (true, Some(latency)) => {
                better((contest.endpoint, latency), (best.endpoint, best.latency))
            }
            (true, None) => false,
            // Silent agents on both: the packets that moved the endpoint were authentic, and newer.
            (false, _) => true,
        };
        if switch {
            self.choose(now, theirs, out);
        } else {
            out.set_endpoint(self.key, self.programmed);
        }
    }

    /// Asks over the relay whether the peer's agent lives at all.
    pub(super) fn ask_by_relay(&mut self, now: Instant, out: &mut Outbox) {
        if self.ping(now, None, None, out) {
            self.relay_asked = Some(now);
        }
    }

    /// Data leaves by the relay and nothing whatsoever comes back: if the peer's agent is dead, its relay is
    /// read by nobody, while its kernel may still answer where it last did.
    pub(super) fn try_last_resort(&mut self, now: Instant, out: &mut Outbox) {
        let (true, Some(endpoint)) = (self.has_data(now), self.proven) else {
            return;
        };
        let since = |at: Option<Instant>, time| at.is_none_or(|at| now.duration_since(at) >= time);
        if !since(self.life, LAST_RESORT_AFTER) {
            return;
        }
        if self.relay_asked <= self.life {
            self.ask_by_relay(now, out);
            return;
        }
        if since(self.relay_asked, LAST_RESORT_AFTER) && since(self.last_resort, LAST_RESORT_EVERY)
        {
            self.last_resort = Some(now);
            if self.candidates.learn(endpoint, now).is_some() {
                self.choose(now, Best::unproven(endpoint, now), out);
            }
        }
    }

    fn is_relaying(&self, now: Instant) -> bool {
        let recently = |at| now.duration_since(at) < RELAYED_RECENTLY;
        self.relayed_data.is_some_and(recently)
    }
}
