//! `policy`: what administrators do with the policy file.

use std::path::{Path, PathBuf};

use serde_json::json;

use super::{parse, print};
use crate::{
    Error,
    admin::{
        api::{Ask, PolicyInfo, PolicySetInfo, Proposal, Signature, VersionInfo},
        client,
        insight::DiffInfo,
        render::{self, Extent},
    },
    args::{self, Policy},
    model::VersionNumber,
    policy::{self, WhyProbe},
};

pub(super) async fn run(state_dir: &Path, as_json: bool, command: Policy) -> Result<(), Error> {
    match command {
        Policy::Check { file } => check(state_dir, as_json, file).await,
        Policy::Get { version } => get(state_dir, as_json, version).await,
        Policy::Set { file, signature } => set(state_dir, as_json, file, signature).await,
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
    }
}

/// Against the server's users and nodes if one runs, else by the text alone.
async fn check(state_dir: &Path, as_json: bool, file: PathBuf) -> Result<(), Error> {
    let text = read(&file)?;
    let alone = policy::Policy::parse(&text).map_err(|error| Error::bad_request(error.to_string()));
    alone.map_err(|error| name_file(error, &file))?;
    let full = match client::ask(state_dir, &Ask::PolicyCheck { text }).await {
        Ok(_) => true,
        Err(Error::NotRunning { .. }) => false,
        Err(error) => return Err(name_file(error, &file)),
    };
    print(as_json, &json!({ "ok": true, "withServer": full }), || {
        let note = if full {
            ""
        } else {
            " (by itself: no server runs to check it against users and nodes)"
        };
        Ok(format!("{} is a valid policy{note}\n", file.display()))
    })
}

async fn get(state_dir: &Path, as_json: bool, version: Option<VersionNumber>) -> Result<(), Error> {
    let answer = client::ask(state_dir, &Ask::PolicyGet { version }).await?;
    print(as_json, &answer, || {
        Ok(match parse::<PolicyInfo>(&answer)?.policy {
            Some(text) if text.ends_with('\n') => text,
            Some(text) => text + "\n",
            None => "// No policy: all nodes may reach each other.\n".to_owned(),
        })
    })
}

async fn set(
    state_dir: &Path,
    as_json: bool,
    file: PathBuf,
    signature: args::Signature,
) -> Result<(), Error> {
    let ask = Ask::PolicySet {
        text: read(&file)?,
        signature: signature.into(),
    };
    let answer = client::ask(state_dir, &ask).await;
    let answer = answer.map_err(|error| name_file(error, &file))?;
    print(as_json, &answer, || {
        say_set(&parse(&answer)?, &file.display())
    })
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
        (Some(file), _) => (Proposal::Text(read(&file)?), file),
        (None, Some(version)) => (
            Proposal::Version(version),
            PathBuf::from(format!("version {version}")),
        ),
        (None, None) => return Err(Error::Setting("name a policy file or a version".to_owned())),
    };
    let answer = client::ask(state_dir, &Ask::PolicyDiff(proposal)).await;
    let answer = answer.map_err(|error| name_file(error, &named))?;
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
    let answer = client::ask(state_dir, &ask).await;
    let answer = answer.map_err(|error| name_file(error, Path::new(&named)))?;
    print(as_json, &answer, || say_set(&parse(&answer)?, &named))
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

/// The policy's own messages begin with the name of no particular file.
fn name_file(error: Error, file: &Path) -> Error {
    match error {
        Error::Refused { status, message } => {
            let message = match message.strip_prefix("policy.hujson:") {
                Some(rest) => format!("{}:{rest}", file.display()),
                None => message,
            };
            Error::Refused { status, message }
        }
        error => error,
    }
}

fn read(file: &Path) -> Result<String, Error> {
    std::fs::read_to_string(file).map_err(Error::io(format!("read {}", file.display())))
}
