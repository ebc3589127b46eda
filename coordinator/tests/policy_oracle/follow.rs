//! Nodes that join, leave and change one after another: what the compiler makes of it step by step is what it makes of the nodes as they
//! are.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::ops::RangeInclusive;
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net};
use lowroad_coordinator::policy::{
    CompiledTailnet, NodeChange, NodeFacts, PeerView, Policy, TailnetFacts, Users, World, recompile,
};
use lowroad_wire::control::{NodeId, UserId};
use rand::seq::{IteratorRandom as _, SliceRandom as _};
use rand::{Rng, rngs::StdRng};

use super::generate::random_node;
use super::language::USERS;
use super::{Case, cases, from_env, saw_at_least, saw_both};

/// Changes to each tailnet. `LOWROAD_POLICY_STEPS` says otherwise.
const STEPS: usize = 25;

/// One tailnet of so many is a large one, more than a piece of the tables that versions share.
const LARGE: u64 = 20;
const LARGE_SIZES: RangeInclusive<i64> = 70..=140;

/// Whom nodes see, and how.
type Seen = BTreeMap<NodeId, BTreeMap<NodeId, PeerView>>;

struct Tailnet {
    nodes: BTreeMap<NodeId, NodeFacts>,
    last: i64,
    /// Others come with their first node.
    users: usize,
    routers: Routers,
    /// Roles among them.
    facts: TailnetFacts,
}

/// Perhaps somebody whom nobody knows, or not yet.
fn anyone(rng: &mut StdRng) -> UserId {
    UserId(rng.random_range(1..=USERS.len() as i64))
}

/// Other subnet routes make everything be compiled anew, as do changes of nodes with an address inside one.
#[derive(Clone, Copy, PartialEq)]
enum Routers {
    None,
    /// Of networks of their own, most offered by several.
    Outside,
    /// Of anything, the tailnet's own addresses as well.
    Any,
}

impl Routers {
    fn random(rng: &mut StdRng) -> Self {
        match rng.random_range(0..4) {
            0 => Self::None,
            1 => Self::Any,
            _ => Self::Outside,
        }
    }

    fn may_be(self, route: &IpNet) -> bool {
        match self {
            Self::None => route.prefix_len() == 0,
            Self::Outside => route.prefix_len() == 0 || !IpNet::V4(INSIDE).contains(route),
            Self::Any => true,
        }
    }
}

/// Where the addresses of nodes are.
const INSIDE: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(100, 64, 0, 0), 10);

impl Tailnet {
    fn node(&mut self, rng: &mut StdRng, id: i64) -> NodeFacts {
        let mut node = random_node(rng, id);
        if let Some(UserId(owner)) = &mut node.user {
            let known = self.users as i64;
            // Rarely one whom nobody knows, or not yet.
            match rng.random_range(0..20) {
                0 => {}
                1..8 => self.users = self.users.max(*owner as usize),
                _ => *owner = (*owner).min(known),
            }
        }
        node.announced.retain(|route| self.routers.may_be(route));
        node.admin_approved
            .retain(|route| self.routers.may_be(route));
        node
    }

    /// A router goes offline or comes back, offers what another offers as well, or offers less.
    fn reroute(&self, rng: &mut StdRng) -> Option<NodeChange> {
        let mut routers = self
            .nodes
            .values()
            .filter(|node| node.announced.iter().any(|route| route.prefix_len() > 0));
        let mut router = routers.clone().choose(rng)?.clone();
        match rng.random_range(0..6) {
            0..3 => router.online = !router.online,
            3 => {
                let other = routers.find(|_| rng.random())?;
                router.announced.clone_from(&other.announced);
                router.admin_approved.clone_from(&other.admin_approved);
            }
            4 => router.admin_approved.clone_from(&router.announced),
            _ => router.announced.truncate(1),
        }
        Some((router.id, Some(router)))
    }

    fn change(&mut self, rng: &mut StdRng) -> NodeChange {
        let last = Some(UserId(self.users as i64));
        let owns_nodes = self.nodes.values().any(|node| node.user == last);
        match rng.random_range(0..20) {
            0..4 if self.users > 1 && !owns_nodes => self.users -= 1,
            // The server has the nodes be deleted first.
            4 if self.users > 1 => self.users -= 1,
            5 => self.users = USERS.len(),
            6 => self.facts.owner = rng.random::<bool>().then(|| anyone(rng)),
            7 => self.facts.admins = vec![anyone(rng)],
            _ => {}
        }
        let rerouted = match rng.random() {
            true => self.reroute(rng),
            false => None,
        };
        let change = rerouted.unwrap_or_else(|| self.other_change(rng));
        match &change {
            (id, Some(node)) => self.nodes.insert(*id, node.clone()),
            (id, None) => self.nodes.remove(id),
        };
        change
    }

