//! Rules, and entries of rules, that match no connection.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use ipnet::IpNet;
use lowroad_wire::control::PortRange;

use super::super::addresses::{AddressSet, Collector};
use super::super::alias::Alias;
use super::super::compile::{Nodes, internet};
use super::super::error::{At, Place};
use super::super::routes::is_exit;
use super::super::syntax::{Document, Rule};
use super::super::view::CompiledTailnet;
use super::{Collected, PolicyWarningKind, is_empty};

const ON_THE_INTERNET: &str = "no node has that address, no route leads there, and only `*` and autogroup:internet lead through exit nodes";
const ICMP: u8 = 1;
const ICMP_V6: u8 = 58;

/// Warns of them.
pub(super) fn look(
    document: &Document,
    compiled: &CompiledTailnet,
    assignable: &BTreeSet<&str>,
    warnings: &mut Collected,
) {
    let nodes = &compiled.parts().nodes;
    let reach = Reach::new(nodes);
    let mut routers = Routers::default();
    let mut before = None;
    for rule in document.rules.iter().flatten() {
        let routers = routers.behind(nodes, &rule.via);
        let look = Look {
            document,
            assignable,
            reach: &reach,
            routers: &routers,
            rule,
            speaks: [false, true].map(|v6| rule.sources.iter().any(|source| speaks(source, v6))),
        };
        // The rules of one grant have the same sources.
        if before.replace(rule.place) != Some(rule.place) {
            let sources = rule.sources.iter();
            let sources = sources.map(|at| (at, look.dead_source(&at.value)));
            warn(rule.place, "src", sources, warnings);
        }
        let destinations = rule.destinations.iter();
        let destinations =
            destinations.map(|(at, ports)| (at, look.dead_destination(&at.value, ports)));
        warn(rule.place, "dst", destinations, warnings);
    }
    look_at_logins(document, assignable, warnings);
}

/// `ssh` rules are about users and tags only.
fn look_at_logins(document: &Document, assignable: &BTreeSet<&str>, warnings: &mut Collected) {
    for rule in &document.ssh {
        for (list, aliases) in [("src", &rule.sources), ("dst", &rule.destinations)] {
            let entries = aliases.iter();
            let entries = entries.map(|at| (at, nobody(document, assignable, &at.value)));
            warn(rule.origin.place, list, entries, warnings);
        }
    }
}

/// One warning if no entry of a rule's list can match, else one for each that can't.
fn warn<'r>(
    rule: Place,
    list: &str,
    entries: impl ExactSizeIterator<Item = (&'r At<Alias>, Option<String>)>,
    warnings: &mut Collected,
) {
    let kind = PolicyWarningKind::NeverMatches;
    let all = entries.len();
    let dead: Vec<_> = entries
        .filter_map(|(at, why)| Some((at.place, why?)))
        .collect();
    if all == 0 {
        let message = format!("this rule never matches: {list} is empty");
        return warnings.push(rule, kind, message);
    }
    if dead.len() == all {
        let mut dead = dead.into_iter();
        if let Some((place, why)) = dead.next() {
            warnings.push(place, kind, format!("this rule never matches: {why}"));
        }
        return;
    }
    for (place, why) in dead {
        warnings.push(place, kind, format!("this entry never matches: {why}"));
    }
}

/// Why an alias means nobody, and will not as long as the policy stays.
fn nobody(document: &Document, assignable: &BTreeSet<&str>, alias: &Alias) -> Option<String> {
    match alias {
        Alias::Group(name) if is_empty(document, name) => Some(format!("{name:?} has no members")),
        Alias::Tag(tag) if !assignable.contains(tag.as_str()) => Some(format!(
            "no node has {tag:?}, and nobody may give it to one but by an auth key"
        )),
        _ => None,
    }
}

/// What the nodes have and lead to.
struct Reach {
    /// All addresses of nodes and behind them, by approved routes; `None` while there are no nodes.
    all: Option<AddressSet>,
    /// What nodes announce, approved or not.
    announced: AddressSet,
    has_exit: bool,
    internet: AddressSet,
}

impl Reach {
    fn new(nodes: &Nodes) -> Self {
        let (mut all, mut announced) = (Collector::default(), Collector::default());
        for node in nodes.iter() {
            all.set(&node.extent);
            let subnets = node.facts.announced.iter().filter(|route| !is_exit(route));
            subnets.for_each(|route| announced.net(route));
        }
        Self {
            all: nodes.live().next().is_some().then(|| all.finish()),
            announced: announced.finish(),
            has_exit: nodes.iter().any(|node| node.approved.iter().any(is_exit)),
            internet: internet(),
        }
    }

