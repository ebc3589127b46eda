//! What is probably not meant in a policy that is good: names that nobody uses or that mislead, rules that never match.

mod attributes;
mod covered;
mod dead;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;

use lowroad_wire::control::NodeId;

use super::addresses::net_text;
use super::alias::Alias;
use super::error::{Place, shortened};
use super::syntax::Document;
use super::view::CompiledTailnet;

/// Warnings of one policy that are kept; of further ones only the number is.
pub const MAX_WARNINGS: usize = 100;

/// What sort of warning it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PolicyWarningKind {
    /// A rule, or an entry of one, that matches no connection; a target, or a pool of addresses, of no node.
    NeverMatches,
    /// A rule that allows nothing that another doesn't allow already.
    Covered,
    /// A host whose name people take for something else.
    Shadowed,
    /// A group without members.
    Empty,
    /// A group, host or tag that nothing names.
    Unused,
    /// A tag that nobody may give to a node.
    Unassignable,
    /// An `ssh` rule whose logins are refused by this server.
    Refused,
}

impl PolicyWarningKind {
    /// In words, as JSON names it.
    pub fn name(self) -> &'static str {
        match self {
            Self::NeverMatches => "never-matches",
            Self::Covered => "covered",
            Self::Shadowed => "shadowed",
            Self::Empty => "empty",
            Self::Unused => "unused",
            Self::Unassignable => "unassignable",
            Self::Refused => "refused",
        }
    }
}

/// Something in a good policy that is probably not meant.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PolicyWarning {
    /// Line, counted from 1.
    pub line: u32,
    /// Column in characters, counted from 1.
    pub column: u32,
    /// What sort of warning it is.
    pub kind: PolicyWarningKind,
    /// What is odd, in one line.
    pub message: String,
}

impl fmt::Display for PolicyWarning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            line,
            column,
            message,
            ..
        } = self;
        write!(f, "policy.hujson:{line}:{column}: {message}")
    }
}

/// All warnings about a policy, in the order of the file: at most [`MAX_WARNINGS`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PolicyWarnings {
    list: Vec<PolicyWarning>,
    more: usize,
}

impl PolicyWarnings {
    /// Looks for them in a policy that is compiled already. `names` are those of the nodes. While there are no nodes, nothing
    /// that depends on them is warned of.
    pub(super) fn of(
        document: &Document,
        compiled: &CompiledTailnet,
        names: &HashMap<String, NodeId>,
    ) -> Self {
        let mut warnings = Collected::default();
        let assignable = assignable(document, compiled);
        look_at_groups(document, &mut warnings);
        look_at_tags(document, compiled, &assignable, &mut warnings);
        look_at_hosts(document, compiled, names, &mut warnings);
        dead::look(document, compiled, &assignable, &mut warnings);
        attributes::look(document, &mut warnings);
        covered::look(document, &mut warnings);
        look_at_checks(document, &mut warnings);
        warnings.finish()
    }

    /// The warnings that were kept.
    pub fn iter(&self) -> std::slice::Iter<'_, PolicyWarning> {
        self.list.iter()
    }

    /// How many there are besides those that were kept.
    pub fn more(&self) -> usize {
        self.more
    }
}

impl<'a> IntoIterator for &'a PolicyWarnings {
    type Item = &'a PolicyWarning;
    type IntoIter = std::slice::Iter<'a, PolicyWarning>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

/// At most one of a kind for a place: a grant makes several rules of one text.
#[derive(Debug, Default)]
struct Collected(BTreeMap<(Place, PolicyWarningKind), String>);

impl Collected {
    fn push(&mut self, place: Place, kind: PolicyWarningKind, message: String) {
        let message = || shortened(message);
        self.0.entry((place, kind)).or_insert_with(message);
    }

