//! The agent: the loop, its shells and the kernel side.

pub mod kernel;
pub mod traversal;
