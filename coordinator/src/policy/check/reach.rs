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
use super::super::alias::Alias;
use super::super::bits::Bits;
use super::super::compile::{CompiledRule, Named, Node, TargetKind};
use super::super::view::Parts;

/// What tests ask of one compiled policy.
pub(super) struct Reach<'a> {
    parts: &'a Parts,
    /// Whether it was compiled for tests: sources have members by name, beside their sets.
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
    /// Of the targets that were asked for.
    openings: HashMap<usize, Rc<[Opening<'a>]>>,
    own_devices: Vec<Opening<'a>>,
}

/// The ports that one rule opens.
struct Opening<'a> {
    source: usize,
    protocols: &'a [u8],
    ports: Ranges<u16>,
}

impl<'a> Opening<'a> {
    fn new<'p>(rule: &'a CompiledRule, ports: impl Iterator<Item = &'p PortRange>) -> Self {
        Self {
            source: rule.source,
            protocols: match rule.protocols.as_slice() {
                [] => &DEFAULT_PROTOCOLS,
                listed => listed,
            },
            ports: Ranges::new(ports.map(|range| (range.first, range.last)).collect()),
        }
    }

    fn is_for(&self, protocols: &[u8], port: u16) -> bool {
        let mut own = self.protocols.iter();
        self.ports.contains(port) && own.any(|own| protocols.contains(own))
    }
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
    sources: [Bits; 2],
    /// And of those that are let in from devices of the same user.
    own: [Bits; 2],
    end: End,
}

impl Door {
    /// Whether all ends, or any of them, are let in, in either family.
    pub(super) fn lets_in(&self, reach: &Reach, from: &Sources, all: bool) -> bool {
        let overlap =
            |is_in: &[Bits; 2], of: &[Bits; 2]| (0..2).any(|at| is_in[at].overlaps(&of[at]));
        let own = |kind: usize| overlap(&reach.sources.kinds[kind], &self.own);
        let owner = self.end.owner;
        let mut kinds = from.kinds.iter();
        if all {
            return kinds.all(|(&kind, owners)| {
                let is_own = || owner.is_some() && owners.len() == 1 && owners.contains(&owner);
                overlap(&reach.sources.kinds[kind], &self.sources) || is_own() && own(kind)
            });
        }
        let is_own = |owners: &BTreeSet<_>| owner.is_some() && owners.contains(&owner);
        overlap(&from.any, &self.sources)
            || overlap(&from.any, &self.own)
                && kinds.any(|(&kind, owners)| is_own(owners) && own(kind))
    }
}

impl<'a> Reach<'a> {
    pub(super) fn new(parts: &'a Parts, by_name: bool) -> Self {
        let mut rules_of = vec![Vec::new(); parts.targets.len()];
        let mut own_devices = Vec::new();
        for (at, rule) in (0..).zip(parts.rules.iter()) {
            if rule.capabilities.is_none() {
                for (entry, (target, _)) in (0..).zip(&rule.entries) {
                    rules_of[*target].push((at, entry));
                }
                if !rule.own_devices.is_empty() {
                    own_devices.push(Opening::new(rule, rule.own_devices.iter()));
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
            openings: HashMap::new(),
            own_devices,
        }
    }

    /// The distinct ends that connections from an alias have.
    pub(super) fn sources(&mut self, alias: &Alias) -> Rc<Sources> {
        if let Some(known) = self.from.get(alias) {
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
        for end in ends(self.parts, &mut self.sources, alias, &nodes, &regions) {
            let owners = found.kinds.entry(end.kind).or_default();
            owners.insert(end.owner);
        }
        for kind in found.kinds.keys() {
            let is_in = &self.sources.kinds[*kind];
            (0..2).for_each(|family| found.any[family].unite(&is_in[family]));
        }
        let found = Rc::new(found);
        self.from.insert(alias.clone(), found.clone());
        found
    }

    /// The distinct ends that connections to an alias have, by one of some protocols at a port.
    pub(super) fn destinations(&mut self, alias: &Alias, protocols: &[u8], port: u16) -> Vec<Door> {
        let ends = match self.to.get(alias) {
            Some(known) => known.clone(),
            None => {
                let regions = self.parts.targets.iter().map(|target| Region {
                    set: &target.set,
                    nodes: match target.kind {
                        // Its nodes are the routers.
                        TargetKind::Via { .. } => None,
                        _ => Some(&target.nodes),
                    },
                    named: None,
                });
                let regions: Vec<Region> = regions.collect();
                let nodes = self.nodes_of(alias);
                let ends = ends(self.parts, &mut self.targets, alias, &nodes, &regions);
                let ends = Rc::new(ends);
                self.to.insert(alias.clone(), ends.clone());
                ends
            }
        };
        let doors = ends.iter().map(|end| self.door(end, protocols, port));
        doors.collect()
    }

    fn door(&mut self, end: &End, protocols: &[u8], port: u16) -> Door {
        let kind = self.targets.kinds[end.kind].clone();
        let sources = [0, 1].map(|family| {
            let mut sources = Bits::default();
            for target in kind[family].iter() {
                let openings = self.openings(target);
                let open = openings.iter().filter(|rule| rule.is_for(protocols, port));
                open.for_each(|rule| sources.insert(rule.source));
            }
            sources
        });
        let mut own = Bits::default();
        if end.owner.is_some() {
            let open = self.own_devices.iter();
            let open = open.filter(|rule| rule.is_for(protocols, port));
            open.for_each(|rule| own.insert(rule.source));
        }
        let own_of = |has: bool| if has { own.clone() } else { Bits::default() };
        Door {
            sources,
            own: end.has.map(own_of),
            end: end.clone(),
        }
    }

    fn openings(&mut self, target: usize) -> Rc<[Opening<'a>]> {
        let parts = self.parts;
        let rules_of = &self.rules_of;
        let known = self.openings.entry(target).or_insert_with(|| {
            let by_rule = rules_of[target].chunk_by(|(one, _), (other, _)| one == other);
            let opening = |entries: &[(u32, u32)]| {
                let rule = &parts.rules[entries[0].0 as usize];
                let ports = entries
                    .iter()
                    .flat_map(|(_, at)| &rule.entries[*at as usize].1);
                Opening::new(rule, ports)
            };
            by_rule.map(opening).collect()
        });
        known.clone()
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
    /// Nodes that may have an address in it; `None`: all.
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
) -> BTreeSet<End> {
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
    let new: Bits = new.filter(|at| !side.of_nodes.contains_key(at)).collect();
    for (at, among) in candidates(&new, regions) {
        let kind = side.kind(is_in(
            &parts.nodes[at].addresses,
            Some(at),
            &mut among.iter(),
        ));
        side.of_nodes.insert(at, kind);
    }
    let ends = nodes.iter().map(|at| {
        let node: &Node = &parts.nodes[*at];
        end(side.of_nodes[at], &node.addresses, node.facts.owner())
    });
    ends.collect()
}

/// For each of some nodes the positions of the regions in which it may have an address.
fn candidates(nodes: &Bits, regions: &[Region]) -> BTreeMap<usize, Bits> {
    let mut candidates: BTreeMap<_, _> = nodes.iter().map(|at| (at, Bits::default())).collect();
    for (at, region) in regions.iter().enumerate() {
        let mut there = region.nodes.unwrap_or(nodes).clone();
        there.intersect(nodes);
        for node in there.iter() {
            candidates.entry(node).or_default().insert(at);
        }
    }
    candidates
}
