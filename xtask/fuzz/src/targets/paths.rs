//! The path state machine under any sequence of events.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};

use lowroad_core::{
    first_contact::{FirstContact, MAX_HELD},
    path::{Command, Config, PathPeer, Paths, PeerStats, PingId},
};
use lowroad_wire::{
    control::RegionId,
    disco::{self, Envelope, Message, Ping, SharedKey, TxId},
    key::{DiscoPrivate, DiscoPublic, NodePublic},
};

use crate::script::Script;

const PEERS: u8 = 4;
const RELAY_PORT: u16 = 41642;
/// What one event may make us send: more is an amplifier.
const MAX_SENT: usize = 192;

struct Bench {
    now: Instant,
    paths: Paths,
    facts: Vec<PathPeer>,
    present: BTreeSet<u8>,
    keys: Vec<(DiscoPublic, SharedKey)>,
    /// Transaction ids of our own pings, as their receivers know them.
    asked: Vec<TxId>,
    known: BTreeSet<SocketAddr>,
    waiting: BTreeSet<PingId>,
}

/// Whatever happens: no panic, bounded answers, only candidates are chosen, and every ping is done once.
pub fn paths(input: &[u8]) {
    let mut script = Script::new(input);
    let mut bench = Bench::new();
    while !script.is_empty() {
        bench.step(&mut script);
        bench.obey();
    }
    bench.wait(Duration::from_secs(300));
    assert!(bench.waiting.is_empty(), "every ping is done in the end");
}

fn key(peer: u8) -> NodePublic {
    NodePublic::from_bytes([peer + 50; 32])
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

impl Bench {
    fn new() -> Self {
        // Deriving keys takes longer than most sequences: once for all inputs.
        thread_local!(static KEYS: Vec<(DiscoPublic, SharedKey)> = {
            let own = DiscoPrivate::from_random([1; 32]).public();
            let secret = |peer: u8| DiscoPrivate::from_random([peer.min(PEERS - 2) + 10; 32]);
            // The last two nodes share a disco key.
            (0..PEERS).map(secret).map(|key| (key.public(), SharedKey::new(&key, &own))).collect()
        });
        let keys = KEYS.with(Clone::clone);
        let facts = (0..PEERS).map(|peer| PathPeer {
            key: key(peer),
            disco: Some(keys[usize::from(peer)].0),
            home: Some(RegionId(1)),
            endpoints: Vec::new(),
            relay_address: Ipv4Addr::new(127, 128, 0, peer + 1),
            adopted: (peer == 0).then(|| ([198, 51, 100, 1], 40_001).into()),
        });
        let facts: Vec<PathPeer> = facts.collect();
        let now = Instant::now();
        let mut paths = Paths::new(Config {
            node: NodePublic::from_bytes([200; 32]),
            disco: DiscoPrivate::from_random([1; 32]),
            relay_port: RELAY_PORT,
            seed: [3; 32],
        });
        paths.set_peers(now, facts.clone());
        let known = facts.iter().filter_map(|peer| peer.adopted).collect();
        Self {
            now,
            paths,
            facts,
            present: (0..PEERS).collect(),
            keys,
            asked: Vec::new(),
            known,
            waiting: BTreeSet::new(),
        }
    }

    fn step(&mut self, script: &mut Script<'_>) {
        let peer = script.byte() % PEERS;
        let now = self.now;
        match script.below(16) {
            0 | 1 => self.wait(Duration::from_millis(script.word().into())),
            2 => {
                let node = script.flag().then(|| key(script.byte() % PEERS));
                self.hear(
                    peer,
                    script,
                    &Message::Ping(Ping {
                        tx: TxId([peer; 12]),
                        node,
                        padding: 0,
                    }),
                );
            }
            3 | 4 => {
                let tx = if self.asked.is_empty() {
                    TxId([9; 12])
                } else {
                    self.asked[usize::from(script.byte()) % self.asked.len()]
                };
                let source = script.address();
                self.hear(peer, script, &Message::Pong { tx, source });
            }
            5 => {
                let endpoints = script.addresses(60);
                self.known.extend(endpoints.iter().copied().map(canonical));
                self.hear(peer, script, &Message::CallMeMaybe { endpoints });
            }
            6 => {
                let from = script.address();
                self.paths.on_datagram(now, from, script.bytes(200));
            }
            7 => self.paths.on_outgoing(now, key(peer)),
            8 => self.paths.on_relayed_data(now, key(peer)),
            9 => {
                let endpoint = script.flag().then(|| script.address());
                self.known.extend(endpoint.map(canonical));
                let stats = PeerStats {
                    key: key(peer),
                    endpoint,
                    rx_bytes: script.word().into(),
                    tx_bytes: script.word().into(),
                    last_handshake: None,
                };
                self.paths.on_stats(now, &[stats]);
            }
            10 => {
                let facts = &mut self.facts[usize::from(peer)];
                facts.endpoints = script.addresses(40);
                facts.disco = script
                    .flag()
                    .then(|| self.keys[usize::from(script.byte() % PEERS)].0);
                facts.home = script.flag().then_some(RegionId(1));
                self.known
                    .extend(facts.endpoints.iter().copied().map(canonical));
                self.present.insert(peer);
                self.tell_netmap();
            }
            11 => {
                self.present.remove(&peer);
                self.tell_netmap();
            }
            12 => self.paths.set_local_endpoints(now, script.addresses(30)),
            13 => self.paths.on_link_change(now),
            14 => self.paths.on_unreachable(now, script.address()),
            _ => self.waiting.extend(self.paths.ping(now, key(peer))),
        }
    }

    /// A message of a peer, by UDP or by a relay, which may name the wrong sender.
    fn hear(&mut self, peer: u8, script: &mut Script<'_>, message: &Message) {
        let (sender, shared) = &self.keys[usize::from(peer)];
        let bytes = disco::seal(*sender, shared, [7; 24], message);
        if script.flag() {
            let from = if script.below(8) == 0 {
                script.byte() % PEERS
            } else {
                peer
            };
            self.paths.on_relayed(
                self.now,
                RegionId(1 + u16::from(script.byte() & 1)),
                key(from),
                &bytes,
            );
        } else {
            let from = script.address();
            self.known.insert(canonical(from));
            self.paths.on_datagram(self.now, from, &bytes);
        }
    }

    fn tell_netmap(&mut self) {
        let present = self
            .present
            .iter()
            .map(|peer| self.facts[usize::from(*peer)].clone());
        self.paths.set_peers(self.now, present.collect());
    }

    fn wait(&mut self, time: Duration) {
        let end = self.now + time;
        let mut turns = 0;
        while let Some(at) = self.paths.next_deadline().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            self.paths.on_timer(self.now);
            self.obey();
            turns += 1;
            assert!(turns < 2000, "timers run in circles");
        }
        self.now = end;
    }

    fn obey(&mut self) {
        let mut sent = 0;
        while let Some(command) = self.paths.poll_command() {
            match command {
                Command::SetEndpoint { peer, endpoint } => {
                    let own = self
                        .facts
                        .iter()
                        .find(|facts| facts.key == peer)
                        .expect("one of ours");
                    let relay = SocketAddr::from((own.relay_address, RELAY_PORT));
                    assert!(
                        endpoint == relay
                            || self.known.contains(&endpoint) && !endpoint.ip().is_loopback(),
                        "{endpoint} was never heard of"
                    );
                }
                Command::SendDirect { to, bytes } => {
                    sent += 1;
                    assert!(!to.ip().is_loopback() && to.port() != 0);
                    self.note(&bytes);
                }
                Command::SendRelay { bytes, .. } => {
                    sent += 1;
                    self.note(&bytes);
                }
                Command::PingDone { id, .. } => {
                    assert!(self.waiting.remove(&id), "a ping is done once")
                }
                Command::RefreshEndpoints | Command::ReadStats => {}
            }
        }
        assert!(sent <= MAX_SENT, "{sent} messages for one event");
        for peer in &self.facts {
            let status = self.paths.status(&peer.key);
            assert_eq!(status.is_some(), self.paths.endpoint(&peer.key).is_some());
        }
    }

    /// Learns transaction ids of our pings, as their receiver does.
    fn note(&mut self, bytes: &[u8]) {
        let envelope = Envelope::parse(bytes).expect("we send disco");
        let opened = self
            .keys
            .iter()
            .find_map(|(_, key)| disco::open(&envelope, key).ok());
        if let Some(Message::Ping(ping)) = opened {
            self.asked.push(ping.tx);
        }
        let excess = self.asked.len().saturating_sub(64);
        self.asked.drain(..excess);
    }
}

