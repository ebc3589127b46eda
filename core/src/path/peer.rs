//! One peer: its candidates, the path in use, and its timers.

use std::{
    collections::{BTreeMap, VecDeque},
    net::SocketAddr,
    time::{Duration, Instant},
};

use lowroad_wire::{
    control::RegionId,
    disco::{self, Envelope, Message, Ping, SharedKey, TxId},
    key::{DiscoPublic, NodePublic},
};

use super::{
    PathPeer, PathStatus, PingId, PingResult,
    bucket::Bucket,
    candidates::{Candidates, usable},
    outbox::Outbox,
    timing::*,
};

mod asleep;
mod messages;
mod probing;
mod roaming;

pub(super) use self::asleep::Asleep;

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
    /// It should hear soon that endpoints have changed.
    call_owed: bool,
    pings: BTreeMap<TxId, Outstanding>,

    counters: Option<Counters>,
    relayed_data: Option<Instant>,
    /// Since when data leaves by the direct path and nothing comes.
    silent_since: Option<Instant>,
    /// Anything came by the relay: the peer's agent lives.
    relay_life: Option<Instant>,
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
    /// The last sign of life on this path, pong or authenticated bytes.
    lived: Instant,
    /// Trust has run out, but nothing says that the relay would do better.
    held: bool,
}

impl Best {
    fn answered(endpoint: SocketAddr, latency: Duration, now: Instant) -> Self {
        Self {
            latency: Some(latency),
            ponged: Some(now),
            ..Self::unproven(endpoint, now)
        }
    }

    fn on_life(&mut self, now: Instant) {
        self.trusted_until = self.trusted_until.max(now + TRUST);
        self.lived = now;
        self.held = false;
    }

    /// A path that is given its time of trust without having answered a ping.
    fn unproven(endpoint: SocketAddr, now: Instant) -> Self {
        Self {
            endpoint,
            latency: None,
            trusted_until: now + TRUST,
            ponged: None,
            lived: now,
            held: false,
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
            call_owed: false,
            pings: BTreeMap::new(),
            counters: None,
            relayed_data: None,
            silent_since: None,
            relay_life: None,
            life: None,
            contest: None,
            last_resort: None,
            relay_asked: None,
            recent: VecDeque::new(),
            answers: Bucket::new(ANSWER_BURST, ANSWER_PER_SECOND),
            calls: Bucket::new(CALL_BURST, CALL_PER_SECOND),
        }
    }

    /// Takes over the endpoint that an earlier agent left in the kernel, if it isn't the relay's.
    pub fn adopt(&mut self, now: Instant, endpoint: SocketAddr, out: &mut Outbox) {
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

    /// Data left by the relay's door.
    pub fn on_outgoing(&mut self, now: Instant, out: &mut Outbox) {
        self.on_data(now, out);
        if self.best.is_some() {
            // WireGuard has the relay although we chose otherwise: a late relayed packet moved it there.
            out.set_endpoint(self.key, self.programmed);
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
        // What arrived before says nothing about the links of today.
        self.counters = None;
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

    /// Own endpoints changed. A peer in use is called although its path seems fine from here: a stock one sends to an endpoint that is gone for
    /// another 6.5 s (its `trustUDPAddrDuration`), unless a CallMeMaybe no longer names what an earlier one did (`handleCallMeMaybe`).
    pub fn on_local_change(&mut self, now: Instant, out: &mut Outbox) {
        // A host that moves may have no address at all for a moment, and then nothing to say.
        self.call_owed = true;
        if self.has_data(now) {
            self.call(now, out);
        }
    }

    /// Who was called just before by this relay is called again.
    pub fn on_relay_connected(&mut self, now: Instant, region: RegionId, out: &mut Outbox) {
        let lately = |at: Instant| now.duration_since(at) < CALL_AGAIN;
        if self.region() == Some(region) && self.call_at.is_some_and(lately) {
            self.call_owed = true;
            self.call(now, out);
        }
    }

    pub fn on_timer(&mut self, now: Instant, out: &mut Outbox) {
        self.pings.retain(|_, ping| now < ping.sent + PING_TIMEOUT);
        self.settle_contest(now, out);
        self.judge_trust(now, out);
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

    /// A path without trust is left for the relay, if the relay is known to be read: whoever is silent on both
    /// has a dead agent (or is gone), and then the kernel behind the direct path is the better bet.
    fn judge_trust(&mut self, now: Instant, out: &mut Outbox) {
        if self.is_parked(now) {
            return;
        }
        let Some(best) = self.best.as_mut().filter(|best| best.trusted_until <= now) else {
            return;
        };
        if self.relay_life.is_some_and(|at| at > best.lived) {
            self.leave(now, out);
        } else {
            best.held = true;
            best.trusted_until = now + TRUST;
            best.latency = None;
            self.ask_by_relay(now, out);
        }
    }

    fn choose(&mut self, now: Instant, best: Best, out: &mut Outbox) {
        let before = self.best.replace(best);
        self.silent_since = None;
        if let Some(before) = before.filter(|before| before.endpoint != best.endpoint) {
            self.left = Some((before.endpoint, now));
        }
        self.contest = None;
        if best.ponged.is_some() {
            self.proven = Some(best.endpoint);
        }
        self.program(best.endpoint, out);
    }

    /// The path is dead: back to the relay, and at once in search of another.
    fn leave(&mut self, now: Instant, out: &mut Outbox) {
        self.give_up(now, out);
        if self.has_data(now) {
            self.start_burst(now, out);
        }
    }

    /// Back to the relay.
    fn give_up(&mut self, now: Instant, out: &mut Outbox) {
        self.silent_since = None;
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
