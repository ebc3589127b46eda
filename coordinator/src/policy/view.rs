//! A compiled policy: what each node is sent.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use ipnet::IpNet;
use lowroad_wire::control::{CapMap, FilterRule, NetPortRange, NodeId, PortRange, UserId};

use super::addresses::net_text;
use super::alias::Alias;
use super::attributes::{NodeAttributes, shown_to_peers};
use super::bits::Bits;
use super::capability::own_in;
use super::compile::{
    Companion, CompiledRule, Node, Source, Target, TargetKind, addresses_of, devices,
};
use super::people::People;
use super::sight::Sight;
use super::ssh::SshAccess;

/// A peer as one node may see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerView {
    /// The peer's addresses and the routes that the viewer may use through it.
    pub allowed_ips: Arc<[IpNet]>,
    /// Those of its subnet routes among them.
    pub primary_routes: Arc<[IpNet]>,
    /// Whether it is shown the attribute that suggests it as an exit node; no other attribute is shown to peers.
    pub suggested_exit: bool,
}

impl PeerView {
    /// What the peer's CapMap shows.
    pub fn cap_map(&self) -> CapMap {
        shown_to_peers(self.suggested_exit)
    }
}

/// A policy applied to a tailnet. Answers are computed when first asked for, and kept.
#[derive(Debug)]
pub struct CompiledTailnet {
    pub(super) parts: Parts,
    by_id: HashMap<NodeId, usize>,
    devices: BTreeMap<UserId, Bits>,
    /// Per node: itself as a peer that carries no route.
    pub(super) plain: Vec<PeerView>,
    /// Per node: the routes that it carries, as positions in `parts.routes`.
    pub(super) carries: Vec<Vec<usize>>,
    pub(super) sights: Vec<OnceLock<Sight>>,
    filters: Vec<OnceLock<Filter>>,
    /// Filters of nodes that are sent nothing of their own, by what they are sent.
    shared_filters: Mutex<HashMap<Vec<EntryAt>, Filter>>,
}

type Filter = Arc<Vec<FilterRule>>;

/// Position of a rule, and of an entry in it.
type EntryAt = (usize, usize);

/// What the compiler hands over.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) people: People,
    pub(crate) tag_owners: BTreeMap<String, Vec<Alias>>,
    /// Sorted by ID.
    pub(crate) nodes: Vec<Node>,
    /// Per node.
    pub(crate) attributes: Vec<NodeAttributes>,
    pub(crate) ssh: SshAccess,
    /// Every approved subnet route, and the position of the node that carries it.
    pub(crate) routes: Vec<(IpNet, usize)>,
    pub(crate) sources: Vec<Source>,
    pub(crate) targets: Vec<Target>,
    pub(crate) rules: Vec<CompiledRule>,
}

impl CompiledTailnet {
    pub(crate) fn new(parts: Parts) -> Self {
        let nodes = &parts.nodes;
        let by_id = nodes.iter().enumerate();
        let mut carries = vec![Vec::new(); nodes.len()];
        for (at, (_, primary)) in parts.routes.iter().enumerate() {
            carries[*primary].push(at);
        }
        let plain = nodes.iter().zip(&parts.attributes);
        let plain = plain.map(|(node, attributes)| PeerView {
            allowed_ips: shown_addresses(node, attributes).collect(),
            primary_routes: Arc::default(),
            suggested_exit: attributes.suggested_exit,
        });
        Self {
            by_id: by_id.map(|(at, node)| (node.facts.id, at)).collect(),
            devices: devices(nodes),
            plain: plain.collect(),
            sights: nodes.iter().map(|_| OnceLock::new()).collect(),
            filters: nodes.iter().map(|_| OnceLock::new()).collect(),
            shared_filters: Mutex::default(),
            carries,
            parts,
        }
    }

    /// The packet filter of a node; empty, which refuses everything, for a node that isn't in the world.
    pub fn filter_for(&self, node: NodeId) -> Arc<Vec<FilterRule>> {
        let Some(&at) = self.by_id.get(&node) else {
            return Arc::default();
        };
        self.filters[at].get_or_init(|| self.filter(at)).clone()
    }

    /// Everybody whom a node sees, not itself.
    pub fn peers_of(&self, viewer: NodeId) -> BTreeMap<NodeId, PeerView> {
        let Some(&at) = self.by_id.get(&viewer) else {
            return BTreeMap::new();
        };
        let sight = self.sight(at);
        let peers = sight.nodes.iter().map(|peer| {
            let id = self.parts.nodes[peer].facts.id;
            (id, self.view(sight, peer))
        });
        peers.collect()
    }

