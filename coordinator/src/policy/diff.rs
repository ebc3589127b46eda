//! What a policy would change: between whom which ports open and close, by meaning, not by text.
//!
//! Nodes and subnets that the rules of both policies cannot tell apart are judged once, so that a thousand nodes cost as much as
//! they differ.

mod ends;
mod logins;
mod rows;

use std::collections::HashMap;

use lowroad_wire::control::NodeId;

use super::access::Access;
use super::bits::Bits;
use super::compile::{Target, TargetKind};
use super::view::{CompiledTailnet, Parts};
use ends::{Class, Ends, Sides};

/// What changes between two policies for the same nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Diff {
    /// What opens first, and what concerns most pairs first.
    pub rows: Vec<DiffRow>,
    /// Pairs of nodes between which something opens, each direction by itself.
    pub opened: u64,
    /// Pairs of nodes between which something closes.
    pub closed: u64,
    /// Logins over SSH that open and close, between nodes: `ssh as root`. They are not among the pairs.
    pub logins: Vec<DiffRow>,
}

/// Everything in `from` may or may no longer do `access` at everything in `to`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiffRow {
    /// It opens; else it closes.
    pub opens: bool,
    /// Where connections begin.
    pub from: DiffEnds,
    /// Where they end. A node is no peer of its own.
    pub to: DiffEnds,
    /// Of these pairs.
    pub users: DiffUsers,
    /// By this family only, although both ends have both.
    pub family: Option<DiffFamily>,
    /// `tcp:22,80-90`, `icmp`, and capabilities by name; of logins, `ssh as NAME`.
    pub access: Vec<String>,
    /// How many pairs of nodes or subnets.
    pub pairs: u64,
}

/// Which pairs of a row are meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DiffUsers {
    /// All.
    Any,
    /// Both are devices of the same user.
    Same,
    /// They are not devices of the same user.
    Different,
}

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DiffFamily {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// Nodes, and what lies behind some.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DiffEnds {
    /// At their own addresses.
    pub nodes: Vec<NodeId>,
    /// Addresses of subnets; as destinations, by the router that leads there.
    pub subnets: Vec<(Option<NodeId>, Vec<String>)>,
    /// The internet behind these exit nodes.
    pub exits: Vec<NodeId>,
}

/// Compares two policies compiled for the same users and nodes: `old` is in force, `new` would be.
pub fn diff(old: &CompiledTailnet, new: &CompiledTailnet) -> Diff {
    let (old, new) = (&*old.settled(), &*new.settled());
    let sides: Sides = [old.parts(), new.parts()];
    let ends = Ends::new(sides);
    let mut judge = Judge::new(sides);
    let mut table = rows::Table::new(sides, &ends);
    for (from, source) in ends.sources.iter().enumerate() {
        let beginning = Beginning::new(source, &judge.given);
        for (to, destination) in ends.destinations.iter().enumerate() {
            judge.pair((from, &beginning), (to, destination), &mut table);
        }
    }
    Diff {
        logins: logins::rows(old, new),
        ..table.finish(&judge.changes)
    }
}

/// What opens and what closes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Change {
    opened: Access,
    closed: Access,
}

/// The first of [`Judge::changes`]: none.
const NO_CHANGE: usize = 0;

/// The rules of both sides, by source.
struct Judge {
    given: [Given; 2],
    accesses: Vec<Access>,
    by_access: HashMap<Access, usize>,
    changes: Vec<Change>,
    by_change: HashMap<Change, usize>,
    /// What follows from being given these by the one side and those by the other.
    known: HashMap<[Vec<usize>; 2], usize>,
}

/// What one side's rules give, by position of their source.
struct Given {
    entries: Vec<Vec<Entry>>,
    /// Between devices of the same user.
    own: Vec<Vec<usize>>,
}

struct Entry {
    target: usize,
    access: usize,
    /// Capabilities hold at nodes, not behind them.
    at_nodes_only: bool,
}

impl Judge {
    fn new(sides: Sides) -> Self {
        let mut judge = Self {
            given: [0, 1].map(|side: usize| Given {
                entries: sides[side].sources.iter().map(|_| Vec::new()).collect(),
                own: sides[side].sources.iter().map(|_| Vec::new()).collect(),
            }),
            accesses: Vec::new(),
            by_access: HashMap::new(),
            changes: vec![Change::default()],
            by_change: HashMap::from([(Change::default(), NO_CHANGE)]),
            known: HashMap::new(),
        };
        for (side, parts) in sides.into_iter().enumerate() {
            judge.read(side, parts);
        }
        judge
    }

