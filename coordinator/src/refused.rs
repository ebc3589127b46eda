//! A policy that is refused, with what people need to correct it.

use std::{fmt, path::Path};

use serde_json::{Value, json};

use crate::{
    Error,
    policy::{self, PolicyErrors, Report},
    text::harmless,
};

/// What a policy is called whose file nobody told.
const UNNAMED: &str = "policy.hujson";

/// A policy's text and what is wrong with it. Shown, it is many lines: each error with its place underlined.
#[derive(Debug, Clone)]
pub struct RefusedPolicy {
    /// The name of the file.
    file: String,
    /// What is there to say before the errors, instead of how many there are.
    head: Option<String>,
    text: String,
    report: Report,
}

impl RefusedPolicy {
    pub fn new(text: &str, report: Report) -> Self {
        Self {
            file: UNNAMED.to_owned(),
            head: None,
            text: text.to_owned(),
            report,
        }
    }

    pub fn of_errors(text: &str, errors: &PolicyErrors) -> Self {
        Self::new(text, Report::of_errors(text, errors))
    }

    /// The text of a file that should be a policy.
    ///
    /// # Errors
    /// It is no text, at the place that the error shows.
    pub fn decode(bytes: Vec<u8>, file: &Path) -> Result<String, Error> {
        policy::decode(bytes)
            .map_err(|(text, errors)| Self::of_errors(&text, &errors).in_file(file).into())
    }

    /// The same under the name of its file.
    pub fn in_file(mut self, file: &Path) -> Self {
        self.file = file.display().to_string();
        self
    }

    /// The same with its text, for one that only the report came of.
    pub fn with_text(mut self, text: &str) -> Self {
        self.text = text.to_owned();
        self
    }

    /// The same under another head: what it is, and what to do.
    pub fn with_head(mut self, head: impl Into<String>) -> Self {
        self.head = Some(head.into());
        self
    }

    pub fn report(&self) -> &Report {
        &self.report
    }

    /// One line.
    pub fn summary(&self) -> String {
        let summary = self.report.summary();
        let head = match &self.head {
            Some(head) => format!("{head}: {summary}"),
            None => format!("{} is refused: {summary}", self.file),
        };
        head.chars().map(harmless).collect()
    }

    /// What `--json` prints.
    pub fn json(&self) -> Value {
        let mut json = json!(self.report);
        json["ok"] = false.into();
        json["error"] = self.summary().into();
        json
    }
}

impl fmt::Display for RefusedPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rendered = self.report.render(&self.file, &self.text);
        write!(f, "{}\n{}", self.summary(), rendered.trim_end())
    }
}
