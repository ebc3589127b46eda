//! The command line of `policy`.

use std::path::PathBuf;

use clap::{ArgGroup, Args, Subcommand};

use super::edit::{AddRule, Fmt, Tag};
use crate::{model::VersionNumber, text};

#[derive(Debug, Subcommand)]
pub enum Policy {
    /// Check a policy file; with a running server also against its users and nodes
    ///
    /// All errors are shown at once, and warnings of what is probably not meant.
    Check {
        /// Policy file; `-`: standard input
        file: PathBuf,
        /// Take warnings for errors
        #[arg(long)]
        strict: bool,
    },
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
        /// Policy file; `-`: standard input
        file: PathBuf,
        #[command(flatten)]
        signature: Signature,
    },
    /// Show what a policy file would open and close, by nodes and ports, compared with the policy in force
    ///
    /// By meaning: a rule that is written otherwise but allows the same changes nothing. Exits with 0 whether or not there are
    /// differences.
    #[command(group(ArgGroup::new("proposal").required(true).args(["file", "version"])))]
    Diff {
        /// Policy file; `-`: standard input
        file: Option<PathBuf>,
        /// An earlier version instead of a file: what a rollback would change
        #[arg(long, value_name = "N", value_parser = parse_version)]
        version: Option<VersionNumber>,
        /// Show all changes, and all names in them
        #[arg(long)]
        all: bool,
        /// Exit with 1 if there are differences, with 2 if something fails
        #[arg(long)]
        exit_code: bool,
    },
    /// Show which rules concern a node: what others may do there, and what it may do elsewhere
    Explain {
        /// Name, ID or address of the node
        node: String,
        /// Show all names, and rules in full
        #[arg(long)]
        all: bool,
    },
    /// Say whether a connection is allowed, and by which rule; or why not
    Why {
        /// Where it begins: a node (name, ID, address), a user, group or tag, or an address of a subnet
        src: String,
        /// Where it ends: the same
        dst: String,
        /// Port and protocol, such as 443 (by TCP), 53/udp or icmp
        #[arg(value_name = "PORT[/PROTO]")]
        port: String,
        /// Show all pairs of nodes, and rules in full
        #[arg(long)]
        all: bool,
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
    /// Lay out a policy file, keeping all comments
    Fmt(Fmt),
    /// Add an acl or a grant, leaving the rest of the policy as it is
    ///
    /// A rule that is there already is not added again. `policy log` shows the rule if there is no message.
    AddRule(AddRule),
    /// Add or remove a tag or its owners, leaving the rest of the policy as it is
    ///
    /// What is as asked for already stays as it is. `policy log` shows the change if there is no message.
    #[command(subcommand)]
    Tag(Tag),
}

/// Who changes the policy, and why.
#[derive(Debug, Clone, Args)]
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
