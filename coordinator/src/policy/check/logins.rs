//! `sshTests`: as whom a policy's author says that somebody may log in somewhere, or may not.
//!
//! They are tried on the `ssh` rules alone, whatever the other rules let through. Unlike `tests` they are about nodes that are
//! there; only a policy that is loaded before the first user is created is tried with nodes that stand in.

mod meeting;
mod questions;

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::rc::Rc;

use super::super::alias::Alias;
use super::super::budget::Budget;
use super::super::compile::{Named, compile_for_tests};
use super::super::error::{At, Errors, PolicyError, beginning};
use super::super::ssh::Judge;
use super::super::syntax::Document;
use super::super::trials::SshTest;
use super::super::view::{CompiledTailnet, Parts};
use super::super::world::World;
use super::super::{Policy, UnknownUsers};
use super::{borrowed, is_one_address, stand_in, too_much};

use meeting::Party;
use questions::{Failed, Questions};

/// Runs all `sshTests` of a policy. Each assertion that fails or isn't well formed is an error.
pub(crate) fn run_ssh_tests(
    policy: &Policy,
    world: &World,
    unknown: UnknownUsers,
    compiled: &CompiledTailnet,
    budget: &Budget,
    errors: &mut Errors,
) {
    if budget.is_spent() {
        return;
    }
    let document = &*policy.document;
    let tests = document.ssh_tests.iter();
    let trials: Vec<Trial> = tests
        .filter_map(|test| Trial::read(document, test, errors))
        .collect();
    let named = trials.iter().flat_map(Trial::aliases);
    let extended = match unknown {
        UnknownUsers::Accept | UnknownUsers::Unasked => {
            errors.keep(stand_in::extend(document, world, named, 2))
        }
        UnknownUsers::Refuse => Some(None),
    };
    let Some(extended) = extended else {
        return;
    };
    let extended = extended
        .as_ref()
        .map(|world| compile_for_tests(&policy.document, world));
    let compiled = extended.as_ref().unwrap_or(compiled);
    // Nobody knows who has an address before somebody was asked.
    let is_open = |trial: &&Trial| {
        let mut aliases = trial.aliases();
        unknown == UnknownUsers::Unasked
            && aliases.any(|alias| matches!(alias.value, Alias::Net(_)))
    };
    let mut known = Known::new(compiled.parts(), budget);
    for trial in trials.iter().filter(|trial| !is_open(trial)) {
        trial.run(&mut known, errors);
        if known.judge.budget.is_spent() {
            return errors.push(too_much("ssh test", trial.source.0));
        }
    }
}

/// What has been found out, and is the same for all trials.
struct Known<'a> {
    parts: &'a Parts,
    named: Named<'a>,
    with_address: HashMap<IpAddr, Vec<usize>>,
    judge: Judge<'a>,
    /// By their canonical alias.
    sources: HashMap<Alias, Rc<Party<'a>>>,
    destinations: HashMap<Alias, Rc<Party<'a>>>,
}

impl<'a> Known<'a> {
    fn new(parts: &'a Parts, budget: &'a Budget) -> Self {
        let mut with_address: HashMap<IpAddr, Vec<usize>> = HashMap::new();
        for (at, node) in parts.nodes.live() {
            for address in &node.addresses {
                with_address.entry(*address).or_default().push(at);
            }
        }
        Self {
            named: Named::new(&parts.people, &parts.nodes, &parts.devices),
            judge: Judge::new(parts, budget),
            sources: HashMap::new(),
            destinations: HashMap::new(),
            with_address,
            parts,
        }
    }

    fn nodes(&self, alias: &Alias) -> Vec<usize> {
        match alias {
            Alias::Net(net) => {
                let nodes = self.with_address.get(&net.addr());
                nodes.cloned().unwrap_or_default()
            }
            alias => self.named.of(alias),
        }
    }

    /// Who logs in: by an address.
    fn source(&mut self, alias: &'a Alias) -> Rc<Party<'a>> {
        let key = alias.canonical();
        if let Some(known) = self.sources.get(&key) {
            return known.clone();
        }
        let nodes = self.nodes(alias).into_iter();
        let nodes = nodes.filter(|&at| !self.parts.nodes[at].addresses.is_empty());
        let party = Rc::new(Party::new(&mut self.judge, nodes));
        self.sources.insert(key, party.clone());
        party
    }

    fn destination(&mut self, source: &'a Alias, alias: &'a Alias) -> Rc<Party<'a>> {
        let meant = match (alias, source) {
            // Which devices are one's own, only a user can say.
            (Alias::OwnDevices, Alias::User(_)) => source,
            _ => alias,
        };
        let key = meant.canonical();
        if let Some(known) = self.destinations.get(&key) {
            return known.clone();
        }
        let nodes = self.nodes(meant).into_iter();
        let party = Rc::new(Party::new(&mut self.judge, nodes));
        self.destinations.insert(key, party.clone());
        party
    }
}

