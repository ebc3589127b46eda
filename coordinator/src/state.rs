//! The tailnet in memory: what counts while the server runs.
//!
//! Pure but for locks' sake: every method is short, takes the time and randomness it needs as arguments, and only marks what has to be
//! written (`Dirty`) and what sessions have to hear of (`changed`). `Hub` holds the lock and sees to both.

mod admin;
mod auth_keys;
mod changes;
mod history;
mod homes;
mod poll;
mod register;
mod seed;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::Ipv4Addr,
    sync::Arc,
    time::{Duration, Instant},
};

use ipnet::Ipv4Net;
use lowroad_wire::{
    control::{NodeId, UserId},
    key::{MachinePublic, NodePublic},
};
use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

pub use admin::NodeRef;
pub use auth_keys::NewAuthKey;
pub use changes::{Compile, Compiled, Taken};
pub use history::{History, LONGEST_AUTHOR, NewPolicy};
pub use poll::Attached;
pub(crate) use poll::check_size;
pub use register::{Registered, Stranger, Waiting};
pub use seed::SetPolicy;

use crate::{
    Error, address,
    model::{AuthKey, KeyId, Node, Owner, Role, User},
    policy::{NodeFacts, Policy, PolicyErrors, TailnetFacts, UserFacts, World},
    store::{Dirty, Loaded, Rows, Setting, Store},
    view::Published,
};
use changes::Stale;
use homes::Homes;
use register::Pending;

/// Times that tests shorten.
#[derive(Debug, Clone)]
pub struct Timing {
    /// How long a node counts as online after its poll ended: reconnects and restarts should not show.
    pub offline_grace: Duration,
    /// How long an ephemeral node may be gone before it is deleted.
    pub ephemeral_timeout: Duration,
    /// How long a login page can be used.
    pub registration_lifetime: Duration,
    /// Silence on a poll before a keep-alive, plus up to a fifth; clients give up after 120 s.
    pub keep_alive: Duration,
    /// How long a client may take to read a message of its poll before the poll is ended.
    pub write_timeout: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            offline_grace: Duration::from_secs(10),
            ephemeral_timeout: Duration::from_secs(30 * 60),
            registration_lifetime: Duration::from_secs(15 * 60),
            keep_alive: Duration::from_secs(50),
            write_timeout: Duration::from_secs(30),
        }
    }
}

/// Settings that do not change while the server runs.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// Suffix of node names, without dots at its ends.
    pub base_domain: String,
    pub timing: Timing,
}

#[derive(Debug)]
pub struct State {
    settings: Arc<Settings>,
    users: BTreeMap<UserId, Arc<User>>,
    nodes: BTreeMap<NodeId, Published>,
    by_key: HashMap<NodePublic, NodeId>,
    auth_keys: BTreeMap<KeyId, Arc<AuthKey>>,
    policy: Arc<Policy>,
    /// Every policy that was put into force; the last one is.
    history: History,
    /// Why the stored policy is not in force.
    refused_policy: Option<PolicyErrors>,
    policy_seed: Option<String>,
    last_address: Option<address::Number>,
    /// The same for each pool of the policy.
    pool_turns: BTreeMap<Ipv4Net, Ipv4Addr>,
    last_ids: LastIds,
    pending: BTreeMap<String, Pending>,
    sessions: HashMap<NodeId, Session>,
    /// When the poll of a node ended that still has something to follow: going offline, or being deleted.
    departed: HashMap<NodeId, Instant>,
    next_serial: u64,

    dirty: Dirty,
    /// Counts what was marked as dirty.
    marks: u64,
    changed: BTreeSet<NodeId>,
    /// Node keys that are no longer good, until the relay is told.
    revoked: BTreeSet<NodePublic>,
    homes: Homes,
    /// Counts changes that sessions have to hear of.
    generation: u64,
    /// What of the compiled policy no longer fits.
    stale: Stale,
}