pub fn paths_seeds() -> Vec<Vec<u8>> {
    let mut seeds: Vec<Vec<u8>> = (0..16u8)
        .map(|kind| vec![1, kind, 1, 1, 1, 1, 0, 7, 0, 0, 1, 0, 4, 0, 1, 0, 0, 1, 0])
        .collect();
    // Talks, learns, waits, is answered.
    seeds.push(
        [
            [1, 10, 2, 1, 3, 1, 1, 1, 1].as_slice(),
            &[1, 7],
            &[1, 0, 100, 0],
            &[1, 3, 0, 0, 1, 0, 0, 1],
            &[1, 0, 0xff, 0xff],
            &[1, 9, 1, 0, 1, 9, 0, 9, 0],
            &[1, 13],
            &[1, 15],
        ]
        .concat(),
    );
    seeds.push((0..=255).collect());
    seeds.push((0..600).map(|n: u32| (n * 37 % 251) as u8).collect());
    seeds
}

/// Handshakes of unknown keys: a bounded number, for a bounded time.
pub fn first_contact(input: &[u8]) {
    let mut script = Script::new(input);
    let mut held = FirstContact::default();
    let mut now = Instant::now();
    let mut initiation = [0; 148];
    initiation[0] = 1;
    while !script.is_empty() {
        let from = NodePublic::from_bytes([script.byte(); 32]);
        match script.below(5) {
            0 => held.hold(now, from, &initiation),
            1 => held.hold(now, from, script.bytes(200)),
            2 => now += Duration::from_millis(script.word().into()),
            3 => drop(held.take(now, &from)),
            _ => {
                for number in 0..=u8::MAX {
                    let mut key = [number; 32];
                    key[0] = script.byte();
                    held.hold(now, NodePublic::from_bytes(key), &initiation);
                }
            }
        }
        assert!(held.keys().count() <= MAX_HELD);
    }
}

pub fn first_contact_seeds() -> Vec<Vec<u8>> {
    vec![
        vec![1, 0, 1, 3, 1, 2, 200, 20, 1, 3],
        vec![4, 4, 1, 2, 3, 4, 4, 4],
        vec![1, 1, 148, 1, 0, 0, 0],
    ]
}
