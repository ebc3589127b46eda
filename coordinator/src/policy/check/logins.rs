//! `sshTests`: as whom a policy's author says that somebody may log in somewhere, or may not.
//!
//! They are tried on the `ssh` rules alone, whatever the other rules let through. Unlike `tests` they are about nodes that are
//! there; only a policy that is loaded before the first user is created is tried with nodes that stand in.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use lowroad_wire::control::{NodeId, SshPolicy};

use super::super::alias::Alias;
use super::super::error::{At, Errors, PolicyError, beginning};
use super::super::syntax::Document;
use super::super::trials::SshTest;
use super::super::view::CompiledTailnet;
use super::super::world::World;
use super::super::{Policy, UnknownUsers, recompile};
use super::{borrowed, is_one_address, stand_in};

/// Runs all `sshTests` of a policy. Each assertion that fails or isn't well formed is an error.
pub(crate) fn run_ssh_tests(
    policy: &Policy,
    world: &World,
    unknown: UnknownUsers,
    compiled: &CompiledTailnet,
    errors: &mut Errors,
) {
    let document = &*policy.document;
    let tests = document.ssh_tests.iter();
    let trials: Vec<Trial> = tests
        .filter_map(|test| Trial::read(document, test, errors))
        .collect();
    let named = trials.iter().flat_map(Trial::aliases);
    let extended = match unknown {
        UnknownUsers::Accept | UnknownUsers::Unasked => {
            errors.keep(stand_in::extend(document, world, named))
        }
        UnknownUsers::Refuse => Some(None),
    };
    let Some(extended) = extended else {
        return;
    };
    let extended = extended.as_ref().map(|world| recompile(policy, world));
    let compiled = extended.as_ref().unwrap_or(compiled);
    // Nobody knows who has an address before somebody was asked.
    let is_open = |trial: &&Trial| {
        let mut aliases = trial.aliases();
        unknown == UnknownUsers::Unasked
            && aliases.any(|alias| matches!(alias.value, Alias::Net(_)))
    };
    let mut known = Known::default();
    for trial in trials.iter().filter(|trial| !is_open(trial)) {
        trial.run(compiled, &mut known, errors);
    }
}

/// Positions of the rules for each address.
type RulesOf = HashMap<IpAddr, Vec<usize>>;

/// What has been found out of the nodes' policies, and is the same for all trials.
#[derive(Default)]
struct Known<'a> {
    /// By the address of the policy, which is kept for that: it, and its rules for each address.
    rules: HashMap<*const SshPolicy, (Arc<SshPolicy>, RulesOf)>,
    /// The distinct lists of its rules that nodes have whom an alias means.
    lists: HashMap<(*const SshPolicy, &'a Alias), BTreeSet<Vec<usize>>>,
    addresses: HashMap<&'a Alias, Vec<IpAddr>>,
}

impl<'a> Known<'a> {
    fn addresses(&mut self, compiled: &CompiledTailnet, alias: &'a Alias) -> &[IpAddr] {
        let known = self.addresses.entry(alias);
        known.or_insert_with(|| addresses(compiled, alias))
    }

    /// Lists of rules of a policy, one of which each address has that an alias means.
    fn lists(&mut self, policy: &Arc<SshPolicy>, alias: &'a Alias) -> &BTreeSet<Vec<usize>> {
        let at = Arc::as_ptr(policy);
        let rules = self.rules.entry(at);
        let (_, rules) = rules.or_insert_with(|| (policy.clone(), rules_of(policy)));
        let sources = self.addresses.get(alias).into_iter().flatten();
        self.lists.entry((at, alias)).or_insert_with(|| {
            let list = |address| rules.get(address).cloned().unwrap_or_default();
            sources.map(list).collect()
        })
    }
}

fn rules_of(policy: &SshPolicy) -> RulesOf {
    let mut rules_of = RulesOf::new();
    for (at, rule) in policy.rules.iter().enumerate() {
        for principal in &rule.principals {
            if let Ok(address) = principal.node_ip.parse() {
                rules_of.entry(address).or_default().push(at);
            }
        }
    }
    rules_of
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

    fn run<'a>(&'a self, compiled: &CompiledTailnet, known: &mut Known<'a>, errors: &mut Errors) {
        let (written, source) = &self.source;
        if known.addresses(compiled, source).is_empty() {
            return errors.push(nobody(written, "src"));
        }
        for (written, destination) in &self.destinations {
            let nodes = self.nodes(compiled, destination);
            if nodes.is_empty() {
                errors.push(nobody(written, "dst"));
            }
            // Very many nodes are sent the same.
            let mut judged = HashSet::new();
            let mut failed = BTreeSet::new();
            for node in nodes {
                let policy = compiled.ssh_for(node);
                if judged.insert(Arc::as_ptr(&policy)) {
                    let lists = known.lists(&policy, source);
                    self.judge(&policy, lists, &mut failed);
                }
            }
            let failed = failed.into_iter().map(|at| self.assertions[at]);
            errors.extend(failed.map(|(name, expected)| self.failure(name, expected, written)));
        }
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

    /// Adds the positions of assertions that don't hold for a node with that policy.
    fn judge(
        &self,
        policy: &SshPolicy,
        lists: &BTreeSet<Vec<usize>>,
        failed: &mut BTreeSet<usize>,
    ) {
        for (at, (name, expected)) in self.assertions.iter().enumerate() {
            let holds = |list: &Vec<usize>| {
                let rules = list.iter().map(|&at| &policy.rules[at]);
                let mut rules = rules.filter(|rule| maps(&rule.ssh_users, &name.value));
                match expected {
                    Expected::Allowed => rules.next().is_some(),
                    Expected::Checked => rules.any(|rule| !rule.action.accept),
                    Expected::Denied => rules.next().is_none(),
                }
            };
            if !failed.contains(&at) && !lists.iter().all(holds) {
                failed.insert(at);
            }
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

/// Whether a rule has a local user for a login name. `*` never stands for root.
fn maps(users: &BTreeMap<String, String>, name: &str) -> bool {
    match users.get(name) {
        Some(user) => !user.is_empty(),
        None => name != "root" && users.get("*").is_some_and(|user| !user.is_empty()),
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

/// The addresses of nodes that an alias means.
fn addresses(compiled: &CompiledTailnet, alias: &Alias) -> Vec<IpAddr> {
    let parts = compiled.parts();
    let nodes = parts.nodes.live().map(|(_, node)| node);
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
