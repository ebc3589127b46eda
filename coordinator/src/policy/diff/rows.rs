//! Many pairs of classes with the same change as few rows.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use lowroad_wire::control::UserId;

use super::super::addresses::Collector;
use super::super::bits::Bits;
use super::ends::{Class, End, Ends, Sides};
use super::{Change, Diff, DiffEnds, DiffFamily, DiffRow, DiffUsers, NO_CHANGE};

/// What opens or closes, by position of the change that says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    closes: bool,
    change: usize,
    users: DiffUsers,
    family: Option<DiffFamily>,
}

/// Collects changes between classes.
pub(super) struct Table<'a> {
    sides: Sides<'a>,
    ends: &'a Ends,
    source_nodes: Vec<Bits>,
    destination_nodes: Vec<Bits>,
    /// Per change the destinations of each source.
    rows: BTreeMap<Key, BTreeMap<usize, BTreeSet<usize>>>,
    /// Pairs of nodes between which something opens, and something closes.
    pairs: [u64; 2],
}

impl<'a> Table<'a> {
    pub(super) fn new(sides: Sides<'a>, ends: &'a Ends) -> Self {
        let nodes = |classes: &[Class]| {
            let nodes = classes.iter().map(|class| class.nodes().collect());
            nodes.collect()
        };
        Self {
            source_nodes: nodes(&ends.sources),
            destination_nodes: nodes(&ends.destinations),
            sides,
            ends,
            rows: BTreeMap::new(),
            pairs: [0; 2],
        }
    }

    /// Notes what changes per family from one class to another.
    pub(super) fn add(
        &mut self,
        from: usize,
        to: usize,
        users: DiffUsers,
        families: [Option<usize>; 2],
        changes: &[Change],
    ) {
        if families.iter().flatten().all(|&change| change == NO_CHANGE) {
            return;
        }
        let pairs = self.pairs(from, to, users);
        if pairs == 0 {
            return;
        }
        for (closes, counted) in [false, true].into_iter().zip(0..) {
            let of = |change: usize| match closes {
                false => &changes[change].opened,
                true => &changes[change].closed,
            };
            let found = families.map(|change| change.filter(|&change| !of(change).is_empty()));
            let keys = match (families, found) {
                (_, [None, None]) => continue,
                ([Some(_), Some(_)], [Some(v4), Some(v6)]) if of(v4) == of(v6) => {
                    vec![(v4, None)]
                }
                ([Some(_), Some(_)], [v4, v6]) => {
                    let v4 = v4.map(|change| (change, Some(DiffFamily::V4)));
                    let v6 = v6.map(|change| (change, Some(DiffFamily::V6)));
                    v4.into_iter().chain(v6).collect()
                }
                (_, [v4, v6]) => v4.or(v6).map(|change| (change, None)).into_iter().collect(),
            };
            for (change, family) in keys {
                let key = Key {
                    closes,
                    change,
                    users,
                    family,
                };
                let row = self.rows.entry(key).or_default();
                row.entry(from).or_default().insert(to);
            }
            let between_nodes =
                self.ends.sources[from].is_node() && self.ends.destinations[to].is_node();
            if between_nodes {
                self.pairs[counted] += pairs;
            }
        }
    }

    /// Pairs of ends that are meant; a node is no peer of its own.
    fn pairs(&self, from: usize, to: usize, users: DiffUsers) -> u64 {
        let (source, destination) = (&self.ends.sources[from], &self.ends.destinations[to]);
        let mut shared = self.source_nodes[from].clone();
        shared.intersect(&self.destination_nodes[to]);
        let owner = |at: usize| self.sides[0].nodes[at].facts.owner();
        let (own, nobodys): (Vec<usize>, Vec<usize>) =
            shared.iter().partition(|&at| owner(at).is_some());
        let owned = source.of_user.iter().filter(|(user, _)| user.is_some());
        let of_same_user: u64 = owned
            .map(|(user, count)| count * destination.of_user.get(user).copied().unwrap_or(0))
            .sum();
        let same = of_same_user - own.len() as u64;
        let all = (source.ends.len() * destination.ends.len()) as u64;
        let different = all - of_same_user - nobodys.len() as u64;
        match users {
            DiffUsers::Any => same + different,
            DiffUsers::Same => same,
            DiffUsers::Different => different,
        }
    }

