//! Which peer has which prefix, and what of that is a route.

use std::{cmp::Reverse, collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;
use lowroad_wire::control::{CGNAT, NodeId, ULA};

use super::{is_host, is_tailscale};

/// More IPv4 nodes than this are routed as one prefix: ten thousand routes cost the kernel more than they tell it. (Few, where tests of this crate want both.)
pub(super) const MAX_HOST_ROUTES: usize = if cfg!(test) { 4 } else { 10_000 };

/// A prefix that a peer claims. The first of a prefix has it: by rank, then by number.
type Claim = (IpNet, Reverse<u8>, NodeId);

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Claims {
    all: BTreeSet<Claim>,
    /// Claimed addresses of nodes.
    v4_hosts: usize,
    v6_hosts: usize,
}

impl Claims {
    pub fn lay(&mut self, prefix: IpNet, rank: u8, node: NodeId) {
        if !self.has(&prefix) {
            self.count(&prefix, 1);
        }
        self.all.insert((prefix, Reverse(rank), node));
    }

    pub fn withdraw(&mut self, prefix: IpNet, rank: u8, node: NodeId) {
        if self.all.remove(&(prefix, Reverse(rank), node)) && !self.has(&prefix) {
            self.count(&prefix, -1);
        }
    }

    /// Of a tree that was filled in order the nodes are half empty.
    pub fn pack(&mut self) {
        self.all = std::mem::take(&mut self.all).into_iter().collect();
    }

    pub fn owner(&self, prefix: &IpNet) -> Option<NodeId> {
        self.claimants(prefix).next()
    }

    pub fn claimants(&self, prefix: &IpNet) -> impl Iterator<Item = NodeId> {
        let first = (*prefix, Reverse(u8::MAX), NodeId(i64::MIN));
        let last = (*prefix, Reverse(0), NodeId(i64::MAX));
        self.all.range(first..=last).map(|(_, _, node)| *node)
    }

    fn has(&self, prefix: &IpNet) -> bool {
        self.owner(prefix).is_some()
    }

    fn count(&mut self, prefix: &IpNet, by: isize) {
        if is_node(prefix) {
            let hosts = match prefix {
                IpNet::V4(_) => &mut self.v4_hosts,
                IpNet::V6(_) => &mut self.v6_hosts,
            };
            *hosts = hosts.saturating_add_signed(by);
        }
    }

    /// Whether there are so many nodes that they have one route.
    pub fn is_collapsed(&self) -> bool {
        self.v4_hosts > MAX_HOST_ROUTES
    }

    /// The route by which packets for this prefix go. All IPv6 nodes have one, as with the stock client: nobody else uses that range.
    pub fn route_of(&self, prefix: &IpNet) -> IpNet {
        match prefix {
            IpNet::V6(_) if is_node(prefix) => ULA.into(),
            IpNet::V4(_) if is_node(prefix) && self.is_collapsed() => CGNAT.into(),
            other => *other,
        }
    }

    pub fn has_route(&self, route: &IpNet) -> bool {
        match route {
            IpNet::V6(net) if *net == ULA && self.v6_hosts > 0 => true,
            IpNet::V4(net) if *net == CGNAT && self.is_collapsed() => true,
            other => self.has(other) && self.route_of(other) == *other,
        }
    }

    pub fn routes(&self) -> impl Iterator<Item = IpNet> {
        self.all.iter().map(|(prefix, _, _)| self.route_of(prefix))
    }
}

/// The address of a node, by the range it is from.
fn is_node(prefix: &IpNet) -> bool {
    is_host(prefix)
        && match prefix.addr() {
            IpAddr::V4(address) => CGNAT.contains(&address),
            address => is_tailscale(address),
        }
}
