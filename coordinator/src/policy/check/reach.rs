//! Who reaches whom by one of some protocols at one port.
//!
//! Nodes that no source, or no destination, of the policy tells apart are judged once: a test over thousands of nodes costs as much as
//! there are kinds of them, and each node is looked at once for all tests.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::rc::Rc;

use lowroad_wire::control::{PortRange, UserId};

use super::super::access::DEFAULT_PROTOCOLS;
use super::super::addresses::{AddressSet, Ranges};
use super::super::alias::{Alias, has_ports};
use super::super::bits::Bits;
use super::super::budget::Budget;
use super::super::compile::{CompiledRule, Named, Node, TargetKind};
use super::super::view::Parts;

/// What tests ask of one compiled policy.
pub(super) struct Reach<'a> {
    parts: &'a Parts,
    /// Whether it was compiled for tests: sources and targets have members by name, beside their sets.
    by_name: bool,
    named: Named<'a>,
    with_address: HashMap<IpAddr, usize>,
    sources: Side,
    targets: Side,
    /// Ends that aliases have been found to mean.
    from: HashMap<Alias, Rc<Sources>>,
    to: HashMap<Alias, Rc<BTreeSet<End>>>,
    /// Positions of the rules that are about each target, and of the entries there.
    rules_of: Vec<Vec<(u32, u32)>>,
    own_devices: Vec<OwnDevices<'a>>,
    /// By kind of destination, and protocols.
    ways: HashMap<(usize, Vec<u8>), Rc<[Ways; 2]>>,
    /// How many ranges of ports those are.
    held: usize,
    pub(super) budget: &'a Budget,
}

/// Positions of sources, and the ports that are open to each.
type Ways = Vec<(usize, Ranges<u16>)>;

/// The ports that a rule opens among the devices of a user.
struct OwnDevices<'a> {
    rule: &'a CompiledRule,
    ports: Ranges<u16>,
}

fn is_by(rule: &CompiledRule, protocols: &[u8]) -> bool {
    let mut own = match rule.protocols.as_slice() {
        [] => DEFAULT_PROTOCOLS.iter(),
        listed => listed.iter(),
    };
    own.any(|own| protocols.contains(own))
}

fn numbers(ports: &[PortRange]) -> impl Iterator<Item = (u16, u16)> + '_ {
    ports.iter().map(|range| (range.first, range.last))
}

/// Which sources, or targets, of the policy nodes are in.
#[derive(Default)]
struct Side {
    /// Positions of those that an address of each family is in.
    kinds: Vec<Rc<[Bits; 2]>>,
    known: HashMap<Rc<[Bits; 2]>, usize>,
    /// Of the nodes that were asked for, by their positions.
    of_nodes: HashMap<usize, usize>,
}

impl Side {
    fn kind(&mut self, is_in: [Bits; 2]) -> usize {
        let is_in = Rc::new(is_in);
        let new = self.kinds.len();
        let kind = *self.known.entry(is_in.clone()).or_insert(new);
        if kind == new {
            self.kinds.push(is_in);
        }
        kind
    }
}

/// One end of connections.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct End {
    kind: usize,
    /// Whether it has an address of each family.
    has: [bool; 2],
    owner: Option<UserId>,
}

/// The ends that connections come from.
#[derive(Default)]
pub(super) struct Sources {
    /// By kind: their owners.
    kinds: BTreeMap<usize, BTreeSet<Option<UserId>>>,
    /// All that any of them is in.
    any: [Bits; 2],
}

impl Sources {
    pub(super) fn is_empty(&self) -> bool {
        self.kinds.is_empty()
    }
}

/// An end that connections come to.
pub(super) struct Door {
    /// Positions of the sources that are let in, apart for IPv4 and IPv6: families don't mix.
    sources: Rc<[Bits; 2]>,
    /// And of those that are let in from devices of the same user.
    own: Rc<Bits>,
    end: End,
}

