//! One peer: its candidates, the path in use, and its timers.

use std::{
    collections::{BTreeMap, VecDeque},
    net::SocketAddr,
    time::{Duration, Instant},
};

use lowroad_wire::{
    control::RegionId,
    key::{DiscoPublic, NodePublic},
};

use super::standin::{self as disco, Envelope, Message, SharedKey, TxId};
use super::{
    PathPeer, PathStatus, PingId, PingResult,
    bucket::Bucket,
    candidates::{Candidates, usable},
    outbox::Outbox,
    timing::*,
};

mod messages;
mod roaming;

pub(super) struct Peer {
    key: NodePublic,
    pub disco: Option<DiscoPublic>,
    shared: Option<SharedKey>,
    home: Option<RegionId>,
    /// The region over which it last spoke to us.
    heard: Option<RegionId>,
    relay: SocketAddr,
    candidates: Candidates,
    best: Option<Best>,
    /// What WireGuard was last told.
    programmed: SocketAddr,
    /// The direct endpoint last given up, and when.
    left: Option<(SocketAddr, Instant)>,
    /// The last direct endpoint that showed life.
    proven: Option<SocketAddr>,

    active_until: Option<Instant>,
    /// Outgoing data was seen within the session; pings alone are answered, not called for.
    data_until: Option<Instant>,
    heartbeat: Option<Instant>,
    full_round: Option<Instant>,
    burst: Option<Burst>,
    burst_at: Option<Instant>,
    call_at: Option<Instant>,
    pings: BTreeMap<TxId, Outstanding>,

    counters: Option<Counters>,
    relayed_data: Option<Instant>,
    /// Anything at all came from the peer.
    life: Option<Instant>,
    contest: Option<Contest>,
    last_resort: Option<Instant>,
    /// A ping by the relay that has not been followed by any life yet, or the last one that was.
    relay_asked: Option<Instant>,

    recent: VecDeque<TxId>,
    answers: Bucket,
    calls: Bucket,
}

/// The direct path in use.
#[derive(Clone, Copy, Debug)]
struct Best {
    endpoint: SocketAddr,
    latency: Option<Duration>,
    trusted_until: Instant,
    ponged: Option<Instant>,
}

