//! The same questions, asked of the packet filters of all nodes, address by address.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use lowroad_coordinator::policy::{
    CompiledTailnet, Diff, DiffEnds, DiffFamily, DiffUsers, WhyEnd, WhyProbe, WhyVerdict, World,
    diff,
};
use lowroad_wire::control::{NodeId, UserId};
use proptest::prelude::*;

use super::filters::{self, allows, grants};
use super::{compiled, short};

/// Somewhere a connection begins or ends, by one address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Node(NodeId, IpAddr),
    /// Behind a router, as a destination.
    Behind(Option<NodeId>, IpAddr),
    Internet(NodeId, IpAddr),
}

impl Place {
    fn address(self) -> IpAddr {
        match self {
            Self::Node(_, address) | Self::Behind(_, address) | Self::Internet(_, address) => {
                address
            }
        }
    }

    fn is_in(self, ends: &DiffEnds) -> bool {
        match self {
            Self::Node(id, _) => ends.nodes.contains(&id),
            Self::Internet(id, _) => ends.exits.contains(&id),
            Self::Behind(router, address) => ends.subnets.iter().any(|(through, ranges)| {
                *through == router && ranges.iter().any(|range| filters::holds(range, address))
            }),
        }
    }
}

/// Subnet addresses on either side of every boundary that policies draw.
const BEHIND: [&str; 4] = ["10.0.0.9", "10.0.1.0", "10.0.1.255", "10.0.2.0"];
const BEYOND: [&str; 2] = ["9.9.9.9", "2620:fe::9"];
const PROBES: [(u8, u16); 9] = [
    (6, 22),
    (6, 19),
    (6, 30),
    (6, 80),
    (6, 91),
    (17, 53),
    (17, 22),
    (1, 0),
    (58, 0),
];

struct Brute<'a> {
    world: &'a World,
    compiled: &'a CompiledTailnet,
}

impl Brute<'_> {
    fn carries(&self, router: NodeId, address: IpAddr) -> bool {
        let approved = self.compiled.approved(router);
        approved
            .iter()
            .any(|route| route.prefix_len() > 0 && route.contains(&address))
    }

    fn exits(&self, node: NodeId, address: IpAddr) -> bool {
        self.compiled
            .approved(node)
            .iter()
            .any(|route| route.prefix_len() == 0 && route.contains(&address))
    }

    /// What comes from a subnet comes through somebody who may lead there.
    fn leaves(&self, from: Place) -> bool {
        let nodes = &self.world.nodes;
        match from {
            Place::Behind(_, address) => nodes.iter().any(|node| self.carries(node.id, address)),
            Place::Node(..) | Place::Internet(..) => true,
        }
    }

    /// Whether an end has its address for anybody, itself included.
    fn has(&self, place: Place) -> bool {
        match place {
            Place::Node(id, address) => holds(&self.compiled.own_allowed_ips(id), address),
            Place::Behind(..) | Place::Internet(..) => true,
        }
    }

    /// Whether both have them, and nodes know of each other's.
    fn know(&self, from: Place, to: Place) -> bool {
        let knows = |viewer: NodeId, peer: NodeId, address: IpAddr| {
            let seen = self.compiled.peer_view(viewer, peer);
            seen.is_some_and(|seen| holds(&seen.allowed_ips, address))
        };
        let of_each_other = match (from, to) {
            (Place::Node(from, source), Place::Node(to, destination)) => {
                knows(from, to, destination) && knows(to, from, source)
            }
            _ => true,
        };
        self.has(from) && self.has(to) && of_each_other
    }

    fn may(&self, from: Place, to: Place, probe: (u8, u16)) -> bool {
        let at = match to {
            Place::Node(id, _) => id,
            Place::Behind(Some(id), address) if self.carries(id, address) => id,
            Place::Internet(id, address) if self.exits(id, address) => id,
            _ => return false,
        };
        let filter = self.compiled.filter_for(at);
        self.leaves(from)
            && allows(&filter, from.address(), to.address(), probe)
            && self.know(from, to)
    }

    /// Whether a node's connection to an address gets through: to the node that has it, or to those that the source is shown the longest
    /// route through.
    fn connects(&self, id: NodeId, source: IpAddr, to: IpAddr, probe: (u8, u16)) -> bool {
        let from = Place::Node(id, source);
        if !self.has(from) {
            return false;
        }
        let having = self.world.nodes.iter().find(|node| {
            let own = [node.v4.map(IpAddr::from), node.v6.map(IpAddr::from)];
            own.contains(&Some(to))
        });
        if let Some(having) = having {
            return self.may(from, Place::Node(having.id, to), probe);
        }
        let length = |peer: NodeId| {
            let seen = self.compiled.peer_view(id, peer)?;
            let routes = seen.allowed_ips.iter();
            let there = routes.filter(|route| route.contains(&to));
            there.map(|route| route.prefix_len()).max()
        };
        let peers = || self.world.nodes.iter().map(|node| node.id);
        let longest = peers().filter(|peer| *peer != id).filter_map(length).max();
        let mut best =
            peers().filter(|peer| *peer != id && longest.is_some() && length(*peer) == longest);
        best.any(|router| allows(&self.compiled.filter_for(router), source, to, probe))
    }

    fn granted(&self, from: Place, to: Place) -> BTreeSet<String> {
        match to {
            Place::Node(id, address) if self.leaves(from) && self.know(from, to) => {
                grants(&self.compiled.filter_for(id), from.address(), address)
            }
            _ => BTreeSet::new(),
        }
    }
}

