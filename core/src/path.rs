//! Which way packets to each peer go: its direct endpoint or its relay.
//!
//! [`Paths`] speaks disco (protocol reference 3), watches WireGuard's counters, and says which endpoint
//! WireGuard should have for each peer. It does no I/O: the shell feeds it datagrams, counters and time, and
//! after every call of a `&mut self` method takes commands with [`Paths::poll_command`] until `None`, then
//! sleeps until [`Paths::next_deadline`].
//!
//! WireGuard cannot send to two endpoints at once. So a peer has the relay's loopback address until a direct
//! path has answered, and again when the path's trust has run out. Authenticated bytes that arrive from the
//! direct endpoint keep its trust as pongs do: a peer whose agent is dead stays on its direct path.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};

use lowroad_wire::{
    control::RegionId,
    disco::{Envelope, Message, Ping},
    key::{DiscoPrivate, DiscoPublic, NodePublic},
};

pub use crate::desired::PeerStats;

use deadlines::Deadlines;
use outbox::Outbox;
use peer::{Asleep, Peer};
use timing::{
    MANY_PEERS, MAX_LOCAL_ENDPOINTS, MAX_USER_PINGS, PING_TIMEOUT, STATS, STATS_MANY, STATS_PARKED,
};

mod bucket;
mod candidates;
mod deadlines;
mod outbox;
mod peer;
mod score;
pub mod timing;

/// What [`Paths`] needs to know at start.
#[derive(Debug)]
pub struct Config {
    pub node: NodePublic,
    pub disco: DiscoPrivate,
    /// Port of the relay socket on `lo`: WireGuard's port plus one.
    pub relay_port: u16,
    /// Randomness for transaction ids and nonces; fresh at every start.
    pub seed: [u8; 32],
}

/// A peer as the netmap and the kernel describe it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathPeer {
    pub key: NodePublic,
    pub disco: Option<DiscoPublic>,
    /// Its home relay.
    pub home: Option<RegionId>,
    pub endpoints: Vec<SocketAddr>,
    /// Its own loopback address in 127.128.0.0/9.
    pub relay_address: Ipv4Addr,
    /// Endpoint found in the kernel at start.
    pub adopted: Option<SocketAddr>,
}

/// Names a ping asked for by [`Paths::ping`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PingId(pub u64);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PingResult {
    Direct {
        endpoint: SocketAddr,
        latency: Duration,
    },
    Relayed {
        region: RegionId,
        latency: Duration,
    },
    /// Nothing came back within [`timing::PING_TIMEOUT`], or the peer was removed.
    TimedOut,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PathStatus {
    /// The direct endpoint in use; `None` means the relay.
    pub current: Option<SocketAddr>,
    pub latency: Option<Duration>,
    /// The region that relays to this peer.
    pub relay: Option<RegionId>,
    pub active: bool,
}

/// What the shell is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    SendDirect {
        to: SocketAddr,
        bytes: Vec<u8>,
    },
    SendRelay {
        region: RegionId,
        to: NodePublic,
        bytes: Vec<u8>,
    },
    /// Program this endpoint, and put it into the relay table as the source of relayed packets.
    SetEndpoint {
        peer: NodePublic,
        endpoint: SocketAddr,
    },
    /// Ask STUN again, then call [`Paths::set_local_endpoints`].
    RefreshEndpoints,
    /// Read WireGuard's counters, then call [`Paths::on_stats`].
    ReadStats,
    PingDone {
        id: PingId,
        result: PingResult,
    },
}

/// The paths to all peers.
pub struct Paths {
    /// Those that are awake. Boxed: the tree's nodes are half empty.
    peers: BTreeMap<NodePublic, Box<Peer>>,
    /// The others, until something passes to or from them.
    asleep: BTreeMap<NodePublic, Box<Asleep>>,
    /// Several nodes may share one disco key.
    by_disco: BTreeSet<(DiscoPublic, NodePublic)>,
    deadlines: Deadlines,
    out: Outbox,
    relay_port: u16,
    own_disco: DiscoPublic,
    stats_at: Option<Instant>,
    restun_at: Option<Instant>,
    user_pings: BTreeMap<PingId, (NodePublic, Instant)>,
    next_ping: u64,
}