    fn finish(self) -> PolicyWarnings {
        let more = self.0.len().saturating_sub(MAX_WARNINGS);
        let list = self.0.into_iter().take(MAX_WARNINGS);
        let list = list.map(|((place, kind), message)| PolicyWarning {
            line: place.line,
            column: place.column,
            kind,
            message,
        });
        PolicyWarnings {
            list: list.collect(),
            more,
        }
    }
}

fn look_at_groups(document: &Document, warnings: &mut Collected) {
    for (name, members) in &document.groups {
        let Some(definition) = document.defined.get(name) else {
            continue;
        };
        if members.is_empty() {
            let message = format!("{name:?} has no members; where it stands, nobody is meant");
            warnings.push(definition.place, PolicyWarningKind::Empty, message);
        } else if !definition.is_named {
            let message = format!("{name:?} is defined, but nothing in the policy names it");
            warnings.push(definition.place, PolicyWarningKind::Unused, message);
        }
    }
}

fn look_at_tags(
    document: &Document,
    compiled: &CompiledTailnet,
    assignable: &BTreeSet<&str>,
    warnings: &mut Collected,
) {
    let worn = worn(compiled);
    for (tag, owners) in &document.tag_owners {
        let Some(definition) = document.defined.get(tag) else {
            continue;
        };
        if !assignable.contains(tag.as_str()) {
            let why = match owners.is_empty() {
                true => "it has no owners",
                false => "its owners are empty groups, or tags that nobody may give either",
            };
            let message = format!(
                "nobody may give {tag:?} to a node: {why}; it takes an auth key with that tag"
            );
            warnings.push(definition.place, PolicyWarningKind::Unassignable, message);
        }
        if !definition.is_named && !worn.contains(tag.as_str()) {
            let message = format!("{tag:?} is defined, but nothing in the policy names it");
            warnings.push(definition.place, PolicyWarningKind::Unused, message);
        }
    }
}

/// The tags that nodes have.
fn worn(compiled: &CompiledTailnet) -> BTreeSet<&str> {
    let nodes = compiled.parts().nodes.iter();
    nodes
        .flat_map(|node| node.facts.tags.iter().map(String::as_str))
        .collect()
}

/// The tags that a node has, or that somebody may give to one.
fn assignable<'a>(document: &'a Document, compiled: &'a CompiledTailnet) -> BTreeSet<&'a str> {
    let mut owned_by: HashMap<&str, Vec<&str>> = HashMap::new();
    let mut found: Vec<&str> = worn(compiled).into_iter().collect();
    for (tag, owners) in &document.tag_owners {
        for owner in owners {
            match &owner.value {
                Alias::Tag(owner) => owned_by.entry(owner).or_default().push(tag),
                Alias::Group(name) if is_empty(document, name) => {}
                _ => found.push(tag),
            }
        }
    }
    let mut assignable = BTreeSet::new();
    while let Some(tag) = found.pop() {
        if assignable.insert(tag) {
            found.extend(owned_by.remove(tag).unwrap_or_default());
        }
    }
    assignable
}

/// Nodes look at rules that check before all that accept.
fn look_at_checks(document: &Document, warnings: &mut Collected) {
    for rule in document.ssh.iter().filter(|rule| rule.check) {
        let message = "checks are not done by this server: such logins are refused, also where another rule accepts them; take the rule out, or write \"accept\"";
        let place = rule.origin.place;
        warnings.push(place, PolicyWarningKind::Refused, message.to_owned());
    }
}

fn is_empty(document: &Document, group: &str) -> bool {
    document.groups.get(group).is_some_and(Vec::is_empty)
}

fn look_at_hosts(
    document: &Document,
    compiled: &CompiledTailnet,
    names: &HashMap<String, NodeId>,
    warnings: &mut Collected,
) {
    let nodes = &compiled.parts().nodes;
    let mut by_lower_case: HashMap<String, &str> = HashMap::new();
    for (name, net) in &document.names.hosts {
        let Some(definition) = document.defined.get(name) else {
            continue;
        };
        let place = definition.place;
        if !definition.is_named {
            let message = format!("host {name:?} is defined, but nothing in the policy names it");
            warnings.push(place, PolicyWarningKind::Unused, message);
        }
        let lower_case = name.to_ascii_lowercase();
        let node = names.get(&lower_case).and_then(|id| {
            let at = nodes.position_of(id, |node| node.facts.id)?;
            nodes.get(at)
        });
        if let Some(node) = node
            && !node.addresses.iter().any(|address| net.contains(address))
        {
            let message = format!(
                "host {name:?} is {}, but a node has that name, too, and other addresses; rules mean the host",
                net_text(net)
            );
            warnings.push(place, PolicyWarningKind::Shadowed, message);
        }
        if let Some(other) = by_lower_case.insert(lower_case, name)
            && document.names.hosts.get(other) != Some(net)
        {
            let message = format!(
                "hosts {other:?} and {name:?} differ in case only, and are not the same address"
            );
            warnings.push(place, PolicyWarningKind::Shadowed, message);
        }
    }
}