#[derive(Debug)]
struct LastIds {
    user: i64,
    node: i64,
    auth_key: i64,
}

/// A running poll.
#[derive(Debug)]
struct Session {
    serial: u64,
    cancel: CancellationToken,
}

impl State {
    /// Everything that `store` holds.
    pub fn load(
        store: &Store,
        settings: Arc<Settings>,
        now: OffsetDateTime,
        instant: Instant,
    ) -> Result<Self, Error> {
        let Loaded {
            users,
            nodes,
            auth_keys,
            policies,
            last_user,
            last_node,
            last_auth_key,
            last_policy,
        } = store.load()?;
        let history = History::new(policies, last_policy);
        let in_force = history.in_force().map(|version| version.text.as_str());
        let (policy, refused_policy) = match in_force.map(Policy::parse) {
            Some(Ok(policy)) => (policy, None),
            // Another version took it. Nobody may reach anybody until there is one that we take.
            Some(Err(errors)) => (Policy::allow_none(), Some(errors)),
            None => (Policy::allow_all(), None),
        };
        // Who was online when the server stopped gets some more grace than one whose connection broke: clients wait up to 10 s
        // between attempts, and a router must not lose its routes over a restart.
        let instant = instant + 2 * settings.timing.offline_grace;
        let departed = nodes
            .iter()
            .filter(|node| node.online || node.ephemeral)
            .map(|node| (node.id, instant))
            .collect();
        let by_key = nodes.iter().map(|node| (node.key, node.id)).collect();
        let publish = |node: Node| {
            (
                node.id,
                Published::new(Arc::new(node), &settings.base_domain, now),
            )
        };
        let homes = Homes::of_nodes(&nodes);
        Ok(Self {
            users: users
                .into_iter()
                .map(|user| (user.id, Arc::new(user)))
                .collect(),
            by_key,
            departed,
            nodes: nodes.into_iter().map(publish).collect(),
            auth_keys: auth_keys
                .into_iter()
                .map(|key| (key.id, Arc::new(key)))
                .collect(),
            policy: Arc::new(policy),
            history,
            refused_policy,
            policy_seed: store.setting(Setting::PolicySeed)?,
            last_address: store
                .setting(Setting::LastAddress)?
                .and_then(|text| address::Number::of(text.parse().ok()?)),
            pool_turns: store
                .setting(Setting::PoolTurns)?
                .map_or_else(BTreeMap::new, |text| read_turns(&text)),
            last_ids: LastIds {
                user: last_user,
                node: last_node,
                auth_key: last_auth_key,
            },
            pending: BTreeMap::new(),
            sessions: HashMap::new(),
            next_serial: 0,
            dirty: Dirty::default(),
            marks: 0,
            changed: BTreeSet::new(),
            revoked: BTreeSet::new(),
            homes,
            generation: 1,
            stale: Stale::all("the server starts"),
            settings,
        })
    }

    pub fn base_domain(&self) -> &str {
        &self.settings.base_domain
    }

    pub fn marks(&self) -> u64 {
        self.marks
    }

    pub fn generation(&self) -> u64 {
        self.generation
    }

    pub fn node(&self, id: NodeId) -> Option<&Arc<Node>> {
        self.nodes.get(&id).map(|published| &published.node)
    }

    pub fn nodes(&self) -> impl Iterator<Item = &Arc<Node>> {
        self.nodes.values().map(|published| &published.node)
    }

    pub fn node_by_key(&self, key: NodePublic) -> Option<&Arc<Node>> {
        self.node(*self.by_key.get(&key)?)
    }

    /// Whether the holder of a node key may use the relay.
    pub fn may_relay(&self, key: NodePublic, now: OffsetDateTime) -> bool {
        self.node_by_key(key)
            .is_some_and(|node| !node.is_expired(now))
    }

    pub fn owns_node(&self, machine: MachinePublic) -> bool {
        self.nodes().any(|node| node.machine == machine)
    }

    pub fn users(&self) -> &BTreeMap<UserId, Arc<User>> {
        &self.users
    }

