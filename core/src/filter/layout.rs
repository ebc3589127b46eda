//! A rule set's tables as the kernel holds them: one hash table in an array (`lowroad_abi::cell`), and tries of prefixes.

use std::collections::HashMap;

use lowroad_abi::{
    Address, Bucket, Class, CounterNumber, Geometry, ServiceWord, Side, TABLE_SIZES, cell,
};

use super::{Service, Tables};

/// Room for entries, as a multiple of their number: where the table is half full, hardly any key is in its second bucket; the largest rule sets do with less.
const ROOM: [(usize, usize); 2] = [(2, 1), (4, 3)];
/// Units of room in the kernel's largest table at its fullest: a narrow entry takes one, a wide one takes [`WIDE_ROOM`]. Each kind may leave a bucket half empty.
pub(super) const LARGEST: usize = {
    let (numerator, denominator) = ROOM[ROOM.len() - 1];
    (TABLE_SIZES[TABLE_SIZES.len() - 1] as usize - 2) * cell::NARROW * denominator / numerator
};
pub(super) const WIDE_ROOM: usize = cell::NARROW / cell::WIDE;

/// Room that a host takes.
pub(super) const fn host_room(address: &Address) -> usize {
    if address.family() == 4 { 1 } else { WIDE_ROOM }
}

/// Room that a block of `2^(16-bits)` ports takes: as many of the next smaller size that there is as make it up.
pub(super) const fn block_room(bits: u32) -> usize {
    1 << (bits.next_multiple_of(Class::BLOCK_STEP) - bits)
}

/// Tries with other hash functions before the next.
const SEEDS: u64 = 8;
/// Moves of entries to their other bucket for one that finds both of its own full.
const MOVES: u64 = 1_000;

/// What the kernel's maps hold of a rule set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    pub geometry: Geometry,
    /// As many as [`TABLE_SIZES`] says of the geometry's size.
    pub buckets: Vec<Bucket>,
    /// With the length of the prefix, tag included.
    pub prefixes: Vec<(u32, Address, Class)>,
}

/// The rule set's entries do not fit into the largest table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the rule set is larger than the kernel's largest table")]
pub struct TooLarge;

impl Layout {
    /// Lays the tables out, rules named by the numbers of their counters.
    pub fn new(tables: &Tables, counter: impl Fn(u64) -> CounterNumber) -> Result<Self, TooLarge> {
        let entries = Entries::of(tables, &counter)?;
        for (numerator, denominator) in ROOM {
            let buckets = |entries: usize, slots: usize| {
                (entries * numerator).div_ceil(slots * denominator).max(1)
            };
            let narrow = buckets(entries.narrow.len(), cell::NARROW);
            let wide = buckets(entries.wide.len(), cell::WIDE);
            let fits = |size: &u32| narrow + wide <= *size as usize;
            let Some(size) = TABLE_SIZES.iter().position(fits) else {
                continue;
            };
            // All the room that this size has: fewer keys in their second bucket.
            let all = TABLE_SIZES[size] as usize;
            let narrow = all * narrow / (narrow + wide);
            let wide = all - narrow;
            for seed in 0..SEEDS {
                let geometry = Geometry {
                    seed: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15),
                    narrow: narrow as u32,
                    wide: wide as u32,
                    size: size as u32,
                    prefixes: prefix_flags(tables),
                };
                if let Some(buckets) = entries.fill(&geometry) {
                    return Ok(Self {
                        geometry,
                        buckets,
                        prefixes: with_blocks(tables, &entries.blocks),
                    });
                }
            }
        }
        Err(TooLarge)
    }
}

/// The sides and families that have prefixes.
fn prefix_flags(tables: &Tables) -> u32 {
    tables.prefixes.iter().fold(0, |flags, (_, address, _)| {
        flags | Geometry::prefixes_of(address.side(), address.family())
    })
}

fn with_blocks(tables: &Tables, blocks: &HashMap<u32, u32>) -> Vec<(u32, Address, Class)> {
    let prefixes = tables.prefixes.iter();
    prefixes
        .map(|(bits, address, class)| (*bits, *address, complete(*address, *class, blocks)))
        .collect()
}

/// Destinations say which sizes of blocks their services have.
fn complete(address: Address, class: Class, blocks: &HashMap<u32, u32>) -> Class {
    match address.side() {
        Side::Source => class,
        Side::Destination => {
            class.with_blocks(blocks.get(&class.number()).copied().unwrap_or_default())
        }
    }
}