    /// One peer as a node sees it, if it does.
    pub fn peer_view(&self, viewer: NodeId, peer: NodeId) -> Option<PeerView> {
        let sight = self.sight(*self.by_id.get(&viewer)?);
        let peer = *self.by_id.get(&peer)?;
        sight.nodes.contains(peer).then(|| self.view(sight, peer))
    }

    /// Whether the two see each other.
    pub fn sees(&self, one: NodeId, other: NodeId) -> bool {
        let (Some(&one), Some(&other)) = (self.by_id.get(&one), self.by_id.get(&other)) else {
            return false;
        };
        self.sight(one).nodes.contains(other)
    }

    /// The approved routes of a node, exit routes included, sorted.
    pub fn approved(&self, node: NodeId) -> Vec<IpNet> {
        self.by_id
            .get(&node)
            .map(|&at| self.parts.nodes[at].approved.clone())
            .unwrap_or_default()
    }

    /// AllowedIPs of a node as it sees itself: its addresses and all its approved routes.
    pub fn own_allowed_ips(&self, node: NodeId) -> Vec<IpNet> {
        let Some(at) = self.position(node) else {
            return Vec::new();
        };
        let node = &self.parts.nodes[at];
        shown_addresses(node, &self.parts.attributes[at])
            .chain(node.approved.iter().copied())
            .collect()
    }

    /// The attributes that the policy gives a node, as keys of its own CapMap.
    pub fn attributes_of(&self, node: NodeId) -> Arc<CapMap> {
        let at = self.position(node);
        at.map(|at| self.parts.attributes[at].all.clone())
            .unwrap_or_default()
    }

    /// The subnet routes that a node carries, sorted: nobody else is sent packets for them.
    pub fn carried_routes(&self, node: NodeId) -> Vec<IpNet> {
        self.by_id
            .get(&node)
            .map(|&at| {
                self.carries[at]
                    .iter()
                    .map(|&route| self.parts.routes[route].0)
                    .collect()
            })
            .unwrap_or_default()
    }

    /// Whether a user may give nodes this tag (with its `tag:` prefix).
    pub fn may_tag(&self, user: UserId, tag: &str) -> bool {
        self.owners(tag)
            .any(|owner| self.parts.people.names_user(owner, user))
    }

    /// Whether a node with the tags `held` may be given this tag.
    pub fn tag_may_tag(&self, held: &[String], tag: &str) -> bool {
        self.owners(tag)
            .any(|owner| matches!(owner, Alias::Tag(owner) if held.contains(owner)))
    }

    /// Whether the policy defines this tag.
    pub fn knows_tag(&self, tag: &str) -> bool {
        self.parts.tag_owners.contains_key(tag)
    }

    pub(super) fn position(&self, node: NodeId) -> Option<usize> {
        self.by_id.get(&node).copied()
    }

    fn owners(&self, tag: &str) -> impl Iterator<Item = &Alias> {
        self.parts.tag_owners.get(tag).into_iter().flatten()
    }

    /// The devices of the viewer's user, itself among them; none for tagged nodes.
    pub(crate) fn devices_with(&self, viewer: usize) -> Option<&Bits> {
        let user = self.parts.nodes[viewer].facts.owner()?;
        self.devices.get(&user)
    }

