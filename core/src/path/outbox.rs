//! What peers share while they act: identity, randomness, own endpoints and the commands on their way out.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    time::{Duration, Instant},
};

use lowroad_wire::{
    control::RegionId,
    disco::{self, Message, SharedKey, TxId},
    key::{DiscoPrivate, DiscoPublic, NodePublic},
};
use rand::{Rng, RngCore, SeedableRng, rngs::StdRng};

use super::{
    Command, Config, PingId, PingResult,
    timing::{ENDPOINTS_FRESH, REFRESH_MIN, RESTUN_MILLIS},
};

pub(super) struct Outbox {
    commands: VecDeque<Command>,
    /// Counters are read for all peers at once, so once for all who ask.
    stats_wanted: bool,
    pub node: NodePublic,
    disco: DiscoPrivate,
    disco_public: DiscoPublic,
    random: StdRng,
    /// Own endpoints, as CallMeMaybe tells them.
    pub local: Vec<SocketAddr>,
    local_at: Option<Instant>,
    refresh_asked: Option<Instant>,
    /// Command-line pings that were answered; the owner takes them off its list.
    pub answered: Vec<PingId>,
}

impl Outbox {
    pub fn new(config: Config) -> Self {
        Self {
            commands: VecDeque::new(),
            stats_wanted: false,
            node: config.node,
            disco_public: config.disco.public(),
            disco: config.disco,
            random: StdRng::from_seed(config.seed),
            local: Vec::new(),
            local_at: None,
            refresh_asked: None,
            answered: Vec::new(),
        }
    }

    pub fn shared_key(&self, peer: &DiscoPublic) -> SharedKey {
        SharedKey::new(&self.disco, peer)
    }

    pub fn transaction(&mut self) -> TxId {
        let mut id = [0; 12];
        self.random.fill_bytes(&mut id);
        TxId(id)
    }

    pub fn send_direct(&mut self, to: SocketAddr, key: &SharedKey, message: &Message) {
        let bytes = self.seal(key, message);
        self.commands.push_back(Command::SendDirect { to, bytes });
    }

    pub fn send_relay(
        &mut self,
        (region, to): (RegionId, NodePublic),
        key: &SharedKey,
        message: &Message,
    ) {
        let bytes = self.seal(key, message);
        self.commands
            .push_back(Command::SendRelay { region, to, bytes });
    }

    pub fn set_endpoint(&mut self, peer: NodePublic, endpoint: SocketAddr) {
        self.commands
            .push_back(Command::SetEndpoint { peer, endpoint });
    }

    pub fn read_stats(&mut self) {
        self.stats_wanted = true;
    }

    /// What is to be sent and programmed first, then the counters.
    pub fn pop(&mut self) -> Option<Command> {
        let wanted = || std::mem::take(&mut self.stats_wanted).then_some(Command::ReadStats);
        self.commands.pop_front().or_else(wanted)
    }

    pub fn ping_done(&mut self, id: PingId, result: PingResult) {
        self.answered.push(id);
        self.tell(id, result);
    }

    /// Of a ping that is on no list, or no longer.
    pub fn tell(&mut self, id: PingId, result: PingResult) {
        self.commands.push_back(Command::PingDone { id, result });
    }

    pub fn set_local(&mut self, now: Instant, endpoints: Vec<SocketAddr>) {
        self.local = endpoints;
        self.local_at = Some(now);
    }

    /// Asks for fresh own endpoints if the ones here are old, or `force`d.
    pub fn refresh(&mut self, now: Instant, force: bool) {
        let older =
            |at: Option<Instant>, limit| at.is_none_or(|at| now.duration_since(at) >= limit);
        if (force || older(self.local_at, ENDPOINTS_FRESH))
            && older(self.refresh_asked, REFRESH_MIN)
        {
            self.refresh_asked = Some(now);
            self.commands.push_back(Command::RefreshEndpoints);
        }
    }

    pub fn restun_period(&mut self) -> Duration {
        Duration::from_millis(self.random.random_range(RESTUN_MILLIS))
    }

    fn seal(&mut self, key: &SharedKey, message: &Message) -> Vec<u8> {
        let mut nonce = [0; 24];
        self.random.fill_bytes(&mut nonce);
        disco::seal(self.disco_public, key, nonce, message)
    }
}
