//! From a parsed policy and the world to rules over address sets.

mod builder;
mod merge;
mod named;
mod ranges;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

use ipnet::IpNet;
use lowroad_wire::control::{CapMap, NodeId, PortRange, UserId};

use super::addresses::{AddressSet, Collector};
use super::alias::Alias;
use super::attributes::attributes;
use super::bits::Bits;
use super::origin::Origin;
use super::people::People;
use super::routes::{Routes, Subnet, is_exit};
use super::ssh::SshAccess;
use super::syntax::{Document, Rule};
use super::table::Table;
use super::view::{CompiledTailnet, Parts};
use super::world::{NodeFacts, World};

use builder::Builder;

pub(crate) use merge::{Classes, classes, merge};
pub(crate) use named::Named;
pub(crate) use ranges::{internet, tailnet};

/// All nodes, sorted by ID. Those that left since everything was compiled keep their place.
pub(crate) type Nodes = Table<Arc<Node>>;

impl Nodes {
    /// Those that are there, with their positions.
    pub(crate) fn live(&self) -> impl Iterator<Item = (usize, &Arc<Node>)> {
        let nodes = self.iter().enumerate();
        nodes.filter(|(_, node)| !node.is_gone)
    }
}

/// A node, prepared for questions.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    /// Whether it left: then nothing names it, and it has no addresses.
    pub(crate) is_gone: bool,
    pub(crate) facts: NodeFacts,
    pub(crate) addresses: Vec<IpAddr>,
    /// Its approved routes, exit routes included, sorted.
    pub(crate) approved: Vec<IpNet>,
    /// Its approved subnet routes as positions in the list of all, sorted.
    pub(crate) offers: Vec<usize>,
    /// Its approved subnet routes as addresses.
    pub(crate) behind: AddressSet,
    /// Its addresses and all behind it.
    pub(crate) extent: AddressSet,
}

impl Node {
    pub(crate) fn new(facts: NodeFacts, approved: Vec<IpNet>, offers: Vec<usize>) -> Self {
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
        Self {
            is_gone: false,
            extent: extent.finish(),
            approved,
            offers,
            addresses,
            behind,
            facts,
        }
    }

    /// What is left of a node that left.
    pub(crate) fn gone(id: NodeId) -> Self {
        Self {
            is_gone: true,
            ..Self::new(NodeFacts::bare(id), Vec::new(), Vec::new())
        }
    }
}

/// Sources of rules, by what is written. `nodes` and `routes` say whose extent it meets.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    /// Who is meant: sorted, each once.
    pub(crate) aliases: Arc<[Alias]>,
    pub(crate) set: AddressSet,
    /// A hash of the set.
    pub(crate) print: u64,
    texts: OnceLock<Arc<[String]>>,
    /// Nodes of which an address is in the set; for tests, those that are meant by name.
    pub(crate) members: Bits,
    pub(crate) nodes: Bits,
    pub(crate) routes: Bits,
}

impl Source {
    fn new(aliases: Arc<[Alias]>, set: AddressSet, [members, nodes, routes]: [Bits; 3]) -> Self {
        Self {
            aliases,
            print: merge::print(&set),
            set,
            texts: OnceLock::new(),
            members,
            nodes,
            routes,
        }
    }

    /// The set as FilterRules spell it. Written when it is first sent to somebody, and then shared.
    pub(crate) fn texts(&self) -> &Arc<[String]> {
        self.texts.get_or_init(|| self.set.texts().into())
    }

    /// To be called whenever the set is another.
    pub(crate) fn set_changed(&mut self) {
        self.print = merge::print(&self.set);
        self.texts = OnceLock::new();
    }
}

#[derive(Clone, Debug)]
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
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) alias: Alias,
    /// Tags of the routers that lead there; none: any.
    pub(crate) via: Arc<[String]>,
    pub(crate) kind: TargetKind,
    pub(crate) set: AddressSet,
    pub(crate) nodes: Bits,
    pub(crate) routes: Bits,
}

/// A rule; `source` and the targets are positions in the tables of [`CompiledTailnet`].
#[derive(Clone, Debug)]
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

pub(crate) fn compile(document: &Arc<Document>, world: &World) -> CompiledTailnet {
    compile_with_sources(document, world, SourceSets::Whole)
}

