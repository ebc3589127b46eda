//! `lowroad`: the agent and its command line.

use std::process::ExitCode;

fn main() -> ExitCode {
    lowroad_agent::cli::run()
}
