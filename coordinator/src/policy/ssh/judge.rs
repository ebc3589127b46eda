//! Who may log in where as whom, found without writing out what nodes are sent: with `localpart:` that is a rule for each user.
//!
//! All devices of a user are one end, as rules tell users apart only; other nodes are ends of their own.

use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

use super::super::bits::Bits;
use super::super::budget::Budget;
use super::super::view::Parts;
use super::compile::Access;

/// The `ssh` rules, by what they allow. All sets are of their positions.
pub(crate) struct Judge<'a> {
    parts: &'a Parts,
    rules: Vec<&'a Access>,
    named: HashMap<&'a str, Bits>,
    /// That allow all names but root. Beside rules, two stand here for an end whose own name is `*`: any rule that has it log in so,
    /// and one that checks.
    others: Bits,
    checks: Bits,
    to_own: Bits,
    /// That nodes are sent as sources, for logins among own devices.
    to_sources: Bits,
    local: HashMap<String, Bits>,
    ends: HashMap<usize, Rc<End<'a>>>,
    pub(crate) budget: &'a Budget,
}

/// A user, by whose first device it goes, or a node without one.
pub(crate) struct End<'a> {
    pub(crate) at: usize,
    is_user: bool,
    from: Bits,
    pub(crate) to: Bits,
    /// What stands before the `@` of the own address, and the rules that allow it.
    local: Option<(&'a str, Bits)>,
}

impl<'a> End<'a> {
    /// What rules tell it apart by from other ends, where it is the source, and its own name isn't asked for.
    pub(crate) fn sort(&self) -> (&Bits, Option<&Bits>) {
        let local = self.local.as_ref();
        let anything = local.filter(|(name, _)| *name == "*");
        (&self.from, anything.map(|(_, rules)| rules))
    }

    /// As whom it may log in because of its address; `None`: anything.
    pub(crate) fn own_name(&self) -> Option<&'a str> {
        let (local, _) = self.local.as_ref()?;
        (*local != "*").then_some(local)
    }
}

/// Ends by the rules that let them in.
pub(crate) type Views = BTreeMap<Bits, usize>;

impl<'a> Judge<'a> {
    pub(crate) fn new(parts: &'a Parts, budget: &'a Budget) -> Self {
        let rules: Vec<&Access> = parts.ssh.rules.iter().map(AsRef::as_ref).collect();
        let count = rules.len();
        let those = |holds: &dyn Fn(&Access) -> bool| {
            let those = (0..count).filter(|&at| holds(rules[at]));
            those.collect::<Bits>()
        };
        let mut named: HashMap<&str, Bits> = HashMap::new();
        let mut local: HashMap<String, Bits> = HashMap::new();
        for (at, rule) in rules.iter().enumerate() {
            for name in rule.names() {
                named.entry(name).or_default().insert(at);
            }
            for domain in &rule.domains {
                let domain = domain.to_ascii_lowercase();
                local.entry(domain).or_default().insert(at);
            }
        }
        let mut others = those(&Access::allows_others);
        others.insert(count);
        others.insert(count + 1);
        let mut checks = those(&Access::checks);
        checks.insert(count + 1);
        Self {
            named,
            others,
            checks,
            to_own: those(&|rule| rule.to_own),
            to_sources: those(&|rule| rule.to_others && !rule.domains.is_empty()),
            local,
            ends: HashMap::new(),
            budget,
            rules,
            parts,
        }
    }

    /// The end that a node is.
    pub(crate) fn end(&mut self, node: usize) -> Rc<End<'a>> {
        let user = self.parts.nodes[node].facts.owner();
        let devices = user.and_then(|user| self.parts.devices.get(&user));
        let at = devices.and_then(|own| own.iter().next()).unwrap_or(node);
        if let Some(known) = self.ends.get(&at) {
            return known.clone();
        }
        self.budget.spend(1 + self.rules.len() / 4);
        let those = |is_in: &dyn Fn(&Access) -> bool| {
            let rules = 0..self.rules.len();
            let those = rules.filter(|&rule| is_in(self.rules[rule]));
            those.collect::<Bits>()
        };
        let from = those(&|rule| rule.sources.contains(at));
        let address = user.and_then(|user| self.parts.people.address(user));
        let local = address.and_then(|(local, domain)| {
            let mut rules = self.local.get(domain)?.clone();
            rules.intersect(&from);
            (!rules.is_empty() && !local.is_empty()).then_some((local, rules))
        });
        let end = Rc::new(End {
            at,
            is_user: user.is_some(),
            to: those(&|rule| rule.destinations.contains(at)),
            from,
            local,
        });
        self.ends.insert(at, end.clone());
        end
    }

    /// Whether rules name it, or allow it otherwise than they do all names.
    pub(crate) fn is_named(&self, name: &str) -> bool {
        name == "root" || self.named.contains_key(name)
    }

    /// The rules that allow a login name whoever it is who logs in, or those of them that check.
    pub(crate) fn rules_for(&self, name: &str, checked: bool) -> Bits {
        let named = self.named.get(name);
        let mut rules = match name {
            "root" => Bits::default(),
            _ => self.others.clone(),
        };
        named.into_iter().for_each(|named| rules.unite(named));
        if checked {
            rules.intersect(&self.checks);
        }
        rules
    }

    /// The rules that let one end in where `to` are those of the destination.
    pub(crate) fn view(&self, from: &End, to: &Bits) -> Bits {
        self.budget.spend(1 + from.from.weight());
        let mut view = from.from.clone();
        view.intersect(to);
        if let Some(("*", own)) = &from.local {
            let mut own = own.clone();
            own.intersect(&view);
            if !own.is_empty() {
                view.insert(self.rules.len());
            }
            if own.overlaps(&self.checks) {
                view.insert(self.rules.len() + 1);
            }
        }
        view
    }

    /// The rules that let an end in at itself: among the devices of a user, or at the same node.
    pub(crate) fn own_view(&self, end: &End) -> Bits {
        let mut to = end.to.clone();
        to.unite(&self.to_sources);
        if end.is_user {
            to.unite(&self.to_own);
        }
        self.view(end, &to)
    }

    /// Whether one of the rules, or of those of them that check, lets the end in by its own name.
    pub(crate) fn lets_in_by_own_name(&self, end: &End, view: &Bits, checked: bool) -> bool {
        self.budget.spend(1);
        let Some((_, own)) = &end.local else {
            return false;
        };
        let mut own = own.clone();
        own.intersect(view);
        match checked {
            true => own.overlaps(&self.checks),
            false => !own.is_empty(),
        }
    }
}
