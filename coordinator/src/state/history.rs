//! The versions of the policy: which is in force, and which were before it.

use std::{collections::BTreeMap, sync::Arc};

use hyper::StatusCode;
use time::OffsetDateTime;

use crate::{
    Error,
    model::{Basis, PolicyVersion, VersionNumber},
};

/// Versions that are kept; the oldest go first. A version a day is three years.
pub const MAX_VERSIONS: usize = 1_000;
/// Bytes of their texts together: they are held in memory. At the usual few KiB a policy this bounds nothing.
pub const MAX_TEXTS: usize = 32 << 20;
/// Characters of an author's name.
pub const LONGEST_AUTHOR: usize = 200;
/// Characters of a note.
const LONGEST_NOTE: usize = 1_000;

/// A policy that is to be put into force: parsed and compiled by whoever makes one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewPolicy {
    pub text: String,
    pub author: String,
    pub account: String,
    pub note: String,
}

/// What adding a version did.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Added {
    pub(super) number: VersionNumber,
    /// Old versions that had to go.
    pub(super) dropped: Vec<VersionNumber>,
}

/// The versions that are kept.
#[derive(Debug, Default)]
pub struct History {
    versions: BTreeMap<VersionNumber, Arc<PolicyVersion>>,
    last: i64,
}

impl History {
    /// `last` is the highest number ever given.
    pub fn new(versions: Vec<PolicyVersion>, last: i64) -> Self {
        let versions = versions.into_iter();
        Self {
            versions: versions
                .map(|version| (version.number, Arc::new(version)))
                .collect(),
            last,
        }
    }

    /// The version in force; none if there never was a policy.
    pub fn in_force(&self) -> Option<&Arc<PolicyVersion>> {
        self.versions.values().next_back()
    }

    pub fn get(&self, number: VersionNumber) -> Option<&Arc<PolicyVersion>> {
        self.versions.get(&number)
    }

    /// A version that somebody asks for by its number.
    ///
    /// # Errors
    /// There is no such version, or no longer.
    pub fn find(&self, number: VersionNumber) -> Result<&Arc<PolicyVersion>, Error> {
        self.get(number).ok_or_else(|| {
            let is_old = number.0 > 0 && number.0 <= self.last;
            Error::not_found(if is_old {
                format!("version {number} of the policy is no longer kept; `policy log` shows those that are")
            } else {
                format!("there is no version {number} of the policy; `policy log` shows all")
            })
        })
    }

    /// Whether a change was made from what is in force.
    ///
    /// # Errors
    /// Status 409: something else is in force since.
    pub fn check_basis(&self, basis: Basis) -> Result<(), Error> {
        let in_force = self.in_force().map(|version| version.number);
        if in_force.map_or(Basis::NoPolicy, Basis::Version) == basis {
            return Ok(());
        }
        Err(Error::refused(
            StatusCode::CONFLICT,
            "somebody else has changed the policy in the meantime; make the change again, from the version that is in force",
        ))
    }

    /// Newest first.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<PolicyVersion>> {
        self.versions.values().rev()
    }

    /// Adds a version, which is then in force.
    pub(super) fn add(&mut self, new: NewPolicy, now: OffsetDateTime) -> Result<Added, Error> {
        let version = PolicyVersion {
            number: VersionNumber(self.last + 1),
            text: new.text,
            author: one_line(&new.author, "an author's name", LONGEST_AUTHOR)?,
            account: one_line(&new.account, "an account's name", LONGEST_AUTHOR)?,
            note: one_line(&new.note, "a message", LONGEST_NOTE)?,
            created: now,
        };
        let number = version.number;
        self.last = number.0;
        self.versions.insert(number, Arc::new(version));
        Ok(Added {
            number,
            dropped: self.drop_old(),
        })
    }

    /// Never the newest, whatever its size.
    fn drop_old(&mut self) -> Vec<VersionNumber> {
        let mut bytes = 0;
        let mut kept = 0;
        let newest_dropped = self.versions.iter().rev().find(|(_, version)| {
            bytes += version.text.len();
            kept += 1;
            kept > 1 && (kept > MAX_VERSIONS || bytes > MAX_TEXTS)
        });
        let Some((&newest_dropped, _)) = newest_dropped else {
            return Vec::new();
        };
        let kept = self
            .versions
            .split_off(&VersionNumber(newest_dropped.0 + 1));
        let dropped = std::mem::replace(&mut self.versions, kept);
        dropped.into_keys().collect()
    }
}

