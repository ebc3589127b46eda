//! From the netmap and the preferences to what the kernel shall hold and what the filter shall admit (protocol.md 6.1, 5.2).
//!
//! Pure and deterministic: the same netmap gives the same kernel state, in whatever order its deltas came. [`Intent`] follows a netmap: it is told which peers
//! have changed, and what that costs does not hang on how many there are. A whole is the same from an empty one with every peer changed.

mod claims;
mod follow;
mod held;

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

use ipnet::{IpNet, Ipv4Net};
use lowroad_wire::{
    control::{CGNAT, Node, ULA},
    key::{NodePrivate, NodePublic},
    netmap::NetMap,
};
use time::OffsetDateTime;

use crate::{
    desired::{
        DEFAULT_MTU, Desired, Mark, Observed, Peer, Route, RouteKind, WireGuard, policy_rules,
    },
    filter,
};

pub use self::{
    follow::{Change, Intent},
    held::Held,
};

/// The preferences and options that matter here.
#[derive(Clone, Debug)]
pub struct Choices {
    pub device: String,
    pub listen_port: u16,
    pub mark: Mark,
    pub private_key: NodePrivate,
    /// Install other nodes' subnet routes.
    pub accept_routes: bool,
    /// Admit nothing that a peer begins.
    pub shields_up: bool,
    /// Our disco public key.
    pub disco: [u8; 32],
}

impl Intent {
    /// What the kernel shall hold. `endpoint` is the path chosen for a peer.
    pub fn desired(
        &self,
        choices: &Choices,
        endpoint: impl Fn(&NodePublic) -> Option<SocketAddr>,
    ) -> Desired {
        let peers = self
            .peers()
            .map(|node| (node.key, self.peer_of(node, &endpoint)));
        Desired {
            routes: self.routes().map(into_tunnel).collect(),
            wireguard: WireGuard {
                peers: peers.collect(),
                ..wireguard(choices)
            },
            ..self.without_peers(choices)
        }
    }

    /// Of what the kernel shall hold, and of what it holds, the part that has changed: the plan from the one to the other is the plan for the whole, as long as
    /// the kernel holds the rest.
    pub fn part(
        &self,
        held: &Held,
        choices: &Choices,
        endpoint: impl Fn(&NodePublic) -> Option<SocketAddr>,
    ) -> (Desired, Observed) {
        let peers = held
            .peers
            .keys()
            .filter_map(|key| Some((*key, self.peer(key, &endpoint)?)));
        let routes = held
            .routes
            .keys()
            .copied()
            .filter(|prefix| self.has_route(prefix));
        let desired = Desired {
            routes: routes.map(into_tunnel).collect(),
            wireguard: WireGuard {
                peers: peers.collect(),
                ..wireguard(choices)
            },
            ..self.without_peers(choices)
        };
        let observed = held.observed(&desired);
        (desired, observed)
    }

    /// A peer that packets may be exchanged with, as the kernel shall hold it.
    pub fn peer(
        &self,
        key: &NodePublic,
        endpoint: impl Fn(&NodePublic) -> Option<SocketAddr>,
    ) -> Option<Peer> {
        Some(self.peer_of(self.node(key)?, &endpoint))
    }

    fn peer_of(&self, node: &Node, endpoint: &impl Fn(&NodePublic) -> Option<SocketAddr>) -> Peer {
        // No path is looked for to a peer without disco: what one of an earlier life found doesn't count.
        let endpoint = match node.is_wireguard_only {
            true => node.endpoints.first().copied(),
            false => endpoint(&node.key),
        };
        Peer {
            endpoint,
            allowed_ips: self.owned(node),
        }
    }

    fn without_peers(&self, choices: &Choices) -> Desired {
        Desired {
            device: choices.device.clone(),
            mtu: DEFAULT_MTU,
            addresses: self
                .own_addresses()
                .iter()
                .copied()
                .map(IpNet::from)
                .collect(),
            wireguard: wireguard(choices),
            routes: BTreeSet::new(),
            rules: policy_rules(choices.mark),
        }
    }

