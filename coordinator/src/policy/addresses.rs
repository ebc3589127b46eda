//! Sets of addresses as sorted ranges: what sources, destinations and routes are made of.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// Numbers that have ranges: ports, and an address family's.
pub(crate) trait Number: Copy + Ord {
    /// The number after this one, or `None` after the last.
    fn next(self) -> Option<Self>;
    /// The number before this one, or `None` before 0.
    fn previous(self) -> Option<Self>;
}

macro_rules! number {
    ($($type:ty),*) => {$(
        impl Number for $type {
            fn next(self) -> Option<Self> {
                self.checked_add(1)
            }

            fn previous(self) -> Option<Self> {
                self.checked_sub(1)
            }
        }
    )*};
}

number!(u16, u32, u128);

/// Closed ranges of numbers: sorted, disjoint, and never adjacent.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Ranges<T>(Vec<(T, T)>);

impl<T> Default for Ranges<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T: Number> Ranges<T> {
    pub(crate) fn new(mut ranges: Vec<(T, T)>) -> Self {
        ranges.sort_unstable();
        let mut merged: Vec<(T, T)> = Vec::with_capacity(ranges.len());
        for (first, last) in ranges {
            match merged.last_mut() {
                Some(previous) if previous.1.next().is_none_or(|after| first <= after) => {
                    previous.1 = previous.1.max(last);
                }
                _ => merged.push((first, last)),
            }
        }
        merged.shrink_to_fit();
        Self(merged)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (T, T)> + '_ {
        self.0.iter().copied()
    }

    pub(crate) fn unite(&mut self, other: &Self) {
        let mut all = std::mem::take(&mut self.0);
        all.extend_from_slice(&other.0);
        *self = Self::new(all);
    }

    /// What of these is not in `other`.
    pub(crate) fn minus(&self, other: &Self) -> Self {
        let mut left = Vec::new();
        for &(first, last) in &self.0 {
            let mut start = Some(first);
            let from = other.0.partition_point(|range| range.1 < first);
            let cuts = other.0[from..].iter().take_while(|range| range.0 <= last);
            for &(cut, end) in cuts {
                if let (Some(start), Some(before)) = (start, cut.previous())
                    && start <= before
                {
                    left.push((start, before));
                }
                start = end.next();
            }
            left.extend(
                start
                    .filter(|&start| start <= last)
                    .map(|start| (start, last)),
            );
        }
        Self(left)
    }

    fn insert(&mut self, number: T) {
        let at = self.0.partition_point(|range| range.1 < number);
        if self.0.get(at).is_some_and(|range| range.0 <= number) {
            return;
        }
        let ends_before = at > 0 && self.0[at - 1].1.next() == Some(number);
        let begins_after = self
            .0
            .get(at)
            .is_some_and(|range| range.0.previous() == Some(number));
        match (ends_before, begins_after) {
            (true, true) => {
                self.0[at - 1].1 = self.0[at].1;
                self.0.remove(at);
            }
            (true, false) => self.0[at - 1].1 = number,
            (false, true) => self.0[at].0 = number,
            (false, false) => self.0.insert(at, (number, number)),
        }
    }

    fn remove(&mut self, number: T) {
        let at = self.0.partition_point(|range| range.1 < number);
        let Some(&(first, last)) = self.0.get(at).filter(|range| range.0 <= number) else {
            return;
        };
        let before = number.previous().filter(|&before| first <= before);
        let after = number.next().filter(|&after| after <= last);
        let left = [
            before.map(|end| (first, end)),
            after.map(|start| (start, last)),
        ];
        self.0.splice(at..=at, left.into_iter().flatten());
    }

    fn overlaps_range(&self, first: T, last: T) -> bool {
        let at = self.0.partition_point(|range| range.1 < first);
        self.0.get(at).is_some_and(|range| range.0 <= last)
    }

    pub(crate) fn contains(&self, number: T) -> bool {
        self.overlaps_range(number, number)
    }

    /// Ranges are never adjacent: what is inside is inside one.
    fn contains_range(&self, first: T, last: T) -> bool {
        let at = self.0.partition_point(|range| range.1 < first);
        self.0
            .get(at)
            .is_some_and(|range| range.0 <= first && last <= range.1)
    }

    fn overlaps(&self, other: &Self) -> bool {
        let (few, many) = if self.0.len() <= other.0.len() {
            (self, other)
        } else {
            (other, self)
        };
        few.0
            .iter()
            .any(|&(first, last)| many.overlaps_range(first, last))
    }
}

/// A set of IPv4 and IPv6 addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct AddressSet {
    v4: Ranges<u32>,
    v6: Ranges<u128>,
}

/// Collects ranges for an [`AddressSet`]; sorting waits until all are there.
#[derive(Debug, Default)]
pub(crate) struct Collector {
    v4: Vec<(u32, u32)>,
    v6: Vec<(u128, u128)>,
}

