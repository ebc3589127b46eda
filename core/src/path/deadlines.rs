//! Which peers have something to do, and when the first has: idle peers cost nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use lowroad_wire::key::NodePublic;

#[derive(Default)]
pub(super) struct Deadlines {
    queue: BTreeSet<(Instant, NodePublic)>,
    of: BTreeMap<NodePublic, Instant>,
    active: BTreeSet<NodePublic>,
    parked: BTreeSet<NodePublic>,
}

impl Deadlines {
    pub fn set(&mut self, key: NodePublic, at: Option<Instant>) {
        if let Some(old) = self.of.remove(&key) {
            self.queue.remove(&(old, key));
        }
        if let Some(at) = at {
            self.of.insert(key, at);
            self.queue.insert((at, key));
        }
    }

    pub fn count(&mut self, key: NodePublic, active: bool, parked: bool) {
        for (set, member) in [(&mut self.active, active), (&mut self.parked, parked)] {
            if member {
                set.insert(key);
            } else {
                set.remove(&key);
            }
        }
    }

    pub fn forget(&mut self, key: &NodePublic) {
        self.set(*key, None);
        self.count(*key, false, false);
    }

    pub fn pop_due(&mut self, now: Instant) -> Option<NodePublic> {
        let (_, key) = self.queue.first().filter(|(at, _)| *at <= now).copied()?;
        self.set(key, None);
        Some(key)
    }

    pub fn first(&self) -> Option<Instant> {
        self.queue.first().map(|(at, _)| *at)
    }

    pub fn awake(&self) -> Vec<NodePublic> {
        self.active.union(&self.parked).copied().collect()
    }

    /// How many are active, and how many parked.
    pub fn counts(&self) -> (usize, usize) {
        (self.active.len(), self.parked.len())
    }
}
