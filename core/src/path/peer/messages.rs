//! What the peer says: pings, pongs and calls.

use super::*;
use crate::path::score::better;

impl Peer {
    pub fn open(&mut self, out: &Outbox, envelope: &Envelope<'_>) -> Option<Message> {
        if !self.unlock(out) {
            return None;
        }
        disco::open(envelope, self.shared.as_ref()?).ok()
    }

    /// A ping that came by UDP from `from`.
    pub fn on_ping(&mut self, now: Instant, from: SocketAddr, tx: TxId, out: &mut Outbox) {
        if self.is_repeated(tx) || usable(from).is_none() || !self.answers.take(now) {
            return;
        }
        self.life = Some(now);
        self.answer(Some(from), tx, out);
        let new = self.candidates.learn(from, now) == Some(true);
        // The way in is open: ask whether the way out is, without waiting for the next round.
        let wanted = self.is_active(now)
            && match self.best.map(|best| best.latency) {
                None | Some(None) => true,
                Some(Some(latency)) => new && latency > GOOD_ENOUGH,
            };
        let rested = self.candidates.get_mut(&from).is_some_and(|candidate| {
            let pinged = candidate.pinged;
            pinged.is_none_or(|at| now.duration_since(at) >= BURST_PER_ENDPOINT)
        });
        if wanted && rested {
            self.ping(now, Some(from), None, out);
        }
    }

    /// A ping that came by a relay.
    pub fn on_relayed_ping(&mut self, now: Instant, region: RegionId, tx: TxId, out: &mut Outbox) {
        if self.is_repeated(tx) || !self.answers.take(now) {
            return;
        }
        self.on_relay_life(now, out);
        self.heard = Some(region);
        let Some(shared) = &self.shared else { return };
        // Where a relayed ping came from: the region's number at a reserved address, as stock does it.
        let source = SocketAddr::from(([127, 3, 3, 40], region.0));
        out.send_relay((region, self.key), shared, &Message::Pong { tx, source });
    }

    /// A pong that came by UDP; it vouches for the endpoint that was pinged.
    pub fn on_pong(&mut self, now: Instant, tx: TxId, out: &mut Outbox) {
        let Some(&Outstanding {
            to: Some(endpoint),
            sent,
            user,
        }) = self.pings.get(&tx)
        else {
            return;
        };
        self.pings.remove(&tx);
        self.life = Some(now);
        let latency = now.duration_since(sent);
        if let Some(id) = user {
            self.finish(id, PingResult::Direct { endpoint, latency }, out);
        }
        if !self.is_active(now) {
            return;
        }
        let fresh = Best::answered(endpoint, latency, now);
        let contested = self.note_contest_answer(endpoint, latency);
        match self.best {
            Some(best) if best.endpoint == endpoint => {
                self.best = Some(fresh);
                self.proven = Some(endpoint);
            }
            Some(_) if contested => {}
            Some(best) if !better((endpoint, latency), (best.endpoint, best.latency)) => {}
            _ => self.choose(now, fresh, out),
        }
    }

    pub fn on_relayed_pong(&mut self, now: Instant, region: RegionId, tx: TxId, out: &mut Outbox) {
        let Some(&Outstanding {
            to: None,
            sent,
            user,
        }) = self.pings.get(&tx)
        else {
            return;
        };
        self.pings.remove(&tx);
        self.on_relay_life(now, out);
        self.heard = Some(region);
        let latency = now.duration_since(sent);
        if let Some(id) = user {
            self.finish(id, PingResult::Relayed { region, latency }, out);
        }
    }

    /// The peer asks us to ping it everywhere at once, because it does so itself at this moment.
    pub fn on_call(
        &mut self,
        now: Instant,
        region: RegionId,
        endpoints: &[SocketAddr],
        out: &mut Outbox,
    ) {
        self.on_relay_life(now, out);
        self.heard = Some(region);
        let new = self.candidates.set_called(endpoints);
        if !self.calls.take(now) {
            return;
        }
        self.wake(now, CALLED_ACTIVE);
        if self.best.is_some_and(|best| best.latency.is_some()) && !new {
            return;
        }
        self.candidates.reset_timers();
        let rested = |at: Instant| now.duration_since(at) >= BURST_MIN;
        if new || self.burst_at.is_none_or(rested) {
            self.burst = Some(Burst {
                start: now,
                next: 0,
            });
            self.burst_at = Some(now);
        }
        self.ping_all(now, Duration::ZERO, out);
    }

    fn answer(&mut self, from: Option<SocketAddr>, tx: TxId, out: &mut Outbox) {
        if let (Some(shared), Some(source)) = (&self.shared, from) {
            out.send_direct(source, shared, &Message::Pong { tx, source });
        }
    }

    /// The first answer to a command-line ping counts; the others sent for it are forgotten.
    fn finish(&mut self, id: PingId, result: PingResult, out: &mut Outbox) {
        out.ping_done(id, result);
        for ping in self.pings.values_mut().filter(|ping| ping.user == Some(id)) {
            ping.user = None;
        }
    }

    fn is_repeated(&mut self, tx: TxId) -> bool {
        if self.recent.contains(&tx) {
            return true;
        }
        if self.recent.len() >= MAX_RECENT_TX {
            self.recent.pop_front();
        }
        self.recent.push_back(tx);
        false
    }
}
