//! The sockets of path discovery: disco and STUN on WireGuard's own port, and the door to the relays.
//!
//! Decisions are taken in `lowroad_core`; here bytes are moved.

pub mod endpoints;
pub mod packet;
pub mod port;
pub mod relay;
pub mod shortcut;
pub mod stun;
pub(crate) mod sys;
