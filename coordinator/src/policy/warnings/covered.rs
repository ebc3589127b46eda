//! Rules that allow nothing that others don't allow.
//!
//! Judged by what the policy says, not by who is there: a group covers its members, a prefix those inside it. Where a rule stands makes
//! no difference; of two that say the same, the second is too many.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use lowroad_wire::control::PortRange;

use super::super::access::DEFAULT_PROTOCOLS;
use super::super::addresses::AddressSet;
use super::super::alias::Alias;
use super::super::compile::tailnet;
use super::super::syntax::{Document, Rule};
use super::{Collected, PolicyWarningKind};

/// Comparisons of names in all. Enough for a thousand rules and those before them; what a larger policy has besides is not looked at.
const MOST_COMPARISONS: usize = 2_000_000;

/// Warns of them.
pub(super) fn look(document: &Document, warnings: &mut Collected) {
    let mut covers = Covers {
        groups: document
            .groups
            .iter()
            .map(|(name, members)| {
                let members = members
                    .iter()
                    .map(|member| member.value.to_ascii_lowercase());
                (name.as_str(), members.collect())
            })
            .collect(),
        tailnet: tailnet(&[]),
        left: MOST_COMPARISONS,
    };
    let rules: Vec<&Rule> = document.rules.iter().flatten().collect();
    let mut wider = covers.by_earlier(&rules);
    covers.by_later(&rules, &mut wider);
    let mut wider = wider.as_slice();
    // One grant is several rules: it adds nothing if none of them does.
    for written in rules.chunk_by(|one, next| one.place == next.place) {
        let (here, rest) = wider.split_at(written.len());
        wider = rest;
        let lines: Option<BTreeSet<u32>> = here
            .iter()
            .map(|wide| wide.map(|wide| wide.place.line))
            .collect();
        let Some(lines) = lines else {
            continue;
        };
        let lines: Vec<String> = lines.iter().map(u32::to_string).collect();
        let who = match lines.as_slice() {
            [line] => format!("the one in line {line} allows"),
            lines => format!("the ones in lines {} allow", lines.join(", ")),
        };
        let message = format!("this rule adds nothing: {who} all of it");
        warnings.push(written[0].place, PolicyWarningKind::Covered, message);
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Source,
    Destination,
}

struct Covers<'d> {
    groups: BTreeMap<&'d str, BTreeSet<String>>,
    tailnet: AddressSet,
    left: usize,
}

impl Covers<'_> {
    /// Per rule an earlier one that covers it.
    fn by_earlier<'r>(&mut self, rules: &[&'r Rule]) -> Vec<Option<&'r Rule>> {
        let find = |(at, rule): (usize, &&'r Rule)| {
            let mut earlier = rules[..at].iter().copied();
            earlier.find(|earlier| self.other_rule(earlier, rule))
        };
        rules.iter().enumerate().map(find).collect()
    }

    /// The same for rules that no earlier one covers: a later one that does, and says more.
    fn by_later<'r>(&mut self, rules: &[&'r Rule], wider: &mut [Option<&'r Rule>]) {
        let uncovered = wider.iter_mut().enumerate();
        for (at, wider) in uncovered.filter(|(_, wider)| wider.is_none()) {
            let rule = rules[at];
            let mut later = rules[at + 1..].iter().copied();
            *wider = later.find(|later| {
                self.other_rule(later, rule)
                    && !self.rule(rule, later)
                    // Else it is not known whether they say the same.
                    && self.left > 0
            });
        }
    }

    /// Of a rule that says nothing there is another warning.
    fn other_rule(&mut self, wide: &Rule, narrow: &Rule) -> bool {
        let says_nothing = narrow.sources.is_empty() || narrow.destinations.is_empty();
        !says_nothing && wide.place != narrow.place && self.rule(wide, narrow)
    }

    fn rule(&mut self, wide: &Rule, narrow: &Rule) -> bool {
        self.spend(1)
            && (Arc::ptr_eq(&wide.via, &narrow.via)
                || wide.via.len() == narrow.via.len()
                    && self.spend(wide.via.len())
                    && wide.via == narrow.via)
            && wide.capabilities == narrow.capabilities
            && protocols(&wide.protocols, &narrow.protocols)
            && narrow.sources.iter().all(|source| {
                let mut sources = wide.sources.iter();
                sources.any(|wide| self.alias(&wide.value, &source.value, Side::Source))
            })
            && narrow.destinations.iter().all(|(to, ranges)| {
                let same = wide
                    .destinations
                    .iter()
                    .filter(|(wide, _)| self.alias(&wide.value, &to.value, Side::Destination));
                let allowed: Vec<PortRange> =
                    same.flat_map(|(_, ranges)| ranges).copied().collect();
                self.spend(allowed.len().saturating_mul(ranges.len()))
                    && ranges.iter().all(|range| {
                        let inside =
                            |wide: &PortRange| wide.first <= range.first && range.last <= wide.last;
                        allowed.iter().any(inside)
                    })
            })
    }

    /// Whether there is room for so many comparisons more.
    fn spend(&mut self, comparisons: usize) -> bool {
        self.left = self.left.saturating_sub(comparisons);
        self.left > 0
    }

    fn alias(&mut self, wide: &Alias, narrow: &Alias, side: Side) -> bool {
        if !self.spend(1) {
            return false;
        }
        match (wide, narrow) {
            _ if wide == narrow => true,
            (Alias::DangerAll, _) => true,
            (Alias::Any, _) if side == Side::Destination => true,
            (Alias::Any, Alias::Net(net)) => self.tailnet.contains_net(net),
            (Alias::Any, narrow) => *narrow != Alias::DangerAll,
            (Alias::Member, Alias::User(_) | Alias::Group(_) | Alias::OwnDevices)
            | (Alias::Tagged, Alias::Tag(_)) => true,
            (Alias::Group(group), Alias::User(user)) => self
                .groups
                .get(group.as_str())
                .is_some_and(|members| members.contains(&user.to_ascii_lowercase())),
            (Alias::Group(wide), Alias::Group(narrow)) => self.group(wide, narrow),
            (Alias::Net(wide), Alias::Net(narrow)) => wide.contains(narrow),
            _ => false,
        }
    }

    fn group(&mut self, wide: &str, narrow: &str) -> bool {
        let members = self.groups.get(narrow).map_or(0, BTreeSet::len);
        if !self.spend(members) {
            return false;
        }
        match (self.groups.get(wide), self.groups.get(narrow)) {
            (Some(wide), Some(narrow)) => !narrow.is_empty() && narrow.is_subset(wide),
            _ => false,
        }
    }
}

fn protocols(wide: &[u8], narrow: &[u8]) -> bool {
    let of = |list: &[u8]| match list {
        [] => DEFAULT_PROTOCOLS.to_vec(),
        list => list.to_vec(),
    };
    let wide = of(wide);
    of(narrow).iter().all(|protocol| wide.contains(protocol))
}
