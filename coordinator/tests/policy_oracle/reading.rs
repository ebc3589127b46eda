//! A slow reading of the policy language (`protocol.md` 10.4), straight from what is written: for one packet, one pair of nodes,
//! one login.
//!
//! Nothing is prepared, merged or reduced, and no code of the compiler is used.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use lowroad_coordinator::policy::{NodeFacts, World};
use lowroad_wire::control::UserId;

use super::generate::Packet;
use super::language::{
    ALL_PORTS, Acl, DISABLE_IPV4, DOMAIN, GROUPS, Grant, HOSTS, Login, Ports, Protocol, Ssh, USERS,
    Who, Written,
};

/// Addresses of one family from one to another, both included.
type Span = (IpAddr, IpAddr);

pub struct Reading<'a> {
    pub policy: &'a Written,
    pub world: &'a World,
}

/// One source list to one destination: of an ACL, or of a grant.
struct Rule<'a> {
    src: &'a [Who],
    dst: Who,
    via: &'a [&'static str],
    /// What is allowed there.
    access: Vec<(Option<Protocol>, Ports)>,
    app: Option<(&'static str, u32)>,
}

pub fn addresses(node: &NodeFacts) -> Vec<IpAddr> {
    let (v4, v6) = (node.v4.map(IpAddr::from), node.v6.map(IpAddr::from));
    v4.into_iter().chain(v6).collect()
}

fn owner(node: &NodeFacts) -> Option<UserId> {
    node.user.filter(|_| node.tags.is_empty())
}

fn same_user(one: &NodeFacts, other: &NodeFacts) -> bool {
    owner(one).is_some() && owner(one) == owner(other)
}

fn login_name(user: UserId) -> &'static str {
    USERS[usize::try_from(user.0 - 1).expect("users have numbers from 1 on")]
}

/// What stands before the `@` of an e-mail address in the tailnet's domain.
fn local_part(node: &NodeFacts) -> Option<&'static str> {
    let (local, domain) = login_name(owner(node)?).split_once('@')?;
    (domain == DOMAIN).then_some(local)
}

fn net(text: &str) -> IpNet {
    let address = |text: &str| text.parse::<IpAddr>().map(IpNet::from);
    text.parse().or_else(|_| address(text)).expect("a constant")
}

fn span(net: &IpNet) -> Span {
    (net.network(), net.broadcast())
}

fn holds(spans: &[Span], address: IpAddr) -> bool {
    spans.iter().any(|&(first, last)| {
        first.is_ipv4() == address.is_ipv4() && first <= address && address <= last
    })
}

fn meet(some: &[Span], others: &[Span]) -> bool {
    some.iter()
        .any(|&(first, last)| holds(others, first) || holds(others, last))
        || others.iter().any(|&(first, _)| holds(some, first))
}

fn is_exit(route: &IpNet) -> bool {
    route.prefix_len() == 0
}

/// What lies behind exit nodes: neither private nor the tailnet's.
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            let first = v4.octets()[0];
            let shared = v4.octets()[..2] >= [100, 64][..] && v4.octets()[..2] < [100, 128][..];
            !(v4.is_private() || v4.is_link_local() || shared || [0, 127].contains(&first))
                && first < 224
        }
        IpAddr::V6(v6) => v6.segments()[0] >> 13 == 1,
    }
}

