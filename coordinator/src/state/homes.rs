//! What machines measured of their network before their node was deleted.
//!
//! A client tells its measurements when they change, and an older one (1.80) does not tell them again where it logs in anew: without this its new node had no home
//! relay until they did, and nobody could reach it.

use std::collections::{HashMap, VecDeque};

use lowroad_wire::{control::NetInfo, key::MachinePublic};

/// Machines beyond these are forgotten, the first one first.
const MAX: usize = 1024;

#[derive(Debug, Default)]
pub(super) struct Homes {
    of: HashMap<MachinePublic, NetInfo>,
    order: VecDeque<MachinePublic>,
}

impl Homes {
    pub fn keep(&mut self, machine: MachinePublic, measured: NetInfo) {
        if self.of.insert(machine, measured).is_some() {
            return;
        }
        self.order.push_back(machine);
        if self.order.len() > MAX
            && let Some(first) = self.order.pop_front()
        {
            self.of.remove(&first);
        }
    }

    pub fn of(&self, machine: &MachinePublic) -> Option<NetInfo> {
        self.of.get(machine).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_machines_are_kept() {
        let key = |n: usize| {
            let mut bytes = [0; 32];
            bytes[..8].copy_from_slice(&n.to_le_bytes());
            MachinePublic::from_bytes(bytes)
        };
        let mut homes = Homes::default();
        for n in (0..MAX + 10).chain([20, 20]) {
            homes.keep(key(n), NetInfo::default());
        }
        assert_eq!((homes.of.len(), homes.order.len()), (MAX, MAX));
        assert!(homes.of(&key(9)).is_none());
        assert!(homes.of(&key(10)).is_some() && homes.of(&key(MAX + 9)).is_some());
    }
}
