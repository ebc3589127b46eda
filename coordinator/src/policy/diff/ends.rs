//! The ends of connections, grouped: those that the rules of both policies cannot tell apart are one.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use lowroad_wire::control::UserId;

use super::super::addresses::{AddressSet, Collector};
use super::super::bits::Bits;
use super::super::compile::{Target, TargetKind};
use super::super::routes::is_exit;
use super::super::view::Parts;

/// Both policies, the one in force first.
pub(super) type Sides<'a> = [&'a Parts; 2];

/// Where a connection begins or ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum End {
    /// A node, at its own addresses; by position.
    Node(usize),
    /// Addresses of a subnet, by the position of their atom; as a destination through this router.
    Behind { atom: usize, router: Option<usize> },
    /// What lies behind this exit node.
    Internet(usize),
}

/// What one side's rules make of an address: the sources, or targets, that hold it.
type Held = [Bits; 2];

/// The same per side; `None` where the end has no address, or none that the side shows anybody.
type Shown = [Option<Bits>; 2];

/// How the rules see an end, per family.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Sign {
    held: [Shown; 2],
    /// Sources that hold any of a node's addresses: what counts between devices of one user.
    members: Held,
    /// Capabilities hold at nodes only.
    is_node: bool,
}

/// Ends that all rules treat alike.
#[derive(Debug)]
pub(super) struct Class {
    sign: Sign,
    pub(super) ends: Vec<End>,
    /// How many nodes of each user; tagged nodes are of nobody.
    pub(super) of_user: HashMap<Option<UserId>, u64>,
}

impl Class {
    /// What a side's rules make of the class in a family.
    pub(super) fn held(&self, side: usize, family: usize) -> Option<&Bits> {
        self.sign.held[family][side].as_ref()
    }

    pub(super) fn members(&self, side: usize) -> &Bits {
        &self.sign.members[side]
    }

    pub(super) fn is_node(&self) -> bool {
        self.sign.is_node
    }

    pub(super) fn nodes(&self) -> impl Iterator<Item = usize> + '_ {
        self.ends.iter().filter_map(|end| match end {
            End::Node(at) => Some(*at),
            _ => None,
        })
    }
}

/// A range of a subnet that every set of both policies holds whole or not at all.
#[derive(Debug)]
pub(super) struct Atom {
    pub(super) first: IpAddr,
    pub(super) last: IpAddr,
}

/// All ends of both policies.
#[derive(Debug)]
pub(super) struct Ends {
    pub(super) atoms: Vec<Atom>,
    pub(super) sources: Vec<Class>,
    pub(super) destinations: Vec<Class>,
}

impl Ends {
    pub(super) fn new(sides: Sides) -> Self {
        let atoms = atoms(sides);
        let mut ends = Self {
            sources: sources(sides, &atoms),
            destinations: Vec::new(),
            atoms,
        };
        ends.destinations = destinations(sides, &ends.atoms);
        ends
    }
}

/// Positions of the nodes are the same in both: it is the same tailnet.
fn node_count(sides: Sides) -> usize {
    sides[0].nodes.len()
}

fn sources(sides: Sides, atoms: &[Atom]) -> Vec<Class> {
    let mut classes = Classes::default();
    let holding = |side: &Parts, address: IpAddr| {
        let sources = side.sources.iter().enumerate();
        let holding = sources.filter(|(_, source)| source.set.contains(address));
        holding.map(|(at, _)| at).collect()
    };
    for at in 0..node_count(sides) {
        let node = &sides[0].nodes[at];
        let members = sides.map(|side| {
            let sources = side.sources.iter().enumerate();
            let of = sources.filter(|(_, source)| source.members.contains(at));
            of.map(|(source, _)| source).collect()
        });
        let sign = Sign {
            held: per_family(sides, at, holding),
            members,
            is_node: true,
        };
        classes.add(sign, End::Node(at), node.facts.owner());
    }
    for (at, atom) in atoms.iter().enumerate() {
        let held = sides.map(|side| {
            if routers_to(side, atom).next().is_some() {
                holding(side, atom.first)
            } else {
                Bits::default()
            }
        });
        let end = End::Behind {
            atom: at,
            router: None,
        };
        classes.add(Sign::beyond(&[(atom.first, held)]), end, None);
    }
    classes.finish()
}

fn destinations(sides: Sides, atoms: &[Atom]) -> Vec<Class> {
    let mut classes = Classes::default();
    for at in 0..node_count(sides) {
        let node = &sides[0].nodes[at];
        let sign = Sign {
            held: per_family(sides, at, |side, address| {
                holding_at(side, at, |target| target.set.contains(address))
            }),
            members: Held::default(),
            is_node: true,
        };
        classes.add(sign, End::Node(at), node.facts.owner());
    }
    for (at, atom) in atoms.iter().enumerate() {
        let routers = sides.map(|side| routers_to(side, atom).collect::<BTreeSet<usize>>());
        for &router in routers[0].union(&routers[1]) {
            let held = |side: usize| {
                holding_at(sides[side], router, |target| {
                    routers[side].contains(&router) && target.set.contains(atom.first)
                })
            };
            let end = End::Behind {
                atom: at,
                router: Some(router),
            };
            let sign = Sign::beyond(&[(atom.first, [held(0), held(1)])]);
            classes.add(sign, end, None);
        }
    }
    for at in 0..node_count(sides) {
        let families: Vec<(IpAddr, Held)> = ANYWHERE
            .into_iter()
            .filter_map(|anywhere| {
                let leads_out = |side: &Parts| {
                    let mut approved = side.nodes[at].approved.iter();
                    approved.any(|route| is_exit(route) && route.contains(&anywhere))
                };
                let exits = sides.map(leads_out);
                let held = |side: usize| {
                    holding_at(sides[side], at, |target| {
                        exits[side] && is_everything(target)
                    })
                };
                (exits != [false; 2]).then(|| (anywhere, [held(0), held(1)]))
            })
            .collect();
        if !families.is_empty() {
            classes.add(Sign::beyond(&families), End::Internet(at), None);
        }
    }
    classes.finish()
}

