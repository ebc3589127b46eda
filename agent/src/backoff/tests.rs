//! Several hundred agents lose the same server at the same moment, in simulated time.

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

use super::*;
use crate::{control, derp};

const AGENTS: usize = 500;
const SECOND: Duration = Duration::from_secs(1);

/// A server that refuses until it is back.
struct Outage {
    /// Attempts of all, in order.
    attempts: Vec<Duration>,
    /// When the last agent got in.
    all_back: Duration,
}

impl Outage {
    /// `next` is the wait after a failure.
    fn of(
        gone: Duration,
        seed: u64,
        backoff: impl Fn() -> Backoff,
        next: impl Fn(&mut Backoff, f64) -> Duration,
    ) -> Self {
        let mut attempts = Vec::new();
        let mut all_back = Duration::ZERO;
        for agent in 0..AGENTS as u64 {
            let mut random = StdRng::seed_from_u64(seed << 32 | agent);
            let (mut backoff, mut now) = (backoff(), Duration::ZERO);
            while now < gone {
                now += next(&mut backoff, random.random());
                attempts.push(now);
                assert!(attempts.len() < 1000 * AGENTS, "without a pause");
            }
            all_back = all_back.max(now);
        }
        attempts.sort_unstable();
        Self { attempts, all_back }
    }

    /// Most attempts in any second from `from` on, for each agent.
    fn most_from(&self, from: Duration) -> f64 {
        let begin = self.attempts.partition_point(|at| *at < from);
        let attempts = &self.attempts[begin..];
        let within = |(first, at): (usize, &Duration)| {
            attempts.partition_point(|other| *other < *at + SECOND) - first
        };
        let most = attempts.iter().enumerate().map(within).max();
        most.unwrap_or(0) as f64 / AGENTS as f64
    }

    /// Bounds of [`Self::most_from`] by seconds since the server went.
    fn at_most(&self, bounds: &[(u64, f64)]) {
        for (from, bound) in bounds {
            let most = self.most_from(Duration::from_secs(*from));
            assert!(
                most <= *bound,
                "{most} of them in one second after {from} s"
            );
        }
    }
}

fn relays() -> Backoff {
    derp::backoff(derp::LONGEST_PAUSE)
}

fn plainly(backoff: &mut Backoff, random: f64) -> Duration {
    backoff.next(random)
}

#[test]
fn waits_double_up_to_the_longest_and_start_over_after_a_success() {
    let (first, longest) = (Duration::from_millis(250), Duration::from_secs(30));
    let mut backoff = Backoff::new(first, longest);
    let waits: Vec<_> = (0..12).map(|_| backoff.next(1.0)).collect();
    assert_eq!(waits[0], first);
    assert_eq!(waits[1], first * 2);
    assert_eq!(waits[11], longest);
    assert_eq!(backoff.next(0.0), longest / 2);
    backoff.reset();
    assert_eq!(backoff.next(1.0), first);
}

#[test]
fn hundreds_that_lose_control_together_neither_storm_nor_stay_away() {
    for (gone, seed) in [(1, 1), (10, 2), (30, 3), (60, 4), (180, 5), (1200, 6)] {
        let gone = Duration::from_secs(gone);
        let outage = Outage::of(gone, seed, control::backoff, plainly);
        // Who was cut off for a moment is back in a moment; after that the pauses grow, and spread. One rhythm for all would be 1.0.
        outage.at_most(&[(0, 2.5), (2, 0.95), (5, 0.6), (15, 0.25), (60, 0.125)]);
        let after = outage.all_back - gone;
        let bound = control::LONGEST_WAIT.min(gone * 2 + SECOND);
        assert!(after <= bound, "all back {after:?} after {gone:?}");
    }
}

#[test]
fn hundreds_that_lose_a_relay_together_neither_storm_nor_stay_away() {
    for (gone, seed) in [(1, 1), (10, 2), (60, 3), (600, 4)] {
        let gone = Duration::from_secs(gone);
        let outage = Outage::of(gone, seed, relays, plainly);
        outage.at_most(&[(0, 3.5), (2, 0.95), (5, 0.5), (20, 0.4)]);
        let after = outage.all_back - gone;
        let bound = derp::LONGEST_PAUSE.min(gone * 2 + SECOND);
        assert!(after <= bound, "all back {after:?} after {gone:?}");
    }
}

#[test]
fn hundreds_that_are_told_to_wait_at_once_do_not_come_back_at_once() {
    for (wait, seed) in [(5, 1), (60, 2), (3600, 3)] {
        let wait = Duration::from_secs(wait);
        let told = |backoff: &mut Backoff, random| control::wait_of(backoff, Some(wait), random);
        let outage = Outage::of(Duration::from_nanos(1), seed, control::backoff, told);
        assert!(outage.attempts[0] >= wait, "as long as it was told");
        let (most, spread) = (
            outage.most_from(Duration::ZERO),
            wait.min(control::LONGEST_WAIT),
        );
        let even = 1.0 / spread.as_secs_f64();
        assert!(
            most <= 2.0 * even,
            "{most} of them in one second of {spread:?}"
        );
        assert!(outage.all_back <= wait + spread);
    }
}

#[test]
fn a_relay_that_always_restarts_at_once_is_knocked_at_ever_more_seldom() {
    for (after, seed) in [(0, 1), (1000, 2), (1 << 40, 3)] {
        let after = Duration::from_millis(after);
        let told = |backoff: &mut Backoff, random| derp::pause_of(backoff, Some(after), random);
        let gone = Duration::from_secs(120);
        let outage = Outage::of(gone, seed, relays, told);
        let most = outage.most_from(Duration::from_secs(20));
        assert!(most <= 0.4, "{most} after being told {after:?}");
        let whole = outage.all_back - gone;
        assert!(
            whole <= derp::MAX_RESTART,
            "{whole:?} after being told {after:?}"
        );
    }
}
