//! `tests`: what a policy's author says must be accepted and refused, tried on the compiled policy.
//!
//! Users and tags that no node has yet are tried with a node that stands in for them, so that a
//! policy can be checked before anybody has joined.

mod logins;
mod reach;
mod stand_in;

use std::collections::HashMap;

use super::addresses::{AddressSet, Collector};
use super::alias::{Alias, decimal, parse_protocol, split_destination};
use super::budget::Budget;
use super::compile::{compile_for_tests, internet, tailnet};
use super::error::{At, Errors, PolicyError, beginning};
use super::syntax::Document;
use super::trials::Test;
use super::view::CompiledTailnet;
use super::world::World;
use super::{Policy, UnknownUsers};

pub(crate) use logins::run_ssh_tests;
use reach::{Reach, Sources};

const TCP: u8 = 6;
const UDP: u8 = 17;

/// Runs all tests of a policy. Each assertion that fails or isn't well formed is an error.
pub(crate) fn run_tests(
    policy: &Policy,
    world: &World,
    unknown: UnknownUsers,
    compiled: &CompiledTailnet,
    budget: &Budget,
    errors: &mut Errors,
) {
    let document = &*policy.document;
    if document.tests.is_empty() {
        return;
    }
    let tests: Vec<Trial> = document
        .tests
        .iter()
        .filter_map(|test| Trial::read(document, test, errors))
        .collect();
    let named = tests.iter().flat_map(Trial::aliases);
    let Some(extended) = errors.keep(stand_in::extend(document, world, named, 1)) else {
        return;
    };
    let extended_compiled = extended
        .as_ref()
        .map(|world| compile_for_tests(&policy.document, world));
    let compiled = extended_compiled.as_ref().unwrap_or(compiled);
    let open = match unknown {
        UnknownUsers::Unasked => Some(Open::of(document)),
        UnknownUsers::Refuse | UnknownUsers::Accept => None,
    };
    let mut reach = Reach::new(compiled.parts(), extended_compiled.is_some(), budget);
    for test in tests {
        test.run(&mut reach, open.as_ref(), errors);
        if reach.budget.is_spent() {
            return errors.push(too_much("test", test.source));
        }
    }
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
    /// The test, or what is wrong with it as errors. Assertions that are wrong don't keep the others from being tried.
    fn read(document: &Document, test: &'d Test, errors: &mut Errors) -> Option<Self> {
        let source_alias = errors.keep(read_source(document, test));
        let protocols = errors.keep(read_protocols(test));
        let accept = test.accept.iter().map(|written| (written, true));
        let deny = test.deny.iter().map(|written| (written, false));
        let assertions = accept
            .chain(deny)
            .filter_map(|(written, accept)| errors.keep(Assertion::read(document, written, accept)))
            .collect();
        Some(Self {
            protocols: protocols?,
            source_alias: source_alias?,
            source: &test.source,
            assertions,
        })
    }

    fn aliases(&self) -> impl Iterator<Item = At<&Alias>> {
        let assertions = self.assertions.iter();
        let destinations = assertions.map(|assertion| At {
            place: assertion.written.place,
            value: &assertion.destination,
        });
        let source = At {
            place: self.source.place,
            value: &self.source_alias,
        };
        std::iter::once(source).chain(destinations)
    }

    fn run(&self, reach: &mut Reach, open: Option<&Open>, errors: &mut Errors) {
        let sources = match self.assertions.is_empty() {
            true => return,
            false => reach.sources(&self.source_alias),
        };
        if reach.budget.is_spent() {
            return;
        }
        if sources.is_empty() {
            let message = format!("test src {:?} is nobody; name somebody", self.source.value);
            return errors.push(PolicyError::test(self.source.place, message));
        }
        let mut known = HashMap::new();
        for assertion in &self.assertions {
            let key = (&assertion.destination, assertion.port, assertion.accept);
            let holds = *known
                .entry(key)
                .or_insert_with(|| self.holds(assertion, reach, &sources));
            if reach.budget.is_spent() {
                return;
            }
            if !holds && !open.is_some_and(|open| open.leaves(&self.source_alias, assertion)) {
                errors.push(self.failure(assertion));
            }
        }
    }

    fn holds(&self, assertion: &Assertion, reach: &mut Reach, sources: &Sources) -> bool {
        let doors = reach.destinations(&assertion.destination, &self.protocols, assertion.port);
        let mut let_in = doors
            .iter()
            .map(|door| door.lets_in(reach, sources, assertion.accept));
        match assertion.accept {
            true => !doors.is_empty() && let_in.all(|all| all),
            false => !let_in.any(|any| any),
        }
    }

    fn failure(&self, assertion: &Assertion) -> PolicyError {
        let (expected, found) = match assertion.accept {
            true => ("accept", "refuses"),
            false => ("deny", "accepts"),
        };
        let message = format!(
            "test failed: {expected} {:?} from {:?}, but the policy {found} it; correct the rules or the test",
            assertion.written.value,
            beginning(&self.source.value)
        );
        PolicyError::test(assertion.written.place, message)
    }
}

