//! This node's data plane: from the netmap to kernel state and relay table. No sockets; the kernel is behind its seam.

mod follow;
mod netmap;
mod news;
mod policy;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::{Duration, Instant},
};

use lowroad_core::{
    desired::{Desired, Observed, PeerStats},
    filter::Compiled,
    intent::{Choices, Held, Intent},
    path::{Config, Paths},
    plan::{AllowedIps, Step, narrow, plan},
};
use lowroad_wire::{
    key::{DiscoPrivate, NodePublic},
    netmap::{Changes, NetMap},
};
use time::OffsetDateTime;
use tokio::task::JoinHandle;
use tracing::{debug, info};

pub use self::follow::Relays;
use self::news::News;
use super::{addresses::RelayAddresses, direct::Direct, whole};
use crate::kernel::{Kernel, KernelError};

/// Between two readings of all counters for people who look at them, in times that a reading takes: those of thousands of peers take tens of milliseconds, and anybody on
/// this host may ask.
const STATS_REST: u32 = 10;

/// What a netmap message asks the engine to do beside reconciling.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Consequences {
    /// It began a new netmap.
    pub begins: bool,
    /// The netmap is another one than before.
    pub netmap: bool,
    pub derp_map: bool,
    /// Peers, addresses or rules changed: the kernel is to be reconciled.
    pub kernel: bool,
}

pub struct Node {
    pub kernel: Box<dyn Kernel>,
    pub paths: Paths,
    pub choices: Choices,
    /// Of the current poll; `None` until its first message has come in this run.
    pub map: Option<NetMap>,
    /// When the netmap was kept that is in use until the server sends one.
    pub cached: Option<OffsetDateTime>,
    /// What was left out of the netmap, for `status`.
    pub malformed: Vec<String>,
    /// Pieces of the netmap that there was no room for.
    pub left_out: usize,
    /// The kernel holds what the netmap wants.
    pub programmed: bool,
    /// It has held what a netmap wanted at least once.
    pub was_programmed: bool,
    /// An earlier agent, or an earlier identity, left a device.
    pub found_device: bool,
    /// Of those that have exchanged anything.
    pub stats: BTreeMap<NodePublic, PeerStats>,
    /// Until when they do for people who look at them.
    stats_rest: Instant,
    pub direct: Direct,
    relay_port: u16,
    relays: RelayAddresses,
    /// Endpoints found in the kernel at start, until the netmap says whose they are.
    adopted: BTreeMap<NodePublic, SocketAddr>,
    /// The next message begins a new netmap.
    fresh: bool,
    /// What the netmap asks for; `None` if it is to be read anew.
    intent: Option<Intent>,
    /// How the kernel differs from that, unless everything is to be compared.
    held: Held,
    /// What the kernel holds is to be read, and everything compared.
    whole: bool,
    /// Peers whose relay entry may have changed, and whether all of them have.
    relay_changed: BTreeSet<NodePublic>,
    relay_whole: bool,
    /// The filter in force may be another than the netmap's.
    filter_stale: bool,
    /// Counts the policies of the netmap.
    policy: u64,
    /// Of which one is being compiled, elsewhere.
    compiling: Option<(u64, JoinHandle<Compiled>)>,
    /// How long that is waited for.
    compile_patience: Duration,
    /// And one is, until it is installed.
    compiled: Option<(u64, Compiled)>,
    installed: Option<Compiled>,
    /// Why nothing passes: the policy of the netmap cannot be put in force.
    closed: Option<String>,
    /// Why the kernel does not hold what the netmap wants, if it was tried.
    failure: Option<String>,
    news: News,
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node")
            .field("programmed", &self.programmed)
            .finish_non_exhaustive()
    }
}

