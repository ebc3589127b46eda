//! What happens in which minute, and to whom.

use super::{FIRST, PUBLIC};

/// From a host's first addresses to the others that it has by turns.
const AWAY: u8 = 100;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    Restart,
    Kill,
    Policy,
    Move,
    Cut,
}

/// One a minute, from minute 0 on.
const TURNS: [Change; 5] = [
    Change::Restart,
    Change::Kill,
    Change::Policy,
    Change::Move,
    Change::Cut,
];

impl Change {
    pub fn of(minute: u64) -> Self {
        TURNS[minute as usize % TURNS.len()]
    }
}

/// How often each change has had its turn before.
pub fn round(minute: u64) -> usize {
    minute as usize / TURNS.len()
}

/// Which of the eight a change is about, unless it is a move.
pub fn chosen(minute: u64) -> usize {
    minute as usize * 3 % 8
}

/// The last numbers of the addresses that the hosts of the public segment have now, the same in both families.
#[derive(Debug)]
pub struct Addresses([u8; PUBLIC]);

/// One host's move.
#[derive(Debug)]
pub struct Step {
    pub host: usize,
    pub old: u8,
    pub new: u8,
}

impl Addresses {
    pub fn at_first() -> Self {
        Self(std::array::from_fn(first))
    }

    /// Whose turn it is: away if it is at home, and home if it is away.
    pub fn step(&self, minute: u64) -> Step {
        let host = round(minute) % PUBLIC;
        let (old, home) = (self.0[host], first(host));
        let new = if old == home { home + AWAY } else { home };
        Step { host, old, new }
    }

    /// It has moved.
    pub fn made(&mut self, step: &Step) {
        self.0[step.host] = step.new;
    }
}

fn first(host: usize) -> u8 {
    FIRST + host as u8
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::interop::{member::Kind, mixed::kind};

    const HALF_AN_HOUR: std::ops::RangeInclusive<u64> = 1..=30;

    #[test]
    fn in_half_an_hour_every_public_host_moves_and_no_move_is_to_where_it_is() {
        let mut addresses = Addresses::at_first();
        let mut now = [30, 31, 32, 33];
        let mut moved = BTreeSet::new();
        for minute in HALF_AN_HOUR.filter(|minute| Change::of(*minute) == Change::Move) {
            let step = addresses.step(minute);
            assert_eq!(step.old, now[step.host], "minute {minute}");
            assert!(!now.contains(&step.new), "minute {minute}: {step:?}");
            addresses.made(&step);
            now[step.host] = step.new;
            moved.insert(step.host);
        }
        assert_eq!(moved.len(), PUBLIC);
        let lowroad = moved.iter().filter(|host| kind(**host) == Kind::Lowroad);
        assert_eq!(lowroad.count(), 2);
    }

    /// What their starts cost is in the figures of both.
    #[test]
    fn in_half_an_hour_nodes_of_either_kind_are_started_again_as_often() {
        let ends = HALF_AN_HOUR
            .filter(|minute| matches!(Change::of(*minute), Change::Restart | Change::Kill));
        let (lowroad, stock): (Vec<_>, Vec<_>) = ends
            .map(chosen)
            .partition(|number| kind(*number) == Kind::Lowroad);
        assert_eq!((lowroad.len(), stock.len()), (6, 6));
    }
}
