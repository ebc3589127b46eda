//! Random and hostile inputs: nothing panics, nothing grows, nothing but a relay or a candidate is chosen.

use std::collections::BTreeSet;

use lowroad_wire::disco::{self, MAX_ENDPOINTS, SharedKey, TxId};
use proptest::prelude::*;

use super::{super::timing::*, sim::RELAY_PORT, *};

const PEERS: u8 = 3;

#[derive(Clone, Debug)]
enum Input {
    Wait(u16),
    Ping {
        peer: u8,
        from: SocketAddr,
        tx: u8,
        relayed: bool,
    },
    Pong {
        peer: u8,
        from: SocketAddr,
        own: bool,
        relayed: bool,
    },
    Call {
        peer: u8,
        endpoints: Vec<SocketAddr>,
    },
    Garbage {
        from: SocketAddr,
        bytes: Vec<u8>,
    },
    Outgoing(u8),
    RelayedData(u8),
    Stats {
        peer: u8,
        endpoint: Option<SocketAddr>,
        rx: u16,
        tx: u16,
    },
    Netmap {
        peer: u8,
        endpoints: Vec<SocketAddr>,
        disco: bool,
        home: bool,
    },
    Remove(u8),
    Local(Vec<SocketAddr>),
    LinkChange,
    Unreachable(SocketAddr),
    UserPing(u8),
}

fn address() -> impl Strategy<Value = SocketAddr> {
    prop_oneof![
        4 => (0u8..40, 1u16..4).prop_map(|(last, port)| ([198, 51, 100, last], port).into()),
        1 => (0u8..8).prop_map(|last| ([127, 128, 0, last], RELAY_PORT).into()),
        1 => (0u16..8).prop_map(|last| ([0x2001, 0xdb8, 0, 0, 0, 0, 0, last], 1).into()),
        1 => (0u16..8).prop_map(|last| ([0xfe80, 0, 0, 0, 0, 0, 0, last], 1).into()),
        1 => (any::<[u8; 4]>(), any::<u16>()).prop_map(SocketAddr::from),
        1 => (any::<[u8; 16]>(), any::<u16>()).prop_map(SocketAddr::from),
    ]
}

fn input() -> impl Strategy<Value = Input> {
    let peer = 0..PEERS;
    let addresses = || prop::collection::vec(address(), 0..60);
    prop_oneof![
        6 => (0u16..8000).prop_map(Input::Wait),
        3 => (peer.clone(), address(), any::<u8>(), any::<bool>())
            .prop_map(|(peer, from, tx, relayed)| Input::Ping { peer, from, tx, relayed }),
        6 => (peer.clone(), address(), any::<bool>(), any::<bool>())
            .prop_map(|(peer, from, own, relayed)| Input::Pong { peer, from, own, relayed }),
        2 => (peer.clone(), addresses()).prop_map(|(peer, endpoints)| Input::Call { peer, endpoints }),
        1 => (address(), prop::collection::vec(any::<u8>(), 0..200))
            .prop_map(|(from, bytes)| Input::Garbage { from, bytes }),
        2 => peer.clone().prop_map(Input::Outgoing),
        1 => peer.clone().prop_map(Input::RelayedData),
        3 => (peer.clone(), prop::option::of(address()), any::<u16>(), any::<u16>())
            .prop_map(|(peer, endpoint, rx, tx)| Input::Stats { peer, endpoint, rx, tx }),
        1 => (peer.clone(), addresses(), any::<bool>(), any::<bool>())
            .prop_map(|(peer, endpoints, disco, home)| Input::Netmap { peer, endpoints, disco, home }),
        1 => peer.clone().prop_map(Input::Remove),
        1 => addresses().prop_map(Input::Local),
        1 => Just(Input::LinkChange),
        1 => address().prop_map(Input::Unreachable),
        1 => peer.prop_map(Input::UserPing),
    ]
}

struct Bench {
    now: Instant,
    paths: Paths,
    peers: Vec<PathPeer>,
    present: BTreeSet<u8>,
    keys: Vec<(DiscoPublic, SharedKey)>,
    asked: Vec<TxId>,
    known: BTreeSet<SocketAddr>,
    waiting: BTreeSet<PingId>,
}

impl Bench {
    fn new() -> Self {
        let own = DiscoPrivate::from_random([1; 32]);
        let disco = (0..PEERS).map(|peer| DiscoPrivate::from_random([peer + 10; 32]));
        let keys: Vec<_> = disco
            .map(|key| (key.public(), SharedKey::new(&key, &own.public())))
            .collect();
        let peers = (0..PEERS).map(|peer| PathPeer {
            key: key(peer),
            disco: Some(keys[usize::from(peer)].0),
            home: Some(RegionId(1)),
            endpoints: Vec::new(),
            relay_address: sim::relay_address(usize::from(peer)),
            adopted: (peer == 0).then(|| ([198, 51, 100, 1], 1).into()),
        });
        let peers: Vec<_> = peers.collect();
        let now = Instant::now();
        let mut paths = Paths::new(Config {
            node: NodePublic::from_bytes([200; 32]),
            disco: own,
            relay_port: RELAY_PORT,
            seed: [3; 32],
        });
        paths.set_peers(now, peers.clone());
        Self {
            now,
            paths,
            present: (0..PEERS).collect(),
            known: peers.iter().filter_map(|peer| peer.adopted).collect(),
            peers,
            keys,
            asked: Vec::new(),
            waiting: BTreeSet::new(),
        }
    }

