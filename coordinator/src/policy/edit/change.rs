//! Entries that come and go, in a text that otherwise stays as it is.

use std::ops::Range;

use jsonc_parser::ast::Value;
use jsonc_parser::common::Ranged as _;

use super::super::error::PolicyError;
use super::super::hujson::Text;
use super::format;
use super::parts::{Entry, Parts, range_of};
use super::rule::{NewRule, quoted};
use super::{MAX_POLICY, TAG_OWNERS};

/// A policy's text, parsed.
pub(super) struct Source<'a> {
    text: &'a str,
    lines: Text<'a>,
    root: Value<'a>,
    /// Without comments and trailing commas, and so are the additions.
    is_plain: bool,
}

/// An entry to add.
pub(super) struct Step {
    name: Option<String>,
    json: String,
    layout: Layout,
}

/// How to write an entry into an object or list that is empty.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    Lines,
    OneLine,
}

/// Replaces a part of the text.
struct Splice {
    range: Range<usize>,
    text: String,
}

impl Splice {
    fn insert(at: usize, text: impl Into<String>) -> Self {
        Self {
            range: at..at,
            text: text.into(),
        }
    }

    fn delete(range: Range<usize>) -> Self {
        Self {
            range,
            text: String::new(),
        }
    }
}

impl Step {
    pub(super) fn element(json: String, layout: Layout) -> Self {
        Self {
            name: None,
            json,
            layout,
        }
    }

    pub(super) fn property(name: &str, json: String, layout: Layout) -> Self {
        Self {
            name: Some(quoted(name)),
            json,
            layout,
        }
    }
}

impl<'a> Source<'a> {
    pub(super) fn parse(hujson: &'a str) -> Result<Self, PolicyError> {
        let lines = Text::new(hujson);
        let root = lines.parse()?;
        // An empty object says nothing about how more of it would look.
        let is_empty = root
            .as_object()
            .is_some_and(|root| root.properties.is_empty());
        let is_plain = !is_empty && format::Layout::of(hujson, &root).is_plain;
        Ok(Self {
            text: hujson,
            lines,
            root,
            is_plain,
        })
    }

    pub(super) fn line(&self, entry: &Entry) -> u32 {
        self.lines.at(entry.value.range()).line
    }

