//! `policy`: what administrators do with the policy file.

mod edit;
mod source;

use std::{
    collections::HashMap,
    io::{IsTerminal as _, Write as _},
    path::{Path, PathBuf},
};

use serde_json::json;

use super::{parse, print};
use crate::{
    Error,
    admin::{
        api::{Ask, PolicyDone, PolicyInfo, PolicySetInfo, Proposal, Signature, VersionInfo},
        client,
        insight::DiffInfo,
        render::{self, Extent},
    },
    args::{self, Policy},
    hub::check_policy,
    model::VersionNumber,
    policy::{self, Report, UnknownUsers, WhyProbe, World},
    refused::RefusedPolicy,
    text::harmless_lines,
};
use source::Source;

pub(super) async fn run(state_dir: &Path, as_json: bool, command: Policy) -> Result<(), Error> {
    match command {
        Policy::Check { file, strict } => check(state_dir, as_json, &file, strict).await,
        Policy::Get { version } => get(state_dir, as_json, version).await,
        Policy::Set { file, signature } => set(state_dir, as_json, &file, signature).await,
        Policy::Diff {
            file,
            version,
            all,
            exit_code,
        } => diff(state_dir, as_json, file, version, all, exit_code).await,
        Policy::Explain { node, all } => {
            let answer = client::ask(state_dir, &Ask::PolicyExplain { node }).await?;
            print(as_json, &answer, || {
                Ok(render::explanation(&parse(&answer)?, extent(all)))
            })
        }
        Policy::Why {
            src,
            dst,
            port,
            all,
        } => why(state_dir, as_json, (src, dst), &port, extent(all)).await,
        Policy::Log => log(state_dir, as_json).await,
        Policy::Rollback { version, signature } => {
            roll_back(state_dir, as_json, version, signature).await
        }
        Policy::Fmt(asked) => edit::fmt(as_json, &asked),
        Policy::AddRule(asked) => edit::add_rule(state_dir, as_json, asked).await,
        Policy::Tag(asked) => edit::tag(state_dir, as_json, asked).await,
    }
}

/// Against the server's users and nodes if one runs, else by the text alone.
async fn check(state_dir: &Path, as_json: bool, file: &Path, strict: bool) -> Result<(), Error> {
    let Source { name, text } = Source::read(file)?;
    let file = name.as_path();
    let named = |error| name_file(error, file, &text);
    parse_policy(&text).map_err(named)?;
    let ask = Ask::PolicyCheck { text: text.clone() };
    let (report, with_server) = match client::ask(state_dir, &ask).await {
        Ok(answer) => (parse::<PolicyDone>(&answer)?.report, true),
        Err(Error::NotRunning { .. }) => (check_alone(&text).map_err(named)?, false),
        Err(error) => return Err(named(error)),
    };
    if strict && !report.warnings.is_empty() {
        let head = format!("{} has warnings, and --strict refuses them", file.display());
        let refused = RefusedPolicy::new(&text, report.strict()).in_file(file);
        return Err(refused.with_head(head).into());
    }
    warn(as_json, &report, file, &text);
    let mut answer = json!(PolicyDone { ok: true, report });
    answer["withServer"] = with_server.into();
    print(as_json, &answer, || {
        let note = if with_server {
            ""
        } else {
            " (by itself: no server runs to check it against users and nodes)"
        };
        Ok(format!("{} is a valid policy{note}\n", file.display()))
    })
}

fn parse_policy(text: &str) -> Result<policy::Policy, Error> {
    policy::Policy::parse(text).map_err(|errors| RefusedPolicy::of_errors(text, &errors).into())
}

/// What a server would refuse whoever its users and nodes are, and what there is to warn of without knowing them.
fn check_alone(text: &str) -> Result<Report, Error> {
    let (policy, compiled) = check_policy(text, &World::default(), UnknownUsers::Unasked)?;
    let warnings = policy::warnings(&policy, &compiled, &HashMap::new());
    Ok(Report::default().with_warnings(text, &warnings))
}

/// To standard error, so that what a script reads is the same with warnings and without.
fn warn(as_json: bool, report: &Report, file: &Path, text: &str) {
    if !as_json {
        let shown = report.render(&file.display().to_string(), text);
        let _ = std::io::stderr().write_all(shown.as_bytes());
    }
}

async fn get(state_dir: &Path, as_json: bool, version: Option<VersionNumber>) -> Result<(), Error> {
    let answer = client::ask(state_dir, &Ask::PolicyGet { version }).await?;
    print(as_json, &answer, || {
        Ok(match parse::<PolicyInfo>(&answer)?.policy {
            Some(text) => {
                let end = if text.ends_with('\n') { "" } else { "\n" };
                let text = text + end;
                // Byte for byte for files and pipes.
                if std::io::stdout().is_terminal() {
                    harmless_lines(&text.replace("\r\n", "\n"))
                } else {
                    text
                }
            }
            None => "// No policy: all nodes may reach each other.\n".to_owned(),
        })
    })
}

