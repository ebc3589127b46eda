//! Which addresses nodes get (protocol.md 9).
//!
//! A node's IPv4 and IPv6 address carry the same number: 100.64.0.1 goes with fd7a:115c:a1e0::1. Numbers are given in turn, so that
//! the address of a deleted node is not at once somebody else's.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::Ipv4Net;

const V4_BASE: u32 = u32::from_be_bytes([100, 64, 0, 0]);
const V6_BASE: u128 = 0xfd7a_115c_a1e0_u128 << 80;
/// How many numbers 100.64.0.0/10 has.
const SIZE: u32 = 1 << 22;

/// First and last IPv4 address of what nodes must not get.
const RESERVED_V4: [(Ipv4Addr, Ipv4Addr); 3] = [
    // ChromeOS puts its virtual machines here.
    (
        Ipv4Addr::new(100, 115, 92, 0),
        Ipv4Addr::new(100, 115, 93, 255),
    ),
    // Service addresses, 100.100.100.100 among them.
    (
        Ipv4Addr::new(100, 100, 100, 0),
        Ipv4Addr::new(100, 100, 100, 255),
    ),
    // Historic service addresses.
    (
        Ipv4Addr::new(100, 100, 0, 0),
        Ipv4Addr::new(100, 100, 0, 255),
    ),
];
/// fd7a:115c:a1e0::53 is the service address, so number 0x53 cannot be given.
const SERVICE_V6: u32 = 0x53;

/// A pair of addresses, named by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Number(u32);

impl Number {
    pub fn v4(self) -> Ipv4Addr {
        Ipv4Addr::from(V4_BASE + self.0)
    }

    pub fn v6(self) -> Ipv6Addr {
        Ipv6Addr::from(V6_BASE + u128::from(self.0))
    }

    pub fn of(v4: Ipv4Addr) -> Option<Self> {
        let number = u32::from(v4).checked_sub(V4_BASE)?;
        (number < SIZE).then_some(Self(number))
    }

    fn is_usable(self) -> bool {
        let reserved = RESERVED_V4
            .iter()
            .any(|(first, last)| (*first..=*last).contains(&self.v4()));
        // The first and last number are network and broadcast address.
        self.0 != 0 && self.0 != SIZE - 1 && self.0 != SERVICE_V6 && !reserved
    }
}

/// The first free number after `last` that is in none of these prefixes, around the end of the range if need be.
pub fn next_outside(
    pools: &[Ipv4Net],
    last: Option<Number>,
    taken: impl Fn(Number) -> bool,
) -> Option<Number> {
    in_turn(&gaps(pools), last, taken)
}

/// As [`next_outside`], but out of the first of these prefixes that has one free. `last` knows the one before out of each.
pub fn next_of(
    pools: &[Ipv4Net],
    last: impl Fn(&Ipv4Net) -> Option<Number>,
    taken: impl Fn(Number) -> bool,
) -> Option<Number> {
    let mut pools = pools.iter();
    pools.find_map(|pool| in_turn(&[numbers(pool)?], last(pool), &taken))
}

/// The first and the one after the last of a prefix.
fn numbers(pool: &Ipv4Net) -> Option<(u32, u32)> {
    let (first, last) = (Number::of(pool.network())?, Number::of(pool.broadcast())?);
    Some((first.0, last.0 + 1))
}

/// Numbers that are in none of these prefixes: each first one, and the one after the last.
fn gaps(pools: &[Ipv4Net]) -> Vec<(u32, u32)> {
    let mut inside: Vec<(u32, u32)> = pools.iter().filter_map(numbers).collect();
    inside.sort_unstable();
    let mut gaps = Vec::new();
    let mut next = 0;
    for (first, end) in inside {
        if next < first {
            gaps.push((next, first));
        }
        next = next.max(end);
    }
    if next < SIZE {
        gaps.push((next, SIZE));
    }
    gaps
}

