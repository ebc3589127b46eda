//! Which announced routes are approved, and which node carries each.

use std::collections::BTreeMap;
use std::sync::Arc;

use ipnet::IpNet;
use lowroad_wire::control::NodeId;

use super::people::People;
use super::syntax::Document;
use super::world::NodeFacts;

/// The approved routes of all nodes.
#[derive(Debug)]
pub(crate) struct Routes {
    /// Per node: its approved subnet routes and exit routes, sorted.
    pub(crate) approved: Vec<Vec<IpNet>>,
    /// Sorted.
    pub(crate) subnets: Vec<Arc<Subnet>>,
}

/// An approved subnet route. Nodes are positions in the list of nodes.
#[derive(Clone, Debug)]
pub(crate) struct Subnet {
    pub(crate) net: IpNet,
    /// Who offers it: at least one, sorted.
    pub(crate) routers: Vec<usize>,
    /// Who carries it: the router of lowest rank.
    pub(crate) primary: usize,
}

impl Subnet {
    /// `None` if nobody offers it.
    pub(crate) fn new<K: Ord>(
        net: IpNet,
        routers: Vec<usize>,
        rank: impl Fn(usize) -> K,
    ) -> Option<Self> {
        let primary = routers.iter().copied().min_by_key(|&at| rank(at))?;
        Some(Self {
            net,
            routers,
            primary,
        })
    }
}

pub(crate) fn is_exit(route: &IpNet) -> bool {
    route.prefix_len() == 0
}

/// Of several nodes that offer a route, the one of lowest rank carries it.
pub(crate) fn rank(node: &NodeFacts) -> (bool, i64, NodeId) {
    (!node.online, node.created, node.id)
}

impl Routes {
    pub(crate) fn new(document: &Document, people: &People, nodes: &[NodeFacts]) -> Self {
        let approved: Vec<Vec<IpNet>> = nodes
            .iter()
            .map(|node| approved(document, people, node))
            .collect();
        let mut routers: BTreeMap<IpNet, Vec<usize>> = BTreeMap::new();
        for (at, routes) in approved.iter().enumerate() {
            for route in routes.iter().filter(|route| !is_exit(route)) {
                routers.entry(*route).or_default().push(at);
            }
        }
        let rank = |at: usize| rank(&nodes[at]);
        let subnets = routers.into_iter();
        let subnets =
            subnets.filter_map(|(net, routers)| Subnet::new(net, routers, rank).map(Arc::new));
        Self {
            subnets: subnets.collect(),
            approved,
        }
    }
}

/// The routes of a node that somebody approved, sorted.
pub(crate) fn approved(document: &Document, people: &People, node: &NodeFacts) -> Vec<IpNet> {
    let exit_by_admin = node.admin_approved.iter().any(is_exit);
    let mut routes: Vec<IpNet> = node
        .announced
        .iter()
        .map(IpNet::trunc)
        .filter(|route| {
            if is_exit(route) {
                return exit_by_admin
                    || document
                        .exit_approvers
                        .iter()
                        .any(|who| people.names_node(&who.value, node));
            }
            node.admin_approved
                .iter()
                .any(|approved| approved.trunc() == *route)
                || document.route_approvers.iter().any(|(net, approvers)| {
                    net.contains(route)
                        && approvers
                            .iter()
                            .any(|who| people.names_node(&who.value, node))
                })
        })
        .collect();
    routes.sort_unstable();
    routes.dedup();
    routes
}
