//! What the network looks like from here: our addresses as STUN servers see them, the kind of NAT, the nearest
//! relay, and the endpoints to announce (protocol reference 2.5, 3.5).
//!
//! Sans-IO: after every call of a `&mut self` method take commands with [`Netcheck::poll_command`] until `None`,
//! then sleep until [`Netcheck::next_deadline`].

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use lowroad_wire::{
    control::{DerpMap, RegionId},
    disco::TxId,
    stun,
};
use rand::{RngCore, SeedableRng, rngs::StdRng};

pub use endpoints::{Endpoint, LocalAddress};
use home::Homes;
use schedule::Server;

mod endpoints;
mod home;
mod schedule;

/// A report has this long; what has not answered by then has not.
pub const REPORT_TIMEOUT: Duration = Duration::from_secs(5);
/// An answer later than this after its question doesn't count.
pub const PROBE_TIMEOUT: Duration = Duration::from_secs(3);
/// All regions are asked this often; in between only the nearest and home.
pub const FULL_EVERY: Duration = Duration::from_secs(300);
/// So many rounds may be started by maps and names within [`ROUNDS_WITHIN`]: whoever changes the map without end, or answers for its names one by one, has us ask
/// no more often. An agent that starts has the kept map, the server's, and names.
const ROUNDS: usize = 3;
const ROUNDS_WITHIN: Duration = Duration::from_secs(15);
/// Names that are being looked up at once.
const LOOKUPS: usize = 16;
/// After so many regions have answered the rest is waited for only as long as the slowest of them took.
const ENOUGH_REGIONS: usize = 3;
/// At least this long, so that the other address family of a near server is heard too.
const LINGER_MIN: Duration = Duration::from_millis(50);

#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// WireGuard's port.
    pub port: u16,
    /// Randomness for transaction ids, fresh at every start.
    pub seed: [u8; 32],
    /// Chooses the home region when nothing can be measured; the same for a node every time.
    pub stable: u64,
}

/// The result of one round of probes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Our address as the first server to answer by IPv4 saw it.
    pub global_v4: Option<SocketAddr>,
    pub global_v6: Option<SocketAddr>,
    /// Servers saw different IPv4 addresses: a hard NAT. `None` if fewer than two answered.
    pub mapping_varies: Option<bool>,
    /// Best latency per region in this round.
    pub latencies: BTreeMap<RegionId, Duration>,
    /// The home region to use.
    pub preferred: Option<RegionId>,
}

impl Report {
    pub fn udp_works(&self) -> bool {
        self.global_v4.is_some() || self.global_v6.is_some()
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Send this from WireGuard's port.
    Send {
        to: SocketAddr,
        bytes: Vec<u8>,
    },
    /// Look a name up and call [`Netcheck::on_resolved`], also if there is nothing.
    Resolve {
        host: String,
    },
    Done(Report),
}

#[derive(Debug)]
pub struct Netcheck {
    config: Config,
    random: StdRng,
    map: DerpMap,
    /// A map that came too soon after others.
    next_map: Option<DerpMap>,
    /// When that is taken, and a round started that came too soon after others.
    later: Option<Instant>,
    /// When maps and names started rounds, within [`ROUNDS_WITHIN`].
    rounds: VecDeque<Instant>,
    names: BTreeMap<String, Vec<IpAddr>>,
    resolving: BTreeSet<String>,
    run: Option<Run>,
    /// Asked for during a run.
    again: bool,
    full_at: Option<Instant>,
    report: Report,
    homes: Homes,
    memory: endpoints::Memory,
    own: endpoints::Own,
    commands: VecDeque<Command>,
}

/// A round of probes under way.
#[derive(Debug)]
struct Run {
    started: Instant,
    full: bool,
    waiting: VecDeque<(Instant, Server)>,
    asked: BTreeMap<TxId, (Instant, Server)>,
    regions: BTreeSet<RegionId>,
    /// What each server saw.
    seen: BTreeMap<SocketAddr, SocketAddr>,
    report: Report,
    ends: Instant,
}

impl Netcheck {
    pub fn new(config: Config) -> Self {
        Self {
            random: StdRng::from_seed(config.seed),
            config,
            map: DerpMap::default(),
            next_map: None,
            later: None,
            rounds: VecDeque::new(),
            names: BTreeMap::new(),
            resolving: BTreeSet::new(),
            run: None,
            again: false,
            full_at: None,
            report: Report::default(),
            homes: Homes::default(),
            memory: endpoints::Memory::default(),
            own: endpoints::Own::default(),
            commands: VecDeque::new(),
        }
    }

