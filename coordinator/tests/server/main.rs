//! The server as its clients and administrators see it: in this process on loopback, or as the built binary.

#![expect(
    clippy::unwrap_used,
    clippy::zombie_processes,
    reason = "a failing helper fails its test; a daemon is waited for when dropped"
)]

mod auth;
mod cli;
mod cli_policy_errors;
mod client;
mod deltas;
mod edit_cli;
mod grants;
mod hostile;
mod join;
mod lab;
mod logins;
mod policy_insight;
mod policy_log;
mod relay;
mod scale;
