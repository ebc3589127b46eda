//! The tables of a compiled policy, and the rules over them.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use lowroad_wire::control::CapMap;

use super::super::addresses::{AddressSet, Collector, net_text};
use super::super::alias::Alias;
use super::super::bits::Bits;
use super::super::capability;
use super::super::error::Place;
use super::super::routes::{Routes, is_exit};
use super::super::syntax::Rule;
use super::{
    Companion, CompiledRule, Named, Node, Nodes, Origins, Source, SourceSets, Target, TargetKind,
    addresses_of, internet, tailnet,
};

/// Builds the tables, each distinct list of sources and each destination once.
pub(super) struct Builder<'a> {
    named: &'a Named<'a>,
    nodes: &'a Nodes,
    routes: Vec<IpNet>,
    sets: SourceSets,
    /// Of nodes, sorted, with their positions.
    addresses: Vec<(IpAddr, usize)>,
    /// Nodes with something behind them.
    routers: Vec<usize>,
    /// What `*` is as a source.
    pub(super) tailnet: AddressSet,
    members: HashMap<Alias, Bits>,
    pub(super) sources: Vec<Source>,
    source_of: HashMap<Arc<[Alias]>, usize>,
    /// Of the rule before, and where it stands: those of one grant have the same sources.
    last_source: Option<(Place, usize)>,
    pub(super) targets: Vec<Target>,
    target_of: HashMap<(Alias, Vec<String>), usize>,
    /// In the order in which they are sent.
    pub(super) written: Vec<CompiledRule>,
}

impl<'a> Builder<'a> {
    pub(super) fn new(
        named: &'a Named<'a>,
        nodes: &'a Nodes,
        routes: &Routes,
        sets: SourceSets,
    ) -> Self {
        let routes: Vec<IpNet> = routes.subnets.iter().map(|route| route.net).collect();
        let addresses = nodes.iter().enumerate().flat_map(|(at, node)| {
            let own = node.addresses.iter();
            own.map(move |address| (*address, at))
        });
        let mut addresses: Vec<_> = addresses.collect();
        addresses.sort_unstable();
        let routers = nodes.live().filter(|(_, node)| !node.behind.is_empty());
        Self {
            sets,
            addresses,
            routers: routers.map(|(at, _)| at).collect(),
            tailnet: tailnet(&routes),
            named,
            nodes,
            routes,
            members: HashMap::new(),
            sources: Vec::new(),
            source_of: HashMap::new(),
            last_source: None,
            targets: Vec::new(),
            target_of: HashMap::new(),
            written: Vec::new(),
        }
    }

    pub(super) fn rule(&mut self, rule: &Rule) {
        let source = match self.last_source {
            Some((place, source)) if place == rule.place => source,
            _ => self.source(rule.sources.iter().map(|alias| &alias.value)),
        };
        self.last_source = Some((rule.place, source));
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
        self.written.push(CompiledRule {
            source,
            protocols: rule.protocols.clone(),
            entries,
            own_devices,
            capabilities: rule.capabilities.clone(),
            companion: None,
            origins,
        });
        if let Some(capabilities) = &rule.capabilities {
            for name in capability::companions(capabilities).filter(|_| rule.via.is_empty()) {
                self.companion(rule, source, name);
            }
        }
    }

    /// The rules that accompany a grant of a capability of which both ends need to know.
    fn companion(&mut self, rule: &Rule, source: usize, name: &str) {
        let capabilities = Some(Arc::new(CapMap::from([(name.to_owned(), Vec::new())])));
        let others = |alias: &&Alias| **alias != Alias::OwnDevices;
        let destinations = || rule.destinations.iter().map(|(alias, _)| &alias.value);
        if destinations().any(|alias| others(&alias)) {
            let servers = self.source(destinations().filter(others));
            let granted = rule.sources.iter().map(|alias| match &alias.value {
                Alias::DangerAll => &Alias::Any,
                alias => alias,
            });
            let entries = granted.map(|alias| (self.target(alias, &[]), Vec::new()));
            let entries: Vec<_> = entries.collect();
            self.written.push(CompiledRule {
                source: servers,
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
            self.written.push(CompiledRule {
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
        let members: Bits = self.named.of(alias).into_iter().collect();
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

    fn source<'r>(&mut self, written: impl Iterator<Item = &'r Alias>) -> usize {
        let mut aliases: Vec<Alias> = written.cloned().collect();
        aliases.sort_unstable();
        aliases.dedup();
        let aliases: Arc<[Alias]> = aliases.into();
        if let Some(&known) = self.source_of.get(&aliases) {
            return known;
        }
        let mut set = Collector::default();
        let mut named = Bits::default();
        for alias in aliases.iter() {
            match self.sets {
                SourceSets::Written if !is_addresses(alias) => named.unite(&self.members(alias)),
                _ => set.set(&self.source_set(alias)),
            }
        }
        let set = set.finish();
        let mut nodes = self.nodes_in(&set);
        let members = match self.sets {
            SourceSets::Whole => nodes.clone(),
            SourceSets::Written => named,
        };
        nodes.unite(&members);
        let nodes = self.and_routers(nodes, &set);
        let routes = self.routes_where(|route| set.overlaps_net(route));
        let source = Source::new(aliases.clone(), set, [members, nodes, routes]);
        self.sources.push(source);
        self.source_of.insert(aliases, self.sources.len() - 1);
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
                alias: alias.clone(),
                via: Arc::default(),
                nodes: self.nodes_where(|node| node.approved.iter().any(is_exit)),
                routes: Bits::default(),
                kind,
                set,
            };
        }
        Target {
            alias: alias.clone(),
            via: Arc::default(),
            nodes: self.and_routers(self.nodes_in(&set), &set),
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
            alias: target.alias,
            via: via.into(),
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

    /// Nodes of which an address is in a set.
    fn nodes_in(&self, set: &AddressSet) -> Bits {
        let inside = set.ranges().flat_map(|(first, last)| {
            let from = self.addresses.partition_point(|(own, _)| *own < first);
            let rest = self.addresses[from..].iter();
            rest.take_while(move |(own, _)| *own <= last)
        });
        inside.map(|(_, at)| *at).collect()
    }

    /// And those with something behind them that is.
    fn and_routers(&self, mut nodes: Bits, set: &AddressSet) -> Bits {
        let routers = self.routers.iter();
        let there = routers.filter(|at| self.nodes[**at].behind.overlaps(set));
        there.for_each(|at| nodes.insert(*at));
        nodes
    }

    fn nodes_where(&self, holds: impl Fn(&Node) -> bool) -> Bits {
        let nodes = self.nodes.iter().enumerate();
        let members = nodes.filter(|(_, node)| holds(node)).map(|(at, _)| at);
        members.collect()
    }

    fn routes_where(&self, holds: impl Fn(&IpNet) -> bool) -> Bits {
        let routes = self.routes.iter().enumerate();
        let members = routes.filter(|(_, route)| holds(route)).map(|(at, _)| at);
        members.collect()
    }
}

fn is_addresses(alias: &Alias) -> bool {
    matches!(alias, Alias::Any | Alias::DangerAll | Alias::Net(_))
}
