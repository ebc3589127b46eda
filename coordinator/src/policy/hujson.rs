//! HuJSON (JSON with comments and trailing commas) as values that know where they stand.

mod strict;

use std::cell::RefCell;

use jsonc_parser::ast::{ObjectProp, Value};
use jsonc_parser::common::{Range, Ranged};
use jsonc_parser::{CollectOptions, CommentCollectionStrategy, ParseOptions};

use super::error::{At, Errors, Place, PolicyError, PolicyErrors, beginning};
use super::origin::Origin;
use super::suggest::nearest;
pub(crate) use strict::{comment_length, decode};

/// Characters are counted once for each block of so many bytes, so that a place costs the same however long its line is.
const BLOCK: usize = 256;

/// The text with its line starts, to say where a value stands, and what was found to be wrong so far.
#[derive(Debug)]
pub(crate) struct Text<'a> {
    text: &'a str,
    line_starts: Vec<usize>,
    /// How many characters begin before each block.
    characters: Vec<u32>,
    errors: RefCell<Errors>,
}

/// The properties of an object, with names that differ in case only taken as the same (as Go's JSON does).
#[derive(Debug)]
pub(crate) struct Fields<'v, 'a> {
    pub(crate) place: Place,
    properties: Vec<(&'static str, &'v ObjectProp<'a>)>,
}

impl<'v, 'a> Fields<'v, 'a> {
    /// The value of a field, unless it is absent or null.
    pub(crate) fn get(&self, name: &str) -> Option<&'v Value<'a>> {
        self.written(name)
            .filter(|value| value.as_null_keyword().is_none())
    }

    /// The value of a field, null included: for those whose absence means more than emptiness.
    pub(crate) fn written(&self, name: &str) -> Option<&'v Value<'a>> {
        self.properties
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, property)| &property.value)
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = (&'static str, &'v ObjectProp<'a>)> + '_ {
        self.properties.iter().copied()
    }
}

impl<'a> Text<'a> {
    pub(crate) fn new(text: &'a str) -> Self {
        let breaks = text.match_indices('\n').map(|(at, _)| at + 1);
        Self {
            text,
            line_starts: std::iter::once(0).chain(breaks).collect(),
            characters: text
                .as_bytes()
                .chunks(BLOCK)
                .scan(0, |before, block| {
                    let here = *before;
                    *before += beginnings(block);
                    Some(here)
                })
                .collect(),
            errors: RefCell::default(),
        }
    }

    /// Takes note of an error. Reading goes on, to find the others; what it makes is thrown away in the end.
    pub(crate) fn report(&self, error: PolicyError) {
        self.errors.borrow_mut().push(error);
    }

    /// The value, or its error reported.
    pub(crate) fn keep<T>(&self, result: Result<T, PolicyError>) -> Option<T> {
        self.errors.borrow_mut().keep(result)
    }

    /// All that was reported; `nearest` looks for a known name like one that isn't.
    pub(crate) fn finish(
        self,
        nearest: impl Fn(&str) -> Option<String>,
    ) -> Result<(), PolicyErrors> {
        self.errors.into_inner().finish(nearest)
    }

    /// Parses the whole text into one value.
    pub(crate) fn parse(&self) -> Result<Value<'a>, PolicyError> {
        if let Err(why) = super::check_length(self.text) {
            let message = format!("{why}; make it smaller");
            return Err(PolicyError::syntax(self.start(), message));
        }
        let collect = CollectOptions {
            comments: CommentCollectionStrategy::Off,
            tokens: false,
        };
        let options = ParseOptions {
            allow_comments: true,
            allow_trailing_commas: true,
            allow_loose_object_property_names: false,
            allow_missing_commas: false,
            allow_single_quoted_strings: false,
            allow_hexadecimal_numbers: false,
            allow_unary_plus_numbers: false,
            allow_bare_decimal_point_numbers: false,
            allow_non_finite_numbers: false,
            allow_extended_string_escapes: false,
        };
        let parsed = jsonc_parser::parse_to_ast(self.text, &collect, &options);
        let refused_at = parsed.as_ref().err().map(|error| error.range().start);
        if let Some((at, message)) = strict::first_liberty(self.text)
            && refused_at.is_none_or(|refused| at <= refused)
        {
            return Err(PolicyError::syntax(self.place(at), message));
        }
        let parsed = parsed.map_err(|error| self.syntax_error(&error))?;
        parsed.value.ok_or_else(|| {
            let message = "the policy is empty; write at least {} (which allows everything inside the tailnet)";
            PolicyError::syntax(self.start(), message)
        })
    }

    fn syntax_error(&self, error: &jsonc_parser::errors::ParseError) -> PolicyError {
        let message = format!("{}; correct the HuJSON here", error.kind());
        PolicyError::syntax(self.place(error.range().start), message)
    }

    pub(crate) fn start(&self) -> Place {
        Place { line: 1, column: 1 }
    }

    fn place(&self, offset: usize) -> Place {
        let line = self.line_starts.partition_point(|&start| start <= offset);
        let start = self.line_starts[line.saturating_sub(1)];
        Place {
            line: u32::try_from(line).unwrap_or(u32::MAX),
            column: self.characters_before(offset) - self.characters_before(start) + 1,
        }
    }

    fn characters_before(&self, offset: usize) -> u32 {
        let offset = offset.min(self.text.len());
        let block = (offset / BLOCK).min(self.characters.len().saturating_sub(1));
        let counted = self.characters.get(block).copied().unwrap_or_default();
        counted + beginnings(&self.text.as_bytes()[block * BLOCK..offset])
    }

