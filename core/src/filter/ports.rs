//! Port ranges become aligned blocks that do not overlap.

use std::collections::BTreeMap;

use lowroad_wire::control::PortRange;

/// `2^(16-bits)` ports from `first` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Block {
    pub first: u16,
    pub bits: u32,
}

/// Splits a range into the fewest aligned blocks, in order. A range backwards has none.
pub(super) fn blocks(range: PortRange) -> Vec<Block> {
    let (mut from, end) = (u32::from(range.first), u32::from(range.last) + 1);
    let mut out = Vec::new();
    while from < end {
        let aligned = from.trailing_zeros().min(16);
        let size = aligned.min((end - from).ilog2());
        out.push(Block {
            first: from as u16,
            bits: 16 - size,
        });
        from += 1 << size;
    }
    out
}

/// Cuts the port space at the ends of all ranges and calls `visit` for each piece that some range covers, in order, with the values of those ranges (sorted, without repeats).
pub(super) fn sweep<V: Ord + Copy, E>(
    ranges: &[(PortRange, V)],
    mut visit: impl FnMut(PortRange, &BTreeMap<V, u32>) -> Result<(), E>,
) -> Result<(), E> {
    let mut begins: BTreeMap<u32, Vec<V>> = BTreeMap::new();
    let mut ends: BTreeMap<u32, Vec<V>> = BTreeMap::new();
    for (range, value) in ranges.iter().filter(|(r, _)| r.first <= r.last) {
        begins.entry(range.first.into()).or_default().push(*value);
        ends.entry(u32::from(range.last) + 1)
            .or_default()
            .push(*value);
    }
    let mut cuts: Vec<u32> = begins.keys().chain(ends.keys()).copied().collect();
    cuts.sort_unstable();
    cuts.dedup();
    let mut active: BTreeMap<V, u32> = BTreeMap::new();
    for (n, cut) in cuts.iter().enumerate() {
        for value in ends.get(cut).into_iter().flatten() {
            if let Some(count) = active.get_mut(value) {
                *count -= 1;
                if *count == 0 {
                    active.remove(value);
                }
            }
        }
        for value in begins.get(cut).into_iter().flatten() {
            *active.entry(*value).or_default() += 1;
        }
        if let (false, Some(next)) = (active.is_empty(), cuts.get(n + 1)) {
            let piece = PortRange {
                first: *cut as u16,
                last: (next - 1) as u16,
            };
            visit(piece, &active)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(first: u16, last: u16) -> PortRange {
        PortRange { first, last }
    }

    #[test]
    fn blocks_cover_exactly_the_range() {
        for r in [
            range(0, 0),
            range(0, 65535),
            range(1, 65535),
            range(80, 443),
            range(65535, 65535),
            range(7, 8),
            range(1024, 2047),
            range(9, 3),
        ] {
            let covered: Vec<u32> = blocks(r)
                .iter()
                .flat_map(|b| u32::from(b.first)..u32::from(b.first) + (1 << (16 - b.bits)))
                .collect();
            let wanted: Vec<u32> = (u32::from(r.first)..=u32::from(r.last)).collect();
            assert_eq!(covered, wanted, "{r:?}");
        }
    }

    #[test]
    fn a_sweep_sees_every_combination_once() {
        let mut seen = Vec::new();
        let ranges = [
            (range(10, 20), 'a'),
            (range(15, 30), 'b'),
            (range(15, 15), 'a'),
            (range(40, 65535), 'c'),
            (range(9, 3), 'd'),
        ];
        sweep(&ranges, |piece, active| {
            seen.push((piece.first, piece.last, active.keys().collect::<String>()));
            Ok::<(), ()>(())
        })
        .expect("visit never fails");
        let wanted = [
            (10, 14, "a"),
            (15, 15, "ab"),
            (16, 20, "ab"),
            (21, 30, "b"),
            (40, 65535, "c"),
        ];
        assert_eq!(seen, wanted.map(|(a, b, s)| (a, b, s.to_owned())));
    }
}
