//! What a test asserts, each once, and as one where rules don't tell login names apart.

use std::collections::{BTreeSet, HashMap};
use std::rc::Rc;

use super::super::super::bits::Bits;
use super::super::super::error::At;
use super::super::super::ssh::{End, Judge};
use super::Expected;
use super::meeting::{Meeting, Outline, Party};

pub(super) struct Questions<'d> {
    all: Vec<Question>,
    /// Of the login names that are a source's own.
    by_own_name: HashMap<&'d str, Vec<usize>>,
}

struct Question {
    expected: Expected,
    /// The rules that allow it.
    rules: Rc<Bits>,
    /// The name, if it is a source's own.
    own_name: Option<String>,
    /// Of its assertions.
    positions: Vec<usize>,
}

/// Questions to which the answer isn't the expected one.
#[derive(Clone)]
pub(super) struct Failed {
    questions: Rc<Bits>,
    /// How many assertions they are.
    pub(super) count: usize,
}

/// By what meetings have in common. Names of those who met themselves in the one that was asked may have other answers in another.
pub(super) type Answers = HashMap<Outline, (Failed, Vec<usize>)>;

/// How many pairs rules don't let in, by where their set is: own names have theirs in common with many others.
type Refused = HashMap<*const Bits, usize>;

impl<'d> Questions<'d> {
    pub(super) fn new(
        judge: &Judge,
        assertions: &[(&'d At<String>, Expected)],
        from: &Party,
    ) -> Self {
        let mut questions = Self {
            all: Vec::new(),
            by_own_name: HashMap::new(),
        };
        let mut known = HashMap::new();
        let mut rules = HashMap::new();
        for (position, (written, expected)) in assertions.iter().enumerate() {
            let name = written.value.as_str();
            let is_own = !from.called(name).is_empty();
            // Any other name is as good.
            let stands_for = (is_own || judge.is_named(name)).then_some(name);
            let new = questions.all.len();
            let at = *known.entry((stands_for, *expected)).or_insert(new);
            if at == new {
                let checked = *expected == Expected::Checked;
                let named = (judge.is_named(name).then_some(name), checked);
                let rules = rules.entry(named);
                let rules = rules.or_insert_with(|| Rc::new(judge.rules_for(name, checked)));
                questions.all.push(Question {
                    expected: *expected,
                    rules: rules.clone(),
                    own_name: is_own.then(|| name.to_owned()),
                    positions: Vec::new(),
                });
                if is_own {
                    questions.by_own_name.entry(name).or_default().push(at);
                }
            }
            questions.all[at].positions.push(position);
        }
        questions
    }

    /// Asks them of one destination.
    pub(super) fn ask(
        &self,
        judge: &Judge,
        from: &Party,
        to: &Party,
        answers: &mut Answers,
    ) -> Failed {
        /// More are found again when they are needed.
        const MOST: usize = 1 << 10;
        let meeting = Meeting::new(judge, from, to);
        let mut refused = Refused::new();
        let own: Vec<usize> = meeting.own_ends().collect();
        if answers.len() > MOST {
            answers.clear();
        }
        let (failed, of_others) = answers.entry(meeting.outline()).or_insert_with(|| {
            let failed = self.failed(judge, from, &meeting, &mut refused);
            (failed, own.clone())
        });
        let mut failed = failed.clone();
        let ends = own.iter().chain(&*of_others);
        let names = ends.filter_map(|end| from.ends.get(end)?.own_name());
        let again = names.filter_map(|name| self.by_own_name.get(name));
        let again: BTreeSet<usize> = again.flatten().copied().collect();
        for at in again.into_iter().take_while(|_| !judge.budget.is_spent()) {
            let fails = !self.all[at].holds(judge, from, &meeting, &mut refused);
            self.put(&mut failed, at, fails);
        }
        failed
    }

    fn put(&self, failed: &mut Failed, at: usize, fails: bool) {
        if fails == failed.questions.contains(at) {
            return;
        }
        Rc::make_mut(&mut failed.questions).put(at, fails);
        let positions = self.all[at].positions.len();
        match fails {
            true => failed.count += positions,
            false => failed.count -= positions,
        }
    }

    fn failed(
        &self,
        judge: &Judge,
        from: &Party,
        meeting: &Meeting,
        refused: &mut Refused,
    ) -> Failed {
        let mut failed = Failed {
            questions: Rc::default(),
            count: 0,
        };
        for (at, question) in self.all.iter().enumerate() {
            if judge.budget.is_spent() {
                break;
            }
            judge.budget.spend(1);
            let fails = !question.holds(judge, from, meeting, refused);
            self.put(&mut failed, at, fails);
        }
        failed
    }

    /// The assertions that fail, in order.
    pub(super) fn positions(&self, failed: &Failed) -> BTreeSet<usize> {
        let questions = failed.questions.iter();
        questions
            .flat_map(|at| self.all[at].positions.iter().copied())
            .collect()
    }
}

impl Question {
    fn holds(&self, judge: &Judge, from: &Party, meeting: &Meeting, refused: &mut Refused) -> bool {
        let refused = *refused
            .entry(Rc::as_ptr(&self.rules))
            .or_insert_with(|| meeting.refused(judge, from, &self.rules));
        let ends: &[Rc<End>] = self
            .own_name
            .as_deref()
            .map_or(&[], |name| from.called(name));
        let checked = self.expected == Expected::Checked;
        let by_own_name = meeting.let_in_by_own_name(judge, ends, &self.rules, checked);
        match self.expected {
            Expected::Allowed | Expected::Checked => refused == by_own_name,
            Expected::Denied => refused == meeting.pairs && by_own_name == 0,
        }
    }
}