impl Reading<'_> {
    fn rules(&self) -> Vec<Rule<'_>> {
        let mut rules = Vec::new();
        for Acl { src, protocol, dst } in self.policy.acls.iter().flatten() {
            rules.extend(dst.iter().map(|(dst, ports)| Rule {
                src,
                dst: *dst,
                via: &[],
                access: ports.iter().map(|ports| (*protocol, *ports)).collect(),
                app: None,
            }));
        }
        for grant in self.policy.grants.iter().flatten() {
            let Grant { src, via, .. } = grant;
            rules.extend(grant.dst.iter().map(|dst| Rule {
                src,
                dst: *dst,
                via,
                access: grant.ip.clone(),
                app: grant.app,
            }));
        }
        if self.policy.acls.is_none() && self.policy.grants.is_none() {
            rules.push(Rule {
                src: &[Who::Any],
                dst: Who::Any,
                via: &[],
                access: vec![(None, ALL_PORTS)],
                app: None,
            });
        }
        rules
    }

    /// Whether somebody is named who has this node, or the node itself is.
    fn names(&self, who: Who, node: &NodeFacts) -> bool {
        let user = owner(node);
        match who {
            Who::Owner => user.is_some_and(|user| self.is_owner(user)),
            Who::Admin => user.is_some_and(|user| self.is_admin(user)),
            Who::Member => node.tags.is_empty(),
            Who::Tagged => !node.tags.is_empty(),
            Who::Tag(tag) => node.tags.iter().any(|worn| worn == tag),
            Who::User(name) => user.is_some_and(|user| login_name(user) == name),
            Who::Domain => local_part(node).is_some(),
            Who::Group(name) => {
                let mut groups = GROUPS.iter().zip(&self.policy.groups);
                let members = groups.find(|(group, _)| **group == name).map(|(_, is)| is);
                user.is_some_and(|user| {
                    members.is_some_and(|members| members.contains(&login_name(user)))
                })
            }
            _ => false,
        }
    }

    fn is_owner(&self, user: UserId) -> bool {
        self.world.tailnet.owner == Some(user)
    }

    fn is_admin(&self, user: UserId) -> bool {
        self.is_owner(user) || self.world.tailnet.admins.contains(&user)
    }

    /// The attributes that the policy gives a node, and what its user's role does.
    pub fn attributes(&self, node: &NodeFacts) -> BTreeSet<&'static str> {
        let is_at = |written: &str| {
            let net = net(written);
            addresses(node).iter().any(|own| net.contains(own))
        };
        let is_meant = |who: &Who| match who {
            Who::Any => true,
            Who::Net(net) => is_at(net),
            Who::Host(name) => HOSTS.iter().any(|(host, net)| host == name && is_at(net)),
            who => self.names(*who, node),
        };
        let given = self.policy.attributes.iter();
        let given = given.filter(|(to, _)| to.iter().any(is_meant));
        let mut all: BTreeSet<&str> = given.flat_map(|(_, names)| names).copied().collect();
        let user = owner(node);
        if !node.tags.is_empty() || user.is_some_and(|user| self.is_owner(user)) {
            all.insert("https://tailscale.com/cap/is-owner");
        }
        if user.is_some_and(|user| self.is_admin(user)) {
            all.insert("https://tailscale.com/cap/is-admin");
        }
        all
    }

    /// The routes of a node that somebody approved, exit routes among them.
    pub fn approved(&self, node: &NodeFacts) -> BTreeSet<IpNet> {
        let by = |who: &[Who]| who.iter().any(|who| self.names(*who, node));
        let is_approved = |route: &IpNet| match is_exit(route) {
            true => node.admin_approved.iter().any(is_exit) || by(&self.policy.exit_approvers),
            false => {
                let mut approvers = self.policy.route_approvers.iter();
                node.admin_approved.contains(route)
                    || approvers.any(|(prefix, who)| net(prefix).contains(route) && by(who))
            }
        };
        node.announced.iter().copied().filter(is_approved).collect()
    }

    fn subnets(&self, node: &NodeFacts) -> Vec<Span> {
        let routes = self.approved(node);
        let subnets = routes.iter().filter(|route| !is_exit(route));
        subnets.map(span).collect()
    }

    fn extent(&self, node: &NodeFacts) -> Vec<Span> {
        let own = addresses(node).into_iter().map(|own| (own, own));
        own.chain(self.subnets(node)).collect()
    }

    fn is_exit_node(&self, node: &NodeFacts) -> bool {
        self.approved(node).iter().any(is_exit)
    }

    fn addresses_of(&self, who: Who) -> Vec<Span> {
        let nodes = self.world.nodes.iter();
        let named = nodes.filter(|node| self.names(who, node));
        named
            .flat_map(addresses)
            .map(|address| (address, address))
            .collect()
    }

    fn everything() -> Vec<Span> {
        vec![span(&net("0.0.0.0/0")), span(&net("::/0"))]
    }

    fn source(&self, who: Who) -> Vec<Span> {
        match who {
            Who::Any => {
                let address = |text: &str| text.parse::<IpAddr>().expect("a constant");
                let mut tailnet = vec![
                    (address("100.64.0.0"), address("100.115.91.255")),
                    (address("100.115.94.0"), address("100.127.255.255")),
                    span(&net("fd7a:115c:a1e0::/48")),
                ];
                let nodes = self.world.nodes.iter();
                tailnet.extend(nodes.flat_map(|node| self.subnets(node)));
                tailnet
            }
            Who::DangerAll => Self::everything(),
            Who::Net(text) => vec![span(&net(text))],
            Who::Host(name) => {
                let hosts = HOSTS.iter().filter(|(host, _)| *host == name);
                hosts.map(|(_, text)| span(&net(text))).collect()
            }
            who => self.addresses_of(who),
        }
    }

    fn sources(&self, list: &[Who]) -> Vec<Span> {
        list.iter().flat_map(|who| self.source(*who)).collect()
    }

    /// All addresses of a destination that is neither autogroup:self nor autogroup:internet.
    fn destination(&self, who: Who) -> Vec<Span> {
        match who {
            Who::Any => Self::everything(),
            who => self.source(who),
        }
    }

    /// Whether a destination has an address among these. No route of the tests is half public.
    fn reaches_into(&self, who: Who, spans: &[Span]) -> bool {
        match who {
            Who::OwnDevices => false,
            Who::Internet => spans.iter().any(|(first, _)| is_public(*first)),
            who => meet(&self.destination(who), spans),
        }
    }

    /// Whether a grant leads through this node.
    fn leads_through(&self, rule: &Rule, node: &NodeFacts) -> bool {
        let is_tagged = node.tags.iter().any(|tag| rule.via.contains(&tag.as_str()));
        is_tagged && self.reaches_into(rule.dst, &self.subnets(node))
    }

    fn is_device_of_same_user(&self, address: IpAddr, node: &NodeFacts) -> bool {
        let mut nodes = self.world.nodes.iter();
        nodes.any(|other| same_user(other, node) && addresses(other).contains(&address))
    }

    /// Whether what a node is told of a rule's destination has the packet's.
    fn is_destination(&self, rule: &Rule, at: &NodeFacts, packet: &Packet) -> bool {
        let to = packet.to;
        if !rule.via.is_empty() {
            return self.leads_through(rule, at)
                && match rule.dst {
                    Who::Internet => is_public(to),
                    who => holds(&self.destination(who), to),
                };
        }
        match rule.dst {
            Who::Any => true,
            Who::Internet => self.is_exit_node(at) && is_public(to),
            Who::OwnDevices => {
                addresses(at).contains(&to) && self.is_device_of_same_user(packet.from, at)
            }
            Who::Net(_) | Who::Host(_) => {
                let written = self.destination(rule.dst);
                meet(&written, &self.extent(at)) && holds(&written, to)
            }
            who => {
                holds(&self.addresses_of(who), to)
                    && (addresses(at).contains(&to) || holds(&self.subnets(at), to))
            }
        }
    }

    /// Whether a packet that arrives at a node may pass.
    pub fn allows(&self, at: &NodeFacts, packet: &Packet) -> bool {
        let fits = |(protocol, (first, last)): &(Option<Protocol>, Ports)| {
            let by_protocol = match protocol {
                None => [6, 17, 1, 58].contains(&packet.protocol),
                Some((_, number)) => *number == packet.protocol,
            };
            let has_ports = [6, 17, 132].contains(&packet.protocol);
            by_protocol && (!has_ports || (*first..=*last).contains(&packet.port))
        };
        self.rules().iter().any(|rule| {
            rule.access.iter().any(fits)
                && holds(&self.sources(rule.src), packet.from)
                && self.is_destination(rule, at, packet)
        })
    }

    /// The capabilities that the sender of a packet holds at a node.
    pub fn capabilities(&self, at: &NodeFacts, packet: &Packet) -> BTreeSet<String> {
        let mut held = BTreeSet::new();
        if !addresses(at).contains(&packet.to) {
            return held;
        }
        for rule in self.rules() {
            let Some((name, value)) = rule.app.filter(|_| rule.via.is_empty()) else {
                continue;
            };
            let of_same_user = self.is_device_of_same_user(packet.from, at);
            let is_granted = match rule.dst {
                Who::OwnDevices => of_same_user,
                who => holds(&self.destination(who), packet.to),
            };
            if is_granted && holds(&self.sources(rule.src), packet.from) {
                held.insert(format!("{name} [{value}]"));
            }
            let companion = match name {
                "tailscale.com/cap/drive" => "tailscale.com/cap/drive-sharer",
                "tailscale.com/cap/relay" => "tailscale.com/cap/relay-target",
                _ => continue,
            };
            let serves = match rule.dst {
                Who::OwnDevices => of_same_user,
                who => holds(&self.source(who), packet.from),
            };
            let is_told = |who: &Who| match who {
                Who::Any => true,
                who => holds(&self.source(*who), packet.to),
            };
            if serves && rule.src.iter().any(is_told) {
                held.insert(format!("{companion} []"));
            }
        }
        held
    }

    /// Whether a rule lets something at or behind `from` reach something at or behind `to`.
    fn connects(&self, rule: &Rule, from: &NodeFacts, to: &NodeFacts) -> bool {
        let sources = self.sources(rule.src);
        if !rule.via.is_empty() {
            return meet(&sources, &self.extent(from)) && self.leads_through(rule, to);
        }
        match rule.dst {
            Who::OwnDevices => {
                same_user(from, to) && addresses(from).iter().any(|own| holds(&sources, *own))
            }
            Who::Internet => meet(&sources, &self.extent(from)) && self.is_exit_node(to),
            who => {
                meet(&sources, &self.extent(from)) && meet(&self.destination(who), &self.extent(to))
            }
        }
    }

    pub fn see_each_other(&self, one: &NodeFacts, other: &NodeFacts) -> bool {
        let rules = self.rules();
        one.id != other.id
            && rules
                .iter()
                .any(|rule| self.connects(rule, one, other) || self.connects(rule, other, one))
    }

    /// The first of several nodes that may carry a route: one that is there, then the oldest.
    fn first<'n>(of: impl Iterator<Item = &'n NodeFacts>) -> Option<&'n NodeFacts> {
        of.min_by_key(|node| (!node.online, node.created, node.id))
    }

    /// Through whom a viewer is to send packets for an approved subnet route.
    fn carrier(&self, viewer: &NodeFacts, route: &IpNet) -> Option<&NodeFacts> {
        let nodes = || self.world.nodes.iter();
        let offers = |node: &&NodeFacts| self.approved(node).contains(route);
        let primary = Self::first(nodes().filter(offers))?;
        let there = [span(route)];
        let extent = self.extent(viewer);
        let rules = self.rules();
        let shows = |rule: &Rule| {
            let sources = self.sources(rule.src);
            let back = match rule.dst {
                Who::OwnDevices => false,
                Who::Internet => self.is_exit_node(viewer),
                who => meet(&self.destination(who), &extent),
            };
            let leads_there = rule.dst != Who::Internet && self.reaches_into(rule.dst, &there);
            (meet(&sources, &extent) && leads_there) || (meet(&sources, &there) && back)
        };
        let mut plain = rules.iter().filter(|rule| rule.via.is_empty());
        if plain.any(shows) || offers(&viewer) {
            return Some(primary);
        }
        let covers = |rule: &&Rule| {
            let sources = self.sources(rule.src);
            meet(&sources, &extent) && self.reaches_into(rule.dst, &there)
        };
        let tags: BTreeSet<&str> = rules
            .iter()
            .filter(covers)
            .flat_map(|rule| rule.via.iter().copied())
            .collect();
        let is_tagged = |node: &&NodeFacts| node.tags.iter().any(|tag| tags.contains(tag.as_str()));
        if is_tagged(&primary) {
            return Some(primary);
        }
        Self::first(nodes().filter(offers).filter(is_tagged))
    }

    /// The subnet routes that a viewer is shown of a peer, and all that it may send to it.
    pub fn shown(
        &self,
        viewer: &NodeFacts,
        peer: &NodeFacts,
    ) -> (BTreeSet<IpNet>, BTreeSet<IpNet>) {
        let approved = self.approved(peer);
        let is_carried = |route: &&IpNet| {
            !is_exit(route)
                && self
                    .carrier(viewer, route)
                    .is_some_and(|by| by.id == peer.id)
        };
        let primary: BTreeSet<IpNet> = approved.iter().filter(is_carried).copied().collect();
        let rules = self.rules();
        let may_leave = rules.iter().any(|rule| {
            let sources = self.sources(rule.src);
            rule.via.is_empty()
                && matches!(rule.dst, Who::Any | Who::Internet)
                && addresses(viewer).iter().any(|own| holds(&sources, *own))
        });
        let exits = approved.iter().filter(|route| is_exit(route) && may_leave);
        let hides_v4 = [viewer, peer]
            .iter()
            .any(|node| self.attributes(node).contains(DISABLE_IPV4));
        let own = addresses(peer).into_iter();
        let own = own.filter(|own| own.is_ipv6() || !hides_v4);
        let own = own.map(IpNet::from);
        let allowed = own.chain(primary.iter().copied()).chain(exits.copied());
        (allowed.collect(), primary)
    }

    /// Whether somebody at one node may log in to another under a name, and whether that is checked first.
    pub fn login(&self, from: &NodeFacts, to: &NodeFacts, name: &str) -> Option<bool> {
        let (checks, accepts): (Vec<&Ssh>, Vec<&Ssh>) =
            self.policy.ssh.iter().partition(|rule| rule.check);
        let named = |list: &[Who], node: &NodeFacts| list.iter().any(|who| self.names(*who, node));
        let applies = |rule: &&&Ssh| {
            let to_own = rule.dst.contains(&Who::OwnDevices) && same_user(from, to);
            // Rules with local parts are sent to their sources, too.
            let among_sources = rule.logins.contains(&Login::LocalPart)
                && rule.dst.iter().any(|who| *who != Who::OwnDevices)
                && named(&rule.src, to)
                && (same_user(from, to) || (from.id == to.id && !from.tags.is_empty()));
            named(&rule.src, from) && (named(&rule.dst, to) || to_own || among_sources)
        };
        let opens = |rule: &&&Ssh| {
            rule.logins.iter().any(|login| match login {
                Login::Root => name == "root",
                Login::NonRoot => name != "root",
                Login::LocalPart => local_part(from) == Some(name),
                Login::Name(listed) => *listed == name,
            })
        };
        let rules = checks.into_iter().chain(accepts);
        let rules: Vec<&Ssh> = rules.collect();
        let mut found = rules.iter().filter(applies).filter(opens);
        found.next().map(|rule| rule.check)
    }
}
