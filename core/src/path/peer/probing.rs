//! Pings: heartbeats, full rounds, bursts; and calls to the peer to do the same.

use super::*;

impl Peer {
    pub(super) fn beat(&mut self, now: Instant, out: &mut Outbox) {
        self.heartbeat = Some(now + HEARTBEAT);
        self.candidates.sweep(Some(now));
        let Some(best) = self.best else {
            self.try_last_resort(now, out);
            self.round(now, out);
            return;
        };
        // The path in use stays a candidate even if nobody announces it any more.
        self.candidates.learn(best.endpoint, now);
        self.ping(now, Some(best.endpoint), None, out);
        if now.duration_since(best.lived) > HEARTBEAT {
            self.ask_by_relay(now, out);
        }
        let slow = best.latency.is_none_or(|latency| latency > GOOD_ENOUGH);
        let due = self
            .full_round
            .is_none_or(|at| now.duration_since(at) >= UPGRADE);
        if slow && due {
            self.round(now, out);
        }
    }

    /// An ordinary full round, and a CallMeMaybe with it if data flows.
    fn round(&mut self, now: Instant, out: &mut Outbox) {
        if self.ping_all(now, PER_ENDPOINT, out) > 0 && self.has_data(now) {
            self.call(now, out);
        }
    }

    /// All candidates at once and again soon after; the peer is called to do the same.
    pub(super) fn start_burst(&mut self, now: Instant, out: &mut Outbox) {
        if self.disco.is_none() {
            return;
        }
        out.refresh(now, false);
        if self.has_data(now) {
            self.call(now, out);
            self.ask_by_relay(now, out);
        }
        self.ping_all(now, BURST_PER_ENDPOINT, out);
        self.burst = Some(Burst {
            start: now,
            next: 0,
        });
        self.burst_at = Some(now);
    }

    pub(super) fn continue_burst(&mut self, now: Instant, out: &mut Outbox) {
        let Some(mut burst) = self.burst else { return };
        if now < burst.start + RETRIES[burst.next] {
            return;
        }
        while burst.next < RETRIES.len() && burst.start + RETRIES[burst.next] <= now {
            burst.next += 1;
        }
        self.burst = (burst.next < RETRIES.len()).then_some(burst);
        if self.best.is_some_and(|best| best.latency.is_some()) {
            self.burst = None;
            return;
        }
        self.ping_all(now, BURST_PER_ENDPOINT, out);
        // The peer may not have known us when the first call came.
        if self.has_data(now) {
            self.call(now, out);
        }
    }

    /// Pings every candidate that wasn't pinged within `pause`; how many.
    pub(super) fn ping_all(&mut self, now: Instant, pause: Duration, out: &mut Outbox) -> usize {
        self.full_round = Some(now);
        let due = |pinged: Option<Instant>| pinged.is_none_or(|at| now.duration_since(at) >= pause);
        let due: Vec<_> = (self.candidates.iter().filter(|c| due(c.pinged)))
            .map(|candidate| candidate.address)
            .collect();
        let sent = due
            .iter()
            .filter(|to| self.ping(now, Some(**to), None, out));
        sent.count()
    }

    /// Sends one ping, by the relay if `to` is `None`; false if that cannot be.
    pub(super) fn ping(
        &mut self,
        now: Instant,
        to: Option<SocketAddr>,
        user: Option<PingId>,
        out: &mut Outbox,
    ) -> bool {
        if self.pings.len() >= MAX_OUTSTANDING || !self.unlock(out) {
            return false;
        }
        let Some(shared) = &self.shared else {
            return false;
        };
        let tx = out.transaction();
        let message = Message::Ping(Ping {
            tx,
            node: Some(out.node),
            padding: 0,
        });
        match (to, self.region()) {
            (Some(to), _) => {
                out.send_direct(to, shared, &message);
                if let Some(candidate) = self.candidates.get_mut(&to) {
                    candidate.pinged = Some(now);
                }
            }
            (None, Some(region)) => out.send_relay((region, self.key), shared, &message),
            (None, None) => return false,
        }
        self.pings.insert(
            tx,
            Outstanding {
                to,
                sent: now,
                user,
            },
        );
        true
    }

    pub(super) fn call(&mut self, now: Instant, out: &mut Outbox) {
        let soon = self
            .call_at
            .is_some_and(|at| now.duration_since(at) < CALL_MIN);
        if soon && !self.call_owed || out.local.is_empty() || !self.unlock(out) {
            return;
        }
        let (Some(region), Some(shared)) = (self.region(), &self.shared) else {
            return;
        };
        self.call_at = Some(now);
        self.call_owed = false;
        let endpoints = out.local.clone();
        out.send_relay(
            (region, self.key),
            shared,
            &Message::CallMeMaybe { endpoints },
        );
    }

    /// Computes the shared key when it is first needed: ten thousand idle peers need none.
    pub(super) fn unlock(&mut self, out: &Outbox) -> bool {
        if self.shared.is_none() {
            self.shared = self.disco.as_ref().map(|disco| out.shared_key(disco));
        }
        self.shared.is_some()
    }
}