    pub fn user(&self, id: UserId) -> Option<&Arc<User>> {
        self.users.get(&id)
    }

    pub fn policy_text(&self) -> Option<&str> {
        let version = self.history.in_force()?;
        Some(&version.text)
    }

    pub fn policy_history(&self) -> &History {
        &self.history
    }

    /// Why the stored policy could not be taken; until another is set, nobody may reach anybody.
    pub fn refused_policy(&self) -> Option<&PolicyErrors> {
        self.refused_policy.as_ref()
    }

    /// The nodes by their names.
    pub fn node_names(&self) -> HashMap<String, NodeId> {
        let nodes = self.nodes();
        nodes.map(|node| (node.name.clone(), node.id)).collect()
    }

    /// What the policy compiler has to know.
    pub fn world(&self) -> World {
        World {
            users: self.user_facts(),
            nodes: self.nodes().map(|node| facts(node)).collect(),
            tailnet: self.tailnet(),
        }
    }

    fn user_facts(&self) -> Vec<UserFacts> {
        let users = self.users.values();
        users
            .map(|user| UserFacts {
                id: user.id,
                login_name: user.name.clone(),
            })
            .collect()
    }

    /// Users are created by administrators only, so that the domains of their addresses are the tailnet's own.
    fn tailnet(&self) -> TailnetFacts {
        let names = self.users.values().map(|user| user.name.as_str());
        let domains = names.filter_map(|name| Some(name.split_once('@')?.1));
        let domains: BTreeSet<&str> = domains.filter(|domain| !domain.is_empty()).collect();
        let with = |role| {
            let users = self.users.values().filter(move |user| user.role == role);
            users.map(|user| user.id)
        };
        TailnetFacts {
            domains: domains.into_iter().map(str::to_owned).collect(),
            owner: with(Role::Owner).next(),
            admins: with(Role::Admin).collect(),
        }
    }

    /// What has to be written, and the mark up to which it goes.
    pub fn take_rows(&mut self) -> (Rows, u64) {
        let dirty = std::mem::take(&mut self.dirty);
        let rows = Rows {
            users: dirty
                .users
                .iter()
                .map(|id| (*id, self.users.get(id).cloned()))
                .collect(),
            nodes: dirty
                .nodes
                .iter()
                .map(|id| (*id, self.node(*id).cloned()))
                .collect(),
            auth_keys: dirty
                .auth_keys
                .iter()
                .map(|id| (*id, self.auth_keys.get(id).cloned()))
                .collect(),
            policies: dirty
                .policies
                .iter()
                .map(|number| (*number, self.history.get(*number).cloned()))
                .collect(),
            settings: dirty
                .settings
                .iter()
                .map(|setting| (*setting, self.setting(*setting).map(Zeroizing::new)))
                .collect(),
        };
        (rows, self.marks)
    }

    /// Marks `rows` again, after they could not be written.
    pub fn give_back(&mut self, rows: &Rows) {
        self.dirty
            .users
            .extend(rows.users.iter().map(|(id, _)| *id));
        self.dirty
            .nodes
            .extend(rows.nodes.iter().map(|(id, _)| *id));
        self.dirty
            .auth_keys
            .extend(rows.auth_keys.iter().map(|(id, _)| *id));
        self.dirty
            .policies
            .extend(rows.policies.iter().map(|(number, _)| *number));
        self.dirty
            .settings
            .extend(rows.settings.iter().map(|(setting, _)| *setting));
    }

    /// Does what time brings: nodes going offline, ephemeral ones deleted, keys and login pages expiring.
    pub fn tick(&mut self, now: OffsetDateTime, instant: Instant) {
        self.drop_old_registrations(instant);
        self.settle_departed(now, instant);
        let expired: Vec<_> = self
            .nodes
            .iter()
            .filter(|(_, published)| published.node.is_expired(now) && !published.shown.expired)
            .map(|(id, _)| *id)
            .collect();
        for id in expired {
            tracing::info!(node = %self.nodes[&id].node.name, "node key expired");
            let node = self.nodes[&id].node.clone();
            self.revoked.insert(node.key);
            self.nodes
                .insert(id, Published::new(node, &self.settings.base_domain, now));
            self.note(id);
        }
    }