async fn set(
    state_dir: &Path,
    as_json: bool,
    file: &Path,
    signature: args::Signature,
) -> Result<(), Error> {
    let Source { name, text } = Source::read(file)?;
    let file = name.as_path();
    let ask = Ask::PolicySet {
        text: text.clone(),
        signature: signature.into(),
        based_on: None,
    };
    let answer = client::ask(state_dir, &ask).await;
    let answer = answer.map_err(|error| name_file(error, file, &text))?;
    let set: PolicySetInfo = parse(&answer)?;
    warn(as_json, &set.report, file, &text);
    print(as_json, &answer, || say_set(&set, &file.display()))
}

async fn log(state_dir: &Path, as_json: bool) -> Result<(), Error> {
    let answer = client::ask(state_dir, &Ask::PolicyLog).await?;
    print(as_json, &answer, || {
        Ok(render::policy_log(&parse::<Vec<VersionInfo>>(&answer)?))
    })
}

fn extent(all: bool) -> Extent {
    if all { Extent::All } else { Extent::Some }
}

async fn diff(
    state_dir: &Path,
    as_json: bool,
    file: Option<PathBuf>,
    version: Option<VersionNumber>,
    all: bool,
    exit_code: bool,
) -> Result<(), Error> {
    let (proposal, named) = match (file, version) {
        (Some(file), _) => {
            let Source { name, text } = Source::read(&file)?;
            (Proposal::Text(text), name)
        }
        (None, Some(version)) => (
            Proposal::Version(version),
            PathBuf::from(format!("version {version}")),
        ),
        (None, None) => return Err(Error::Setting("name a policy file or a version".to_owned())),
    };
    let ask = Ask::PolicyDiff(proposal);
    let answer = match client::ask(state_dir, &ask).await {
        Err(error @ Error::Policy(_)) => {
            let text = match (ask, version) {
                (Ask::PolicyDiff(Proposal::Text(text)), _) => text,
                (_, Some(version)) => text_of(state_dir, version).await?,
                _ => String::new(),
            };
            return Err(name_file(error, &named, &text));
        }
        answer => answer?,
    };
    let info: DiffInfo = parse(&answer)?;
    print(as_json, &answer, || Ok(render::diff(&info, extent(all))))?;
    if exit_code && info.differs {
        return Err(Error::Differs);
    }
    Ok(())
}

async fn why(
    state_dir: &Path,
    as_json: bool,
    (from, to): (String, String),
    port: &str,
    extent: Extent,
) -> Result<(), Error> {
    let probe: WhyProbe = port.parse().map_err(Error::Setting)?;
    let ask = Ask::PolicyWhy {
        from,
        to,
        protocol: probe.protocol,
        port: probe.port,
    };
    let answer = client::ask(state_dir, &ask).await?;
    print(as_json, &answer, || {
        Ok(render::why(&parse(&answer)?, &probe.to_string(), extent))
    })
}

async fn roll_back(
    state_dir: &Path,
    as_json: bool,
    version: VersionNumber,
    signature: args::Signature,
) -> Result<(), Error> {
    let ask = Ask::PolicyRollback {
        version,
        signature: signature.into(),
    };
    let named = format!("version {version}");
    let answer = match client::ask(state_dir, &ask).await {
        Err(error @ Error::Policy(_)) => {
            let text = text_of(state_dir, version).await?;
            return Err(name_file(error, Path::new(&named), &text));
        }
        answer => answer?,
    };
    let set: PolicySetInfo = parse(&answer)?;
    if !set.report.warnings.is_empty() {
        let text = text_of(state_dir, version).await?;
        warn(as_json, &set.report, Path::new(&named), &text);
    }
    print(as_json, &answer, || say_set(&set, &named))
}

async fn text_of(state_dir: &Path, version: VersionNumber) -> Result<String, Error> {
    let version = Some(version);
    let answer = client::ask(state_dir, &Ask::PolicyGet { version }).await?;
    Ok(parse::<PolicyInfo>(&answer)?.policy.unwrap_or_default())
}

fn say_set(set: &PolicySetInfo, what: &dyn std::fmt::Display) -> Result<String, Error> {
    let version = set.version;
    Ok(match set.changed {
        true => format!("{what} is in force, as version {version}\n"),
        false => format!("{what} is in force already, as version {version}: nothing changed\n"),
    })
}

impl From<args::Signature> for Signature {
    fn from(signature: args::Signature) -> Self {
        Self {
            author: signature.author.unwrap_or_default(),
            message: signature.message.unwrap_or_default(),
        }
    }
}

/// The server knows neither the file's name nor that the command has its text.
fn name_file(error: Error, file: &Path, text: &str) -> Error {
    match error {
        Error::Policy(refused) => refused.in_file(file).with_text(text).into(),
        error => error,
    }
}
