//! A compiled policy after a change of some nodes, at a cost in proportion to what the change means for others.
//!
//! A node is one bit in sources, targets, logins and what others see, its addresses in the sets that name it, and one of the routers of
//! its subnet routes. Everything else is shared with the version before, filters included. Which subnet routes there are is part of what
//! `*` means and of whom routers see, as are addresses inside one: where these change, all is compiled anew. Users without nodes are
//! nobody whom anything is about yet.

mod routes;
mod sets;
mod users;

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

use ipnet::IpNet;
use lowroad_wire::control::NodeId;

use super::alias::Alias;
use super::attributes::attributes_of;
use super::bits::Bits;
use super::compile::{Companion, CompiledRule, Node, TargetKind, classes, compile, merge};
use super::people::People;
use super::view::{CompiledTailnet, Parts, plain_view};
use super::world::{NodeFacts, World};
use sets::{follow_source, follow_target};

pub use users::Users;

/// So many changes at once are followed one by one, and one more for each [`RULES_PER_STEP`] rules. Compiling everything, with every
/// session that then compares everything, costs about as much. Both grow with the nodes alike, but only compiling with the rules
/// (`docs/bench/policy`).
const MOST_STEPS: usize = 8;
const RULES_PER_STEP: usize = 10;
/// A third of all places and so many may be of nodes that left, before the next change makes these places go.
const MOST_GONE: usize = 64;

/// A node that joined or is another than before, or that left.
pub type NodeChange = (NodeId, Option<NodeFacts>);

/// A compiled policy after changes of nodes.
#[derive(Debug)]
pub struct Followed {
    /// The policy for the nodes as they are.
    pub compiled: CompiledTailnet,
    /// Whether all was compiled anew. If not, nodes see others as before, but for those that changed and `others`.
    pub is_whole: bool,
    /// Routers that may be seen otherwise because another one is.
    pub others: BTreeSet<NodeId>,
}