impl Best {
    /// A path that is given its time of trust without having answered a ping.
    fn unproven(endpoint: SocketAddr, now: Instant) -> Self {
        Self {
            endpoint,
            latency: None,
            trusted_until: now + TRUST,
            ponged: None,
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Burst {
    start: Instant,
    next: usize,
}

#[derive(Clone, Copy, Debug)]
struct Outstanding {
    /// `None`: over the relay.
    to: Option<SocketAddr>,
    sent: Instant,
    user: Option<PingId>,
}

#[derive(Clone, Copy, Debug)]
struct Counters {
    rx: u64,
    tx: u64,
}

/// The peer was seen at another endpoint than the one chosen: both are asked.
#[derive(Clone, Copy, Debug)]
struct Contest {
    endpoint: SocketAddr,
    start: Instant,
    /// Latency with which the new endpoint answered.
    answered: Option<Duration>,
}

impl Peer {
    pub fn new(facts: &PathPeer, relay_port: u16) -> Self {
        let relay = SocketAddr::from((facts.relay_address, relay_port));
        let mut candidates = Candidates::default();
        candidates.set_netmap(&facts.endpoints);
        Self {
            key: facts.key,
            disco: facts.disco,
            shared: None,
            home: facts.home,
            heard: None,
            relay,
            candidates,
            best: None,
            programmed: relay,
            left: None,
            proven: None,
            active_until: None,
            data_until: None,
            heartbeat: None,
            full_round: None,
            burst: None,
            burst_at: None,
            call_at: None,
            pings: BTreeMap::new(),
            counters: None,
            relayed_data: None,
            life: None,
            contest: None,
            last_resort: None,
            relay_asked: None,
            recent: VecDeque::new(),
            answers: Bucket::new(ANSWER_BURST, ANSWER_PER_SECOND),
            calls: Bucket::new(CALL_BURST, CALL_PER_SECOND),
        }
    }

    /// Takes over the endpoint that an earlier agent left in the kernel.
    pub fn adopt(&mut self, now: Instant, endpoint: SocketAddr, out: &mut Outbox) {
        if endpoint == self.relay {
            return;
        }
        if self.candidates.learn(endpoint, now).is_none() {
            out.set_endpoint(self.key, self.relay);
            return;
        }
        let endpoint = SocketAddr::new(endpoint.ip().to_canonical(), endpoint.port());
        self.programmed = endpoint;
        self.best = Some(Best::unproven(endpoint, now));
        self.active_until = Some(now + SESSION_ACTIVE);
        self.heartbeat = Some(now + HEARTBEAT);
        self.start_burst(now, out);
        out.read_stats();
    }

    /// What changed in the netmap.
    pub fn update(&mut self, now: Instant, facts: &PathPeer, relay_port: u16, out: &mut Outbox) {
        self.home = facts.home;
        let mut ask = self.candidates.set_netmap(&facts.endpoints);
        if self.disco != facts.disco {
            // A restarted agent: what was sent to the old key is lost. The path itself may well be alive.
            self.disco = facts.disco;
            self.shared = None;
            self.pings.retain(|_, ping| ping.user.is_some());
            self.candidates.reset_timers();
            ask = true;
        }
        let relay = SocketAddr::from((facts.relay_address, relay_port));
        if relay != self.relay {
            let used = self.programmed == self.relay;
            self.relay = relay;
            if used {
                self.program(relay, out);
            }
        }
        if ask && self.is_active(now) {
            self.start_burst(now, out);
        }
    }

    /// Data was seen leaving, by the relay or by the counters.
    pub fn on_data(&mut self, now: Instant, out: &mut Outbox) {
        let fresh = !self.has_data(now);
        if let Some(best) = self.best.as_mut().filter(|_| self.active_until.is_none()) {
            // A path kept through idleness on its counters alone has to prove itself from here.
            best.trusted_until = now + TRUST;
        }
        self.data_until = Some(now + SESSION_ACTIVE);
        self.wake(now, SESSION_ACTIVE);
        if fresh {
            out.read_stats();
        }
        if self.best.is_some() {
            return;
        }
        if fresh {
            self.start_burst(now, out);
        } else {
            self.ping_all(now, PER_ENDPOINT, out);
        }
    }

    /// A ping from the command line: the path in use, else all of them.
    pub fn user_ping(&mut self, now: Instant, id: PingId, out: &mut Outbox) {
        self.on_data(now, out);
        if let Some(best) = self.best {
            self.ping(now, Some(best.endpoint), Some(id), out);
            return;
        }
        let all: Vec<_> = self.candidates.iter().map(|c| c.address).collect();
        self.ping(now, None, Some(id), out);
        for endpoint in all {
            self.ping(now, Some(endpoint), Some(id), out);
        }
    }

    /// Links of this host changed. Paths that still work are kept: a container that starts changes links too.
    pub fn on_link_change(&mut self, now: Instant, out: &mut Outbox) {
        self.pings.retain(|_, ping| ping.user.is_some());
        self.candidates.reset_timers();
        self.candidates.forget_learned();
        self.contest = None;
        self.burst_at = None;
        if let Some(best) = &mut self.best {
            best.trusted_until = best.trusted_until.min(now + LINK_CHANGE_GRACE);
            let endpoint = best.endpoint;
            self.candidates.learn(endpoint, now);
        }
        if self.is_active(now) {
            self.start_burst(now, out);
            out.read_stats();
        }
    }

    /// The system said that nothing can be sent to this endpoint.
    pub fn on_unreachable(&mut self, now: Instant, endpoint: SocketAddr, out: &mut Outbox) {
        if self.best.is_some_and(|best| best.endpoint == endpoint) {
            self.give_up(now, out);
        }
    }

    pub fn on_local_change(&mut self, now: Instant, out: &mut Outbox) {
        if self.has_data(now) && self.best.is_none() {
            self.call(now, out);
        }
    }

    pub fn on_timer(&mut self, now: Instant, out: &mut Outbox) {
        self.pings.retain(|_, ping| now < ping.sent + PING_TIMEOUT);
        self.settle_contest(now, out);
        if self.best.is_some_and(|best| best.trusted_until <= now) && !self.is_parked(now) {
            self.give_up(now, out);
        }
        if self.active_until.is_some_and(|until| until <= now) {
            self.fall_asleep(now, out);
        }
        self.continue_burst(now, out);
        if self.heartbeat.is_some_and(|at| at <= now) {
            self.beat(now, out);
        }
    }

    /// When [`Self::on_timer`] has something to do.
    pub fn deadline(&self) -> Option<Instant> {
        let burst = self.burst.map(|burst| burst.start + RETRIES[burst.next]);
        let contest = self.contest.map(|contest| contest.start + CONTEST);
        // A parked path has no trust to lose until data flows again.
        let trust = self.best.map(|best| best.trusted_until);
        let trust = trust.filter(|_| self.active_until.is_some());
        let pings = self
            .pings
            .values()
            .map(|ping| ping.sent + PING_TIMEOUT)
            .min();
        [
            burst,
            contest,
            trust,
            pings,
            self.heartbeat,
            self.active_until,
        ]
        .into_iter()
        .flatten()
        .min()
    }

    pub fn endpoint(&self) -> SocketAddr {
        self.best.map_or(self.relay, |best| best.endpoint)
    }

    pub fn status(&self) -> PathStatus {
        PathStatus {
            current: self.best.map(|best| best.endpoint),
            latency: self.best.and_then(|best| best.latency),
            relay: self.region(),
            active: self.active_until.is_some(),
        }
    }

    pub fn is_active(&self, now: Instant) -> bool {
        self.active_until.is_some_and(|until| until > now)
    }

    /// Idle, but left on a direct path because its agent answers nothing while its kernel does.
    pub fn is_parked(&self, now: Instant) -> bool {
        self.best.is_some() && !self.is_active(now)
    }

    pub fn has_asked(&self, tx: &TxId) -> bool {
        self.pings.contains_key(tx)
    }

    #[cfg(test)]
    pub fn sizes(&self) -> (usize, usize, usize) {
        (
            self.candidates.iter().count(),
            self.pings.len(),
            self.recent.len(),
        )
    }

    fn has_data(&self, now: Instant) -> bool {
        self.data_until.is_some_and(|until| until > now)
    }

    fn region(&self) -> Option<RegionId> {
        self.home.or(self.heard)
    }

    fn wake(&mut self, now: Instant, time: Duration) {
        if !self.is_active(now) {
            self.heartbeat = Some(now + HEARTBEAT);
        }
        let until = now + time;
        self.active_until = Some(self.active_until.map_or(until, |at| at.max(until)));
    }

    /// The session is over. Back to the relay, so that the next packet goes out at once and wakes us, unless
    /// the path lives by its counters alone: then the peer's agent is dead and nobody reads its relay.
    fn fall_asleep(&mut self, now: Instant, out: &mut Outbox) {
        self.active_until = None;
        self.data_until = None;
        self.heartbeat = None;
        self.burst = None;
        self.contest = None;
        let answered = |best: &Best| best.ponged.is_some_and(|at| now < at + HEARTBEAT + TRUST);
        if self.best.as_ref().is_none_or(answered) {
            self.best = None;
            self.program(self.relay, out);
        }
        self.candidates.sweep(Some(now));
    }

    fn beat(&mut self, now: Instant, out: &mut Outbox) {
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
    fn start_burst(&mut self, now: Instant, out: &mut Outbox) {
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

    fn continue_burst(&mut self, now: Instant, out: &mut Outbox) {
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
    fn ping_all(&mut self, now: Instant, pause: Duration, out: &mut Outbox) -> usize {
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
    fn ping(
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
        let message = Message::Ping {
            tx,
            node: Some(out.node),
            padding: 0,
        };
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

    fn call(&mut self, now: Instant, out: &mut Outbox) {
        let soon = self
            .call_at
            .is_some_and(|at| now.duration_since(at) < CALL_MIN);
        if soon || out.local.is_empty() || !self.unlock(out) {
            return;
        }
        let (Some(region), Some(shared)) = (self.region(), &self.shared) else {
            return;
        };
        self.call_at = Some(now);
        let endpoints = out.local.clone();
        out.send_relay(
            (region, self.key),
            shared,
            &Message::CallMeMaybe { endpoints },
        );
    }

    /// Computes the shared key when it is first needed: ten thousand idle peers need none.
    fn unlock(&mut self, out: &Outbox) -> bool {
        if self.shared.is_none() {
            self.shared = self.disco.as_ref().map(|disco| out.shared_key(disco));
        }
        self.shared.is_some()
    }

    fn choose(&mut self, now: Instant, best: Best, out: &mut Outbox) {
        let before = self.best.replace(best);
        if let Some(before) = before.filter(|before| before.endpoint != best.endpoint) {
            self.left = Some((before.endpoint, now));
        }
        self.contest = None;
        if best.ponged.is_some() {
            self.proven = Some(best.endpoint);
        }
        self.program(best.endpoint, out);
    }

    /// Back to the relay.
    fn give_up(&mut self, now: Instant, out: &mut Outbox) {
        if let Some(best) = self.best.take() {
            self.left = Some((best.endpoint, now));
        }
        self.contest = None;
        self.program(self.relay, out);
    }

    fn program(&mut self, endpoint: SocketAddr, out: &mut Outbox) {
        if self.programmed != endpoint {
            self.programmed = endpoint;
            out.set_endpoint(self.key, endpoint);
        }
    }
}
