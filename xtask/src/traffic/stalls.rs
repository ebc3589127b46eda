//! Whether this machine stands still: an emulated CPU does when its host's is wanted elsewhere.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

const LOOK: Duration = Duration::from_millis(20);

/// Looks until dropped.
#[derive(Debug)]
pub struct Stalls {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    /// In microseconds.
    longest: AtomicU64,
}

impl Stalls {
    pub fn watch() -> Self {
        let shared = Arc::new(Shared::default());
        let looking = Arc::clone(&shared);
        let thread = thread::spawn(move || {
            while !looking.stop.load(Ordering::Relaxed) {
                let start = Instant::now();
                thread::sleep(LOOK);
                let late = start.elapsed().saturating_sub(LOOK).as_micros();
                looking
                    .longest
                    .fetch_max(u64::try_from(late).unwrap_or(u64::MAX), Ordering::Relaxed);
            }
        });
        Self {
            shared,
            thread: Some(thread),
        }
    }

    /// By how much a thread that wanted to run was late, at most.
    pub fn longest(&self) -> Duration {
        Duration::from_micros(self.shared.longest.load(Ordering::Relaxed))
    }
}

impl Drop for Stalls {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}
