//! `cargo xtask ci`: the tests, as continuous integration runs them (`.ci/run`), behind all that is checked without running anything.

use std::process::ExitCode;

use anyhow::Result;

use crate::{
    ebpf,
    shell::{cargo, step},
    test, tidy,
};

pub fn main() -> Result<ExitCode> {
    step(
        "checking the formatting",
        cargo().args(["fmt", "--all", "--check"]),
    )?;
    tidy::main()?;
    // The agent takes the object in at build time.
    ebpf::build()?;
    step(
        "clippy",
        cargo()
            .args(["clippy", "--locked", "--workspace", "--all-targets"])
            .args(["--exclude", "lowroad-ebpf", "--", "-D", "warnings"]),
    )?;
    test::main(&[])
}
