//! A list that versions of a compiled policy share: a change copies the piece that it is in, and pointers to the others.

use std::ops::Index;
use std::sync::Arc;

/// Entries in a piece: with ten thousand entries, a new version costs as many pointers as a changed entry costs neighbours.
const PIECE: usize = 64;

#[derive(Clone, Debug)]
pub(crate) struct Table<T> {
    /// All full but for the last.
    pieces: Vec<Arc<Vec<T>>>,
}

impl<T> Table<T> {
    pub(crate) fn len(&self) -> usize {
        match self.pieces.split_last() {
            Some((last, full)) => full.len() * PIECE + last.len(),
            None => 0,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    pub(crate) fn get(&self, at: usize) -> Option<&T> {
        self.pieces.get(at / PIECE)?.get(at % PIECE)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.pieces.iter().flat_map(|piece| piece.iter())
    }

    /// The position of the entry with this key, in a list that is sorted by it.
    pub(crate) fn position_of<K: Ord>(&self, wanted: &K, key: impl Fn(&T) -> K) -> Option<usize> {
        let piece = self
            .pieces
            .partition_point(|piece| piece.last().is_some_and(|last| key(last) < *wanted));
        let entries = self.pieces.get(piece)?;
        let within = entries.binary_search_by_key(wanted, key).ok()?;
        Some(piece * PIECE + within)
    }
}

impl<T: Clone> Table<T> {
    pub(crate) fn push(&mut self, entry: T) {
        match self.pieces.last_mut() {
            Some(last) if last.len() < PIECE => Arc::make_mut(last).push(entry),
            _ => self.pieces.push(Arc::new(vec![entry])),
        }
    }

    /// An entry of this version alone.
    pub(crate) fn edit(&mut self, at: usize) -> Option<&mut T> {
        let piece = self.pieces.get_mut(at / PIECE)?;
        Arc::make_mut(piece).get_mut(at % PIECE)
    }

    /// Replaces an entry; one that isn't there stays away.
    pub(crate) fn set(&mut self, at: usize, entry: T) {
        if let Some(old) = self.edit(at) {
            *old = entry;
        }
    }
}

impl<T> FromIterator<T> for Table<T> {
    fn from_iter<I: IntoIterator<Item = T>>(entries: I) -> Self {
        let mut entries = entries.into_iter().peekable();
        let mut pieces = Vec::new();
        while entries.peek().is_some() {
            pieces.push(Arc::new(entries.by_ref().take(PIECE).collect()));
        }
        Self { pieces }
    }
}

impl<T> Index<usize> for Table<T> {
    type Output = T;

    fn index(&self, at: usize) -> &T {
        &self.pieces[at / PIECE][at % PIECE]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_shares_all_pieces_but_the_changed_ones() {
        let old: Table<usize> = (0..200).collect();
        let mut new = old.clone();
        new.set(70, 7000);
        new.set(1000, 1);
        new.push(200);
        assert_eq!(
            (old.len(), new.len(), old[70], new[70]),
            (200, 201, 70, 7000)
        );
        let shared = old.pieces.iter().zip(&new.pieces);
        let shared: Vec<bool> = shared.map(|(old, new)| Arc::ptr_eq(old, new)).collect();
        assert_eq!(shared, [true, false, true, false]);
        assert!(old.iter().copied().eq(0..200));
    }

    #[test]
    fn entries_are_found_by_their_key_and_others_are_not() {
        let table: Table<usize> = (0..150).map(|number| number * 2).collect();
        let find = |wanted: usize| table.position_of(&wanted, |entry| *entry);
        for at in 0..150 {
            assert_eq!(find(at * 2), Some(at));
            assert_eq!(find(at * 2 + 1), None);
        }
        let none: Table<usize> = std::iter::empty().collect();
        assert!(none.is_empty() && none.get(0).is_none());
        assert_eq!(none.position_of(&1, |entry| *entry), None);
    }
}
