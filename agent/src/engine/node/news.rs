//! What is new of the peers, for whoever watches.

use std::collections::BTreeSet;

use lowroad_wire::{
    control::NodeId,
    netmap::{Changes, NetMap},
};

/// Since it was last asked for.
#[derive(Debug)]
pub struct News {
    changed: BTreeSet<NodeId>,
    removed: BTreeSet<NodeId>,
    /// The netmap isn't the one of which was told.
    anew: bool,
}

impl Default for News {
    fn default() -> Self {
        Self {
            changed: BTreeSet::new(),
            removed: BTreeSet::new(),
            anew: true,
        }
    }
}

impl News {
    /// `replaced` are all peers of a netmap in whose place there is another.
    pub fn note(&mut self, changes: &Changes, replaced: impl Iterator<Item = NodeId>) {
        let (changed, removed) = (&mut self.changed, &mut self.removed);
        removed.extend(replaced);
        removed.extend(&changes.peers_removed);
        let there = || changes.peers_added.iter().chain(&changes.peers_changed);
        there().for_each(|id| {
            removed.remove(id);
        });
        changed.extend(there());
        changed.retain(|id| !removed.contains(id));
    }

    /// Peers that came or changed, and those that went; `told` are those that are known, before and after.
    pub fn take(
        &mut self,
        map: Option<&NetMap>,
        told: &mut BTreeSet<NodeId>,
    ) -> (BTreeSet<NodeId>, BTreeSet<NodeId>) {
        let Self {
            changed,
            removed,
            anew,
        } = std::mem::replace(
            self,
            Self {
                changed: BTreeSet::new(),
                removed: BTreeSet::new(),
                anew: false,
            },
        );
        if anew {
            let there = map.map_or_else(BTreeSet::new, |map| map.peers.keys().copied().collect());
            let removed = told.difference(&there).copied().collect();
            told.clone_from(&there);
            return (there, removed);
        }
        told.extend(&changed);
        removed.iter().for_each(|id| {
            told.remove(id);
        });
        (changed, removed)
    }
}
