//! A set of indices, so that questions about thousands of nodes are a few word operations.

#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Bits(Vec<u64>);

impl Bits {
    pub(crate) fn new(size: usize) -> Self {
        Self(vec![0; size.div_ceil(64)])
    }

    pub(crate) fn collect(size: usize, members: impl IntoIterator<Item = usize>) -> Self {
        let mut bits = Self::new(size);
        for member in members {
            bits.insert(member);
        }
        bits
    }

    pub(crate) fn insert(&mut self, index: usize) {
        if self.0.len() <= index / 64 {
            self.0.resize(index / 64 + 1, 0);
        }
        self.0[index / 64] |= 1 << (index % 64);
    }

    pub(crate) fn remove(&mut self, index: usize) {
        if let Some(word) = self.0.get_mut(index / 64) {
            *word &= !(1 << (index % 64));
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
        self.0
            .get(index / 64)
            .is_some_and(|word| word >> (index % 64) & 1 == 1)
    }

    pub(crate) fn unite(&mut self, other: &Self) {
        if self.0.len() < other.0.len() {
            self.0.resize(other.0.len(), 0);
        }
        for (word, more) in self.0.iter_mut().zip(&other.0) {
            *word |= more;
        }
    }

    pub(crate) fn intersect(&mut self, other: &Self) {
        self.0.truncate(other.0.len());
        for (word, also) in self.0.iter_mut().zip(&other.0) {
            *word &= also;
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }

    pub(crate) fn overlaps(&self, other: &Self) -> bool {
        self.0
            .iter()
            .zip(&other.0)
            .any(|(word, also)| word & also != 0)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        self.0.iter().enumerate().flat_map(|(at, &word)| {
            let mut rest = word;
            std::iter::from_fn(move || {
                let bit = rest.trailing_zeros() as usize;
                (rest != 0).then(|| {
                    rest &= rest - 1;
                    at * 64 + bit
                })
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_come_back_in_order_across_words() {
        let mut bits = Bits::collect(200, [199, 0, 63, 64, 128]);
        bits.remove(128);
        assert_eq!(bits.iter().collect::<Vec<_>>(), [0, 63, 64, 199]);
        assert!(bits.contains(64) && !bits.contains(65) && !bits.contains(4000));
        let mut other = Bits::collect(200, [1]);
        other.unite(&bits);
        assert_eq!(other.iter().collect::<Vec<_>>(), [0, 1, 63, 64, 199]);
    }

    #[test]
    fn sets_of_different_size_agree_about_what_both_have() {
        let mut small = Bits::collect(10, [1, 9]);
        small.insert(500);
        let mut large = Bits::collect(1000, [1, 500, 999]);
        assert!(small.overlaps(&large));
        large.intersect(&small);
        assert_eq!(large.iter().collect::<Vec<_>>(), [1, 500]);
        let mut few = Bits::new(0);
        few.remove(999);
        few.put(3, true);
        few.unite(&large);
        few.put(1, false);
        assert_eq!(few.iter().collect::<Vec<_>>(), [3, 500]);
    }
}