    pub(super) fn finish(self, changes: &[Change]) -> Diff {
        let mut merged: BTreeMap<(bool, Vec<String>, DiffUsers, Option<DiffFamily>), Pairs> =
            BTreeMap::new();
        for (key, row) in &self.rows {
            let change = &changes[key.change];
            let access = if key.closes {
                &change.closed
            } else {
                &change.opened
            };
            let key = (key.closes, access.texts(), key.users, key.family);
            let pairs = merged.entry(key).or_default();
            for (from, to) in row {
                pairs.entry(*from).or_default().extend(to);
            }
        }
        let mut rows = Vec::new();
        for ((closes, access, users, family), pairs) in merged {
            let mut alike: BTreeMap<BTreeSet<usize>, Vec<usize>> = BTreeMap::new();
            for (from, to) in pairs {
                alike.entry(to).or_default().push(from);
            }
            for (to, from) in alike {
                let each = from
                    .iter()
                    .flat_map(|&from| to.iter().map(move |&to| (from, to)));
                let pairs = each.map(|(from, to)| self.pairs(from, to, users)).sum();
                let from = from
                    .iter()
                    .flat_map(|&class| &self.ends.sources[class].ends);
                let to = to
                    .iter()
                    .flat_map(|&class| &self.ends.destinations[class].ends);
                let (mut from, mut to): (Vec<End>, Vec<End>) =
                    (from.copied().collect(), to.copied().collect());
                if users == DiffUsers::Same {
                    (from, to) = self.of_same_users(&from, &to);
                }
                rows.push(DiffRow {
                    opens: !closes,
                    pairs,
                    from: self.name(&from),
                    to: self.name(&to),
                    users,
                    family,
                    access: access.clone(),
                });
            }
        }
        // Stable: equals stay as their access is ordered.
        rows.sort_by_key(|row| (!row.opens, u64::MAX - row.pairs));
        Diff {
            rows,
            opened: self.pairs[0],
            closed: self.pairs[1],
            logins: Vec::new(),
        }
    }

    /// Those that have a device of the same user at the other end.
    fn of_same_users(&self, from: &[End], to: &[End]) -> (Vec<End>, Vec<End>) {
        let devices = |ends: &[End]| {
            let mut devices: BTreeMap<UserId, BTreeSet<usize>> = BTreeMap::new();
            for end in ends {
                if let Some((user, at)) = self.device(*end) {
                    devices.entry(user).or_default().insert(at);
                }
            }
            devices
        };
        let (sources, destinations) = (devices(from), devices(to));
        let having = |ends: &[End], others: &BTreeMap<UserId, BTreeSet<usize>>| {
            let has_other = |end: &&End| {
                self.device(**end).is_some_and(|(user, at)| {
                    let mut others = others.get(&user).into_iter().flatten();
                    others.any(|other| *other != at)
                })
            };
            ends.iter().filter(has_other).copied().collect()
        };
        (having(from, &destinations), having(to, &sources))
    }

    fn device(&self, end: End) -> Option<(UserId, usize)> {
        match end {
            End::Node(at) => Some((self.sides[0].nodes[at].facts.owner()?, at)),
            End::Behind { .. } | End::Internet(_) => None,
        }
    }

    fn name(&self, ends: &[End]) -> DiffEnds {
        let id = |at: usize| self.sides[0].nodes[at].facts.id;
        let mut named = DiffEnds::default();
        let mut subnets: BTreeMap<Option<usize>, Collector> = BTreeMap::new();
        for end in ends {
            match end {
                End::Node(at) => named.nodes.push(id(*at)),
                End::Internet(at) => named.exits.push(id(*at)),
                End::Behind { atom, router } => {
                    let atom = &self.ends.atoms[*atom];
                    let ranges = subnets.entry(*router).or_default();
                    match (atom.first, atom.last) {
                        (IpAddr::V4(first), IpAddr::V4(last)) => ranges.v4_range(first, last),
                        (IpAddr::V6(first), IpAddr::V6(last)) => ranges.v6_range(first, last),
                        _ => {}
                    }
                }
            }
        }
        named.nodes.sort_unstable();
        named.exits.sort_unstable();
        let subnets = subnets.into_iter();
        named.subnets = subnets
            .map(|(router, ranges)| (router.map(id), ranges.finish().texts()))
            .collect();
        named
    }
}

/// The destinations of each source.
type Pairs = BTreeMap<usize, BTreeSet<usize>>;
