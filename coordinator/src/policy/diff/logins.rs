//! Which logins over SSH open and close.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use lowroad_wire::control::{NodeId, SshPolicy, SshRule, UserId};

use super::super::compile::Nodes;
use super::super::explain::CHECKED;
use super::super::view::CompiledTailnet;
use super::{DiffEnds, DiffRow, DiffUsers};

const ROOT: &str = "root";
/// All names but root that no rule of a source knows by themselves.
const OTHERS: &str = "*";

/// What opens or closes, and from where.
type Key = (bool, Vec<String>, Vec<usize>);
/// A row's nodes, by position.
type Ends = (Vec<usize>, Vec<usize>);

/// The rows, those that open first.
pub(super) fn rows(old: &CompiledTailnet, new: &CompiledTailnet) -> Vec<DiffRow> {
    let nodes = &old.parts().nodes;
    let by_address: HashMap<String, usize> = nodes
        .iter()
        .enumerate()
        .flat_map(|(at, node)| node.addresses.iter().map(move |own| (own.to_string(), at)))
        .collect();
    let mut found: BTreeMap<Key, Vec<usize>> = BTreeMap::new();
    for (sides, to) in destinations(old, new) {
        for (rules, from) in sources(&sides, &by_address) {
            let changes = [true, false].map(|opens| (opens, changes(&rules, opens)));
            for (opens, access) in changes.into_iter().filter(|(_, access)| !access.is_empty()) {
                let to = to.iter().copied();
                let key = (opens, access, from.clone());
                found.entry(key).or_default().extend(to);
            }
        }
    }
    in_rows(found, nodes)
}

/// Nodes that both policies send the same, if it isn't the same from both.
fn destinations(
    old: &CompiledTailnet,
    new: &CompiledTailnet,
) -> Vec<([Arc<SshPolicy>; 2], Vec<usize>)> {
    let mut alike: Vec<([Arc<SshPolicy>; 2], Vec<usize>)> = Vec::new();
    let mut known: HashMap<[*const SshPolicy; 2], usize> = HashMap::new();
    for (at, node) in old.parts().nodes.iter().enumerate() {
        let sides = [old, new].map(|side| side.ssh_for(node.facts.id));
        let group = *known
            .entry(sides.each_ref().map(Arc::as_ptr))
            .or_insert(alike.len());
        match alike.get_mut(group) {
            Some((_, nodes)) => nodes.push(at),
            None => alike.push((sides, vec![at])),
        }
    }
    // What is sent to very many is long: looked at once for all of them.
    alike.retain(|([old, new], _)| old != new);
    alike
}

/// Nodes that the same rules of both sides are about.
fn sources<'p>(
    sides: &'p [Arc<SshPolicy>; 2],
    by_address: &HashMap<String, usize>,
) -> Vec<([Vec<&'p SshRule>; 2], Vec<usize>)> {
    let mut positions: BTreeMap<usize, [Vec<usize>; 2]> = BTreeMap::new();
    for (side, policy) in sides.iter().enumerate() {
        for (position, rule) in policy.rules.iter().enumerate() {
            let principals = rule.principals.iter();
            let from = principals.filter_map(|principal| by_address.get(&principal.node_ip));
            for from in from.collect::<BTreeSet<_>>() {
                positions.entry(*from).or_default()[side].push(position);
            }
        }
    }
    let mut alike: BTreeMap<[Vec<usize>; 2], Vec<usize>> = BTreeMap::new();
    for (from, positions) in positions {
        alike.entry(positions).or_default().push(from);
    }
    let rules = |side: usize, positions: &[usize]| {
        let positions = positions.iter();
        positions.map(|&at| &sides[side].rules[at]).collect()
    };
    let alike = alike.into_iter();
    alike
        .map(|([old, new], from)| ([rules(0, &old), rules(1, &new)], from))
        .collect()
}

/// What becomes of a login.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Judged {
    Accepted,
    /// It is to be checked, which here is to be refused.
    Checked,
    Unknown,
}

/// What the first rule that knows a name makes of it.
fn judge(rules: &[&SshRule], name: &str) -> Judged {
    let mut rules = rules.iter().filter(|rule| {
        let local = rule
            .ssh_users
            .get(name)
            .or_else(|| rule.ssh_users.get(OTHERS));
        local.is_some_and(|local| !local.is_empty())
    });
    match rules.next() {
        Some(rule) if rule.action.accept => Judged::Accepted,
        Some(_) => Judged::Checked,
        None => Judged::Unknown,
    }
}