    pub(crate) fn at(&self, range: Range) -> Place {
        self.place(range.start)
    }

    pub(crate) fn origin(&self, range: Range) -> Origin {
        Origin {
            place: self.place(range.start),
            last_line: self.place(range.end).line,
            start: range.start,
            end: range.end,
        }
    }

    pub(crate) fn invalid(&self, value: &impl Ranged, message: impl Into<String>) -> PolicyError {
        PolicyError::invalid(self.at(value.range()), message)
    }

    /// An object with only the fields in `known`. Others are reported, with those in `shown` as the ones there may be.
    pub(crate) fn fields_of<'v>(
        &self,
        value: &'v Value<'a>,
        what: &str,
        known: &[&'static str],
        shown: &[&'static str],
    ) -> Result<Fields<'v, 'a>, PolicyError> {
        let Some(object) = value.as_object() else {
            return Err(self.invalid(value, format!("{what} must be an object: {{…}}")));
        };
        let mut properties: Vec<(&'static str, &ObjectProp<'a>)> = Vec::new();
        for property in &object.properties {
            let written = property.name.as_str();
            let Some(name) = known.iter().find(|name| name.eq_ignore_ascii_case(written)) else {
                let message = format!(
                    "{what} has no field {written:?}; it may have {}",
                    shown.join(", ")
                );
                let suggestion = nearest(written, shown.iter().copied());
                self.report(self.invalid(property, message).suggesting(suggestion));
                continue;
            };
            if properties.iter().any(|(earlier, _)| earlier == name) {
                let message = format!("{written:?} stands twice in {what}; merge the two");
                self.report(self.invalid(property, message));
                continue;
            }
            properties.push((name, property));
        }
        Ok(Fields {
            place: self.at(object.range),
            properties,
        })
    }

    /// An object used as a table: names that the user chose, each at most once. Repeated ones are reported.
    pub(crate) fn table<'v>(
        &self,
        value: &'v Value<'a>,
        what: &str,
    ) -> Result<Vec<(At<&'v str>, &'v Value<'a>)>, PolicyError> {
        let Some(object) = value.as_object() else {
            return Err(self.invalid(value, format!("{what} must be an object: {{…}}")));
        };
        let mut seen = std::collections::BTreeSet::new();
        let mut entries = Vec::with_capacity(object.properties.len());
        for property in &object.properties {
            let name = property.name.as_str();
            if !seen.insert(name) {
                let message = format!("{name:?} stands twice in {what}; merge the two");
                self.report(self.invalid(property, message));
                continue;
            }
            let place = self.at(property.range);
            entries.push((At { place, value: name }, &property.value));
        }
        Ok(entries)
    }

    pub(crate) fn list<'v>(
        &self,
        value: &'v Value<'a>,
        what: &str,
    ) -> Result<&'v [Value<'a>], PolicyError> {
        match value {
            Value::Array(array) => Ok(&array.elements),
            Value::NullKeyword(_) => Ok(&[]),
            _ => Err(self.invalid(value, format!("{what} must be a list: […]"))),
        }
    }

    pub(crate) fn flag(&self, value: &Value, what: &str) -> Result<bool, PolicyError> {
        match value {
            Value::BooleanLit(flag) => Ok(flag.value),
            _ => Err(self.invalid(value, format!("{what} must be true or false"))),
        }
    }

    pub(crate) fn string<'v>(
        &self,
        value: &'v Value<'a>,
        what: &str,
    ) -> Result<At<&'v str>, PolicyError> {
        match value {
            Value::StringLit(string) => Ok(At {
                place: self.at(string.range),
                value: &string.value,
            }),
            _ => Err(self.invalid(value, format!("{what} must be a string in double quotes"))),
        }
    }

    /// The strings of a field; none if it is absent. What is wrong with it is reported.
    pub(crate) fn strings_of<'v>(&self, fields: &Fields<'v, 'a>, name: &str) -> Vec<At<&'v str>> {
        let list = fields.get(name).map(|value| self.strings(value, name));
        list.and_then(|list| self.keep(list)).unwrap_or_default()
    }

    /// A list of strings. Entries that are none are reported.
    pub(crate) fn strings<'v>(
        &self,
        value: &'v Value<'a>,
        what: &str,
    ) -> Result<Vec<At<&'v str>>, PolicyError> {
        let what_each = format!("each entry of {}", beginning(what));
        let elements = self.list(value, what)?.iter();
        Ok(elements
            .filter_map(|element| self.keep(self.string(element, &what_each)))
            .collect())
    }
}

/// How many characters begin in these bytes of UTF-8.
fn beginnings(bytes: &[u8]) -> u32 {
    let count = bytes.iter().filter(|byte| **byte & 0xc0 != 0x80).count();
    u32::try_from(count).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_counted_in_characters_however_long_its_line_is() {
        let line = "{\"é€😀\": 1, ".repeat(200);
        let text = format!("// ü\n{line}\n{line}x");
        let texts = Text::new(&text);
        for (offset, _) in text.char_indices() {
            let before = &text[..offset];
            let start = before.rfind('\n').map_or(0, |at| at + 1);
            let place = texts.place(offset);
            assert_eq!(place.line as usize, before.matches('\n').count() + 1);
            assert_eq!(
                place.column as usize,
                text[start..offset].chars().count() + 1
            );
        }
        assert_eq!(Text::new("").place(0), Place { line: 1, column: 1 });
    }
}