    /// Why nothing can be reached at an address or prefix.
    fn leads_nowhere(&self, net: &IpNet) -> Option<&'static str> {
        let nothing = self.nothing_at(net)?;
        let exits = self.has_exit && !self.announced.overlaps_net(net);
        Some(match exits && self.internet.overlaps_net(net) {
            true => ON_THE_INTERNET,
            false => nothing,
        })
    }

    /// Why nothing is at an address or prefix.
    fn nothing_at(&self, net: &IpNet) -> Option<&'static str> {
        let all = self.all.as_ref()?;
        if all.overlaps_net(net) {
            return None;
        }
        Some(if self.announced.overlaps_net(net) {
            "no node has that address, and the routes that are announced there are not approved"
        } else {
            "no node has that address, and no route leads there"
        })
    }
}

/// What is behind the nodes that have one of some tags, by these.
#[derive(Default)]
struct Routers {
    known: HashMap<Arc<[String]>, Arc<AddressSet>>,
    /// The rules of one grant have one list.
    last: Option<(Arc<[String]>, Arc<AddressSet>)>,
}

impl Routers {
    fn behind(&mut self, nodes: &Nodes, tags: &Arc<[String]>) -> Arc<AddressSet> {
        if let Some((_, behind)) = self
            .last
            .as_ref()
            .filter(|(last, _)| Arc::ptr_eq(last, tags))
        {
            return behind.clone();
        }
        let behind = self.known.entry(tags.clone()).or_insert_with(|| {
            let is_one = |tag: &String| tags.binary_search(tag).is_ok();
            let mut behind = Collector::default();
            let routers = nodes
                .iter()
                .filter(|node| node.facts.tags.iter().any(is_one));
            routers.for_each(|node| behind.set(&node.behind));
            Arc::new(behind.finish())
        });
        self.last = Some((tags.clone(), behind.clone()));
        behind.clone()
    }
}

struct Look<'a> {
    document: &'a Document,
    assignable: &'a BTreeSet<&'a str>,
    reach: &'a Reach,
    /// What the routers of the rule's `via` lead to.
    routers: &'a AddressSet,
    rule: &'a Rule,
    /// Whether any source has addresses of IPv4, and of IPv6.
    speaks: [bool; 2],
}

/// Whether a source may have addresses of a family.
fn speaks(source: &At<Alias>, v6: bool) -> bool {
    match source.value {
        Alias::Net(net) => v6 == matches!(net, IpNet::V6(_)),
        _ => true,
    }
}

impl Look<'_> {
    /// Why a source is nobody.
    fn dead_source(&self, alias: &Alias) -> Option<String> {
        match alias {
            Alias::Net(net) => self.reach.nothing_at(net).map(str::to_owned),
            alias => self.nobody(alias),
        }
    }

    /// Why nothing of a destination can be reached.
    fn dead_destination(&self, alias: &Alias, ports: &[PortRange]) -> Option<String> {
        if self.rule.capabilities.is_none() && ports.iter().all(|ports| ports.last == 0) {
            return Some("nothing can be reached at port 0".to_owned());
        }
        match alias {
            Alias::Internet if self.reach.all.is_some() && !self.reach.has_exit => {
                Some("no exit node is approved".to_owned())
            }
            Alias::Net(net) => self.wrong_family(net).or_else(|| match &*self.rule.via {
                [] => self.reach.leads_nowhere(net).map(str::to_owned),
                _ => self.nothing_through_routers(net),
            }),
            alias => self.nobody(alias),
        }
    }

    fn nothing_through_routers(&self, net: &IpNet) -> Option<String> {
        let nothing = self.reach.all.is_some() && !self.routers.overlaps_net(net);
        nothing.then(|| "no node with a tag of `via` has an approved route there".to_owned())
    }

    fn nobody(&self, alias: &Alias) -> Option<String> {
        nobody(self.document, self.assignable, alias)
    }

    /// Why no source speaks the destination's family, or the rule's protocols don't exist in it.
    fn wrong_family(&self, net: &IpNet) -> Option<String> {
        let is_v6 = matches!(net, IpNet::V6(_));
        let (family, other) = if is_v6 {
            ("IPv6", "IPv4")
        } else {
            ("IPv4", "IPv6")
        };
        if !self.rule.sources.is_empty() && !self.speaks[usize::from(is_v6)] {
            return Some(format!(
                "it is an {family} address, and the sources have {other} only"
            ));
        }
        let foreign = if is_v6 { ICMP } else { ICMP_V6 };
        (self.rule.protocols == [foreign]).then(|| {
            format!("the protocol doesn't exist in {family}, and this is an {family} address")
        })
    }
}
