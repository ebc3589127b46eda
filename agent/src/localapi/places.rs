//! How many may talk to the agent at once. Who may only read cannot keep out who may write.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Connections of those who may write, and of all others together. A `watch` or `flows --follow` keeps one as long as it runs.
pub const EACH: usize = 64;

#[derive(Debug)]
pub struct Places {
    writers: Arc<Semaphore>,
    readers: Arc<Semaphore>,
}

impl Default for Places {
    fn default() -> Self {
        Self {
            writers: Arc::new(Semaphore::new(EACH)),
            readers: Arc::new(Semaphore::new(EACH)),
        }
    }
}

impl Places {
    /// A place, until it is dropped; none if all are taken.
    pub fn take(&self, may_write: bool) -> Option<OwnedSemaphorePermit> {
        let kind = if may_write {
            &self.writers
        } else {
            &self.readers
        };
        kind.clone().try_acquire_owned().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readers_fill_their_own_places_only() {
        let places = Places::default();
        let mut taken: Vec<_> = (0..EACH).map(|_| places.take(false).unwrap()).collect();
        assert!(places.take(false).is_none());
        assert!(places.take(true).is_some(), "root still gets in");
        taken.pop();
        assert!(places.take(false).is_some());
    }
}
