//! The layout that `policy fmt` gives a file: that of the hosted service's own formatter, as far as people see it.
//!
//! Objects and lists are either in one line or have a line for each entry: the latter if they were written in several
//! lines or are wider than [`WIDTH`]. Tabs indent; values of neighbouring lines are aligned; of blank lines in a row one
//! stays. The last entry has a comma behind it if it ends its line, unless the whole file is plain JSON.

use jsonc_parser::ast::Value;

use super::gap::{Comment, Gap, indented};
use super::parts::{Entry, Parts, range_of};

/// Characters from an opening bracket to the end of the line. A comma and a space are counted after each entry, the last
/// one included, as the hosted service's formatter does.
const WIDTH: usize = 80;

/// Which objects and lists need several lines, in the order of their beginnings, and whether the file is plain JSON.
#[derive(Debug)]
pub(super) struct Layout {
    in_lines: Vec<bool>,
    pub(super) is_plain: bool,
}

/// How wide a value is.
#[derive(Clone, Copy, Default)]
struct Extent {
    first: usize,
    last: usize,
    in_lines: bool,
}

impl Layout {
    /// `text` is what `root` was parsed from.
    pub(super) fn of(text: &str, root: &Value) -> Self {
        let range = range_of(root);
        let around = [&text[..range.start], &text[range.end..]];
        let mut layout = Self {
            in_lines: Vec::new(),
            is_plain: around
                .into_iter()
                .all(|text| Gap::read(text).comments.is_empty()),
        };
        layout.measure(text, root);
        layout
    }

    fn measure(&mut self, text: &str, value: &Value) -> Extent {
        let Some(parts) = Parts::of(text, value) else {
            let width = text[range_of(value)].chars().count();
            return Extent {
                first: width,
                last: width,
                in_lines: false,
            };
        };
        let index = self.in_lines.len();
        self.in_lines.push(false);
        let mut lines = Lines {
            current: 1,
            ..Lines::default()
        };
        let mut breaks = false;
        for (index, entry) in parts.entries.iter().enumerate() {
            breaks |= self.measure_gap(&parts.gap(index), &mut lines);
            if let (Some(name), Some(gap)) = (&entry.name, parts.inner_gap(entry)) {
                lines.current += text[name.range.clone()].chars().count() + 2 + gap.width();
                self.is_plain &= gap.comments.is_empty();
                breaks |= gap.has_long_comment();
            }
            lines.add(self.measure(text, entry.value));
            lines.current += 2;
        }
        let tail = parts.gap(parts.entries.len());
        self.is_plain &= tail.comma.is_none();
        let is_empty = parts.entries.is_empty() && tail.comments.is_empty();
        breaks |= self.measure_gap(&tail, &mut lines) && !is_empty;
        lines.current += 1;
        let extent = lines.end();
        if breaks || lines.widest > WIDTH {
            self.in_lines[index] = true;
            return Extent {
                first: 1,
                last: 1,
                in_lines: true,
            };
        }
        extent
    }

    fn measure_gap(&mut self, gap: &Gap, lines: &mut Lines) -> bool {
        lines.current += gap.width();
        self.is_plain &= gap.comments.is_empty();
        gap.breaks()
    }
}

/// The lines of an object or list whose own gaps have no breaks.
#[derive(Default)]
struct Lines {
    first: Option<usize>,
    current: usize,
    widest: usize,
}

impl Lines {
    fn add(&mut self, extent: Extent) {
        self.current += extent.first;
        if extent.in_lines {
            self.first.get_or_insert(self.current);
            self.widest = self.widest.max(self.current);
            self.current = extent.last;
        }
    }

    fn end(&mut self) -> Extent {
        self.widest = self.widest.max(self.current);
        Extent {
            first: self.first.unwrap_or(self.current),
            last: self.current,
            in_lines: self.first.is_some(),
        }
    }
}

/// Writes a file in its layout. None if that takes more than `most` bytes.
pub(super) fn file(text: &str, root: &Value, most: usize) -> Option<String> {
    let layout = Layout::of(text, root);
    let range = range_of(root);
    let mut writer = Writer::new(text, &layout, most);
    writer.around(&Gap::read(&text[..range.start]), true);
    writer.value(root, 0);
    writer.around(&Gap::read(&text[range.end..]), false);
    writer.out.push('\n');
    writer.finish()
}