impl Paths {
    pub fn new(config: Config) -> Self {
        Self {
            peers: BTreeMap::new(),
            asleep: BTreeMap::new(),
            by_disco: BTreeSet::new(),
            deadlines: Deadlines::default(),
            relay_port: config.relay_port,
            own_disco: config.disco.public(),
            out: Outbox::new(config),
            stats_at: None,
            restun_at: None,
            user_pings: BTreeMap::new(),
            next_ping: 0,
        }
    }

    /// Makes the set of peers equal to this one. New peers without an adopted endpoint start at their relay
    /// address without a command; ask [`Self::endpoint`].
    pub fn set_peers(&mut self, now: Instant, peers: Vec<PathPeer>) {
        let kept: BTreeSet<_> = peers.iter().map(|peer| peer.key).collect();
        let gone: Vec<_> = self
            .peers
            .keys()
            .chain(self.asleep.keys())
            .filter(|key| !kept.contains(key))
            .copied()
            .collect();
        for key in gone {
            self.remove_peer(&key);
        }
        for peer in &peers {
            self.set_peer(now, peer);
        }
    }

    /// Adds a peer or takes over what changed of it.
    pub fn set_peer(&mut self, now: Instant, facts: &PathPeer) {
        let (key, port) = (facts.key, self.relay_port);
        let before = self.disco_of(&key);
        if let Some(before) = before
            && before != facts.disco
        {
            self.forget_disco(before, &key);
        }
        if let Some(disco) = facts.disco.filter(|disco| !disco.is_zero()) {
            self.by_disco.insert((disco, key));
        }
        if before.is_none() {
            let peer = Asleep::new(facts);
            let adopted = facts.adopted.filter(|found| *found != peer.endpoint(port));
            self.asleep.insert(key, Box::new(peer));
            match adopted {
                Some(adopted) => self.with(now, &key, |peer, out| peer.adopt(now, adopted, out)),
                None => self.plan_common(now),
            }
            return;
        }
        let asleep = self.asleep.get_mut(&key);
        if asleep.is_none_or(|peer| !peer.update(facts)) {
            self.with(now, &key, |peer, out| peer.update(now, facts, port, out));
        }
    }

    pub fn remove_peer(&mut self, key: &NodePublic) {
        let Some(disco) = self.disco_of(key) else {
            return;
        };
        self.peers.remove(key);
        self.asleep.remove(key);
        self.forget_disco(disco, key);
        self.deadlines.forget(key);
        let lost = self.user_pings.extract_if(.., |_, (peer, _)| peer == key);
        for (id, _) in lost.collect::<Vec<_>>() {
            self.out.tell(id, PingResult::TimedOut);
        }
    }

    /// Own endpoints, best known first; what CallMeMaybe says.
    pub fn set_local_endpoints(&mut self, now: Instant, mut endpoints: Vec<SocketAddr>) {
        endpoints.truncate(MAX_LOCAL_ENDPOINTS);
        let changed = endpoints != self.out.local;
        self.out.set_local(now, endpoints);
        if changed {
            self.with_active(now, |peer, out| peer.on_local_change(now, out));
        }
    }

    /// A disco datagram that came by UDP.
    pub fn on_datagram(&mut self, now: Instant, from: SocketAddr, bytes: &[u8]) {
        let from = SocketAddr::new(from.ip().to_canonical(), from.port());
        let Some((key, message)) = self.open(bytes, None) else {
            return;
        };
        self.with(now, &key, |peer, out| match message {
            Message::Ping(Ping { tx, .. }) => peer.on_ping(now, from, tx, out),
            Message::Pong { tx, .. } => peer.on_pong(now, tx, out),
            // The rest is spoken over relays only.
            _ => {}
        });
    }

    /// A disco message that came by a relay, from the node key that the relay vouches for.
    pub fn on_relayed(&mut self, now: Instant, region: RegionId, from: NodePublic, bytes: &[u8]) {
        let Some((key, message)) = self.open(bytes, Some(from)) else {
            return;
        };
        self.with(now, &key, |peer, out| match message {
            Message::Ping(Ping { tx, .. }) => peer.on_relayed_ping(now, region, tx, out),
            Message::Pong { tx, .. } => peer.on_relayed_pong(now, region, tx, out),
            Message::CallMeMaybe { endpoints } => peer.on_call(now, region, &endpoints, out),
            _ => {}
        });
    }

