//! Changes of a policy's text that keep what people wrote: comments, order, layout.
//!
//! [`format()`] gives a whole file its layout. The others change the lines that they concern and no other byte. Their
//! results are policies: what [`Policy::parse`] refuses is not handed out.

mod change;
mod format;
mod gap;
mod parts;
mod rule;

use super::error::{PolicyError, PolicyErrors};
use super::hujson::Text;
use super::{MAX_POLICY, Policy};
use change::{Layout, Source, Step};
use parts::Parts;
pub use rule::{AclRule, GrantRule, NewRule};

/// A policy's text after a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edited {
    pub text: String,
    /// Whether it differs from what it was made from.
    pub changed: bool,
    /// Line of the rule or tag in question, counted from 1, if there is one.
    pub line: Option<u32>,
    /// The rule is the first one: until then everything was allowed.
    pub ends_allow_all: bool,
}

/// Why a policy's text has not been changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotEdited {
    pub errors: PolicyErrors,
    /// The text that the errors are in, if it is not the one that was to be changed, but what would have come of it.
    pub changed: Option<String>,
}

/// Lays out a policy file, which need not be a good policy.
///
/// # Errors
/// It is not HuJSON, or would be too long.
pub fn format(hujson: &str) -> Result<String, PolicyError> {
    let text = Text::new(hujson);
    let root = text.parse()?;
    format::file(hujson, &root, MAX_POLICY).ok_or_else(|| {
        let message = format!(
            "laid out, the policy would be longer than {MAX_POLICY} bytes; make it smaller or nest it less deeply"
        );
        PolicyError::invalid(text.start(), message)
    })
}

/// Adds a rule behind the others of its section, unless the section has the very same one.
///
/// # Errors
/// The text is no good policy before the change, or would be none after it.
pub fn add_rule(hujson: &str, rule: &NewRule) -> Result<Edited, NotEdited> {
    let old = Policy::parse(hujson)?;
    let section = rule.section();
    let source = Source::parse(hujson)?;
    let is_there = |list: &Parts| list.entries.iter().position(|entry| source.is(entry, rule));
    if let Some((list, index)) = source
        .section(section)
        .and_then(|list| is_there(&list).map(|index| (list, index)))
    {
        return Ok(Edited::unchanged(
            hujson,
            Some(source.line(&list.entries[index])),
        ));
    }
    let text = source.add_to_section(section, &Step::element(rule.json(), Layout::Lines))?;
    let last = |source: &Source| {
        let list = source.section(section)?;
        Some(source.line(list.entries.last()?))
    };
    let edited = Edited::checked(text, last)?;
    Ok(Edited {
        ends_allow_all: old.document.rules.is_none(),
        ..edited
    })
}

/// Lets owners assign a tag, and makes the tag known; without owners that is all.
///
/// # Errors
/// As for [`add_rule`].
pub fn add_tag_owners(hujson: &str, tag: &str, owners: &[String]) -> Result<Edited, NotEdited> {
    Policy::parse(hujson)?;
    let mut text = hujson.to_owned();
    if Source::parse(&text)?.tag(tag).is_none() {
        let list = rule::strings(owners);
        let step = Step::property(tag, list, Layout::OneLine);
        text = Source::parse(&text)?.add_to_section(TAG_OWNERS, &step)?;
    }
    for owner in owners {
        let source = Source::parse(&text).map_err(|error| NotEdited::after(&text, error))?;
        if !source.owners(tag).contains(&owner.as_str()) {
            text = source.add_owner(tag, owner);
        }
    }
    finish_tag(hujson, text, tag)
}

/// Takes owners from a tag.
///
/// # Errors
/// As for [`add_rule`].
pub fn remove_tag_owners(hujson: &str, tag: &str, owners: &[String]) -> Result<Edited, NotEdited> {
    Policy::parse(hujson)?;
    let mut text = hujson.to_owned();
    for owner in owners {
        while let Some(shorter) = Source::parse(&text)?.without_owner(tag, owner) {
            text = shorter;
        }
    }
    finish_tag(hujson, text, tag)
}

/// Takes a tag out of the policy's tags.
///
/// # Errors
/// As for [`add_rule`]; a tag that the policy still uses is one of them.
pub fn remove_tag(hujson: &str, tag: &str) -> Result<Edited, NotEdited> {
    Policy::parse(hujson)?;
    match Source::parse(hujson)?.without_tag(tag) {
        Some(text) => finish_tag(hujson, text, tag),
        None => Ok(Edited::unchanged(hujson, None)),
    }
}

const TAG_OWNERS: &str = "tagOwners";

fn finish_tag(before: &str, text: String, tag: &str) -> Result<Edited, NotEdited> {
    let line = |source: &Source| {
        let (table, index) = source.tag(tag)?;
        Some(source.line(&table.entries[index]))
    };
    if text == before {
        let line = line(&Source::parse(before)?);
        return Ok(Edited::unchanged(before, line));
    }
    Edited::checked(text, line)
}

impl Edited {
    fn unchanged(text: &str, line: Option<u32>) -> Self {
        Self {
            text: text.to_owned(),
            changed: false,
            line,
            ends_allow_all: false,
        }
    }

    fn checked(text: String, line: impl Fn(&Source) -> Option<u32>) -> Result<Self, NotEdited> {
        Policy::parse(&text).map_err(|errors| NotEdited::after(&text, errors))?;
        let line = line(&Source::parse(&text)?);
        Ok(Self {
            text,
            changed: true,
            line,
            ends_allow_all: false,
        })
    }
}

impl NotEdited {
    fn after(text: &str, errors: impl Into<PolicyErrors>) -> Self {
        Self {
            errors: errors.into(),
            changed: Some(text.to_owned()),
        }
    }
}

impl From<PolicyErrors> for NotEdited {
    fn from(errors: PolicyErrors) -> Self {
        Self {
            errors,
            changed: None,
        }
    }
}

impl From<PolicyError> for NotEdited {
    fn from(error: PolicyError) -> Self {
        PolicyErrors::from(error).into()
    }
}
