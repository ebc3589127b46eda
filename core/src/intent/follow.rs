//! Following a netmap, change by change.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use ipnet::IpNet;
use lowroad_wire::{
    control::{FilterRule, Node, NodeId},
    key::NodePublic,
    netmap::NetMap,
};
use time::OffsetDateTime;

use super::{Choices, claims::Claims, eligible, is_routable, own_addresses, rank};
use crate::desired::Peer;

/// How sources of rules name those that have a capability.
const CAP: &str = "cap:";

/// What a netmap asks for, kept up to date with it.
#[derive(Clone, Debug, PartialEq)]
pub struct Intent {
    own_key: Option<NodePublic>,
    /// Until it is renewed there are no peers, whoever the netmap still names.
    own_key_expired: bool,
    own: Vec<IpAddr>,
    accept_routes: bool,
    /// Capabilities that the rules speak of.
    caps: BTreeSet<String>,
    /// The server's time, which decides what has expired.
    now: OffsetDateTime,
    nodes: BTreeMap<NodeId, Known>,
    /// Routable nodes. A node key names one peer only; the lowest number has it.
    keys: BTreeSet<(NodePublic, NodeId)>,
    /// Of the peers.
    claims: Claims,
    expiries: BTreeSet<(OffsetDateTime, NodeId)>,
    /// How many peers may begin nothing.
    jailed: usize,
}

#[derive(Clone, Debug, PartialEq)]
struct Known {
    node: Arc<Node>,
    routable: bool,
}

/// What an update has touched: as it was before, without the endpoints that paths choose.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change {
    pub peers: BTreeMap<NodePublic, Option<Peer>>,
    pub routes: BTreeMap<IpNet, bool>,
    /// The filter may be another one.
    pub filter: bool,
    /// More has changed than is listed: everything is to be compared.
    pub whole: bool,
}

impl Intent {
    pub fn new(map: &NetMap, choices: &Choices, now: OffsetDateTime) -> Self {
        let own = map.self_node.as_ref();
        let mut intent = Self {
            own_key: own.map(|node| node.key),
            own_key_expired: map.own_key_has_expired(now),
            own: own_addresses(map),
            accept_routes: choices.accept_routes,
            caps: caps(map.filter_rules()),
            now,
            nodes: BTreeMap::new(),
            keys: BTreeSet::new(),
            claims: Claims::default(),
            expiries: BTreeSet::new(),
            jailed: 0,
        };
        intent.set(map, map.peers.keys().copied().collect());
        intent.pack();
        intent
    }

    /// Of a tree that was filled in order the nodes are half empty; one that is made of a whole list has full ones.
    fn pack(&mut self) {
        self.nodes = std::mem::take(&mut self.nodes).into_iter().collect();
        self.keys = std::mem::take(&mut self.keys).into_iter().collect();
        self.claims.pack();
    }

    /// Whether this netmap can be followed from the last one by its peers alone. If not, it takes a new [`Intent`]. `now` is the server's time.
    pub fn follows(&self, map: &NetMap, choices: &Choices, now: OffsetDateTime) -> bool {
        let own = map.self_node.as_ref();
        self.own_key == own.map(|node| node.key)
            && self.own_key_expired == map.own_key_has_expired(now)
            && self.accept_routes == choices.accept_routes
            && self.own == own_addresses(map)
    }

    /// The rules are others.
    pub fn set_rules(&mut self, map: &NetMap) {
        self.caps = caps(map.filter_rules());
    }

    /// Takes over what has become of these nodes, and of keys that have expired until `now`, by the server's clock.
    pub fn update(
        &mut self,
        map: &NetMap,
        nodes: impl IntoIterator<Item = NodeId>,
        now: OffsetDateTime,
    ) -> Change {
        let mut nodes: BTreeSet<NodeId> = nodes.into_iter().collect();
        nodes.extend(self.turned(now));
        self.now = now;
        let keys = self.keys_of(map, &nodes);
        // Of several that have one key, another one may become the peer.
        nodes.extend(keys.iter().flat_map(|key| self.with_key(key)));
        let prefixes = self.prefixes_of(map, &nodes);
        let mut change = self.before(&nodes, &keys, &prefixes);
        let (facts, jailed, collapsed) = (
            self.filter_facts(&nodes),
            self.jailed,
            self.claims.is_collapsed(),
        );
        self.set(map, nodes.clone());
        change.filter = jailed != self.jailed || facts != self.filter_facts(&nodes);
        change.whole = collapsed != self.claims.is_collapsed();
        change
    }

