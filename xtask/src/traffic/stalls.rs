//! Whether this machine stands still: an emulated CPU does when its host's is wanted elsewhere.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

const LOOK: Duration = Duration::from_millis(20);
/// Shorter ones are not remembered: queues take that much.
const STANDSTILL: Duration = Duration::from_secs(1);
/// For how long after one its queues are still too full. What was sent so long before it may have been in a queue when it began, and comes to the next one, full by then, after it: under load
/// answers take that long.
const AFTERWARDS: Duration = Duration::from_secs(2);

/// Looks until dropped.
#[derive(Debug)]
pub struct Stalls {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    seen: Mutex<Standstills>,
}

/// What was seen until some moment.
#[derive(Debug, Clone, Default)]
pub struct Standstills {
    /// By how much a thread that wanted to run was late, at most.
    pub longest: Duration,
    /// From when to when the machine stood still, for more than a second each, in order.
    pub stood: Vec<(Instant, Instant)>,
}

impl Shared {
    fn seen(&self) -> std::sync::MutexGuard<'_, Standstills> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Stalls {
    pub fn watch() -> Self {
        let shared = Arc::new(Shared::default());
        let looking = Arc::clone(&shared);
        let thread = thread::spawn(move || {
            while !looking.stop.load(Ordering::Relaxed) {
                let start = Instant::now();
                thread::sleep(LOOK);
                let end = Instant::now();
                let late = (end - start).saturating_sub(LOOK);
                let mut seen = looking.seen();
                seen.longest = seen.longest.max(late);
                if late > STANDSTILL {
                    seen.stood.push((start, end));
                }
            }
        });
        Self {
            shared,
            thread: Some(thread),
        }
    }

    pub fn seen(&self) -> Standstills {
        self.shared.seen().clone()
    }
}

impl Standstills {
    /// Whether what was sent then met a machine that stood still, or that had just done so.
    pub fn excuse(&self, sent: Instant) -> bool {
        let met = |(from, to): &(Instant, Instant)| {
            sent + AFTERWARDS >= *from && sent <= *to + AFTERWARDS
        };
        self.stood.iter().any(met)
    }

    /// The longest of those that fell, with what they left in queues, into this time.
    pub fn during(&self, (begin, end): (Instant, Instant)) -> Option<Duration> {
        let met = |(from, to): &&(Instant, Instant)| *from <= end && *to + AFTERWARDS >= begin;
        let stood = self.stood.iter().filter(met);
        stood.map(|(from, to)| *to - *from).max()
    }

    /// In which part of this time, from 0 to 1, packets were sent that [`Self::excuse`] excuses: what several standstills excuse counts once.
    pub fn part(&self, (begin, end): (Instant, Instant)) -> f64 {
        let mut met = Duration::ZERO;
        let mut counted = begin;
        for (from, to) in &self.stood {
            let (from, to) = (counted.max(*from - AFTERWARDS), end.min(*to + AFTERWARDS));
            met += to.saturating_duration_since(from);
            counted = counted.max(to);
        }
        let whole = end.saturating_duration_since(begin).as_secs_f64();
        met.as_secs_f64() / whole.max(f64::EPSILON)
    }
}

impl Drop for Stalls {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of ten seconds; standstills in seconds after five before their begin.
    fn part(stood: &[(u64, u64)]) -> f64 {
        let start = Instant::now() + Duration::from_secs(100);
        let at = |second| start + Duration::from_secs(second);
        let standstills = Standstills {
            longest: Duration::ZERO,
            stood: stood
                .iter()
                .map(|(from, to)| (at(*from), at(*to)))
                .collect(),
        };
        let part = standstills.part((at(5), at(15)));
        // The same by asking for each moment.
        let moments = (0..1000).map(|n| at(5) + Duration::from_millis(10 * n + 5));
        let excused = moments.filter(|sent| standstills.excuse(*sent)).count();
        assert!((part - excused as f64 / 1000.0).abs() < 1e-6, "{stood:?}");
        (part * 1000.0).round() / 1000.0
    }

    #[test]
    fn what_several_standstills_excuse_counts_once() {
        assert_eq!(part(&[]), 0.0);
        assert_eq!(part(&[(9, 10)]), 0.5);
        // Apart, one after the other, and with a second between them.
        assert_eq!(part(&[(4, 6), (12, 13)]), 0.8);
        assert_eq!(part(&[(8, 9), (9, 10)]), 0.6);
        assert_eq!(part(&[(8, 9), (10, 11)]), 0.7);
        assert_eq!(part(&[(8, 9), (9, 10), (10, 11), (11, 12)]), 0.8);
    }

    #[test]
    fn what_lies_outside_counts_for_nothing() {
        assert_eq!(part(&[(0, 2)]), 0.0);
        assert_eq!(part(&[(0, 2), (0, 3), (18, 20)]), 0.0);
        assert_eq!(part(&[(0, 4), (1, 4), (16, 20)]), 0.2);
        assert_eq!(part(&[(0, 20)]), 1.0);
        assert_eq!(part(&[(0, 8), (9, 20)]), 1.0);
    }
}
