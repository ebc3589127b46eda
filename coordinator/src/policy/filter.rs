//! The packet filter of a node.

use std::net::IpAddr;
use std::sync::{Arc, PoisonError};

use ipnet::IpNet;
use lowroad_wire::control::{CapGrant, CapMap, FilterRule, NetPortRange, PortRange};

use super::addresses::net_text;
use super::bits::Bits;
use super::capability::own_in;
use super::compile::{Companion, CompiledRule, Node, Target, TargetKind, addresses_of};
use super::view::CompiledTailnet;

/// The rules that a node is sent. Those with the same sources share the list of them: written out for each of ten thousand nodes it
/// would fill the memory.
#[derive(Debug, Default, PartialEq)]
pub struct NodeFilter {
    rules: Vec<NodeRule>,
}

#[derive(Debug, PartialEq)]
pub(super) struct NodeRule {
    pub(super) sources: Arc<[String]>,
    pub(super) destinations: Vec<NetPortRange>,
    pub(super) protocols: Vec<i64>,
    /// Capabilities, and the node's addresses at which they hold.
    pub(super) granted: Option<(Vec<IpNet>, Arc<CapMap>)>,
}

impl NodeFilter {
    /// The rules as they are sent.
    pub fn to_wire(&self) -> Vec<FilterRule> {
        let rules = self.rules.iter();
        rules
            .map(|rule| FilterRule {
                src_ips: rule.sources.to_vec(),
                dst_ports: rule.destinations.clone(),
                ip_proto: rule.protocols.clone(),
                cap_grant: rule.granted.iter().map(grant).collect(),
            })
            .collect()
    }
}

fn grant((at, capabilities): &(Vec<IpNet>, Arc<CapMap>)) -> CapGrant {
    CapGrant {
        dsts: at.clone(),
        caps: Vec::new(),
        cap_map: CapMap::clone(capabilities),
    }
}

/// Position of a rule, and of an entry in it.
pub(super) type EntryAt = (usize, usize);