impl Door {
    /// Whether all ends, or any of them, are let in, in either family.
    pub(super) fn lets_in(&self, reach: &Reach, from: &Sources, all: bool) -> bool {
        let is_let_in = |is_in: &[Bits; 2]| (0..2).any(|at| is_in[at].overlaps(&self.sources[at]));
        let own =
            |is_in: &[Bits; 2]| (0..2).any(|at| self.end.has[at] && is_in[at].overlaps(&self.own));
        let owner = self.end.owner;
        let kinds = || {
            reach.budget.spend(
                from.kinds.len() * (1 + self.sources[0].weight() + self.sources[1].weight()) / 4,
            );
            let kinds = from.kinds.iter();
            kinds.map(|(kind, owners)| (&*reach.sources.kinds[*kind], owners))
        };
        reach.budget.spend(1);
        if all {
            return kinds().all(|(is_in, owners)| {
                let is_own = || owner.is_some() && owners.len() == 1 && owners.contains(&owner);
                is_let_in(is_in) || is_own() && own(is_in)
            });
        }
        let is_own = |owners: &BTreeSet<_>| owner.is_some() && owners.contains(&owner);
        is_let_in(&from.any)
            || owner.is_some()
                && own(&from.any)
                && kinds().any(|(is_in, owners)| is_own(owners) && own(is_in))
    }
}

impl<'a> Reach<'a> {
    pub(super) fn new(parts: &'a Parts, by_name: bool, budget: &'a Budget) -> Self {
        let mut rules_of = vec![Vec::new(); parts.targets.len()];
        let mut own_devices = Vec::new();
        for (at, rule) in (0..).zip(parts.rules.iter()) {
            if rule.capabilities.is_none() {
                for (entry, (target, _)) in (0..).zip(&rule.entries) {
                    rules_of[*target].push((at, entry));
                }
                if !rule.own_devices.is_empty() {
                    let ports = Ranges::new(numbers(&rule.own_devices).collect());
                    own_devices.push(OwnDevices { rule, ports });
                }
            }
        }
        let mut with_address = HashMap::new();
        for (at, node) in parts.nodes.live() {
            for address in &node.addresses {
                with_address.entry(*address).or_insert(at);
            }
        }
        Self {
            parts,
            by_name,
            named: Named::new(&parts.people, &parts.nodes, &parts.devices),
            with_address,
            sources: Side::default(),
            targets: Side::default(),
            from: HashMap::new(),
            to: HashMap::new(),
            rules_of,
            own_devices,
            ways: HashMap::new(),
            held: 0,
            budget,
        }
    }

    /// The distinct ends that connections from an alias have.
    pub(super) fn sources(&mut self, alias: &Alias) -> Rc<Sources> {
        let key = alias.canonical();
        if let Some(known) = self.from.get(&key) {
            return known.clone();
        }
        let regions = self.parts.sources.iter().map(|source| Region {
            set: &source.set,
            nodes: Some(&source.nodes),
            named: Some(&source.members).filter(|_| self.by_name),
        });
        let regions: Vec<Region> = regions.collect();
        let nodes = self.nodes_of(alias);
        let mut found = Sources::default();
        let budget = self.budget;
        for end in ends(
            self.parts,
            &mut self.sources,
            alias,
            &nodes,
            &regions,
            budget,
        ) {
            let owners = found.kinds.entry(end.kind).or_default();
            owners.insert(end.owner);
        }
        for kind in found.kinds.keys() {
            let is_in = &self.sources.kinds[*kind];
            (0..2).for_each(|family| found.any[family].unite(&is_in[family]));
        }
        let found = Rc::new(found);
        self.from.insert(key, found.clone());
        found
    }

