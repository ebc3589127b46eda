//! Other WireGuards to measure beside ours: fetched into `target/tools/peers`, installed nowhere. One that can't be had is left out,
//! and its figures say so.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use crate::{
    apt,
    shell::{cargo, find_program, output, step},
    workspace::{lock_tools, tools},
};

/// From the machine's packages: `wg` programs the devices of all others.
const PROGRAMS: &[(&str, &str)] = &[("wg", "wireguard-tools")];
/// (program, suite and package of Debian's archive)
const DEBIAN: &[(&str, &str, &str)] = &[("wireguard-go", "sid", "wireguard-go")];
/// (program, crate, version)
const CRATES: &[(&str, &str, &str)] = &[
    ("boringtun-cli", "boringtun-cli", "0.7.1"),
    ("gotatun", "gotatun-cli", "0.10.2"),
];

fn folder() -> Result<PathBuf> {
    Ok(tools()?.join("peers"))
}

/// `PATH` with the fetched programs in front.
pub fn path() -> Result<std::ffi::OsString> {
    let own = folder()?.join("bin");
    let rest = env::var_os("PATH").unwrap_or_default();
    Ok(env::join_paths(
        std::iter::once(own).chain(env::split_paths(&rest)),
    )?)
}

/// By which drivers from elsewhere name the programs that they call: those of `PATH` by name, others by path, with commas between.
const MORE: &str = "LOWROAD_BENCH_PROGRAMS";

/// Those that are there, and all that were asked for: (program, path).
pub fn found() -> Result<Vec<(String, PathBuf)>> {
    let own = folder()
        .map(|folder| folder.join("bin"))
        .unwrap_or_default();
    let names = PROGRAMS
        .iter()
        .map(|(program, _)| *program)
        .chain(DEBIAN.iter().map(|(program, ..)| *program))
        .chain(CRATES.iter().map(|(program, ..)| *program));
    let known = names.filter_map(|program| {
        let fetched = own.join(program);
        let path = if fetched.is_file() {
            fetched
        } else {
            find_program(program)?
        };
        Some((program.to_owned(), path))
    });
    let more = env::var(MORE).unwrap_or_default();
    let mut all: Vec<(String, PathBuf)> = named(&more).collect::<Result<_>>()?;
    all.extend(known);
    Ok(all)
}

/// Programs of a list of names and paths.
fn named(list: &str) -> impl Iterator<Item = Result<(String, PathBuf)>> {
    let entries = list.split(',').map(str::trim);
    entries.filter(|entry| !entry.is_empty()).map(|entry| {
        let path = if entry.contains('/') {
            Some(PathBuf::from(entry)).filter(|path| path.is_file())
        } else {
            find_program(entry)
        };
        let path = path.with_context(|| format!("{MORE}: there is no program {entry}"))?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        Ok((name.into_owned(), path))
    })
}

/// Fetches what is missing. Failures are said, and are no errors: `LOWROAD_BENCH_OFFLINE` leaves out the attempts.
pub fn fetch() -> Result<()> {
    if env::var_os("LOWROAD_BENCH_OFFLINE").is_some() {
        return Ok(());
    }
    let _lock = lock_tools()?;
    let bin = folder()?.join("bin");
    fs::create_dir_all(&bin).with_context(|| format!("make {}", bin.display()))?;
    let missing = |program: &str| !bin.join(program).exists() && find_program(program).is_none();
    tell("wg", apt::install_programs(PROGRAMS));
    for (program, suite, package) in DEBIAN.iter().filter(|entry| missing(entry.0)) {
        tell(program, from_debian(program, suite, package, &bin));
    }
    for (program, package, version) in CRATES.iter().filter(|entry| missing(entry.0)) {
        tell(program, from_crate(program, package, version));
    }
    Ok(())
}

fn tell(program: &str, result: Result<()>) {
    if let Err(error) = result {
        eprintln!("   {program} will not be measured: {error:#}");
    }
}

fn from_debian(program: &str, suite: &str, package: &str, bin: &Path) -> Result<()> {
    eprintln!("=> fetching Debian's {package} ({suite})");
    let downloads = tools()?.join(format!("apt-{package}"));
    let file = apt::Suites::open(&downloads, &[suite])?.download(package)?;
    let unpacked = downloads.join("unpacked");
    output(Command::new("dpkg-deb").arg("-x").arg(&file).arg(&unpacked))?;
    let from = unpacked.join("usr/bin").join(program);
    fs::copy(&from, bin.join(program)).with_context(|| format!("take {}", from.display()))?;
    fs::remove_dir_all(&downloads).with_context(|| format!("remove {}", downloads.display()))
}

fn from_crate(program: &str, package: &str, version: &str) -> Result<()> {
    let folder = folder()?;
    let build = folder.join("build");
    step(
        &format!("building {program} (some minutes, once)"),
        cargo()
            .args(["install", package, "--version", version])
            .args(["--locked", "--quiet", "--root"])
            .arg(&folder)
            .arg("--target-dir")
            .arg(&build),
    )?;
    fs::remove_dir_all(&build).context("remove the build folder")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_named_by_name_or_path_and_one_that_is_not_there_is_an_error() {
        let sh = find_program("sh").unwrap();
        let list = format!("sh, {},", sh.display());
        let all: Vec<_> = named(&list).collect::<Result<_>>().unwrap();
        assert_eq!(all, vec![("sh".to_owned(), sh); 2]);
        assert_eq!(named("").count(), 0);
        for missing in ["no-such-program", "/no/such/program"] {
            let all: Result<Vec<_>> = named(missing).collect();
            let error = format!("{:#}", all.unwrap_err());
            assert!(error.contains(missing) && error.contains(MORE), "{error}");
        }
    }
}
