//! The command line of `policy`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::{model::VersionNumber, text};

#[derive(Debug, Subcommand)]
pub enum Policy {
    /// Check a policy file; with a running server also against its users and nodes
    Check { file: PathBuf },
    /// Print the policy in force, or an earlier version of it
    Get {
        /// Number of the version, as `policy log` shows it
        #[arg(long, value_name = "N", value_parser = parse_version)]
        version: Option<VersionNumber>,
    },
    /// Check a policy file and put it into force
    ///
    /// Every version is kept with author and time: the newest 1,000, as long as they take no more than 32 MiB together.
    Set {
        file: PathBuf,
        #[command(flatten)]
        signature: Signature,
    },
    /// List the versions of the policy, newest first; the first one is in force
    Log,
    /// Put an earlier version into force again, as a new version
    ///
    /// It is checked like any other: users may be gone since that it names.
    Rollback {
        /// Number of the version, as `policy log` shows it
        #[arg(value_name = "N", value_parser = parse_version)]
        version: VersionNumber,
        #[command(flatten)]
        signature: Signature,
    },
}

/// Who changes the policy, and why.
#[derive(Debug, Args)]
pub struct Signature {
    /// Who changes the policy; the account that runs the command is noted beside [default: that account]
    #[arg(long, value_name = "NAME", env = "SUDO_USER", hide_env_values = true)]
    pub author: Option<String>,
    /// Why, in one line; `policy log` shows it
    #[arg(long, short, value_name = "TEXT")]
    pub message: Option<String>,
}

fn parse_version(text: &str) -> Result<VersionNumber, String> {
    let number = text::parse_id(text).filter(|number| *number > 0);
    number
        .map(VersionNumber)
        .ok_or_else(|| "write a version's number; `policy log` shows them".to_owned())
}
