//! Entries of `tests` and `sshTests`, as written: whatever is wrong with them makes them fail when they are run.

use jsonc_parser::ast::Value;
use jsonc_parser::common::Ranged;

use super::error::{At, PolicyError};
use super::hujson::{Fields, Text};

/// The last of the fields that are known, and the one that is refused.
const POSTURE: &str = "srcPostureAttrs";

/// One entry of `tests`.
#[derive(Clone, Debug)]
pub(crate) struct Test {
    pub(crate) source: At<String>,
    pub(crate) protocol: Option<At<String>>,
    pub(crate) accept: Vec<At<String>>,
    pub(crate) deny: Vec<At<String>>,
}

impl Test {
    pub(crate) fn read<'a>(text: &Text<'a>, value: &Value<'a>) -> Result<Self, PolicyError> {
        let known = ["src", "proto", "accept", "deny", POSTURE];
        let fields = test_fields(text, value, "a test", &known)?;
        Ok(Self {
            source: test_source(text, &fields)?,
            protocol: match fields.get("proto") {
                Some(protocol) => Some(text.string(protocol, "proto")?.map(str::to_owned)),
                None => None,
            },
            accept: owned_strings(text, &fields, "accept"),
            deny: owned_strings(text, &fields, "deny"),
        })
    }
}

/// One entry of `sshTests`.
#[derive(Clone, Debug)]
pub(crate) struct SshTest {
    pub(crate) source: At<String>,
    pub(crate) destinations: Vec<At<String>>,
    /// Login names.
    pub(crate) accept: Vec<At<String>>,
    pub(crate) deny: Vec<At<String>>,
    pub(crate) check: Vec<At<String>>,
}

impl SshTest {
    pub(crate) fn read<'a>(text: &Text<'a>, value: &Value<'a>) -> Result<Self, PolicyError> {
        let known = ["src", "dst", "accept", "deny", "check", POSTURE];
        let fields = test_fields(text, value, "an ssh test", &known)?;
        Ok(Self {
            source: test_source(text, &fields)?,
            destinations: owned_strings(text, &fields, "dst"),
            accept: owned_strings(text, &fields, "accept"),
            deny: owned_strings(text, &fields, "deny"),
            check: owned_strings(text, &fields, "check"),
        })
    }
}

fn test_fields<'v, 'a>(
    text: &Text<'a>,
    value: &'v Value<'a>,
    what: &str,
    known: &[&'static str],
) -> Result<Fields<'v, 'a>, PolicyError> {
    let fields = text.fields_of(value, what, known, &known[..known.len() - 1])?;
    if let Some(attributes) = fields.get(POSTURE) {
        let place = text.at(attributes.range());
        text.report(PolicyError::unsupported(
            place,
            POSTURE,
            "leave it out: no rule asks for postures here",
        ));
    }
    Ok(fields)
}

/// Empty if there is none.
fn test_source(text: &Text, fields: &Fields) -> Result<At<String>, PolicyError> {
    match fields.get("src") {
        Some(source) => Ok(text.string(source, "src")?.map(str::to_owned)),
        None => Ok(At {
            place: fields.place,
            value: String::new(),
        }),
    }
}

fn owned_strings(text: &Text, fields: &Fields, name: &str) -> Vec<At<String>> {
    let list = text.strings_of(fields, name);
    let owned = list.into_iter().map(|string| string.map(str::to_owned));
    owned.collect()
}