    /// The relays to measure. A map by which others are asked starts a full round: at once, or a little later if there were several of late.
    pub fn set_map(&mut self, now: Instant, map: &DerpMap) {
        if schedule::is_same(&self.map, map) {
            self.map = map.clone();
            self.next_map = None;
            return;
        }
        self.next_map = Some(map.clone());
        self.start_soon(now);
    }

    /// A round by the latest map: at once, or when there have not been as many of late.
    fn start_soon(&mut self, now: Instant) {
        let recent = |at: &Instant| now.saturating_duration_since(*at) < ROUNDS_WITHIN;
        self.rounds.retain(recent);
        if let Some(first) = self.rounds.front().filter(|_| self.rounds.len() >= ROUNDS) {
            self.later = Some(*first + ROUNDS_WITHIN);
            return;
        }
        self.rounds.push_back(now);
        self.later = None;
        if let Some(map) = self.next_map.take() {
            self.map = map;
            self.run = None;
            self.names.clear();
            self.look_up();
        }
        self.full_at = None;
        self.start(now);
    }

    /// Asks for names that are not known yet, a few at a time.
    fn look_up(&mut self) {
        for host in schedule::unresolved(&self.map) {
            if self.resolving.len() >= LOOKUPS {
                break;
            }
            if !self.names.contains_key(&host) && self.resolving.insert(host.clone()) {
                self.commands.push_back(Command::Resolve { host });
            }
        }
    }

    /// The addresses of a name, or none.
    pub fn on_resolved(&mut self, now: Instant, host: &str, addresses: Vec<IpAddr>) {
        self.resolving.remove(host);
        let found = !addresses.is_empty();
        self.names.insert(host.to_owned(), addresses);
        self.look_up();
        if found {
            // Until then this region could not be asked.
            match &mut self.run {
                Some(run) => {
                    self.full_at = None;
                    run.join(now, schedule::full(&self.map, &self.names));
                }
                None => self.start_soon(now),
            }
            self.on_timer(now);
        }
    }

    /// Starts a round: a full one if none has succeeded within [`FULL_EVERY`], else an incremental one. During a
    /// round another one is noted.
    pub fn start(&mut self, now: Instant) {
        if self.run.is_some() {
            self.again = true;
            return;
        }
        let recent = |at: Instant| now.duration_since(at) < FULL_EVERY;
        let full = !self.full_at.is_some_and(recent) || self.report.latencies.is_empty();
        let plan = if full {
            schedule::full(&self.map, &self.names)
        } else {
            schedule::incremental(&self.map, &self.names, &self.report)
        };
        let waiting: VecDeque<_> = plan
            .into_iter()
            .map(|(after, server)| (now + after, server))
            .collect();
        self.run = Some(Run {
            started: now,
            full,
            regions: waiting.iter().map(|(_, server)| server.region).collect(),
            ends: if waiting.is_empty() {
                now
            } else {
                now + REPORT_TIMEOUT
            },
            waiting,
            asked: BTreeMap::new(),
            seen: BTreeMap::new(),
            report: Report::default(),
        });
        self.on_timer(now);
    }

    /// A STUN response that came to WireGuard's port; false if it answers nothing that was asked.
    pub fn on_datagram(&mut self, now: Instant, from: SocketAddr, bytes: &[u8]) -> bool {
        let Ok((tx, source)) = stun::parse_response(bytes) else {
            return false;
        };
        let from = SocketAddr::new(from.ip().to_canonical(), from.port());
        let Some(run) = &mut self.run else {
            return false;
        };
        let Some(&(sent, server)) = run.asked.get(&tx) else {
            return false;
        };
        let latency = now.duration_since(sent);
        if server.address != from || latency > PROBE_TIMEOUT {
            return false;
        }
        run.asked.remove(&tx);
        run.note(
            now,
            server,
            SocketAddr::new(source.ip().to_canonical(), source.port()),
            latency,
        );
        self.on_timer(now);
        true
    }

    /// A frame came from this region's relay: it is reachable, whatever its latency.
    pub fn on_frame(&mut self, now: Instant, region: RegionId) {
        self.homes.on_frame(now, region);
    }

    /// To be called at or after [`Self::next_deadline`].
    pub fn on_timer(&mut self, now: Instant) {
        if self.later.is_some_and(|at| at <= now) {
            self.start_soon(now);
        }
        let Some(run) = &mut self.run else { return };
        while run.waiting.front().is_some_and(|(at, _)| *at <= now) {
            let Some((_, server)) = run.waiting.pop_front() else {
                break;
            };
            if run.is_answered(&server) {
                continue;
            }
            let mut id = [0; 12];
            self.random.fill_bytes(&mut id);
            run.asked.insert(TxId(id), (now, server));
            self.commands.push_back(Command::Send {
                to: server.address,
                bytes: stun::request(TxId(id)),
            });
        }
        if run.ends <= now {
            self.finish(now);
        }
    }

