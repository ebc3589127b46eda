//! The coordination server.

pub mod policy;
