//! `tests`: what a policy's author says must be accepted and refused, tried on the compiled policy.
//!
//! Users and tags that no node has yet are tried with a node that stands in for them, so that a
//! policy can be checked before anybody has joined.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use lowroad_wire::control::{NodeId, UserId};

use super::alias::{Alias, decimal, parse_protocol, split_destination};
use super::compile::Node;
use super::error::{At, PolicyError};
use super::people::People;
use super::syntax::{Document, Test};
use super::view::CompiledTailnet;
use super::world::{NodeFacts, UserFacts, World};
use super::{Policy, recompile};

const TCP: u8 = 6;
const UDP: u8 = 17;

/// What an absent IPProto in a rule allows.
const DEFAULT_PROTOCOLS: [u8; 4] = [TCP, UDP, 1, 58];

/// Runs all tests of a policy.
///
/// # Errors
/// The first that fails or isn't well formed.
pub(crate) fn run_tests(
    policy: &Policy,
    world: &World,
    compiled: &CompiledTailnet,
) -> Result<(), PolicyError> {
    let document = &*policy.document;
    if document.tests.is_empty() {
        return Ok(());
    }
    let tests = document
        .tests
        .iter()
        .map(|test| Trial::read(document, test))
        .collect::<Result<Vec<_>, _>>()?;
    let extended = with_stand_ins(document, world, &tests);
    let extended_compiled = extended.as_ref().map(|world| recompile(policy, world));
    let compiled = extended_compiled.as_ref().unwrap_or(compiled);
    tests.iter().try_for_each(|test| test.run(compiled))
}

/// A well-formed test.
struct Trial<'d> {
    source: &'d At<String>,
    source_alias: Alias,
    /// Any one of them has to pass.
    protocols: Vec<u8>,
    assertions: Vec<Assertion<'d>>,
}

struct Assertion<'d> {
    written: &'d At<String>,
    destination: Alias,
    port: u16,
    accept: bool,
}

impl<'d> Trial<'d> {
    fn read(document: &Document, test: &'d Test) -> Result<Self, PolicyError> {
        let source = &test.source;
        if source.value.is_empty() {
            let message = "test without \"src\"; name a user, group, tag, host or address";
            return Err(PolicyError::test(source.place, message));
        }
        let source_alias = Alias::parse(borrowed(source), "test src", &document.names)
            .map_err(|error| PolicyError::test(source.place, error.message))?;
        if !matches!(
            &source_alias,
            Alias::User(_) | Alias::Group(_) | Alias::Tag(_) | Alias::Member | Alias::Tagged
        ) && !is_one_address(&source_alias)
        {
            let message = format!(
                "test src {:?} is no user, group, tag, host or single address; name one",
                source.value
            );
            return Err(PolicyError::test(source.place, message));
        }
        if test.accept.is_empty() && test.deny.is_empty() {
            let message = "test that asserts nothing; add \"accept\" or \"deny\"";
            return Err(PolicyError::test(source.place, message));
        }
        let assertion =
            |accept| move |written: &'d At<String>| Assertion::read(document, written, accept);
        let accept = test.accept.iter().map(assertion(true));
        let deny = test.deny.iter().map(assertion(false));
        Ok(Self {
            protocols: read_protocols(test)?,
            assertions: accept.chain(deny).collect::<Result<_, _>>()?,
            source_alias,
            source,
        })
    }

    fn run(&self, compiled: &CompiledTailnet) -> Result<(), PolicyError> {
        let parts = compiled.parts();
        let sources = endpoints(&self.source_alias, &parts.people, &parts.nodes);
        if sources.is_empty() {
            let message = format!("test src {:?} is nobody; name somebody", self.source.value);
            return Err(PolicyError::test(self.source.place, message));
        }
        for assertion in &self.assertions {
            let destinations = endpoints(&assertion.destination, &parts.people, &parts.nodes);
            let reach = |source: &Endpoint, destination: &Endpoint| {
                self.protocols.iter().any(|&protocol| {
                    reaches(compiled, source, destination, protocol, assertion.port)
                })
            };
            let mut pairs = sources.iter().flat_map(|source| {
                destinations
                    .iter()
                    .map(move |destination| (source, destination))
            });
            let holds = if assertion.accept {
                !destinations.is_empty() && pairs.all(|(from, to)| reach(from, to))
            } else {
                !pairs.any(|(from, to)| reach(from, to))
            };
            if !holds {
                let (expected, found) = match assertion.accept {
                    true => ("accept", "refuses"),
                    false => ("deny", "accepts"),
                };
                let message = format!(
                    "test failed: {expected} {:?} from {:?}, but the policy {found} it; correct the rules or the test",
                    assertion.written.value, self.source.value
                );
                return Err(PolicyError::test(assertion.written.place, message));
            }
        }
        Ok(())
    }
}