    /// What decides the filter. The rules are those of all named filters, in the order of their names; none once the own key has expired.
    pub fn filter_input(&self, map: &NetMap, choices: &Choices) -> filter::Input {
        let own = self.own_addresses().to_vec();
        let rules = map.filter_rules().filter(|_| !self.own_key_has_expired());
        filter::Input {
            rules: rules.cloned().collect(),
            local: own.iter().copied().map(IpNet::from).collect(),
            peers: self.peers().map(|node| peer_facts(node, choices)).collect(),
            own_addresses: own,
            peer_api_port: None,
            shields_up: choices.shields_up,
            disco: Some(choices.disco),
        }
    }
}

/// What the kernel shall hold of this netmap. `now` is the server's time.
pub fn desired(
    map: &NetMap,
    choices: &Choices,
    endpoint: impl Fn(&NodePublic) -> Option<SocketAddr>,
    now: OffsetDateTime,
) -> Desired {
    Intent::new(map, choices, now).desired(choices, endpoint)
}

/// What decides the filter of this netmap.
pub fn filter_input(map: &NetMap, choices: &Choices, now: OffsetDateTime) -> filter::Input {
    Intent::new(map, choices, now).filter_input(map, choices)
}

fn wireguard(choices: &Choices) -> WireGuard {
    WireGuard {
        private_key: choices.private_key.clone(),
        listen_port: choices.listen_port,
        fwmark: choices.mark.value,
        peers: Default::default(),
    }
}

fn into_tunnel(prefix: IpNet) -> Route {
    Route {
        prefix,
        kind: RouteKind::Device,
    }
}

fn peer_facts(node: &Node, choices: &Choices) -> filter::PeerFacts {
    filter::PeerFacts {
        addresses: node.addresses.iter().map(IpNet::addr).collect(),
        allowed_ips: eligible(node, choices.accept_routes).collect(),
        caps: node.cap_map.keys().cloned().collect(),
        jailed: node.is_jailed,
        unsigned_peer_api_only: node.unsigned_peer_api_only,
    }
}

/// Our addresses in the tailnet; none without a netmap.
fn own_addresses(map: &NetMap) -> Vec<IpAddr> {
    map.self_node
        .iter()
        .flat_map(|node| &node.addresses)
        .filter(|net| is_host(net))
        .map(IpNet::addr)
        .collect()
}

fn is_routable(node: &Node, now: OffsetDateTime) -> bool {
    !node.is_expired(now)
        && (node.disco_key.is_some_and(|key| !key.is_zero())
            || node.home_region().is_some()
            || node.is_wireguard_only)
}

/// Who of several claimants gets a prefix: whose own address it is, then whom the server made primary; the earlier one on a tie.
fn rank(node: &Node, prefix: &IpNet) -> u8 {
    if node.addresses.contains(prefix) {
        2
    } else {
        u8::from(node.primary_routes.contains(prefix))
    }
}

/// The prefixes that may be routed to this peer, by its facts and our preferences.
fn eligible(node: &Node, accept_routes: bool) -> impl Iterator<Item = IpNet> {
    let claimed = if node.unsigned_peer_api_only {
        &node.addresses[..]
    } else {
        node.allowed_ips()
    };
    claimed.iter().copied().filter(move |prefix| {
        if prefix.trunc() != *prefix {
            return false;
        }
        // An "address" that is a whole network is a route, under whatever name it comes.
        let of_node =
            is_host(prefix) && (node.addresses.contains(prefix) || is_tailscale(prefix.addr()));
        let exit = prefix.prefix_len() == 0;
        of_node || (!exit && accept_routes)
    })
}

fn is_host(prefix: &IpNet) -> bool {
    prefix.prefix_len() == prefix.max_prefix_len()
}

const CHROME_OS: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(100, 115, 92, 0), 23);

/// Whether an address is one that tailnets give to nodes and services.
pub fn is_tailscale(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => CGNAT.contains(&v4) && !CHROME_OS.contains(&v4),
        IpAddr::V6(v6) => ULA.contains(&v6),
    }
}

#[cfg(test)]
mod tests;