/// Writes a value alone. None if that takes more than `most` bytes.
pub(super) fn value(text: &str, root: &Value, is_plain: bool, most: usize) -> Option<String> {
    let layout = Layout {
        is_plain,
        ..Layout::of(text, root)
    };
    let mut writer = Writer::new(text, &layout, most);
    writer.value(root, 0);
    writer.finish()
}

struct Writer<'a> {
    text: &'a str,
    in_lines: std::slice::Iter<'a, bool>,
    trailing_commas: bool,
    most: usize,
    out: String,
    /// Line breaks in `out`.
    lines: usize,
    /// Where in `out` how many spaces are missing, for values to be aligned.
    missing: Vec<(usize, usize)>,
    missing_bytes: usize,
}

impl<'a> Writer<'a> {
    fn new(text: &'a str, layout: &'a Layout, most: usize) -> Self {
        Self {
            text,
            in_lines: layout.in_lines.iter(),
            trailing_commas: !layout.is_plain,
            most,
            out: String::with_capacity(text.len() + 1),
            lines: 0,
            missing: Vec::new(),
            missing_bytes: 0,
        }
    }

    fn is_full(&self) -> bool {
        self.out.len().saturating_add(self.missing_bytes) > self.most
    }

    fn finish(mut self) -> Option<String> {
        if self.is_full() {
            return None;
        }
        self.missing.sort_unstable();
        let mut aligned = String::with_capacity(self.out.len() + self.missing_bytes);
        let mut done = 0;
        for (at, spaces) in self.missing {
            aligned.push_str(&self.out[done..at]);
            aligned.extend(std::iter::repeat_n(' ', spaces));
            done = at;
        }
        aligned.push_str(&self.out[done..]);
        Some(aligned)
    }

    fn break_line(&mut self, breaks: usize, depth: usize) {
        self.lines += breaks;
        self.out.extend(std::iter::repeat_n('\n', breaks));
        self.out.extend(std::iter::repeat_n('\t', depth));
    }

    fn comment(&mut self, comment: &Comment, depth: usize) {
        let text = comment.text.trim_end();
        if comment.is_line() || !text.contains(['\n', '\r']) {
            self.out.push_str(text);
        } else if !self.has_room_for(text, depth) {
            self.missing_bytes = self.most.saturating_add(1);
        } else {
            let text = indented(text, &"\t".repeat(depth));
            self.lines += text.matches('\n').count();
            self.out.push_str(&text);
        }
    }

    /// Whether what a comment's lines are indented by may fit: deep inside it can be hundreds of times the text.
    fn has_room_for(&self, comment: &str, depth: usize) -> bool {
        let lines = comment.split(['\n', '\r']).skip(1);
        let written = lines.filter(|line| !line.trim().is_empty());
        let indent = written.count().saturating_mul(depth);
        indent.saturating_add(self.out.len()) <= self.most
    }

    /// What stands before (`leads`) or after everything.
    fn around(&mut self, gap: &Gap, leads: bool) {
        for (index, comment) in gap.comments.iter().enumerate() {
            match comment.breaks_before.min(2) {
                _ if leads && index == 0 => {}
                0 => self.out.push(' '),
                breaks => self.break_line(breaks, 0),
            }
            self.comment(comment, 0);
        }
        match gap.breaks_after.min(2) {
            _ if !leads || gap.comments.is_empty() => {}
            0 => self.out.push(' '),
            breaks => self.break_line(breaks, 0),
        }
    }

    fn value(&mut self, value: &Value, depth: usize) {
        let range = range_of(value);
        let Some(parts) = Parts::of(self.text, value) else {
            self.out.push_str(&self.text[range]);
            return;
        };
        let in_lines = *self.in_lines.next().expect("measured in the same order");
        self.out.push_str(&self.text[range.start..=range.start]);
        if in_lines {
            self.entries_in_lines(&parts, depth);
        } else {
            self.entries_in_one_line(&parts, depth);
        }
        self.out.push_str(&self.text[range.end - 1..range.end]);
    }