fn holds(nets: &[IpNet], address: IpAddr) -> bool {
    nets.contains(&IpNet::from(address))
}

fn places(world: &World) -> (Vec<Place>, Vec<Place>) {
    let parse = |text: &&str| text.parse::<IpAddr>().unwrap();
    let mut nodes = Vec::new();
    let mut to = Vec::new();
    for node in &world.nodes {
        let own = [node.v4.map(IpAddr::from), node.v6.map(IpAddr::from)];
        nodes.extend(
            own.into_iter()
                .flatten()
                .map(|address| Place::Node(node.id, address)),
        );
        to.extend(
            BEHIND
                .iter()
                .map(|text| Place::Behind(Some(node.id), parse(text))),
        );
        to.extend(
            BEYOND
                .iter()
                .map(|text| Place::Internet(node.id, parse(text))),
        );
    }
    to.extend(&nodes);
    nodes.extend(BEHIND.iter().map(|text| Place::Behind(None, parse(text))));
    (nodes, to)
}

fn owner(world: &World, place: Place) -> Option<UserId> {
    let Place::Node(id, _) = place else {
        return None;
    };
    let node = world.nodes.iter().find(|node| node.id == id)?;
    node.user.filter(|_| node.tags.is_empty())
}

/// What the rows say about two places.
fn told(diff: &Diff, world: &World, from: Place, to: Place, opens: bool) -> Vec<String> {
    let (one, other) = (owner(world, from), owner(world, to));
    let same = one.is_some() && one == other;
    let family = match from.address() {
        IpAddr::V4(_) => DiffFamily::V4,
        IpAddr::V6(_) => DiffFamily::V6,
    };
    let rows = diff.rows.iter().filter(|row| {
        row.opens == opens
            && row.family.is_none_or(|only| only == family)
            && from.is_in(&row.from)
            && to.is_in(&row.to)
            && match row.users {
                DiffUsers::Any => true,
                DiffUsers::Same => same,
                DiffUsers::Different => !same,
            }
    });
    rows.flat_map(|row| row.access.clone()).collect()
}

