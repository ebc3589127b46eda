//! Traffic to look at: an HTTP server and client, and a ping that counts.

mod http;
mod ping;

pub use http::{Server, get, status};
pub use ping::{Pinger, Report, fits};