    fn sealed(&self, peer: u8, message: &Message) -> Vec<u8> {
        let (public, key) = &self.keys[usize::from(peer)];
        disco::seal(*public, key, [9; 24], message)
    }

    fn relay(&mut self, peer: u8, message: &Message) {
        let bytes = self.sealed(peer, message);
        self.paths
            .on_relayed(self.now, RegionId(1), key(peer), &bytes);
    }

    fn feed(&mut self, input: Input) {
        let now = self.now;
        match input {
            Input::Wait(millis) => self.wait(Duration::from_millis(millis.into())),
            Input::Ping {
                peer,
                from,
                tx,
                relayed,
            } => {
                self.known.insert(from);
                let node = Some(key(peer));
                let message = Message::Ping(Ping {
                    tx: TxId([tx; 12]),
                    node,
                    padding: 0,
                });
                if relayed {
                    return self.relay(peer, &message);
                }
                let bytes = self.sealed(peer, &message);
                self.paths.on_datagram(now, from, &bytes);
            }
            Input::Pong {
                peer,
                from,
                own,
                relayed,
            } => {
                let asked = self.asked.pop().filter(|_| own);
                let tx = asked.unwrap_or(TxId([99; 12]));
                let message = Message::Pong { tx, source: from };
                if relayed {
                    return self.relay(peer, &message);
                }
                let bytes = self.sealed(peer, &message);
                self.paths.on_datagram(now, from, &bytes);
            }
            Input::Call { peer, endpoints } => {
                assert!(endpoints.len() <= MAX_ENDPOINTS);
                self.known.extend(&endpoints);
                self.relay(peer, &Message::CallMeMaybe { endpoints });
            }
            Input::Garbage { from, bytes } => {
                self.paths.on_datagram(now, from, &bytes);
                let mut sealed = self.sealed(
                    0,
                    &Message::CallMeMaybe {
                        endpoints: vec![from],
                    },
                );
                sealed.truncate(sealed.len().saturating_sub(bytes.len()));
                sealed.extend(bytes);
                self.paths.on_datagram(now, from, &sealed);
                self.paths.on_relayed(now, RegionId(1), key(1), &sealed);
            }
            Input::Outgoing(peer) => self.paths.on_outgoing(now, key(peer)),
            Input::RelayedData(peer) => self.paths.on_relayed_data(now, key(peer)),
            Input::Stats {
                peer,
                endpoint,
                rx,
                tx,
            } => {
                self.known.extend(endpoint);
                let stats = PeerStats {
                    key: key(peer),
                    endpoint,
                    rx_bytes: rx.into(),
                    tx_bytes: tx.into(),
                    last_handshake: None,
                };
                self.paths.on_stats(now, &[stats]);
            }
            Input::Netmap {
                peer,
                endpoints,
                disco,
                home,
            } => {
                self.known.extend(&endpoints);
                let facts = &mut self.peers[usize::from(peer)];
                facts.endpoints = endpoints;
                facts.disco = disco.then(|| self.keys[usize::from(peer)].0);
                facts.home = home.then_some(RegionId(1));
                self.present.insert(peer);
                self.tell_netmap();
            }
            Input::Remove(peer) => {
                self.present.remove(&peer);
                self.tell_netmap();
            }
            Input::Local(endpoints) => self.paths.set_local_endpoints(now, endpoints),
            Input::LinkChange => self.paths.on_link_change(now),
            Input::Unreachable(endpoint) => self.paths.on_unreachable(now, endpoint),
            Input::UserPing(peer) => self.waiting.extend(self.paths.ping(now, key(peer))),
        }
    }

    fn tell_netmap(&mut self) {
        let peers = self
            .present
            .iter()
            .map(|peer| self.peers[usize::from(*peer)].clone());
        let peers = peers.collect();
        self.paths.set_peers(self.now, peers);
    }