/// With this test the budget is spent.
fn too_much(what: &str, source: &At<String>) -> PolicyError {
    let message = format!(
        "{what} of {:?}: this one and those before it would take more work than a policy of this length may; have fewer {what}s, or name fewer sources, destinations and login names in them",
        beginning(&source.value)
    );
    PolicyError::test(source.place, message)
}

/// What can't be known of addresses where nobody was asked who has them.
struct Open {
    /// Destinations of which a node, or an exit node, may make more than is written.
    destinations: AddressSet,
}

impl Open {
    fn of(document: &Document) -> Self {
        let mut destinations = Collector::default();
        destinations.set(&tailnet(&[]));
        let rules = document.rules.iter().flatten();
        let mut written = rules.flat_map(|rule| &rule.destinations);
        if written.any(|(alias, _)| alias.value == Alias::Internet) {
            destinations.set(&internet());
        }
        let destinations = destinations.finish();
        Self { destinations }
    }

    /// Whether an assertion that fails may yet hold: what is refused, not what is accepted, can be otherwise with more nodes.
    fn leaves(&self, source: &Alias, assertion: &Assertion) -> bool {
        let to_open = match &assertion.destination {
            Alias::Net(net) => self.destinations.contains(net.addr()),
            _ => false,
        };
        assertion.accept && (to_open || matches!(source, Alias::Net(_)))
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
        let (who, port) = split_destination(borrowed(written)).map_err(PolicyError::in_test)?;
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
        let destination =
            Alias::parse(who, "test destination", &document.names).map_err(PolicyError::in_test)?;
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

/// Who a test is about, of a test that asserts something.
fn read_source(document: &Document, test: &Test) -> Result<Alias, PolicyError> {
    let source = &test.source;
    let failed = |message: &str| Err(PolicyError::test(source.place, message));
    if source.value.is_empty() {
        return failed("test without \"src\"; name a user, group, tag, host or address");
    }
    let alias = Alias::parse(borrowed(source), "test src", &document.names)
        .map_err(PolicyError::in_test)?;
    if !matches!(
        &alias,
        Alias::User(_) | Alias::Group(_) | Alias::Tag(_) | Alias::Member | Alias::Tagged
    ) && !is_one_address(&alias)
    {
        return failed(&format!(
            "test src {:?} is no user, group, tag, host or single address; name one",
            source.value
        ));
    }
    if test.accept.is_empty() && test.deny.is_empty() {
        return failed("test that asserts nothing; add \"accept\" or \"deny\"");
    }
    Ok(alias)
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
    let protocol = parse_protocol(borrowed(written)).map_err(PolicyError::in_test)?;
    Ok(vec![protocol])
}
