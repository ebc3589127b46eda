//! A compiled policy: what each node is told.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, OnceLock};

use ipnet::IpNet;
use lowroad_wire::control::{CapMap, FilterRule, NodeId, UserId};

use super::addresses::AddressSet;
use super::alias::Alias;
use super::attributes::{NodeAttributes, shown_to_peers};
use super::bits::Bits;
use super::compile::{Classes, CompiledRule, Devices, Node, Nodes, Source, Target};
use super::error::At;
use super::filter::{EntryAt, NodeFilter};
use super::people::People;
use super::routes::Subnet;
use super::sight::Sight;
use super::ssh::SshAccess;
use super::syntax::Document;
use super::table::Table;
use super::world::{TailnetFacts, UserFacts};

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
///
/// What a change of nodes and users makes of it ([`CompiledTailnet::follow`]) shares all that the change leaves as it was, answers included:
/// also the places of answers that nobody has asked for, which whichever version is asked first then fills for both. So a place is shared
/// only if both answer the same; where they may not, the new version has an empty one of its own.
#[derive(Clone, Debug)]
pub struct CompiledTailnet {
    pub(super) parts: Parts,
    /// Per node: itself as a peer that carries no route.
    pub(super) plain: Table<PeerView>,
    pub(super) sights: Table<OnceLock<Arc<Sight>>>,
    pub(super) filters: Table<OnceLock<Arc<NodeFilter>>>,
    /// Filters of nodes that are sent nothing of their own, by what they are sent.
    pub(super) shared_filters: Arc<Mutex<HashMap<Vec<EntryAt>, Arc<NodeFilter>>>>,
}

/// What the compiler hands over.
#[derive(Clone, Debug)]
pub(crate) struct Parts {
    pub(crate) document: Arc<Document>,
    pub(crate) users: Arc<[UserFacts]>,
    pub(crate) tailnet: TailnetFacts,
    pub(crate) people: Arc<People>,
    pub(crate) nodes: Nodes,
    /// How many of them left.
    pub(crate) gone: usize,
    /// The addresses of all nodes; `None` if two have one in common.
    pub(crate) taken: Option<Arc<AddressSet>>,
    pub(crate) devices: Devices,
    /// Per node.
    pub(crate) attributes: Table<NodeAttributes>,
    pub(crate) ssh: SshAccess,
    /// Every approved subnet route, sorted.
    pub(crate) routes: Table<Arc<Subnet>>,
    /// What `*` is as a source.
    pub(crate) reach: Arc<AddressSet>,
    pub(crate) sources: Vec<Arc<Source>>,
    pub(crate) targets: Vec<Arc<Target>>,
    /// The rules as they stand in the policy.
    pub(crate) written: Arc<Vec<Arc<CompiledRule>>>,
    pub(crate) classes: Arc<Classes>,
    /// The rules as they are sent.
    pub(crate) rules: Arc<Vec<Arc<CompiledRule>>>,
}

impl CompiledTailnet {
    pub(crate) fn new(parts: Parts) -> Self {
        let nodes = &parts.nodes;
        let plain = nodes.iter().zip(parts.attributes.iter());
        Self {
            plain: plain
                .map(|(node, attributes)| plain_view(node, attributes))
                .collect(),
            sights: nodes.iter().map(|_| OnceLock::new()).collect(),
            filters: nodes.iter().map(|_| OnceLock::new()).collect(),
            shared_filters: Arc::default(),
            parts,
        }
    }

    /// The packet filter of a node, as it is sent; empty, which refuses everything, for a node that isn't in the world.
    pub fn filter_for(&self, node: NodeId) -> Vec<FilterRule> {
        self.rules_for(node).to_wire()
    }

    /// The packet filter of a node: the same pointer as long as nothing changes it.
    pub fn rules_for(&self, node: NodeId) -> Arc<NodeFilter> {
        let Some(at) = self.position(node) else {
            return Arc::default();
        };
        self.filters[at].get_or_init(|| self.filter(at)).clone()
    }

    /// Everybody whom a node sees, not itself.
    pub fn peers_of(&self, viewer: NodeId) -> BTreeMap<NodeId, PeerView> {
        let Some(at) = self.position(viewer) else {
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
        let sight = self.sight(self.position(viewer)?);
        let peer = self.position(peer)?;
        sight.nodes.contains(peer).then(|| self.view(sight, peer))
    }

    /// Whether the two see each other.
    pub fn sees(&self, one: NodeId, other: NodeId) -> bool {
        let (Some(one), Some(other)) = (self.position(one), self.position(other)) else {
            return false;
        };
        self.sight(one).nodes.contains(other)
    }

    /// The approved routes of a node, exit routes included, sorted.
    pub fn approved(&self, node: NodeId) -> Vec<IpNet> {
        let at = self.position(node);
        at.map(|at| self.parts.nodes[at].approved.clone())
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
        let at = self.position(node).into_iter();
        let carried = at.flat_map(|at| self.parts.carried(at));
        carried.map(|route| self.parts.routes[route].net).collect()
    }

    /// Whether a user may give nodes this tag (with its `tag:` prefix).
    pub fn may_tag(&self, user: UserId, tag: &str) -> bool {
        self.owners(tag)
            .any(|owner| self.parts.people.names_user(&owner.value, user))
    }

    /// Whether a node with the tags `held` may be given this tag.
    pub fn tag_may_tag(&self, held: &[String], tag: &str) -> bool {
        self.owners(tag)
            .any(|owner| matches!(&owner.value, Alias::Tag(owner) if held.contains(owner)))
    }

    /// Whether the policy defines this tag.
    pub fn knows_tag(&self, tag: &str) -> bool {
        self.parts.document.tag_owners.contains_key(tag)
    }

    pub(super) fn position(&self, node: NodeId) -> Option<usize> {
        let nodes = &self.parts.nodes;
        let at = nodes.position_of(&node, |node| node.facts.id);
        at.filter(|&at| !nodes[at].is_gone)
    }

    fn owners(&self, tag: &str) -> impl Iterator<Item = &At<Alias>> {
        let owners = self.parts.document.tag_owners.get(tag);
        owners.into_iter().flatten()
    }

    /// The devices of the viewer's user, itself among them; none for tagged nodes.
    pub(crate) fn devices_with(&self, viewer: usize) -> Option<&Bits> {
        let user = self.parts.nodes[viewer].facts.owner()?;
        self.parts.devices.get(&user).map(Arc::as_ref)
    }

    pub(crate) fn parts(&self) -> &Parts {
        &self.parts
    }
}

impl Parts {
    /// The subnet routes that a node carries, as positions in the list of them.
    pub(crate) fn carried(&self, at: usize) -> impl Iterator<Item = usize> {
        let offers = self.nodes[at].offers.iter().copied();
        offers.filter(move |&route| self.routes[route].primary == at)
    }
}

/// A node as a peer that carries no route.
pub(super) fn plain_view(node: &Node, attributes: &NodeAttributes) -> PeerView {
    PeerView {
        allowed_ips: shown_addresses(node, attributes).collect(),
        primary_routes: Arc::default(),
        suggested_exit: attributes.suggested_exit,
    }
}

/// A node's addresses as far as anybody is to know of them.
fn shown_addresses(node: &Node, attributes: &NodeAttributes) -> impl Iterator<Item = IpNet> {
    let v6_only = attributes.without_v4;
    let addresses = node.addresses.iter().map(|&address| IpNet::from(address));
    addresses.filter(move |address| !v6_only || matches!(address, IpNet::V6(_)))
}