    /// Peers that packets may be exchanged with, in the order of their numbers.
    pub fn peers(&self) -> impl Iterator<Item = &Node> {
        self.nodes
            .iter()
            .filter(|(id, known)| known.routable && self.holder(&known.node.key) == Some(**id))
            .map(|(_, known)| &*known.node)
    }

    /// The peer that has this key.
    pub fn node(&self, key: &NodePublic) -> Option<&Node> {
        Some(&self.nodes.get(&self.holder(key)?)?.node)
    }

    /// Whether our own key has expired: we have no peers then, and nobody may reach us.
    pub(super) fn own_key_has_expired(&self) -> bool {
        self.own_key_expired
    }

    /// Our addresses in the tailnet.
    pub fn own_addresses(&self) -> &[IpAddr] {
        &self.own
    }

    pub(super) fn owned(&self, node: &Node) -> BTreeSet<IpNet> {
        self.claimed(node)
            .filter(|prefix| self.claims.owner(prefix) == Some(node.id))
            .collect()
    }

    pub(super) fn routes(&self) -> impl Iterator<Item = IpNet> {
        self.claims.routes()
    }

    pub(super) fn has_route(&self, prefix: &IpNet) -> bool {
        self.claims.has_route(prefix)
    }

    fn holder(&self, key: &NodePublic) -> Option<NodeId> {
        self.with_key(key).next()
    }

    fn with_key(&self, key: &NodePublic) -> impl Iterator<Item = NodeId> {
        let range = (*key, NodeId(i64::MIN))..=(*key, NodeId(i64::MAX));
        self.keys.range(range).map(|(_, id)| *id)
    }

    /// The peer of this number, if it is one.
    fn peer_numbered(&self, id: NodeId) -> Option<&Arc<Node>> {
        let known = self.nodes.get(&id).filter(|known| known.routable)?;
        (self.holder(&known.node.key) == Some(id)).then_some(&known.node)
    }

    /// Nobody else answers for our own addresses.
    fn claimed(&self, node: &Node) -> impl Iterator<Item = IpNet> {
        let host = |prefix: &IpNet| super::is_host(prefix) && self.own.contains(&prefix.addr());
        eligible(node, self.accept_routes).filter(move |prefix| !host(prefix))
    }

    /// Whose keys are valid at one of the two times and expired at the other.
    fn turned(&self, now: OffsetDateTime) -> Vec<NodeId> {
        let (from, to) = (self.now.min(now), self.now.max(now));
        let range = (from, NodeId(i64::MIN))..=(to, NodeId(i64::MAX));
        self.expiries.range(range).map(|(_, id)| *id).collect()
    }

    fn keys_of(&self, map: &NetMap, nodes: &BTreeSet<NodeId>) -> BTreeSet<NodePublic> {
        let before = nodes
            .iter()
            .filter_map(|id| self.nodes.get(id))
            .map(|known| known.node.key);
        let after = nodes
            .iter()
            .filter_map(|id| map.peers.get(id))
            .map(|node| node.key);
        before.chain(after).collect()
    }

    fn prefixes_of(&self, map: &NetMap, nodes: &BTreeSet<NodeId>) -> BTreeSet<IpNet> {
        let before = nodes
            .iter()
            .filter_map(|id| self.nodes.get(id))
            .map(|known| &known.node);
        let after = nodes.iter().filter_map(|id| map.peers.get(id));
        before
            .chain(after)
            .flat_map(|node| self.claimed(node))
            .collect()
    }

