//! The line of a policy file that a message is about, as a terminal shows it, and what of it to underline.

use crate::text::{columns, harmless, is_steering};

/// Columns of a line that are shown; longer ones are cut around the place.
const WINDOW: usize = 100;

/// Columns shown before the place in a line that is cut.
const LEAD: usize = 40;

/// Columns of a tab, wherever it stands.
const TAB: usize = 4;

/// Characters of the longest line that is given whole to programs.
const LONGEST_SOURCE: usize = 500;

/// The lines of a text.
#[derive(Debug)]
pub struct Lines<'a> {
    lines: Vec<&'a str>,
}

/// A line as it is shown: no tabs, nothing that steers a terminal, not longer than fits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Excerpt {
    /// The line, or the part around the place with `…` where it goes on.
    pub line: String,
    /// Columns before what is underlined.
    pub before: usize,
    /// Columns that are underlined, at least one.
    pub underlined: usize,
}

impl<'a> Lines<'a> {
    /// Finds the lines of a text.
    pub fn new(text: &'a str) -> Self {
        Self {
            lines: text.split('\n').collect(),
        }
    }

    /// A line, counted from 1, without its end; empty if there is none.
    fn line(&self, line: u32) -> &'a str {
        let line = (line as usize)
            .checked_sub(1)
            .and_then(|at| self.lines.get(at));
        line.map_or("", |line| line.strip_suffix('\r').unwrap_or(line))
    }

    /// The line and the byte in it at which a place is.
    fn at(&self, line: u32, column: u32) -> (&'a str, usize) {
        let line = self.line(line);
        let mut starts = line.char_indices().map(|(start, _)| start);
        let start = starts.nth((column as usize).saturating_sub(1));
        (line, start.unwrap_or(line.len()))
    }

    /// The column after the string, word or number that begins at a place; `None` if none does.
    pub fn end_of_token(&self, line: u32, column: u32) -> Option<u32> {
        let (line, start) = self.at(line, column);
        let length = token_length(&line[start..]);
        (length > 0).then(|| column.saturating_add(u32::try_from(length).unwrap_or(u32::MAX)))
    }

    /// The line of a place for programs: tabs and columns as they are, what steers terminals replaced, cut if it is very long.
    pub fn source(&self, line: u32, column: u32) -> String {
        let (line, start) = self.at(line, column);
        let from = match line.chars().nth(LONGEST_SOURCE) {
            None => 0,
            Some(_) => {
                let mut before = line[..start].char_indices().rev();
                before.nth(LONGEST_SOURCE / 2 - 1).map_or(0, |(at, _)| at)
            }
        };
        let mut characters = line[from..].chars();
        let mut source = String::new();
        if from > 0 {
            source.push('…');
        }
        source.extend(
            characters
                .by_ref()
                .take(LONGEST_SOURCE)
                .map(|c| if c == '\t' { c } else { harmless(c) }),
        );
        if characters.next().is_some() {
            source.push('…');
        }
        source
    }

    /// What to show of the line of a place. `end` is the column after the last that is underlined.
    pub fn excerpt(&self, line: u32, column: u32, end: Option<u32>) -> Excerpt {
        let (line, start) = self.at(line, column);
        let from = if fits(line) {
            0
        } else {
            window_start(line, start)
        };
        let mut marked = end.map_or(1, |end| end.saturating_sub(column).max(1));
        let mut excerpt = Excerpt {
            line: if from > 0 { "…" } else { "" }.to_owned(),
            before: usize::from(from > 0),
            underlined: 0,
        };
        let mut room = WINDOW;
        for (at, c) in line[from..].char_indices() {
            let Some(left) = room.checked_sub(cost(c)) else {
                excerpt.line.push('…');
                break;
            };
            room = left;
            let width = show(c, &mut excerpt.line);
            if from + at < start {
                excerpt.before += width;
            } else if marked > 0 {
                marked -= 1;
                excerpt.underlined += width;
            }
        }
        excerpt.underlined = excerpt.underlined.max(1);
        excerpt
    }
}

/// How many characters the string, word or number at the beginning of a text has: a string with its quotes, as far as the line goes.
fn token_length(text: &str) -> usize {
    let characters = text.chars();
    if text.starts_with('"') {
        let mut escaped = true;
        let inside = characters.take_while(|&c| {
            let ends = c == '"' && !escaped;
            // The first quote opens.
            escaped = c == '\\' && !escaped;
            !ends
        });
        let inside = inside.count();
        return (inside + 1).min(text.chars().count());
    }
    let in_word = |c: &char| c.is_alphanumeric() || "_+-.".contains(*c);
    characters.take_while(in_word).count()
}

fn fits(line: &str) -> bool {
    let mut room = WINDOW;
    line.chars().all(|c| match room.checked_sub(cost(c)) {
        Some(left) => {
            room = left;
            true
        }
        None => false,
    })
}