impl Collector {
    pub(crate) fn address(&mut self, address: IpAddr) {
        match address {
            IpAddr::V4(v4) => self.v4.push((v4.to_bits(), v4.to_bits())),
            IpAddr::V6(v6) => self.v6.push((v6.to_bits(), v6.to_bits())),
        }
    }

    pub(crate) fn net(&mut self, net: &IpNet) {
        match net {
            IpNet::V4(net) => self
                .v4
                .push((net.network().to_bits(), net.broadcast().to_bits())),
            IpNet::V6(net) => self
                .v6
                .push((net.network().to_bits(), net.broadcast().to_bits())),
        }
    }

    pub(crate) fn v4_range(&mut self, first: Ipv4Addr, last: Ipv4Addr) {
        self.v4.push((first.to_bits(), last.to_bits()));
    }

    pub(crate) fn v6_range(&mut self, first: Ipv6Addr, last: Ipv6Addr) {
        self.v6.push((first.to_bits(), last.to_bits()));
    }

    /// All IPv4 addresses that are not in `set`.
    pub(crate) fn v4_gaps(&mut self, set: &AddressSet) {
        let mut next = Some(0);
        for &(first, last) in &set.v4.0 {
            if let Some(start) = next.filter(|&start| start < first) {
                self.v4.push((start, first - 1));
            }
            next = last.next();
        }
        if let Some(start) = next {
            self.v4.push((start, u32::MAX));
        }
    }

    pub(crate) fn set(&mut self, set: &AddressSet) {
        self.v4.extend_from_slice(&set.v4.0);
        self.v6.extend_from_slice(&set.v6.0);
    }

    pub(crate) fn finish(self) -> AddressSet {
        AddressSet {
            v4: Ranges::new(self.v4),
            v6: Ranges::new(self.v6),
        }
    }
}

impl AddressSet {
    /// Every address of both families.
    pub(crate) fn everything() -> Self {
        Self {
            v4: Ranges(vec![(0, u32::MAX)]),
            v6: Ranges(vec![(0, u128::MAX)]),
        }
    }

    pub(crate) fn of_net(net: &IpNet) -> Self {
        let mut collector = Collector::default();
        collector.net(net);
        collector.finish()
    }

    pub(crate) fn of_addresses(addresses: impl IntoIterator<Item = IpAddr>) -> Self {
        let mut collector = Collector::default();
        for address in addresses {
            collector.address(address);
        }
        collector.finish()
    }

    pub(crate) fn insert(&mut self, address: IpAddr) {
        match address {
            IpAddr::V4(v4) => self.v4.insert(v4.to_bits()),
            IpAddr::V6(v6) => self.v6.insert(v6.to_bits()),
        }
    }

    pub(crate) fn remove(&mut self, address: IpAddr) {
        match address {
            IpAddr::V4(v4) => self.v4.remove(v4.to_bits()),
            IpAddr::V6(v6) => self.v6.remove(v6.to_bits()),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.v4.0.is_empty() && self.v6.0.is_empty()
    }

    pub(crate) fn overlaps(&self, other: &Self) -> bool {
        self.v4.overlaps(&other.v4) || self.v6.overlaps(&other.v6)
    }

    pub(crate) fn overlaps_net(&self, net: &IpNet) -> bool {
        match net {
            IpNet::V4(net) => self
                .v4
                .overlaps_range(net.network().to_bits(), net.broadcast().to_bits()),
            IpNet::V6(net) => self
                .v6
                .overlaps_range(net.network().to_bits(), net.broadcast().to_bits()),
        }
    }

    /// Whether all of a prefix is in the set.
    pub(crate) fn contains_net(&self, net: &IpNet) -> bool {
        match net {
            IpNet::V4(net) => self
                .v4
                .contains_range(net.network().to_bits(), net.broadcast().to_bits()),
            IpNet::V6(net) => self
                .v6
                .contains_range(net.network().to_bits(), net.broadcast().to_bits()),
        }
    }

    pub(crate) fn contains(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(v4) => self.v4.overlaps_range(v4.to_bits(), v4.to_bits()),
            IpAddr::V6(v6) => self.v6.overlaps_range(v6.to_bits(), v6.to_bits()),
        }
    }

    /// First and last address of each range.
    pub(crate) fn ranges(&self) -> impl Iterator<Item = (IpAddr, IpAddr)> + '_ {
        let v4 = |number| IpAddr::V4(Ipv4Addr::from_bits(number));
        let v6 = |number| IpAddr::V6(Ipv6Addr::from_bits(number));
        let of_v4 = self
            .v4
            .iter()
            .map(move |(first, last)| (v4(first), v4(last)));
        let of_v6 = self
            .v6
            .iter()
            .map(move |(first, last)| (v6(first), v6(last)));
        of_v4.chain(of_v6)
    }

    /// The set as FilterRules spell it: `*`, addresses, prefixes, and `a-b` for what is no prefix.
    pub(crate) fn texts(&self) -> Vec<String> {
        if *self == Self::everything() {
            return vec!["*".to_owned()];
        }
        let ranges = self.ranges();
        ranges
            .map(|(first, last)| range_text(first, last))
            .collect()
    }
}

