//! `policy fmt`, `policy add-rule`, `policy tag`: changes that keep what people wrote.

use std::path::Path;

use hyper::StatusCode;
use serde::Serialize;
use serde_json::json;

use super::super::{parse, print};
use super::{check_alone, name_file, source::Source, warn};
use crate::{
    Error,
    admin::{
        api::{Ask, PolicyInfo, PolicySetInfo, Signature},
        client,
    },
    args::{AddRule, Fmt, Tag, Where},
    model::{Basis, VersionNumber},
    policy::{
        Report,
        edit::{self, Edited, NotEdited},
    },
    refused::RefusedPolicy,
    replace::replace,
};

/// How often a change is made again because somebody else's came first.
const ATTEMPTS: usize = 5;

/// What the server has before its first policy, as a text to add to.
const NO_POLICY: &str = "{}\n";

/// What the policy in force is called where others have the name of a file.
const IN_FORCE: &str = "policy";

/// What became of a change.
struct Change {
    edited: Edited,
    /// If the changed policy was put into force.
    version: Option<VersionNumber>,
    /// With warnings only; of a text that was not changed there is none.
    report: Option<Report>,
}

/// What `--json` prints of a change.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ChangeInfo<'a> {
    ok: bool,
    changed: bool,
    line: Option<u32>,
    ends_allow_all: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<VersionNumber>,
    #[serde(flatten)]
    report: Option<&'a Report>,
}

pub(super) fn fmt(as_json: bool, asked: &Fmt) -> Result<(), Error> {
    let file = asked.file.as_deref().filter(|file| *file != Path::new("-"));
    let Source { name, text } = Source::read(file.unwrap_or(Path::new("-")))?;
    let formatted = edit::format(&text)
        .map_err(|error| RefusedPolicy::of_errors(&text, &error.into()).in_file(&name))?;
    let changed = formatted != text;
    if asked.check && changed {
        return Err(Error::Setting(format!(
            "{} is not formatted; `policy fmt` does that",
            name.display()
        )));
    }
    let answer = match file {
        Some(file) => {
            if changed {
                replace(file, &formatted)?;
            }
            json!({ "ok": true, "changed": changed })
        }
        None => json!({ "ok": true, "changed": changed, "policy": formatted }),
    };
    print(as_json, &answer, || {
        Ok(match file {
            Some(file) if changed => format!("{} formatted\n", file.display()),
            Some(_) => String::new(),
            None if asked.check => String::new(),
            None => formatted,
        })
    })
}

pub(super) async fn add_rule(state_dir: &Path, as_json: bool, asked: AddRule) -> Result<(), Error> {
    let (rule, words) = (asked.rule(), asked.words());
    let make = |text: &str| edit::add_rule(text, &rule);
    let change = change(state_dir, &asked.place, &words, make).await?;
    let what = match change.edited.changed {
        true => "the rule is added",
        false => "the rule is there already; nothing to change",
    };
    show(as_json, asked.place.file.as_deref(), &change, what)
}

pub(super) async fn tag(state_dir: &Path, as_json: bool, asked: Tag) -> Result<(), Error> {
    type Make = fn(&str, &str, &[String]) -> Result<Edited, NotEdited>;
    let words = asked.words();
    let (make, asked): (Make, _) = match asked {
        Tag::Add(asked) => (edit::add_tag_owners, asked),
        Tag::Remove(asked) if asked.owner.is_empty() => {
            (|text, tag, _| edit::remove_tag(text, tag), asked)
        }
        Tag::Remove(asked) => (edit::remove_tag_owners, asked),
    };
    let tag = &asked.tag;
    let make = |text: &str| make(text, tag, &asked.owner);
    let change = change(state_dir, &asked.place, &words, make).await?;
    let what = match (change.edited.changed, change.edited.line) {
        (true, Some(_)) => format!("{tag} is changed"),
        (true, None) => format!("{tag} is removed"),
        (false, Some(_)) => format!("{tag} is like that already; nothing to change"),
        (false, None) => format!("there is no {tag}; nothing to change"),
    };
    show(as_json, asked.place.file.as_deref(), &change, &what)
}

