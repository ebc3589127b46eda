//! Routers, when one of them is another: who carries their routes, and whom that concerns.

use std::net::IpAddr;
use std::sync::Arc;

use super::super::bits::Bits;
use super::super::compile::{CompiledRule, Node, Target, TargetKind};
use super::super::routes::{Subnet, approved, is_exit, rank};
use super::super::view::Parts;
use super::super::world::NodeFacts;
use super::{Change, Whole};

/// Whom it concerns that a router is another.
#[derive(Default)]
pub(super) struct Rerouted {
    /// Routers that some may see otherwise.
    pub(super) routers: Bits,
    /// Whoever may be led through other routers than before, by grants with `via`.
    pub(super) viewers: Bits,
}

impl Parts {
    /// A node with the routes that are approved, if there are such routes already.
    pub(super) fn prepare(&self, facts: NodeFacts) -> Result<Arc<Node>, Whole> {
        let approved = approved(&self.document, &self.people, &facts);
        let subnets = approved.iter().filter(|route| !is_exit(route));
        let offers = subnets
            .map(|net| self.routes.position_of(net, |route| route.net))
            .collect::<Option<_>>()
            .ok_or(Whole("a subnet route that nobody offered"))?;
        Ok(Arc::new(Node::new(facts, approved, offers)))
    }

    pub(super) fn is_behind_a_router(&self, address: &IpAddr) -> bool {
        self.routes.iter().any(|route| route.net.contains(address))
    }

    /// Makes the node one of the routers of its routes, if it leaves no route without any.
    pub(super) fn lead(&mut self, change: &Change) -> Result<Rerouted, Whole> {
        let (old, new) = (change.old.as_deref(), change.new.as_deref());
        // What routers are told apart by.
        let place =
            |node: Option<&Node>| node.map(|node| (rank(&node.facts), node.facts.tags.clone()));
        let is_alike = place(old) == place(new);
        let offers = |node: Option<&Node>, route: &usize| {
            node.is_some_and(|node| node.offers.binary_search(route).is_ok())
        };
        let both = [old, new].into_iter().flatten();
        let both = both.flat_map(|node| node.offers.iter().copied());
        let both = Bits::from_iter(both);
        let concerned = both
            .iter()
            .filter(|route| !is_alike || offers(old, route) != offers(new, route));
        let concerned = Bits::from_iter(concerned);
        let mut rerouted = Rerouted::default();
        for route in concerned.iter() {
            let before = self.routes[route].clone();
            let others = before.routers.iter().copied();
            let mut routers: Vec<usize> = others.filter(|&at| at != change.at).collect();
            if offers(new, &route) {
                let place = routers.partition_point(|&at| at < change.at);
                routers.insert(place, change.at);
            }
            let rank = |at: usize| rank(&self.nodes[at].facts);
            let after = Subnet::new(before.net, routers, rank)
                .ok_or(Whole("the last router of a subnet route"))?;
            if before.primary != after.primary {
                rerouted.routers.insert(before.primary);
                rerouted.routers.insert(after.primary);
            }
            self.routes.set(route, Arc::new(after));
        }
        self.steered(&concerned, &mut rerouted);
        Ok(rerouted)
    }

    /// Takes note of routes that grants lead through certain routers: whoever is led may be led otherwise.
    fn steered(&self, concerned: &Bits, rerouted: &mut Rerouted) {
        if concerned.iter().next().is_none() {
            return;
        }
        let is_led = |target: &Target| {
            matches!(target.kind, TargetKind::Via { .. }) && target.routes.overlaps(concerned)
        };
        let led: Vec<bool> = self.targets.iter().map(|target| is_led(target)).collect();
        let targets = self.targets.iter().zip(&led);
        for (target, _) in targets.filter(|(_, is_led)| **is_led) {
            for route in target
                .routes
                .iter()
                .filter(|&route| concerned.contains(route))
            {
                let routers = &self.routes[route].routers;
                routers.iter().for_each(|&at| rerouted.routers.insert(at));
            }
        }
        let is_led = |rule: &&Arc<CompiledRule>| rule.entries.iter().any(|(to, _)| led[*to]);
        for rule in self.rules.iter().filter(is_led) {
            rerouted.viewers.unite(&self.sources[rule.source].nodes);
        }
    }
}
