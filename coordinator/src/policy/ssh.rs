//! `ssh`: who may log in where, as whom, on the SSH servers that stock clients bring.

mod compile;
mod duration;
mod explain;
mod follow;
mod judge;

use jsonc_parser::ast::Value;
use jsonc_parser::common::Ranged;

use super::alias::Alias;
use super::error::{At, PolicyError, WITHOUT_POSTURE};
use super::hujson::{Fields, Text};
use super::origin::Origin;
use super::syntax::Names;

pub(crate) use compile::SshAccess;
pub(crate) use judge::{End, Judge, Views};

const FIELDS: [&str; 9] = [
    "action",
    "src",
    "dst",
    "users",
    "checkPeriod",
    "acceptEnv",
    "srcPosture",
    "recorder",
    "enforceRecorder",
];

/// How many of them lowroad can enforce.
const SUPPORTED: usize = 6;

/// What to do about a recorder that a rule asks for.
const WITHOUT_RECORDER: &str =
    "without it sessions would go on unrecorded: take the rule out if that must not be";

/// One entry of `ssh`.
#[derive(Clone, Debug)]
pub(crate) struct SshRule {
    pub(crate) origin: Origin,
    /// Whether users have to prove again who they are, instead of being accepted.
    pub(crate) check: bool,
    pub(crate) sources: Vec<At<Alias>>,
    /// Tags, users, and `autogroup:self`.
    pub(crate) destinations: Vec<At<Alias>>,
    pub(crate) logins: Logins,
    /// Names of environment variables that are taken over, with wildcards.
    pub(crate) accept_env: Vec<String>,
}

/// The login names that a rule is about.
#[derive(Clone, Debug, Default)]
pub(crate) struct Logins {
    pub(crate) root: bool,
    /// `autogroup:nonroot`
    pub(crate) others: bool,
    pub(crate) names: Vec<String>,
    /// `localpart:*@domain`: whoever has an e-mail address there may log in as what stands before its `@`.
    pub(crate) domains: Vec<At<String>>,
}

/// Reads one entry of `ssh`. `room` is how many rules, login names and variables all of them may still have.
pub(crate) fn read<'a>(
    text: &Text<'a>,
    value: &Value<'a>,
    names: &Names,
    room: &mut usize,
) -> Result<SshRule, PolicyError> {
    let fields = text.fields_of(value, "an ssh rule", &FIELDS, &FIELDS[..SUPPORTED])?;
    for (name, instead) in [
        ("srcPosture", WITHOUT_POSTURE),
        ("recorder", WITHOUT_RECORDER),
        ("enforceRecorder", WITHOUT_RECORDER),
    ] {
        if let Some(value) = fields.get(name) {
            let place = text.at(value.range());
            let what = format!("{name:?} in ssh rules");
            text.report(PolicyError::unsupported(place, what, instead));
        }
    }
    let check = text.keep(read_check(text, &fields));
    if let Some(period) = fields.get("checkPeriod") {
        let period = text.string(period, "checkPeriod");
        text.keep(period.and_then(duration::check));
    }
    let rule = SshRule {
        origin: text.origin(value.range()),
        check: check.unwrap_or_default(),
        sources: aliases(text, &fields, "src", names),
        destinations: aliases(text, &fields, "dst", names),
        logins: read_logins(text, &fields),
        accept_env: read_accept_env(text, &fields),
    };
    check_ends(text, &rule);
    let logins = rule.logins.names.len() + rule.logins.domains.len();
    let parts = 1 + logins + rule.accept_env.len();
    *room = room.checked_sub(parts).ok_or_else(|| {
        let message = "too many ssh rules, login names and variables; use groups and tags, \"autogroup:nonroot\" and wildcards";
        PolicyError::invalid(fields.place, message)
    })?;
    Ok(rule)
}

fn read_check<'a>(text: &Text<'a>, fields: &Fields<'_, 'a>) -> Result<bool, PolicyError> {
    const CHOICE: &str = "write \"accept\" or \"check\"";
    let Some(action) = fields.get("action") else {
        let message = format!("this ssh rule has no \"action\"; {CHOICE}");
        return Err(PolicyError::invalid(fields.place, message));
    };
    let action = text.string(action, "action")?;
    match action.value.trim() {
        "accept" => Ok(false),
        "check" => Ok(true),
        other => {
            let message = format!("{other:?} is no action of ssh rules; {CHOICE}");
            Err(PolicyError::invalid(action.place, message))
        }
    }
}

