//! `cargo xtask test [unit|ebpf|lab|vm]…`: all suites, one tally.

mod binaries;
mod tally;

use std::{process::ExitCode, time::Instant};

use anyhow::{Result, bail};

use crate::{ebpf, setup, signals, workspace::is_root};
pub use binaries::{Binary, build, side_by_side};
pub use tally::Tally;

const SUITES: &[&str] = &["unit", "ebpf", "lab", "vm"];

pub fn main(names: &[&str]) -> Result<ExitCode> {
    if let Some(unknown) = names.iter().find(|name| !SUITES.contains(name)) {
        bail!("no suite `{unknown}`; there are {}", SUITES.join(", "));
    }
    signals::catch();
    let wanted = |suite: &str| names.is_empty() || names.contains(&suite);
    let start = Instant::now();
    let mut tally = Tally::default();
    ebpf::build()?;
    let binaries = build()?;
    for suite in SUITES.iter().filter(|suite| wanted(suite)) {
        signals::check()?;
        eprintln!("=> test {suite}");
        match *suite {
            "unit" => unit(&binaries, &mut tally)?,
            "ebpf" => rooted(&binaries, &mut tally, suite, Binary::is_ebpf)?,
            "lab" => lab(&binaries, &mut tally)?,
            "vm" => crate::vm::suite(&binaries, &mut tally)?,
            other => unreachable!("{other} is not in the list of suites"),
        }
    }
    eprintln!("   all in {:.0} s", start.elapsed().as_secs_f32());
    Ok(tally.print())
}

fn unit(binaries: &[Binary], tally: &mut Tally) -> Result<()> {
    let of_unit = binaries.iter().filter(|binary| !binary.needs_root());
    let mut of_unit: Vec<_> = of_unit.cloned().collect();
    // The longest ones first, or one processor would wait for them at the end.
    of_unit.sort_by_key(|binary| binary.package != "fuzz");
    binaries::side_by_side(&of_unit, tally, |binary, tally| binary.run(&[], tally))?;
    binaries::documentation(tally)
}

fn lab(binaries: &[Binary], tally: &mut Tally) -> Result<()> {
    let of_lab = |binary: &Binary| binary.needs_root() && !binary.is_ebpf();
    rooted(binaries, tally, "lab", of_lab)?;
    crate::lab::run(&[], tally)
}

fn rooted(
    binaries: &[Binary],
    tally: &mut Tally,
    suite: &str,
    belongs: impl Fn(&Binary) -> bool,
) -> Result<()> {
    if !is_root() {
        tally.skip(suite, "needs root: run the same command with sudo");
        return Ok(());
    }
    setup::lab()?;
    for binary in binaries.iter().filter(|binary| belongs(binary)) {
        // One at a time: they make namespaces and devices, and some measure.
        let elsewhere: &[&str] = if binary.wants_vm() {
            &["--skip", "kernel::"]
        } else {
            &[]
        };
        binary.run(&[&["--test-threads=1"], elsewhere].concat(), tally)?;
    }
    Ok(())
}