impl<'d> Assertion<'d> {
    fn read(
        document: &Document,
        written: &'d At<String>,
        accept: bool,
    ) -> Result<Self, PolicyError> {
        let place = written.place;
        let failed = |message: String| PolicyError::test(place, message);
        let (who, port) =
            split_destination(borrowed(written)).map_err(|error| failed(error.message))?;
        let port = decimal::<u16>(port)
            .filter(|&port| port > 0)
            .ok_or_else(|| {
                failed(format!(
                    "test destination {:?}: write one port, 1 to 65535",
                    written.value
                ))
            })?;
        let one_thing = format!(
            "test destination {:?} is no tag, address, or host with a single address; name one",
            written.value
        );
        if who.value.contains('/') {
            return Err(failed(one_thing));
        }
        let destination = Alias::parse(who, "test destination", &document.names)
            .map_err(|error| failed(error.message))?;
        if !matches!(destination, Alias::Tag(_)) && !is_one_address(&destination) {
            return Err(failed(one_thing));
        }
        Ok(Self {
            written,
            destination,
            port,
            accept,
        })
    }
}

fn borrowed(text: &At<String>) -> At<&str> {
    At {
        place: text.place,
        value: &text.value,
    }
}

fn is_one_address(alias: &Alias) -> bool {
    matches!(alias, Alias::Net(net) if net.prefix_len() == net.max_prefix_len())
}

/// Without `proto`, passing by TCP or UDP is enough.
fn read_protocols(test: &Test) -> Result<Vec<u8>, PolicyError> {
    let Some(written) = test.protocol.as_ref().filter(|text| !text.value.is_empty()) else {
        return Ok(vec![TCP, UDP]);
    };
    let named_without_ports =
        decimal::<u8>(&written.value).is_none() && !["tcp", "udp"].contains(&&*written.value);
    if named_without_ports {
        let message = format!(
            "test proto {:?}: write \"tcp\", \"udp\" or a number",
            written.value
        );
        return Err(PolicyError::test(written.place, message));
    }
    let protocol = parse_protocol(borrowed(written))
        .map_err(|error| PolicyError::test(written.place, error.message))?;
    Ok(vec![protocol])
}

/// A node or a bare address as one end of a connection.
struct Endpoint {
    addresses: Vec<IpAddr>,
}

fn endpoints(alias: &Alias, people: &People, nodes: &[Node]) -> Vec<Endpoint> {
    if let Alias::Net(net) = alias {
        return vec![Endpoint {
            addresses: vec![net.addr()],
        }];
    }
    nodes
        .iter()
        .filter(|node| people.names_node(alias, &node.facts))
        .map(|node| Endpoint {
            addresses: node.addresses.clone(),
        })
        .collect()
}

/// Whether any pair of addresses of the same family passes.
fn reaches(
    compiled: &CompiledTailnet,
    source: &Endpoint,
    destination: &Endpoint,
    protocol: u8,
    port: u16,
) -> bool {
    source.addresses.iter().any(|&from| {
        destination
            .addresses
            .iter()
            .filter(|to| to.is_ipv4() == from.is_ipv4())
            .any(|&to| allows(compiled, from, to, protocol, port))
    })
}

