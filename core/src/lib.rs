#![forbid(unsafe_code)]

pub mod desired;
pub mod filter;
pub mod first_contact;
pub mod intent;
pub mod netcheck;
pub mod offload;
pub mod path;
pub mod plan;