impl Node {
    /// Takes over what an earlier agent left in the kernel. Nothing is changed until there is a netmap: meanwhile the old state, filter included, is in force.
    pub async fn adopt(
        mut kernel: Box<dyn Kernel>,
        choices: Choices,
        disco: DiscoPrivate,
        seed: [u8; 32],
    ) -> Result<Self, KernelError> {
        let observed = kernel.observe().await?;
        let found_device = observed.device.is_some();
        let mut relays = RelayAddresses::default();
        let mut adopted = BTreeMap::new();
        let own_key = choices.private_key.public();
        // Endpoints of another identity's sessions mean nothing.
        if let Some(device) = observed
            .device
            .filter(|device| device.public_key == Some(own_key))
        {
            for (key, endpoint) in device
                .peers
                .iter()
                .filter_map(|(key, peer)| Some((*key, peer.endpoint?)))
            {
                relays.adopt(key, endpoint);
                adopted.insert(key, endpoint);
            }
            if !adopted.is_empty() {
                info!(
                    peers = adopted.len(),
                    "took over the kernel state of an earlier agent"
                );
            }
        }
        let relay_port = choices.listen_port + 1;
        let paths = Paths::new(Config {
            node: own_key,
            disco,
            relay_port,
            seed,
        });
        Ok(Self {
            kernel,
            paths,
            choices,
            map: None,
            cached: None,
            malformed: Vec::new(),
            left_out: 0,
            programmed: false,
            was_programmed: false,
            found_device,
            stats: BTreeMap::new(),
            stats_rest: Instant::now(),
            direct: Direct::new(found_device),
            relay_port,
            relays,
            adopted,
            fresh: true,
            intent: None,
            held: Held::default(),
            whole: true,
            relay_changed: BTreeSet::new(),
            relay_whole: true,
            filter_stale: true,
            policy: 0,
            compiling: None,
            compile_patience: policy::COMPILE_PATIENCE,
            compiled: None,
            installed: None,
            closed: None,
            failure: None,
            news: News::default(),
        })
    }

    /// The preferences have changed.
    pub fn set_choices(&mut self, choices: Choices) {
        self.choices = choices;
        self.read_anew();
    }

    /// The kernel may hold something else than it was told: everything is to be compared with it.
    pub fn compare_whole(&mut self) {
        self.whole = true;
    }

    /// Makes the kernel hold what netmap and preferences want. Returns how many steps that took; none if it did already.
    pub async fn reconcile(
        &mut self,
        now: Instant,
        clock: OffsetDateTime,
    ) -> Result<usize, KernelError> {
        loop {
            match self.advance(now, clock).await? {
                Some(steps) => return Ok(steps),
                None => self.finish_compiling().await,
            }
        }
    }

    /// The same, but does not wait for the compiler: `None` says that a large policy is being compiled. Until then nothing is programmed, and no message may be
    /// taken; go on here after [`Self::finish_compiling`]. So each policy comes into force with the peers of its netmap, in the order of the messages, and messages that
    /// come faster than they are compiled put none off.
    ///
    /// Without a netmap nothing is done: what an earlier agent left stays in force, and a new device does not exist yet.
    ///
    /// What is known to have changed is programmed; everything is compared where that is asked for, and after a failure.
    ///
    /// With a netmap, a policy that may be older must not stay in force: what fails is tried a second time at once, and if the policy isn't in force then,
    /// nothing passes until it is.
    pub async fn advance(
        &mut self,
        now: Instant,
        clock: OffsetDateTime,
    ) -> Result<Option<usize>, KernelError> {
        let result = self.try_twice(now, clock).await;
        match &result {
            Ok(Some(_)) => self.failure = None,
            Ok(None) => {}
            Err(why) => self.failure = Some(whole(why)),
        }
        result
    }

    async fn try_twice(
        &mut self,
        now: Instant,
        clock: OffsetDateTime,
    ) -> Result<Option<usize>, KernelError> {
        let older_policy = self.found_device || self.was_programmed || self.installed.is_some();
        let part = !self.whole;
        match self.bring_about(now, clock).await {
            Err(why) if part || (self.filter_stale && older_policy) => {
                debug!(%why, "trying once more, with everything compared");
                let again = self.bring_about(now, clock).await;
                let failed = match &again {
                    Ok(Some(_)) => None,
                    // It has to be compiled anew, which may take long.
                    Ok(None) => Some(&why),
                    Err(why) => Some(why),
                };
                if let Some(why) = failed
                    && self.filter_stale
                    && older_policy
                {
                    self.close(why).await;
                }
                again
            }
            result => result,
        }
    }

