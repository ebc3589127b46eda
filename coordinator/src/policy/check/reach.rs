//! Who reaches whom by one of some protocols at one port.
//!
//! Nodes that no source, or no destination, of the policy tells apart are judged once: a test over thousands of nodes costs as much as
//! there are kinds of them, and each node is looked at once for all tests.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::rc::Rc;

use lowroad_wire::control::UserId;

use super::super::access::DEFAULT_PROTOCOLS;
use super::super::addresses::AddressSet;
use super::super::alias::Alias;
use super::super::bits::Bits;
use super::super::compile::{CompiledRule, Node, TargetKind};
use super::super::view::Parts;

/// What tests ask of one compiled policy.
pub(super) struct Reach<'a> {
    parts: &'a Parts,
    sources: Side,
    targets: Side,
    /// Ends that aliases have been found to mean, with the owners told apart or not.
    from: HashMap<(Alias, bool), Rc<BTreeSet<End>>>,
    to: HashMap<Alias, Rc<BTreeSet<End>>>,
}

/// Which sources, or targets, of the policy nodes are in.
#[derive(Default)]
struct Side {
    /// Positions of those that an address of each family is in.
    kinds: Vec<[Bits; 2]>,
    known: HashMap<[Bits; 2], usize>,
    /// Of the nodes that were asked for, by their positions.
    of_nodes: HashMap<usize, usize>,
}