/// Where to begin with a line that is cut, so that the place stands not far from the left.
fn window_start(line: &str, place: usize) -> usize {
    let mut room = LEAD;
    let mut from = place;
    for (at, c) in line[..place].char_indices().rev() {
        let Some(left) = room.checked_sub(cost(c)) else {
            break;
        };
        room = left;
        from = at;
    }
    from
}

/// What a character takes of the room in a line. Nothing is free: any number of accents can stand on one letter.
fn cost(c: char) -> usize {
    match c {
        '\t' => TAB,
        c if is_steering(c) => 1,
        c => columns(c).max(1),
    }
}

/// Writes a character as it is shown, and says how many columns it takes.
fn show(c: char, to: &mut String) -> usize {
    match c {
        '\t' => {
            to.extend(std::iter::repeat_n(' ', TAB));
            TAB
        }
        c => {
            let shown = harmless(c);
            to.push(shown);
            columns(shown)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The line and its underline, one above the other.
    fn shown(line: &str, column: u32) -> String {
        let lines = Lines::new(line);
        let end = lines.end_of_token(1, column);
        let excerpt = lines.excerpt(1, column, end);
        let (before, underlined) = (excerpt.before, excerpt.underlined);
        format!("{}\n{:before$}{:^<underlined$}", excerpt.line, "", "")
    }

    #[test]
    fn strings_words_and_numbers_are_underlined_whole_and_all_else_at_its_beginning() {
        for (line, column, expected) in [
            (r#"{"a": 5}"#, 2, "{\"a\": 5}\n ^^^"),
            (r#"{"a": -1.5e3}"#, 7, "{\"a\": -1.5e3}\n      ^^^^^^"),
            (r#"["a\"b", 1]"#, 2, "[\"a\\\"b\", 1]\n ^^^^^^"),
            (r#"["a\\", 1]"#, 2, "[\"a\\\\\", 1]\n ^^^^^"),
            (r#"["open"#, 2, "[\"open\n ^^^^^"),
            ("{}", 1, "{}\n^"),
            ("null", 1, "null\n^^^^"),
            ("", 1, "\n^"),
            ("ab", 9, "ab\n  ^"),
        ] {
            assert_eq!(shown(line, column), expected);
        }
    }

    #[test]
    fn the_underline_stands_where_it_should_after_tabs_and_wide_and_combining_characters() {
        assert_eq!(shown("\t\"a\"", 2), "    \"a\"\n    ^^^");
        assert_eq!(shown("\"日本\": \"x\"", 7), "\"日本\": \"x\"\n        ^^^");
        assert_eq!(shown("\"日本\"", 1), "\"日本\"\n^^^^^^");
        assert_eq!(shown("\"e\u{301}\": 1", 7), "\"e\u{301}\": 1\n     ^");
    }

    #[test]
    fn nothing_in_a_line_steers_the_terminal() {
        let line = "\u{1b}[2J\u{9b}0m\u{202e}x\u{7f}\r";
        let excerpt = Lines::new(line).excerpt(1, 1, None);
        assert_eq!(excerpt.line, "\u{fffd}[2J\u{fffd}0m\u{fffd}x\u{fffd}");
        let source = Lines::new(line).source(1, 1);
        assert_eq!(source, excerpt.line);
    }

    #[test]
    fn a_long_line_is_cut_around_the_place() {
        let line = format!("{}\"here\"{}", "a".repeat(1000), "b".repeat(100_000));
        let shown = shown(&line, 1001);
        let expected = format!(
            "…{}\"here\"{}…\n{:41}^^^^^^",
            "a".repeat(40),
            "b".repeat(54),
            ""
        );
        assert_eq!(shown, expected);
        let source = Lines::new(&line).source(1, 1001);
        assert_eq!(source.chars().count(), 502);
        assert!(source.contains("a\"here\"b") && source.starts_with('…') && source.ends_with('…'));
    }

    #[test]
    fn what_does_not_fit_is_neither_shown_nor_underlined() {
        let line = format!("\"{}\"", "日".repeat(1000));
        let shown = shown(&line, 1);
        assert_eq!(shown, format!("\"{}…\n{}", "日".repeat(49), "^".repeat(99)));
        let accents = format!("e{}", "\u{301}".repeat(100_000));
        assert!(Lines::new(&accents).excerpt(1, 1, None).line.len() < 300);
    }

    #[test]
    fn lines_end_as_on_any_system_and_there_is_one_for_every_place() {
        let lines = Lines::new("a\r\nb\n");
        assert_eq!(lines.source(1, 1), "a");
        assert_eq!(lines.source(2, 1), "b");
        assert_eq!(lines.source(3, 1), "");
        assert_eq!(lines.source(0, 0), "");
        assert_eq!(lines.source(99, 99), "");
    }
}
