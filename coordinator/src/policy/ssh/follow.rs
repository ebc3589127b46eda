//! What becomes of logins when one node is another.

use std::sync::{Arc, OnceLock};

use super::super::alias::Alias;
use super::super::bits::Bits;
use super::super::error::At;
use super::super::follow::Change;
use super::super::people::People;
use super::SshRule;
use super::compile::{SshAccess, in_order};

impl SshAccess {
    /// Takes note of a change. Only nodes that are sent a rule that the changed one was or is a source of are sent another policy.
    pub(crate) fn follow(&mut self, written: &[SshRule], people: &People, change: &Change) {
        let mut stale = Bits::from_iter([change.at]);
        let mut sources_changed = false;
        let named = |aliases: &[At<Alias>]| {
            let mut aliases = aliases.iter();
            aliases.any(|alias| change.is_named_now(people, &alias.value))
        };
        for (access, rule) in self.rules.iter_mut().zip(in_order(written)) {
            let (is_source, is_destination) = (named(&rule.sources), named(&rule.destinations));
            let was_source = access.sources.contains(change.at);
            let was_destination = access.destinations.contains(change.at);
            if is_source != was_source || is_destination != was_destination {
                let access = Arc::make_mut(access);
                access.sources.put(change.at, is_source);
                access.destinations.put(change.at, is_destination);
            }
            if is_source || was_source {
                sources_changed = true;
                stale.unite(&access.destinations);
                // Devices of one user are told of each other by autogroup:self and by local parts.
                stale.unite(&change.devices);
            }
        }
        if change.at == self.policies.len() {
            self.policies.push(OnceLock::new());
        }
        for at in stale.iter() {
            self.policies.set(at, OnceLock::new());
        }
        if sources_changed {
            self.shared = Arc::default();
        }
    }
}