fn range_text(first: IpAddr, last: IpAddr) -> String {
    let common = match (first, last) {
        (IpAddr::V4(first), IpAddr::V4(last)) => (first.to_bits() ^ last.to_bits()).leading_zeros(),
        (IpAddr::V6(first), IpAddr::V6(last)) => (first.to_bits() ^ last.to_bits()).leading_zeros(),
        _ => 0,
    };
    match IpNet::new(first, common as u8) {
        _ if first == last => first.to_string(),
        Ok(net) if net.network() == first && net.broadcast() == last => net.to_string(),
        _ => format!("{first}-{last}"),
    }
}

/// A prefix as FilterRules spell it: a single address without its length.
pub(crate) fn net_text(net: &IpNet) -> String {
    if net.prefix_len() == net.max_prefix_len() {
        net.addr().to_string()
    } else {
        net.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(nets: &[&str]) -> AddressSet {
        let mut collector = Collector::default();
        for net in nets {
            collector.net(&net.parse().unwrap());
        }
        collector.finish()
    }

    #[test]
    fn adjacent_and_overlapping_ranges_become_one() {
        let merged = set(&["10.0.0.0/9", "10.128.0.0/9", "10.1.2.3/32", "fd00::/64"]);
        assert_eq!(merged, set(&["10.0.0.0/8", "fd00::/64"]));
        assert_eq!(merged.texts(), ["10.0.0.0/8", "fd00::/64"]);
    }

    #[test]
    fn the_ends_of_both_families_neither_overflow_nor_wrap() {
        let all = set(&["0.0.0.0/1", "128.0.0.0/1", "::/1", "8000::/1"]);
        assert_eq!(all, AddressSet::everything());
        assert_eq!(all.texts(), ["*"]);
        assert!(all.contains("255.255.255.255".parse().unwrap()));
        assert!(set(&["255.255.255.255/32"]).overlaps(&all));
    }

    #[test]
    fn a_range_that_is_no_prefix_is_written_with_its_ends() {
        let odd = set(&["100.64.0.1/32", "100.64.0.2/32", "fd00::1/128"]);
        assert_eq!(odd.texts(), ["100.64.0.1-100.64.0.2", "fd00::1"]);
    }

    #[test]
    fn what_is_left_of_ranges_are_the_gaps() {
        let all = Ranges::new(vec![(0, u16::MAX)]);
        for (taken, left) in [
            (vec![], vec![(0, u16::MAX)]),
            (vec![(0, 0)], vec![(1, u16::MAX)]),
            (vec![(u16::MAX, u16::MAX)], vec![(0, u16::MAX - 1)]),
            (
                vec![(10, 20), (30, 30)],
                vec![(0, 9), (21, 29), (31, u16::MAX)],
            ),
            (vec![(0, u16::MAX)], vec![]),
        ] {
            assert_eq!(all.minus(&Ranges::new(taken)).0, left);
        }
        let some = Ranges::new(vec![(5_u16, 9), (15, 25)]);
        assert_eq!(
            some.minus(&Ranges::new(vec![(8, 16)])).0,
            [(5, 7), (17, 25)]
        );
    }

    #[test]
    fn a_number_put_in_or_taken_out_leaves_ranges_that_are_never_adjacent() {
        for number in [0, 1, 2, 3, 4, 5, 6, 9, 10, 11, u16::MAX - 1, u16::MAX] {
            let of = |numbers: &[u16]| Ranges::new(numbers.iter().map(|&n| (n, n)).collect());
            let mut all = vec![1, 2, 4, 5, 9, 10, u16::MAX];
            let mut ranges = of(&all);
            ranges.insert(number);
            all.push(number);
            assert_eq!(ranges, of(&all), "with {number}");
            ranges.remove(number);
            all.retain(|&other| other != number);
            assert_eq!(ranges, of(&all), "without {number}");
        }
    }

    #[test]
    fn a_set_contains_a_prefix_if_it_has_all_of_it() {
        let both = set(&["10.0.0.0/9", "10.128.0.0/9", "fd00::/64"]);
        for (net, inside) in [
            ("10.0.0.0/8", true),
            ("10.1.0.0/16", true),
            ("10.0.0.0/7", false),
            ("11.0.0.0/8", false),
            ("fd00::1/128", true),
            ("fd00::/63", false),
            ("::/0", false),
        ] {
            assert_eq!(both.contains_net(&net.parse().unwrap()), inside, "{net}");
        }
    }

    #[test]
    fn families_never_overlap_each_other() {
        assert!(!set(&["0.0.0.0/0"]).overlaps(&set(&["::/0"])));
        assert!(!set(&["::ffff:0:0/96"]).contains("1.2.3.4".parse().unwrap()));
    }
}
