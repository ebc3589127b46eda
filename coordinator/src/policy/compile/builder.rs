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
    pub(super) sources: Vec<Arc<Source>>,
    source_of: HashMap<Arc<[Alias]>, usize>,
    /// Of the rule before, and where it stands: those of one grant have the same sources.
    last_source: Option<(Place, usize)>,
    pub(super) targets: Vec<Arc<Target>>,
    /// By the position of the routers that lead there.
    target_of: HashMap<(Alias, usize), usize>,
    vias: Vec<Via>,
    via_of: HashMap<Arc<[String]>, usize>,
    last_via: Option<(Arc<[String]>, usize)>,
    /// In the order in which they are sent.
    pub(super) written: Vec<Arc<CompiledRule>>,
}

/// Routers with one of some tags.
struct Via {
    tags: Arc<[String]>,
    tagged: Bits,
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
            vias: Vec::new(),
            via_of: HashMap::new(),
            last_via: None,
            written: Vec::new(),
        }
    }

    pub(super) fn rule(&mut self, rule: &Rule) {
        let source = match self.last_source {
            Some((place, source)) if place == rule.place => source,
            _ => self.source(rule.sources.iter().map(|alias| &alias.value)),
        };
        self.last_source = Some((rule.place, source));
        let via = match self.sets {
            SourceSets::Whole => self.via(&rule.via),
            // Tests ask where rules lead, not through whom.
            SourceSets::Written => self.via(&Arc::default()),
        };
        let mut entries = Vec::with_capacity(rule.destinations.len());
        let mut own_devices = Vec::new();
        for (alias, ports) in &rule.destinations {
            if alias.value != Alias::OwnDevices {
                entries.push((self.target(&alias.value, via), ports.clone()));
            } else if rule.via.is_empty() {
                own_devices.extend_from_slice(ports);
            }
        }
        let origins = Origins {
            rule: rule.origin,
            entries: vec![rule.origin; entries.len()],
            own_devices: vec![rule.origin; own_devices.len()],
        };
        self.written.push(Arc::new(CompiledRule {
            source,
            protocols: rule.protocols.clone(),
            entries,
            own_devices,
            capabilities: rule.capabilities.clone(),
            companion: None,
            origins,
        }));
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
            let anyhow = self.via(&Arc::default());
            let entries = granted.map(|alias| (self.target(alias, anyhow), Vec::new()));
            let entries: Vec<_> = entries.collect();
            self.written.push(Arc::new(CompiledRule {
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
            }));
        }
        if destinations().any(|alias| *alias == Alias::OwnDevices) {
            self.written.push(Arc::new(CompiledRule {
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
            }));
        }
    }

    fn members(&mut self, alias: &Alias) -> Bits {
        let key = alias.canonical();
        if let Some(known) = self.members.get(&key) {
            return known.clone();
        }
        let members: Bits = self.named.of(alias).into_iter().collect();
        self.members.insert(key, members.clone());
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
        let mut key: Vec<Alias> = aliases.iter().map(Alias::canonical).collect();
        key.sort_unstable();
        key.dedup();
        if let Some(&known) = self.source_of.get(&key[..]) {
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
        let nodes = self.nodes_in(&set);
        let members = match self.sets {
            SourceSets::Whole => nodes.clone(),
            SourceSets::Written => named,
        };
        let nodes = self.and_routers(nodes, &set);
        let routes = self.routes_where(|route| set.overlaps_net(route));
        let source = Source::new(aliases.clone(), set, [members, nodes, routes]);
        self.sources.push(Arc::new(source));
        self.source_of.insert(key.into(), self.sources.len() - 1);
        self.sources.len() - 1
    }

    fn via(&mut self, tags: &Arc<[String]>) -> usize {
        // Rules of one grant have one list.
        if let Some((last, at)) = &self.last_via
            && Arc::ptr_eq(last, tags)
        {
            return *at;
        }
        let at = self.find_via(tags);
        self.last_via = Some((tags.clone(), at));
        at
    }

    fn find_via(&mut self, tags: &Arc<[String]>) -> usize {
        if let Some(&known) = self.via_of.get(tags) {
            return known;
        }
        let is_one = |tag: &String| tags.binary_search(tag).is_ok();
        let tagged = self.nodes_where(|node| node.facts.tags.iter().any(is_one));
        self.vias.push(Via {
            tags: tags.clone(),
            tagged,
        });
        self.via_of.insert(tags.clone(), self.vias.len() - 1);
        self.vias.len() - 1
    }

    fn target(&mut self, alias: &Alias, via: usize) -> usize {
        let key = (alias.canonical(), via);
        if let Some(&known) = self.target_of.get(&key) {
            return known;
        }
        let target = match self.anywhere(alias) {
            target if self.vias[via].tags.is_empty() => target,
            target => self.through(target, &self.vias[via]),
        };
        self.targets.push(Arc::new(target));
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
                let set = match self.sets {
                    SourceSets::Whole => addresses_of(self.nodes, &members),
                    SourceSets::Written => AddressSet::default(),
                };
                (TargetKind::Members(members), set)
            }
        };
        if self.sets == SourceSets::Written {
            return self.written_target(alias, kind, set);
        }
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

    fn written_target(&self, alias: &Alias, kind: TargetKind, set: AddressSet) -> Target {
        Target {
            alias: alias.clone(),
            via: Arc::default(),
            nodes: self.nodes_in(&set),
            routes: Bits::default(),
            kind,
            set,
        }
    }

    /// The same destination, through routers with one of the tags only. Exit nodes don't count as such.
    fn through(&self, target: Target, via: &Via) -> Target {
        let set = target.set;
        let tagged = via.tagged.iter();
        Target {
            alias: target.alias,
            via: via.tags.clone(),
            kind: TargetKind::Via {
                texts: match target.kind {
                    TargetKind::Net(net) => vec![net_text(&net)],
                    TargetKind::Internet(texts) => texts,
                    _ => set.texts(),
                },
                tagged: via.tagged.clone(),
            },
            nodes: tagged
                .filter(|at| self.nodes[*at].behind.overlaps(&set))
                .collect(),
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