    /// Data was seen leaving for this peer over its relay address.
    pub fn on_outgoing(&mut self, now: Instant, peer: NodePublic) {
        self.with(now, &peer, |peer, out| peer.on_outgoing(now, out));
    }

    /// Data of this peer came by a relay (once a second is enough): counters that grow are then no sign of
    /// life of its direct path, because what the relay brings is injected with the direct endpoint as source.
    pub fn on_relayed_data(&mut self, now: Instant, peer: NodePublic) {
        self.with(now, &peer, |peer, out| peer.on_relayed_data(now, out));
    }

    /// WireGuard's counters, as answer to [`Command::ReadStats`] and whenever somebody reads them anyway.
    ///
    /// Before endpoints are reconciled with the kernel, the counters just read must pass here: a peer may have
    /// moved by itself, and be right.
    pub fn on_stats(&mut self, now: Instant, stats: &[PeerStats]) {
        let port = self.relay_port;
        for stats in stats {
            let asleep = self.asleep.get_mut(&stats.key);
            if asleep.is_none_or(|peer| !peer.note_stats(stats, port)) {
                self.with(now, &stats.key, |peer, out| peer.on_stats(now, stats, out));
            }
        }
    }

    /// Addresses or links of this host changed.
    pub fn on_link_change(&mut self, now: Instant) {
        self.out.refresh(now, true);
        self.with_active(now, |peer, out| peer.on_link_change(now, out));
    }

    /// There is a connection to this relay again: what was said last by the one before may be lost.
    pub fn on_relay_connected(&mut self, now: Instant, region: RegionId) {
        self.with_active(now, |peer, out| peer.on_relay_connected(now, region, out));
    }

    /// The system cannot send to this endpoint (no route, network or host unreachable).
    pub fn on_unreachable(&mut self, now: Instant, endpoint: SocketAddr) {
        let endpoint = SocketAddr::new(endpoint.ip().to_canonical(), endpoint.port());
        self.with_active(now, |peer, out| peer.on_unreachable(now, endpoint, out));
    }

    /// Pings a peer for a person; [`Command::PingDone`] answers. `None` if the peer is unknown, cannot be
    /// pinged (no disco key), or too many pings wait already.
    pub fn ping(&mut self, now: Instant, peer: NodePublic) -> Option<PingId> {
        let known = self.disco_of(&peer).flatten();
        if known.is_none() || self.user_pings.len() >= MAX_USER_PINGS {
            return None;
        }
        let id = PingId(self.next_ping);
        self.next_ping += 1;
        self.user_pings.insert(id, (peer, now + PING_TIMEOUT));
        self.with(now, &peer, |peer, out| peer.user_ping(now, id, out));
        Some(id)
    }

    /// To be called at or after [`Self::next_deadline`]; too early does no harm.
    pub fn on_timer(&mut self, now: Instant) {
        while let Some(key) = self.deadlines.pop_due(now) {
            self.with(now, &key, |peer, out| peer.on_timer(now, out));
        }
        let late = self
            .user_pings
            .extract_if(.., |_, (_, until)| *until <= now);
        for (id, _) in late.collect::<Vec<_>>() {
            self.out.tell(id, PingResult::TimedOut);
        }
        if self.stats_at.is_some_and(|at| at <= now) {
            self.stats_at = None;
            self.out.read_stats();
        }
        if self.restun_at.is_some_and(|at| at <= now) {
            self.restun_at = None;
            self.out.refresh(now, true);
        }
        self.plan_common(now);
    }

    /// When to call [`Self::on_timer`] next; any other call may change it.
    pub fn next_deadline(&self) -> Option<Instant> {
        let user = self.user_pings.values().map(|(_, until)| *until).min();
        [self.deadlines.first(), self.stats_at, self.restun_at, user]
            .into_iter()
            .flatten()
            .min()
    }

    /// What to do; call until `None` after every other call.
    pub fn poll_command(&mut self) -> Option<Command> {
        self.out.pop()
    }

    /// What WireGuard should have for this peer: its direct endpoint or its relay address.
    pub fn endpoint(&self, peer: &NodePublic) -> Option<SocketAddr> {
        let awake = self.peers.get(peer).map(|peer| peer.endpoint());
        awake.or_else(|| Some(self.asleep.get(peer)?.endpoint(self.relay_port)))
    }

