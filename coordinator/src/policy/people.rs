//! Which nodes an alias names.

use std::collections::{HashMap, HashSet};

use lowroad_wire::control::UserId;

use super::alias::Alias;
use super::attributes::Target;
use super::error::{At, PolicyError};
use super::suggest::nearest;
use super::syntax::Document;
use super::world::{NodeFacts, TailnetFacts, UserFacts};

/// Users and groups by the names that policies use.
#[derive(Clone, Debug)]
pub(crate) struct People {
    by_name: HashMap<String, UserId>,
    groups: HashMap<String, HashSet<UserId>>,
    /// E-mail addresses as local part and domain, the latter in lower case.
    addresses: HashMap<UserId, (String, String)>,
}

impl People {
    pub(crate) fn new(document: &Document, users: &[UserFacts]) -> Self {
        let by_name: HashMap<String, UserId> = users
            .iter()
            .map(|user| (policy_name(&user.login_name), user.id))
            .collect();
        let groups = document
            .groups
            .iter()
            .map(|(name, members)| {
                let members = members
                    .iter()
                    .filter_map(|member| by_name.get(&member.value.to_ascii_lowercase()).copied());
                (name.clone(), members.collect())
            })
            .collect();
        Self {
            addresses: users.iter().filter_map(address).collect(),
            by_name,
            groups,
        }
    }

    /// One more user, whom groups don't know yet.
    pub(crate) fn add(&mut self, user: &UserFacts) {
        self.by_name.insert(policy_name(&user.login_name), user.id);
        self.addresses.extend(address(user));
    }

    pub(crate) fn user(&self, name: &str) -> Option<UserId> {
        self.by_name.get(&name.to_ascii_lowercase()).copied()
    }

    /// How many names there are.
    pub(crate) fn names(&self) -> usize {
        self.by_name.len()
    }

    /// The user whose name is like one that isn't known.
    pub(crate) fn nearest(&self, unknown: &str) -> Option<String> {
        let mut names: Vec<&str> = self.by_name.keys().map(String::as_str).collect();
        names.sort_unstable();
        let without_domain = || names.iter().find(|name| name.starts_with(unknown));
        nearest(unknown, names.iter().copied()).or_else(|| {
            unknown
                .ends_with('@')
                .then(without_domain)?
                .map(|&name| name.to_owned())
        })
    }

    pub(crate) fn members(&self, group: &str) -> impl Iterator<Item = UserId> + '_ {
        self.groups.get(group).into_iter().flatten().copied()
    }

    pub(crate) fn is_in_group(&self, name: &str, user: UserId) -> bool {
        self.groups
            .get(name)
            .is_some_and(|members| members.contains(&user))
    }

    /// A user's e-mail address: local part, and domain in lower case.
    pub(crate) fn address(&self, user: UserId) -> Option<(&str, &str)> {
        let (local, domain) = self.addresses.get(&user)?;
        Some((local, domain))
    }

    /// What stands before the `@` of a user's e-mail address, if it is in the domain.
    pub(crate) fn local_part(&self, user: UserId, domain: &str) -> Option<&str> {
        let (local, own) = self.address(user)?;
        own.eq_ignore_ascii_case(domain).then_some(local)
    }

    /// Whether the alias names this user, not regarding any node.
    pub(crate) fn names_user(&self, alias: &Alias, user: UserId) -> bool {
        match alias {
            Alias::Member => true,
            Alias::User(name) => self.user(name) == Some(user),
            Alias::Group(name) => self.is_in_group(name, user),
            Alias::Domain(domain) => self.local_part(user, domain).is_some(),
            _ => false,
        }
    }

    /// Whether the alias names this node by its user or its tags.
    pub(crate) fn names_node(&self, alias: &Alias, node: &NodeFacts) -> bool {
        match alias {
            Alias::Tagged => node.is_tagged(),
            Alias::Tag(tag) => node.tags.contains(tag),
            Alias::Member => !node.is_tagged(),
            _ => node
                .owner()
                .is_some_and(|user| self.names_user(alias, user)),
        }
    }
}

/// A user's e-mail address.
fn address(user: &UserFacts) -> Option<(UserId, (String, String))> {
    let (local, domain) = user.login_name.split_once('@')?;
    Some((user.id, (local.to_owned(), domain.to_ascii_lowercase())))
}

/// How policies write a user: users without an e-mail address end in `@`. Case doesn't matter.
fn policy_name(login_name: &str) -> String {
    let mut name = login_name.to_ascii_lowercase();
    if !name.contains('@') {
        name.push('@');
    }
    name
}

/// Users that the policy names and the tailnet doesn't have, as errors, in the order of the file.
pub(crate) fn unknown_users(document: &Document, people: &People) -> Vec<PolicyError> {
    let named = aliases(document).filter_map(|alias| match alias.value {
        Alias::User(name) => Some(alias.map(|_| name)),
        _ => None,
    });
    let members = document.groups.values().flatten().map(|member| At {
        place: member.place,
        value: &member.value,
    });
    let mut unknown: Vec<At<&String>> = named
        .chain(members)
        .filter(|user| people.user(user.value).is_none())
        .collect();
    unknown.sort_by_key(|user| user.place);
    unknown.dedup_by_key(|user| user.place);
    unknown
        .into_iter()
        .map(|user| {
            let message = format!(
                "{:?}: no such user; create it first, or correct the name",
                user.value
            );
            let name = user.map(String::as_str);
            PolicyError::unknown(name, message)
        })
        .collect()
}

/// All aliases of a policy but those of its tests.
pub(super) fn aliases(document: &Document) -> impl Iterator<Item = At<&Alias>> {
    let rules = document.rules.iter().flatten().flat_map(|rule| {
        let destinations = rule.destinations.iter().map(|(alias, _)| alias);
        rule.sources.iter().chain(destinations)
    });
    let logins = document.ssh.iter();
    let logins = logins.flat_map(|rule| rule.sources.iter().chain(&rule.destinations));
    let approvers = document.route_approvers.iter().flat_map(|(_, who)| who);
    let targets = document.attributes.iter().flat_map(|entry| &entry.targets);
    let targets = targets.filter_map(|target| match &target.value {
        Target::Alias(alias) => Some(At {
            place: target.place,
            value: alias,
        }),
        Target::Owner | Target::Admin => None,
    });
    rules
        .chain(logins)
        .chain(document.tag_owners.values().flatten())
        .chain(approvers)
        .chain(&document.exit_approvers)
        .map(|alias| At {
            place: alias.place,
            value: &alias.value,
        })
        .chain(targets)
}

/// Uses of domains that aren't the tailnet's, in `user:*@domain` and `localpart:*@domain`, in the order of the file.
pub(crate) fn unknown_domains(document: &Document, tailnet: &TailnetFacts) -> Vec<PolicyError> {
    let users = aliases(document).filter_map(|alias| match alias.value {
        Alias::Domain(domain) => Some((alias.place, domain)),
        _ => None,
    });
    let locals = document.ssh.iter().flat_map(|rule| &rule.logins.domains);
    let mut unknown: Vec<_> = users
        .chain(locals.map(|domain| (domain.place, &domain.value)))
        .filter(|(_, domain)| !tailnet.domains.contains(domain))
        .collect();
    unknown.sort_unstable();
    unknown.dedup();
    let unknown = unknown.into_iter().map(|(place, domain)| {
        let message = format!(
            "{domain:?} is no domain of this tailnet's users; correct it, or create a user with an e-mail address there"
        );
        PolicyError::invalid(place, message)
    });
    unknown.collect()
}
