//! Putting a policy into force.

use std::sync::Arc;

use sha2::{Digest as _, Sha256};
use time::OffsetDateTime;

use super::{NewPolicy, State};
use crate::{Error, model::VersionNumber, policy::Policy};

/// What became of a policy that was to be put into force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SetPolicy {
    pub number: VersionNumber,
    /// It was not in force already.
    pub is_new: bool,
}

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

    /// Puts a policy into force, and says under which number; one that is in force already gets no other. The caller has parsed and
    /// compiled it.
    pub fn set_policy(
        &mut self,
        new: NewPolicy,
        policy: Policy,
        now: OffsetDateTime,
    ) -> Result<SetPolicy, Error> {
        if let Some(known) = self.history.in_force()
            && known.text == new.text
        {
            return Ok(SetPolicy {
                number: known.number,
                is_new: false,
            });
        }
        let added = self.history.add(new, now)?;
        self.refused_policy = None;
        self.policy = Arc::new(policy);
        self.stale.all = Some("another policy");
        self.generation += 1;
        self.mark(|dirty| {
            dirty.policies.insert(added.number);
            dirty.policies.extend(added.dropped);
        });
        Ok(SetPolicy {
            number: added.number,
            is_new: true,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::{state::history::MAX_VERSIONS, store::Store};

    #[test]
    fn versions_survive_a_restart_and_old_ones_leave_the_database_too() {
        let dir = tempfile::tempdir().unwrap();
        let now = OffsetDateTime::UNIX_EPOCH;
        let mut store = Store::open(dir.path()).unwrap();
        let load = |store: &Store| State::load(store, Arc::default(), now, Instant::now()).unwrap();
        let mut state = load(&store);
        let last = MAX_VERSIONS + 2;
        for at in 1..=last {
            let new = NewPolicy {
                text: format!("{{\"acls\": []}} // {at}"),
                author: "alice".to_owned(),
                account: "root".to_owned(),
                note: String::new(),
            };
            let set = state.set_policy(new.clone(), Policy::allow_none(), now);
            assert!(set.unwrap().is_new);
            let again = state.set_policy(new, Policy::allow_none(), now);
            assert!(!again.unwrap().is_new, "the same text");
            if at % 100 == 0 || at == last {
                store.save(&state.take_rows().0).unwrap();
            }
        }
        drop(store);
        let store = Store::open(dir.path()).unwrap();
        assert_eq!(store.load().unwrap().policies.len(), MAX_VERSIONS);
        let loaded = load(&store);
        let versions = |state: &State| state.policy_history().iter().cloned().collect::<Vec<_>>();
        assert_eq!(versions(&loaded), versions(&state));
        let numbers: Vec<i64> = versions(&loaded).iter().map(|v| v.number.0).collect();
        assert_eq!((numbers[0], numbers[MAX_VERSIONS - 1]), (last as i64, 3));
    }
}