    fn filter(&self, at: usize) -> Filter {
        let node = &self.parts.nodes[at];
        let mut sent_whole = Some(Vec::new());
        for (rule_at, rule) in self.parts.rules.iter().enumerate() {
            for (entry_at, (target, _)) in rule.entries.iter().enumerate() {
                match self.reaches(rule, at, &self.parts.targets[*target]) {
                    Reach::Not => {}
                    Reach::Whole => {
                        sent_whole = sent_whole.map(|mut sent: Vec<EntryAt>| {
                            sent.push((rule_at, entry_at));
                            sent
                        });
                    }
                    Reach::Own => sent_whole = None,
                }
            }
            let to_own =
                !rule.own_devices.is_empty() || rule.companion == Some(Companion::OwnDevices);
            if to_own && node.facts.owner().is_some() {
                sent_whole = None;
            }
        }
        let Some(key) = sent_whole else {
            return Arc::new(self.rules_for(at));
        };
        let shared = self
            .shared_filters
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&key)
            .cloned();
        shared.unwrap_or_else(|| {
            let filter = Arc::new(self.rules_for(at));
            self.shared_filters
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .entry(key)
                .or_insert(filter)
                .clone()
        })
    }

    fn reaches(&self, rule: &CompiledRule, at: usize, target: &Target) -> Reach {
        let node = &self.parts.nodes[at];
        if rule.capabilities.is_some() {
            let own = !own_in(node, target).is_empty();
            return if own { Reach::Own } else { Reach::Not };
        }
        match &target.kind {
            TargetKind::Any => Reach::Whole,
            TargetKind::Net(_) | TargetKind::Internet(_) | TargetKind::Via { .. } => {
                if target.nodes.contains(at) {
                    Reach::Whole
                } else {
                    Reach::Not
                }
            }
            TargetKind::Members(members) => {
                if members.contains(at) || node.behind.overlaps(&target.set) {
                    Reach::Own
                } else {
                    Reach::Not
                }
            }
        }
    }

    fn rules_for(&self, at: usize) -> Vec<FilterRule> {
        let mut filter = Vec::new();
        for rule in &self.parts.rules {
            if let Some(capabilities) = &rule.capabilities {
                filter.extend(self.capability_rules(rule, capabilities, at));
                continue;
            }
            let source = &self.parts.sources[rule.source];
            let protocols = || rule.protocols.iter().map(|&number| number.into()).collect();
            let destinations = self.destinations(rule, at);
            if !destinations.is_empty() {
                filter.push(FilterRule {
                    src_ips: source.texts.clone(),
                    dst_ports: destinations,
                    ip_proto: protocols(),
                    ..FilterRule::default()
                });
            }
            let Some(own) = self
                .devices_with(at)
                .filter(|_| !rule.own_devices.is_empty())
            else {
                continue;
            };
            let mut from = own.clone();
            from.intersect(&source.members);
            let from = addresses_of(&self.parts.nodes, &from);
            if !from.is_empty() {
                let addresses = self.parts.nodes[at].addresses.iter();
                filter.push(FilterRule {
                    src_ips: from.texts(),
                    dst_ports: addresses
                        .flat_map(|address| ports_of(address.to_string(), &rule.own_devices))
                        .collect(),
                    ip_proto: protocols(),
                    ..FilterRule::default()
                });
            }
        }
        filter
    }

    /// What of a rule's destinations a node is sent.
    fn destinations(&self, rule: &CompiledRule, at: usize) -> Vec<NetPortRange> {
        let mut destinations = Vec::new();
        for entry in &rule.entries {
            destinations.extend(self.destinations_of(rule, entry, at));
        }
        destinations.sort_unstable();
        destinations.dedup();
        destinations
    }

    /// What of one of a rule's destinations a node is sent.
    pub(super) fn destinations_of<'a>(
        &self,
        rule: &CompiledRule,
        (target, ports): &'a (usize, Vec<PortRange>),
        at: usize,
    ) -> impl Iterator<Item = NetPortRange> + use<'a> {
        let target = &self.parts.targets[*target];
        let texts = match &target.kind {
            _ if matches!(self.reaches(rule, at, target), Reach::Not) => Vec::new(),
            TargetKind::Any => vec!["*".to_owned()],
            TargetKind::Net(net) => vec![net_text(net)],
            TargetKind::Internet(texts) | TargetKind::Via { texts, .. } => texts.clone(),
            TargetKind::Members(members) => {
                let addresses = self.addresses_at(&self.parts.nodes[at], at, members);
                addresses.iter().map(ToString::to_string).collect()
            }
        };
        texts.into_iter().flat_map(|text| ports_of(text, ports))
    }

    /// Of the members' addresses, the node's own and those inside its approved routes.
    fn addresses_at(&self, node: &Node, at: usize, members: &Bits) -> Vec<IpAddr> {
        let mut addresses = Vec::new();
        if members.contains(at) {
            addresses.extend_from_slice(&node.addresses);
        }
        if !node.behind.is_empty() {
            let all = members
                .iter()
                .flat_map(|member| &self.parts.nodes[member].addresses);
            addresses.extend(all.filter(|address| node.behind.contains(**address)));
        }
        addresses
    }

    pub(crate) fn parts(&self) -> &Parts {
        &self.parts
    }
}

impl Target {
    /// Whether a node may be sent what of the destination is at it or behind it.
    pub(super) fn is_sent_to(&self, at: usize) -> bool {
        match &self.kind {
            TargetKind::Any | TargetKind::Members(_) => true,
            TargetKind::Net(_) | TargetKind::Internet(_) | TargetKind::Via { .. } => {
                self.nodes.contains(at)
            }
        }
    }
}

/// How a destination concerns a node.
enum Reach {
    Not,
    /// It is sent as it is.
    Whole,
    /// Only some of its addresses are sent.
    Own,
}

fn ports_of(ip: String, ports: &[PortRange]) -> impl Iterator<Item = NetPortRange> {
    ports.iter().map(move |&ports| NetPortRange {
        ip: ip.clone(),
        ports,
    })
}

/// A node's addresses as far as anybody is to know of them.
fn shown_addresses(node: &Node, attributes: &NodeAttributes) -> impl Iterator<Item = IpNet> {
    let v6_only = attributes.without_v4;
    let addresses = node.addresses.iter().map(|&address| IpNet::from(address));
    addresses.filter(move |address| !v6_only || matches!(address, IpNet::V6(_)))
}
