//! Hosts, NATs, a relay and WireGuard's endpoints in virtual time.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    net::{Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};

use lowroad_wire::{
    control::RegionId,
    key::{DiscoPrivate, DiscoPublic, NodePublic},
};

use super::super::{Command, Config, PathPeer, Paths, PeerStats, PingId, PingResult};
use super::nat::{Nat, Router};

mod network;

use self::network::INTERNET_DELAY;

pub const PORT: u16 = 41641;
pub const RELAY_PORT: u16 = PORT + 1;
pub const HOME: RegionId = RegionId(1);
const DATA: u64 = 100;

#[derive(Clone, Debug)]
enum Payload {
    Disco(Vec<u8>),
    Data { from: usize, id: u64 },
}

#[derive(Clone, Debug)]
enum Event {
    Datagram {
        to: usize,
        from: SocketAddr,
        payload: Payload,
    },
    Relayed {
        to: usize,
        from: usize,
        payload: Payload,
    },
    Stun {
        to: usize,
    },
}

pub struct Host {
    pub paths: Paths,
    pub key: NodePublic,
    pub disco: DiscoPublic,
    pub address: SocketAddr,
    /// Hosts of one site share a router and a LAN.
    site: usize,
    pub agent_dead: bool,
    pub kernel: BTreeMap<usize, KernelPeer>,
    pub received: BTreeMap<u64, Instant>,
    pub pings: BTreeMap<PingId, PingResult>,
    pub disco_sent: usize,
    pub relayed_data: usize,
    /// Every endpoint that could rightly be chosen for a peer.
    seen: BTreeSet<SocketAddr>,
}

#[derive(Clone, Copy, Debug)]
pub struct KernelPeer {
    pub endpoint: SocketAddr,
    pub programmed: SocketAddr,
    rx: u64,
    tx: u64,
}

pub struct World {
    pub now: Instant,
    pub start: Instant,
    pub hosts: Vec<Host>,
    routers: Vec<Router>,
    queue: BTreeMap<(Instant, u64), Event>,
    sequence: u64,
    next_id: u64,
    /// (from, to): direct datagrams between these hosts are lost.
    pub cut: HashSet<(usize, usize)>,
    pub relay_down: bool,
}

impl World {
    /// One site per entry: its NAT and how many hosts it has.
    pub fn new(sites: &[(Nat, usize)]) -> Self {
        let now = Instant::now();
        let mut world = Self {
            now,
            start: now,
            hosts: Vec::new(),
            routers: Vec::new(),
            queue: BTreeMap::new(),
            sequence: 0,
            next_id: 1_000_000,
            cut: HashSet::new(),
            relay_down: false,
        };
        for (site, (kind, count)) in sites.iter().enumerate() {
            let third = u8::try_from(site).unwrap();
            world
                .routers
                .push(Router::new(*kind, Ipv4Addr::new(203, 0, 113, third + 1)));
            for host in 0..*count {
                let last = u8::try_from(host).unwrap() + 1;
                let address = match kind {
                    Nat::None => Ipv4Addr::new(203, 0, 113, 100 + 10 * third + last),
                    _ => Ipv4Addr::new(192, 168, third, last),
                };
                let number = u8::try_from(world.hosts.len()).unwrap();
                world
                    .hosts
                    .push(Host::new(number, (address, PORT).into(), site));
            }
        }
        for host in 0..world.hosts.len() {
            let endpoints = world.own_endpoints(host);
            world.hosts[host].paths.set_local_endpoints(now, endpoints);
        }
        world.share_netmap();
        world
    }

    /// Everybody learns everybody, with what they announce at this moment.
    pub fn share_netmap(&mut self) {
        for host in 0..self.hosts.len() {
            let peers = self.netmap_of(host);
            for (index, peer) in &peers {
                let relay = SocketAddr::from((peer.relay_address, RELAY_PORT));
                let kernel = KernelPeer {
                    endpoint: relay,
                    programmed: relay,
                    rx: 0,
                    tx: 0,
                };
                self.hosts[host].kernel.entry(*index).or_insert(kernel);
                self.hosts[host].seen.extend(&peer.endpoints);
                self.hosts[host].seen.insert(relay);
            }
            let now = self.now;
            let peers = peers.into_iter().map(|(_, peer)| peer).collect();
            self.hosts[host].paths.set_peers(now, peers);
            self.obey(host);
        }
    }

    pub fn netmap_of(&mut self, host: usize) -> Vec<(usize, PathPeer)> {
        let others = (0..self.hosts.len()).filter(|other| *other != host);
        let others: Vec<_> = others.collect();
        others
            .into_iter()
            .map(|other| (other, self.facts(other)))
            .collect()
    }

    pub fn facts(&mut self, host: usize) -> PathPeer {
        PathPeer {
            key: self.hosts[host].key,
            disco: Some(self.hosts[host].disco),
            home: Some(HOME),
            endpoints: self.own_endpoints(host),
            relay_address: relay_address(host),
            adopted: None,
        }
    }