/// An address of each family.
const ANYWHERE: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::UNSPECIFIED),
    IpAddr::V6(Ipv6Addr::UNSPECIFIED),
];

/// Whether all of the internet is meant.
fn is_everything(target: &Target) -> bool {
    match &target.kind {
        TargetKind::Any | TargetKind::Internet(_) => true,
        TargetKind::Via { .. } => target.set == AddressSet::everything(),
        TargetKind::Net(_) | TargetKind::Members(_) => false,
    }
}

/// The targets of one side of which this node is sent what `holds`.
fn holding_at(side: &Parts, at: usize, holds: impl Fn(&Target) -> bool) -> Bits {
    let targets = side.targets.iter().enumerate();
    let holding = targets.filter(|(_, target)| target.is_sent_to(at) && holds(target));
    holding.map(|(at, _)| at).collect()
}

fn routers_to<'a>(side: &'a Parts, atom: &Atom) -> impl Iterator<Item = usize> + 'a {
    let first = atom.first;
    let nodes = side.nodes.iter().enumerate();
    nodes
        .filter(move |(_, node)| node.behind.contains(first))
        .map(|(at, _)| at)
}

/// Of a node at its own addresses. With the attribute `disable-ipv4` nobody knows of its IPv4, and it knows of nobody's.
fn per_family(sides: Sides, at: usize, held: impl Fn(&Parts, IpAddr) -> Bits) -> [Shown; 2] {
    [false, true].map(|v6| {
        let mut addresses = sides[0].nodes[at].addresses.iter();
        let address = addresses.find(|address| address.is_ipv6() == v6);
        sides.map(|side| {
            let shown = address.filter(|_| v6 || !side.attributes[at].without_v4);
            shown.map(|address| held(side, *address))
        })
    })
}

impl Sign {
    /// Of an end that is no node.
    fn beyond(families: &[(IpAddr, Held)]) -> Self {
        let of = |v6: bool| {
            let mut all = families.iter();
            let found = all.find(|(address, _)| address.is_ipv6() == v6);
            found.map_or([None, None], |(_, held)| held.clone().map(Some))
        };
        Self {
            held: [of(false), of(true)],
            members: Held::default(),
            is_node: false,
        }
    }
}

#[derive(Default)]
struct Classes {
    classes: Vec<Class>,
    by_sign: HashMap<Sign, usize>,
}

impl Classes {
    fn add(&mut self, sign: Sign, end: End, owner: Option<UserId>) {
        let next = self.classes.len();
        let at = *self.by_sign.entry(sign.clone()).or_insert(next);
        if at == next {
            self.classes.push(Class {
                sign,
                ends: Vec::new(),
                of_user: HashMap::new(),
            });
        }
        let class = &mut self.classes[at];
        class.ends.push(end);
        *class.of_user.entry(owner).or_default() += 1;
    }

    fn finish(self) -> Vec<Class> {
        self.classes
    }
}

/// The approved subnet routes of both policies, cut wherever a set of either begins or ends.
fn atoms(sides: Sides) -> Vec<Atom> {
    let mut routes = Collector::default();
    let mut cuts = Cuts::default();
    for side in sides {
        for route in side.routes.iter() {
            routes.net(&route.net);
            cuts.set(&AddressSet::of_net(&route.net));
        }
    }
    let routes = routes.finish();
    if routes.is_empty() {
        return Vec::new();
    }
    for side in sides {
        side.sources.iter().for_each(|source| cuts.set(&source.set));
        side.targets.iter().for_each(|target| cuts.set(&target.set));
    }
    routes
        .ranges()
        .flat_map(|range| cuts.split(range))
        .collect()
}

/// Addresses at which a range begins, by family.
#[derive(Default)]
struct Cuts([BTreeSet<u128>; 2]);

impl Cuts {
    fn set(&mut self, set: &AddressSet) {
        for (first, last) in set.ranges() {
            let (family, first, last) = (family(first), number(first), number(last));
            self.0[family].insert(first);
            self.0[family].extend(last.checked_add(1));
        }
    }

    fn split(&self, (first, last): (IpAddr, IpAddr)) -> Vec<Atom> {
        let at = family(first);
        let (start, end) = (number(first), number(last));
        let inner = self.0[at]
            .range(start..=end)
            .copied()
            .filter(|&cut| cut > start);
        let starts: Vec<u128> = std::iter::once(start).chain(inner).collect();
        let ends = starts[1..].iter().map(|next| next - 1).chain([end]);
        let address = |number: u128| match u32::try_from(number) {
            Ok(v4) if at == 0 => IpAddr::V4(Ipv4Addr::from_bits(v4)),
            _ => IpAddr::V6(Ipv6Addr::from_bits(number)),
        };
        let atom = |(first, last)| Atom {
            first: address(first),
            last: address(last),
        };
        starts.iter().copied().zip(ends).map(atom).collect()
    }
}

pub(super) fn family(address: IpAddr) -> usize {
    usize::from(address.is_ipv6())
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => v4.to_bits().into(),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}
