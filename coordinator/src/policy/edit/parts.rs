//! Objects and lists, seen alike: entries between two brackets.

use std::ops::Range;

use jsonc_parser::ast::Value;
use jsonc_parser::common::Ranged as _;

use super::gap::Gap;

/// An object or a list.
#[derive(Debug)]
pub(super) struct Parts<'v, 'a> {
    text: &'a str,
    /// Brackets included.
    pub(super) range: Range<usize>,
    pub(super) entries: Vec<Entry<'v, 'a>>,
}

/// An element of a list, or a property of an object.
#[derive(Debug)]
pub(super) struct Entry<'v, 'a> {
    pub(super) name: Option<Name<'v>>,
    pub(super) value: &'v Value<'a>,
    /// From the name, if it has one.
    pub(super) range: Range<usize>,
}

#[derive(Debug)]
pub(super) struct Name<'v> {
    pub(super) text: &'v str,
    pub(super) range: Range<usize>,
}

pub(super) fn range_of(value: &Value) -> Range<usize> {
    value.start()..value.end()
}

impl<'v, 'a> Parts<'v, 'a> {
    /// None for a value without parts.
    pub(super) fn of(text: &'a str, value: &'v Value<'a>) -> Option<Self> {
        let entries = match value {
            Value::Array(array) => array.elements.iter().map(Entry::element).collect(),
            Value::Object(object) => object
                .properties
                .iter()
                .map(|property| Entry {
                    name: Some(Name {
                        text: property.name.as_str(),
                        range: property.name.start()..property.name.end(),
                    }),
                    value: &property.value,
                    range: property.name.start()..property.value.end(),
                })
                .collect(),
            _ => return None,
        };
        Some(Self {
            text,
            range: range_of(value),
            entries,
        })
    }

    /// The gap before an entry, or after the last one.
    pub(super) fn gap(&self, index: usize) -> Gap<'a> {
        Gap::read(&self.text[self.gap_range(index)])
    }

    pub(super) fn gap_range(&self, index: usize) -> Range<usize> {
        let start = match index.checked_sub(1).and_then(|last| self.entries.get(last)) {
            Some(entry) => entry.range.end,
            None => self.range.start + 1,
        };
        let end = self.entries.get(index).map(|entry| entry.range.start);
        start..end.unwrap_or(self.range.end - 1)
    }

    /// Where in the text the comma before an entry is, or after the last one.
    pub(super) fn comma(&self, index: usize) -> Option<usize> {
        let start = self.gap_range(index).start;
        self.gap(index).comma.map(|at| start + at)
    }

    /// The gap between the name and the value of an entry.
    pub(super) fn inner_gap(&self, entry: &Entry) -> Option<Gap<'a>> {
        let name = entry.name.as_ref()?;
        let range = name.range.end..entry.value.start();
        Some(Gap::read(&self.text[range]))
    }
}

impl<'v, 'a> Entry<'v, 'a> {
    fn element(value: &'v Value<'a>) -> Self {
        Self {
            name: None,
            value,
            range: range_of(value),
        }
    }
}
