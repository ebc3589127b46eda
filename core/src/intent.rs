//! From the netmap and the preferences to what the kernel shall hold and what the filter shall admit (protocol.md 6.1, 5.2).
//!
//! Pure and deterministic: the same netmap gives the same kernel state, in whatever order its deltas came.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use lowroad_wire::{
    control::{Node, NodeId},
    key::{NodePrivate, NodePublic},
    netmap::NetMap,
};
use time::OffsetDateTime;

use crate::{
    desired::{DEFAULT_MTU, Desired, Mark, Peer, Route, RouteKind, WireGuard, policy_rules},
    filter,
};

/// More IPv4 nodes than this are routed as one prefix: ten thousand routes cost the kernel more than they tell it.
const MAX_HOST_ROUTES: usize = 10_000;

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

/// What the kernel shall hold. `endpoint` is the path chosen for a peer; `now` is the server's time.
pub fn desired(
    map: &NetMap,
    choices: &Choices,
    endpoint: impl Fn(&NodePublic) -> Option<SocketAddr>,
    now: OffsetDateTime,
) -> Desired {
    let owned = owned_prefixes(map, choices, now);
    let mut routes: BTreeSet<_> = owned
        .values()
        .flatten()
        .map(|prefix| Route {
            prefix: *prefix,
            kind: RouteKind::Device,
        })
        .collect();
    collapse_host_routes(&mut routes);
    let peers = owned
        .into_iter()
        .filter_map(|(id, allowed_ips)| {
            let node = map.peers.get(&id)?;
            let endpoint = endpoint(&node.key).or_else(|| {
                node.endpoints
                    .first()
                    .copied()
                    .filter(|_| node.is_wireguard_only)
            });
            Some((
                node.key,
                Peer {
                    endpoint,
                    allowed_ips,
                },
            ))
        })
        .collect();
    Desired {
        device: choices.device.clone(),
        mtu: DEFAULT_MTU,
        addresses: own_addresses(map).into_iter().map(IpNet::from).collect(),
        wireguard: WireGuard {
            private_key: choices.private_key.clone(),
            listen_port: choices.listen_port,
            fwmark: choices.mark.value,
            peers,
        },
        routes,
        rules: policy_rules(choices.mark),
    }
}

/// What decides the filter. The rules are those of all named filters, in the order of their names.
pub fn filter_input(map: &NetMap, choices: &Choices, now: OffsetDateTime) -> filter::Input {
    let own = own_addresses(map);
    filter::Input {
        rules: map.filter_rules().cloned().collect(),
        local: own.iter().copied().map(IpNet::from).collect(),
        peers: routable_peers(map, now)
            .map(|node| peer_facts(node, choices))
            .collect(),
        own_addresses: own,
        peer_api_port: None,
        shields_up: choices.shields_up,
        disco: Some(choices.disco),
    }
}

fn peer_facts(node: &Node, choices: &Choices) -> filter::PeerFacts {
    filter::PeerFacts {
        addresses: node.addresses.iter().map(IpNet::addr).collect(),
        allowed_ips: eligible(node, choices).collect(),
        caps: node.cap_map.keys().cloned().collect(),
        jailed: node.is_jailed,
        unsigned_peer_api_only: node.unsigned_peer_api_only,
    }
}

/// Our addresses in the tailnet; none without a netmap.
pub fn own_addresses(map: &NetMap) -> Vec<IpAddr> {
    map.self_node
        .iter()
        .flat_map(|node| &node.addresses)
        .filter(|net| is_host(net))
        .map(IpNet::addr)
        .collect()
}

/// Peers that packets may be exchanged with, in the order of their numbers. A node key names one peer only; the lowest number has it.
pub fn routable_peers(map: &NetMap, now: OffsetDateTime) -> impl Iterator<Item = &Node> {
    let own = map.self_node.as_ref().map(|node| node.key);
    let mut seen = BTreeSet::new();
    map.peers.values().filter(move |node| {
        is_routable(node, now) && Some(node.key) != own && seen.insert(node.key)
    })
}

/// True if the key has expired, by the server's word or its clock.
pub fn is_expired(node: &Node, now: OffsetDateTime) -> bool {
    node.expired || node.key_expiry.is_some_and(|expiry| expiry <= now)
}

fn is_routable(node: &Node, now: OffsetDateTime) -> bool {
    !is_expired(node, now)
        && (node.disco_key.is_some_and(|key| !key.is_zero())
            || node.home_region().is_some()
            || node.is_wireguard_only)
}

/// Each routable peer's prefixes; each prefix has one owner.
fn owned_prefixes(
    map: &NetMap,
    choices: &Choices,
    now: OffsetDateTime,
) -> BTreeMap<NodeId, BTreeSet<IpNet>> {
    let own: BTreeSet<_> = own_addresses(map).into_iter().map(IpNet::from).collect();
    let mut owners: BTreeMap<IpNet, &Node> = BTreeMap::new();
    let mut owned: BTreeMap<NodeId, BTreeSet<IpNet>> = BTreeMap::new();
    for node in routable_peers(map, now) {
        owned.entry(node.id).or_default();
        // Nobody else answers for our own addresses.
        for prefix in eligible(node, choices).filter(|prefix| !own.contains(prefix)) {
            let owner = owners.entry(prefix).or_insert(node);
            if rank(node, &prefix) > rank(owner, &prefix) {
                *owner = node;
            }
        }
    }
    for (prefix, node) in owners {
        owned.entry(node.id).or_default().insert(prefix);
    }
    owned
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
fn eligible<'a>(node: &'a Node, choices: &Choices) -> impl Iterator<Item = IpNet> + use<'a> {
    let accept_routes = choices.accept_routes;
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

const CGNAT: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(100, 64, 0, 0), 10);
const CHROME_OS: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(100, 115, 92, 0), 23);
const ULA: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0xfd7a, 0x115c, 0xa1e0, 0, 0, 0, 0, 0), 48);

/// Whether an address is one that tailnets give to nodes and services.
pub fn is_tailscale(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => CGNAT.contains(&v4) && !CHROME_OS.contains(&v4),
        IpAddr::V6(v6) => ULA.contains(&v6),
    }
}

fn collapse_host_routes(routes: &mut BTreeSet<Route>) {
    let is_node = |route: &Route| matches!(route.prefix, IpNet::V4(net) if net.prefix_len() == 32 && CGNAT.contains(&net.addr()));
    if routes.iter().filter(|route| is_node(route)).count() > MAX_HOST_ROUTES {
        routes.retain(|route| !is_node(route));
        routes.insert(Route {
            prefix: CGNAT.into(),
            kind: RouteKind::Device,
        });
    }
}

#[cfg(test)]
mod tests;
