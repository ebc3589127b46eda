//! "Did you mean …?": the known name that is nearest to one that is not known.

/// Characters of the longest name that is compared.
const LONGEST: usize = 64;

/// Names that are compared, of those that are about as long; further ones are not looked at.
const MOST_COMPARED: usize = 5000;

/// Edits at most, however long the name is.
const MOST_EDITS: usize = 2;

/// The nearest of the known names, if any is so near that it was probably meant; of several equally near ones the first.
/// Case doesn't count, nor does what both have before their first colon (`tag:`, `group:`) count as likeness.
pub(crate) fn nearest<'a>(
    wanted: &str,
    known: impl IntoIterator<Item = &'a str>,
) -> Option<String> {
    let wanted = characters(wanted)?;
    let mut best: Option<(usize, &str)> = None;
    let length = |name: &str| name.chars().take(LONGEST + 1).count();
    let similar = known
        .into_iter()
        .filter(|name| length(name).abs_diff(wanted.len()) <= MOST_EDITS);
    for name in similar.take(MOST_COMPARED) {
        let Some(candidate) = characters(name) else {
            continue;
        };
        let prefix = common_kind(&wanted, &candidate);
        let (left, right) = (&wanted[prefix..], &candidate[prefix..]);
        let allowed = (left.len().max(right.len()) / 3).min(MOST_EDITS);
        let limit = match best {
            Some((0, _)) => break,
            Some((edits, _)) => allowed.min(edits - 1),
            None => allowed,
        };
        if let Some(edits) = distance(left, right, limit) {
            best = Some((edits, name));
        }
    }
    best.map(|(_, name)| name.to_owned())
}

/// In lower case; `None` if there are too many.
fn characters(name: &str) -> Option<Vec<char>> {
    if name.len() > 4 * LONGEST {
        return None;
    }
    let characters: Vec<char> = name.chars().map(|c| c.to_ascii_lowercase()).collect();
    (characters.len() <= LONGEST).then_some(characters)
}

/// The length of `tag:` and the like, if both begin with the same.
fn common_kind(left: &[char], right: &[char]) -> usize {
    let end = left.iter().position(|&c| c == ':').map_or(0, |at| at + 1);
    if right.get(..end) == Some(&left[..end]) {
        end
    } else {
        0
    }
}

/// What is left of both without what they begin and end with alike.
fn without_common_ends<'a>(left: &'a [char], right: &'a [char]) -> (&'a [char], &'a [char]) {
    let start = left.iter().zip(right).take_while(|(a, b)| a == b).count();
    let (left, right) = (&left[start..], &right[start..]);
    let ends = left.iter().rev().zip(right.iter().rev());
    let end = ends.take_while(|(a, b)| a == b).count();
    (&left[..left.len() - end], &right[..right.len() - end])
}

/// How many insertions, deletions, replacements and swaps of neighbours make one of the other (optimal string alignment);
/// `None` if more than `limit`.
fn distance(left: &[char], right: &[char], limit: usize) -> Option<usize> {
    let (left, right) = without_common_ends(left, right);
    if left.len().abs_diff(right.len()) > limit {
        return None;
    }
    let far = limit + 1;
    let width = right.len() + 1;
    let mut before = vec![far; width];
    let mut last: Vec<usize> = (0..width).collect();
    let mut row = vec![far; width];
    for (i, &a) in left.iter().enumerate() {
        // Only cells near the diagonal can be within the limit.
        let (from, to) = (i.saturating_sub(limit), (i + 1 + limit).min(right.len()));
        row.fill(far);
        row[0] = i + 1;
        for j in from..to {
            let b = right[j];
            let mut edits = last[j] + usize::from(a != b);
            edits = edits.min(last[j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && a == right[j - 1] && left[i - 1] == b {
                edits = edits.min(before[j - 1] + 1);
            }
            row[j + 1] = edits;
        }
        if row.iter().all(|&edits| edits > limit) {
            return None;
        }
        std::mem::swap(&mut before, &mut last);
        std::mem::swap(&mut last, &mut row);
    }
    Some(last[right.len()]).filter(|&edits| edits <= limit)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn edits(left: &str, right: &str) -> Option<usize> {
        let characters = |text: &str| text.chars().collect::<Vec<_>>();
        distance(&characters(left), &characters(right), 2)
    }

    #[test]
    fn edits_are_counted_and_a_swap_of_neighbours_is_one() {
        for (left, right, expected) in [
            ("", "", Some(0)),
            ("eng", "eng", Some(0)),
            ("egn", "eng", Some(1)),
            ("en", "eng", Some(1)),
            ("enng", "eng", Some(1)),
            ("", "ab", Some(2)),
            ("ca", "abc", None),
            ("kitten", "sitting", None),
            ("straße", "strase", Some(1)),
            ("servre-db", "server-bd", Some(2)),
        ] {
            assert_eq!(edits(left, right), expected, "{left:?} {right:?}");
            assert_eq!(edits(right, left), expected, "{right:?} {left:?}");
        }
    }

    #[test]
    fn only_names_that_were_probably_meant_are_suggested() {
        let known = [
            "group:eng",
            "group:engine",
            "tag:db",
            "tag:web",
            "host-1",
            "b",
        ];
        for (wanted, expected) in [
            ("group:egn", Some("group:eng")),
            ("GROUP:ENG", Some("group:eng")),
            ("group:engin", Some("group:engine")),
            ("groups:eng", Some("group:eng")),
            ("tag:dv", None),
            ("tag:webb", Some("tag:web")),
            ("tag:eng", None),
            ("host1", Some("host-1")),
            ("a", None),
            ("", None),
        ] {
            assert_eq!(nearest(wanted, known).as_deref(), expected, "{wanted:?}");
        }
        let long = "x".repeat(100_000);
        assert_eq!(nearest(&long, [long.as_str()]), None);
    }

    /// Straight from the definition, all cells.
    fn reference(left: &[char], right: &[char]) -> usize {
        let mut table = vec![vec![0; right.len() + 1]; left.len() + 1];
        for i in 0..=left.len() {
            for j in 0..=right.len() {
                table[i][j] = if i == 0 || j == 0 {
                    i.max(j)
                } else {
                    let same = left[i - 1] == right[j - 1];
                    let mut edits = table[i - 1][j - 1] + usize::from(!same);
                    edits = edits.min(table[i - 1][j] + 1).min(table[i][j - 1] + 1);
                    if i > 1 && j > 1 && left[i - 1] == right[j - 2] && left[i - 2] == right[j - 1]
                    {
                        edits = edits.min(table[i - 2][j - 2] + 1);
                    }
                    edits
                };
            }
        }
        table[left.len()][right.len()]
    }

    proptest! {
        #[test]
        fn the_narrow_computation_agrees_with_the_whole_table(
            left in "[abc]{0,9}", right in "[abc]{0,9}", limit in 0usize..4,
        ) {
            let characters = |text: &str| text.chars().collect::<Vec<_>>();
            let (left, right) = (characters(&left), characters(&right));
            let expected = Some(reference(&left, &right)).filter(|&edits| edits <= limit);
            prop_assert_eq!(distance(&left, &right, limit), expected);
        }
    }
}
