//! The tables of a compiled policy, and the rules over them.

use std::collections::HashMap;
use std::sync::Arc;

use ipnet::IpNet;
use lowroad_wire::control::CapMap;

use super::super::addresses::{AddressSet, Collector, net_text};
use super::super::alias::Alias;
use super::super::bits::Bits;
use super::super::capability;
use super::super::people::People;
use super::super::routes::{Routes, is_exit};
use super::super::syntax::Rule;
use super::ranges::{internet, tailnet};
use super::{Companion, CompiledRule, Node, Origins, Source, Target, TargetKind, addresses_of};

/// Builds the tables, each distinct source set and destination once.
pub(super) struct Builder<'a> {
    people: &'a People,
    nodes: &'a [Node],
    routes: Vec<IpNet>,
    tailnet: AddressSet,
    members: HashMap<Alias, Bits>,
    pub(super) sources: Vec<Source>,
    source_of: HashMap<AddressSet, usize>,
    pub(super) targets: Vec<Target>,
    target_of: HashMap<(Alias, Vec<String>), usize>,
    pub(super) rules: Vec<CompiledRule>,
    rule_of: HashMap<(usize, Vec<u8>), usize>,
}

impl<'a> Builder<'a> {
    pub(super) fn new(people: &'a People, nodes: &'a [Node], routes: &Routes) -> Self {
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

    pub(super) fn rule(&mut self, rule: &Rule) {
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
        let origins = Origins {
            rule: rule.origin,
            entries: vec![rule.origin; entries.len()],
            own_devices: vec![rule.origin; own_devices.len()],
        };
        let compiled = CompiledRule {
            source,
            protocols: rule.protocols.clone(),
            entries,
            own_devices,
            capabilities: rule.capabilities.clone(),
            companion: None,
            origins,
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
            let Origins {
                entries,
                own_devices,
                ..
            } = compiled.origins;
            earlier.origins.entries.extend(entries);
            earlier.origins.own_devices.extend(own_devices);
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
            let entries: Vec<_> = entries.collect();
            let source = self.source(servers);
            self.rules.push(CompiledRule {
                source,
                protocols: Vec::new(),
                origins: Origins {
                    rule: rule.origin,
                    entries: vec![rule.origin; entries.len()],
                    own_devices: Vec::new(),
                },
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
                origins: Origins {
                    rule: rule.origin,
                    ..Origins::default()
                },
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
