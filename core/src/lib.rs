#![forbid(unsafe_code)]

pub mod desired;
pub mod path;
pub mod plan;