    fn parts<'v>(&self, value: &'v Value<'a>) -> Option<Parts<'v, 'a>> {
        Parts::of(self.text, value)
    }

    /// A section's value, unless it is absent or null.
    fn section_value(&self, name: &str) -> Option<&Value<'a>> {
        let properties = &self.root.as_object()?.properties;
        let named = properties
            .iter()
            .find(|property| property.name.as_str().eq_ignore_ascii_case(name));
        named.map(|property| &property.value)
    }

    pub(super) fn section(&self, name: &str) -> Option<Parts<'_, 'a>> {
        self.parts(self.section_value(name)?)
    }

    /// Whether an entry says the same as a rule.
    pub(super) fn is(&self, entry: &Entry, rule: &NewRule) -> bool {
        let text = &self.text[entry.range.clone()];
        let parsed =
            jsonc_parser::parse_to_serde_value::<serde_json::Value>(text, &Default::default());
        let fields = rule.fields().into_iter();
        let rule = fields
            .map(|(name, value)| (name.to_owned(), value))
            .collect();
        parsed.is_ok_and(|value| value == serde_json::Value::Object(rule))
    }

    /// Adds an entry to a section, which is made if need be.
    pub(super) fn add_to_section(&self, section: &str, step: &Step) -> Result<String, PolicyError> {
        if let Some(parts) = self.section(section) {
            return Ok(self.with(self.append(&parts, step)));
        }
        let json = match &step.name {
            Some(name) => format!("{{\n{name}:{}}}", step.json),
            None => format!("[\n{}]", step.json),
        };
        if let Some(null) = self.section_value(section) {
            let value = self.laid_out(&json, &self.indent(null.start()));
            return Ok(self.with(vec![Splice {
                range: range_of(null),
                text: value,
            }]));
        }
        let root = self.parts(&self.root).ok_or_else(|| {
            self.lines
                .invalid(&self.root, "the policy must be an object: {…}")
        })?;
        Ok(self.with(self.append(&root, &Step::property(section, json, Layout::Lines))))
    }

    /// The table of tags, and which of its entries is this tag's.
    pub(super) fn tag(&self, tag: &str) -> Option<(Parts<'_, 'a>, usize)> {
        let table = self.section(TAG_OWNERS)?;
        let is_tag = |entry: &Entry| entry.name.as_ref().is_some_and(|name| name.text == tag);
        let index = table.entries.iter().position(is_tag)?;
        Some((table, index))
    }

    fn owner_list(&self, tag: &str) -> Option<&Value<'a>> {
        let (table, index) = self.tag(tag)?;
        Some(table.entries[index].value)
    }

    /// Those who own a tag, in order.
    pub(super) fn owners(&self, tag: &str) -> Vec<&str> {
        let list = self.owner_list(tag).and_then(Value::as_array);
        let elements = list.into_iter().flat_map(|list| &list.elements);
        // Something else than a string is no good policy; nothing is as long as it.
        elements
            .map(|owner| owner.as_string_lit().map_or("", |text| text.value.as_ref()))
            .collect()
    }

    /// Adds an owner to a tag that there is.
    pub(super) fn add_owner(&self, tag: &str, owner: &str) -> String {
        let owner = quoted(owner);
        let splices = match self.owner_list(tag) {
            Some(list) => match self.parts(list) {
                Some(parts) => self.append(&parts, &Step::element(owner, Layout::OneLine)),
                None => vec![Splice {
                    range: range_of(list),
                    text: format!("[{owner}]"),
                }],
            },
            None => Vec::new(),
        };
        self.with(splices)
    }

    /// None if it doesn't own it.
    pub(super) fn without_owner(&self, tag: &str, owner: &str) -> Option<String> {
        let index = self.owners(tag).iter().position(|known| *known == owner)?;
        let list = self.parts(self.owner_list(tag)?)?;
        Some(self.with(self.remove(&list, index)))
    }

    /// None if there is no such tag.
    pub(super) fn without_tag(&self, tag: &str) -> Option<String> {
        let (table, index) = self.tag(tag)?;
        Some(self.with(self.remove(&table, index)))
    }

    fn with(&self, splices: Vec<Splice>) -> String {
        let mut out = String::with_capacity(self.text.len() + 256);
        let mut done = 0;
        for splice in splices {
            out.push_str(&self.text[done..splice.range.start]);
            out.push_str(&splice.text);
            done = splice.range.end;
        }
        out.push_str(&self.text[done..]);
        out
    }

    fn append(&self, parts: &Parts, step: &Step) -> Vec<Splice> {
        match parts.entries.last() {
            Some(last) if self.begins_line(last.range.start) => self.append_line(parts, last, step),
            Some(last) => {
                let entry = self.entry(step, &self.indent(last.range.start), Some(last));
                vec![Splice::insert(last.range.end, format!(", {entry}"))]
            }
            None => self.append_first(parts, step),
        }
    }

    /// Behind an entry that begins a line, and the comments after it.
    fn append_line(&self, parts: &Parts, last: &Entry, step: &Step) -> Vec<Splice> {
        let count = parts.entries.len();
        let has_comma = parts.comma(count).is_some();
        let indent = self.indent(last.range.start);
        let at = last.range.end + self.text[parts.gap_range(count)].trim_end().len();
        let mut text = self.new_line(&indent);
        text.push_str(&self.entry(step, &indent, Some(last)));
        if has_comma {
            text.push(',');
            return vec![Splice::insert(at, text)];
        }
        vec![
            Splice::insert(last.range.end, ","),
            Splice::insert(at, text),
        ]
    }

    fn append_first(&self, parts: &Parts, step: &Step) -> Vec<Splice> {
        let inside = parts.gap_range(0);
        let written = self.text[inside.clone()].trim_end();
        let at = inside.start + written.len();
        let outer = self.indent(parts.range.start);
        let indent = match written.rsplit_once('\n') {
            // In line with the comments.
            Some((_, line)) => line[..line.len() - line.trim_start().len()].to_owned(),
            None => format!("{outer}{}", self.unit()),
        };
        let comma = if self.is_plain { "" } else { "," };
        let has_lines = self.text[inside.clone()].contains('\n');
        if has_lines || written.contains("//") {
            let entry = self.entry(step, &indent, None);
            return vec![Splice::insert(
                at,
                format!("{}{entry}{comma}", self.new_line(&indent)),
            )];
        }
        if step.layout == Layout::OneLine || !self.is_in_own_line(parts) {
            let space = if written.is_empty() { "" } else { " " };
            let entry = self.entry(step, &outer, None);
            return vec![Splice::insert(at, format!("{space}{entry}"))];
        }
        let entry = self.entry(step, &indent, None);
        let (begin, end) = (self.new_line(&indent), self.new_line(&outer));
        vec![Splice {
            range: at..inside.end,
            text: format!("{begin}{entry}{comma}{end}"),
        }]
    }

    /// Whether nothing but its own name stands before it in its line.
    fn is_in_own_line(&self, parts: &Parts) -> bool {
        let before = self.line_before(parts.range.start);
        !before.contains(['{', '[', ','])
    }

    /// With its comma, and with its line and the comment at the end of it if nothing else is there.
    fn remove(&self, parts: &Parts, index: usize) -> Vec<Splice> {
        let removed = &parts.entries[index].range;
        let is_last = index + 1 == parts.entries.len();
        let end = parts.comma(index + 1).map_or(removed.end, |at| at + 1);
        let mut splices = Vec::new();
        if is_last && end == removed.end && index > 0 {
            // The one before it becomes the last one, which had no comma.
            let comma = parts.comma(index);
            splices.extend(comma.map(|at| Splice::delete(at..at + 1)));
        }
        let rest = self.rest_of_line(end);
        let before = self.line_before(removed.start);
        let is_in_own_line = before.trim().is_empty() && is_comment_or_blank(rest);
        let range = if is_in_own_line {
            removed.start - before.len()..end + rest.len() + 1
        } else if is_last || rest.trim().is_empty() {
            removed.start - spaces_before(before)..end
        } else {
            removed.start..end + spaces_after(rest)
        };
        splices.push(Splice::delete(range));
        splices
    }

    /// An entry as it is written at `indent`, alike to the one before it.
    fn entry(&self, step: &Step, indent: &str, before: Option<&Entry>) -> String {
        let Some(name) = &step.name else {
            let in_lines = before.is_some_and(|before| self.has_lines(before));
            return match step.json.strip_prefix('{') {
                Some(rest) if in_lines => self.laid_out(&format!("{{\n{rest}"), indent),
                _ => self.laid_out(&step.json, indent),
            };
        };
        let value = self.laid_out(&step.json, indent);
        let column = match before {
            Some(before) if !value.contains('\n') => self.column(before),
            _ => 0,
        };
        let missing = column.saturating_sub(name.chars().count() + 2);
        format!("{name}: {}{value}", " ".repeat(missing))
    }

    /// A new value in the layout of `policy fmt`, with the file's own indentation and line ends.
    fn laid_out(&self, json: &str, indent: &str) -> String {
        let parsed = Text::new(json).parse().ok();
        let laid_out = parsed
            .and_then(|root| format::value(json, &root, self.is_plain, MAX_POLICY))
            // Too long for a policy in any layout, which it is refused for in the end.
            .unwrap_or_else(|| json.to_owned());
        let unit = self.unit();
        let mut lines = laid_out.split('\n');
        let mut out = lines.next().unwrap_or_default().to_owned();
        for line in lines {
            let rest = line.trim_start_matches('\t');
            out.push_str(&self.new_line(indent));
            out.push_str(&unit.repeat(line.len() - rest.len()));
            out.push_str(rest);
        }
        out
    }

    /// In which character of a property its value begins, if it is all in one line.
    fn column(&self, property: &Entry) -> usize {
        if self.has_lines(property) {
            return 0;
        }
        let name = &self.text[property.range.start..property.value.start()];
        name.chars().count()
    }

    fn has_lines(&self, entry: &Entry) -> bool {
        self.text[entry.range.clone()].contains('\n')
    }

    /// What one level is indented by: the first line inside of the policy tells.
    fn unit(&self) -> &'a str {
        let inside = self.text[self.root.start()..].lines().skip(1);
        let first = inside.into_iter().find(|line| !line.trim().is_empty());
        match first.map(|line| &line[..line.len() - line.trim_start().len()]) {
            Some(indent) if !indent.is_empty() => indent,
            _ => "\t",
        }
    }

    fn new_line(&self, indent: &str) -> String {
        let first = self.text.find('\n');
        let is_dos = first.is_some_and(|at| self.text[..at].ends_with('\r'));
        format!("{}{indent}", if is_dos { "\r\n" } else { "\n" })
    }

    fn line_before(&self, at: usize) -> &'a str {
        let before = &self.text[..at];
        &before[before.rfind('\n').map_or(0, |end| end + 1)..]
    }

    fn begins_line(&self, at: usize) -> bool {
        self.line_before(at).trim().is_empty()
    }

    /// The white space that begins the line of a place.
    fn indent(&self, at: usize) -> String {
        let line = self.line_before(at);
        line[..line.len() - line.trim_start().len()].to_owned()
    }

    /// From a place to the end of its line.
    fn rest_of_line(&self, at: usize) -> &'a str {
        let rest = &self.text[at..];
        &rest[..rest.find('\n').unwrap_or(rest.len())]
    }
}

/// Whether the rest of a line has nothing but a comment that ends in it.
fn is_comment_or_blank(line: &str) -> bool {
    let line = line.trim();
    let ends = |rest: &str| rest.find("*/").is_some_and(|at| at + 2 == rest.len());
    // A comment ends at a carriage return, too.
    !line.contains('\r')
        && (line.is_empty() || line.starts_with("//") || line.strip_prefix("/*").is_some_and(ends))
}

fn spaces_before(text: &str) -> usize {
    text.len() - text.trim_end_matches([' ', '\t']).len()
}

fn spaces_after(text: &str) -> usize {
    text.len() - text.trim_start_matches([' ', '\t']).len()
}
