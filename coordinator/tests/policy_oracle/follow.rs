//! Nodes that join, leave and change one after another: what the compiler makes of it step by step is what it makes of the nodes as they
//! are.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ipnet::IpNet;
use lowroad_coordinator::policy::{
    CompiledTailnet, NodeChange, NodeFacts, PeerView, Policy, World, recompile,
};
use lowroad_wire::control::NodeId;
use rand::seq::IteratorRandom as _;
use rand::{Rng, rngs::StdRng};

use super::generate::random_node;
use super::{Case, cases, from_env, saw_both};

/// Changes to each tailnet. `LOWROAD_POLICY_STEPS` says otherwise.
const STEPS: usize = 25;

/// Whom nodes see, and how.
type Seen = BTreeMap<NodeId, BTreeMap<NodeId, PeerView>>;

struct Tailnet {
    nodes: BTreeMap<NodeId, NodeFacts>,
    last: i64,
    /// Subnet routes make everything be compiled anew: half of the tailnets have none.
    has_routers: bool,
}

impl Tailnet {
    fn node(&self, rng: &mut StdRng, id: i64) -> NodeFacts {
        let mut node = random_node(rng, id);
        if !self.has_routers {
            node.announced.retain(|route| route.prefix_len() == 0);
            node.admin_approved.retain(|route| route.prefix_len() == 0);
        }
        node
    }

    fn change(&mut self, rng: &mut StdRng) -> NodeChange {
        let known = self.nodes.keys().copied().choose(rng);
        let change = match (known, rng.random_range(0..6)) {
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
        };
        match &change {
            (id, Some(node)) => self.nodes.insert(*id, node.clone()),
            (id, None) => self.nodes.remove(id),
        };
        change
    }
}

#[test]
fn what_follows_a_change_is_what_compiling_everything_makes() {
    let mut whole = [0; 2];
    let mut kept = [0; 2];
    for mut case in cases() {
        let parsed = Policy::parse(&case.policy.text()).unwrap();
        let mut rng = case.rng.clone();
        let mut tailnet = Tailnet {
            last: case.world.nodes.len() as i64,
            nodes: BTreeMap::new(),
            has_routers: rng.random(),
        };
        for node in std::mem::take(&mut case.world.nodes) {
            let node = tailnet.node(&mut rng, node.id.0);
            tailnet.nodes.insert(node.id, node);
        }
        let world = |tailnet: &Tailnet, case: &Case| World {
            nodes: tailnet.nodes.values().cloned().collect(),
            ..case.world.clone()
        };
        let mut compiled = recompile(&parsed, &world(&tailnet, &case));
        let mut seen = ask(&compiled, &tailnet, &mut rng);
        for _ in 0..from_env("LOWROAD_POLICY_STEPS", STEPS) {
            let count = if rng.random_range(0..5) == 0 { 3 } else { 1 };
            let changes: Vec<NodeChange> = (0..count).map(|_| tailnet.change(&mut rng)).collect();
            let followed = compiled.follow(&changes);
            let fresh = recompile(&parsed, &world(&tailnet, &case));
            for (id, node) in &tailnet.nodes {
                let which = || {
                    format!(
                        "{node:?} after {changes:?}\n{}\n{:#?}",
                        case.shown(),
                        tailnet.nodes
                    )
                };
                assert_same(&followed.compiled, &fresh, *id, &which);
                let before = compiled.rules_for(*id);
                let after = followed.compiled.rules_for(*id);
                kept[usize::from(Arc::ptr_eq(&before, &after))] += 1;
            }
            whole[usize::from(followed.is_whole)] += 1;
            let now = ask(&followed.compiled, &tailnet, &mut rng);
            if !followed.is_whole {
                only_the_changed_are_seen_otherwise(&seen, &now, &changes);
            }
            seen = now;
            compiled = followed.compiled;
        }
    }
    saw_both(whole, "changes for which all is compiled anew");
    saw_both(kept, "filters that stayed the same");
}

/// Asks for everything that is kept once it is known; sometimes for a part of it, so that versions differ in what they know.
fn ask(compiled: &CompiledTailnet, tailnet: &Tailnet, rng: &mut StdRng) -> Seen {
    let mut seen = Seen::new();
    for id in tailnet.nodes.keys() {
        if rng.random_range(0..4) > 0 {
            compiled.rules_for(*id);
            compiled.ssh_for(*id);
        }
        if rng.random_range(0..4) > 0 {
            seen.insert(*id, compiled.peers_of(*id));
        }
    }
    seen
}

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
fn only_the_changed_are_seen_otherwise(before: &Seen, after: &Seen, changes: &[NodeChange]) {
    let changed: BTreeSet<NodeId> = changes.iter().map(|(id, _)| *id).collect();
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
