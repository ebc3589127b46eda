//! Entries of `nodeAttrs` that mean nobody, and pools out of which nobody gets an address.

use ipnet::Ipv4Net;

use crate::address;

use super::super::alias::Alias;
use super::super::attributes::{Attributes, Target};
use super::super::syntax::Document;
use super::{Collected, PolicyWarningKind, is_empty};

const KIND: PolicyWarningKind = PolicyWarningKind::NeverMatches;

/// Warns of them. Tags that nobody may give are warned of where they are defined.
pub(super) fn look(document: &Document, warnings: &mut Collected) {
    let mut before: Vec<&Attributes> = Vec::new();
    for entry in &document.attributes {
        if entry.targets.is_empty() {
            let message = "this entry never matches: target is empty";
            warnings.push(entry.place, KIND, message.to_owned());
            continue;
        }
        for target in &entry.targets {
            if let Target::Alias(Alias::Group(name)) = &target.value
                && is_empty(document, name)
            {
                let message = format!("this target is nobody: {name:?} has no members");
                warnings.push(target.place, KIND, message);
            }
        }
        if entry.pools.is_empty() {
            continue;
        }
        let unused = why_unused(document, entry, &before);
        for (at, pool) in entry.pools.iter().enumerate() {
            let why = match &unused {
                Some(why) => Some(why.clone()),
                None => why_dry(&pool.value, entry.pools[..at].iter().map(|pool| pool.value)),
            };
            if let Some(why) = why {
                let message = format!("nobody gets an address out of {}: {why}", pool.value);
                warnings.push(pool.place, KIND, message);
            }
        }
        if unused.is_none() {
            before.push(entry);
        }
    }
}

/// Why an entry's pools are never looked at. What joins is known by its user and its tags, and the first entry that means it decides.
fn why_unused(document: &Document, entry: &Attributes, before: &[&Attributes]) -> Option<String> {
    let targets = entry.targets.iter().map(|target| &target.value);
    let joining: Vec<&Target> = targets
        .filter(|target| match target {
            Target::Alias(Alias::Net(_)) => false,
            Target::Alias(Alias::Group(name)) => !is_empty(document, name),
            _ => true,
        })
        .collect();
    if joining.is_empty() {
        let why = "a node that joins has no address yet, and target names no users or tags";
        return Some(why.to_owned());
    }
    let decides = |earlier: &&&Attributes| {
        let is_covered = |target: &&Target| {
            let mut targets = earlier.targets.iter();
            targets.any(|wide| covers(document, &wide.value, target))
        };
        joining.iter().all(is_covered)
    };
    let decides = before.iter().find(decides)?;
    let line = decides.place.line;
    Some(format!(
        "the entry in line {line}, which comes first, is for all of these nodes"
    ))
}

/// Whether all nodes that a target means when they join are another's as well.
fn covers(document: &Document, wide: &Target, target: &Target) -> bool {
    use Alias::{Any, Domain, Group, Member, Tag, Tagged, User};
    match (wide, target) {
        (Target::Alias(Any), _) | (Target::Admin, Target::Owner) => true,
        (Target::Alias(Member), Target::Owner | Target::Admin)
        | (Target::Alias(Member), Target::Alias(User(_) | Group(_) | Domain(_)))
        | (Target::Alias(Tagged), Target::Alias(Tag(_))) => true,
        (Target::Alias(Group(group)), Target::Alias(User(name))) => {
            let mut members = document.groups.get(group).into_iter().flatten();
            members.any(|member| member.value.eq_ignore_ascii_case(name))
        }
        (wide, target) => wide == target,
    }
}

/// Why a pool gives no address that those before it in its list don't.
fn why_dry(pool: &Ipv4Net, mut before: impl Iterator<Item = Ipv4Net>) -> Option<String> {
    if address::next_of(&[*pool], |_| None, |_| false).is_none() {
        return Some("all of its addresses are reserved".to_owned());
    }
    let wide = before.find(|wide| wide.contains(pool))?;
    Some(format!("all of it is in {wide}, which stands before it"))
}
