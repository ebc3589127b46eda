//! Why a policy is refused, and where in the file.

use std::borrow::Cow;
use std::fmt;

/// Errors of one policy that are kept; of further ones only the number is.
pub const MAX_ERRORS: usize = 100;

/// Bytes of a message, which quotes what people wrote: what is longer loses its middle.
const MAX_MESSAGE: usize = 600;

/// A place in the policy file; both count from 1, columns in characters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Place {
    pub(crate) line: u32,
    pub(crate) column: u32,
}

/// A value and where it stands.
#[derive(Clone, Copy, Debug)]
pub(crate) struct At<T> {
    pub(crate) place: Place,
    pub(crate) value: T,
}

impl<T> At<T> {
    pub(crate) fn map<U>(self, to: impl FnOnce(T) -> U) -> At<U> {
        At {
            place: self.place,
            value: to(self.value),
        }
    }
}

/// What sort of refusal it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PolicyErrorKind {
    /// The text is not HuJSON.
    Syntax,
    /// The text is HuJSON, but not a policy.
    Invalid,
    /// A policy, but it uses something that lowroad cannot enforce yet.
    Unsupported,
    /// A policy whose own `tests` fail.
    Test,
}

impl PolicyErrorKind {
    /// One word, as JSON names it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Syntax => "syntax",
            Self::Invalid => "invalid",
            Self::Unsupported => "unsupported",
            Self::Test => "test",
        }
    }
}

/// What to do about a posture that a rule asks for.
pub(crate) const WITHOUT_POSTURE: &str = "without it the rule would hold for every device of its sources: take the rule out, or let \"src\" name only devices that need no posture";

/// One thing that is wrong with a policy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("policy.hujson:{line}:{column}: {message}{}", DidYouMean(.suggestion.as_deref()))]
pub struct PolicyError {
    /// Line, counted from 1.
    pub line: u32,
    /// Column in characters, counted from 1.
    pub column: u32,
    /// What sort of refusal it is.
    pub kind: PolicyErrorKind,
    /// What is wrong, and what to do about it: at most some hundred bytes, in one line.
    pub message: String,
    /// What was probably meant: a name that is known.
    pub suggestion: Option<String>,
    /// The name that is not defined, until somebody looks for one that is like it.
    pub(super) unknown: Option<String>,
}

impl PolicyError {
    fn new(place: Place, kind: PolicyErrorKind, message: String) -> Self {
        Self {
            line: place.line,
            column: place.column,
            kind,
            message: shortened(message),
            suggestion: None,
            unknown: None,
        }
    }

    pub(crate) fn syntax(place: Place, message: impl Into<String>) -> Self {
        Self::new(place, PolicyErrorKind::Syntax, message.into())
    }

    pub(crate) fn invalid(place: Place, message: impl Into<String>) -> Self {
        Self::new(place, PolicyErrorKind::Invalid, message.into())
    }

    /// `instead` is what to do about it. To take out what limits a rule would open more than was meant.
    pub(crate) fn unsupported(place: Place, what: impl fmt::Display, instead: &str) -> Self {
        let message = format!("{what}: not supported yet; {instead}");
        Self::new(place, PolicyErrorKind::Unsupported, message)
    }

    pub(crate) fn test(place: Place, message: impl Into<String>) -> Self {
        Self::new(place, PolicyErrorKind::Test, message.into())
    }

    /// A name that nothing defines. Which of the defined ones is like it is found out later, for the errors that are kept:
    /// a file can hold as many wrong names as good ones.
    pub(crate) fn unknown(name: At<&str>, message: impl Into<String>) -> Self {
        Self {
            unknown: Some(name.value.to_owned()),
            ..Self::invalid(name.place, message)
        }
    }

    /// With what was probably meant.
    pub(crate) fn suggesting(self, suggestion: Option<String>) -> Self {
        Self { suggestion, ..self }
    }

    /// The same, as what is wrong with one of the policy's `tests`.
    pub(crate) fn in_test(self) -> Self {
        let kind = PolicyErrorKind::Test;
        Self { kind, ..self }
    }

    pub(crate) fn place(&self) -> Place {
        Place {
            line: self.line,
            column: self.column,
        }
    }
}

/// All that is wrong with a policy, in the order of the file: at least one error, at most the first [`MAX_ERRORS`] that were found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyErrors {
    list: Vec<PolicyError>,
    more: usize,
}

impl PolicyErrors {
    /// Of those that were kept, the one that stands first in the file.
    pub fn first(&self) -> &PolicyError {
        self.list.first().expect("there is at least one error")
    }

    /// The errors that were kept.
    pub fn iter(&self) -> std::slice::Iter<'_, PolicyError> {
        self.list.iter()
    }

    /// How many there are besides those that were kept.
    pub fn more(&self) -> usize {
        self.more
    }
}

