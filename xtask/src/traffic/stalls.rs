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
/// For how long after one its queues are still too full.
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
    /// From when to when the machine stood still, for more than a second each.
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

    /// In which part of this time, from 0 to 1, packets met a machine that stood still, or queues that were full of what it had left.
    pub fn part(&self, (begin, end): (Instant, Instant)) -> f64 {
        let met = |(from, to): &(Instant, Instant)| {
            let (from, to) = (begin.max(*from - AFTERWARDS), end.min(*to + AFTERWARDS));
            to.saturating_duration_since(from).as_secs_f64()
        };
        let whole = end.saturating_duration_since(begin).as_secs_f64();
        let met: f64 = self.stood.iter().map(met).sum();
        (met / whole.max(f64::EPSILON)).min(1.0)
    }
}

impl Drop for Stalls {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}
