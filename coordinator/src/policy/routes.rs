//! Which announced routes are approved, and which node carries each.

use std::collections::BTreeMap;

use ipnet::IpNet;
use lowroad_wire::control::NodeId;

use super::people::People;
use super::syntax::Document;
use super::world::NodeFacts;

/// The approved routes of all nodes, by position in the list of nodes.
#[derive(Debug)]
pub(crate) struct Routes {
    /// Per node: its approved subnet routes and exit routes, sorted.
    pub(crate) approved: Vec<Vec<IpNet>>,
    /// Every approved subnet route once, and who carries it.
    pub(crate) primaries: BTreeMap<IpNet, usize>,
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
        let mut primaries = BTreeMap::new();
        let rank = |at: usize| rank(&nodes[at]);
        for (at, routes) in approved.iter().enumerate() {
            for route in routes.iter().filter(|route| !is_exit(route)) {
                let primary = primaries.entry(*route).or_insert(at);
                if rank(at) < rank(*primary) {
                    *primary = at;
                }
            }
        }
        Self {
            approved,
            primaries,
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
