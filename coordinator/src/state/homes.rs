//! The home relay that each machine told last, as whichever of its nodes.
//!
//! A client tells it when it changes, and an older one (1.80) does not tell it again where it logs in as another user, or anew after its node was deleted: without
//! this its new node had no home, and nobody could reach it.

use std::collections::HashMap;

use lowroad_wire::{control::RegionId, key::MachinePublic};

use crate::model::Node;

/// Machines that have told within so many tellings are remembered. There are twice as many entries at most, of 48 bytes each.
const MAX: usize = 16_384;

/// In memory only: a server that was started anew begins with the homes of the nodes that it has.
#[derive(Debug, Default)]
pub(super) struct Homes {
    /// With the number of the telling.
    of: HashMap<MachinePublic, (RegionId, u64)>,
    told: u64,
}

impl Homes {
    /// Of several nodes of a machine the one seen last counts.
    pub fn of_nodes(nodes: &[Node]) -> Self {
        let mut homes = Self::default();
        let mut nodes: Vec<&Node> = nodes.iter().collect();
        nodes.sort_by_key(|node| node.last_seen);
        for node in nodes {
            if let Some(home) = node.home() {
                homes.note(node.machine, home);
            }
        }
        homes
    }

    pub fn note(&mut self, machine: MachinePublic, home: RegionId) {
        self.told += 1;
        self.of.insert(machine, (home, self.told));
        if self.of.len() > 2 * MAX {
            let last = self.told - MAX as u64;
            self.of.retain(|_, (_, told)| *told > last);
        }
    }

    pub fn of(&self, machine: &MachinePublic) -> Option<RegionId> {
        self.of.get(machine).map(|(home, _)| *home)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_word_of_the_last_machines_is_kept() {
        let key = |n: usize| {
            let mut bytes = [0; 32];
            bytes[..8].copy_from_slice(&n.to_le_bytes());
            MachinePublic::from_bytes(bytes)
        };
        let mut homes = Homes::default();
        for n in 0..2 * MAX {
            homes.note(key(n), RegionId(1));
        }
        homes.note(key(0), RegionId(2));
        assert_eq!(homes.of.len(), 2 * MAX);
        homes.note(key(2 * MAX), RegionId(1));
        assert_eq!(homes.of.len(), MAX);
        assert_eq!(homes.of(&key(0)), Some(RegionId(2)));
        assert_eq!(homes.of(&key(MAX)), None);
        assert_eq!(homes.of(&key(2 * MAX - 1)), Some(RegionId(1)));
    }
}
