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

use crate::{ebpf, shell::cargo, workspace::target};

/// Where the coordinator is on the public segment.
pub const COORDINATOR: u8 = 10;

/// Folder of the built `lowroad` and `lowroad-coordinator`; `LOWROAD_BIN_DIR` names another.
pub fn binaries() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        env::var_os("LOWROAD_BIN_DIR").map_or_else(|| target().join("release"), PathBuf::from)
    })
}

/// Builds them, unless somebody else did (`LOWROAD_BIN_DIR`).
pub fn build() -> Result<()> {
    if env::var_os("LOWROAD_BIN_DIR").is_some() {
        return Ok(());
    }
    ebpf::build()?;
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
