//! How long to wait before the next attempt.

use std::time::Duration;

/// Doubles from the first wait to the longest; each is drawn from the upper half, so that nodes which lost the same server don't return as one.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    failures: u32,
}

impl Backoff {
    pub const fn new(first: Duration, longest: Duration) -> Self {
        Self {
            first,
            longest,
            failures: 0,
        }
    }

    /// `random` is uniform in 0.0..1.0.
    pub fn next(&mut self, random: f64) -> Duration {
        let whole = self
            .first
            .saturating_mul(1 << self.failures.min(16))
            .min(self.longest);
        self.failures = self.failures.saturating_add(1);
        between(whole / 2, whole, random)
    }

    /// The server asked for a wait of `least`, which many may have heard at once: it is drawn from there to `most`, and no shorter
    /// than without that.
    pub fn next_asked(&mut self, least: Duration, most: Duration, random: f64) -> Duration {
        self.next(random).max(between(least, most, random))
    }

    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

fn between(least: Duration, most: Duration, random: f64) -> Duration {
    least + most.saturating_sub(least).mul_f64(random.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests;
