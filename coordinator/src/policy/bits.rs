//! A set of indices, so that questions about thousands of nodes are a few word operations.

/// Whatever is in it, and in which order it came there, the same set is the same value.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Bits {
    /// Sorted, and at most [`FEW`]: most names are those of a user with some devices, whatever the size of the tailnet.
    Few(Vec<usize>),
    /// More than [`FEW`]. The last word isn't 0.
    Many(Vec<u64>),
}

const FEW: usize = 32;

impl Default for Bits {
    fn default() -> Self {
        Self::Few(Vec::new())
    }
}

impl Bits {
    pub(crate) fn insert(&mut self, index: usize) {
        match self {
            Self::Few(few) => {
                let Err(at) = few.binary_search(&index) else {
                    return;
                };
                few.insert(at, index);
                if few.len() > FEW {
                    let mut words = Vec::new();
                    few.iter().for_each(|index| set(&mut words, *index));
                    *self = Self::Many(words);
                }
            }
            Self::Many(words) => set(words, index),
        }
    }

    pub(crate) fn remove(&mut self, index: usize) {
        match self {
            Self::Few(few) => {
                if let Ok(at) = few.binary_search(&index) {
                    few.remove(at);
                }
            }
            Self::Many(words) => {
                if let Some(word) = words.get_mut(index / 64) {
                    *word &= !(1 << (index % 64));
                    self.settle();
                }
            }
        }
    }

    /// Inserts or removes.
    pub(crate) fn put(&mut self, index: usize, is_member: bool) {
        match is_member {
            true => self.insert(index),
            false => self.remove(index),
        }
    }

    pub(crate) fn contains(&self, index: usize) -> bool {
        match self {
            Self::Few(few) => few.binary_search(&index).is_ok(),
            Self::Many(words) => {
                let word = words.get(index / 64);
                word.is_some_and(|word| word >> (index % 64) & 1 == 1)
            }
        }
    }

    pub(crate) fn unite(&mut self, other: &Self) {
        match (&mut *self, other) {
            (_, Self::Few(few)) => few.iter().for_each(|index| self.insert(*index)),
            (Self::Few(_), Self::Many(_)) => {
                let few = std::mem::replace(self, other.clone());
                self.unite(&few);
            }
            (Self::Many(words), Self::Many(others)) => {
                words.resize(words.len().max(others.len()), 0);
                let both = words.iter_mut().zip(others);
                both.for_each(|(word, more)| *word |= more);
            }
        }
    }

    pub(crate) fn intersect(&mut self, other: &Self) {
        match (&mut *self, other) {
            (Self::Few(few), Self::Few(others)) => {
                let mut others = others.iter().peekable();
                few.retain(|index| {
                    while others.next_if(|other| *other < index).is_some() {}
                    others.peek() == Some(&index)
                });
            }
            (Self::Few(few), _) => few.retain(|index| other.contains(*index)),
            (Self::Many(_), Self::Few(_)) => {
                let many = std::mem::replace(self, other.clone());
                self.intersect(&many);
            }
            (Self::Many(words), Self::Many(others)) => {
                words.truncate(others.len());
                let both = words.iter_mut().zip(others);
                both.for_each(|(word, also)| *word &= also);
                self.settle();
            }
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        matches!(self, Self::Few(few) if few.is_empty())
    }

    /// Those that are in both.
    pub(crate) fn and(&self, other: &Self) -> Self {
        match (self, other) {
            (Self::Few(few), of) | (of, Self::Few(few)) => {
                let both = few.iter().filter(|index| of.contains(**index));
                both.copied().collect()
            }
            (Self::Many(_), Self::Many(_)) => {
                let mut both = self.clone();
                both.intersect(other);
                both
            }
        }
    }

    pub(crate) fn overlaps(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Few(few), Self::Few(others)) => {
                let mut others = others.iter().peekable();
                few.iter().any(|index| {
                    while others.next_if(|other| *other < index).is_some() {}
                    others.peek() == Some(&index)
                })
            }
            (Self::Few(few), of) | (of, Self::Few(few)) => {
                few.iter().any(|index| of.contains(*index))
            }
            (Self::Many(words), Self::Many(others)) => {
                let mut both = words.iter().zip(others);
                both.any(|(word, also)| word & also != 0)
            }
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        let (few, words): (&[usize], &[u64]) = match self {
            Self::Few(few) => (few, &[]),
            Self::Many(words) => (&[], words),
        };
        let many = words.iter().enumerate().flat_map(|(at, &word)| {
            let mut rest = word;
            std::iter::from_fn(move || {
                let bit = rest.trailing_zeros() as usize;
                (rest != 0).then(|| {
                    rest &= rest - 1;
                    at * 64 + bit
                })
            })
        });
        few.iter().copied().chain(many)
    }

