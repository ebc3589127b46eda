//! The coordination server.

pub mod derp;
pub mod policy;
pub mod stun;
pub mod tls;
