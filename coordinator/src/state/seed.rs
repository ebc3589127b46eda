//! Putting a policy into force.

use std::sync::Arc;

use sha2::{Digest as _, Sha256};

use super::State;
use crate::policy::Policy;

/// What is kept of a `--policy` file to tell whether it changed.
pub fn fingerprint(text: &str) -> String {
    hex::encode(Sha256::digest(text.as_bytes()))
}

impl State {
    pub fn policy(&self) -> &Arc<Policy> {
        &self.policy
    }

    /// Whether a `--policy` file of this text was the last one loaded.
    pub fn is_seeded_with(&self, text: &str) -> bool {
        self.policy_seed.as_deref() == Some(&fingerprint(text))
    }

    pub fn note_seed(&mut self, text: &str) {
        self.policy_seed = Some(fingerprint(text));
        self.mark(|dirty| {
            dirty.settings.insert(super::Setting::PolicySeed);
        });
    }

    /// The caller has parsed and compiled it.
    pub fn set_policy(&mut self, text: String, policy: Policy) {
        self.policy_text = Some(text);
        self.refused_policy = None;
        self.policy = Arc::new(policy);
        self.stale_policy = true;
        self.generation += 1;
        self.mark(|dirty| {
            dirty.settings.insert(super::Setting::Policy);
        });
    }
}
