//! What a rule set is besides its tables.

use crate::Side;

/// Places for rule sets. Three, so that one that a packet may still be looking at is never the one being written: between two writes to the same place lies a
/// whole installation, which waits for all running programs.
pub const SLOTS: usize = 3;

/// Which place holds the rule set in force: what the map `ACTIVE` says. Zero: none was installed yet.
///
/// Closing leaves the place in it, so that places go on taking turns, and that it is known which rule set was the last.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Active {
    /// The place plus one; with [`SLOTS`] added, what it holds is not in force.
    word: u32,
}

impl Active {
    const PLACES: u32 = SLOTS as u32;

    /// The rule set in this place is in force.
    pub const fn place(slot: u32) -> Self {
        Self { word: slot + 1 }
    }
    #[inline(always)]
    pub const fn from_word(word: u32) -> Self {
        Self { word }
    }
    pub const fn word(self) -> u32 {
        self.word
    }
    /// The place of the rule set in force.
    #[inline(always)]
    pub const fn in_force(self) -> Option<u32> {
        // Zero becomes the largest number.
        let slot = self.word.wrapping_sub(1);
        if slot < Self::PLACES {
            Some(slot)
        } else {
            None
        }
    }
    /// The same with nothing in force.
    pub const fn closed(self) -> Self {
        match self.in_force() {
            Some(slot) => Self {
                word: slot + 1 + Self::PLACES,
            },
            None => self,
        }
    }
    /// The place of the rule set that was put in force last, if that is known.
    pub const fn last(self) -> Option<u32> {
        match self.word.checked_sub(1) {
            Some(slot) if slot < 2 * Self::PLACES => Some(slot % Self::PLACES),
            _ => None,
        }
    }
    /// The place whose turn it is.
    pub const fn next(self) -> u32 {
        match self.last() {
            Some(slot) => (slot + 1) % Self::PLACES,
            None => 0,
        }
    }
}

/// Settings of one rule set.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    flags: u32,
    epoch: u32,
    peer_api_port: [u8; 2],
    pad: [u8; 6],
    disco: [u8; 32],
    flow_seed: u64,
    geometry: Geometry,
}

/// Where the hash table of a rule set has what (`cell.rs`).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Geometry {
    pub seed: u64,
    /// Buckets of narrow entries, which come first.
    pub narrow: u32,
    /// Buckets of wide entries.
    pub wide: u32,
    /// Index in [`crate::TABLE_SIZES`].
    pub size: u32,
    /// For which sides and families there are prefixes: [`Geometry::prefixes_of`].
    pub prefixes: u32,
}

impl Geometry {
    /// The bit that says that addresses of this side and family can be in prefixes.
    #[inline(always)]
    pub const fn prefixes_of(side: Side, family: u8) -> u32 {
        (side as u32) << if family == 4 { 0 } else { 4 }
    }
}

impl Settings {
    /// No rule admits anything.
    pub const SHIELDS_UP: u32 = 1;
    /// Some source is jailed, so sources must be looked up for it.
    pub const JAIL: u32 = 2;
    /// `disco` holds the node's own disco key.
    pub const DISCO: u32 = 4;

    pub fn new(
        shields_up: bool,
        jail: bool,
        epoch: u32,
        peer_api_port: Option<u16>,
        disco: Option<[u8; 32]>,
        geometry: Geometry,
    ) -> Self {
        let flag = |on: bool, flag: u32| if on { flag } else { 0 };
        Self {
            flags: flag(shields_up, Self::SHIELDS_UP)
                | flag(jail, Self::JAIL)
                | flag(disco.is_some(), Self::DISCO),
            epoch,
            peer_api_port: peer_api_port.unwrap_or(0).to_be_bytes(),
            pad: [0; 6],
            disco: disco.unwrap_or([0; 32]),
            flow_seed: 0,
            geometry,
        }
    }
    /// The same with the secret that flows are hashed with: as it was before, or all are forgotten.
    pub const fn with_flow_seed(self, flow_seed: u64) -> Self {
        Self { flow_seed, ..self }
    }
    #[inline(always)]
    pub const fn has(&self, flag: u32) -> bool {
        self.flags & flag != 0
    }
    /// Which flows count: those of the same epoch.
    #[inline(always)]
    pub const fn epoch(&self) -> u32 {
        self.epoch
    }
    /// Zero: none.
    #[inline(always)]
    pub const fn peer_api_port(&self) -> [u8; 2] {
        self.peer_api_port
    }
    #[inline(always)]
    pub const fn disco(&self) -> &[u8; 32] {
        &self.disco
    }
    /// Zero where none was chosen yet.
    #[inline(always)]
    pub const fn flow_seed(&self) -> u64 {
        self.flow_seed
    }
    #[inline(always)]
    pub const fn geometry(&self) -> &Geometry {
        &self.geometry
    }
}

/// Per-CPU limits on what goes to the agent: one for drop events, one for punts.
pub const RATE_SLOTS: usize = 2;

/// Records of one CPU in the current second.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RateWindow {
    /// When the window began, in ticks.
    pub began: u64,
    /// Records written since.
    pub written: u64,
}

const _: () = {
    assert!(size_of::<Settings>() == 80);
    assert!(size_of::<RateWindow>() == 16);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_take_turns_whether_the_filter_was_closed_or_not() {
        let mut active = Active::from_word(0);
        for n in 0..20 {
            let slot = active.next();
            assert_eq!(slot, n % SLOTS as u32);
            active = Active::place(slot);
            assert_eq!((active.in_force(), active.last()), (Some(slot), Some(slot)));
            for _ in 0..n % 3 {
                active = active.closed();
                assert_eq!((active.in_force(), active.last()), (None, Some(slot)));
            }
        }
    }

    #[test]
    fn only_a_place_is_in_force() {
        for word in [0, 4, 5, 6, 7, 8, 1 << 31, u32::MAX] {
            let active = Active::from_word(word);
            assert_eq!(active.in_force(), None, "{word}");
            assert_eq!(active.closed(), active);
            assert!(active.next() < SLOTS as u32);
        }
    }
}
