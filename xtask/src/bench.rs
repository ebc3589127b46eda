//! `cargo xtask bench [--vm] [name…]`: builds `lowroad-bench` and what it measures, fetches its peers, and starts it, here or in the VM.

mod peers;

use std::{env, fs, path::PathBuf, process::ExitCode};

use anyhow::{Context, Result, ensure};

use crate::{
    setup,
    shell::{cargo, output, step},
    signals, tailnet, vm,
    workspace::{is_root, root, target},
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
    build()?;
    if options.contains(&"--list") || options.contains(&"--help") {
        return here(&options);
    }
    ensure!(
        is_root(),
        "namespaces need root: run the same command with sudo"
    );
    setup::lab()?;
    peers::fetch()?;
    if in_vm {
        inside(&options)
    } else {
        here(&options)
    }
}

/// With `LOWROAD_BIN_DIR`, what lies there is measured, and nothing is built.
fn build() -> Result<()> {
    if env::var_os("LOWROAD_BIN_DIR").is_some() {
        return Ok(());
    }
    tailnet::build()?;
    step(
        "building lowroad-bench",
        cargo()
            .args(["build", "--release", "--locked", "--quiet"])
            .args(["--package", "lowroad-bench"]),
    )
}

fn here(options: &[&str]) -> Result<ExitCode> {
    let mut command = std::process::Command::new(tailnet::binaries().join("lowroad-bench"));
    command
        .arg("run")
        .args(options)
        .env("LOWROAD_BIN_DIR", tailnet::binaries())
        .env("LOWROAD_BENCH_DIR", root().join("bench"))
        .env("LOWROAD_BENCH_COMMIT", commit());
    if let Ok(path) = peers::path() {
        command.env("PATH", path);
    }
    if !options.iter().any(|option| option.starts_with("--out")) {
        command.arg("--out").arg(results());
    }
    let status = command.status().context("start lowroad-bench")?;
    Ok(ExitCode::from(
        u8::try_from(status.code().unwrap_or(1)).unwrap_or(1),
    ))
}

/// The guest's results come back through its console: nothing else is shared with it.
fn inside(options: &[&str]) -> Result<ExitCode> {
    signals::catch();
    let command = format!(
        "LOWROAD_BENCH_DIR=/bench LOWROAD_BENCH_COMMIT={} lowroad-bench run --to-console {}",
        commit(),
        options.join(" ")
    );
    let mut results_text = None;
    let code = vm::bench(
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
            .arg(results()),
    )?;
    Ok(ExitCode::from(code))
}

fn results() -> PathBuf {
    root().join("docs/bench")
}

/// What the image gets: (path inside, path here).
fn files() -> Result<Vec<(String, PathBuf)>> {
    let mut files = vec![(
        "/bin/lowroad-bench".to_owned(),
        tailnet::binaries().join("lowroad-bench"),
    )];
    for (program, path) in peers::found() {
        files.push((format!("/bin/{program}"), path));
    }
    for folder in ["scenarios", "drivers"] {
        for entry in fs::read_dir(root().join("bench").join(folder))? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            files.push((format!("/bench/{folder}/{name}"), path.clone()));
        }
    }
    Ok(files)
}

/// What was measured, by git.
fn commit() -> String {
    let git = |arguments: &[&str]| {
        output(
            std::process::Command::new("git")
                .current_dir(root())
                .args(arguments),
        )
    };
    let Ok(hash) = git(&["rev-parse", "--short=12", "HEAD"]) else {
        return "unknown".to_owned();
    };
    match git(&["status", "--porcelain", "--untracked-files=no"]) {
        Ok(changes) if changes.is_empty() => hash,
        _ => format!("{hash}-dirty"),
    }
}
