//! Traffic to look at: an HTTP server and client, a ping that counts, a steady TCP stream, and a flood that nobody wants.

mod flood;
mod http;
mod ping;
mod stream;

pub use flood::Flood;
pub use http::{Server, get, status};
pub use ping::{Pinger, Report, fits};
pub use stream::{Carried, Stream};
