#![forbid(unsafe_code)]

pub mod desired;
pub mod plan;
