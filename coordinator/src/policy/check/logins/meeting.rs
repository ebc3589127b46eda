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
    /// As sources, where those are the rules.
    views: HashMap<Bits, Rc<Views>>,
    /// How many they are in all.
    held: usize,
}

impl<'a> Party<'a> {
    pub(super) fn new(judge: &mut Judge<'a>, nodes: impl Iterator<Item = usize>) -> Self {
        let mut party = Self::default();
        for node in nodes {
            let end = judge.end(node);
            party.ends.insert(end.at, end);
        }
        for end in party.ends.values() {
            let kind = party.kinds.entry(end.to.clone()).or_default();
            kind.push(end.clone());
            if let Some(name) = end.own_name() {
                let alike = party.by_own_name.entry(name).or_default();
                alike.push(end.clone());
            }
        }
        party
    }

    /// Those who may be let in by this as their own name.
    pub(super) fn called(&self, name: &str) -> &[Rc<End<'a>>] {
        self.by_own_name.get(name).map_or(&[], Vec::as_slice)
    }

    /// They are for one test.
    pub(super) fn forget_views(&mut self) {
        self.views = HashMap::new();
        self.held = 0;
    }

    fn views(&mut self, judge: &Judge, to: &Bits) -> Rc<Views> {
        /// More are found again when they are needed.
        const MOST: usize = 1 << 13;
        if let Some(known) = self.views.get(to) {
            return known.clone();
        }
        judge.spend(8);
        let mut views = Views::new();
        for end in self.ends.values() {
            *views.entry(judge.view(end, to)).or_default() += 1;
        }
        if self.held + views.len() > MOST {
            self.forget_views();
        }
        self.held += views.len() + 1;
        let views = Rc::new(views);
        self.views.insert(to.clone(), views.clone());
        views
    }
}

pub(super) struct Meeting {
    kinds: Vec<Kind>,
    /// Ends that are on both sides, and let in at themselves by other rules than elsewhere.
    own: BTreeMap<usize, Bits>,
    pub(super) pairs: usize,
}

/// Destinations with the same rules.
struct Kind {
    to: Bits,
    views: Rc<Views>,
    /// The one end that doesn't meet the kind, as it is all of it; with what would let it in.
    without: Option<(usize, Bits)>,
}

/// What meetings that come out the same have in common.
pub(super) type Outline = (Vec<(Bits, Option<Bits>)>, Views);

impl Meeting {
    pub(super) fn new(judge: &Judge, from: &mut Party, to: &Party) -> Self {
        let mut meeting = Self {
            kinds: Vec::new(),
            own: BTreeMap::new(),
            pairs: 0,
        };
        for (rules, ends) in &to.kinds {
            if judge.is_spent() {
                break;
            }
            judge.spend(4 + ends.len());
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
                views: from.views(judge, rules),
                to: rules.clone(),
                without,
            });
        }
        meeting.pairs += meeting.own.len();
        meeting
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
    pub(super) fn refused(&self, judge: &Judge, rules: &Bits) -> usize {
        let views: usize = self.kinds.iter().map(|kind| kind.views.len()).sum();
        judge.spend(views + self.own.len());
        let refused = |view: &Bits| usize::from(!view.overlaps(rules));
        let of_kind = |kind: &Kind| {
            let views = kind.views.iter();
            let all: usize = views.map(|(view, count)| refused(view) * count).sum();
            all - kind.without.as_ref().map_or(0, |(_, view)| refused(view))
        };
        let kinds: usize = self.kinds.iter().map(of_kind).sum();
        kinds + self.own.values().map(refused).sum::<usize>()
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
        ends.iter().map(pairs_of).sum()
    }
}