/// Changes a file, or the policy in force; `words` say what the change is, if its author says nothing else.
async fn change(
    state_dir: &Path,
    place: &Where,
    words: &str,
    make: impl Fn(&str) -> Result<Edited, NotEdited>,
) -> Result<Change, Error> {
    let Some(file) = &place.file else {
        return change_in_force(state_dir, place, words, make).await;
    };
    let Source { text, .. } = Source::read_file(file)?;
    let edited = make(&text).map_err(|why| refused(&why, file, &text))?;
    let report = match edited.changed {
        true => {
            let report = check_alone(&edited.text);
            Some(report.map_err(|error| refused_after(error, file, &edited.text))?)
        }
        false => None,
    };
    if edited.changed {
        replace(file, &edited.text)?;
    }
    Ok(Change {
        edited,
        version: None,
        report,
    })
}

/// What somebody else puts into force between our reading and our writing is read again, never overwritten.
async fn change_in_force(
    state_dir: &Path,
    place: &Where,
    words: &str,
    make: impl Fn(&str) -> Result<Edited, NotEdited>,
) -> Result<Change, Error> {
    let shown = Path::new(IN_FORCE);
    let mut attempts = 0;
    loop {
        attempts += 1;
        let answer = client::ask(state_dir, &Ask::PolicyGet { version: None }).await?;
        let in_force: PolicyInfo = parse(&answer)?;
        let text = in_force.policy.as_deref().unwrap_or(NO_POLICY);
        let edited = make(text).map_err(|why| refused(&why, shown, text))?;
        if !edited.changed {
            return Ok(Change {
                edited,
                version: None,
                report: None,
            });
        }
        let version = in_force.version.map(|info| info.version);
        let set = Ask::PolicySet {
            text: edited.text.clone(),
            signature: sign(place, words),
            based_on: Some(version.map_or(Basis::NoPolicy, Basis::Version)),
        };
        match client::ask(state_dir, &set).await {
            Ok(answer) => {
                let set: PolicySetInfo = parse(&answer)?;
                return Ok(Change {
                    edited,
                    version: Some(set.version),
                    report: Some(set.report),
                });
            }
            Err(Error::Refused { status, .. })
                if status == StatusCode::CONFLICT && attempts < ATTEMPTS => {}
            Err(error) => return Err(refused_after(error, shown, &edited.text)),
        }
    }
}

fn sign(place: &Where, words: &str) -> Signature {
    let signature: Signature = place.signature.clone().into();
    let message = match signature.message.trim() {
        "" => words.to_owned(),
        _ => signature.message,
    };
    Signature {
        message,
        ..signature
    }
}

fn show(as_json: bool, file: Option<&Path>, change: &Change, what: &str) -> Result<(), Error> {
    let edited = &change.edited;
    if let Some(report) = &change.report {
        let shown = file.unwrap_or(Path::new(IN_FORCE));
        warn(as_json, report, shown, &edited.text);
    }
    let answer = json!(ChangeInfo {
        ok: true,
        changed: edited.changed,
        line: edited.line,
        ends_allow_all: edited.ends_allow_all,
        version: change.version,
        report: change.report.as_ref(),
    });
    print(as_json, &answer, || {
        let place = match (file, edited.line) {
            (Some(file), Some(line)) => format!("{}:{line}: ", file.display()),
            (Some(file), None) => format!("{}: ", file.display()),
            (None, _) => String::new(),
        };
        let in_force = match change.version {
            Some(version) => format!("; the policy is in force, as version {version}"),
            None => String::new(),
        };
        let warning = if edited.ends_allow_all {
            "It is the first rule: until now everything was allowed, from now on only what rules allow.\n"
        } else {
            ""
        };
        Ok(format!("{place}{what}{in_force}\n{warning}"))
    })
}

/// What is wrong with the text, or with what would come of it.
fn refused(why: &NotEdited, shown: &Path, text: &str) -> Error {
    let wrong = why.changed.as_deref().unwrap_or(text);
    let error = RefusedPolicy::of_errors(wrong, &why.errors)
        .in_file(shown)
        .into();
    match why.changed {
        Some(_) => refused_after(error, shown, wrong),
        None => error,
    }
}

/// A refusal of the changed text.
fn refused_after(error: Error, shown: &Path, changed: &str) -> Error {
    match name_file(error, shown, changed) {
        Error::Policy(refused) => {
            let head = format!(
                "{} would be refused with this change; nothing is changed",
                shown.display()
            );
            refused.with_head(head).into()
        }
        error => error,
    }
}
