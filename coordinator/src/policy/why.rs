//! Whether one end may reach another, by which rule; if not, what comes nearest.

use std::net::IpAddr;

use lowroad_wire::control::{NodeId, PortRange};

use super::Policy;
use super::access::{Access, DEFAULT_PROTOCOLS};
use super::alias::{Alias, decimal, has_ports, parse_protocol, protocol_name};
use super::compile::{CompiledRule, TargetKind, internet};
use super::error::{At, Place as Written, PolicyError};
use super::origin::Origin;
use super::view::CompiledTailnet;

/// One end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WhyEnd {
    /// A node, at any of its addresses.
    Node(NodeId),
    /// An address that no node has.
    Address(IpAddr),
}

/// What a connection begins with. Protocols without ports don't look at the port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WhyProbe {
    /// Number of the protocol.
    pub protocol: u8,
    /// Destination port.
    pub port: u16,
}

impl std::str::FromStr for WhyProbe {
    type Err = String;

    /// `443` (by TCP), `53/udp`, `icmp`.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("`{text}` is neither a port nor a protocol; write 443, 53/udp or icmp");
        let (port, protocol) = match text.split_once('/') {
            Some((port, protocol)) => (port, protocol),
            None if decimal::<u32>(text).is_some() => (text, "tcp"),
            None => ("", text),
        };
        let place = Written { line: 1, column: 1 };
        let protocol = parse_protocol(At {
            place,
            value: protocol,
        })
        .map_err(|_| wrong())?;
        let port = match (has_ports(protocol), port) {
            (false, "" | "*") => 0,
            (false, _) => return Err(format!("`{text}`: this protocol has no ports")),
            (true, port) => decimal(port).ok_or_else(wrong)?,
        };
        Ok(Self { protocol, port })
    }
}

impl std::fmt::Display for WhyProbe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&protocol_name(self.protocol))?;
        if has_ports(self.protocol) {
            write!(f, ":{}", self.port)?;
        }
        Ok(())
    }
}

/// Whether a connection is allowed, and what says so.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Why {
    /// How it was decided.
    pub verdict: WhyVerdict,
    /// The rules that decided: those that allow it, or those that came nearest. Without any although it is allowed: there is no
    /// policy.
    pub rules: Vec<Origin>,
    /// The router or exit node that leads to an address that no node has.
    pub through: Option<NodeId>,
}

/// The order is that of nearness: what comes later was nearer to being allowed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WhyVerdict {
    /// Both are the same node: its packets to itself don't leave it.
    Itself,
    /// The source leads to that address itself: what it sends there stays outside the tailnet.
    OwnRoute,
    /// They have no address of the same family.
    NoFamily,
    /// Neither have they, because the policy gives these `disable-ipv4`: nobody knows of their IPv4, and they know of nobody's.
    WithoutV4(Vec<NodeId>),
    /// No rule has the source as a source.
    NoSource,
    /// Rules have it, but none leads to the destination.
    NoDestination,
    /// Rules would allow it, or none does, but no node has the address and no approved route leads there. These nodes announce one.
    NoRoute(Vec<NodeId>),
    /// A rule names the address, but only `*` and `autogroup:internet` lead through exit nodes.
    NotByExitNode,
    /// A rule leads there, but only through routers of which none does.
    NotThrough,
    /// Rules lead there by other protocols: by these, at these ports.
    Protocol(Vec<String>),
    /// Rules lead there by the protocol, but at these other ports.
    Port(Vec<String>),
    /// It is allowed.
    Allowed,
}

impl Policy {
    /// The ends that a policy means by `alice@example.com`, `group:ops`, `tag:web`, a host or an address.
    ///
    /// # Errors
    /// It means nobody, or is no end of a connection.
    pub fn ends(&self, compiled: &CompiledTailnet, text: &str) -> Result<Vec<WhyEnd>, String> {
        let place = Written { line: 1, column: 1 };
        let at = At { place, value: text };
        let alias = Alias::parse(at, "", &self.document.names)
            .map_err(|PolicyError { message, .. }| message.trim_start().to_owned())?;
        let parts = compiled.parts();
        let nodes = match &alias {
            Alias::Net(net) if net.prefix_len() == net.max_prefix_len() => {
                return Ok(vec![WhyEnd::Address(net.addr())]);
            }
            Alias::Any | Alias::DangerAll | Alias::Net(_) | Alias::Internet | Alias::OwnDevices => {
                return Err(format!(
                    "{text:?} is too much at once; name a node, a user, a group, a tag or an address"
                ));
            }
            alias => parts
                .nodes
                .live()
                .filter(|(_, node)| parts.people.names_node(alias, &node.facts)),
        };
        let nodes: Vec<WhyEnd> = nodes.map(|(_, node)| WhyEnd::Node(node.facts.id)).collect();
        if nodes.is_empty() {
            return Err(format!("{text:?} names no node"));
        }
        Ok(nodes)
    }
}

