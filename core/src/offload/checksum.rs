//! The Internet checksum (RFC 1071), which is the same in either byte order: it is summed in the machine's.

use super::TCP;

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

/// The checksum as a header has it.
pub(super) fn of(parts: &[&[u8]]) -> [u8; 2] {
    (!fold(total(parts))).to_ne_bytes()
}

/// Whether what includes its checksum is as it was sent.
pub(super) fn is_right(parts: &[&[u8]]) -> bool {
    fold(total(parts)) == 0xffff
}

/// What the checksum begins with if somebody else sums up the rest.
pub(super) fn partial(parts: &[&[u8]]) -> [u8; 2] {
    fold(total(parts)).to_ne_bytes()
}

/// Protocol and length of TCP's pseudo-header, whose addresses are in the IP header (RFC 9293 3.1, RFC 8200 8.1).
pub(super) fn pseudo_tail(length: usize) -> [u8; 8] {
    let mut tail = [0; 8];
    tail[..4].copy_from_slice(&(length as u32).to_be_bytes());
    tail[7] = TCP;
    tail
}

/// The addresses in an IP header.
pub(super) fn addresses(head: &[u8]) -> &[u8] {
    match head[0] >> 4 {
        6 => &head[8..40],
        _ => &head[12..20],
    }
}
