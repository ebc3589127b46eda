//! From a parsed policy and the world to rules over address sets.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use lowroad_wire::control::{CapMap, PortRange, UserId};

use super::addresses::{AddressSet, Collector, net_text};
use super::alias::Alias;
use super::bits::Bits;
use super::capability;
use super::people::People;
use super::routes::{Routes, is_exit};
use super::syntax::{Document, Rule};
use super::view::CompiledTailnet;
use super::world::{NodeFacts, World};

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

/// Builds the tables, each distinct source set and destination once.
struct Builder<'a> {
    people: &'a People,
    nodes: &'a [Node],
    routes: Vec<IpNet>,
    tailnet: AddressSet,
    members: HashMap<Alias, Bits>,
    sources: Vec<Source>,
    source_of: HashMap<AddressSet, usize>,
    targets: Vec<Target>,
    target_of: HashMap<(Alias, Vec<String>), usize>,
    rules: Vec<CompiledRule>,
    rule_of: HashMap<(usize, Vec<u8>), usize>,
}

impl<'a> Builder<'a> {
    fn new(people: &'a People, nodes: &'a [Node], routes: &Routes) -> Self {
        let routes: Vec<IpNet> = routes.primaries.keys().copied().collect();
        Self {
            tailnet: tailnet(&routes),
            people,
            nodes,
            routes,
            members: HashMap::new(),
            sources: Vec::new(),
            source_of: HashMap::new(),
            targets: Vec::new(),
            target_of: HashMap::new(),
            rules: Vec::new(),
            rule_of: HashMap::new(),
        }
    }

    fn rule(&mut self, rule: &Rule) {
        let mut set = Collector::default();
        for source in &rule.sources {
            set.set(&self.source_set(&source.value));
        }
        let set = set.finish();
        if set.is_empty() {
            return;
        }
        let source = self.source(set);
        let mut entries = Vec::new();
        let mut own_devices = Vec::new();
        for (alias, ports) in &rule.destinations {
            if alias.value != Alias::OwnDevices {
                entries.push((self.target(&alias.value, &rule.via), ports.clone()));
            } else if rule.via.is_empty() {
                own_devices.extend_from_slice(ports);
            }
        }
        let compiled = CompiledRule {
            source,
            protocols: rule.protocols.clone(),
            entries,
            own_devices,
            capabilities: rule.capabilities.clone(),
            companion: None,
        };
        if let Some(capabilities) = &rule.capabilities {
            self.rules.push(compiled);
            for name in capability::companions(capabilities).filter(|_| rule.via.is_empty()) {
                self.companion(rule, source, name);
            }
            return;
        }
        let key = (source, rule.protocols.clone());
        if let Some(&earlier) = self.rule_of.get(&key) {
            let earlier = &mut self.rules[earlier];
            earlier.entries.extend(compiled.entries);
            earlier.own_devices.extend(compiled.own_devices);
            return;
        }
        self.rule_of.insert(key, self.rules.len());
        self.rules.push(compiled);
    }

    /// The rules that accompany a grant of a capability of which both ends need to know.
    fn companion(&mut self, rule: &Rule, source: usize, name: &str) {
        let capabilities = Some(Arc::new(CapMap::from([(name.to_owned(), Vec::new())])));
        let mut servers = Collector::default();
        let others = |alias: &&Alias| **alias != Alias::OwnDevices;
        let destinations = || rule.destinations.iter().map(|(alias, _)| &alias.value);
        for alias in destinations().filter(others) {
            servers.set(&self.source_set(alias));
        }
        let servers = servers.finish();
        if !servers.is_empty() {
            let granted = rule.sources.iter().map(|alias| match &alias.value {
                Alias::DangerAll => &Alias::Any,
                alias => alias,
            });
            let entries = granted.map(|alias| (self.target(alias, &[]), Vec::new()));
            let entries = entries.collect();
            let source = self.source(servers);
            self.rules.push(CompiledRule {
                source,
                protocols: Vec::new(),
                entries,
                own_devices: Vec::new(),
                capabilities: capabilities.clone(),
                companion: Some(Companion::Reversed),
            });
        }
        if destinations().any(|alias| *alias == Alias::OwnDevices) {
            self.rules.push(CompiledRule {
                source,
                protocols: Vec::new(),
                entries: Vec::new(),
                own_devices: Vec::new(),
                capabilities,
                companion: Some(Companion::OwnDevices),
            });
        }
    }

    fn members(&mut self, alias: &Alias) -> Bits {
        if let Some(known) = self.members.get(alias) {
            return known.clone();
        }
        let members = self.nodes_where(|node| self.people.names_node(alias, &node.facts));
        self.members.insert(alias.clone(), members.clone());
        members
    }

    fn source_set(&mut self, alias: &Alias) -> AddressSet {
        match alias {
            Alias::Any => self.tailnet.clone(),
            Alias::DangerAll => AddressSet::everything(),
            Alias::Net(net) => AddressSet::of_net(net),
            _ => {
                let members = self.members(alias);
                addresses_of(self.nodes, &members)
            }
        }
    }

