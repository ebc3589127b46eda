//! The Internet checksum (RFC 1071), which is the same in either byte order: it is summed in the machine's.

/// The sum of 16-bit words, not yet folded. An odd last byte is followed by a zero.
fn sum(bytes: &[u8]) -> u64 {
    let mut chunks = bytes.chunks_exact(8);
    // Two sums of 32-bit halves: no carry gets lost before 4 billion of them.
    let mut sum = chunks.by_ref().fold(0u64, |sum, chunk| {
        let word = u64::from_ne_bytes(chunk.try_into().expect("chunks are of eight"));
        sum + (word & 0xffff_ffff) + (word >> 32)
    });
    for pair in chunks.remainder().chunks(2) {
        let last = [pair[0], pair.get(1).copied().unwrap_or(0)];
        sum += u64::from(u16::from_ne_bytes(last));
    }
    sum
}

fn fold(mut sum: u64) -> u16 {
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

fn total(parts: &[&[u8]]) -> u64 {
    debug_assert!(
        parts
            .iter()
            .rev()
            .skip(1)
            .all(|part| part.len().is_multiple_of(2)),
        "only the last part may have an odd length"
    );
    parts.iter().map(|part| sum(part)).sum()
}

/// The checksum as a header has it, of parts of which only the last may have an odd length.
pub fn of(parts: &[&[u8]]) -> [u8; 2] {
    (!fold(total(parts))).to_ne_bytes()
}

/// Whether what includes its checksum is as it was sent.
pub fn is_right(parts: &[&[u8]]) -> bool {
    fold(total(parts)) == 0xffff
}

/// What the checksum begins with if somebody else sums up the rest.
pub fn partial(parts: &[&[u8]]) -> [u8; 2] {
    fold(total(parts)).to_ne_bytes()
}

/// Protocol and length of a pseudo-header, whose addresses are in the IP header (RFC 9293 3.1, RFC 8200 8.1).
pub fn pseudo_tail(protocol: u8, length: usize) -> [u8; 8] {
    let mut tail = [0; 8];
    tail[..4].copy_from_slice(&(length as u32).to_be_bytes());
    tail[7] = protocol;
    tail
}

/// The addresses in the header of a packet that is long enough to have one.
pub fn addresses(head: &[u8]) -> &[u8] {
    match head[0] >> 4 {
        6 => &head[8..40],
        _ => &head[12..20],
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The straightforward form of RFC 1071.
    fn reference(bytes: &[u8]) -> u16 {
        let mut sum = 0u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |byte| u32::from(*byte));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }

    proptest! {
        #[test]
        fn it_is_that_of_the_rfc_however_the_bytes_are_parted(
            bytes in prop::collection::vec(any::<u8>(), 0..400), at: prop::sample::Index
        ) {
            let at = at.index(bytes.len() / 2 + 1) * 2;
            let parts = [&bytes[..at], &bytes[at..]];
            // Zero and all ones are the same number.
            let number = |sum: u16| sum % 0xffff;
            prop_assert_eq!(number(u16::from_be_bytes(partial(&parts))), number(reference(&bytes)));
            prop_assert_eq!(number(!u16::from_be_bytes(of(&parts))), number(reference(&bytes)));
            prop_assert_eq!(is_right(&parts), reference(&bytes) == 0xffff);
        }
    }
}