    /// What changes of these may touch, as it is.
    fn before(
        &self,
        nodes: &BTreeSet<NodeId>,
        keys: &BTreeSet<NodePublic>,
        prefixes: &BTreeSet<IpNet>,
    ) -> Change {
        let claimants = prefixes
            .iter()
            .flat_map(|prefix| self.claims.claimants(prefix));
        let touched: BTreeSet<NodeId> = claimants.chain(nodes.iter().copied()).collect();
        let peers = touched.iter().filter_map(|id| self.peer_numbered(*id));
        let as_they_are = peers.map(|node| (node.key, self.peer(&node.key, |_| None)));
        let routes = prefixes.iter().map(|prefix| self.claims.route_of(prefix));
        Change {
            peers: keys
                .iter()
                .map(|key| (*key, None))
                .chain(as_they_are)
                .collect(),
            routes: routes
                .map(|route| (route, self.claims.has_route(&route)))
                .collect(),
            ..Change::default()
        }
    }

    fn set(&mut self, map: &NetMap, nodes: BTreeSet<NodeId>) {
        for id in &nodes {
            if let Some(node) = self.peer_numbered(*id).cloned() {
                self.jailed -= usize::from(node.is_jailed);
                for prefix in self.claimed(&node).collect::<Vec<_>>() {
                    self.claims.withdraw(prefix, rank(&node, &prefix), *id);
                }
            }
        }
        for id in &nodes {
            self.forget(*id);
            if let Some(node) = map.peers.get(id) {
                self.learn(*id, node.clone());
            }
        }
        for id in nodes {
            if let Some(node) = self.peer_numbered(id).cloned() {
                self.jailed += usize::from(node.is_jailed);
                for prefix in self.claimed(&node).collect::<Vec<_>>() {
                    self.claims.lay(prefix, rank(&node, &prefix), id);
                }
            }
        }
    }

    fn forget(&mut self, id: NodeId) {
        let Some(Known { node, .. }) = self.nodes.remove(&id) else {
            return;
        };
        self.keys.remove(&(node.key, id));
        if let Some(expiry) = node.key_expiry {
            self.expiries.remove(&(expiry, id));
        }
    }

    fn learn(&mut self, id: NodeId, node: Arc<Node>) {
        let routable =
            !self.own_key_expired && is_routable(&node, self.now) && Some(node.key) != self.own_key;
        if routable {
            self.keys.insert((node.key, id));
        }
        if let Some(expiry) = node.key_expiry {
            self.expiries.insert((expiry, id));
        }
        self.nodes.insert(id, Known { node, routable });
    }

    /// All that the filter's compiler reads of these peers, as the rules and the other peers are.
    fn filter_facts(&self, nodes: &BTreeSet<NodeId>) -> Vec<FilterFacts> {
        nodes
            .iter()
            .filter_map(|id| self.peer_numbered(*id))
            .map(|node| {
                let caps: Vec<_> = node
                    .cap_map
                    .keys()
                    .filter(|cap| self.caps.contains(*cap))
                    .cloned()
                    .collect();
                // Where one is jailed, what the others have and may send from counts as well.
                let jail = self.jailed > 0 || node.unsigned_peer_api_only;
                let by_address = jail || !caps.is_empty();
                FilterFacts {
                    caps,
                    jailed: node.is_jailed,
                    unsigned: node.unsigned_peer_api_only,
                    addresses: node
                        .addresses
                        .iter()
                        .copied()
                        .filter(|_| by_address)
                        .collect(),
                    allowed_ips: eligible(node, self.accept_routes)
                        .filter(|_| jail)
                        .collect(),
                }
            })
            .filter(|facts| *facts != FilterFacts::default())
            .collect()
    }
}

#[derive(Default, PartialEq)]
struct FilterFacts {
    caps: Vec<String>,
    jailed: bool,
    unsigned: bool,
    addresses: Vec<IpNet>,
    allowed_ips: Vec<IpNet>,
}

fn caps<'a>(rules: impl Iterator<Item = &'a FilterRule>) -> BTreeSet<String> {
    let sources = rules.flat_map(|rule| &rule.src_ips);
    sources
        .filter_map(|source| Some(source.strip_prefix(CAP)?.to_owned()))
        .collect()
}
