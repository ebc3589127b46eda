//! From a parsed policy and the world to rules over address sets.

mod builder;
mod ranges;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use lowroad_wire::control::{CapMap, PortRange, UserId};

use super::addresses::{AddressSet, Collector};
use super::alias::Alias;
use super::attributes::attributes;
use super::bits::Bits;
use super::origin::Origin;
use super::people::People;
use super::routes::{Routes, is_exit};
use super::ssh::SshAccess;
use super::syntax::{Document, Rule};
use super::view::CompiledTailnet;
use super::world::{NodeFacts, World};

use builder::Builder;

pub(crate) use ranges::tailnet;

/// A node, prepared for questions.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) facts: NodeFacts,
    pub(crate) addresses: Vec<IpAddr>,
    /// Its approved routes, exit routes included.
    pub(crate) approved: Vec<IpNet>,
    /// Its approved subnet routes as addresses.
    pub(crate) behind: AddressSet,
    /// Its addresses and all behind it.
    pub(crate) extent: AddressSet,
}

/// The sources of one or more rules. `nodes` and `routes` say whose extent it meets.
#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) set: AddressSet,
    pub(crate) texts: Vec<String>,
    /// Nodes of which an address is in the set.
    pub(crate) members: Bits,
    pub(crate) nodes: Bits,
    pub(crate) routes: Bits,
}

#[derive(Debug)]
pub(crate) enum TargetKind {
    /// `*`, sent whole to everybody.
    Any,
    /// Sent as written to everybody whose extent it meets.
    Net(IpNet),
    /// Each node is sent its own addresses only.
    Members(Bits),
    /// Sent to approved exit nodes, as the texts of these ranges.
    Internet(Vec<String>),
    /// What a grant opens through certain routers only: sent to those of them that have a route there.
    Via {
        texts: Vec<String>,
        /// Nodes that have one of the tags.
        tagged: Bits,
    },
}

/// A destination of one or more rules.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) kind: TargetKind,
    pub(crate) set: AddressSet,
    pub(crate) nodes: Bits,
    pub(crate) routes: Bits,
}

/// A rule; `source` and the targets are positions in the tables of [`CompiledTailnet`].
#[derive(Debug)]
pub(crate) struct CompiledRule {
    pub(crate) source: usize,
    pub(crate) protocols: Vec<u8>,
    pub(crate) entries: Vec<(usize, Vec<PortRange>)>,
    /// Ports at which the sources reach other devices of the same user.
    pub(crate) own_devices: Vec<PortRange>,
    /// What the sources are granted at the destinations, instead of ports there.
    pub(crate) capabilities: Option<Arc<CapMap>>,
    pub(crate) companion: Option<Companion>,
    pub(crate) origins: Origins,
}

/// Where in the policy file the parts of a rule come from: rules of equal sources and protocols become one. None where there is no
/// policy.
#[derive(Clone, Debug, Default)]
pub(crate) struct Origins {
    /// Of the first.
    pub(crate) rule: Option<Origin>,
    /// One for each of `entries`.
    pub(crate) entries: Vec<Option<Origin>>,
    /// One for each of `own_devices`.
    pub(crate) own_devices: Vec<Option<Origin>>,
}

/// A rule that tells those who were granted a capability who serves them. It connects nobody whom its grant doesn't.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Companion {
    /// Source and entries are the grant's, the other way round.
    Reversed,
    /// Source is the grant's: each of its nodes is told of all devices of its user.
    OwnDevices,
}

pub(crate) fn compile(document: &Document, world: &World) -> CompiledTailnet {
    let people = People::new(document, &world.users);
    let mut facts = world.nodes.clone();
    facts.sort_by_key(|node| node.id);
    let routes = Routes::new(document, &people, &facts);
    let nodes = prepare(facts, &routes);
    let attributes = attributes(&document.attributes, &people, &world.tailnet, &nodes);
    let ssh = SshAccess::new(&document.ssh, &people, &nodes);
    let everything_allowed = [allow_everything()];
    let rules = document.rules.as_deref().unwrap_or(&everything_allowed);
    let mut builder = Builder::new(&people, &nodes, &routes);
    for rule in rules {
        builder.rule(rule);
    }
    let Builder {
        sources,
        targets,
        rules,
        ..
    } = builder;
    CompiledTailnet::new(super::view::Parts {
        tag_owners: document
            .tag_owners
            .iter()
            .map(|(tag, owners)| {
                (
                    tag.clone(),
                    owners.iter().map(|at| at.value.clone()).collect(),
                )
            })
            .collect(),
        routes: routes.primaries.into_iter().collect(),
        people,
        nodes,
        attributes,
        ssh,
        sources,
        targets,
        rules,
    })
}

/// The rule that holds without `acls` and `grants`.
fn allow_everything() -> Rule {
    let any = super::error::At {
        place: super::error::Place { line: 1, column: 1 },
        value: Alias::Any,
    };
    Rule {
        sources: vec![any.clone()],
        protocols: Vec::new(),
        destinations: vec![(any, vec![PortRange::ANY])],
        ..Rule::default()
    }
}

fn prepare(facts: Vec<NodeFacts>, routes: &Routes) -> Vec<Node> {
    facts
        .into_iter()
        .zip(&routes.approved)
        .map(|(facts, approved)| {
            let addresses: Vec<IpAddr> = facts.addresses().collect();
            let mut behind = Collector::default();
            for route in approved.iter().filter(|route| !is_exit(route)) {
                behind.net(route);
            }
            let behind = behind.finish();
            let mut extent = Collector::default();
            extent.set(&behind);
            for address in &addresses {
                extent.address(*address);
            }
            Node {
                extent: extent.finish(),
                approved: approved.clone(),
                addresses,
                behind,
                facts,
            }
        })
        .collect()
}

pub(crate) fn addresses_of(nodes: &[Node], members: &Bits) -> AddressSet {
    let addresses = members.iter().flat_map(|at| &nodes[at].addresses);
    AddressSet::of_addresses(addresses.copied())
}

/// Untagged nodes by their user.
pub(crate) fn devices(nodes: &[Node]) -> BTreeMap<UserId, Bits> {
    let mut devices: BTreeMap<UserId, Bits> = BTreeMap::new();
    for (at, node) in nodes.iter().enumerate() {
        if let Some(user) = node.facts.owner() {
            devices
                .entry(user)
                .or_insert_with(|| Bits::new(nodes.len()))
                .insert(at);
        }
    }
    devices
}