/// Subnet routers go before exit nodes: those with the longest prefix.
fn longest(routers: Vec<(u8, usize)>) -> impl Iterator<Item = usize> {
    let longest = routers.iter().map(|(length, _)| *length).max();
    let best = routers.into_iter();
    best.filter(move |(length, _)| Some(*length) == longest)
        .map(|(_, at)| at)
}

impl CompiledTailnet {
    /// Whether a connection from one end to another is allowed. An address of a node counts as the node.
    pub fn why(&self, from: WhyEnd, to: WhyEnd, probe: WhyProbe) -> Why {
        let (from, to) = (self.place(from), self.place(to));
        if from.node.is_some() && from.node == to.node {
            return Why::bare(WhyVerdict::Itself);
        }
        let pairs = from.addresses.iter().flat_map(|&source| {
            let same = move |address: &&IpAddr| address.is_ipv4() == source.is_ipv4();
            to.addresses
                .iter()
                .filter(same)
                .map(move |&to| (source, to))
        });
        let judged = pairs.map(|pair| self.judge(&from, &to, pair, probe));
        judged
            .max()
            .unwrap_or_else(|| Why::bare(self.without_family(&from, &to)))
    }

    fn without_family(&self, from: &Place, to: &Place) -> WhyVerdict {
        let ends = [from, to];
        let hiding: Vec<NodeId> = ends
            .into_iter()
            .filter(|end| end.hides_v4)
            .filter_map(|end| Some(self.parts().nodes[end.node?].facts.id))
            .collect();
        let has_v4 = |end: &&Place| end.hides_v4 || end.addresses.iter().any(IpAddr::is_ipv4);
        if hiding.is_empty() || !ends.iter().all(has_v4) {
            return WhyVerdict::NoFamily;
        }
        WhyVerdict::WithoutV4(hiding)
    }

    fn place(&self, end: WhyEnd) -> Place {
        let nodes = &self.parts().nodes;
        let node = match end {
            WhyEnd::Node(id) => self.position(id),
            WhyEnd::Address(address) => nodes
                .iter()
                .position(|node| node.addresses.contains(&address)),
        };
        let mut addresses = match (end, node) {
            // An address stands for its own family.
            (WhyEnd::Address(address), _) => vec![address],
            (WhyEnd::Node(_), Some(at)) => nodes[at].addresses.clone(),
            (WhyEnd::Node(_), None) => Vec::new(),
        };
        let all = addresses.len();
        if node.is_some_and(|at| self.parts().attributes[at].without_v4) {
            addresses.retain(IpAddr::is_ipv6);
        }
        Place {
            node,
            hides_v4: addresses.len() < all,
            addresses,
        }
    }

    fn judge(&self, from: &Place, to: &Place, pair: (IpAddr, IpAddr), probe: WhyProbe) -> Why {
        if let Some(at) = to.node {
            return self.judge_at(from, Some(at), at, pair, probe);
        }
        let others = (0..self.parts().nodes.len()).filter(|at| Some(*at) != from.node);
        let all = others.filter_map(|at| Some((self.leads_to(at, pair.1)?, at)));
        let all: Vec<(u8, usize)> = all.collect();
        // A node sends it by the longest route that it is shown, whatever others there are.
        let shown = match from.node {
            Some(at) => self.shown(at, pair.1, &all),
            None => all.clone(),
        };
        let through = longest(shown).map(|at| self.judge_through(from, at, pair, probe));
        if let Some(best) = through.max() {
            return best;
        }
        let own = from.node.and_then(|at| self.leads_to(at, pair.1));
        match own {
            Some(1..) => Why::bare(WhyVerdict::OwnRoute),
            Some(0) if all.is_empty() && internet().contains(pair.1) => {
                Why::bare(WhyVerdict::OwnRoute)
            }
            _ => self.judge_unshown(from, all, pair, probe),
        }
    }

