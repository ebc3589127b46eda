//! A tailnet of ours inside a [`Net`](crate::topology::Net): the coordinator and nodes, driven by their command lines.

mod client;
mod coordinator;
mod node;
mod wg;

use std::{
    env,
    path::{Path, PathBuf},
    sync::OnceLock,
    time::Instant,
};

use anyhow::Result;

pub use client::{Client, PathKind};
pub use coordinator::{Coordinator, URL, URL_V6};
pub use node::{Node, cleanup_failures, print_logs};
pub use wg::WgPeer;

use crate::{ebpf, shell::cargo, test, workspace::target};

/// Where the coordinator is on the public segment.
pub const COORDINATOR: u8 = 10;

/// Which build of our programs is run.
#[derive(Debug, Clone, Copy)]
pub enum Build {
    /// What users run.
    Release,
    /// What `cargo test` builds: with assertions and checked arithmetic, and without minutes for a second build of everything.
    Tests,
}

static FOLDER: OnceLock<PathBuf> = OnceLock::new();

/// Folder of the built `lowroad` and `lowroad-coordinator`, with `lowroad-hostile` beside them if tests were built; `LOWROAD_BIN_DIR` names another.
///
/// # Panics
///
/// If nobody has called [`build`].
pub fn binaries() -> &'static Path {
    FOLDER
        .get()
        .expect("programs are built before they are run")
}

/// Builds them, unless somebody else did (`LOWROAD_BIN_DIR`). The first call decides which build it is.
pub fn build(which: Build) -> Result<()> {
    if FOLDER.get().is_some() {
        return Ok(());
    }
    if let Some(folder) = env::var_os("LOWROAD_BIN_DIR") {
        FOLDER.get_or_init(|| folder.into());
        return Ok(());
    }
    ebpf::build()?;
    match which {
        Build::Release => release()?,
        Build::Tests => test::build().map(drop)?,
    }
    FOLDER.get_or_init(|| target().join(which.folder()));
    Ok(())
}

impl Build {
    fn folder(self) -> &'static str {
        match self {
            Self::Release => "release",
            Self::Tests => "debug",
        }
    }
}

fn release() -> Result<()> {
    crate::shell::step(
        "building lowroad and lowroad-coordinator (release; the first time some minutes)",
        cargo()
            .args(["build", "--release", "--locked", "--quiet"])
            .args(["--package", "lowroad-agent", "--package"])
            .arg("lowroad-coordinator"),
    )
}

/// Seconds with two digits.
pub fn seconds(time: std::time::Duration) -> String {
    format!("{:.2} s", time.as_secs_f64())
}

/// Does something and says how long it took.
pub fn timed<T>(work: impl FnOnce() -> Result<T>) -> Result<(T, std::time::Duration)> {
    let start = Instant::now();
    let value = work()?;
    Ok((value, start.elapsed()))
}