pub fn agrees(world: &World, old: &str, new: &str) -> Result<(), TestCaseError> {
    let (before, after) = (compiled(old, world), compiled(new, world));
    let found = diff(&before, &after);
    let brute = |compiled| Brute { world, compiled };
    let (before, after) = (brute(&before), brute(&after));
    let (sources, destinations) = places(world);
    for &from in &sources {
        for &to in &destinations {
            let is_itself = matches!((from, to), (Place::Node(a, _), Place::Node(b, _)) if a == b);
            // The internet of a family for which a node is no exit node is no end of any row.
            let leads_nowhere = matches!(to, Place::Internet(id, address)
                if !before.exits(id, address) && !after.exits(id, address));
            // Neither is a family that the ends have by neither policy.
            let has_none = [&before, &after]
                .iter()
                .all(|side| !side.has(from) || !side.has(to));
            let across = from.address().is_ipv4() != to.address().is_ipv4();
            if is_itself || leads_nowhere || has_none || across {
                continue;
            }
            let [opens, closes] = [true, false].map(|opens| told(&found, world, from, to, opens));
            for probe in PROBES {
                let (was, is) = (before.may(from, to, probe), after.may(from, to, probe));
                let says = [&opens, &closes].map(|texts| names(texts, probe));
                prop_assert_eq!(
                    says,
                    [is && !was, was && !is],
                    "{:?} {:?} {:?}: {:#?}",
                    from,
                    to,
                    probe,
                    short(&found)
                );
            }
            let (was, is) = (before.granted(from, to), after.granted(from, to));
            let capabilities = |texts: &[String]| {
                let named = texts.iter().filter(|text| text.contains("/cap/"));
                named.cloned().collect::<BTreeSet<String>>()
            };
            prop_assert_eq!(capabilities(&opens), &is - &was);
            prop_assert_eq!(capabilities(&closes), &was - &is);
        }
    }
    Ok(())
}

pub fn is_why(world: &World, policy: &str) -> Result<(), TestCaseError> {
    let compiled = compiled(policy, world);
    let brute = Brute {
        world,
        compiled: &compiled,
    };
    let addresses = places(world).1.into_iter().map(Place::address);
    let addresses: BTreeSet<IpAddr> = addresses.collect();
    for &from in &places(world).0 {
        let Place::Node(id, source) = from else {
            continue;
        };
        for &to in &addresses {
            let is_own = brute.world.nodes.iter().any(|node| {
                node.id == id
                    && [node.v4.map(IpAddr::from), node.v6.map(IpAddr::from)].contains(&Some(to))
            });
            if is_own || source.is_ipv4() != to.is_ipv4() {
                continue;
            }
            for (protocol, port) in PROBES {
                let why = compiled.why(
                    WhyEnd::Address(source),
                    WhyEnd::Address(to),
                    WhyProbe { protocol, port },
                );
                prop_assert_eq!(
                    why.verdict == WhyVerdict::Allowed,
                    brute.connects(id, source, to, (protocol, port)),
                    "{} {} {}/{}: {:?}",
                    source,
                    to,
                    protocol,
                    port,
                    why
                );
            }
        }
    }
    Ok(())
}

/// Whether texts such as `tcp,udp:22,80-90` and `icmp` name a protocol at a port.
fn names(texts: &[String], (protocol, port): (u8, u16)) -> bool {
    let name = match protocol {
        1 => "icmp",
        6 => "tcp",
        17 => "udp",
        58 => "ipv6-icmp",
        _ => unreachable!("no probe"),
    };
    let ports = texts.iter().filter(|text| !text.contains("/cap/"));
    ports.into_iter().any(|text| {
        let (names, ports) = text.split_once(':').unwrap_or((text, "*"));
        names.split(',').any(|known| known == name)
            && ports.split(',').any(|range| {
                let (first, last) = range.split_once('-').unwrap_or((range, range));
                ports == "*"
                    || (first.parse::<u16>().unwrap()..=last.parse().unwrap()).contains(&port)
            })
    })
}
