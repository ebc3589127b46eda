//! What streams are made of: bytes that say where they belong, so that pieces that were swapped, repeated or left out are noticed like bytes that were changed.
//!
//! A table of hashed places, repeated: making each byte anew would take an emulated CPU as long as carrying it. Its length is a prime, so pieces of a stream
//! that are alike lie a whole number of tables apart, which no whole number of chunks, pages or segments is within any stream of ours.

use std::sync::OnceLock;

/// The largest prime below 2²⁰.
const TABLE: usize = 1_048_573;

/// The bytes of any stream from this place on.
pub fn bytes(place: u64, length: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(length);
    while out.len() < length {
        let rest = from(place + out.len() as u64);
        out.extend_from_slice(&rest[..rest.len().min(length - out.len())]);
    }
    out
}

/// The place of the first of these bytes that isn't what belongs there.
pub fn first_wrong(place: u64, mut bytes: &[u8]) -> Option<u64> {
    let mut at = place;
    while !bytes.is_empty() {
        let right = from(at);
        let length = right.len().min(bytes.len());
        if bytes[..length] != right[..length] {
            let same = bytes
                .iter()
                .zip(right)
                .take_while(|(one, other)| one == other);
            return Some(at + same.count() as u64);
        }
        at += length as u64;
        bytes = &bytes[length..];
    }
    None
}

/// The table from this place to its end.
fn from(place: u64) -> &'static [u8] {
    static BYTES: OnceLock<Vec<u8>> = OnceLock::new();
    let table = BYTES.get_or_init(|| {
        let mut table: Vec<u8> = (0..TABLE as u64 / 8 + 1)
            .flat_map(|word| hash(word).to_le_bytes())
            .collect();
        table.truncate(TABLE);
        table
    });
    &table[(place % TABLE as u64) as usize..]
}

/// Multiplications and shifts of splitmix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014).
const fn hash(word: u64) -> u64 {
    let mut value = word.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    value = (value ^ value >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ value >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ value >> 31
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    /// What the lab moves byte by byte compared.
    const STREAM: u64 = 100_000_000;
    /// Enough to tell two pieces apart.
    const HEAD: usize = 16;

    #[test]
    fn no_two_pieces_of_a_stream_are_alike_whatever_it_is_cut_into() {
        // Written chunks, TCP segments over either family, pages, and what the server writes.
        for piece in [2048, 1228, 1208, 4096, 65_536] {
            let mut seen = HashSet::new();
            for place in (0..STREAM).step_by(piece) {
                assert!(
                    seen.insert(bytes(place, HEAD)),
                    "pieces of {piece} bytes: the one at {place} was there before"
                );
            }
        }
    }

    #[test]
    fn swapped_repeated_lost_and_changed_bytes_are_found_where_they_are() {
        // Over the end of a table.
        let start = TABLE as u64 - 3000;
        let right = bytes(start, 8192);
        assert_eq!(first_wrong(start, &right), None);
        let with = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut wrong = right.clone();
            change(&mut wrong);
            first_wrong(start, &wrong)
        };
        let swapped = with(&|bytes| bytes.rotate_left(2048));
        assert_eq!(swapped, Some(start));
        let repeated = with(&|bytes| bytes.copy_within(2048..4096, 4096));
        assert!(repeated.is_some_and(|at| (start + 4096..start + 4104).contains(&at)));
        let lost = with(&|bytes| drop(bytes.drain(100..101)));
        assert!(lost.is_some_and(|at| (start + 100..start + 108).contains(&at)));
        assert_eq!(with(&|bytes| bytes[7000] ^= 1), Some(start + 7000));
    }
}