    fn setting(&self, setting: Setting) -> Option<String> {
        match setting {
            Setting::PolicySeed => self.policy_seed.clone(),
            Setting::LastAddress => self.last_address.map(|number| number.v4().to_string()),
            Setting::PoolTurns => {
                let turns = self.pool_turns.iter();
                let turns = turns.map(|(pool, address)| format!("{pool} {address}\n"));
                Some(turns.collect())
            }
            // The server's keys are written once, before there is a state.
            Setting::ControlKey | Setting::RelayKey => None,
        }
    }

    fn mark(&mut self, what: impl FnOnce(&mut Dirty)) {
        what(&mut self.dirty);
        self.marks += 1;
    }

    fn note(&mut self, id: NodeId) {
        self.changed.insert(id);
        self.generation += 1;
    }

    /// Puts a new or changed node in place, and marks what follows from it.
    fn put_node(&mut self, node: Node, now: OffsetDateTime) {
        let id = node.id;
        let old = self.nodes.get(&id).map(|published| published.node.clone());
        if old.as_deref() == Some(&node) {
            return;
        }
        if old.as_ref().is_none_or(|old| facts(old) != facts(&node)) {
            self.stale.nodes.insert(id);
        }
        if let Some(old) = old.filter(|old| old.key != node.key) {
            self.by_key.remove(&old.key);
            self.revoked.insert(old.key);
        }
        if node.is_expired(now) {
            self.revoked.insert(node.key);
        }
        self.by_key.insert(node.key, id);
        self.nodes.insert(
            id,
            Published::new(Arc::new(node), &self.settings.base_domain, now),
        );
        self.note(id);
        self.mark(|dirty| {
            dirty.nodes.insert(id);
        });
    }

    fn change_node(&mut self, id: NodeId, now: OffsetDateTime, change: impl FnOnce(&mut Node)) {
        let Some(node) = self.node(id) else { return };
        let mut node = Node::clone(node);
        change(&mut node);
        self.put_node(node, now);
    }

    fn remove_node(&mut self, id: NodeId) {
        let Some(published) = self.nodes.remove(&id) else {
            return;
        };
        self.by_key.remove(&published.node.key);
        self.revoked.insert(published.node.key);
        self.end_session(id);
        self.departed.remove(&id);
        self.stale.nodes.insert(id);
        self.note(id);
        self.mark(|dirty| {
            dirty.nodes.insert(id);
        });
    }

    fn end_session(&mut self, id: NodeId) {
        if let Some(session) = self.sessions.remove(&id) {
            session.cancel.cancel();
        }
    }
}

/// What the policy depends on. Whether a node is online counts only for those that announce routes: it decides their primaries.
fn facts(node: &Node) -> NodeFacts {
    NodeFacts {
        id: node.id,
        user: node.owner.user(),
        tags: match &node.owner {
            Owner::User(_) => Vec::new(),
            Owner::Tags(tags) => tags.clone(),
        },
        v4: Some(node.v4),
        v6: Some(node.v6),
        announced: node.announced().to_vec(),
        admin_approved: node.approved_routes.clone(),
        created: (node.created.unix_timestamp_nanos() / 1000) as i64,
        online: node.online || node.announced().is_empty(),
    }
}

/// A pool and an address a line, as they are stored; what cannot be read begins anew.
fn read_turns(text: &str) -> BTreeMap<Ipv4Net, Ipv4Addr> {
    let turn = |line: &str| {
        let (pool, address) = line.split_once(' ')?;
        Some((pool.parse().ok()?, address.parse().ok()?))
    };
    text.lines().filter_map(turn).collect()
}
