//! `sshTests`: as whom a policy's author says that somebody may log in somewhere, or may not.
//!
//! They are tried on the `ssh` rules alone, whatever the other rules let through. Unlike `tests` they are about nodes that are
//! there; only a policy that is loaded before the first user is created is tried with nodes that stand in.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use lowroad_wire::control::{NodeId, SshPolicy};

use super::super::alias::Alias;
use super::super::error::{At, PolicyError};
use super::super::syntax::Document;
use super::super::trials::SshTest;
use super::super::view::CompiledTailnet;
use super::super::world::World;
use super::super::{Policy, UnknownUsers, recompile};
use super::{borrowed, is_one_address, stand_in};

/// Runs all `sshTests` of a policy.
///
/// # Errors
/// The first that fails or isn't well formed.
pub(crate) fn run_ssh_tests(
    policy: &Policy,
    world: &World,
    unknown: UnknownUsers,
    compiled: &CompiledTailnet,
) -> Result<(), PolicyError> {
    let document = &*policy.document;
    let trials = document.ssh_tests.iter();
    let trials: Vec<Trial> = trials
        .map(|test| Trial::read(document, test))
        .collect::<Result<_, _>>()?;
    let named = trials.iter().flat_map(Trial::aliases);
    let extended = match unknown {
        UnknownUsers::Accept | UnknownUsers::Unasked => stand_in::extend(document, world, named),
        UnknownUsers::Refuse => None,
    };
    let extended = extended.as_ref().map(|world| recompile(policy, world));
    let compiled = extended.as_ref().unwrap_or(compiled);
    let mut trials = trials.iter();
    // Nobody knows who has an address before somebody was asked.
    let is_open = |trial: &&Trial| {
        let mut aliases = trial.aliases();
        unknown == UnknownUsers::Unasked && aliases.any(|alias| matches!(alias, Alias::Net(_)))
    };
    trials.try_for_each(|trial| match is_open(&trial) {
        true => Ok(()),
        false => trial.run(compiled),
    })
}

