//! The command line of `policy`.

use std::path::PathBuf;

use clap::Subcommand;

#[derive(Debug, Subcommand)]
pub enum Policy {
    /// Check a policy file; with a running server also against its users and nodes
    Check { file: PathBuf },
    /// Print the policy in force
    Get,
    /// Check a policy file and put it into force
    Set { file: PathBuf },
}