impl CompiledTailnet {
    pub(super) fn filter(&self, at: usize) -> Arc<NodeFilter> {
        let node = &self.parts.nodes[at];
        let mut sent_whole = Some(Vec::new());
        for (rule_at, rule) in self.parts.rules.iter().enumerate() {
            for (entry_at, (target, _)) in rule.entries.iter().enumerate() {
                match self.reaches(rule, at, &self.parts.targets[*target]) {
                    Reach::Not => {}
                    Reach::Whole => {
                        sent_whole = sent_whole.map(|mut sent: Vec<EntryAt>| {
                            sent.push((rule_at, entry_at));
                            sent
                        });
                    }
                    Reach::Own => sent_whole = None,
                }
            }
            let to_own =
                !rule.own_devices.is_empty() || rule.companion == Some(Companion::OwnDevices);
            if to_own && node.facts.owner().is_some() {
                sent_whole = None;
            }
        }
        let build = || {
            let rules = self.rules_at(at);
            Arc::new(NodeFilter { rules })
        };
        let Some(key) = sent_whole else {
            return build();
        };
        let shared = self
            .shared_filters
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&key)
            .cloned();
        shared.unwrap_or_else(|| {
            let filter = build();
            self.shared_filters
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .entry(key)
                .or_insert(filter)
                .clone()
        })
    }

    fn reaches(&self, rule: &CompiledRule, at: usize, target: &Target) -> Reach {
        let node = &self.parts.nodes[at];
        if rule.capabilities.is_some() {
            let own = !own_in(node, target).is_empty();
            return if own { Reach::Own } else { Reach::Not };
        }
        match &target.kind {
            TargetKind::Any => Reach::Whole,
            TargetKind::Net(_) | TargetKind::Internet(_) | TargetKind::Via { .. } => {
                if target.nodes.contains(at) {
                    Reach::Whole
                } else {
                    Reach::Not
                }
            }
            TargetKind::Members(members) => {
                if members.contains(at) || node.behind.overlaps(&target.set) {
                    Reach::Own
                } else {
                    Reach::Not
                }
            }
        }
    }

    fn rules_at(&self, at: usize) -> Vec<NodeRule> {
        let mut filter = Vec::new();
        for rule in self.parts.rules.iter() {
            if let Some(capabilities) = &rule.capabilities {
                filter.extend(self.capability_rules(rule, capabilities, at));
                continue;
            }
            let source = &self.parts.sources[rule.source];
            let protocols = || rule.protocols.iter().map(|&number| number.into()).collect();
            let destinations = self.destinations(rule, at);
            if !destinations.is_empty() {
                filter.push(NodeRule {
                    sources: source.texts().clone(),
                    destinations,
                    protocols: protocols(),
                    granted: None,
                });
            }
            let Some(own) = self
                .devices_with(at)
                .filter(|_| !rule.own_devices.is_empty())
            else {
                continue;
            };
            let mut from = own.clone();
            from.intersect(&source.members);
            let from = addresses_of(&self.parts.nodes, &from);
            if !from.is_empty() {
                let addresses = self.parts.nodes[at].addresses.iter();
                filter.push(NodeRule {
                    sources: from.texts().into(),
                    destinations: addresses
                        .flat_map(|address| ports_of(address.to_string(), &rule.own_devices))
                        .collect(),
                    protocols: protocols(),
                    granted: None,
                });
            }
        }
        filter
    }

    /// What of a rule's destinations a node is sent.
    fn destinations(&self, rule: &CompiledRule, at: usize) -> Vec<NetPortRange> {
        let mut destinations = Vec::new();
        for entry in &rule.entries {
            destinations.extend(self.destinations_of(rule, entry, at));
        }
        destinations.sort_unstable();
        destinations.dedup();
        destinations
    }

    /// What of one of a rule's destinations a node is sent.
    pub(super) fn destinations_of<'a>(
        &self,
        rule: &CompiledRule,
        (target, ports): &'a (usize, Vec<PortRange>),
        at: usize,
    ) -> impl Iterator<Item = NetPortRange> + use<'a> {
        let target = &self.parts.targets[*target];
        let texts = match &target.kind {
            _ if matches!(self.reaches(rule, at, target), Reach::Not) => Vec::new(),
            TargetKind::Any => vec!["*".to_owned()],
            TargetKind::Net(net) => vec![net_text(net)],
            TargetKind::Internet(texts) | TargetKind::Via { texts, .. } => texts.clone(),
            TargetKind::Members(members) => {
                let addresses = self.addresses_at(&self.parts.nodes[at], at, members);
                addresses.iter().map(ToString::to_string).collect()
            }
        };
        texts.into_iter().flat_map(|text| ports_of(text, ports))
    }

    /// Of the members' addresses, the node's own and those inside its approved routes.
    fn addresses_at(&self, node: &Node, at: usize, members: &Bits) -> Vec<IpAddr> {
        let mut addresses = Vec::new();
        if members.contains(at) {
            addresses.extend_from_slice(&node.addresses);
        }
        if !node.behind.is_empty() {
            let all = members
                .iter()
                .flat_map(|member| &self.parts.nodes[member].addresses);
            addresses.extend(all.filter(|address| node.behind.contains(**address)));
        }
        addresses
    }
}

impl Target {
    /// Whether a node may be sent what of the destination is at it or behind it.
    pub(super) fn is_sent_to(&self, at: usize) -> bool {
        match &self.kind {
            TargetKind::Any | TargetKind::Members(_) => true,
            TargetKind::Net(_) | TargetKind::Internet(_) | TargetKind::Via { .. } => {
                self.nodes.contains(at)
            }
        }
    }
}

/// How a destination concerns a node.
enum Reach {
    Not,
    /// It is sent as it is.
    Whole,
    /// Only some of its addresses are sent.
    Own,
}

fn ports_of(ip: String, ports: &[PortRange]) -> impl Iterator<Item = NetPortRange> {
    ports.iter().map(move |&ports| NetPortRange {
        ip: ip.clone(),
        ports,
    })
}