/// Keys and values, not yet in buckets.
struct Entries {
    narrow: Vec<(u64, u64)>,
    wide: Vec<([u64; 2], Side, u64)>,
    /// By class: a bit for each number of prefix bits of its services' blocks of ports.
    blocks: HashMap<u32, u32>,
}

impl Entries {
    fn of(tables: &Tables, counter: &impl Fn(u64) -> CounterNumber) -> Result<Self, TooLarge> {
        let fits = |number: u32| {
            if number >> cell::NUMBER_BITS == 0 {
                Ok(number)
            } else {
                Err(TooLarge)
            }
        };
        let mut out = Self {
            narrow: Vec::with_capacity(
                tables.hosts.len() + tables.ports.len() + tables.pairs.len(),
            ),
            wide: Vec::new(),
            blocks: HashMap::new(),
        };
        for (block, service) in &tables.ports {
            let word = match service {
                Service::Number(number) => ServiceWord::number(fits(*number)?),
                Service::Everybody(rule) => ServiceWord::everybody(counter(*rule)),
            };
            let (class, parts) = (fits(block.class)?, block_room(block.bits) as u32);
            let bits = block.bits + parts.ilog2();
            *out.blocks.entry(class).or_default() |= 1 << bits;
            for part in 0..parts {
                let port = u32::from(block.port) + (part << (16 - bits));
                let key = cell::port_key(class, block.protocol, bits, port as u16);
                out.narrow.push((key, word.word()));
            }
        }
        for (pair, rule) in &tables.pairs {
            let key = cell::pair_key(fits(pair.source)?, fits(pair.service)?);
            out.narrow
                .push((key, u64::from(counter(*rule)) | cell::VALID));
        }
        for (address, class) in &tables.hosts {
            let value = complete(*address, *class, &out.blocks).word() | cell::VALID;
            if address.family() == 4 {
                let [a, b, c, d, ..] = address.bytes();
                out.narrow
                    .push((cell::host_key(address.side(), [a, b, c, d]), value));
            } else {
                out.wide
                    .push((halves(address.bytes()), address.side(), value));
            }
        }
        Ok(out)
    }

    fn fill(&self, geometry: &Geometry) -> Option<Vec<Bucket>> {
        let narrow = self
            .narrow
            .iter()
            .map(|(key, _)| cell::narrow_hash(*key, geometry.seed));
        let wide = self
            .wide
            .iter()
            .map(|(address, side, _)| cell::wide_hash(*address, *side, geometry.seed));
        let narrow = place(narrow, geometry.narrow, cell::NARROW)?;
        let wide = place(wide, geometry.wide, cell::WIDE)?;
        let mut out = Vec::with_capacity(TABLE_SIZES[geometry.size as usize] as usize);
        out.extend(narrow.iter().map(|place| {
            let entries: Vec<_> = place.held().map(|n| self.narrow[n]).collect();
            cell::narrow_bucket(&entries, place.spilled)
        }));
        out.extend(wide.iter().map(|place| {
            let entries: Vec<_> = place.held().map(|n| self.wide[n]).collect();
            cell::wide_bucket(&entries, place.spilled)
        }));
        out.resize(TABLE_SIZES[geometry.size as usize] as usize, [0; 8]);
        Some(out)
    }
}

/// An address as words of memory.
fn halves(bytes: [u8; 16]) -> [u64; 2] {
    let half = |at: usize| u64::from_ne_bytes(std::array::from_fn(|n| bytes[at + n]));
    [half(0), half(8)]
}

/// Which entries a bucket holds.
#[derive(Clone, Copy, Default)]
struct Place {
    entries: [u32; cell::NARROW],
    count: usize,
    spilled: bool,
}

impl Place {
    fn held(&self) -> impl Iterator<Item = usize> {
        self.entries[..self.count].iter().map(|n| *n as usize)
    }
    /// Takes the entry if there is room.
    fn put(&mut self, entry: u32, slots: usize) -> bool {
        let room = self.count < slots;
        if room {
            self.entries[self.count] = entry;
            self.count += 1;
        }
        room
    }
}