    /// Companions follow from their grants: they would only repeat what those say.
    fn read(&mut self, side: usize, parts: &Parts) {
        for rule in parts.rules.iter().filter(|rule| rule.companion.is_none()) {
            let capabilities = rule.capabilities.as_deref().map(Access::of_capabilities);
            for (target, ports) in &rule.entries {
                let leads_through = |target: &Target| matches!(target.kind, TargetKind::Via { .. });
                if capabilities.is_some() && leads_through(&parts.targets[*target]) {
                    continue;
                }
                let access = capabilities
                    .clone()
                    .unwrap_or_else(|| Access::of_ports(&rule.protocols, ports));
                let entry = Entry {
                    target: *target,
                    access: self.access(access),
                    at_nodes_only: capabilities.is_some(),
                };
                self.given[side].entries[rule.source].push(entry);
            }
            if !rule.own_devices.is_empty() {
                let access = capabilities
                    .unwrap_or_else(|| Access::of_ports(&rule.protocols, &rule.own_devices));
                let access = self.access(access);
                self.given[side].own[rule.source].push(access);
            }
        }
    }

    fn access(&mut self, access: Access) -> usize {
        let next = self.accesses.len();
        let at = *self.by_access.entry(access.clone()).or_insert(next);
        if at == next {
            self.accesses.push(access);
        }
        at
    }

    fn pair(
        &mut self,
        (from, beginning): (usize, &Beginning),
        (to, destination): (usize, &Class),
        table: &mut rows::Table,
    ) {
        let general = self.changes_between(beginning, destination, false);
        let has_own = beginning.own.iter().any(|own| !own.is_empty());
        let own = if has_own && destination.is_node() {
            self.changes_between(beginning, destination, true)
        } else {
            general
        };
        if own == general {
            table.add(from, to, DiffUsers::Any, general, &self.changes);
        } else {
            table.add(from, to, DiffUsers::Different, general, &self.changes);
            table.add(from, to, DiffUsers::Same, own, &self.changes);
        }
    }

    /// Per family; `None` if they have no addresses of it in common, by neither side.
    fn changes_between(
        &mut self,
        beginning: &Beginning,
        destination: &Class,
        same_user: bool,
    ) -> [Option<usize>; 2] {
        [0, 1].map(|family| {
            let given = |side: usize| {
                let ways = beginning.ways[family][side].as_ref()?;
                let mut given = ways.to(destination.held(side, family)?, destination);
                if same_user {
                    given.extend_from_slice(&beginning.own[side]);
                }
                given.sort_unstable();
                given.dedup();
                Some(given)
            };
            match (given(0), given(1)) {
                (None, None) => None,
                (old, new) => Some(self.change(old.unwrap_or_default(), new.unwrap_or_default())),
            }
        })
    }

    fn change(&mut self, old: Vec<usize>, new: Vec<usize>) -> usize {
        if old == new {
            return NO_CHANGE;
        }
        let key = [old, new];
        if let Some(&known) = self.known.get(&key) {
            return known;
        }
        let [old, new] = key.each_ref().map(|given| {
            let mut all = Access::default();
            given.iter().for_each(|&at| all.unite(&self.accesses[at]));
            all
        });
        let change = Change {
            opened: new.minus(&old),
            closed: old.minus(&new),
        };
        let next = self.changes.len();
        let at = *self.by_change.entry(change.clone()).or_insert(next);
        if at == next {
            self.changes.push(change);
        }
        self.known.insert(key, at);
        at
    }
}

/// Where connections from one class lead.
struct Beginning {
    /// By family and side.
    ways: [[Option<Ways>; 2]; 2],
    /// What is given between devices of the same user, by side.
    own: [Vec<usize>; 2],
}

impl Beginning {
    fn new(source: &Class, given: &[Given; 2]) -> Self {
        let ways = |family: usize| {
            [0, 1].map(|side: usize| {
                let begins = source.held(side, family)?;
                let entries = begins.iter().flat_map(|at| &given[side].entries[at]);
                Some(Ways::new(entries))
            })
        };
        Self {
            ways: [ways(0), ways(1)],
            own: [0, 1].map(|side| {
                let members = source.members(side).iter();
                let own = members.flat_map(|at| &given[side].own[at]);
                own.copied().collect()
            }),
        }
    }
}

/// What a source is given, by target.
struct Ways {
    targets: Bits,
    given: HashMap<usize, Vec<(usize, bool)>>,
}

impl Ways {
    fn new<'e>(entries: impl Iterator<Item = &'e Entry>) -> Self {
        let mut ways = Self {
            targets: Bits::default(),
            given: HashMap::new(),
        };
        for entry in entries {
            ways.targets.insert(entry.target);
            let given = ways.given.entry(entry.target).or_default();
            given.push((entry.access, entry.at_nodes_only));
        }
        ways
    }

    fn to(&self, ends: &Bits, destination: &Class) -> Vec<usize> {
        if !self.targets.overlaps(ends) {
            return Vec::new();
        }
        let mut shared = self.targets.clone();
        shared.intersect(ends);
        let given = shared.iter().flat_map(|target| &self.given[&target]);
        let here = given.filter(|(_, at_nodes_only)| !at_nodes_only || destination.is_node());
        here.map(|(access, _)| *access).collect()
    }
}
