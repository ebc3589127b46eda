//! Running programs: said aloud, with the time they took.

use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use anyhow::{Context, Result, bail};

/// The cargo that runs us.
pub fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo")));
    command.current_dir(crate::workspace::root());
    // `cargo run` tells us about our own package. Build scripts that watch these variables (ring's does) would run again,
    // and half the workspace would be built anew, whenever a plain cargo and an xtask take turns.
    for (name, _) in env::vars_os() {
        let name = name.to_string_lossy();
        if name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") {
            command.env_remove(&*name);
        }
    }
    command
}

/// Says what is done, does it with the terminal's output, and says how long it took.
pub fn step(what: &str, command: &mut Command) -> Result<()> {
    eprintln!("=> {what}");
    let start = Instant::now();
    let status = command
        .status()
        .with_context(|| format!("start {}", name(command)))?;
    if !status.success() {
        bail!("{what}: {} ended with {status}", describe(command));
    }
    eprintln!("   done in {:.1} s", start.elapsed().as_secs_f32());
    Ok(())
}

/// Standard output of a program that must succeed.
pub fn output(command: &mut Command) -> Result<String> {
    let output = command
        .output()
        .with_context(|| format!("start {}", name(command)))?;
    if !output.status.success() {
        bail!(
            "{} ended with {}: {}",
            describe(command),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// A program's path, looked up in `PATH` and in the folders that a user's `PATH` may lack.
pub fn find_program(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from))
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
}

fn name(command: &Command) -> String {
    Path::new(command.get_program()).display().to_string()
}

fn describe(command: &Command) -> String {
    let mut text = name(command);
    for argument in command.get_args() {
        text.push(' ');
        text.push_str(&argument.to_string_lossy());
    }
    text
}
