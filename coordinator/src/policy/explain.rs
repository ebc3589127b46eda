//! What a node is sent and what it may reach, rule by rule of the policy file.

use std::collections::BTreeMap;

use lowroad_wire::control::NodeId;

use super::access::Access;
use super::addresses::net_text;
use super::capability::own_in;
use super::compile::{CompiledRule, Target, TargetKind, addresses_of};
use super::origin::Origin;
use super::view::CompiledTailnet;

/// What is said of a login that the policy has checked.
pub(crate) const CHECKED: &str = " (refused: checks are not done by this server)";

/// What the policy means for one node, in the order of the policy file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Explanation {
    /// Whether it has the attribute `disable-ipv4`: then all of this is by IPv6 only, but what lies behind it.
    pub without_v4: bool,
    /// What others may do here: the node's packet filter, by origin.
    pub receives: Vec<Clause>,
    /// What the node, and what lies behind it, may do elsewhere.
    pub reaches: Vec<Clause>,
    /// Who may log in here over SSH, in the order in which the node looks: the first rule that knows a login decides. Where it asks for
    /// a check, the login is refused.
    pub logins_here: Vec<Clause>,
    /// Where the node may log in.
    pub logins_elsewhere: Vec<Clause>,
}

/// What one rule of the policy file means for a node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Clause {
    /// The rule, or ssh rule; none is the one that holds without a policy.
    pub origin: Option<Origin>,
    /// It isn't written: it follows from granting a capability of which both ends have to know.
    pub follows: bool,
    /// Addresses, as the node is sent them.
    pub from: Vec<String>,
    /// Nodes that have such an address.
    pub from_nodes: Vec<NodeId>,
    /// Addresses and prefixes; none where the nodes say it all.
    pub to: Vec<String>,
    /// Nodes that are meant.
    pub to_nodes: Vec<NodeId>,
    /// `tcp:22,80-90`, `icmp`, and capabilities by name; of logins, `ssh as NAME`.
    pub access: Vec<String>,
}

impl CompiledTailnet {
    /// What the policy means for a node; none that isn't in the world.
    pub fn explain(&self, node: NodeId) -> Option<Explanation> {
        let at = self.position(node)?;
        let mut receives = Clauses::default();
        let mut reaches = Clauses::default();
        for rule in self.parts().rules.iter() {
            self.receive(rule, at, &mut receives);
            self.reach(rule, at, &mut reaches);
        }
        Some(Explanation {
            without_v4: self.parts().attributes[at].without_v4,
            receives: receives.finish(),
            reaches: reaches.finish(),
            logins_here: self.logins_here(at),
            logins_elsewhere: self.logins_elsewhere(at),
        })
    }

    fn receive(&self, rule: &CompiledRule, at: usize, clauses: &mut Clauses) {
        let parts = self.parts();
        let node = &parts.nodes[at];
        let source = &parts.sources[rule.source];
        let here = |origin, to, access| Clause {
            origin,
            follows: rule.companion.is_some(),
            from: source.texts().to_vec(),
            from_nodes: self.ids(source.members.iter().filter(|from| *from != at)),
            to,
            to_nodes: vec![node.facts.id],
            access,
        };
        for (entry, origin) in rule.entries.iter().zip(&rule.origins.entries) {
            let target = &parts.targets[entry.0];
            let to: Vec<String> = match rule.capabilities {
                Some(_) => own_in(node, target)
                    .iter()
                    .map(ToString::to_string)
                    .collect(),
                None => {
                    let sent = self.destinations_of(rule, entry, at);
                    sent.map(|to| to.ip).collect()
                }
            };
            if !to.is_empty() {
                clauses.add(here(*origin, to, access(rule, &entry.1)));
            }
        }
        let Some(devices) = self.own_sources(rule, at) else {
            return;
        };
        let from = addresses_of(&parts.nodes, &devices);
        if from.is_empty() {
            return;
        }
        let own = |origin, access| Clause {
            from: from.texts(),
            from_nodes: self.ids(devices.iter().filter(|from| *from != at)),
            ..here(
                origin,
                node.addresses.iter().map(ToString::to_string).collect(),
                access,
            )
        };
        if rule.companion.is_some() {
            clauses.add(own(rule.origins.rule, access(rule, &[])));
        }
        for (ports, origin) in rule.own_devices.iter().zip(&rule.origins.own_devices) {
            clauses.add(own(*origin, access(rule, &[*ports])));
        }
    }

    /// Companions are told to the other end, and let nobody reach anything.
    fn reach(&self, rule: &CompiledRule, at: usize, clauses: &mut Clauses) {
        let parts = self.parts();
        let source = &parts.sources[rule.source];
        let me = parts.nodes[at].facts.id;
        if rule.companion.is_some() {
            return;
        }
        let there = |origin, to, to_nodes, access| Clause {
            origin,
            follows: false,
            from: Vec::new(),
            from_nodes: vec![me],
            to,
            to_nodes,
            access,
        };
        if source.nodes.contains(at) {
            for ((target, ports), origin) in rule.entries.iter().zip(&rule.origins.entries) {
                let target = &parts.targets[*target];
                let to_nodes = self.ids(target.nodes.iter().filter(|to| *to != at));
                let to = written(target);
                if !to.is_empty() || !to_nodes.is_empty() {
                    clauses.add(there(*origin, to, to_nodes, access(rule, ports)));
                }
            }
        }
        let Some(devices) = self
            .devices_with(at)
            .filter(|_| source.members.contains(at))
        else {
            return;
        };
        let others = self.ids(devices.iter().filter(|to| *to != at));
        for (ports, origin) in rule.own_devices.iter().zip(&rule.origins.own_devices) {
            if !others.is_empty() {
                let access = access(rule, &[*ports]);
                clauses.add(there(*origin, Vec::new(), others.clone(), access));
            }
        }
    }

    pub(super) fn ids(&self, nodes: impl Iterator<Item = usize>) -> Vec<NodeId> {
        nodes.map(|at| self.parts().nodes[at].facts.id).collect()
    }
}

fn access(rule: &CompiledRule, ports: &[lowroad_wire::control::PortRange]) -> Vec<String> {
    match &rule.capabilities {
        Some(capabilities) => Access::of_capabilities(capabilities),
        None => Access::of_ports(&rule.protocols, ports),
    }
    .texts()
}

/// A destination as the policy means it, where it isn't nodes.
fn written(target: &Target) -> Vec<String> {
    match &target.kind {
        TargetKind::Any => vec!["*".to_owned()],
        TargetKind::Net(net) => vec![net_text(net)],
        TargetKind::Internet(_) => vec!["autogroup:internet".to_owned()],
        TargetKind::Via { texts, .. } => texts.clone(),
        TargetKind::Members(_) => Vec::new(),
    }
}

/// Clauses that differ in their destination only are one.
#[derive(Default)]
struct Clauses(BTreeMap<Clause, (Vec<String>, Vec<NodeId>)>);

impl Clauses {
    fn add(&mut self, mut clause: Clause) {
        let to = std::mem::take(&mut clause.to);
        let to_nodes = std::mem::take(&mut clause.to_nodes);
        let known = self.0.entry(clause).or_default();
        known.0.extend(to);
        known.1.extend(to_nodes);
    }

    fn finish(self) -> Vec<Clause> {
        let clauses = self.0.into_iter();
        clauses
            .map(|(clause, (mut to, mut to_nodes))| {
                to.sort_unstable();
                to.dedup();
                to_nodes.sort_unstable();
                to_nodes.dedup();
                Clause {
                    to,
                    to_nodes,
                    ..clause
                }
            })
            .collect()
    }
}