    fn other_change(&mut self, rng: &mut StdRng) -> NodeChange {
        let known = self.nodes.keys().copied().choose(rng);
        match (known, rng.random_range(0..6)) {
            (None, _) | (_, 0 | 1) => {
                self.last += rng.random_range(1..4);
                (NodeId(self.last), Some(self.node(rng, self.last)))
            }
            (Some(id), 2) => (id, None),
            // One that nobody knows leaves, or one that left is there again.
            (Some(_), 3) => {
                let id = rng.random_range(1..=self.last);
                let there = rng.random::<bool>().then(|| self.node(rng, id));
                (NodeId(id), there)
            }
            // Another owner, other tags; perhaps the address that somebody else had.
            (Some(id), _) => {
                let mut node = self.node(rng, id.0);
                let other = rng.random_range(1..=self.last + 1);
                let is_free = !self.nodes.contains_key(&NodeId(other));
                if is_free && other < 200 && rng.random() {
                    node.v4 = Some([100, 64, 0, other as u8].into());
                }
                (id, Some(node))
            }
        }
    }

    fn world(&self, case: &Case) -> World {
        World {
            users: case.world.users[..self.users].to_vec(),
            nodes: self.nodes.values().cloned().collect(),
            tailnet: self.facts.clone(),
        }
    }

    fn has_subnets(&self, id: &NodeId) -> bool {
        let announced = self.nodes.get(id).map(|node| &node.announced);
        announced
            .into_iter()
            .flatten()
            .any(|route| route.prefix_len() > 0)
    }
}

/// A version that came about by following changes, and what compiling its nodes makes of them.
struct Version {
    followed: CompiledTailnet,
    fresh: CompiledTailnet,
    nodes: BTreeMap<NodeId, NodeFacts>,
    users: usize,
    facts: TailnetFacts,
    seen: Seen,
}

impl Version {
    fn new(policy: &Policy, case: &Case, tailnet: &Tailnet, followed: CompiledTailnet) -> Self {
        Self {
            followed,
            fresh: recompile(policy, &tailnet.world(case)),
            nodes: tailnet.nodes.clone(),
            users: tailnet.users,
            facts: tailnet.facts.clone(),
            seen: Seen::new(),
        }
    }

    /// Asks for some of what is kept once it is known.
    fn ask(&mut self, id: NodeId, rng: &mut StdRng, which: &dyn Fn() -> String) {
        let (followed, fresh) = (&self.followed, &self.fresh);
        if rng.random() {
            assert_eq!(followed.rules_for(id), fresh.rules_for(id), "{}", which());
        }
        if rng.random() {
            assert_eq!(followed.ssh_for(id), fresh.ssh_for(id), "{}", which());
        }
        if rng.random_range(0..4) > 0 {
            let peers = followed.peers_of(id);
            assert_eq!(peers, fresh.peers_of(id), "{}", which());
            self.seen.insert(id, peers);
        }
    }
}

