//! Members of groups whom nothing in the policy tells apart.

use std::collections::{HashMap, HashSet};

use super::super::super::alias::Alias;
use super::super::super::people::aliases;
use super::super::super::syntax::Document;

/// What tells users apart who don't exist yet: the groups that they are in, the domain of their e-mail address, and whether they themselves
/// are meant somewhere. All names are in lower case.
pub(super) struct Alike<'d> {
    /// By name: groups, by their positions.
    groups: HashMap<String, Vec<usize>>,
    /// Those whom rules or tests name.
    named: HashSet<String>,
    /// Those as whom somebody logs in, in tests: rules can let everybody log in as the local part of the own address.
    logins: HashSet<&'d str>,
    /// How many of each sort were asked for.
    seen: HashMap<(Vec<usize>, String), usize>,
}

impl<'d> Alike<'d> {
    pub(super) fn new(document: &'d Document) -> Self {
        let mut groups: HashMap<String, Vec<usize>> = HashMap::new();
        for (at, members) in document.groups.values().enumerate() {
            for member in members {
                let name = member.value.to_ascii_lowercase();
                let groups = groups.entry(name).or_default();
                // However often a group names it, in whatever spelling.
                if groups.last() != Some(&at) {
                    groups.push(at);
                }
            }
        }
        let rules = aliases(document).filter_map(|alias| match alias.value {
            Alias::User(name) => Some(name),
            _ => None,
        });
        let tests = document.tests.iter().map(|test| &test.source.value);
        let logins = document.ssh_tests.iter();
        let ends = logins.flat_map(|test| test.destinations.iter().chain([&test.source]));
        let named = rules.chain(tests).chain(ends.map(|end| &end.value));
        let logins = document.ssh_tests.iter().flat_map(|test| {
            let names = test.accept.iter().chain(&test.deny).chain(&test.check);
            names.map(|name| &*name.value)
        });
        Self {
            groups,
            named: named.map(|name| name.trim().to_ascii_lowercase()).collect(),
            logins: logins.collect(),
            seen: HashMap::new(),
        }
    }

    /// Whether no member like this one was asked for before, or only one: two meet each other, as one would only itself.
    pub(super) fn is_needed(&mut self, name: &str) -> bool {
        let lower_case = name.to_ascii_lowercase();
        let (local, domain) = name.split_once('@').unwrap_or((name, ""));
        if self.named.contains(&lower_case) || self.logins.contains(local) {
            return true;
        }
        let groups = self.groups.get(&lower_case).cloned().unwrap_or_default();
        let alike = (groups, domain.to_ascii_lowercase());
        let seen = self.seen.entry(alike).or_default();
        *seen += 1;
        *seen <= 2
    }
}