    fn entries_in_one_line(&mut self, parts: &Parts, depth: usize) {
        for (index, entry) in parts.entries.iter().enumerate() {
            let gap = parts.gap(index);
            let before_comma = if index > 0 { gap.before_comma } else { 0 };
            if index > 0 {
                self.before_comma(&gap);
                self.out.push_str(", ");
            }
            for comment in &gap.comments[before_comma..] {
                if self.is_full() {
                    return;
                }
                self.comment(comment, depth);
                self.out.push(' ');
            }
            self.entry(parts, entry, depth);
            if self.is_full() {
                return;
            }
        }
        let tail = parts.gap(parts.entries.len());
        for (index, comment) in tail.comments.iter().enumerate() {
            let first_of_all = index == 0 && parts.entries.is_empty();
            self.out.push_str(if first_of_all { "" } else { " " });
            self.comment(comment, depth);
        }
    }

    fn before_comma(&mut self, gap: &Gap) {
        for comment in &gap.comments[..gap.before_comma] {
            self.out.push(' ');
            self.out.push_str(comment.text);
        }
    }

    fn entries_in_lines(&mut self, parts: &Parts, depth: usize) {
        // Of neighbouring lines of one property each: where in the text their values begin, and after how many characters.
        let mut rows = Vec::new();
        let count = parts.entries.len();
        for (index, entry) in parts.entries.iter().enumerate() {
            let before = self.lines;
            self.line_before(parts, index, depth + 1);
            if self.lines - before > 1 {
                self.align(&mut rows);
            }
            let (start, line) = (self.out.len(), self.lines);
            let value_at = self.entry(parts, entry, depth + 1);
            if self.lines > line {
                self.align(&mut rows);
            } else if entry.name.is_some() {
                rows.push((value_at, self.out[start..value_at].chars().count()));
            }
            if self.is_full() {
                return;
            }
        }
        self.align(&mut rows);
        self.line_before(parts, count, depth);
    }

    /// The gap before an entry, or before the closing bracket, where at least one line ends.
    fn line_before(&mut self, parts: &Parts, index: usize, depth: usize) {
        let gap = parts.gap(index);
        let is_last = index == parts.entries.len();
        let mut comments = &gap.comments[..];
        if index > 0 {
            self.before_comma(&gap);
            if !is_last || self.trailing_commas {
                self.out.push(',');
            }
            comments = &comments[gap.before_comma..];
        }
        let breaks = |comment: &Comment| comment.breaks_before;
        let total = comments.iter().map(breaks).sum::<usize>() + gap.breaks_after;
        let comment_depth = if is_last { depth + 1 } else { depth };
        for (nth, comment) in comments.iter().enumerate() {
            let breaks = match comment.breaks_before.min(2) {
                2 if nth == 0 && index == 0 => 1,
                0 if nth == 0 && total == 0 && !is_last => 1,
                breaks => breaks,
            };
            match breaks {
                0 => self.out.push(' '),
                breaks => self.break_line(breaks, comment_depth),
            }
            if self.is_full() {
                return;
            }
            self.comment(comment, comment_depth);
        }
        let after = match gap.breaks_after.min(2) {
            _ if is_last => 1,
            _ if comments.is_empty() && index == 0 => 1,
            0 if comments.is_empty() => 1,
            breaks => breaks,
        };
        match after {
            0 => self.out.push(' '),
            breaks => self.break_line(breaks, depth),
        }
    }

    /// Returns where its value begins.
    fn entry(&mut self, parts: &Parts, entry: &Entry, depth: usize) -> usize {
        let mut value_depth = depth;
        if let (Some(name), Some(gap)) = (&entry.name, parts.inner_gap(entry)) {
            self.out.push_str(&self.text[name.range.clone()]);
            self.out.push_str(": ");
            for comment in &gap.comments {
                if self.is_full() {
                    break;
                }
                self.comment(comment, depth + 1);
                if comment.is_line() {
                    self.break_line(1, depth + 1);
                    value_depth = depth + 1;
                } else {
                    self.out.push(' ');
                }
            }
        }
        let value_at = self.out.len();
        self.value(entry.value, value_depth);
        value_at
    }

    fn align(&mut self, rows: &mut Vec<(usize, usize)>) {
        let widest = rows.iter().map(|(_, width)| *width).max();
        for (at, width) in rows.drain(..) {
            let spaces = widest.unwrap_or_default() - width;
            if spaces > 0 {
                self.missing.push((at, spaces));
                self.missing_bytes = self.missing_bytes.saturating_add(spaces);
            }
        }
    }
}