    /// The distinct ends that connections to an alias have, by one of some protocols at a port. Those without ports ignore it, as nodes do with ICMP.
    pub(super) fn destinations(&mut self, alias: &Alias, protocols: &[u8], port: u16) -> Vec<Door> {
        let port = protocols
            .iter()
            .any(|number| has_ports(*number))
            .then_some(port);
        let ends = self.ends_of(alias);
        let mut of_kind: HashMap<usize, Rc<[Bits; 2]>> = HashMap::new();
        let own = Rc::new(self.own(protocols, port));
        let doors = ends.iter().map(|end| Door {
            sources: of_kind
                .entry(end.kind)
                .or_insert_with(|| Rc::new(self.let_in(end.kind, protocols, port)))
                .clone(),
            own: own.clone(),
            end: end.clone(),
        });
        doors.collect()
    }

    fn ends_of(&mut self, alias: &Alias) -> Rc<BTreeSet<End>> {
        let key = alias.canonical();
        if let Some(known) = self.to.get(&key) {
            return known.clone();
        }
        let regions = self.parts.targets.iter().map(|target| Region {
            set: &target.set,
            nodes: match target.kind {
                // Its nodes are the routers.
                TargetKind::Via { .. } => None,
                _ => Some(&target.nodes),
            },
            named: match &target.kind {
                TargetKind::Members(members) if self.by_name => Some(members),
                _ => None,
            },
        });
        let regions: Vec<Region> = regions.collect();
        let nodes = self.nodes_of(alias);
        let budget = self.budget;
        let ends = Rc::new(ends(
            self.parts,
            &mut self.targets,
            alias,
            &nodes,
            &regions,
            budget,
        ));
        self.to.insert(key, ends.clone());
        ends
    }

    /// The sources that a kind of end lets in.
    fn let_in(&mut self, kind: usize, protocols: &[u8], port: Option<u16>) -> [Bits; 2] {
        let ways = self.ways(kind, protocols);
        let looked_at: usize = ways.iter().map(Vec::len).sum();
        self.budget.spend(1 + looked_at / 8);
        [0, 1].map(|family| {
            let open = ways[family]
                .iter()
                .filter(|(_, ports)| port.is_none_or(|port| ports.contains(port)));
            open.map(|(source, _)| *source).collect()
        })
    }

    /// Those that an end lets in of its owner's devices.
    fn own(&self, protocols: &[u8], port: Option<u16>) -> Bits {
        self.budget.spend(1 + self.own_devices.len() / 8);
        let own = self.own_devices.iter();
        let open = own.filter(|own| {
            port.is_none_or(|port| own.ports.contains(port)) && is_by(own.rule, protocols)
        });
        open.map(|own| own.rule.source).collect()
    }

    /// By some protocols, what a kind of end lets in: apart for IPv4 and IPv6.
    fn ways(&mut self, kind: usize, protocols: &[u8]) -> Rc<[Ways; 2]> {
        /// More are found again when they are needed.
        const MOST: usize = 1 << 17;
        let key = (kind, protocols.to_vec());
        if let Some(known) = self.ways.get(&key) {
            return known.clone();
        }
        let is_in = self.targets.kinds[kind].clone();
        let ways = [0, 1].map(|family| {
            let mut ports: BTreeMap<usize, Vec<(u16, u16)>> = BTreeMap::new();
            for target in is_in[family].iter() {
                if self.budget.is_spent() {
                    break;
                }
                let rules_of = &self.rules_of[target];
                self.budget.spend(1 + rules_of.len() / 4);
                for (rule, entry) in rules_of {
                    let rule = &self.parts.rules[*rule as usize];
                    if is_by(rule, protocols) {
                        let opened = &rule.entries[*entry as usize].1;
                        self.budget.spend(opened.len() / 8);
                        let of_source = ports.entry(rule.source).or_default();
                        of_source.extend(numbers(opened));
                    }
                }
            }
            let ways = ports.into_iter();
            ways.map(|(source, ranges)| (source, Ranges::new(ranges)))
                .collect::<Ways>()
        });
        let ranges = ways
            .iter()
            .flatten()
            .map(|(_, ports)| 1 + ports.iter().count());
        let held: usize = ranges.sum();
        self.budget.spend(held / 8);
        if self.held + held > MOST {
            self.ways = HashMap::new();
            self.held = 0;
        }
        self.held += held + 1;
        let ways = Rc::new(ways);
        self.ways.insert(key, ways.clone());
        ways
    }