/// Something changes that is more than one node: what.
struct Whole(&'static str);

const SHARED: Whole = Whole("nodes have an address in common");

/// One node's change.
pub(crate) struct Change {
    pub(crate) at: usize,
    pub(crate) old: Option<Arc<Node>>,
    pub(crate) new: Option<Arc<Node>>,
    /// It and the devices of its user, of the one before as well.
    pub(crate) devices: Bits,
}

impl Change {
    /// Whether an alias means the node as it is, by its user or its tags.
    pub(crate) fn is_named_now(&self, people: &People, alias: &Alias) -> bool {
        is_named(self.new.as_deref(), people, alias)
    }

    fn addresses(&self) -> &[IpAddr] {
        self.new.as_ref().map_or(&[], |node| &node.addresses)
    }

    /// Whether the node is what it was for everything but routes.
    fn keeps_its_name(&self) -> bool {
        keeps_its_name(self.old.as_deref(), self.new.as_deref())
    }
}

/// Whether a node is there before and after, with the same addresses, user and tags.
fn keeps_its_name(old: Option<&Node>, new: Option<&Node>) -> bool {
    let (Some(old), Some(new)) = (old, new) else {
        return false;
    };
    old.addresses == new.addresses
        && old.facts.user == new.facts.user
        && old.facts.tags == new.facts.tags
}

fn approved_of(node: Option<&Node>) -> &[IpNet] {
    node.map_or(&[], |node| &node.approved)
}

fn is_named(node: Option<&Node>, people: &People, alias: &Alias) -> bool {
    node.is_some_and(|node| people.names_node(alias, &node.facts))
}

fn addresses_if(is_named: bool, node: Option<&Node>) -> &[IpAddr] {
    node.filter(|_| is_named)
        .map_or(&[], |node| &node.addresses)
}

impl CompiledTailnet {
    /// The same policy for the same users after nodes changed. What comes out is what [`recompile`](super::recompile) makes of the nodes
    /// as they are.
    pub fn follow(&self, changes: &[NodeChange]) -> Followed {
        self.follow_all(None, changes)
    }

    /// The same policy after nodes changed, and users before them, if there are others.
    pub fn follow_all(&self, users: Option<&Users>, changes: &[NodeChange]) -> Followed {
        let followed = self.step_by_step(users, changes);
        followed.unwrap_or_else(|Whole(why)| {
            tracing::debug!(why, changes = changes.len(), "the whole policy is compiled");
            Followed {
                compiled: self.anew(users, changes),
                is_whole: true,
                others: BTreeSet::new(),
            }
        })
    }

    fn step_by_step(
        &self,
        users: Option<&Users>,
        changes: &[NodeChange],
    ) -> Result<Followed, Whole> {
        if changes.len() > MOST_STEPS + self.parts.written.len() / RULES_PER_STEP {
            return Err(Whole("many nodes changed at once"));
        }
        let mut next = self.clone();
        if let Some(users) = users {
            next.parts.follow_users(users)?;
        }
        let mut others = Bits::default();
        for (id, facts) in changes {
            others.unite(&next.step(*id, facts.clone())?);
        }
        let others = others.iter().map(|at| next.parts.nodes[at].facts.id);
        Ok(Followed {
            others: others.collect(),
            compiled: next,
            is_whole: false,
        })
    }

    /// Without the places of nodes that left: two of these for the same nodes have them at the same positions.
    pub(super) fn settled(&self) -> Cow<'_, Self> {
        match self.parts.gone {
            0 => Cow::Borrowed(self),
            _ => Cow::Owned(self.anew(None, &[])),
        }
    }

    fn anew(&self, users: Option<&Users>, changes: &[NodeChange]) -> Self {
        let there = self.parts.nodes.live();
        let mut nodes: HashMap<NodeId, NodeFacts> = there
            .map(|(_, node)| (node.facts.id, node.facts.clone()))
            .collect();
        for (id, facts) in changes {
            match facts {
                Some(facts) => nodes.insert(*id, facts.clone()),
                None => nodes.remove(id),
            };
        }
        let world = World {
            users: users.map_or_else(|| self.parts.users.to_vec(), |new| new.users.clone()),
            tailnet: users
                .map_or(&self.parts.tailnet, |new| &new.tailnet)
                .clone(),
            nodes: nodes.into_values().collect(),
        };
        compile(&self.parts.document, &world)
    }

    /// Says which other nodes may be seen otherwise. Half done if it fails.
    fn step(&mut self, id: NodeId, facts: Option<NodeFacts>) -> Result<Bits, Whole> {
        let known = self.parts.nodes.position_of(&id, |node| node.facts.id);
        let old = known.map(|at| self.parts.nodes[at].clone());
        let old = old.filter(|node| !node.is_gone);
        if old.as_ref().map(|node| &node.facts) == facts.as_ref() {
            return Ok(Bits::default());
        }
        let new = facts.map(|facts| self.parts.prepare(facts)).transpose()?;
        let is_of_rank_only = keeps_its_name(old.as_deref(), new.as_deref())
            && approved_of(old.as_deref()) == approved_of(new.as_deref());
        let seen = match known.filter(|_| old.is_some() && !is_of_rank_only) {
            Some(at) => self.seen_by(at),
            None => Bits::default(),
        };
        let change = self.parts.put(id, known, old, new)?;
        let rerouted = self.parts.lead(&change)?;
        if !is_of_rank_only {
            self.follow_node(&change, seen);
        }
        for at in rerouted.viewers.iter() {
            self.sights.set(at, OnceLock::new());
        }
        Ok(rerouted.routers)
    }

    fn follow_node(&mut self, change: &Change, seen: Bits) {
        let (at, parts) = (change.at, &self.parts);
        let plain = plain_view(&parts.nodes[at], &parts.attributes[at]);
        if at == self.plain.len() {
            self.plain.push(plain);
            self.filters.push(OnceLock::new());
            self.sights.push(OnceLock::new());
        } else {
            self.plain.set(at, plain);
        }
        let stale = self.parts.follow(change);
        self.forget(&stale, at);
        self.see(at, seen);
    }

    /// Drops filters that are no longer right; they are made again when somebody asks.
    fn forget(&mut self, stale: &Stale, changed: usize) {
        if stale.all {
            self.filters = self.parts.nodes.iter().map(|_| OnceLock::new()).collect();
        } else {
            for at in stale.nodes.iter().chain([changed]) {
                self.filters.set(at, OnceLock::new());
            }
        }
        if stale.sources {
            self.shared_filters = Arc::default();
        }
    }

    /// Whom a node sees. Not kept: versions that the half followed one shares the place with see others.
    fn seen_by(&self, at: usize) -> Bits {
        let known = self.sights[at].get();
        known.map_or_else(|| self.look(at).nodes, |sight| sight.nodes.clone())
    }

    /// Whoever sees one is seen by it: what others see changes by this node only. Also where nobody has looked so far, as the version
    /// before may be asked yet.
    fn see(&mut self, changed: usize, before: Bits) {
        let sight = self.look(changed);
        let mut others = before.clone();
        others.unite(&sight.nodes);
        for other in others.iter() {
            let sees = sight.nodes.contains(other);
            if before.contains(other) == sees {
                continue;
            }
            let place = self.sights.edit(other);
            if let Some(known) = place.and_then(OnceLock::get_mut) {
                Arc::make_mut(known).nodes.put(changed, sees);
            }
        }
        self.sights.set(changed, OnceLock::from(Arc::new(sight)));
    }
}

