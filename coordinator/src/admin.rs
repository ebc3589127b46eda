//! Administration: requests over HTTP on a Unix socket in the state directory, which only the server's user can open.

pub mod api;
pub mod client;
pub mod insight;
mod policy;
pub mod render;
pub mod server;
pub mod socket;
