//! What stands between two values: white space, comments, commas.

use std::borrow::Cow;

use super::super::hujson::comment_length;

/// The text between a value (or bracket) and the next, or between a name and its value.
#[derive(Debug, Default)]
pub(super) struct Gap<'a> {
    pub(super) comments: Vec<Comment<'a>>,
    /// Line breaks after the last comment.
    pub(super) breaks_after: usize,
    /// Where in the text it is.
    pub(super) comma: Option<usize>,
    /// How many of the comments belong before the comma, wherever it is: those in the line of the value before.
    pub(super) before_comma: usize,
}

#[derive(Debug)]
pub(super) struct Comment<'a> {
    /// With its slashes.
    pub(super) text: &'a str,
    /// Line breaks between it and what stands before.
    pub(super) breaks_before: usize,
}

impl Comment<'_> {
    pub(super) fn is_line(&self) -> bool {
        self.text.starts_with("//")
    }

    /// Whether nothing else has to follow in another line.
    fn is_inline(&self) -> bool {
        !self.is_line() && !self.text.contains(['\n', '\r'])
    }
}

impl<'a> Gap<'a> {
    /// Reads a text that the parser took for nothing but white space, comments, and one comma or colon.
    pub(super) fn read(text: &'a str) -> Self {
        let mut gap = Self::default();
        // All of them, if the comma is still to be written.
        let mut candidates = usize::MAX;
        let mut rest = text;
        while let Some(char) = rest.chars().next() {
            let length = match char {
                '/' => {
                    let length = comment_length(rest);
                    gap.comments.push(Comment {
                        text: &rest[..length],
                        breaks_before: std::mem::take(&mut gap.breaks_after),
                    });
                    length
                }
                '\r' if rest.starts_with("\r\n") => {
                    gap.breaks_after += 1;
                    2
                }
                '\n' | '\r' => {
                    gap.breaks_after += 1;
                    1
                }
                ',' => {
                    gap.comma = Some(text.len() - rest.len());
                    candidates = gap.comments.len();
                    1
                }
                other => other.len_utf8(),
            };
            rest = &rest[length..];
        }
        let inline = |comment: &&Comment| comment.breaks_before == 0 && comment.is_inline();
        let leading = gap.comments.iter().take(candidates);
        gap.before_comma = leading.take_while(inline).count();
        gap
    }

    /// Whether what surrounds it cannot be in one line.
    pub(super) fn breaks(&self) -> bool {
        self.breaks_after > 0
            || self
                .comments
                .iter()
                .any(|comment| comment.breaks_before > 0 || !comment.is_inline())
    }

    /// Whether its comments end a line, so that a value after them stands in another one.
    pub(super) fn has_long_comment(&self) -> bool {
        self.comments.iter().any(|comment| !comment.is_inline())
    }

    /// Characters that its comments take in a line.
    pub(super) fn width(&self) -> usize {
        let width = |comment: &Comment| comment.text.trim_end().chars().count() + 1;
        self.comments.iter().map(width).sum()
    }
}

/// The lines of a comment of several lines, as they are written at `indent`: what they have in common of white space at
/// their beginnings gives way to it, with a space more before a column of asterisks.
pub(super) fn indented(comment: &str, indent: &str) -> String {
    let unified: Cow<str> = if comment.contains('\r') {
        comment.replace("\r\n", "\n").replace('\r', "\n").into()
    } else {
        comment.into()
    };
    let mut lines = unified.split('\n').map(str::trim_end);
    let mut out = lines.next().unwrap_or_default().to_owned();
    let lines: Vec<&str> = lines.collect();
    let written = || lines.iter().filter(|line| !line.is_empty());
    let common = written()
        .map(|line| &line[..line.len() - line.trim_start().len()])
        .reduce(common_prefix)
        .unwrap_or_default();
    let asterisks = written().all(|line| line[common.len()..].starts_with('*'));
    for line in &lines {
        out.push('\n');
        if !line.is_empty() {
            out.push_str(indent);
            out.push_str(if asterisks { " " } else { "" });
            out.push_str(&line[common.len()..]);
        }
    }
    out
}

fn common_prefix<'a>(one: &'a str, other: &str) -> &'a str {
    let same = one
        .char_indices()
        .zip(other.chars())
        .find(|((_, a), b)| a != b);
    match same {
        Some(((at, _), _)) => &one[..at],
        None => &one[..one.len().min(other.len())],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_in_the_line_of_a_value_stay_before_its_comma() {
        let gap = Gap::read(" /* a */ // b\n, /* c */\r\n\n");
        let texts: Vec<_> = gap.comments.iter().map(|comment| comment.text).collect();
        assert_eq!(texts, ["/* a */", "// b", "/* c */"]);
        assert_eq!((gap.before_comma, gap.comma), (1, Some(14)));
        assert_eq!((gap.comments[2].breaks_before, gap.breaks_after), (1, 2));
        assert_eq!(Gap::read("/*,*/,/* b */").before_comma, 1);
        assert_eq!(Gap::read("/* a *//* b */").before_comma, 2);
        assert_eq!(Gap::read("\n/* a */").before_comma, 0);
    }

    #[test]
    fn a_comment_of_several_lines_moves_as_a_whole() {
        let cases = [
            ("/* a\n      b\n    c */", "/* a\n\t\t  b\n\t\tc */"),
            ("/**\r\n* a\r\n*/", "/**\n\t\t * a\n\t\t */"),
            ("/*\n\n\ta \n\t*/", "/*\n\n\t\ta\n\t\t*/"),
        ];
        for (before, after) in cases {
            assert_eq!(indented(before, "\t\t"), after);
            assert_eq!(indented(after, "\t\t"), after);
        }
    }
}
