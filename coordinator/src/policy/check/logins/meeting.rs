//! The ends that a source means, and those that a destination means, pair by pair: counted by the rules that let them in.

use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

use super::super::super::bits::Bits;
use super::super::super::ssh::{End, Judge, Views};

/// Who is meant by an alias.
#[derive(Default)]
pub(super) struct Party<'a> {
    pub(super) ends: BTreeMap<usize, Rc<End<'a>>>,
    /// By the rules of which they are destinations.
    kinds: BTreeMap<Bits, Vec<Rc<End<'a>>>>,
    by_own_name: HashMap<&'a str, Vec<Rc<End<'a>>>>,
    /// Of those that no rule tells apart where they are sources, one, and how many they are.
    sorts: Vec<(Rc<End<'a>>, usize)>,
}

impl<'a> Party<'a> {
    pub(super) fn new(judge: &mut Judge<'a>, nodes: impl Iterator<Item = usize>) -> Self {
        let mut party = Self::default();
        for node in nodes {
            let end = judge.end(node);
            party.ends.insert(end.at, end);
        }
        judge.budget.spend(party.ends.len());
        let mut sorts = HashMap::new();
        for end in party.ends.values() {
            let kind = party.kinds.entry(end.to.clone()).or_default();
            kind.push(end.clone());
            if let Some(name) = end.own_name() {
                let alike = party.by_own_name.entry(name).or_default();
                alike.push(end.clone());
            }
            let new = party.sorts.len();
            let at = *sorts.entry(end.sort()).or_insert(new);
            if at == new {
                party.sorts.push((end.clone(), 0));
            }
            party.sorts[at].1 += 1;
        }
        party
    }

    /// Those who may be let in by this as their own name.
    pub(super) fn called(&self, name: &str) -> &[Rc<End<'a>>] {
        self.by_own_name.get(name).map_or(&[], Vec::as_slice)
    }
}

pub(super) struct Meeting {
    kinds: Vec<Kind>,
    /// The rules that let in pairs, and how many pairs; `None` if too many are different.
    views: Option<Views>,
    /// Ends that are on both sides, and let in at themselves by other rules than elsewhere.
    own: BTreeMap<usize, Bits>,
    pub(super) pairs: usize,
}

/// Destinations with the same rules.
struct Kind {
    to: Bits,
    /// The one end that doesn't meet the kind, as it is all of it; with what would let it in.
    without: Option<(usize, Bits)>,
}

/// What meetings that come out the same have in common.
pub(super) type Outline = (Vec<(Bits, Option<Bits>)>, Views);

impl Meeting {
    pub(super) fn new(judge: &Judge, from: &Party, to: &Party) -> Self {
        let mut meeting = Self {
            kinds: Vec::new(),
            views: None,
            own: BTreeMap::new(),
            pairs: 0,
        };
        for (rules, ends) in &to.kinds {
            if judge.budget.is_spent() {
                break;
            }
            judge.budget.spend(4 + ends.len());
            let mut without = None;
            for end in ends.iter().filter(|end| from.ends.contains_key(&end.at)) {
                let (view, own) = (judge.view(end, rules), judge.own_view(end));
                if view != own {
                    meeting.own.insert(end.at, own);
                    without = (ends.len() == 1).then_some((end.at, view));
                }
            }
            meeting.pairs += from.ends.len() - usize::from(without.is_some());
            meeting.kinds.push(Kind {
                to: rules.clone(),
                without,
            });
        }
        meeting.pairs += meeting.own.len();
        meeting.views = meeting.few_views(judge, from);
        meeting
    }

    fn few_views(&self, judge: &Judge, from: &Party) -> Option<Views> {
        const MOST: usize = 1 << 12;
        let mut views = Views::new();
        for kind in &self.kinds {
            for (end, count) in &from.sorts {
                *views.entry(judge.view(end, &kind.to)).or_default() += count;
            }
            if views.len() > MOST || judge.budget.is_spent() {
                return None;
            }
        }
        Some(views)
    }

    pub(super) fn own_ends(&self) -> impl Iterator<Item = usize> {
        self.own.keys().copied()
    }

    pub(super) fn outline(&self) -> Outline {
        let kinds = self.kinds.iter().map(|kind| {
            let without = kind.without.as_ref();
            (kind.to.clone(), without.map(|(_, view)| view.clone()))
        });
        let mut own = Views::new();
        for view in self.own.values() {
            *own.entry(view.clone()).or_default() += 1;
        }
        (kinds.collect(), own)
    }

    /// How many pairs none of some rules lets in.
    pub(super) fn refused(&self, judge: &Judge, from: &Party, rules: &Bits) -> usize {
        let refused = |view: &Bits| usize::from(!view.overlaps(rules));
        let all: usize = match &self.views {
            Some(views) => {
                let weights: usize = views.keys().map(|view| 2 + view.weight()).sum();
                judge.budget.spend(1 + weights / 4);
                views
                    .iter()
                    .map(|(view, count)| refused(view) * count)
                    .sum()
            }
            None => {
                let kinds = self.kinds.iter().take_while(|_| !judge.budget.is_spent());
                let pairs = kinds.flat_map(|kind| from.sorts.iter().map(move |sort| (kind, sort)));
                pairs
                    .map(|(kind, (end, count))| refused(&judge.view(end, &kind.to)) * count)
                    .sum()
            }
        };
        if judge.budget.is_spent() {
            return 0;
        }
        judge.budget.spend((self.kinds.len() + self.own.len()) / 4);
        let without = self.kinds.iter().filter_map(|kind| kind.without.as_ref());
        let without: usize = without.map(|(_, view)| refused(view)).sum();
        all - without + self.own.values().map(refused).sum::<usize>()
    }

    /// How many of these pairs are let in because the name is the end's own.
    pub(super) fn let_in_by_own_name(
        &self,
        judge: &Judge,
        ends: &[Rc<End>],
        rules: &Bits,
        checked: bool,
    ) -> usize {
        let is_let_in = |end: &End, view: &Bits| {
            !view.overlaps(rules) && judge.lets_in_by_own_name(end, view, checked)
        };
        let pairs_of = |end: &Rc<End>| {
            let kinds = self.kinds.iter().filter(|kind| {
                let is_left_out = kind.without.as_ref().is_some_and(|(at, _)| *at == end.at);
                !is_left_out && is_let_in(end, &judge.view(end, &kind.to))
            });
            let own = self.own.get(&end.at);
            kinds.count() + usize::from(own.is_some_and(|own| is_let_in(end, own)))
        };
        let ends = ends.iter().take_while(|_| !judge.budget.is_spent());
        ends.map(pairs_of).sum()
    }
}
