//! Where things are.

use std::{
    env, fs,
    fs::File,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

/// The workspace root. Inside the VM there is no workspace, and nothing that needs one runs there.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("xtask/ lies in the workspace")
        .to_owned()
}

/// Cargo's output folder.
pub fn target() -> PathBuf {
    root().join("target")
}

/// Tools and downloads: survives `cargo clean -p`, shared by all tasks. `LOWROAD_TOOLS` moves it.
pub fn tools() -> Result<PathBuf> {
    let tools = env::var_os("LOWROAD_TOOLS").map_or_else(|| target().join("tools"), PathBuf::from);
    fs::create_dir_all(&tools).with_context(|| format!("make {}", tools.display()))?;
    // Absolute, because bpf-linker keeps the path of its LLVM.
    fs::canonicalize(&tools).with_context(|| format!("find {}", tools.display()))
}

/// Keeps two setups from filling the tools folder at once. Released when dropped.
#[derive(Debug)]
pub struct ToolsLock {
    _file: File,
}

pub fn lock_tools() -> Result<ToolsLock> {
    let path = tools()?.join(".lock");
    let file = File::create(&path).with_context(|| format!("create {}", path.display()))?;
    // SAFETY: flock on a descriptor that `file` keeps open.
    if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } != 0 {
        eprintln!("   waiting for another xtask to finish its setup");
        // SAFETY: as above.
        if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX) } != 0 {
            bail!(
                "lock {}: {}",
                path.display(),
                std::io::Error::last_os_error()
            );
        }
    }
    Ok(ToolsLock { _file: file })
}

pub fn is_root() -> bool {
    // SAFETY: takes no arguments and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

/// What is measured and tried, by git.
pub fn commit() -> String {
    let git = |arguments: &[&str]| {
        crate::shell::output(
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