    /// A new agent for the same node, with what the kernel has.
    pub fn restart_agent(&mut self, host: usize, seed: u8) {
        let disco = DiscoPrivate::from_random([seed; 32]);
        self.hosts[host].disco = disco.public();
        self.hosts[host].paths = Paths::new(Config {
            node: self.hosts[host].key,
            disco,
            relay_port: RELAY_PORT,
            seed: [seed; 32],
        });
        self.hosts[host].agent_dead = false;
        let endpoints = self.own_endpoints(host);
        let now = self.now;
        self.hosts[host].paths.set_local_endpoints(now, endpoints);
        let mut peers = self.netmap_of(host);
        for (index, peer) in &mut peers {
            peer.adopted = Some(self.hosts[host].kernel[index].endpoint);
        }
        let peers = peers.into_iter().map(|(_, peer)| peer).collect();
        self.hosts[host].paths.set_peers(now, peers);
        self.obey(host);
        self.share_netmap();
    }

    /// A router forgets everything and gets another address.
    pub fn rebind(&mut self, site: usize) {
        let kind = self.routers[site].kind;
        let third = u8::try_from(site).unwrap();
        self.routers[site] = Router::new(kind, Ipv4Addr::new(203, 0, 113, third + 51));
    }

    pub fn send(&mut self, from: usize, to: usize, id: u64) {
        let kernel = self.hosts[from].kernel.get_mut(&to).unwrap();
        kernel.tx += DATA;
        let endpoint = kernel.endpoint;
        let payload = Payload::Data { from, id };
        if endpoint.port() != RELAY_PORT || !endpoint.ip().is_loopback() {
            return self.transmit(from, endpoint, payload);
        }
        if self.hosts[from].agent_dead {
            return;
        }
        let key = self.hosts[to].key;
        self.hosts[from].relayed_data += 1;
        self.post_relayed(from, to, payload);
        self.hosts[from].paths.on_outgoing(self.now, key);
        self.obey(from);
    }

    /// Both send a packet to each other every `pause`; returns the ids from `a` to `b` that were lost.
    pub fn talk(
        &mut self,
        (a, b): (usize, usize),
        time: Duration,
        pause: Duration,
    ) -> Vec<(Duration, u64)> {
        let end = self.now + time;
        let mut sent = Vec::new();
        while self.now < end {
            self.next_id += 1;
            let id = self.next_id;
            sent.push((self.now - self.start, id));
            self.send(a, b, id);
            self.send(b, a, id);
            self.run(pause);
        }
        self.run(Duration::from_millis(200));
        let arrived = |(_, id): &(Duration, u64)| {
            self.hosts[b].received.contains_key(id) && self.hosts[a].received.contains_key(id)
        };
        sent.retain(|sent| !arrived(sent));
        sent
    }

    /// As `ping -i 0.1`: `b` answers what arrives; returns how many of how many requests got no answer.
    pub fn ping(&mut self, (a, b): (usize, usize), requests: u64) -> u64 {
        let first = self.next_id + 1;
        let mut waiting = BTreeSet::new();
        for step in 0..10 * requests + 30 {
            if step % 10 == 0 && step < 10 * requests {
                self.next_id += 1;
                waiting.insert(self.next_id);
                self.send(a, b, self.next_id);
            }
            self.run(Duration::from_millis(10));
            let arrived: Vec<_> = waiting
                .extract_if(.., |id| self.hosts[b].received.contains_key(id))
                .collect();
            for id in arrived {
                self.send(b, a, id);
            }
        }
        let answered = (first..=self.next_id).filter(|id| self.hosts[a].received.contains_key(id));
        requests - answered.count() as u64
    }

