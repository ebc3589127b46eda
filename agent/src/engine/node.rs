//! This node's data plane: from the netmap to kernel state and relay table. No sockets; the kernel is behind its seam.

mod follow;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::Instant,
};

use lowroad_core::{
    desired::{Desired, Observed, PeerStats},
    filter::{self, Compiled},
    intent::{Choices, Held, Intent},
    path::{Config, Paths},
    plan::{AllowedIps, Step, plan},
};
use lowroad_wire::{
    control::{Malformed, MapResponse},
    key::{DiscoPrivate, NodePublic},
    netmap::{Changes, NetMap},
};
use time::OffsetDateTime;
use tracing::{debug, error, info, warn};

pub use self::follow::Relays;
use super::{addresses::RelayAddresses, whole};
use crate::{
    kernel::{Kernel, KernelError},
    process,
};

/// Parts of a policy that are not in force and are told of.
const MAX_NOTES: usize = 16;
/// Pieces left out of the netmap that `status` can tell of.
const MAX_MALFORMED: usize = 64;

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
    filter_stale: bool,
    installed: Option<Compiled>,
    /// Why nothing passes: the policy of the netmap cannot be put in force.
    closed: Option<String>,
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
            installed: None,
            closed: None,
        })
    }

    /// A new poll has begun: its first message replaces the netmap. The old one stays in force until then.
    pub fn poll_started(&mut self) {
        self.fresh = true;
    }

    /// Whether the next message begins a netmap.
    pub fn begins(&self) -> bool {
        self.fresh || self.map.is_none()
    }

    /// The netmap holds no more: no peers, no addresses, and a filter that drops everything.
    pub fn forget_map(&mut self) {
        self.map = Some(NetMap::default());
        self.cached = None;
        self.fresh = true;
        self.read_anew();
    }

    /// Goes on with what an earlier agent knew, until the server sends a netmap.
    pub fn take_cached(
        &mut self,
        map: NetMap,
        saved: OffsetDateTime,
        now: Instant,
        clock: OffsetDateTime,
    ) {
        self.map = Some(map);
        self.cached = Some(saved);
        self.fresh = true;
        self.read_anew();
        self.follow(&Changes::default(), now, clock);
    }

    /// Nobody renews the own key while the server is away: with it ends what the kept netmap allowed.
    pub fn drop_expired_cache(&mut self, clock: OffsetDateTime) {
        let map = self.map.as_ref().filter(|_| self.cached.is_some());
        let expired = |map: &NetMap| {
            let own = map.self_node.as_ref();
            own.is_some_and(|own| own.is_expired(map.control_time(clock)))
        };
        if map.is_some_and(expired) {
            warn!("this node's key has expired while the login server was out of reach");
            self.forget_map();
        }
    }

    /// Takes in one netmap message.
    pub fn take_map(
        &mut self,
        response: MapResponse,
        malformed: &[Malformed],
        now: Instant,
        clock: OffsetDateTime,
    ) -> Consequences {
        if self.fresh {
            self.malformed.clear();
            self.left_out = 0;
        }
        for piece in malformed {
            warn!(%piece, "part of the netmap was left out");
            if self.malformed.len() < MAX_MALFORMED {
                self.malformed.push(piece.to_string());
            }
        }
        if response.keep_alive && self.fresh {
            // It begins nothing.
            return Consequences::default();
        }
        self.cached = None;
        let begins = std::mem::take(&mut self.fresh) || self.map.is_none();
        let mut map = if begins {
            NetMap::default()
        } else {
            self.map.take().unwrap_or_default()
        };
        let changes = map.apply(response, clock);
        self.left_out = self.left_out.saturating_add(changes.left_out);
        if changes.left_out > 0 {
            warn!(
                pieces = changes.left_out,
                "the netmap is too large: part of it was left out"
            );
        }
        debug!(
            begins,
            added = changes.peers_added.len(),
            changed = changes.peers_changed.len(),
            removed = changes.peers_removed.len(),
            filter = changes.filter,
            "netmap"
        );
        self.map = Some(map);
        if begins {
            self.read_anew();
        }
        self.follow(&changes, now, clock);
        Consequences {
            begins,
            netmap: begins || !changes.is_empty(),
            derp_map: begins || changes.derp,
            kernel: !self.programmed,
        }
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
    ///
    /// Without a netmap nothing is done: what an earlier agent left stays in force, and a new device does not exist yet.
    ///
    /// What is known to have changed is programmed; everything is compared where that is asked for, and after a failure.
    ///
    /// With a netmap, a policy that may be older must not stay in force: what fails is tried a second time at once, and if the policy isn't in force then,
    /// nothing passes until it is.
    pub async fn reconcile(
        &mut self,
        now: Instant,
        clock: OffsetDateTime,
    ) -> Result<usize, KernelError> {
        let older_policy = self.found_device || self.was_programmed;
        let part = !self.whole;
        match self.bring_about(now, clock).await {
            Err(why) if part || (self.filter_stale && older_policy) => {
                debug!(%why, "trying once more, with everything compared");
                let again = self.bring_about(now, clock).await;
                if let Err(why) = &again
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
    ) -> Result<usize, KernelError> {
        if self.map.is_none() {
            return Ok(0);
        }
        // Keys expire without a message.
        self.follow(&Changes::default(), now, clock);
        self.programmed = false;
        let mut new_filter = self.stale_filter().await;
        // Whatever fails from here on: what the kernel holds then is to be read.
        let whole = std::mem::replace(&mut self.whole, true);
        let (desired, observed) = if whole {
            self.compared(now).await?
        } else {
            self.intent()
                .part(&self.held, &self.choices, |key| self.paths.endpoint(key))
        };
        let steps = plan(&desired, &observed);
        let attached = observed
            .device
            .as_ref()
            .is_some_and(|device| device.filter_attached);
        drop((desired, observed));
        if attached && let Some(compiled) = new_filter.take() {
            self.install(compiled).await?;
        }
        for step in &steps {
            debug!(?step, "kernel");
        }
        let attach = steps
            .iter()
            .position(|step| matches!(step, Step::AttachFilter));
        let (first, rest) = steps.split_at(attach.map_or(0, |attach| attach + 1));
        self.kernel.apply_all(first).await?;
        if attach.is_some()
            && let Some(compiled) = new_filter.or_else(|| self.installed.take())
        {
            self.install(compiled).await?;
        }
        self.kernel.apply_all(rest).await?;
        let count = steps.len();
        drop(steps);
        if whole {
            process::give_back_memory();
        }
        self.held.clear();
        self.whole = false;
        self.relay_whole |= whole;
        self.programmed = true;
        self.was_programmed = true;
        Ok(count)
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

    /// The filter of the netmap, if it isn't the installed one.
    async fn stale_filter(&mut self) -> Option<Compiled> {
        if !self.filter_stale {
            return None;
        }
        let input = self
            .intent()
            .filter_input(self.map.as_ref()?, &self.choices);
        let compiled = compile(input).await;
        // It stays stale until it is installed, whatever fails before.
        self.filter_stale = self.installed.as_ref() != Some(&compiled);
        self.filter_stale.then_some(compiled)
    }

    async fn install(&mut self, compiled: Compiled) -> Result<(), KernelError> {
        // If this fails it is not known what is in force.
        self.installed = None;
        self.filter_stale = true;
        self.kernel.install_filter(&compiled).await?;
        info!(
            rules = compiled.rules.len(),
            "the packet filter is in force"
        );
        for note in compiled.notes.iter().take(MAX_NOTES) {
            warn!(note, "part of the policy is not in force");
        }
        self.installed = Some(compiled);
        self.filter_stale = false;
        self.closed = None;
        Ok(())
    }

    /// The policy cannot be put in force, and the one before may accept what it refuses.
    async fn close(&mut self, why: &KernelError) {
        let why = whole(why);
        if self.closed.as_ref() != Some(&why) {
            error!(
                why,
                "the policy cannot be put in force: nothing passes until it can"
            );
        }
        if let Err(error) = self.kernel.close_filter().await {
            error!(error = %whole(&error), "cannot even close the filter");
        }
        self.closed = Some(why);
    }

    /// Why nothing passes.
    pub fn closed(&self) -> Option<&str> {
        self.closed.as_deref()
    }

    /// True if somebody has taken the filter off the device.
    pub fn filter_is_lost(&mut self) -> bool {
        self.was_programmed && self.kernel.filter_is_lost()
    }

    /// Parts of the policy that are left out of the filter in force.
    pub fn filter_notes(&self) -> &[String] {
        let notes = self.installed.as_ref().map(|compiled| &compiled.notes[..]);
        notes.unwrap_or_default()
    }

    /// Feeds WireGuard's counters to the paths.
    pub async fn read_stats(&mut self, now: Instant) -> Result<(), KernelError> {
        let stats = self.kernel.peer_stats().await?;
        self.paths.on_stats(now, &stats);
        let alive = stats
            .into_iter()
            .filter(|stats| stats.last_handshake.is_some() || stats.rx_bytes + stats.tx_bytes > 0);
        self.stats = alive.map(|stats| (stats.key, stats)).collect();
        Ok(())
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

/// Compiling takes some ms for each thousand peers: elsewhere, so that this worker goes on with what is relayed.
async fn compile(input: filter::Input) -> Compiled {
    tokio::task::spawn_blocking(move || filter::compile(&input))
        .await
        .expect("the compiler panics on no input, and the runtime outlives its tasks")
}

#[cfg(test)]
mod tests;
