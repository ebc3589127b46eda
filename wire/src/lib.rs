#![forbid(unsafe_code)]
//! The wire protocols of a Tailscale-style mesh: types and codecs, sans-IO.
//!
//! Nothing here opens a socket, reads a clock or draws randomness: times and random bytes come as arguments. Feature `io` adds
//! adapters over the traits of `tokio::io`, generic over the transport.
//!
//! Every decoder takes bytes from strangers: it returns an error or an answer, never panics, and bounds what it allocates.

mod bytes;
pub mod checksum;
pub mod classify;
pub mod control;
pub mod derp;
pub mod disco;
mod error;
pub mod framing;
pub mod geneve;
pub mod key;
pub mod netmap;
pub mod noise;
pub mod stun;
pub mod tsmp;

pub use classify::{Kind, classify};
pub use error::Error;