/// Gives every entry one of its two buckets (cuckoo hashing); `None` if it did not work out.
fn place(
    hashes: impl ExactSizeIterator<Item = u64>,
    buckets: u32,
    slots: usize,
) -> Option<Vec<Place>> {
    let hashes: Vec<u64> = hashes.collect();
    let mut out = vec![Place::default(); buckets as usize];
    for entry in 0..hashes.len() as u32 {
        settle(&mut out, &hashes, entry, slots)?;
    }
    for bucket in 0..buckets {
        let held = out[bucket as usize];
        for entry in held.held() {
            let first = cell::first(hashes[entry], buckets);
            out[first as usize].spilled |= first != bucket;
        }
    }
    Some(out)
}

/// Puts an entry into one of its buckets, for which others may have to move to their other one.
fn settle(out: &mut [Place], hashes: &[u64], entry: u32, slots: usize) -> Option<()> {
    let buckets = out.len() as u32;
    let mut homeless = entry;
    let mut left = None;
    for step in 0..MOVES {
        let hash = hashes[homeless as usize];
        let (first, second) = (cell::first(hash, buckets), cell::second(hash, buckets));
        if out[first as usize].put(homeless, slots) || out[second as usize].put(homeless, slots) {
            return Some(());
        }
        // Whom it pushes out is as good as random, or walks would end in cycles; and it does not push back who pushed it out.
        let dice = cell::narrow_hash(u64::from(entry), step);
        let into = match left {
            Some(left) if left == first => second,
            Some(left) if left == second => first,
            _ if dice & 1 == 0 => first,
            _ => second,
        };
        let victim = (dice >> 32) as usize % slots;
        std::mem::swap(&mut out[into as usize].entries[victim], &mut homeless);
        left = Some(into);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filter::{PairKey, PortKey};

    /// One port of TCP.
    fn port(class: u32, port: u32) -> PortKey {
        PortKey {
            bits: 16,
            class,
            protocol: 6,
            port: port as u16,
        }
    }

    fn pair(source: u32, service: u32) -> PairKey {
        PairKey { source, service }
    }

    fn tables(count: u32) -> Tables {
        let v4 = |n: u32| Address::v4(Side::Source, (0x6440_0000 + n).to_be_bytes());
        let v6 = |n: u32| {
            let bits = 0xfd7a_115c_a1e0_u128 << 80 | u128::from(n);
            Address::v6(Side::Source, bits.to_be_bytes())
        };
        let hosts = (1..=count).flat_map(|n| [(v4(n), n), (v6(n), n)]);
        Tables {
            hosts: hosts.map(|(a, n)| (a, Class::new(n, 0))).collect(),
            ports: (1..=count)
                .map(|n| (port(n / 100, n), Service::Number(n)))
                .collect(),
            pairs: (1..=count).map(|n| (pair(n, n), u64::from(n))).collect(),
            ..Tables::default()
        }
    }

    /// Looks a narrow key up as the kernel programs do.
    fn find(layout: &Layout, key: u64) -> u64 {
        let geometry = &layout.geometry;
        let hash = cell::narrow_hash(key, geometry.seed);
        let look = |bucket: u32| {
            let bucket = &layout.buckets[bucket as usize];
            let mut entries = bucket.chunks(2);
            let found = entries.find(|e| cell::unmarked(e[0]) == key);
            (found.map_or(0, |e| e[1]), cell::is_marked(bucket[0]))
        };
        match look(cell::first(hash, geometry.narrow)) {
            (0, true) => look(cell::second(hash, geometry.narrow)).0,
            (found, _) => found,
        }
    }

    fn find_wide(layout: &Layout, address: [u64; 2], side: Side) -> u64 {
        let geometry = &layout.geometry;
        let hash = cell::wide_hash(address, side, geometry.seed);
        let look = |bucket: u32| {
            let bucket = &layout.buckets[(geometry.narrow + bucket) as usize];
            let mut entries = bucket.chunks(4);
            let found = entries.find(|e| e[..2] == address && cell::unmarked(e[2]) == side as u64);
            (found.map_or(0, |e| e[3]), cell::is_marked(bucket[2]))
        };
        match look(cell::first(hash, geometry.wide)) {
            (0, true) => look(cell::second(hash, geometry.wide)).0,
            (found, _) => found,
        }
    }

    #[test]
    fn every_entry_is_found_and_nothing_else() {
        for count in [0, 1, 3, 40, 5_000] {
            let tables = tables(count);
            let layout = Layout::new(&tables, |key| key as u32 + 7).expect("room");
            let wanted = Entries::of(&tables, &|key| key as u32 + 7).expect("entries");
            for (key, value) in &wanted.narrow {
                assert_eq!(find(&layout, *key), *value);
                assert_eq!(find(&layout, *key ^ 1 << 40), 0, "of {count}");
            }
            for (address, side, value) in &wanted.wide {
                assert_eq!(find_wide(&layout, *address, *side), *value);
                assert_eq!(find_wide(&layout, *address, Side::Destination), 0);
            }
        }
    }

    /// Ninety of a hundred places of narrow entries, eighty of wide ones: what two choices of buckets of this size can be filled to, and more than is ever asked for.
    #[test]
    fn tables_fill_far_beyond_the_room_they_get() {
        for seed in 0..100 {
            for (slots, percent) in [(cell::NARROW, 90), (cell::WIDE, 80)] {
                for buckets in [1_u32 << 7, 1 << 10, (1 << 12) + 77] {
                    let entries = buckets as usize * slots * percent / 100;
                    let hash = |n| cell::narrow_hash(cell::pair_key(n, n / 3), seed);
                    let hashes: Vec<u64> = (0..entries as u32).map(hash).collect();
                    let placed = place(hashes.iter().copied(), buckets, slots)
                        .unwrap_or_else(|| panic!("{entries} of {slots} * {buckets}, seed {seed}"));
                    check(&placed, &hashes, buckets, slots);
                }
            }
        }
    }

    /// Every entry is in one of its buckets, once; and in the second only if the first says so.
    fn check(placed: &[Place], hashes: &[u64], buckets: u32, slots: usize) {
        let mut seen = vec![false; hashes.len()];
        for (bucket, place) in (0..).zip(placed) {
            assert!(place.count <= slots);
            for entry in place.held() {
                assert!(!std::mem::replace(&mut seen[entry], true), "twice");
                let first = cell::first(hashes[entry], buckets);
                let second = cell::second(hashes[entry], buckets);
                assert!(first == bucket || (second == bucket && placed[first as usize].spilled));
            }
        }
        assert!(seen.iter().all(|seen| *seen), "one is missing");
    }

    #[test]
    fn the_same_tables_are_laid_out_the_same_way() {
        let layout = || Layout::new(&tables(3_000), |key| key as u32);
        assert_eq!(layout(), layout());
    }

    #[test]
    fn what_the_largest_table_cannot_hold_is_refused() {
        let pairs = TABLE_SIZES[TABLE_SIZES.len() - 1] * cell::NARROW as u32 + 1;
        let tables = Tables {
            pairs: (0..pairs).map(|n| (pair(n, 1), 1)).collect(),
            ..Tables::default()
        };
        assert_eq!(Layout::new(&tables, |_| 1), Err(TooLarge));
    }

    /// As many entries as these rules have: a source of their own in each family, a port in 40,000 by TCP and UDP, and a ping.
    #[test]
    fn a_hundred_thousand_rules_have_room() {
        let rules = 100_000;
        let hosts = tables(rules).hosts;
        let ports = (0..160_000).map(|n| (port(n / 40_000, n % 40_000 + 1), Service::Number(n)));
        let pairs = (0..4 * rules).map(|n| (pair(n / 2, n % 40_000), 1));
        let tables = Tables {
            hosts,
            ports: ports.collect(),
            pairs: pairs.collect(),
            ..Tables::default()
        };
        assert!(Layout::new(&tables, |_| 1).is_ok());
    }

    #[test]
    fn few_keys_are_in_their_second_bucket() {
        let layout = Layout::new(&tables(20_000), |_| 1).expect("room");
        let narrow = &layout.buckets[..layout.geometry.narrow as usize];
        let spilled = narrow.iter().filter(|b| cell::is_marked(b[0])).count();
        assert!(spilled * 10 < narrow.len(), "{spilled} of {}", narrow.len());
    }

    #[test]
    fn keys_that_fall_into_one_bucket_are_spread_by_another_seed() {
        let (buckets, mut keys) = (100, Vec::new());
        for n in 0.. {
            let key = cell::host_key(Side::Source, u32::to_ne_bytes(n));
            let hash = cell::narrow_hash(key, 0);
            if (cell::first(hash, buckets), cell::second(hash, buckets)) == (1, 2) {
                keys.push(key);
            }
            if keys.len() == 9 {
                break;
            }
        }
        let of = |seed| keys.iter().map(move |k| cell::narrow_hash(*k, seed));
        assert!(place(of(0), buckets, cell::NARROW).is_none());
        assert!(place(of(1), buckets, cell::NARROW).is_some());
    }
}