    /// What it takes to look at it, in some dozen instructions.
    pub(crate) fn weight(&self) -> usize {
        match self {
            Self::Few(few) => few.len() / 8,
            Self::Many(words) => words.len() / 16,
        }
    }

    /// After members were taken from many.
    fn settle(&mut self) {
        if self.iter().nth(FEW).is_none() {
            *self = Self::Few(self.iter().collect());
        } else if let Self::Many(words) = self {
            while words.last() == Some(&0) {
                words.pop();
            }
        }
    }
}

impl FromIterator<usize> for Bits {
    fn from_iter<T: IntoIterator<Item = usize>>(members: T) -> Self {
        let mut bits = Self::default();
        members.into_iter().for_each(|member| bits.insert(member));
        match &mut bits {
            Self::Few(few) => few.shrink_to_fit(),
            Self::Many(words) => words.shrink_to_fit(),
        }
        bits
    }
}

fn set(words: &mut Vec<u64>, index: usize) {
    if words.len() <= index / 64 {
        words.resize(index / 64 + 1, 0);
    }
    words[index / 64] |= 1 << (index % 64);
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn members_come_back_in_order_across_words() {
        let mut bits = Bits::from_iter([199, 0, 63, 64, 128]);
        bits.remove(128);
        assert_eq!(bits.iter().collect::<Vec<_>>(), [0, 63, 64, 199]);
        assert!(bits.contains(64) && !bits.contains(65) && !bits.contains(4000));
        let mut other = Bits::from_iter([1]);
        other.unite(&bits);
        assert_eq!(other.iter().collect::<Vec<_>>(), [0, 1, 63, 64, 199]);
    }

    #[test]
    fn sets_of_different_size_agree_about_what_both_have() {
        let mut small = Bits::from_iter([1, 9]);
        small.insert(500);
        let mut large = Bits::from_iter([1, 500, 999]);
        assert!(small.overlaps(&large));
        large.intersect(&small);
        assert_eq!(large.iter().collect::<Vec<_>>(), [1, 500]);
        let mut few = Bits::default();
        few.remove(999);
        few.put(3, true);
        few.unite(&large);
        few.put(1, false);
        assert_eq!(few.iter().collect::<Vec<_>>(), [3, 500]);
    }

    #[test]
    fn few_and_many_are_the_same_set_whatever_became_of_it() {
        let sets = [0, 1, 31, 32, 33, 34, 100, 1000].map(|count| {
            let every = |step: usize| (0..count).map(move |at| at * step);
            [1, 3, 64].map(|step| BTreeSet::from_iter(every(step)))
        });
        let sets: Vec<BTreeSet<usize>> = sets.into_iter().flatten().collect();
        let bits = |set: &BTreeSet<usize>| set.iter().rev().copied().collect::<Bits>();
        for one in &sets {
            for other in &sets {
                let (mut both, mut any, mut less) = (bits(one), bits(one), bits(one));
                both.intersect(&bits(other));
                any.unite(&bits(other));
                other.iter().for_each(|index| less.remove(*index));
                assert_eq!(both, bits(&(one & other)));
                assert_eq!(bits(one).and(&bits(other)), both);
                assert_eq!(any, bits(&(one | other)));
                assert_eq!(less, bits(&(one - other)));
                assert!(less.iter().eq((one - other).iter().copied()));
                assert_eq!(less.is_empty(), one.is_subset(other));
                assert_eq!(bits(one).overlaps(&bits(other)), !one.is_disjoint(other));
            }
        }
    }
}