/// A log has one line per version.
fn one_line(text: &str, what: &str, longest: usize) -> Result<String, Error> {
    let text = text.trim();
    if text.contains(char::is_control) || text.chars().count() > longest {
        return Err(Error::bad_request(format!(
            "{what} is one line of at most {longest} characters"
        )));
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn new(text: &str) -> NewPolicy {
        NewPolicy {
            text: text.to_owned(),
            author: "alice".to_owned(),
            account: "root".to_owned(),
            note: " why ".to_owned(),
        }
    }

    fn add(history: &mut History, text: &str) -> Added {
        history
            .add(new(text), OffsetDateTime::UNIX_EPOCH)
            .expect("a good version")
    }

    #[test]
    fn versions_are_numbered_from_1_and_the_newest_is_in_force() {
        let mut history = History::default();
        assert!(history.in_force().is_none());
        for (at, text) in ["a", "b", "c"].into_iter().enumerate() {
            let added = add(&mut history, text);
            assert_eq!((added.number.0, added.dropped.len()), (at as i64 + 1, 0));
            assert_eq!(history.in_force().unwrap().text, text);
        }
        let numbers: Vec<i64> = history.iter().map(|version| version.number.0).collect();
        assert_eq!(numbers, [3, 2, 1]);
        assert_eq!(history.find(VersionNumber(2)).unwrap().note, "why");
    }

    #[test]
    fn the_oldest_go_when_there_are_too_many() {
        let mut history = History::default();
        for _ in 0..MAX_VERSIONS {
            assert!(add(&mut history, "x").dropped.is_empty());
        }
        for more in 1..3 {
            assert_eq!(add(&mut history, "x").dropped, [VersionNumber(more)]);
        }
        assert_eq!(history.iter().count(), MAX_VERSIONS);
        let gone = history.find(VersionNumber(1)).unwrap_err().to_string();
        assert!(gone.contains("no longer kept"), "{gone}");
        let never = history.find(VersionNumber(9_999)).unwrap_err().to_string();
        assert!(never.contains("there is no version 9999"), "{never}");
    }

    #[test]
    fn the_oldest_go_when_they_are_too_large_together_but_never_the_newest() {
        let mut history = History::default();
        let half = "x".repeat(MAX_TEXTS / 2);
        for _ in 0..2 {
            assert!(add(&mut history, &half).dropped.is_empty());
        }
        assert_eq!(add(&mut history, "y").dropped, [VersionNumber(1)]);
        let all = "x".repeat(MAX_TEXTS + 1);
        let dropped = add(&mut history, &all).dropped;
        assert_eq!(dropped, [VersionNumber(2), VersionNumber(3)]);
        assert_eq!(history.in_force().unwrap().number, VersionNumber(4));
    }

    #[test]
    fn numbers_are_not_given_again_after_a_restart() {
        let mut history = History::new(Vec::new(), 7);
        assert_eq!(add(&mut history, "x").number, VersionNumber(8));
    }

    #[test]
    fn authors_and_messages_are_one_line_each() {
        for (author, note) in [("a\nb", ""), ("", "x\u{1b}[2J"), ("", &*"é".repeat(1_001))] {
            let mut history = History::default();
            let policy = NewPolicy {
                author: author.to_owned(),
                note: note.to_owned(),
                ..new("x")
            };
            let error = history.add(policy, OffsetDateTime::UNIX_EPOCH).unwrap_err();
            assert!(error.to_string().contains("one line"), "{error}");
            assert!(history.in_force().is_none());
        }
    }
}
