//! How much the `tests` and `sshTests` of a policy may ask for.
//!
//! What a test costs is decided by the rules, and rules and tests multiply: no limit of their number holds for all policies that people write and keeps out all
//! that would take minutes. So the work is counted instead.

use std::cell::Cell;

use super::syntax::Document;

/// The steps that are left: each a few sets that are looked at, around a microsecond without optimisation.
#[derive(Debug)]
pub(crate) struct Budget(Cell<u64>);

impl Budget {
    /// Far more than tests that people write take, and less than half of the time that the compiler as a whole may take for as long a text
    /// (xtask/fuzz/tests/policy_cost).
    pub(crate) fn new(document: &Document, nodes: usize) -> Self {
        const ANY: u64 = 200_000;
        const PER_KIB: u64 = 40_000;
        const PER_NODE: u64 = 500;
        let of_text = PER_KIB * document.length as u64 / 1024;
        Self(Cell::new(ANY + of_text + PER_NODE * nodes as u64))
    }

    pub(crate) fn spend(&self, steps: usize) {
        self.0.set(self.0.get().saturating_sub(steps as u64));
    }

    /// Whether more was asked for than may be: then answers mean nothing, and the policy is to be refused.
    pub(crate) fn is_spent(&self) -> bool {
        self.0.get() == 0
    }
}