    /// The length of the longest prefix by which a node leads to an address.
    fn leads_to(&self, at: usize, address: IpAddr) -> Option<u8> {
        let approved = self.parts().nodes[at].approved.iter();
        let there = approved.filter(|route| route.contains(&address));
        there.map(|route| route.prefix_len()).max()
    }

    fn judge_through(
        &self,
        from: &Place,
        router: usize,
        pair: (IpAddr, IpAddr),
        probe: WhyProbe,
    ) -> Why {
        Why {
            through: Some(self.parts().nodes[router].facts.id),
            ..self.judge_at(from, None, router, pair, probe)
        }
    }

    /// Nobody shows the source a way: by the rules it is refused, or it would be shown one.
    fn judge_unshown(
        &self,
        from: &Place,
        routers: Vec<(u8, usize)>,
        pair: (IpAddr, IpAddr),
        probe: WhyProbe,
    ) -> Why {
        let only_exits = routers.iter().all(|(length, _)| *length == 0);
        let on_the_internet = internet().contains(pair.1);
        let judged = longest(routers).map(|at| self.judge_through(from, at, pair, probe));
        let refused = judged.filter_map(|why| match why.verdict {
            // By the filter, which lets in what else is in the rule's prefix.
            WhyVerdict::Allowed if only_exits && on_the_internet => Some(Why {
                verdict: WhyVerdict::NotByExitNode,
                ..why
            }),
            WhyVerdict::Allowed => None,
            // What isn't on the internet needs a route.
            WhyVerdict::NotByExitNode if !on_the_internet => None,
            _ => Some(why),
        });
        let refused = refused.max();
        refused.unwrap_or_else(|| self.without_route(from, pair, probe))
    }

    /// Which of some routers lead a node to an address, with the length of the prefix that it is shown.
    fn shown(&self, viewer: usize, address: IpAddr, routers: &[(u8, usize)]) -> Vec<(u8, usize)> {
        let id = |at: usize| self.parts().nodes[at].facts.id;
        let shown = routers.iter().filter_map(|&(_, at)| {
            let peer = self.peer_view(id(viewer), id(at))?;
            let routes = peer.allowed_ips.iter();
            let there = routes.filter(|route| route.contains(&address));
            let length = there.map(|route| route.prefix_len()).max()?;
            Some((length, at))
        });
        shown.collect()
    }

    /// No approved route leads to the address. The rules that would allow it are told all the same.
    fn without_route(&self, from: &Place, pair: (IpAddr, IpAddr), probe: WhyProbe) -> Why {
        let parts = self.parts();
        let announcing = parts.nodes.iter().filter(|node| {
            let mut routes = node.facts.announced.iter();
            routes.any(|route| route.contains(&pair.1) && !node.approved.contains(route))
        });
        let steps: Vec<Step> = self.steps(from, None, None, pair, probe).collect();
        let allowed = steps
            .iter()
            .filter(|step| step.nearness == Nearness::Allowed);
        Why {
            verdict: WhyVerdict::NoRoute(announcing.map(|node| node.facts.id).collect()),
            rules: sorted(allowed),
            through: None,
        }
    }

    /// By the packet filter of the node that the packet goes to.
    fn judge_at(
        &self,
        from: &Place,
        to: Option<usize>,
        receiver: usize,
        pair: (IpAddr, IpAddr),
        probe: WhyProbe,
    ) -> Why {
        let steps: Vec<Step> = self.steps(from, to, Some(receiver), pair, probe).collect();
        let Some(nearest) = steps.iter().map(|step| step.nearness).max() else {
            return Why::bare(WhyVerdict::NoSource);
        };
        let nearest_steps = || steps.iter().filter(|step| step.nearness == nearest);
        let given = || {
            let mut all = Access::default();
            nearest_steps().for_each(|step| all.unite(&step.access()));
            all.texts()
        };
        let verdict = match nearest {
            Nearness::Source => WhyVerdict::NoDestination,
            Nearness::Exit => WhyVerdict::NotByExitNode,
            Nearness::Through => WhyVerdict::NotThrough,
            Nearness::Destination => WhyVerdict::Protocol(given()),
            Nearness::Protocol => WhyVerdict::Port(given()),
            Nearness::Allowed => WhyVerdict::Allowed,
        };
        Why {
            verdict,
            rules: sorted(nearest_steps()),
            through: None,
        }
    }

