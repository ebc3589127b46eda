//! Traffic to look at: an HTTP server and client, a ping that counts, a steady TCP stream, a flood that nobody wants, and what
//! says that it was the machine.

mod flood;
mod http;
mod pattern;
mod ping;
mod stalls;
mod stream;

pub use flood::Flood;
pub use http::{Fetched, NotConnected, Server, get, page, status};
pub use ping::{Pinger, Report, Unanswered, fits, unmade_answers};
pub use stalls::{Stalls, Standstills};
pub use stream::{Carried, Stream};