    fn source(&mut self, set: AddressSet) -> usize {
        if let Some(&known) = self.source_of.get(&set) {
            return known;
        }
        let own = |node: &Node| node.addresses.iter().any(|address| set.contains(*address));
        let source = Source {
            texts: set.texts(),
            members: self.nodes_where(own),
            nodes: self.nodes_where(|node| node.extent.overlaps(&set)),
            routes: self.routes_where(|route| set.overlaps_net(route)),
            set: set.clone(),
        };
        self.sources.push(source);
        self.source_of.insert(set, self.sources.len() - 1);
        self.sources.len() - 1
    }

    fn target(&mut self, alias: &Alias, via: &[String]) -> usize {
        let key = (alias.clone(), via.to_vec());
        if let Some(&known) = self.target_of.get(&key) {
            return known;
        }
        let target = match self.anywhere(alias) {
            target if via.is_empty() => target,
            target => self.through(target, via),
        };
        self.targets.push(target);
        self.target_of.insert(key, self.targets.len() - 1);
        self.targets.len() - 1
    }

    /// A destination, whoever leads there.
    fn anywhere(&mut self, alias: &Alias) -> Target {
        let (kind, set) = match alias {
            Alias::Any => (TargetKind::Any, AddressSet::everything()),
            Alias::Net(net) => (TargetKind::Net(*net), AddressSet::of_net(net)),
            Alias::Internet => {
                let set = internet();
                (TargetKind::Internet(set.texts()), set)
            }
            _ => {
                let members = self.members(alias);
                let set = addresses_of(self.nodes, &members);
                (TargetKind::Members(members), set)
            }
        };
        if let TargetKind::Internet(_) = kind {
            return Target {
                nodes: self.nodes_where(|node| node.approved.iter().any(is_exit)),
                routes: Bits::new(self.routes.len()),
                kind,
                set,
            };
        }
        Target {
            nodes: self.nodes_where(|node| node.extent.overlaps(&set)),
            routes: self.routes_where(|route| set.overlaps_net(route)),
            kind,
            set,
        }
    }

    /// The same destination, through routers with one of the tags only. Exit nodes don't count as such.
    fn through(&self, target: Target, via: &[String]) -> Target {
        let is_tagged = |node: &Node| node.facts.tags.iter().any(|tag| via.contains(tag));
        let set = target.set;
        Target {
            kind: TargetKind::Via {
                texts: match target.kind {
                    TargetKind::Net(net) => vec![net_text(&net)],
                    TargetKind::Internet(texts) => texts,
                    _ => set.texts(),
                },
                tagged: self.nodes_where(is_tagged),
            },
            nodes: self.nodes_where(|node| is_tagged(node) && node.behind.overlaps(&set)),
            routes: self.routes_where(|route| set.overlaps_net(route)),
            set,
        }
    }

    fn nodes_where(&self, holds: impl Fn(&Node) -> bool) -> Bits {
        let nodes = self.nodes.iter().enumerate();
        let members = nodes.filter(|(_, node)| holds(node)).map(|(at, _)| at);
        Bits::collect(self.nodes.len(), members)
    }

    fn routes_where(&self, holds: impl Fn(&IpNet) -> bool) -> Bits {
        let routes = self.routes.iter().enumerate();
        let members = routes.filter(|(_, route)| holds(route)).map(|(at, _)| at);
        Bits::collect(self.routes.len(), members)
    }
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

/// `*` as a source: the addresses that nodes can have, and every approved subnet route.
fn tailnet(routes: &[IpNet]) -> AddressSet {
    let mut set = Collector::default();
    // ChromeOS uses 100.115.92.0/23 for its virtual machines.
    set.v4_range([100, 64, 0, 0].into(), [100, 115, 91, 255].into());
    set.v4_range([100, 115, 94, 0].into(), [100, 127, 255, 255].into());
    set.net(&ipnet::Ipv6Net::new_assert(V6_PREFIX.into(), 48).into());
    for route in routes {
        set.net(route);
    }
    set.finish()
}

const V6_PREFIX: [u16; 8] = [0xfd7a, 0x115c, 0xa1e0, 0, 0, 0, 0, 0];

/// `autogroup:internet`: all but private, link-local, multicast and tailnet addresses.
fn internet() -> AddressSet {
    const NOT_V4: [([u8; 4], u8); 9] = [
        ([0, 0, 0, 0], 8),
        ([10, 0, 0, 0], 8),
        ([100, 64, 0, 0], 10),
        ([127, 0, 0, 0], 8),
        ([169, 254, 0, 0], 16),
        ([172, 16, 0, 0], 12),
        ([192, 168, 0, 0], 16),
        ([224, 0, 0, 0], 4),
        ([240, 0, 0, 0], 4),
    ];
    let mut excluded = Collector::default();
    for (address, length) in NOT_V4 {
        excluded.net(&ipnet::Ipv4Net::new_assert(address.into(), length).into());
    }
    // Of IPv6, only global unicast (2000::/3) is the internet.
    let mut set = Collector::default();
    set.v4_gaps(&excluded.finish());
    set.net(&ipnet::Ipv6Net::new_assert([0x2000, 0, 0, 0, 0, 0, 0, 0].into(), 3).into());
    set.finish()
}