fn allows(compiled: &CompiledTailnet, from: IpAddr, to: IpAddr, protocol: u8, port: u16) -> bool {
    let parts = compiled.parts();
    let owner_of = |address: IpAddr| {
        let node = parts
            .nodes
            .iter()
            .find(|node| node.addresses.contains(&address));
        node.and_then(|node| node.facts.owner())
    };
    parts.rules.iter().any(|rule| {
        let protocols: &[u8] = match rule.protocols.as_slice() {
            [] => &DEFAULT_PROTOCOLS,
            listed => listed,
        };
        if !protocols.contains(&protocol) || !parts.sources[rule.source].set.contains(from) {
            return false;
        }
        let by_entry = rule.entries.iter().any(|(target, ports)| {
            parts.targets[*target].set.contains(to)
                && ports.iter().any(|range| range.contains(port))
        });
        let own_port = rule.own_devices.iter().any(|range| range.contains(port));
        by_entry || own_port && owner_of(from).is_some_and(|user| owner_of(to) == Some(user))
    })
}

/// The world with a node for each user and tag of the tests that has none, if there are such.
fn with_stand_ins(document: &Document, world: &World, tests: &[Trial]) -> Option<World> {
    let mut extended = world.clone();
    let mut addresses = FreeAddresses::new(world);
    for test in tests {
        let destinations = test
            .assertions
            .iter()
            .map(|assertion| &assertion.destination);
        for alias in std::iter::once(&test.source_alias).chain(destinations) {
            let people = People::new(document, &extended.users);
            let is_there = extended
                .nodes
                .iter()
                .any(|node| people.names_node(alias, node));
            if is_there || is_one_address(alias) {
                continue;
            }
            for (user, tag) in stand_ins(document, alias, &mut extended.users) {
                extended.nodes.push(addresses.node(user, tag));
            }
        }
    }
    (extended.nodes.len() > world.nodes.len()).then_some(extended)
}

/// Who has to stand in for an alias that nobody answers to. Users who don't exist are added.
fn stand_ins(
    document: &Document,
    alias: &Alias,
    users: &mut Vec<UserFacts>,
) -> Vec<(Option<UserId>, Option<String>)> {
    let mut user = |name: &str| {
        let people = People::new(document, users);
        let known = people.user(name);
        let id = known.unwrap_or_else(|| {
            let lowest = users.iter().map(|user| user.id.0).min().unwrap_or(0);
            let id = UserId(lowest.min(0) - 1);
            users.push(UserFacts {
                id,
                login_name: name.trim_end_matches('@').to_owned(),
            });
            id
        });
        (Some(id), None)
    };
    match alias {
        Alias::User(name) => vec![user(name)],
        Alias::Group(name) => {
            let members = document.groups.get(name).into_iter().flatten();
            members.map(|member| user(&member.value)).collect()
        }
        Alias::Member => vec![user("stand-in@")],
        Alias::Tag(tag) => vec![(None, Some(tag.clone()))],
        Alias::Tagged => document
            .names
            .tags
            .first()
            .map(|tag| (None, Some(tag.clone())))
            .into_iter()
            .collect(),
        _ => Vec::new(),
    }
}

/// Tailnet addresses that no node has: reserved ones first.
struct FreeAddresses {
    v4: Box<dyn Iterator<Item = u32>>,
    given: u32,
}

impl FreeAddresses {
    fn new(world: &World) -> Self {
        let used: BTreeSet<u32> = world
            .nodes
            .iter()
            .filter_map(|node| node.v4.map(Ipv4Addr::to_bits))
            .collect();
        let range =
            |first: [u8; 4], last: [u8; 4]| u32::from_be_bytes(first)..=u32::from_be_bytes(last);
        let reserved = range([100, 100, 100, 1], [100, 100, 100, 254]);
        let others = range([100, 115, 94, 1], [100, 127, 255, 254]).rev();
        Self {
            v4: Box::new(reserved.chain(others).filter(move |v4| !used.contains(v4))),
            given: 0,
        }
    }

    fn node(&mut self, user: Option<UserId>, tag: Option<String>) -> NodeFacts {
        self.given += 1;
        let v6 = (0xfd7a_115c_a1e0_ffff_u128 << 64) | u128::from(self.given);
        NodeFacts {
            id: NodeId(-i64::from(self.given)),
            user,
            tags: tag.into_iter().collect(),
            v4: self.v4.next().map(Ipv4Addr::from_bits),
            v6: Some(Ipv6Addr::from_bits(v6)),
            announced: Vec::<IpNet>::new(),
            admin_approved: Vec::new(),
            created: 0,
            online: true,
        }
    }
}