    /// How near the destinations of all rules come that have the source. Without a receiver, every node is one.
    fn steps<'a>(
        &'a self,
        from: &'a Place,
        to: Option<usize>,
        receiver: Option<usize>,
        (source, destination): (IpAddr, IpAddr),
        probe: WhyProbe,
    ) -> impl Iterator<Item = Step<'a>> + 'a {
        let parts = self.parts();
        let nodes = &parts.nodes;
        let same_user = match (from.node, to) {
            (Some(from), Some(to)) => {
                let owner = nodes[from].facts.owner();
                owner.is_some() && owner == nodes[to].facts.owner()
            }
            _ => false,
        };
        let rules = parts
            .rules
            .iter()
            .filter(|rule| rule.capabilities.is_none());
        rules.flat_map(move |rule| {
            let from_set = &parts.sources[rule.source];
            let is_source = from_set.set.contains(source);
            let entries = rule.entries.iter().zip(&rule.origins.entries);
            let general =
                entries
                    .filter(move |_| is_source)
                    .map(move |((target, ports), origin)| {
                        let target = &parts.targets[*target];
                        let nearness = if !target.set.contains(destination) {
                            Nearness::Source
                        } else if receiver.is_some_and(|at| !target.is_sent_to(at)) {
                            match target.kind {
                                TargetKind::Via { .. } => Nearness::Through,
                                TargetKind::Net(_) => Nearness::Exit,
                                _ => Nearness::Source,
                            }
                        } else {
                            nearness(rule, ports, probe)
                        };
                        Step {
                            nearness,
                            origin: *origin,
                            rule,
                            ports,
                        }
                    });
            let is_member = from.node.is_some_and(|at| from_set.members.contains(at));
            let own = rule.own_devices.iter().zip(&rule.origins.own_devices);
            let own = own.filter(move |_| is_member).map(move |(ports, origin)| {
                let ports = std::slice::from_ref(ports);
                Step {
                    nearness: if same_user {
                        nearness(rule, ports, probe)
                    } else {
                        Nearness::Source
                    },
                    origin: *origin,
                    rule,
                    ports,
                }
            });
            general.chain(own)
        })
    }
}

/// An end, looked up.
struct Place {
    node: Option<usize>,
    /// That others know of.
    addresses: Vec<IpAddr>,
    hides_v4: bool,
}

/// How far a destination of a rule goes along with a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Nearness {
    /// The source is the rule's.
    Source,
    /// So is the destination, but rules like this one don't lead through exit nodes.
    Exit,
    /// So is the destination, but not through this router.
    Through,
    /// Source and destination are the rule's.
    Destination,
    /// And the protocol.
    Protocol,
    /// And the port.
    Allowed,
}

struct Step<'a> {
    nearness: Nearness,
    origin: Option<Origin>,
    rule: &'a CompiledRule,
    ports: &'a [PortRange],
}

impl Step<'_> {
    fn access(&self) -> Access {
        Access::of_ports(&self.rule.protocols, self.ports)
    }
}

fn nearness(rule: &CompiledRule, ports: &[PortRange], probe: WhyProbe) -> Nearness {
    let protocols = match rule.protocols.as_slice() {
        [] => &DEFAULT_PROTOCOLS,
        listed => listed,
    };
    if !protocols.contains(&probe.protocol) {
        Nearness::Destination
    } else if has_ports(probe.protocol) && !ports.iter().any(|range| range.contains(probe.port)) {
        Nearness::Protocol
    } else {
        Nearness::Allowed
    }
}

fn sorted<'a>(steps: impl Iterator<Item = &'a Step<'a>>) -> Vec<Origin> {
    let mut origins: Vec<Origin> = steps.filter_map(|step| step.origin).collect();
    origins.sort_unstable();
    origins.dedup();
    origins
}

impl Why {
    fn bare(verdict: WhyVerdict) -> Self {
        Self {
            verdict,
            rules: Vec::new(),
            through: None,
        }
    }
}
