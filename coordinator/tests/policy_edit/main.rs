//! Changes of a policy's text: the layout of whole files, and edits that leave all else as it is.

#![expect(clippy::unwrap_used, reason = "a failing helper fails its test")]

mod edits;
mod layout;
mod random;
mod scan;
