//! `cargo xtask bench [--vm] [name…]`: builds `lowroad-bench` and what it measures, fetches its peers, and starts it, here or in the VM.

mod peers;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result, ensure};

use crate::{
    setup,
    shell::{cargo, step},
    signals,
    tailnet::{self, Build},
    vm,
    workspace::{self, is_root, root, target},
};

/// In front of the results, in the guest's output.
const RESULTS: &str = "LOWROAD-BENCH-RESULTS ";

pub fn main(options: &[&str]) -> Result<ExitCode> {
    let in_vm = options.contains(&"--vm");
    let options: Vec<&str> = options
        .iter()
        .filter(|&&option| option != "--vm")
        .copied()
        .collect();
    let (options, out) = take_out(&options)?;
    build()?;
    if options.contains(&"--list") || options.contains(&"--help") {
        return here(&options, &out);
    }
    ensure!(
        is_root(),
        "namespaces need root: run the same command with sudo"
    );
    setup::lab()?;
    peers::fetch()?;
    if in_vm {
        inside(&options, &out)
    } else {
        here(&options, &out)
    }
}

/// The options without `--out DIR`, and where the results go.
fn take_out<'a>(options: &[&'a str]) -> Result<(Vec<&'a str>, PathBuf)> {
    let mut out = root().join("docs/bench");
    let mut rest = Vec::new();
    let mut options = options.iter();
    while let Some(&option) = options.next() {
        match option.strip_prefix("--out") {
            Some("") => out = options.next().context("--out wants a folder")?.into(),
            Some(folder) if folder.starts_with('=') => out = folder[1..].into(),
            _ => rest.push(option),
        }
    }
    Ok((rest, out))
}

/// With `LOWROAD_BIN_DIR`, what lies there is measured, and nothing is built.
fn build() -> Result<()> {
    tailnet::build(Build::Release)?;
    if env::var_os("LOWROAD_BIN_DIR").is_some() {
        return Ok(());
    }
    step(
        "building lowroad-bench",
        cargo()
            .args(["build", "--release", "--locked", "--quiet"])
            .args(["--package", "lowroad-bench"]),
    )
}

fn here(options: &[&str], out: &Path) -> Result<ExitCode> {
    let mut command = std::process::Command::new(tailnet::binaries().join("lowroad-bench"));
    command
        .arg("run")
        .args(options)
        .arg("--out")
        .arg(out)
        .env("LOWROAD_BIN_DIR", tailnet::binaries())
        .env("LOWROAD_BENCH_DIR", folder())
        .env("LOWROAD_BENCH_COMMIT", workspace::commit());
    if let Ok(path) = peers::path() {
        command.env("PATH", path);
    }
    let status = command.status().context("start lowroad-bench")?;
    Ok(ExitCode::from(
        u8::try_from(status.code().unwrap_or(1)).unwrap_or(1),
    ))
}

/// The guest's results come back through its console: nothing else is shared with it.
fn inside(options: &[&str], out: &Path) -> Result<ExitCode> {
    signals::catch();
    let command = format!(
        "LOWROAD_BENCH_DIR=/bench LOWROAD_BENCH_COMMIT={} lowroad-bench run --to-console {}",
        workspace::commit(),
        options.join(" ")
    );
    let mut results_text = None;
    let code = vm::with_files(
        &command,
        &files()?,
        &mut |line| match line.strip_prefix(RESULTS) {
            Some(text) => results_text = Some(text.to_owned()),
            None => println!("{line}"),
        },
    )?;
    let text = results_text.context("the guest's lowroad-bench gave no results")?;
    let raw = target().join("vm/bench.json");
    fs::write(&raw, text).with_context(|| format!("write {}", raw.display()))?;
    step(
        "writing the report",
        std::process::Command::new(tailnet::binaries().join("lowroad-bench"))
            .arg("report")
            .arg(&raw)
            .arg("--out")
            .arg(out),
    )?;
    Ok(ExitCode::from(code))
}

/// What the image gets: (path inside, path here).
fn files() -> Result<Vec<(String, PathBuf)>> {
    let mut files = vec![(
        "/bin/lowroad-bench".to_owned(),
        tailnet::binaries().join("lowroad-bench"),
    )];
    for (program, path) in peers::found()? {
        files.push((format!("/bin/{program}"), path));
    }
    for (kind, base) in [
        ("scenarios", folder()),
        ("drivers", folder()),
        ("drivers", own()),
    ] {
        let Ok(entries) = fs::read_dir(base.join(kind)) else {
            continue;
        };
        for entry in entries {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let inside = format!("/bench/{kind}/{name}");
            if files.iter().all(|(known, _)| *known != inside) {
                files.push((inside, path.clone()));
            }
        }
    }
    Ok(files)
}

/// Where scenarios are, and drivers that don't come along: somebody else's folder, or ours.
fn folder() -> PathBuf {
    env::var_os("LOWROAD_BENCH_DIR").map_or_else(own, PathBuf::from)
}

fn own() -> PathBuf {
    root().join("bench")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_results_folder_is_taken_out_of_the_options_for_the_vm_too() {
        let default = root().join("docs/bench");
        assert_eq!(take_out(&["--quick"]).unwrap(), (vec!["--quick"], default));
        for options in [&["a", "--out", "/x", "b"][..], &["a", "--out=/x", "b"]] {
            assert_eq!(take_out(options).unwrap(), (vec!["a", "b"], "/x".into()));
        }
        assert!(take_out(&["--out"]).is_err());
    }
}
