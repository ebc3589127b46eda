//! `policy`: what administrators do with the policy file.

use std::path::{Path, PathBuf};

use serde_json::json;

use super::{parse, print};
use crate::{
    Error,
    admin::{
        api::{Ask, PolicyInfo},
        client,
    },
    args::Policy,
    policy,
};

pub(super) async fn run(state_dir: &Path, as_json: bool, command: Policy) -> Result<(), Error> {
    match command {
        Policy::Check { file } => check(state_dir, as_json, file).await,
        Policy::Get => get(state_dir, as_json).await,
        Policy::Set { file } => set(state_dir, as_json, file).await,
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

async fn get(state_dir: &Path, as_json: bool) -> Result<(), Error> {
    let answer = client::ask(state_dir, &Ask::PolicyGet).await?;
    print(as_json, &answer, || {
        Ok(match parse::<PolicyInfo>(&answer)?.policy {
            Some(text) if text.ends_with('\n') => text,
            Some(text) => text + "\n",
            None => "// No policy: all nodes may reach each other.\n".to_owned(),
        })
    })
}

async fn set(state_dir: &Path, as_json: bool, file: PathBuf) -> Result<(), Error> {
    let text = read(&file)?;
    let answer = client::ask(state_dir, &Ask::PolicySet { text }).await;
    let answer = answer.map_err(|error| name_file(error, &file))?;
    print(as_json, &answer, || {
        Ok(format!("{} is in force\n", file.display()))
    })
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
