//! The coordination server.
