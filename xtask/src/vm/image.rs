//! The initramfs: busybox, modules, our binaries with their libraries, and this xtask as its init.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};

use super::{cpio::Archive, kernel::Kernel};
use crate::{
    shell::{find_program, output},
    tailnet,
    test::Binary,
    workspace::target,
};

const TESTS: &str = "/tests";

/// Programs of the host that go along.
const HOST_PROGRAMS: &[&str] = &["ip", "tc", "nft"];

/// Packs it all; returns the archive's path.
pub fn build(kernel: &Kernel, tests: &[Binary]) -> Result<PathBuf> {
    let folder = target().join("vm");
    fs::create_dir_all(&folder)?;
    let path = folder.join("initramfs");
    eprintln!("=> packing the VM's initramfs");
    let mut zstd = Command::new("zstd")
        .args(["-q", "-3", "-T0", "-f", "-o"])
        .arg(&path)
        .stdin(Stdio::piped())
        .spawn()
        .context("start zstd")?;
    let pipe = zstd.stdin.take().expect("piped");
    let mut image = Image {
        archive: Archive::new(std::io::BufWriter::with_capacity(1 << 20, pipe)),
        stripped: folder.join("stripped"),
    };
    image.base()?;
    image.modules(kernel)?;
    for program in HOST_PROGRAMS {
        let found = find_program(program).with_context(|| format!("there is no {program}"))?;
        image.program(&format!("/bin/{program}"), &found)?;
    }
    // By our process: a build may have replaced the file meanwhile.
    let ourselves = format!("/proc/{}/exe", std::process::id());
    image.program("/bin/xtask", Path::new(&ourselves))?;
    for name in ["lowroad", "lowroad-coordinator"] {
        image.program(&format!("/bin/{name}"), &tailnet::binaries().join(name))?;
    }
    for test in tests {
        let name = format!("{TESTS}/{}--{}", test.package, test.target);
        image.program(&name, &test.executable)?;
    }
    image.archive.finish()?.flush()?;
    ensure!(zstd.wait()?.success(), "zstd failed");
    let megabytes = fs::metadata(&path)?.len() / 1_000_000;
    eprintln!(
        "   {} ({megabytes} MB), kernel {}",
        path.display(),
        kernel.release
    );
    Ok(path)
}

/// Inside the VM: the tests that came along.
pub fn tests_inside() -> Result<Vec<Binary>> {
    let Ok(entries) = fs::read_dir(TESTS) else {
        return Ok(Vec::new());
    };
    let mut tests: Vec<Binary> = entries
        .flatten()
        .filter_map(|entry| Binary::packed(&entry.path()))
        .collect();
    tests.sort_by_key(Binary::name);
    Ok(tests)
}

struct Image<W: Write> {
    archive: Archive<W>,
    stripped: PathBuf,
}

impl<W: Write> Image<W> {
    fn base(&mut self) -> Result<()> {
        for folder in ["proc", "sys", "dev", "tmp", "run", "root", "etc", "mnt"] {
            self.archive.folder(folder)?;
        }
        // Before devtmpfs is mounted, init needs somewhere to write to.
        self.archive.character_device("/dev/console", 5, 1)?;
        self.archive
            .file("/etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n")?;
        self.archive
            .file("/etc/hosts", b"127.0.0.1 localhost\n::1 localhost\n")?;
        self.archive.link("/init", "bin/xtask")?;
        let busybox = find_program("busybox").context("there is no busybox")?;
        self.archive.file("/bin/busybox", &fs::read(&busybox)?)?;
        for applet in output(Command::new(&busybox).arg("--list"))?.lines() {
            if !HOST_PROGRAMS.contains(&applet) && applet != "busybox" {
                self.archive.link(&format!("/bin/{applet}"), "busybox")?;
            }
        }
        Ok(())
    }

    fn modules(&mut self, kernel: &Kernel) -> Result<()> {
        let mut list = String::new();
        for (name, content) in kernel.modules()? {
            let path = format!("/modules/{name}.ko");
            self.archive.file(&path, &content)?;
            list.push_str(&path);
            list.push('\n');
        }
        self.archive.file("/modules/list", list.as_bytes())?;
        Ok(())
    }

    /// A program without its debug information, and its libraries where the loader looks for them.
    fn program(&mut self, path: &str, from: &Path) -> Result<()> {
        let strip = Command::new("strip")
            .args(["--strip-debug", "-o"])
            .arg(&self.stripped)
            .arg(from)
            .status();
        let small = strip.is_ok_and(|status| status.success());
        let source = if small { self.stripped.as_path() } else { from };
        let content = fs::read(source).with_context(|| format!("read {}", from.display()))?;
        self.archive.file(path, &content)?;
        let _ = fs::remove_file(&self.stripped);
        // Fails for static programs, which need none.
        let libraries = output(Command::new("ldd").arg(from)).unwrap_or_default();
        for library in libraries
            .split_whitespace()
            .filter(|word| word.starts_with('/'))
        {
            if !self.archive.contains(library) {
                let content = fs::read(library).with_context(|| format!("read {library}"))?;
                self.archive.file(library, &content)?;
            }
        }
        Ok(())
    }
}
