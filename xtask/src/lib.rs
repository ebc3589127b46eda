//! Everything around the build. One file per task; each task first makes what it depends on.
//!
//! A library, because `lowroad-bench` builds its networks and tailnets of the same parts.

pub mod apt;
pub mod bench;
pub mod ci;
pub mod demo;
pub mod ebpf;
pub mod faults;
pub mod fuzz;
pub mod interop;
pub mod lab;
pub mod process;
pub mod setup;
pub mod shell;
pub mod signals;
pub mod tailnet;
pub mod test;
pub mod tidy;
pub mod topology;
pub mod traffic;
pub mod vm;
pub mod wait;
pub mod workspace;