/// A well-formed test.
struct Trial<'d> {
    source: (&'d At<String>, Alias),
    destinations: Vec<(&'d At<String>, Alias)>,
    assertions: Vec<(&'d At<String>, Expected)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expected {
    /// By any rule.
    Allowed,
    /// By a check rule; an accept rule as well makes no difference.
    Checked,
    Denied,
}

impl<'d> Trial<'d> {
    fn read(document: &Document, test: &'d SshTest) -> Result<Self, PolicyError> {
        let failed = |at: &At<String>, message: String| Err(PolicyError::test(at.place, message));
        let source = read_alias(document, &test.source, "ssh test src")?;
        if source == Alias::OwnDevices {
            return failed(
                &test.source,
                "ssh test src: autogroup:self is nobody; name somebody".to_owned(),
            );
        }
        let mut destinations = Vec::new();
        for written in &test.destinations {
            let alias = read_alias(document, written, "ssh test dst")?;
            destinations.push((written, alias));
        }
        let expect = |expected| move |name: &'d At<String>| (name, expected);
        let allowed = test.accept.iter().map(expect(Expected::Allowed));
        let denied = test.deny.iter().map(expect(Expected::Denied));
        let checked = test.check.iter().map(expect(Expected::Checked));
        let assertions: Vec<_> = allowed.chain(denied).chain(checked).collect();
        if assertions.is_empty() || destinations.is_empty() {
            let message = "ssh test that asserts nothing; add \"dst\", and login names as \"accept\", \"deny\" or \"check\"";
            return failed(&test.source, message.to_owned());
        }
        if let Some((name, _)) = assertions.iter().find(|(name, _)| name.value.is_empty()) {
            let message = "ssh test: a login name can't be empty; take it out";
            return failed(name, message.to_owned());
        }
        let denied: HashSet<&str> = test.deny.iter().map(|name| &*name.value).collect();
        let others = test.accept.iter().chain(&test.check);
        if let Some(name) = others
            .into_iter()
            .find(|name| denied.contains(&*name.value))
        {
            let message = format!(
                "ssh test: {:?} can't be allowed and denied; take it out of one of them",
                name.value
            );
            return failed(name, message);
        }
        Ok(Self {
            source: (&test.source, source),
            destinations,
            assertions,
        })
    }

    fn aliases(&self) -> impl Iterator<Item = &Alias> {
        let destinations = self.destinations.iter().map(|(_, alias)| alias);
        std::iter::once(&self.source.1).chain(destinations)
    }

    fn run(&self, compiled: &CompiledTailnet) -> Result<(), PolicyError> {
        let (written, source) = &self.source;
        let sources = addresses(compiled, source);
        if sources.is_empty() {
            return Err(nobody(written, "src"));
        }
        for (written, destination) in &self.destinations {
            let nodes = self.nodes(compiled, destination);
            if nodes.is_empty() {
                return Err(nobody(written, "dst"));
            }
            // Very many nodes are sent the same.
            let mut judged = HashSet::new();
            for node in nodes {
                let policy = compiled.ssh_for(node);
                if judged.insert(Arc::as_ptr(&policy)) {
                    self.judge(&policy, &sources, written)?;
                }
            }
        }
        Ok(())
    }

    fn nodes(&self, compiled: &CompiledTailnet, destination: &Alias) -> Vec<NodeId> {
        let parts = compiled.parts();
        let is_meant = |at: usize| {
            let node = &parts.nodes[at];
            match destination {
                // Which devices are one's own, only a user can say.
                Alias::OwnDevices => {
                    matches!(self.source.1, Alias::User(_))
                        && parts.people.names_node(&self.source.1, &node.facts)
                }
                Alias::Net(net) => node.addresses.contains(&net.addr()),
                alias => parts.people.names_node(alias, &node.facts),
            }
        };
        let nodes = (0..parts.nodes.len()).filter(|&at| is_meant(at));
        nodes.map(|at| parts.nodes[at].facts.id).collect()
    }

    fn judge(
        &self,
        policy: &SshPolicy,
        sources: &[IpAddr],
        destination: &At<String>,
    ) -> Result<(), PolicyError> {
        let mut rules_of: HashMap<&str, Vec<usize>> = HashMap::new();
        for (at, rule) in policy.rules.iter().enumerate() {
            for principal in &rule.principals {
                rules_of.entry(&principal.node_ip).or_default().push(at);
            }
        }
        for (name, expected) in &self.assertions {
            let holds = |source: &IpAddr| {
                let rules = rules_of.get(&*source.to_string());
                let rules = rules.into_iter().flatten().map(|&at| &policy.rules[at]);
                let mut rules = rules.filter(|rule| maps(&rule.ssh_users, &name.value));
                match expected {
                    Expected::Allowed => rules.next().is_some(),
                    Expected::Checked => rules.any(|rule| !rule.action.accept),
                    Expected::Denied => rules.next().is_none(),
                }
            };
            if !sources.iter().all(holds) {
                return Err(self.failure(name, *expected, destination));
            }
        }
        Ok(())
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
            name.value, self.source.0.value, destination.value
        );
        PolicyError::test(name.place, message)
    }
}

/// Whether a rule has a local user for a login name. `*` never stands for root.
fn maps(users: &BTreeMap<String, String>, name: &str) -> bool {
    match users.get(name) {
        Some(user) => !user.is_empty(),
        None => name != "root" && users.get("*").is_some_and(|user| !user.is_empty()),
    }
}

fn read_alias(document: &Document, written: &At<String>, role: &str) -> Result<Alias, PolicyError> {
    let place = written.place;
    let alias = Alias::parse(borrowed(written).map(str::trim), role, &document.names)
        .map_err(|error| PolicyError::test(place, error.message))?;
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

/// The addresses of nodes that an alias means.
fn addresses(compiled: &CompiledTailnet, alias: &Alias) -> Vec<IpAddr> {
    let parts = compiled.parts();
    let nodes = parts.nodes.iter();
    match alias {
        Alias::Net(net) => {
            let address = net.addr();
            let mut nodes = nodes.filter(|node| node.addresses.contains(&address));
            nodes.next().map(|_| address).into_iter().collect()
        }
        alias => nodes
            .filter(|node| parts.people.names_node(alias, &node.facts))
            .flat_map(|node| node.addresses.iter().copied())
            .collect(),
    }
}

fn nobody(written: &At<String>, role: &str) -> PolicyError {
    let message = format!(
        "ssh test {role} {:?} is no node of the tailnet; name one that is, or take the test out",
        written.value
    );
    PolicyError::test(written.place, message)
}
