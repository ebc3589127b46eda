//! Errors and warnings of a policy as programs read them (`--json`, the administration socket), and as people do.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use super::error::{PolicyError, PolicyErrors};
use super::excerpt::Lines;
use super::warnings::PolicyWarnings;
use crate::text::harmless;

/// What there is to say about a policy file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Report {
    /// Why it is refused, in the order of the file; empty: it is not.
    pub errors: Vec<Diagnostic>,
    /// Errors that are not listed.
    #[serde(skip_serializing_if = "is_zero")]
    pub more_errors: usize,
    /// What is probably not meant, in the order of the file.
    pub warnings: Vec<Diagnostic>,
    /// Warnings that are not listed.
    #[serde(skip_serializing_if = "is_zero")]
    pub more_warnings: usize,
}

/// One error or warning.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Diagnostic {
    /// Line, counted from 1.
    pub line: u32,
    /// Column in characters, counted from 1.
    pub column: u32,
    /// The column after the last that is meant, if it is more than a place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end_column: Option<u32>,
    /// What sort of error or warning it is, in a word.
    pub kind: String,
    /// What is wrong, and what to do about it.
    pub message: String,
    /// What was probably meant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suggestion: Option<String>,
    /// The line of the file. Longer ones than 500 characters are cut around the place, with `…` at the cuts.
    pub source: String,
}

fn is_zero(number: &usize) -> bool {
    *number == 0
}

impl Report {
    /// What is wrong with a text.
    pub fn of_errors(text: &str, errors: &PolicyErrors) -> Self {
        let lines = Lines::new(text);
        Self {
            errors: errors.iter().map(|error| of_error(&lines, error)).collect(),
            more_errors: errors.more(),
            ..Self::default()
        }
    }

    /// The same with warnings.
    #[must_use]
    pub fn with_warnings(mut self, text: &str, warnings: &PolicyWarnings) -> Self {
        let lines = Lines::new(text);
        self.warnings = warnings
            .iter()
            .map(|warning| Diagnostic {
                kind: warning.kind.name().to_owned(),
                message: warning.message.clone(),
                suggestion: None,
                ..at(&lines, warning.line, warning.column)
            })
            .collect();
        self.more_warnings = warnings.more();
        self
    }

    /// With the warnings as errors, too.
    #[must_use]
    pub fn strict(mut self) -> Self {
        self.errors.append(&mut self.warnings);
        self.errors.sort_by_key(|error| (error.line, error.column));
        self.more_errors += std::mem::take(&mut self.more_warnings);
        self
    }

    /// Each with its line and what is wrong there underlined, under the name of the file. Nothing in it steers a terminal.
    pub fn render(&self, file: &str, text: &str) -> String {
        let lines = Lines::new(text);
        let mut out = String::new();
        for (sort, list, more) in [
            ("error", &self.errors, self.more_errors),
            ("warning", &self.warnings, self.more_warnings),
        ] {
            for diagnostic in list {
                diagnostic.render(file, &lines, sort, &mut out);
            }
            if more > 0 {
                let _ = writeln!(out, "and {}", count(more, &format!("more {sort}")));
            }
        }
        out
    }

    /// `2 errors and 1 warning`.
    pub fn summary(&self) -> String {
        let errors = self.errors.len() + self.more_errors;
        let warnings = self.warnings.len() + self.more_warnings;
        match (errors, warnings) {
            (_, 0) => count(errors, "error"),
            (0, _) => count(warnings, "warning"),
            _ => format!(
                "{} and {}",
                count(errors, "error"),
                count(warnings, "warning")
            ),
        }
    }
}

impl Diagnostic {
    fn render(&self, file: &str, lines: &Lines, sort: &str, out: &mut String) {
        let (line, column) = (self.line, self.column);
        let message: String = self.message.chars().map(harmless).collect();
        let excerpt = lines.excerpt(line, column, self.end_column);
        let (before, underlined) = (excerpt.before, excerpt.underlined);
        let suggestion = match &self.suggestion {
            Some(suggestion) => format!(" did you mean {suggestion:?}?"),
            None => String::new(),
        };
        let number = format!("{line:5}");
        let _ = write!(
            out,
            "{file}:{line}:{column}: {sort}: {message}\n{number} | {}\n{:number_width$} | {:before$}{:^<underlined$}{suggestion}\n",
            excerpt.line,
            "",
            "",
            "",
            number_width = number.len(),
        );
    }
}

fn of_error(lines: &Lines, error: &PolicyError) -> Diagnostic {
    Diagnostic {
        kind: error.kind.name().to_owned(),
        message: error.message.clone(),
        suggestion: error.suggestion.clone(),
        ..at(lines, error.line, error.column)
    }
}

/// A place, nothing said about it yet.
fn at(lines: &Lines, line: u32, column: u32) -> Diagnostic {
    Diagnostic {
        line,
        column,
        end_column: lines.end_of_token(line, column),
        kind: String::new(),
        message: String::new(),
        suggestion: None,
        source: lines.source(line, column),
    }
}

fn count(number: usize, of: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {of}{plural}")
}