    pub fn run(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            let deadlines = self.hosts.iter().filter(|host| !host.agent_dead);
            let timer = deadlines
                .filter_map(|host| host.paths.next_deadline())
                .min();
            let event = self.queue.first_key_value().map(|((at, _), _)| *at);
            let Some(at) = [timer, event]
                .into_iter()
                .flatten()
                .min()
                .filter(|at| *at <= end)
            else {
                break;
            };
            self.now = self.now.max(at);
            if event == Some(at) {
                let (_, event) = self.queue.pop_first().unwrap();
                self.handle(event);
            }
            self.tick();
        }
        self.now = end;
    }

    pub fn link_change(&mut self, host: usize) {
        self.hosts[host].paths.on_link_change(self.now);
        self.obey(host);
    }

    pub fn user_ping(&mut self, from: usize, to: usize) -> PingId {
        let key = self.hosts[to].key;
        let id = self.hosts[from].paths.ping(self.now, key).unwrap();
        self.obey(from);
        id
    }

    /// The direct endpoint that `from` uses for `to`.
    pub fn direct(&self, from: usize, to: usize) -> Option<SocketAddr> {
        let status = self.hosts[from].paths.status(&self.hosts[to].key).unwrap();
        let programmed = self.hosts[from].kernel[&to].programmed;
        let relay = SocketAddr::from((relay_address(to), RELAY_PORT));
        assert_eq!(
            status.current.unwrap_or(relay),
            programmed,
            "status and kernel agree"
        );
        status.current
    }

    fn tick(&mut self) {
        for host in 0..self.hosts.len() {
            let due = self.hosts[host]
                .paths
                .next_deadline()
                .is_some_and(|at| at <= self.now);
            if due && !self.hosts[host].agent_dead {
                self.hosts[host].paths.on_timer(self.now);
                self.obey(host);
            }
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Datagram {
                to,
                from,
                payload: Payload::Disco(bytes),
            } => {
                if !self.hosts[to].agent_dead {
                    self.hosts[to].seen.insert(from);
                    self.hosts[to].paths.on_datagram(self.now, from, &bytes);
                    self.obey(to);
                }
            }
            Event::Datagram {
                to,
                from,
                payload: Payload::Data { from: peer, id },
            } => {
                self.hosts[to].seen.insert(from);
                self.receive_data(to, peer, from, id);
            }
            Event::Relayed { to, from, payload } => {
                if self.hosts[to].agent_dead || self.relay_down {
                    return;
                }
                let key = self.hosts[from].key;
                match payload {
                    Payload::Disco(bytes) => {
                        self.hosts[to].paths.on_relayed(self.now, HOME, key, &bytes);
                    }
                    Payload::Data { id, .. } => {
                        let source = self.hosts[to].kernel[&from].programmed;
                        self.receive_data(to, from, source, id);
                        self.hosts[to].paths.on_relayed_data(self.now, key);
                    }
                }
                self.obey(to);
            }
            Event::Stun { to } => {
                let endpoints = self.own_endpoints(to);
                self.hosts[to]
                    .paths
                    .set_local_endpoints(self.now, endpoints);
                self.obey(to);
            }
        }
    }

    fn receive_data(&mut self, to: usize, peer: usize, source: SocketAddr, id: u64) {
        let now = self.now;
        let kernel = self.hosts[to].kernel.get_mut(&peer).unwrap();
        kernel.endpoint = source;
        kernel.rx += DATA;
        self.hosts[to].received.insert(id, now);
    }

    fn obey(&mut self, host: usize) {
        while let Some(command) = self.hosts[host].paths.poll_command() {
            match command {
                Command::SendDirect { to, bytes } => {
                    self.hosts[host].disco_sent += 1;
                    self.transmit(host, to, Payload::Disco(bytes));
                }
                Command::SendRelay { region, to, bytes } => {
                    assert_eq!(region, HOME);
                    let to = self.hosts.iter().position(|peer| peer.key == to).unwrap();
                    self.post_relayed(host, to, Payload::Disco(bytes));
                }
                Command::SetEndpoint { peer, endpoint } => {
                    let peer = self.hosts.iter().position(|host| host.key == peer).unwrap();
                    assert!(
                        self.hosts[host].seen.contains(&endpoint),
                        "{endpoint} is no candidate"
                    );
                    let kernel = self.hosts[host].kernel.get_mut(&peer).unwrap();
                    kernel.endpoint = endpoint;
                    kernel.programmed = endpoint;
                }
                Command::RefreshEndpoints => {
                    self.post(2 * INTERNET_DELAY, Event::Stun { to: host });
                }
                Command::ReadStats => {
                    let stats = self.stats(host);
                    self.hosts[host].paths.on_stats(self.now, &stats);
                }
                Command::PingDone { id, result } => {
                    self.hosts[host].pings.insert(id, result);
                }
            }
        }
    }

    pub fn stats(&self, host: usize) -> Vec<PeerStats> {
        let kernel = self.hosts[host].kernel.iter();
        kernel
            .map(|(peer, kernel)| PeerStats {
                key: self.hosts[*peer].key,
                endpoint: Some(kernel.endpoint),
                rx_bytes: kernel.rx,
                tx_bytes: kernel.tx,
                last_handshake: None,
            })
            .collect()
    }
}

impl Host {
    fn new(number: u8, address: SocketAddr, site: usize) -> Self {
        let disco = DiscoPrivate::from_random([number + 1; 32]);
        let key = NodePublic::from_bytes([number + 101; 32]);
        Self {
            key,
            disco: disco.public(),
            paths: Paths::new(Config {
                node: key,
                disco,
                relay_port: RELAY_PORT,
                seed: [number + 1; 32],
            }),
            address,
            site,
            agent_dead: false,
            kernel: BTreeMap::new(),
            received: BTreeMap::new(),
            pings: BTreeMap::new(),
            disco_sent: 0,
            relayed_data: 0,
            seen: BTreeSet::new(),
        }
    }
}

pub fn relay_address(host: usize) -> Ipv4Addr {
    Ipv4Addr::new(127, 128, 0, u8::try_from(host).unwrap() + 1)
}
