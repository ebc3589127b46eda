//! Debian's systemd for the guest, unpacked beside our tools and installed nowhere, and the units that run there.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use crate::{
    apt::Suites,
    workspace::{root, tools},
};

/// That of the kernel.
const SUITE: &str = "trixie";
const PACKAGES: &[&str] = &["systemd"];

/// The first target, and the service that runs the guest's command in it.
const TARGET: &str = "[Unit]\nWants=lowroad-test.service\nAfter=lowroad-test.service\n";
const TEST: &str = "\
[Unit]
DefaultDependencies=no
[Service]
Type=oneshot
ExecStart=/usr/bin/xtask vm-command
StandardOutput=tty
StandardError=tty
TTYPath=/dev/console
TimeoutStartSec=infinity
";

/// Finds or fetches it (13 MB).
pub fn ensure() -> Result<PathBuf> {
    let folder = tools()?.join(format!("systemd-{SUITE}"));
    if folder.join("usr/lib/systemd/systemd").is_file() {
        return Ok(folder);
    }
    eprintln!("=> fetching the systemd of Debian {SUITE} for the VM (13 MB)");
    let downloads = tools()?.join("apt-systemd");
    let _ = fs::remove_dir_all(&downloads);
    let unpacked = folder.with_extension("new");
    let _ = fs::remove_dir_all(&unpacked);
    fs::create_dir_all(&unpacked)?;
    Suites::open(&downloads, &[SUITE])?.unpack(PACKAGES, &unpacked)?;
    fs::remove_dir_all(&downloads)?;
    let _ = fs::remove_dir_all(&folder);
    fs::rename(&unpacked, &folder).context("keep the unpacked systemd")?;
    Ok(folder)
}

/// Adds what the guest's `/etc` needs, our units among it, as README tells people to install them.
pub fn configure(add: &mut dyn FnMut(&str, &[u8]) -> io::Result<()>) -> Result<()> {
    for unit in [
        "agent/dist/lowroad.service",
        "coordinator/dist/lowroad-coordinator.service",
    ] {
        let text = fs::read(root().join(unit)).with_context(|| format!("read {unit}"))?;
        let name = Path::new(unit)
            .file_name()
            .expect("a file")
            .to_string_lossy();
        add(&format!("/etc/systemd/system/{name}"), &text)?;
    }
    for (path, content) in [
        ("/etc/systemd/system/lowroad-test.service", TEST),
        ("/etc/systemd/system/default.target", TARGET),
        ("/etc/machine-id", "c0ffee00c0ffee00c0ffee00c0ffee00\n"),
        ("/etc/hostname", "alpha\n"),
        ("/etc/os-release", "ID=debian\nNAME=Debian\nVERSION_ID=13\n"),
        (
            "/etc/passwd",
            "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n",
        ),
        (
            "/etc/group",
            "root:x:0:\nlowroad:x:4242:\nnogroup:x:65534:\n",
        ),
        (
            "/etc/nsswitch.conf",
            "passwd: files\ngroup: files\nhosts: files\n",
        ),
    ] {
        add(path, content.as_bytes())?;
    }
    Ok(())
}