    pub fn status(&self, peer: &NodePublic) -> Option<PathStatus> {
        let awake = self.peers.get(peer).map(|peer| peer.status());
        awake.or_else(|| Some(self.asleep.get(peer)?.status()))
    }

    pub fn disco_public(&self) -> DiscoPublic {
        self.own_disco
    }

    /// Finds out who sent a disco message and what it says. Over UDP the node key inside a ping decides between
    /// nodes that share a disco key, but only among those for which the netmap has that disco key.
    fn open(&mut self, bytes: &[u8], relayed: Option<NodePublic>) -> Option<(NodePublic, Message)> {
        let envelope = Envelope::parse(bytes).ok()?;
        let disco = envelope.sender;
        let opener = match relayed {
            Some(from) => Some(from).filter(|node| self.by_disco.contains(&(disco, *node)))?,
            None => self.nodes_with(disco).next()?,
        };
        // It stays awake whatever comes of this: what it takes to open a datagram is computed once, and not for each that somebody makes up.
        self.wake(&opener);
        let message = self.peers.get_mut(&opener)?.open(&self.out, &envelope)?;
        if relayed.is_some() || self.nodes_with(disco).nth(1).is_none() {
            return Some((opener, message));
        }
        let key = match &message {
            Message::Ping(Ping { node, .. }) => {
                node.filter(|node| self.by_disco.contains(&(disco, *node)))
            }
            Message::Pong { tx, .. } => self
                .nodes_with(disco)
                .find(|key| self.peers.get(key).is_some_and(|peer| peer.has_asked(tx))),
            _ => None,
        };
        key.map(|key| (key, message))
    }

    fn with(&mut self, now: Instant, key: &NodePublic, act: impl FnOnce(&mut Peer, &mut Outbox)) {
        self.wake(key);
        let Some(peer) = self.peers.get_mut(key) else {
            return;
        };
        act(peer, &mut self.out);
        self.deadlines.set(*key, peer.deadline());
        for id in self.out.answered.drain(..) {
            self.user_pings.remove(&id);
        }
        self.deadlines
            .count(*key, peer.is_active(now), peer.is_parked(now));
        self.plan_common(now);
    }

    fn with_active(&mut self, now: Instant, act: impl Fn(&mut Peer, &mut Outbox)) {
        for key in self.deadlines.awake() {
            self.with(now, &key, &act);
        }
    }

    /// Counters and STUN are asked while anybody is active.
    fn plan_common(&mut self, now: Instant) {
        let (active, parked) = self.deadlines.counts();
        let period = match (active, self.count()) {
            (0, _) if parked > 0 => Some(STATS_PARKED),
            (0, _) => None,
            (_, peers) if peers > MANY_PEERS => Some(STATS_MANY),
            _ => Some(STATS),
        };
        self.stats_at = period.map(|period| {
            self.stats_at
                .map_or(now + period, |at| at.min(now + period))
        });
        if active == 0 {
            self.restun_at = None;
        } else if self.restun_at.is_none() {
            self.restun_at = Some(now + self.out.restun_period());
        }
    }

    /// Something is about to pass to or from it.
    fn wake(&mut self, key: &NodePublic) {
        if let Some(asleep) = self.asleep.remove(key) {
            let peer = Box::new(asleep.wake(*key, self.relay_port));
            self.peers.insert(*key, peer);
        }
    }

    fn count(&self) -> usize {
        self.peers.len() + self.asleep.len()
    }

    /// The peer's disco key, if it has one; `None` if there is no such peer.
    fn disco_of(&self, key: &NodePublic) -> Option<Option<DiscoPublic>> {
        let awake = self.peers.get(key).map(|peer| peer.disco);
        awake.or_else(|| Some(self.asleep.get(key)?.disco))
    }

    fn nodes_with(&self, disco: DiscoPublic) -> impl Iterator<Item = NodePublic> {
        let first = NodePublic::from_bytes([0; 32]);
        self.by_disco
            .range((disco, first)..)
            .take_while(move |(key, _)| *key == disco)
            .map(|(_, node)| *node)
    }

    fn forget_disco(&mut self, disco: Option<DiscoPublic>, key: &NodePublic) {
        if let Some(disco) = disco {
            self.by_disco.remove(&(disco, *key));
        }
    }
}

impl fmt::Debug for Paths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Paths")
            .field("peers", &self.count())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