    fn wait(&mut self, time: Duration) {
        let end = self.now + time;
        let mut turns = 0;
        while let Some(at) = self.paths.next_deadline().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            self.paths.on_timer(self.now);
            self.check();
            turns += 1;
            assert!(turns < 500, "timers run in circles");
        }
        self.now = end;
    }

    fn check(&mut self) {
        let mut sent = 0;
        while let Some(command) = self.paths.poll_command() {
            match command {
                Command::SetEndpoint { peer, endpoint } => {
                    let own = self.peers.iter().find(|facts| facts.key == peer).unwrap();
                    let relay = SocketAddr::from((own.relay_address, RELAY_PORT));
                    let candidate = self.known.iter().any(|known| {
                        SocketAddr::new(known.ip().to_canonical(), known.port()) == endpoint
                    });
                    let loopback = endpoint.ip().is_loopback();
                    assert!(endpoint == relay || candidate && !loopback, "{endpoint}");
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
                    assert!(self.waiting.remove(&id), "a ping is done once");
                }
                Command::RefreshEndpoints | Command::ReadStats => {}
            }
        }
        assert!(sent <= 3 * MAX_OUTSTANDING, "{sent} messages for one input");
        for peer in self.paths.peers.values() {
            let (candidates, pings, recent) = peer.sizes();
            let most = MAX_NETMAP_ENDPOINTS + MAX_CALLED_ENDPOINTS + MAX_LEARNED_ENDPOINTS;
            assert!(candidates <= most && pings <= MAX_OUTSTANDING && recent <= MAX_RECENT_TX);
        }
        assert!(self.waiting.len() <= MAX_USER_PINGS);
    }

    /// Learns transaction ids of our pings, as their receiver does.
    fn note(&mut self, bytes: &[u8]) {
        let Ok(envelope) = Envelope::parse(bytes) else {
            return;
        };
        let messages = self
            .keys
            .iter()
            .filter_map(|(_, key)| disco::open(&envelope, key).ok());
        for message in messages {
            if let Message::Ping(ping) = message {
                self.asked.push(ping.tx);
            }
        }
        let excess = self.asked.len().saturating_sub(64);
        self.asked.drain(..excess);
    }
}

fn key(peer: u8) -> NodePublic {
    NodePublic::from_bytes([peer + 50; 32])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn whatever_happens_nothing_panics_or_grows_and_only_candidates_are_chosen(
        inputs in prop::collection::vec(input(), 0..120)
    ) {
        let mut bench = Bench::new();
        for input in inputs {
            bench.feed(input);
            bench.check();
        }
        bench.wait(Duration::from_secs(300));
        prop_assert!(bench.waiting.is_empty(), "every ping is done in the end");
    }
}

#[test]
fn a_flood_of_pings_is_answered_at_a_bounded_rate() {
    let mut bench = Bench::new();
    let mut answered = 0;
    for number in 0..5000u32 {
        let mut tx = [0; 12];
        tx[..4].copy_from_slice(&number.to_be_bytes());
        let message = Message::Ping(Ping {
            tx: TxId(tx),
            node: Some(key(1)),
            padding: 0,
        });
        let bytes = bench.sealed(1, &message);
        let from = SocketAddr::from(([198, 51, 100, 9], 1000 + (number % 2000) as u16));
        bench.paths.on_datagram(bench.now, from, &bytes);
        while let Some(command) = bench.paths.poll_command() {
            answered += usize::from(matches!(command, Command::SendDirect { .. }));
        }
    }
    assert!(answered <= 2 * ANSWER_BURST as usize, "{answered}");
}

#[test]
fn calls_to_ping_strangers_are_bounded() {
    let mut bench = Bench::new();
    bench.check();
    let mut sent = 0;
    for call in 0..200u8 {
        let endpoints = (0..200u8)
            .map(|last| ([198, 51, call, last], 53).into())
            .collect();
        bench.relay(1, &Message::CallMeMaybe { endpoints });
        while let Some(command) = bench.paths.poll_command() {
            sent += usize::from(matches!(command, Command::SendDirect { .. }));
        }
    }
    assert!(
        sent <= CALL_BURST as usize * MAX_CALLED_ENDPOINTS,
        "{sent} pings"
    );
}

#[test]
fn a_peer_cannot_speak_for_another_and_a_stranger_for_nobody() {
    let mut bench = Bench::new();
    let message = Message::CallMeMaybe {
        endpoints: vec![([198, 51, 100, 7], 1).into()],
    };
    let bytes = bench.sealed(1, &message);
    bench
        .paths
        .on_relayed(bench.now, RegionId(1), key(2), &bytes);
    let stranger = DiscoPrivate::from_random([77; 32]);
    let shared = SharedKey::new(&stranger, &bench.paths.disco_public());
    let ping = Message::Ping(Ping {
        tx: TxId([1; 12]),
        node: Some(key(1)),
        padding: 0,
    });
    let bytes = disco::seal(stranger.public(), &shared, [0; 24], &ping);
    bench
        .paths
        .on_datagram(bench.now, ([198, 51, 100, 7], 1).into(), &bytes);
    let answers = |c: &Command| matches!(c, Command::SendDirect { to, .. } if to.ip().to_string() == "198.51.100.7");
    let commands: Vec<_> = std::iter::from_fn(|| bench.paths.poll_command()).collect();
    assert!(!commands.iter().any(answers), "{commands:?}");
}