/// Whose filters a change makes another.
#[derive(Default)]
struct Stale {
    nodes: Bits,
    /// Everybody's.
    all: bool,
    /// Whether any sources or routers' destinations are others.
    sources: bool,
}

impl Parts {
    /// Puts a node in its place, if nothing but sets and bits depends on it.
    fn put(
        &mut self,
        id: NodeId,
        known: Option<usize>,
        old: Option<Arc<Node>>,
        new: Option<Arc<Node>>,
    ) -> Result<Change, Whole> {
        if self.taken.is_none() {
            return Err(SHARED);
        }
        if !keeps_its_name(old.as_deref(), new.as_deref()) {
            let both = old.iter().chain(&new);
            let mut addresses = both.flat_map(|node| &node.addresses);
            if addresses.any(|address| self.is_behind_a_router(address)) {
                return Err(Whole("a node has an address inside a subnet route"));
            }
            self.take(old.as_deref(), new.as_deref())?;
        }
        let at = match known {
            Some(at) => at,
            None if self.nodes.is_empty() || self.nodes[self.nodes.len() - 1].facts.id < id => {
                self.nodes.len()
            }
            None => return Err(Whole("a node joined whose number is not the highest")),
        };
        let place = new.clone().unwrap_or_else(|| Arc::new(Node::gone(id)));
        let like = old.as_ref().map_or(at.checked_sub(1), |_| Some(at));
        let attributes = attributes_of(
            &self.document.attributes,
            &self.people,
            &self.tailnet,
            &place,
            like.map(|at| &self.attributes[at]),
        );
        if at == self.nodes.len() {
            self.nodes.push(place);
            self.attributes.push(attributes);
        } else {
            self.nodes.set(at, place);
            self.attributes.set(at, attributes);
            self.gone += usize::from(old.is_some() && new.is_none());
            self.gone -= usize::from(old.is_none() && new.is_some());
        }
        if self.gone > MOST_GONE + self.nodes.len() / 3 {
            return Err(Whole("many nodes left"));
        }
        let devices = self.give(at, old.as_deref(), new.as_deref());
        Ok(Change {
            at,
            old,
            new,
            devices,
        })
    }

