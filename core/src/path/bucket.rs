//! A token bucket in virtual time.

use std::time::Instant;

#[derive(Clone, Copy, Debug)]
pub(super) struct Bucket {
    tokens: u32,
    at: Option<Instant>,
    size: u32,
    per_second: u32,
}

impl Bucket {
    pub const fn new(size: u32, per_second: u32) -> Self {
        Self {
            tokens: size,
            at: None,
            size,
            per_second,
        }
    }

    pub fn take(&mut self, now: Instant) -> bool {
        let at = *self.at.get_or_insert(now);
        let earned =
            now.saturating_duration_since(at).as_millis() * u128::from(self.per_second) / 1000;
        if earned > 0 {
            let earned = u32::try_from(earned).unwrap_or(u32::MAX);
            self.tokens = self.tokens.saturating_add(earned).min(self.size);
            self.at = Some(now);
        }
        let taken = self.tokens > 0;
        self.tokens = self.tokens.saturating_sub(1);
        taken
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_burst_empties_it_and_time_refills_it() {
        let start = Instant::now();
        let mut bucket = Bucket::new(3, 2);
        assert_eq!((0..5).filter(|_| bucket.take(start)).count(), 3);
        assert!(!bucket.take(start + Duration::from_millis(400)));
        assert!(bucket.take(start + Duration::from_millis(600)));
        let later = start + Duration::from_secs(60);
        assert_eq!((0..5).filter(|_| bucket.take(later)).count(), 3);
    }
}