/// A list of strings without the blanks around them.
fn trimmed<'v, 'a>(text: &Text<'a>, fields: &Fields<'v, 'a>, name: &str) -> Vec<At<&'v str>> {
    let list = text.strings_of(fields, name);
    let trimmed = list.into_iter().map(|string| string.map(str::trim));
    trimmed.collect()
}

fn aliases<'a>(
    text: &Text<'a>,
    fields: &Fields<'_, 'a>,
    name: &str,
    names: &Names,
) -> Vec<At<Alias>> {
    let role = format!("ssh {name}");
    let read = |written: At<&str>| {
        let value = text.keep(Alias::parse(written, &role, names))?;
        Some(written.map(|_| value))
    };
    let written = trimmed(text, fields, name).into_iter();
    written.filter_map(read).collect()
}

fn read_logins<'a>(text: &Text<'a>, fields: &Fields<'_, 'a>) -> Logins {
    const HOW: &str =
        "write login names, \"root\", \"autogroup:nonroot\" or \"localpart:*@domain\"";
    let is_empty = |value: &Value| matches!(value, Value::Array(list) if list.elements.is_empty());
    if fields.get("users").is_none_or(is_empty) {
        let message = format!("this ssh rule names no \"users\"; {HOW}");
        text.report(PolicyError::invalid(fields.place, message));
    }
    let mut logins = Logins::default();
    for login in trimmed(text, fields, "users") {
        match login.value {
            "" | "*" => {
                let message = format!("{:?} is no login name; {HOW}", login.value);
                text.report(PolicyError::invalid(login.place, message));
            }
            "root" => logins.root = true,
            "autogroup:nonroot" => logins.others = true,
            name => match name.strip_prefix("localpart:*@") {
                Some(domain) => logins.domains.push(login.map(|_| domain.to_owned())),
                None => logins.names.push(name.to_owned()),
            },
        }
    }
    logins
}

fn read_accept_env<'a>(text: &Text<'a>, fields: &Fields<'_, 'a>) -> Vec<String> {
    let mut names = Vec::new();
    for name in trimmed(text, fields, "acceptEnv") {
        if name.value.is_empty() {
            let message = "acceptEnv can't name nothing; write a variable's name, or `LC_*`";
            text.report(PolicyError::invalid(name.place, message));
        }
        names.push(name.value.to_owned());
    }
    names
}

fn check_ends(text: &Text, rule: &SshRule) {
    for source in &rule.sources {
        text.keep(check_source(source));
    }
    for destination in &rule.destinations {
        text.keep(check_destination(destination, &rule.sources));
    }
    let mut destinations = rule.destinations.iter();
    if destinations.any(|alias| alias.value == Alias::OwnDevices) {
        let tagged = |alias: &&At<Alias>| matches!(alias.value, Alias::Tag(_) | Alias::Tagged);
        for source in rule.sources.iter().filter(tagged) {
            let message = "tagged nodes have no user whose devices autogroup:self could be; put this source into a rule of its own";
            text.report(PolicyError::invalid(source.place, message));
        }
    }
}

fn check_source(source: &At<Alias>) -> Result<(), PolicyError> {
    let fits = matches!(
        source.value,
        Alias::User(_)
            | Alias::Domain(_)
            | Alias::Group(_)
            | Alias::Tag(_)
            | Alias::Member
            | Alias::Tagged
    );
    if !fits {
        let message = "ssh src takes users, groups, tags, autogroup:member, autogroup:tagged and \"user:*@domain\" only";
        return Err(PolicyError::invalid(source.place, message));
    }
    Ok(())
}

/// Users' own devices are for themselves: nobody else logs in there.
fn check_destination(destination: &At<Alias>, sources: &[At<Alias>]) -> Result<(), PolicyError> {
    let invalid = |message: String| Err(PolicyError::invalid(destination.place, message));
    match &destination.value {
        Alias::Tag(_) | Alias::OwnDevices => Ok(()),
        Alias::User(user) => {
            let same = |source: &At<Alias>| matches!(&source.value, Alias::User(other) if other.eq_ignore_ascii_case(user));
            if sources.iter().all(same) {
                return Ok(());
            }
            invalid(format!(
                "ssh dst {user:?}: only the same user may log in there; write \"autogroup:self\", or give the devices a tag"
            ))
        }
        _ => invalid(
            "ssh dst takes tags, autogroup:self, and a user who is the only source".to_owned(),
        ),
    }
}