/// A well-formed test.
struct Trial<'d> {
    source: (&'d At<String>, Alias),
    destinations: Vec<(&'d At<String>, Alias)>,
    assertions: Vec<(&'d At<String>, Expected)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Expected {
    /// By any rule.
    Allowed,
    /// By a check rule; an accept rule as well makes no difference.
    Checked,
    Denied,
}

impl<'d> Trial<'d> {
    /// The test, or what is wrong with it as errors. What is right of one that is wrong in part is tried all the same.
    fn read(document: &Document, test: &'d SshTest, errors: &mut Errors) -> Option<Self> {
        let source = errors.keep(read_source(document, &test.source));
        let mut destinations = Vec::new();
        for written in &test.destinations {
            let alias = errors.keep(read_alias(document, written, "ssh test dst"));
            destinations.extend(alias.map(|alias| (written, alias)));
        }
        let expect = |expected| move |name: &'d At<String>| (name, expected);
        let allowed = test.accept.iter().map(expect(Expected::Allowed));
        let denied = test.deny.iter().map(expect(Expected::Denied));
        let checked = test.check.iter().map(expect(Expected::Checked));
        let assertions: Vec<_> = allowed.chain(denied).chain(checked).collect();
        if assertions.is_empty() || test.destinations.is_empty() {
            let message = "ssh test that asserts nothing; add \"dst\", and login names as \"accept\", \"deny\" or \"check\"";
            errors.push(PolicyError::test(test.source.place, message));
        }
        let denied: HashSet<&str> = test.deny.iter().map(|name| &*name.value).collect();
        let mut good = Vec::new();
        for (name, expected) in assertions {
            let is_denied = expected != Expected::Denied && denied.contains(&*name.value);
            match check_name(name, is_denied) {
                Ok(()) => good.push((name, expected)),
                Err(error) => errors.push(error),
            }
        }
        Some(Self {
            source: (&test.source, source?),
            destinations,
            assertions: good,
        })
    }

    fn aliases(&self) -> impl Iterator<Item = At<&Alias>> {
        let ends = std::iter::once(&self.source).chain(&self.destinations);
        ends.map(|(written, alias)| At {
            place: written.place,
            value: alias,
        })
    }

    fn run<'a>(&'a self, known: &mut Known<'a>, errors: &mut Errors) {
        let (written, source) = &self.source;
        let from = known.source(source);
        if from.ends.is_empty() {
            return errors.push(nobody(written, "src"));
        }
        let questions = Questions::new(&known.judge, &self.assertions, &from);
        let mut answers = HashMap::new();
        let mut failed_to: HashMap<Alias, Option<Failed>> = HashMap::new();
        for (written, destination) in &self.destinations {
            let failed = failed_to.entry(destination.canonical()).or_insert_with(|| {
                let to = known.destination(source, destination);
                (!to.ends.is_empty()).then(|| questions.ask(&known.judge, &from, &to, &mut answers))
            });
            if known.judge.budget.is_spent() {
                return;
            }
            let Some(failed) = failed else {
                errors.push(nobody(written, "dst"));
                continue;
            };
            if errors.is_full() {
                errors.count(failed.count);
                continue;
            }
            let failed = questions.positions(failed).into_iter();
            let failed = failed.map(|at| self.assertions[at]);
            errors.extend(failed.map(|(name, expected)| self.failure(name, expected, written)));
        }
    }

    fn failure(
        &self,
        name: &At<String>,
        expected: Expected,
        destination: &At<String>,
    ) -> PolicyError {
        let (expected, found) = match expected {
            Expected::Allowed => ("accept", "refuses"),
            Expected::Checked => ("check", "doesn't check"),
            Expected::Denied => ("deny", "allows"),
        };
        let message = format!(
            "ssh test failed: {expected} {:?} from {:?} to {:?}, but the policy {found} it; correct the ssh rules or the test",
            beginning(&name.value),
            beginning(&self.source.0.value),
            beginning(&destination.value)
        );
        PolicyError::test(name.place, message)
    }
}

fn check_name(name: &At<String>, is_denied: bool) -> Result<(), PolicyError> {
    if name.value.is_empty() {
        let message = "ssh test: a login name can't be empty; take it out";
        return Err(PolicyError::test(name.place, message));
    }
    if is_denied {
        let message = format!(
            "ssh test: {:?} can't be allowed and denied; take it out of one of them",
            name.value
        );
        return Err(PolicyError::test(name.place, message));
    }
    Ok(())
}

fn read_source(document: &Document, written: &At<String>) -> Result<Alias, PolicyError> {
    let source = read_alias(document, written, "ssh test src")?;
    if source == Alias::OwnDevices {
        let message = "ssh test src: autogroup:self is nobody; name somebody";
        return Err(PolicyError::test(written.place, message));
    }
    Ok(source)
}

fn read_alias(document: &Document, written: &At<String>, role: &str) -> Result<Alias, PolicyError> {
    let place = written.place;
    let alias = Alias::parse(borrowed(written).map(str::trim), role, &document.names)
        .map_err(PolicyError::in_test)?;
    let fits = match &alias {
        Alias::Any | Alias::DangerAll | Alias::Internet => false,
        Alias::Net(_) => is_one_address(&alias),
        _ => true,
    };
    if !fits {
        let message = format!(
            "{role} {:?} is no user, group, tag, host or single address; name one",
            written.value
        );
        return Err(PolicyError::test(place, message));
    }
    Ok(alias)
}

fn nobody(written: &At<String>, role: &str) -> PolicyError {
    let message = format!(
        "ssh test {role} {:?} is no node of the tailnet; name one that is, or take the test out",
        written.value
    );
    PolicyError::test(written.place, message)
}
