//! Which nodes an alias names.

use std::collections::HashMap;

use lowroad_wire::control::UserId;

use super::alias::Alias;
use super::error::{At, PolicyError};
use super::suggest::nearest;
use super::syntax::Document;
use super::world::{NodeFacts, UserFacts};

/// Users and groups by the names that policies use.
#[derive(Clone, Debug)]
pub(crate) struct People {
    by_name: HashMap<String, UserId>,
    groups: HashMap<String, Vec<UserId>>,
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
        Self { by_name, groups }
    }

    pub(crate) fn user(&self, name: &str) -> Option<UserId> {
        self.by_name.get(&name.to_ascii_lowercase()).copied()
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

    pub(crate) fn group(&self, name: &str) -> &[UserId] {
        self.groups.get(name).map_or(&[], Vec::as_slice)
    }

    /// Whether the alias names this user, not regarding any node.
    pub(crate) fn names_user(&self, alias: &Alias, user: UserId) -> bool {
        match alias {
            Alias::Member => true,
            Alias::User(name) => self.user(name) == Some(user),
            Alias::Group(name) => self.group(name).contains(&user),
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
    let rules = document.rules.iter().flatten().flat_map(|rule| {
        let destinations = rule.destinations.iter().map(|(alias, _)| alias);
        rule.sources.iter().chain(destinations)
    });
    let owners = document.tag_owners.values().flatten();
    let routes = document.route_approvers.iter().flat_map(|(_, who)| who);
    let named = rules
        .chain(owners)
        .chain(routes)
        .chain(&document.exit_approvers)
        .filter_map(|alias| match &alias.value {
            Alias::User(name) => Some(At {
                place: alias.place,
                value: name,
            }),
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