    /// Addresses are one node's: else what one has another may have, too.
    fn take(&mut self, old: Option<&Node>, new: Option<&Node>) -> Result<(), Whole> {
        let taken = Arc::make_mut(self.taken.as_mut().ok_or(SHARED)?);
        for &address in addresses_if(true, old) {
            taken.remove(address);
        }
        for &address in addresses_if(true, new) {
            if taken.contains(address) {
                return Err(SHARED);
            }
            taken.insert(address);
        }
        Ok(())
    }

    /// Makes the node its user's, and says whose devices are concerned.
    fn give(&mut self, at: usize, old: Option<&Node>, new: Option<&Node>) -> Bits {
        let mut concerned = Bits::from_iter([at]);
        if let Some(user) = old.and_then(|node| node.facts.owner()) {
            let own = Arc::make_mut(self.devices.entry(user).or_default());
            own.remove(at);
            concerned.unite(own);
            if own.iter().next().is_none() {
                self.devices.remove(&user);
            }
        }
        if let Some(user) = new.and_then(|node| node.facts.owner()) {
            let own = Arc::make_mut(self.devices.entry(user).or_default());
            own.insert(at);
            concerned.unite(own);
        }
        concerned
    }

    /// Takes note of a change in sources, targets, rules and logins.
    fn follow(&mut self, change: &Change) -> Stale {
        let mut stale = Stale::default();
        let mut changed = Vec::new();
        for (at, source) in self.sources.iter_mut().enumerate() {
            if follow_source(source, &self.people, &self.reach, change) {
                changed.push(at);
            }
        }
        for target in &mut self.targets {
            let is_other = follow_target(target, &self.people, change);
            if is_other && matches!(target.kind, TargetKind::Via { .. }) {
                stale.sources = true;
                stale.nodes.unite(&target.nodes);
            }
        }
        let is_own = |rule: &Arc<CompiledRule>| {
            !rule.own_devices.is_empty() || rule.companion == Some(Companion::OwnDevices)
        };
        let keeps_its_name = change.keeps_its_name();
        if !keeps_its_name && self.written.iter().any(is_own) {
            stale.nodes.unite(&change.devices);
        }
        if !changed.is_empty() {
            stale.sources = true;
            self.reached(&changed, &mut stale);
            let classes = classes(&self.sources);
            if classes != *self.classes {
                self.reached_among_own(&changed, &mut stale);
                self.rules = Arc::new(merge(&self.written, &classes));
                self.classes = Arc::new(classes);
                self.reached(&changed, &mut stale);
                self.reached_among_own(&changed, &mut stale);
            }
        }
        if !keeps_its_name {
            self.ssh.follow(&self.document.ssh, &self.people, change);
        }
        stale
    }

    /// The rules of these sources, and of others that are the same.
    fn rules_of(&self, sources: &[usize]) -> impl Iterator<Item = &Arc<CompiledRule>> {
        let of_class = sources.iter().filter_map(|&source| self.classes[source]);
        let of_class = Bits::from_iter(of_class);
        let rules = self.rules.iter();
        rules.filter(move |rule| of_class.contains(rule.source))
    }

    /// Who is sent what of rules to own devices, which other rules of the same sources are one with: it is the same in other rules.
    fn reached_among_own(&self, sources: &[usize], stale: &mut Stale) {
        let rules = self.rules_of(sources);
        for rule in rules.filter(|rule| !rule.own_devices.is_empty()) {
            let members = &self.sources[rule.source].members;
            let concerned = self.devices.values().filter(|own| own.overlaps(members));
            concerned.for_each(|own| stale.nodes.unite(own));
        }
    }

    /// Who is sent a rule of one of these sources, or of others that are the same.
    fn reached(&self, sources: &[usize], stale: &mut Stale) {
        for rule in self.rules_of(sources) {
            for (target, _) in &rule.entries {
                let target = &self.targets[*target];
                stale.all |= matches!(target.kind, TargetKind::Any);
                stale.nodes.unite(&target.nodes);
            }
        }
    }
}