#[test]
fn what_follows_a_change_is_what_compiling_everything_makes() {
    let mut whole = [0; 2];
    let mut whole_of_routers = [0; 2];
    let mut whole_of_users = [0; 2];
    let mut kept = [0; 2];
    for mut case in cases() {
        let parsed = Policy::parse(&case.policy.text()).unwrap();
        let mut rng = case.rng.clone();
        let mut tailnet = Tailnet {
            last: case.world.nodes.len() as i64,
            nodes: BTreeMap::new(),
            users: rng.random_range(1..=USERS.len()),
            routers: Routers::random(&mut rng),
            facts: case.world.tailnet.clone(),
        };
        if case.seed % LARGE == 0 {
            tailnet.last = rng.random_range(LARGE_SIZES);
        }
        case.world.nodes.clear();
        for id in 1..=tailnet.last {
            let node = tailnet.node(&mut rng, id);
            tailnet.nodes.insert(node.id, node);
        }
        let first = recompile(&parsed, &tailnet.world(&case));
        let mut old = Version::new(&parsed, &case, &tailnet, first);
        for _ in 0..from_env("LOWROAD_POLICY_STEPS", STEPS) {
            let count = if rng.random_range(0..5) == 0 { 3 } else { 1 };
            let changes: Vec<NodeChange> = (0..count).map(|_| tailnet.change(&mut rng)).collect();
            let World {
                users,
                tailnet: facts,
                ..
            } = tailnet.world(&case);
            let is_other = (tailnet.users, &tailnet.facts) != (old.users, &old.facts);
            let users = is_other.then_some(Users {
                users,
                tailnet: facts,
            });
            let followed = old.followed.follow_all(users.as_ref(), &changes);
            let mut new = Version::new(&parsed, &case, &tailnet, followed.compiled);
            // Sessions ask whichever version they have, in any order; some have not asked before the next change.
            let mut questions: Vec<(bool, NodeId)> = old
                .nodes
                .keys()
                .map(|id| (false, *id))
                .chain(new.nodes.keys().map(|id| (true, *id)))
                .filter(|_| rng.random())
                .collect();
            questions.shuffle(&mut rng);
            for (of_new, id) in questions {
                let version = if of_new { &mut new } else { &mut old };
                let which = || {
                    let which = if of_new { "new" } else { "old" };
                    format!(
                        "{id} in the {which} version after {changes:?}\n{}\n{:#?}",
                        case.shown(),
                        tailnet.nodes
                    )
                };
                version.ask(id, &mut rng, &which);
            }
            for id in old.nodes.keys().filter(|_| rng.random_range(0..4) == 0) {
                let before = old.followed.rules_for(*id);
                let after = new.followed.rules_for(*id);
                kept[usize::from(Arc::ptr_eq(&before, &after))] += 1;
            }
            whole[usize::from(followed.is_whole)] += 1;
            if users.is_some() {
                whole_of_users[usize::from(followed.is_whole)] += 1;
            }
            if changes.iter().any(|(id, _)| tailnet.has_subnets(id)) {
                whole_of_routers[usize::from(followed.is_whole)] += 1;
            }
            if !followed.is_whole {
                let mut changed = followed.others;
                changed.extend(changes.iter().map(|(id, _)| *id));
                only_the_changed_are_seen_otherwise(&old.seen, &new.seen, &changed);
            }
            old = new;
        }
        for id in old.nodes.keys() {
            let which = || format!("{id} in the end\n{}\n{:#?}", case.shown(), old.nodes);
            assert_same(&old.followed, &old.fresh, *id, &which);
        }
    }
    saw_both(whole, "changes for which all is compiled anew");
    saw_both(
        whole_of_routers,
        "changes of routers for which all is compiled anew",
    );
    // Most come with changes of routes that are compiled whole: some 600 of 1,600 are followed.
    saw_at_least(
        200,
        whole_of_users,
        "changes of users for which all is compiled anew",
    );
    saw_both(kept, "filters that stayed the same");
}

/// Asks for everything.
pub fn assert_same(
    followed: &CompiledTailnet,
    fresh: &CompiledTailnet,
    id: NodeId,
    which: &dyn Fn() -> String,
) {
    assert_eq!(followed.rules_for(id), fresh.rules_for(id), "{}", which());
    assert_eq!(followed.peers_of(id), fresh.peers_of(id), "{}", which());
    assert_eq!(followed.ssh_for(id), fresh.ssh_for(id), "{}", which());
    assert_eq!(
        followed.attributes_of(id),
        fresh.attributes_of(id),
        "{}",
        which()
    );
    let routes = |compiled: &CompiledTailnet| -> [Vec<IpNet>; 3] {
        [
            compiled.approved(id),
            compiled.own_allowed_ips(id),
            compiled.carried_routes(id),
        ]
    };
    assert_eq!(routes(followed), routes(fresh), "{}", which());
}

/// What sessions rely on: they look at the changed nodes only.
fn only_the_changed_are_seen_otherwise(before: &Seen, after: &Seen, changed: &BTreeSet<NodeId>) {
    for (id, now) in after.iter().filter(|(id, _)| !changed.contains(id)) {
        let Some(then) = before.get(id) else { continue };
        for peer in then
            .keys()
            .chain(now.keys())
            .filter(|peer| !changed.contains(peer))
        {
            assert_eq!(then.get(peer), now.get(peer), "{peer} as {id} sees it");
        }
    }
}