    /// When to call [`Self::on_timer`] next; `None` between rounds, unless one has been put off.
    pub fn next_deadline(&self) -> Option<Instant> {
        let run = self.run.as_ref().map(|run| {
            let probe = run.waiting.front().map(|(at, _)| *at);
            probe.map_or(run.ends, |at| at.min(run.ends))
        });
        [run, self.later].into_iter().flatten().min()
    }

    pub fn poll_command(&mut self) -> Option<Command> {
        self.commands.pop_front()
    }

    /// The last report.
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// What to announce as our endpoints, best first.
    pub fn endpoints(&mut self, now: Instant, local: &[LocalAddress]) -> Vec<Endpoint> {
        self.own.follow(now, local);
        endpoints::compose(
            &self.report,
            self.memory.recent(now),
            &self.own,
            local,
            self.config.port,
        )
    }

    fn finish(&mut self, now: Instant) {
        let Some(mut run) = self.run.take() else {
            return;
        };
        run.judge_mapping();
        if run.report.udp_works() {
            self.memory.note(now, run.steady_mappings());
            if run.full {
                self.full_at = Some(run.started);
            }
        }
        self.homes.note(now, &run.report.latencies);
        let preferred = self.homes.choose(now, &self.map, self.config.stable);
        run.report.preferred = preferred;
        self.report = run.report.clone();
        self.commands.push_back(Command::Done(run.report));
        if std::mem::take(&mut self.again) {
            self.start(now);
        }
    }
}

impl Run {
    /// Takes in servers that have become known meanwhile.
    fn join(&mut self, now: Instant, plan: Vec<(Duration, Server)>) {
        let known: BTreeSet<_> = self
            .waiting
            .iter()
            .map(|(_, server)| server.address)
            .chain(self.asked.values().map(|(_, server)| server.address))
            .chain(self.seen.keys().copied())
            .collect();
        let new: Vec<_> = plan
            .into_iter()
            .filter(|(_, server)| !known.contains(&server.address))
            .map(|(after, server)| (now + after, server))
            .collect();
        if new.is_empty() {
            return;
        }
        self.regions
            .extend(new.iter().map(|(_, server)| server.region));
        self.waiting.extend(new);
        self.waiting.make_contiguous().sort_by_key(|(at, _)| *at);
        // As much time as every server gets; a name is looked up once, so this has an end.
        self.full = true;
        self.ends = self.ends.max(now + PROBE_TIMEOUT);
    }

    fn note(&mut self, now: Instant, server: Server, source: SocketAddr, latency: Duration) {
        match source {
            SocketAddr::V4(_) => {
                self.report.global_v4.get_or_insert(source);
            }
            SocketAddr::V6(_) => self.report.global_v6 = Some(source),
        }
        self.seen.insert(server.address, source);
        let latencies = &mut self.report.latencies;
        let best = latencies.entry(server.region).or_insert(latency);
        *best = latency.min(*best);
        let all = latencies.len() == self.regions.len();
        if all || latencies.len() >= ENOUGH_REGIONS {
            let slowest = latencies.values().max().copied().unwrap_or_default();
            let linger = if self.full { 2 * slowest } else { slowest };
            self.ends = self.ends.min(now + linger.max(LINGER_MIN));
        }
        // Everybody asked has answered: nothing is left to wait for.
        if all
            && self.asked.is_empty()
            && self
                .waiting
                .iter()
                .all(|(_, server)| self.is_answered(server))
        {
            self.ends = now;
        }
    }

    fn is_answered(&self, server: &Server) -> bool {
        self.seen.contains_key(&server.address)
    }

    fn judge_mapping(&mut self) {
        let v4: Vec<_> = self
            .seen
            .values()
            .filter(|source| source.is_ipv4())
            .collect();
        if v4.len() >= 2 {
            self.report.mapping_varies = Some(v4.windows(2).any(|pair| pair[0] != pair[1]));
        }
    }

    /// The first IPv4 and the last IPv6 mapping, and those that more than one server saw.
    fn steady_mappings(&self) -> Vec<SocketAddr> {
        let mut steady: Vec<_> = [self.report.global_v4, self.report.global_v6]
            .into_iter()
            .flatten()
            .collect();
        for source in self.seen.values() {
            let count = self.seen.values().filter(|other| *other == source).count();
            if count > 1 && !steady.contains(source) {
                steady.push(*source);
            }
        }
        steady
    }
}

#[cfg(test)]
mod tests;
