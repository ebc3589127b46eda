//! The agent: the loop, its shells and the kernel side.

mod backoff;
pub mod cli;
pub mod control;
pub mod daemon;
pub mod derp;
pub mod engine;
pub mod kernel;
pub mod localapi;
#[cfg(test)]
mod mute;
pub mod prefs;
mod process;
pub mod state;
pub mod status;
pub mod tls;
pub mod traversal;