    async fn bring_about(
        &mut self,
        now: Instant,
        clock: OffsetDateTime,
    ) -> Result<Option<usize>, KernelError> {
        if self.map.is_none() {
            return Ok(Some(0));
        }
        // Keys expire without a message.
        self.follow(&Changes::default(), now, clock);
        self.programmed = false;
        if self.compile_filter().await.is_err() {
            if self.filter_is_lost() {
                // Nothing passes until there is a policy: maps that judge for no program are closed first.
                self.whole = true;
                self.installed = None;
                self.kernel.apply(&Step::AttachFilter).await?;
            }
            return Ok(None);
        }
        // Whatever fails from here on: what the kernel holds then is to be read.
        let whole = std::mem::replace(&mut self.whole, true);
        let (desired, mut observed) = if whole {
            self.compared(now).await?
        } else {
            self.intent()
                .part(&self.held, &self.choices, |key| self.paths.endpoint(key))
        };
        let attached = observed
            .device
            .as_ref()
            .is_some_and(|device| device.filter_attached);
        let mut count = 0;
        if attached && self.filter_stale {
            // Before the new policy grants their addresses anything.
            let steps = narrow(&desired, &mut observed);
            count += steps.len();
            self.kernel.apply_all(&steps).await?;
        }
        let steps = plan(&desired, &observed);
        drop((desired, observed));
        if attached {
            self.install_new().await?;
        }
        for step in &steps {
            debug!(?step, "kernel");
        }
        let attach = steps
            .iter()
            .position(|step| matches!(step, Step::AttachFilter));
        let (first, rest) = steps.split_at(attach.map_or(0, |attach| attach + 1));
        self.kernel.apply_all(first).await?;
        if attach.is_some() {
            self.install_any().await?;
        }
        self.kernel.apply_all(rest).await?;
        count += steps.len();
        self.held.clear();
        self.whole = false;
        self.relay_whole |= whole;
        self.programmed = true;
        self.was_programmed = true;
        Ok(Some(count))
    }

    /// All that the kernel shall hold, and all that it holds.
    async fn compared(&mut self, now: Instant) -> Result<(Desired, Observed), KernelError> {
        let observed = self.kernel.observe().await?;
        // A peer may have moved by itself, and be right: Paths has to see that before its choice is put back.
        if observed.device.is_some() {
            self.read_stats(now).await?;
        }
        let desired = self
            .intent()
            .desired(&self.choices, |key| self.paths.endpoint(key));
        Ok((desired, observed))
    }

    /// True if somebody has taken the filter off the device.
    pub fn filter_is_lost(&mut self) -> bool {
        self.was_programmed && self.kernel.filter_is_lost()
    }

    /// Feeds WireGuard's counters to the paths.
    pub async fn read_stats(&mut self, now: Instant) -> Result<(), KernelError> {
        let begun = Instant::now();
        let stats = self.kernel.peer_stats().await?;
        self.paths.on_stats(now, &stats);
        self.direct.count(&stats);
        let alive = stats
            .into_iter()
            .filter(|stats| stats.last_handshake.is_some() || stats.rx_bytes + stats.tx_bytes > 0);
        self.stats = alive.map(|stats| (stats.key, stats)).collect();
        self.stats_rest = begun + begun.elapsed() * (STATS_REST + 1);
        Ok(())
    }

    /// The same for somebody who wants to see them, unless that was done just before.
    pub async fn refresh_stats(&mut self, now: Instant) -> Result<(), KernelError> {
        match self.stats_rest <= Instant::now() {
            true => self.read_stats(now).await,
            false => Ok(()),
        }
    }

    /// Programs one peer's endpoint, and touches nothing else. A peer that the kernel is behind with gets it with the rest.
    pub async fn set_endpoint(
        &mut self,
        peer: NodePublic,
        endpoint: SocketAddr,
    ) -> Result<(), KernelError> {
        self.relay_changed.insert(peer);
        if self.whole || self.held.has(&peer) {
            return Ok(());
        }
        let step = Step::UpdatePeer {
            key: peer,
            endpoint: Some(endpoint),
            allowed_ips: AllowedIps::Keep,
        };
        let applied = self.kernel.apply(&step).await;
        self.whole |= applied.is_err();
        applied
    }
}

#[cfg(test)]
mod tests;