/// The first usable number after `last` in these ranges, which are sorted, and around their end if need be.
fn in_turn(
    ranges: &[(u32, u32)],
    last: Option<Number>,
    taken: impl Fn(Number) -> bool,
) -> Option<Number> {
    let begin = last.map_or(0, |number| number.0 + 1);
    let (first, begin) = match ranges.partition_point(|(_, end)| *end <= begin) {
        first if first < ranges.len() => (first, begin),
        _ => (0, 0),
    };
    let (before, after) = ranges.split_at(first);
    // Also the numbers before it in its own range, in the end.
    let turn = after.iter().chain(before).chain(after.first());
    let numbers = turn.enumerate().flat_map(|(at, &(start, end))| match at {
        0 => start.max(begin)..end,
        _ => start..end,
    });
    let mut numbers = numbers.map(Number);
    numbers.find(|number| number.is_usable() && !taken(*number))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where there are no pools.
    fn next(last: Option<Number>, taken: impl Fn(Number) -> bool) -> Option<Number> {
        next_outside(&[], last, taken)
    }

    fn after(v4: [u8; 4]) -> Ipv4Addr {
        next(Number::of(v4.into()), |_| false).unwrap().v4()
    }

    #[test]
    fn the_first_node_gets_the_first_pair() {
        let number = next(None, |_| false).unwrap();
        assert_eq!(number.v4(), Ipv4Addr::new(100, 64, 0, 1));
        assert_eq!(
            number.v6(),
            "fd7a:115c:a1e0::1".parse::<Ipv6Addr>().unwrap()
        );
    }

    #[test]
    fn reserved_ranges_are_stepped_over() {
        assert_eq!(after([100, 115, 91, 255]), Ipv4Addr::new(100, 115, 94, 0));
        assert_eq!(after([100, 100, 99, 255]), Ipv4Addr::new(100, 100, 101, 0));
        assert_eq!(after([100, 99, 255, 255]), Ipv4Addr::new(100, 100, 1, 0));
        assert_eq!(after([100, 64, 0, 0x52]), Ipv4Addr::new(100, 64, 0, 0x54));
        assert_eq!(after([100, 127, 255, 254]), Ipv4Addr::new(100, 64, 0, 1));
    }

    #[test]
    fn pools_are_used_one_after_another_each_in_turn() {
        let pools: Vec<Ipv4Net> = ["100.70.0.0/30", "100.64.0.0/31", "100.80.0.7/32"]
            .map(|pool| pool.parse().unwrap())
            .to_vec();
        let mut given: Vec<Number> = Vec::new();
        let last = |given: &[Number], pool: &Ipv4Net| {
            let mut newest = given.iter().rev();
            newest.find(|number| pool.contains(&number.v4())).copied()
        };
        for expected in [
            [100, 70, 0, 0],
            [100, 70, 0, 1],
            [100, 70, 0, 2],
            [100, 70, 0, 3],
            // Not 100.64.0.0, the network's address.
            [100, 64, 0, 1],
            [100, 80, 0, 7],
        ] {
            let taken = |number: Number| given.contains(&number);
            let number = next_of(&pools, |pool| last(&given, pool), taken).unwrap();
            assert_eq!(number.v4(), Ipv4Addr::from(expected));
            given.push(number);
        }
        let taken = |number: Number| given.contains(&number);
        assert_eq!(next_of(&pools, |pool| last(&given, pool), taken), None);
        // One after the last, whichever are free before it.
        let number = next_of(&pools, |_| Some(given[1]), |_| false);
        assert_eq!(number, Some(given[2]));
    }

    #[test]
    fn outside_of_pools_the_gaps_take_turns_and_none_is_looked_through_number_by_number() {
        let net = |pool: &str| pool.parse::<Ipv4Net>().unwrap();
        let mut pools: Vec<Ipv4Net> = [
            "100.64.0.64/26",
            "100.64.0.128/25",
            "100.64.0.0/30",
            "100.64.0.8/29",
            "100.64.0.8/30",
            "100.64.0.32/27",
            "100.64.1.0/24",
        ]
        .map(net)
        .to_vec();
        // And all from 100.64.2.0 on.
        let bits = 9..22;
        pools.extend(
            bits.map(|bit| Ipv4Net::new(Ipv4Addr::from(V4_BASE | 1 << bit), 32 - bit).unwrap()),
        );
        let mut last = None;
        let mut given = Vec::new();
        for _ in 0..22 {
            let number = next_outside(&pools, last, |_| false).unwrap();
            given.push(number.v4().octets()[3]);
            last = Some(number);
        }
        let once: Vec<u8> = (4..8).chain(16..32).collect();
        assert_eq!(given[..20], once);
        assert_eq!(given[20..], [4, 5]);
        let taken =
            |free: u8| move |number: Number| u32::from(number.v4()) != V4_BASE + u32::from(free);
        for (last, free) in [(20, 18), (20, 20), (7, 5), (31, 31), (200, 4)] {
            let last = Number::of([100, 64, 0, last].into());
            let found =
                next_outside(&pools, last, taken(free)).map(|number| number.v4().octets()[3]);
            assert_eq!(found, Some(free));
        }
        assert_eq!(next_outside(&pools, last, |_| true), None);
        assert_eq!(next_outside(&[net("100.64.0.0/10")], last, |_| false), None);
    }

    #[test]
    fn taken_numbers_are_stepped_over_and_a_full_range_ends() {
        let one = next(None, |_| false).unwrap();
        assert_eq!(
            next(None, |number| number == one).unwrap().v4(),
            Ipv4Addr::new(100, 64, 0, 2)
        );
        assert_eq!(next(None, |_| true), None);
    }
}
