//! Who reaches whom by one of some protocols at one port.
//!
//! Nodes that the matching rules cannot tell apart are judged once, so that a test over thousands
//! of nodes costs as much as its rules.

use std::collections::BTreeSet;
use std::net::IpAddr;

use lowroad_wire::control::UserId;

use super::super::access::DEFAULT_PROTOCOLS;
use super::super::alias::Alias;
use super::super::bits::Bits;
use super::super::compile::CompiledRule;
use super::super::view::Parts;

/// The rules that allow one of the protocols at the port to somebody.
pub(super) struct Ways<'a> {
    parts: &'a Parts,
    ways: Vec<Way<'a>>,
    /// Positions of those that lead to devices of the same user.
    to_own_devices: Bits,
}

struct Way<'a> {
    rule: &'a CompiledRule,
    targets: Vec<usize>,
}

/// How the ways see one end of a connection, apart for IPv4 and IPv6: families don't mix.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct End {
    /// Which ways begin (or end) at an address of the family.
    ways: [Bits; 2],
    has: [bool; 2],
    owner: Option<UserId>,
}

impl<'a> Ways<'a> {
    pub(super) fn new(parts: &'a Parts, protocols: &[u8], port: u16) -> Self {
        let allows = |rule: &CompiledRule| match rule.protocols.as_slice() {
            [] => DEFAULT_PROTOCOLS.iter().any(|own| protocols.contains(own)),
            listed => listed.iter().any(|own| protocols.contains(own)),
        };
        let mut ways = Vec::new();
        let mut own = Vec::new();
        for rule in parts
            .rules
            .iter()
            .filter(|rule| rule.capabilities.is_none() && allows(rule))
        {
            let entries = rule.entries.iter();
            let targets: Vec<usize> = entries
                .filter(|(_, ports)| ports.iter().any(|range| range.contains(port)))
                .map(|(target, _)| *target)
                .collect();
            let leads_to_own = rule.own_devices.iter().any(|range| range.contains(port));
            if leads_to_own {
                own.push(ways.len());
            }
            if leads_to_own || !targets.is_empty() {
                ways.push(Way { rule, targets });
            }
        }
        Self {
            to_own_devices: Bits::collect(ways.len(), own),
            parts,
            ways,
        }
    }

    /// The distinct ends that connections from an alias have.
    pub(super) fn sources(&self, alias: &Alias) -> BTreeSet<End> {
        self.ends(alias, |way, address| {
            self.parts.sources[way.rule.source].set.contains(address)
        })
    }

    /// The distinct ends that connections to an alias have.
    pub(super) fn destinations(&self, alias: &Alias) -> BTreeSet<End> {
        self.ends(alias, |way, address| {
            let mut targets = way.targets.iter();
            targets.any(|&target| self.parts.targets[target].set.contains(address))
        })
    }

    fn ends(&self, alias: &Alias, holds: impl Fn(&Way, IpAddr) -> bool) -> BTreeSet<End> {
        let end = |addresses: &[IpAddr], owner| {
            let mut end = End {
                ways: [Bits::new(self.ways.len()), Bits::new(self.ways.len())],
                has: [false; 2],
                owner,
            };
            for &address in addresses {
                let family = usize::from(address.is_ipv6());
                end.has[family] = true;
                for (at, way) in self.ways.iter().enumerate() {
                    if holds(way, address) {
                        end.ways[family].insert(at);
                    }
                }
            }
            end
        };
        let nodes = self.parts.nodes.live().map(|(_, node)| node);
        if let Alias::Net(net) = alias {
            let address = net.addr();
            let node = nodes
                .into_iter()
                .find(|node| node.addresses.contains(&address));
            let owner = node.and_then(|node| node.facts.owner());
            return BTreeSet::from([end(&[address], owner)]);
        }
        nodes
            .filter(|node| self.parts.people.names_node(alias, &node.facts))
            .map(|node| end(&node.addresses, node.facts.owner()))
            .collect()
    }

    /// Whether any way leads from one end to the other, in either family.
    pub(super) fn lead(&self, from: &End, to: &End) -> bool {
        let same_user = from.owner.is_some() && from.owner == to.owner;
        (0..2).any(|family| {
            let begins = &from.ways[family];
            begins.overlaps(&to.ways[family])
                || same_user && to.has[family] && begins.overlaps(&self.to_own_devices)
        })
    }
}
