//! Entries of `nodeAttrs` that mean nobody, and pools out of which nobody gets an address.

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::iter;

use ipnet::Ipv4Net;

use crate::address;

use super::super::alias::Alias;
use super::super::attributes::{Attributes, Target};
use super::super::error::At;
use super::super::syntax::Document;
use super::{Collected, PolicyWarningKind, is_empty};

const KIND: PolicyWarningKind = PolicyWarningKind::NeverMatches;
/// Of entries that decide before another one.
const SHOWN_LINES: usize = 3;

/// Warns of them. Tags that nobody may give are warned of where they are defined.
pub(super) fn look(document: &Document, warnings: &mut Collected) {
    let mut decided = Decided::default();
    for entry in &document.attributes {
        if entry.targets.is_empty() {
            let message = "this entry never matches: target is empty";
            warnings.push(entry.place, KIND, message.to_owned());
        }
        for target in &entry.targets {
            if let Target::Alias(Alias::Group(name)) = &target.value
                && is_empty(document, name)
            {
                let message = format!("this target is nobody: {name:?} has no members");
                warnings.push(target.place, KIND, message);
            }
        }
        if !entry.targets.is_empty() && !entry.pools.is_empty() {
            look_at_pools(document, entry, &decided, warnings);
            decided.add(document, entry);
        }
    }
}

fn look_at_pools(
    document: &Document,
    entry: &Attributes,
    decided: &Decided,
    warnings: &mut Collected,
) {
    let unused = why_unused(document, entry, decided);
    let mut before = HashSet::new();
    for pool in &entry.pools {
        let why = match &unused {
            Some(why) => Some(why.clone()),
            None => why_dry(&pool.value, &before),
        };
        if let Some(why) = why {
            let message = format!("nobody gets an address out of {}: {why}", pool.value);
            warnings.push(pool.place, KIND, message);
        }
        before.insert(pool.value);
    }
}

/// Targets of entries with pools, each with the line of the first of them. What joins is known by its user and its tags, and the first entry that
/// means it decides.
#[derive(Default)]
struct Decided<'d> {
    targets: HashMap<&'d Target, u32>,
    /// By their names in lower case, those who are members of groups among the targets.
    members: HashMap<String, u32>,
}

impl<'d> Decided<'d> {
    fn add(&mut self, document: &Document, entry: &'d Attributes) {
        let line = entry.place.line;
        for At { value: target, .. } in &entry.targets {
            let Entry::Vacant(new) = self.targets.entry(target) else {
                continue;
            };
            new.insert(line);
            if let Target::Alias(Alias::Group(name)) = target {
                for member in document.groups.get(name).into_iter().flatten() {
                    let name = member.value.to_ascii_lowercase();
                    self.members.entry(name).or_insert(line);
                }
            }
        }
    }

    /// The line of an entry for all nodes that a target means when they join.
    fn line(&self, target: &Target) -> Option<u32> {
        const ANY: Target = Target::Alias(Alias::Any);
        const MEMBER: Target = Target::Alias(Alias::Member);
        const TAGGED: Target = Target::Alias(Alias::Tagged);
        let wider = match target {
            Target::Owner => vec![&MEMBER, &Target::Admin],
            Target::Admin => vec![&MEMBER],
            Target::Alias(Alias::User(_) | Alias::Group(_) | Alias::Domain(_)) => vec![&MEMBER],
            Target::Alias(Alias::Tag(_)) => vec![&TAGGED],
            Target::Alias(_) => Vec::new(),
        };
        let lines = wider.into_iter().chain([target, &ANY]);
        let line = lines.filter_map(|target| self.targets.get(target)).min();
        let member = match target {
            Target::Alias(Alias::User(name)) => self.members.get(&name.to_ascii_lowercase()),
            _ => None,
        };
        line.into_iter().chain(member).min().copied()
    }
}

/// Why an entry's pools are never looked at.
fn why_unused(document: &Document, entry: &Attributes, decided: &Decided) -> Option<String> {
    let targets = entry.targets.iter().map(|target| &target.value);
    let joining = targets.filter(|target| match target {
        Target::Alias(Alias::Net(_)) => false,
        Target::Alias(Alias::Group(name)) => !is_empty(document, name),
        _ => true,
    });
    let lines: BTreeSet<u32> = joining
        .map(|target| decided.line(target))
        .collect::<Option<_>>()?;
    if lines.is_empty() {
        let why = "a node that joins has no address yet, and target names no users or tags";
        return Some(why.to_owned());
    }
    let mut all: Vec<String> = lines.iter().take(SHOWN_LINES).map(u32::to_string).collect();
    if lines.len() > SHOWN_LINES {
        all.push("others".to_owned());
    }
    Some(match &all[..] {
        [line] => format!("the entry in line {line}, which comes first, is for all of these nodes"),
        all => format!(
            "the entries in lines {}, which come first, are for all of these nodes",
            all.join(" and ")
        ),
    })
}

/// Why a pool gives no address that those before it in its list don't.
fn why_dry(pool: &Ipv4Net, before: &HashSet<Ipv4Net>) -> Option<String> {
    if address::next_of(&[*pool], |_| None, |_| false).is_none() {
        return Some("all of its addresses are reserved".to_owned());
    }
    let mut wider = iter::successors(Some(*pool), Ipv4Net::supernet);
    let wide = wider.find(|wide| before.contains(wide))?;
    Some(format!("all of it is in {wide}, which stands before it"))
}