impl<'a> IntoIterator for &'a PolicyErrors {
    type Item = &'a PolicyError;
    type IntoIter = std::slice::Iter<'a, PolicyError>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl From<PolicyError> for PolicyErrors {
    fn from(error: PolicyError) -> Self {
        Self {
            list: vec![error],
            more: 0,
        }
    }
}

impl std::error::Error for PolicyErrors {}

/// One line each.
impl fmt::Display for PolicyErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, error) in self.list.iter().enumerate() {
            let separator = if at == 0 { "" } else { "\n" };
            write!(f, "{separator}{error}")?;
        }
        match self.more {
            0 => Ok(()),
            1 => write!(f, "\nand 1 more error"),
            more => write!(f, "\nand {more} more errors"),
        }
    }
}

/// Gathers errors while reading goes on.
#[derive(Debug, Default)]
pub(crate) struct Errors {
    list: Vec<PolicyError>,
    more: usize,
}

impl Errors {
    pub(crate) fn push(&mut self, error: PolicyError) {
        if self.list.len() < MAX_ERRORS {
            self.list.push(error);
        } else {
            self.more += 1;
        }
    }

    /// Whether more errors would be counted only.
    pub(crate) fn is_full(&self) -> bool {
        self.list.len() >= MAX_ERRORS
    }

    /// So many more, which there is no room for.
    pub(crate) fn count(&mut self, more: usize) {
        self.more += more;
    }

    pub(crate) fn extend(&mut self, errors: impl IntoIterator<Item = PolicyError>) {
        errors.into_iter().for_each(|error| self.push(error));
    }

    /// The value, or its error kept for later.
    pub(crate) fn keep<T>(&mut self, result: Result<T, PolicyError>) -> Option<T> {
        result.map_err(|error| self.push(error)).ok()
    }

    /// The errors, if there were any; `nearest` looks for a known name like one that isn't.
    pub(crate) fn finish(
        mut self,
        nearest: impl Fn(&str) -> Option<String>,
    ) -> Result<(), PolicyErrors> {
        if self.list.is_empty() {
            return Ok(());
        }
        for error in &mut self.list {
            if let Some(unknown) = error.unknown.take() {
                error.suggestion = nearest(&unknown);
            }
        }
        self.list.sort_by_key(PolicyError::place);
        Err(PolicyErrors {
            list: self.list,
            more: self.more,
        })
    }
}

/// The end of a message that has a suggestion.
struct DidYouMean<'a>(Option<&'a str>);

impl fmt::Display for DidYouMean<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(suggestion) => write!(f, " (did you mean {suggestion:?}?)"),
            None => Ok(()),
        }
    }
}

/// A text for a message that may be made a thousand times: the beginning, if it is long.
pub(crate) fn beginning(text: &str) -> Cow<'_, str> {
    const LONGEST: usize = 100;
    if text.len() <= LONGEST {
        return text.into();
    }
    format!("{}…", &text[..text.floor_char_boundary(LONGEST)]).into()
}

/// A long message without its middle: what it quotes stands there, and the advice at its end.
pub(super) fn shortened(message: String) -> String {
    if message.len() <= MAX_MESSAGE {
        return message;
    }
    let head = message.floor_char_boundary(MAX_MESSAGE / 2);
    let tail = message.ceil_char_boundary(message.len() - MAX_MESSAGE / 2);
    format!("{}…{}", &message[..head], &message[tail..])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(line: u32) -> PolicyError {
        PolicyError::invalid(Place { line, column: 1 }, "wrong")
    }

    #[test]
    fn errors_come_in_the_order_of_the_file_and_not_more_than_people_read() {
        let mut errors = Errors::default();
        for line in (1..=103).rev() {
            errors.push(at(line));
        }
        let errors = errors.finish(|_| None).unwrap_err();
        assert_eq!((errors.iter().len(), errors.more()), (100, 3));
        assert_eq!(errors.first().line, 4);
        assert!(errors.iter().is_sorted_by_key(|error| error.line));
        assert!(
            errors
                .to_string()
                .ends_with(":103:1: wrong\nand 3 more errors")
        );
        assert!(Errors::default().finish(|_| None).is_ok());
    }

    #[test]
    fn a_message_that_quotes_a_long_text_keeps_its_beginning_and_its_advice() {
        let message = format!("no {}; correct it", "é".repeat(100_000));
        let error = PolicyError::invalid(Place { line: 1, column: 1 }, message);
        assert!(error.message.len() < MAX_MESSAGE + 10);
        assert!(error.message.starts_with("no é") && error.message.ends_with("é; correct it"));
    }
}
