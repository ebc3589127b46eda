//! Overlapping prefixes become classes: addresses that the same sets hold.

use std::{collections::BTreeMap, collections::HashMap, hash::Hash};

use super::Prefix;

/// Numbers for values, in the order in which they were first seen, from 1.
#[derive(Debug)]
pub(super) struct Interner<T> {
    numbers: HashMap<T, u32>,
    values: Vec<T>,
}

impl<T: Clone + Eq + Hash> Interner<T> {
    pub fn new() -> Self {
        Self {
            numbers: HashMap::new(),
            values: Vec::new(),
        }
    }
    pub fn number(&mut self, value: T) -> u32 {
        let next = self.values.len() as u32 + 1;
        *self.numbers.entry(value).or_insert_with_key(|value| {
            self.values.push(value.clone());
            next
        })
    }
    pub fn value(&self, number: u32) -> Option<&T> {
        self.values.get((number as usize).checked_sub(1)?)
    }
    /// Numbers and values, in order.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        (1..).zip(&self.values)
    }
}

/// Gives each prefix the state of the one around it, changed by its own mark. Prefixes that change nothing are left out: a lookup by longest prefix finds the one around them.
pub(super) fn nest<Mark, State: Clone + PartialEq>(
    marks: &BTreeMap<Prefix, Mark>,
    root: &State,
    mut enter: impl FnMut(&Prefix, &State, &Mark) -> State,
) -> Vec<(Prefix, State)> {
    let mut out = Vec::new();
    let mut around: Vec<(Prefix, State)> = Vec::new();
    for (prefix, mark) in marks {
        while around
            .last()
            .is_some_and(|(outer, _)| !outer.covers(prefix))
        {
            around.pop();
        }
        let outer = around.last().map_or(root, |(_, state)| state);
        let state = enter(prefix, outer, mark);
        if state != *outer {
            out.push((*prefix, state.clone()));
        }
        around.push((*prefix, state));
    }
    out
}

/// Merges two sorted lists without repeats into one.
pub(super) fn merged<T: Ord + Clone>(a: &[T], b: &[T]) -> Vec<T> {
    let mut out: Vec<T> = a.iter().chain(b).cloned().collect();
    out.sort();
    out.dedup();
    out
}