/// What tests look at, without the sets of addresses that thousands of nodes in each of thousands of rules would make.
pub(crate) fn compile_for_tests(document: &Arc<Document>, world: &World) -> CompiledTailnet {
    compile_with_sources(document, world, SourceSets::Written)
}

/// What sets of sources and targets are of.
#[derive(Clone, Copy, PartialEq, Eq)]
enum SourceSets {
    Whole,
    /// Of what is written as addresses, for tests. Members of sources and of targets are those that are named otherwise, their nodes only those with
    /// an address in the set; no two sources are equal, and what leads where isn't found out.
    Written,
}

fn compile_with_sources(
    document: &Arc<Document>,
    world: &World,
    sets: SourceSets,
) -> CompiledTailnet {
    let people = People::new(document, &world.users);
    let mut facts = world.nodes.clone();
    facts.sort_by_key(|node| node.id);
    let routes = Routes::new(document, &people, &facts);
    let offers = offers(facts.len(), &routes.subnets);
    let prepared = facts.into_iter().zip(routes.approved.iter().zip(offers));
    let nodes: Nodes = prepared
        .map(|(facts, (approved, offers))| Arc::new(Node::new(facts, approved.clone(), offers)))
        .collect();
    let written = match sets {
        SourceSets::Whole => &document.attributes[..],
        // No test is about them.
        SourceSets::Written => &[],
    };
    let attributes = attributes(written, &people, &world.tailnet, &nodes);
    let devices = devices(&nodes);
    let named = Named::new(&people, &nodes, &devices);
    let ssh = SshAccess::new(&document.ssh, &named, &nodes);
    let everything_allowed = [allow_everything()];
    let rules = document.rules.as_deref().unwrap_or(&everything_allowed);
    let mut builder = Builder::new(&named, &nodes, &routes, sets);
    for rule in rules {
        builder.rule(rule);
    }
    let Builder {
        sources,
        targets,
        written,
        tailnet,
        ..
    } = builder;
    let classes = match sets {
        SourceSets::Whole => classes(&sources),
        SourceSets::Written => (0..sources.len()).map(Some).collect(),
    };
    CompiledTailnet::new(Parts {
        tailnet: world.tailnet.clone(),
        users: world.users.clone().into(),
        document: document.clone(),
        devices,
        taken: taken(&nodes),
        gone: 0,
        reach: Arc::new(tailnet),
        routes: routes.subnets.into_iter().collect(),
        people: Arc::new(people),
        rules: Arc::new(merge(&written, &classes)),
        classes: Arc::new(classes),
        written: Arc::new(written),
        nodes,
        attributes,
        ssh,
        sources,
        targets,
    })
}

/// Per node, its subnet routes.
fn offers(nodes: usize, routes: &[Arc<Subnet>]) -> Vec<Vec<usize>> {
    let mut offers = vec![Vec::new(); nodes];
    for (at, route) in routes.iter().enumerate() {
        route
            .routers
            .iter()
            .for_each(|&router| offers[router].push(at));
    }
    offers
}

/// All addresses of nodes; `None` if two have one in common, which no server gives.
fn taken(nodes: &Nodes) -> Option<Arc<AddressSet>> {
    let mut seen = std::collections::HashSet::new();
    let all = || nodes.iter().flat_map(|node| node.addresses.iter().copied());
    all()
        .all(|address| seen.insert(address))
        .then(|| Arc::new(AddressSet::of_addresses(all())))
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

pub(crate) fn addresses_of(nodes: &Nodes, members: &Bits) -> AddressSet {
    let addresses = members.iter().flat_map(|at| &nodes[at].addresses);
    AddressSet::of_addresses(addresses.copied())
}

/// Untagged nodes by their user.
pub(crate) type Devices = BTreeMap<UserId, Arc<Bits>>;

fn devices(nodes: &Nodes) -> Devices {
    let mut devices: BTreeMap<UserId, Bits> = BTreeMap::new();
    for (at, node) in nodes.iter().enumerate() {
        if let Some(user) = node.facts.owner() {
            devices.entry(user).or_default().insert(at);
        }
    }
    let devices = devices.into_iter();
    devices.map(|(user, own)| (user, Arc::new(own))).collect()
}
