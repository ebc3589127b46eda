//! Whom a node sees, and which routes through whom.

use std::collections::BTreeMap;
use std::sync::Arc;

use ipnet::IpNet;

use super::bits::Bits;
use super::compile::TargetKind;
use super::routes::{Subnet, is_exit, rank};
use super::view::{CompiledTailnet, PeerView};

/// Whom and what a node sees.
#[derive(Clone, Debug)]
pub(super) struct Sight {
    pub(super) nodes: Bits,
    routes: Bits,
    exits: bool,
    /// Whether no peer's IPv4 address is shown; routes are.
    v6_only: bool,
    /// Routes that grants lead through another node than the one that carries them: node, route.
    steered: Vec<(usize, usize)>,
}

impl CompiledTailnet {
    pub(super) fn view(&self, sight: &Sight, peer: usize) -> PeerView {
        let node = &self.parts.nodes[peer];
        let plain = &self.plain[peer];
        if node.approved.is_empty() && !sight.v6_only {
            return plain.clone();
        }
        let addresses = plain.allowed_ips.iter();
        let addresses = addresses.filter(|net| !sight.v6_only || matches!(net, IpNet::V6(_)));
        let carried = self.parts.carried(peer);
        let steered = sight.steered.iter().filter(|(at, _)| *at == peer);
        let mut shown: Vec<usize> = carried
            .filter(|&route| sight.routes.contains(route))
            .chain(steered.map(|(_, route)| *route))
            .collect();
        // Positions go up as the routes do.
        shown.sort_unstable();
        let shown = shown.into_iter().map(|route| self.parts.routes[route].net);
        let primary: Arc<[IpNet]> = shown.collect();
        let exits = node
            .approved
            .iter()
            .filter(|route| sight.exits && is_exit(route));
        PeerView {
            allowed_ips: addresses
                .chain(primary.iter())
                .chain(exits)
                .copied()
                .collect(),
            primary_routes: primary,
            suggested_exit: plain.suggested_exit,
        }
    }

    pub(super) fn sight(&self, viewer: usize) -> &Sight {
        self.sights[viewer].get_or_init(|| Arc::new(self.look(viewer)))
    }

    pub(super) fn look(&self, viewer: usize) -> Sight {
        let mut sight = Sight {
            nodes: Bits::default(),
            routes: Bits::default(),
            exits: false,
            v6_only: self.parts.attributes[viewer].without_v4,
            steered: Vec::new(),
        };
        let mut steering: BTreeMap<usize, Bits> = BTreeMap::new();
        let own = self.devices_with(viewer);
        // A companion connects whom its grant connects.
        let grants = self.parts.rules.iter();
        for rule in grants.filter(|rule| rule.companion.is_none()) {
            let source = &self.parts.sources[rule.source];
            let is_source = source.nodes.contains(viewer);
            for (target, _) in &rule.entries {
                let target = &self.parts.targets[*target];
                if let TargetKind::Via { tagged, .. } = &target.kind {
                    if target.nodes.contains(viewer) {
                        sight.nodes.unite(&source.nodes);
                    }
                    if is_source {
                        sight.nodes.unite(&target.nodes);
                        for route in target.routes.iter() {
                            let via = steering.entry(route);
                            via.or_default().unite(tagged);
                        }
                    }
                    continue;
                }
                if is_source {
                    sight.nodes.unite(&target.nodes);
                    sight.routes.unite(&target.routes);
                }
                if target.nodes.contains(viewer) {
                    sight.nodes.unite(&source.nodes);
                    sight.routes.unite(&source.routes);
                }
                let leads_out = matches!(target.kind, TargetKind::Any | TargetKind::Internet(_));
                sight.exits |= leads_out && source.members.contains(viewer);
            }
            if let Some(own) = own.filter(|_| !rule.own_devices.is_empty()) {
                let mut from = own.clone();
                from.intersect(&source.members);
                sight.nodes.unite(&from);
                if from.contains(viewer) {
                    sight.nodes.unite(own);
                }
            }
        }
        sight.nodes.remove(viewer);
        // Who offers a route itself is shown who carries it.
        for &route in &self.parts.nodes[viewer].offers {
            sight.routes.insert(route);
        }
        self.steer(&mut sight, steering);
        sight
    }

    /// Shows routes through the routers that grants name, unless another rule shows them whoever carries them.
    fn steer(&self, sight: &mut Sight, steering: BTreeMap<usize, Bits>) {
        for (route, via) in steering {
            let Subnet {
                primary, routers, ..
            } = &*self.parts.routes[route];
            if via.contains(*primary) {
                sight.routes.insert(route);
            }
            if sight.routes.contains(route) {
                continue;
            }
            let routers = routers.iter().copied().filter(|&at| via.contains(at));
            let first = routers.min_by_key(|&at| rank(&self.parts.nodes[at].facts));
            sight.steered.extend(first.map(|at| (at, route)));
        }
    }
}