fn changes(rules: &[Vec<&SshRule>; 2], opens: bool) -> Vec<String> {
    let judged = |name: &str| rules.each_ref().map(|rules| judge(rules, name));
    let names = rules
        .iter()
        .flatten()
        .flat_map(|rule| rule.ssh_users.keys());
    let names: BTreeSet<&str> = names.map(String::as_str).collect();
    let others = judged(OTHERS);
    let differs = |name: &&&str| **name == ROOT || judged(name) != others;
    let named: Vec<&str> = names
        .iter()
        .filter(|name| **name != OTHERS)
        .filter(differs)
        .copied()
        .collect();
    let has_exceptions = named.iter().any(|name| *name != ROOT);
    let mut texts = Vec::new();
    for name in named.into_iter().chain([OTHERS]) {
        let [was, is] = judged(name);
        let (this, that) = if opens { (is, was) } else { (was, is) };
        if this != Judged::Accepted || that == Judged::Accepted {
            continue;
        }
        let who = match name {
            OTHERS if has_exceptions => "any other name but root",
            OTHERS => "any name but root",
            name => name,
        };
        let after = match is {
            Judged::Checked => CHECKED,
            Judged::Accepted | Judged::Unknown => "",
        };
        texts.push(format!("ssh as {who}{after}"));
    }
    texts
}

fn in_rows(found: BTreeMap<Key, Vec<usize>>, nodes: &Nodes) -> Vec<DiffRow> {
    let mut rows: Vec<((bool, Vec<String>), DiffUsers, Ends)> = Vec::new();
    // Among devices of one user, for each user once: one row of all these users says the same.
    let mut own: BTreeMap<(bool, Vec<String>), BTreeMap<UserId, Ends>> = BTreeMap::new();
    for ((opens, access, from), mut to) in found {
        to.sort_unstable();
        let what = (opens, access);
        let owners: BTreeSet<Option<UserId>> = from
            .iter()
            .chain(&to)
            .map(|&at| nodes[at].facts.owner())
            .collect();
        let user = match owners.into_iter().collect::<Vec<_>>().as_slice() {
            [Some(user)] => Some(*user),
            _ => None,
        };
        let users = user.map(|user| (user, own.entry(what.clone()).or_default()));
        match users {
            Some((user, known)) if !known.contains_key(&user) => {
                known.insert(user, (from, to));
            }
            _ => rows.push((what, DiffUsers::Any, (from, to))),
        }
    }
    for (what, users) in own {
        let is_of_one = users.len() == 1;
        let mut all: Ends = (Vec::new(), Vec::new());
        for (from, to) in users.into_values() {
            all.0.extend(from);
            all.1.extend(to);
        }
        let users = match is_of_one {
            true => DiffUsers::Any,
            false => DiffUsers::Same,
        };
        rows.push((what, users, all));
    }
    let rows = rows.into_iter();
    let mut rows: Vec<DiffRow> = rows
        .map(|((opens, access), users, (from, to))| DiffRow {
            opens,
            pairs: pairs(&from, &to, users, nodes),
            from: name(&from, nodes),
            to: name(&to, nodes),
            users,
            family: None,
            access,
        })
        .filter(|row| row.pairs > 0)
        .collect();
    // Stable: equals stay as their access is ordered.
    rows.sort_by_key(|row| (!row.opens, u64::MAX - row.pairs));
    rows
}

fn pairs(from: &[usize], to: &[usize], users: DiffUsers, nodes: &Nodes) -> u64 {
    let mut by_user: HashMap<Option<UserId>, u64> = HashMap::new();
    let key = |at: usize| match users {
        DiffUsers::Any => None,
        DiffUsers::Same | DiffUsers::Different => nodes[at].facts.owner(),
    };
    for &at in from {
        *by_user.entry(key(at)).or_default() += 1;
    }
    let all: u64 = to.iter().filter_map(|&at| by_user.get(&key(at))).sum();
    let sources: BTreeSet<usize> = from.iter().copied().collect();
    // A node is no peer of its own.
    all - to.iter().filter(|at| sources.contains(at)).count() as u64
}

fn name(ends: &[usize], nodes: &Nodes) -> DiffEnds {
    let mut ids: Vec<NodeId> = ends.iter().map(|&at| nodes[at].facts.id).collect();
    ids.sort_unstable();
    DiffEnds {
        nodes: ids,
        ..DiffEnds::default()
    }
}