    /// Positions of the nodes that an alias means.
    fn nodes_of(&self, alias: &Alias) -> Vec<usize> {
        match alias {
            Alias::Net(net) => {
                let node = self.with_address.get(&net.addr());
                node.into_iter().copied().collect()
            }
            alias => self.named.of(alias),
        }
    }
}

/// What ends can be in.
#[derive(Clone, Copy)]
struct Region<'s> {
    set: &'s AddressSet,
    /// Nodes that may have an address in the set; `None`: all.
    nodes: Option<&'s Bits>,
    /// Nodes all addresses of which are in it, whatever the set is.
    named: Option<&'s Bits>,
}

impl Region<'_> {
    fn has(&self, address: IpAddr, node: Option<usize>) -> bool {
        let named = node.zip(self.named);
        named.is_some_and(|(node, named)| named.contains(node)) || self.set.contains(address)
    }
}

/// The ends that an alias means, which are `nodes` if it isn't an address. `regions` are all that ends can be in.
fn ends(
    parts: &Parts,
    side: &mut Side,
    alias: &Alias,
    nodes: &[usize],
    regions: &[Region],
    budget: &Budget,
) -> BTreeSet<End> {
    budget.spend(1 + (nodes.len() + regions.len()) / 8);
    let is_in =
        |addresses: &[IpAddr], node: Option<usize>, among: &mut dyn Iterator<Item = usize>| {
            let mut is_in = [Bits::default(), Bits::default()];
            for at in among {
                let inside = addresses.iter().filter(|own| regions[at].has(**own, node));
                inside.for_each(|own| is_in[usize::from(own.is_ipv6())].insert(at));
            }
            is_in
        };
    let end = |kind, addresses: &[IpAddr], owner| End {
        kind,
        has: [false, true].map(|v6| addresses.iter().any(|own| own.is_ipv6() == v6)),
        owner,
    };
    if let Alias::Net(net) = alias {
        let address = [net.addr()];
        let node = nodes.first().copied();
        let kind = side.kind(is_in(&address, node, &mut (0..regions.len())));
        let owner = node.and_then(|at| parts.nodes[at].facts.owner());
        return BTreeSet::from([end(kind, &address, owner)]);
    }
    let new = nodes.iter().copied();
    let new: Vec<usize> = new.filter(|at| !side.of_nodes.contains_key(at)).collect();
    for block in new.chunks(BLOCK) {
        let block: Bits = block.iter().copied().collect();
        for (at, among) in candidates(&block, regions, budget) {
            if budget.is_spent() {
                return BTreeSet::new();
            }
            budget.spend(1 + among.iter().count() / 2);
            let kind = side.kind(is_in(
                &parts.nodes[at].addresses,
                Some(at),
                &mut among.iter(),
            ));
            side.of_nodes.insert(at, kind);
        }
    }
    let ends = nodes.iter().map(|at| {
        let node: &Node = &parts.nodes[*at];
        end(side.of_nodes[at], &node.addresses, node.facts.owner())
    });
    ends.collect()
}

/// So many nodes are looked at together, with the regions that each may be in.
const BLOCK: usize = 256;

/// For each of some nodes the positions of the regions in which it may have an address.
fn candidates(nodes: &Bits, regions: &[Region], budget: &Budget) -> BTreeMap<usize, Bits> {
    let mut candidates: BTreeMap<_, _> = nodes.iter().map(|at| (at, Bits::default())).collect();
    budget.spend(regions.len());
    for (at, region) in regions.iter().enumerate() {
        let mut there = region
            .nodes
            .map_or_else(|| nodes.clone(), |may| nodes.and(may));
        if let Some(named) = region.named {
            there.unite(&nodes.and(named));
        }
        for node in there.iter() {
            candidates.entry(node).or_default().insert(at);
        }
    }
    candidates
}