impl Side {
    fn kind(&mut self, is_in: [Bits; 2]) -> usize {
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

/// The rules that allow one of some protocols at a port.
pub(super) struct Ways {
    /// By target: positions of the sources that are let in.
    sources: HashMap<usize, Bits>,
    /// Positions of sources that are let to devices of the same user.
    to_own_devices: Option<Bits>,
}

/// An end that connections come to.
pub(super) struct Door {
    /// Positions of the sources that are let in, apart for IPv4 and IPv6: families don't mix.
    sources: [Bits; 2],
    end: End,
}

impl Ways {
    fn new(parts: &Parts, protocols: &[u8], port: u16) -> Self {
        let allows = |rule: &CompiledRule| match rule.protocols.as_slice() {
            [] => DEFAULT_PROTOCOLS.iter().any(|own| protocols.contains(own)),
            listed => listed.iter().any(|own| protocols.contains(own)),
        };
        let mut ways = Self {
            sources: HashMap::new(),
            to_own_devices: None,
        };
        let rules = parts.rules.iter();
        for rule in rules.filter(|rule| rule.capabilities.is_none() && allows(rule)) {
            for (target, ports) in &rule.entries {
                if ports.iter().any(|range| range.contains(port)) {
                    let sources = ways.sources.entry(*target).or_default();
                    sources.insert(rule.source);
                }
            }
            if rule.own_devices.iter().any(|range| range.contains(port)) {
                let own = ways.to_own_devices.get_or_insert_default();
                own.insert(rule.source);
            }
        }
        ways
    }

    /// Whether any leads from one end to the other, in either family.
    pub(super) fn lead(&self, reach: &Reach, from: &End, to: &Door) -> bool {
        let same_user = from.owner.is_some() && from.owner == to.end.owner;
        let begins = &reach.sources.kinds[from.kind];
        (0..2).any(|family| {
            let own = self.to_own_devices.as_ref();
            begins[family].overlaps(&to.sources[family])
                || same_user
                    && to.end.has[family]
                    && own.is_some_and(|own| begins[family].overlaps(own))
        })
    }
}

impl<'a> Reach<'a> {
    pub(super) fn new(parts: &'a Parts) -> Self {
        Self {
            parts,
            sources: Side::default(),
            targets: Side::default(),
            from: HashMap::new(),
            to: HashMap::new(),
        }
    }

    pub(super) fn ways(&self, protocols: &[u8], port: u16) -> Ways {
        Ways::new(self.parts, protocols, port)
    }

    /// The distinct ends that connections from an alias have, by these ways to these ends.
    pub(super) fn sources(&mut self, alias: &Alias, ways: &Ways, to: &[Door]) -> Rc<BTreeSet<End>> {
        let owned = ways.to_own_devices.is_some() && to.iter().any(|to| to.end.owner.is_some());
        let key = (alias.clone(), owned);
        if let Some(known) = self.from.get(&key) {
            return known.clone();
        }
        let sources = &self.parts.sources;
        let sets = || {
            let sources = sources.iter();
            sources.map(|source| (Some(&source.members), &source.set))
        };
        let mut ends = ends(self.parts, &mut self.sources, alias, sets);
        if !owned {
            ends = ends
                .into_iter()
                .map(|end| End { owner: None, ..end })
                .collect();
        }
        let ends = Rc::new(ends);
        self.from.insert(key, ends.clone());
        ends
    }

    /// The distinct ends that connections to an alias have, by these ways.
    pub(super) fn destinations(&mut self, alias: &Alias, ways: &Ways) -> Vec<Door> {
        let ends = match self.to.get(alias) {
            Some(known) => known.clone(),
            None => {
                let targets = &self.parts.targets;
                let sets = || {
                    targets.iter().map(|target| match target.kind {
                        // Its nodes are the routers.
                        TargetKind::Via { .. } => (None, &target.set),
                        _ => (Some(&target.nodes), &target.set),
                    })
                };
                let ends = Rc::new(ends(self.parts, &mut self.targets, alias, sets));
                self.to.insert(alias.clone(), ends.clone());
                ends
            }
        };
        let doors = ends.iter().map(|end| {
            let sources = [0, 1].map(|family| {
                let mut sources = Bits::default();
                let targets = self.targets.kinds[end.kind][family].iter();
                let ways = targets.filter_map(|target| ways.sources.get(&target));
                ways.for_each(|let_in| sources.unite(let_in));
                sources
            });
            Door {
                sources,
                end: end.clone(),
            }
        });
        doors.collect()
    }
}

/// The ends that an alias means. `sets` are all that ends can be in, each with the nodes, where that is known, of which it may have an address.
fn ends<'s, S>(parts: &Parts, side: &mut Side, alias: &Alias, sets: impl Fn() -> S) -> BTreeSet<End>
where
    S: Iterator<Item = (Option<&'s Bits>, &'s AddressSet)>,
{
    let is_in = |addresses: &[IpAddr], node: Option<usize>| {
        let mut is_in = [Bits::default(), Bits::default()];
        for (at, (nodes, set)) in sets().enumerate() {
            let may_be = |(node, nodes): (usize, &Bits)| nodes.contains(node);
            if node.zip(nodes).is_none_or(may_be) {
                let inside = addresses.iter().filter(|address| set.contains(**address));
                inside.for_each(|address| is_in[usize::from(address.is_ipv6())].insert(at));
            }
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
        let kind = side.kind(is_in(&address, None));
        let mut nodes = parts.nodes.live();
        let node = nodes.find(|(_, node)| node.addresses.contains(&address[0]));
        let owner = node.and_then(|(_, node)| node.facts.owner());
        return BTreeSet::from([end(kind, &address, owner)]);
    }
    let mut ends = BTreeSet::new();
    for at in nodes_of(parts, alias) {
        let node: &Node = &parts.nodes[at];
        let kind = match side.of_nodes.get(&at) {
            Some(kind) => *kind,
            None => {
                let kind = side.kind(is_in(&node.addresses, Some(at)));
                side.of_nodes.insert(at, kind);
                kind
            }
        };
        ends.insert(end(kind, &node.addresses, node.facts.owner()));
    }
    ends
}

/// Positions of the nodes that an alias names.
fn nodes_of(parts: &Parts, alias: &Alias) -> Vec<usize> {
    let of_users = |users: &mut dyn Iterator<Item = UserId>| {
        let devices = users.filter_map(|user| parts.devices.get(&user));
        devices.flat_map(|own| own.iter()).collect()
    };
    match alias {
        Alias::User(name) => of_users(&mut parts.people.user(name).into_iter()),
        Alias::Group(name) => of_users(&mut parts.people.members(name)),
        alias => {
            let nodes = parts.nodes.live();
            let named = nodes.filter(|(_, node)| parts.people.names_node(alias, &node.facts));
            named.map(|(at, _)| at).collect()
        }
    }
}
