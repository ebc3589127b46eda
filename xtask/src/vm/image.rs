//! The initramfs: busybox, modules, our binaries with their libraries, and this xtask as its init.

use std::{
    env, fs,
    io::Write,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};

use super::{cpio::Archive, kernel::Kernel};
use crate::{
    shell::{find_program, output},
    tailnet,
    test::Binary,
    workspace::{root, target},
};

const TESTS: &str = "/tests";
/// Holds a folder for each kernel, named by its release.
pub const MODULES: &str = "/modules";
pub const SAMPLES: &str = "/samples";
/// Names another build of `lowroad`, which agents are replaced by: here, and in the guest, where it lies at [`OTHER_PROGRAM`].
pub const OTHER_VERSION: &str = "LOWROAD_OTHER_VERSION";
pub const OTHER_PROGRAM: &str = "/other-version/lowroad";
/// Below the folder that a test's package has: in the VM, that is root's home.
const CORPUS: &str = "corpus/ebpf";
const VECTORS: &str = "vectors/filter.jsonl";

/// Programs of the host that go along.
const HOST_PROGRAMS: &[&str] = &["ip", "tc", "nft", "wg"];

/// Packs it all, for any of these kernels, with Debian's systemd if there is one in `userland`; returns the archive's path.
pub fn build(
    kernels: &[Kernel],
    tests: &[Binary],
    files: &[(String, PathBuf)],
    userland: Option<&Path>,
) -> Result<PathBuf> {
    let folder = target().join("vm");
    fs::create_dir_all(&folder)?;
    let path = folder.join(match userland {
        Some(_) => "initramfs-systemd",
        None => "initramfs",
    });
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
        merged: userland.is_some(),
    };
    if let Some(userland) = userland {
        image.links_to_usr()?;
        image.tree(userland, "")?;
        for name in ["lowroad", "lowroad-coordinator"] {
            let path = format!("/usr/local/bin/{name}");
            image.archive.link(&path, &format!("/usr/bin/{name}"))?;
        }
        super::systemd::configure(&mut |path, content| image.archive.file(path, content))?;
    }
    // Before busybox's, of which some may have the same name: what is there already stays.
    for (inside, path) in files {
        image.program(inside, path)?;
    }
    image.base()?;
    for kernel in kernels {
        image.modules(kernel)?;
    }
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
    if let Some(other) = env::var_os(OTHER_VERSION) {
        image
            .program(OTHER_PROGRAM, Path::new(&other))
            .context(OTHER_VERSION)?;
    }
    for test in tests {
        let name = format!("{TESTS}/{}--{}", test.package, test.target);
        image.program(&name, &test.executable)?;
    }
    if !tests.is_empty() {
        image.fixtures()?;
    }
    image.archive.finish()?.flush()?;
    ensure!(zstd.wait()?.success(), "zstd failed");
    let megabytes = fs::metadata(&path)?.len() / 1_000_000;
    let releases: Vec<&str> = kernels.iter().map(|k| k.release.as_str()).collect();
    eprintln!(
        "   {} ({megabytes} MB), for the kernels {}",
        path.display(),
        releases.join(", ")
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
    /// `/bin`, `/lib` and so on are links to those in `/usr`, as Debian has them.
    merged: bool,
}

const MERGED: &[&str] = &["bin", "sbin", "lib", "lib64"];
/// What the guest can do without, of a package's files.
const LEFT_OUT: &[&str] = &[
    "usr/share",
    "usr/lib/x86_64-linux-gnu/gconv",
    "var",
    // What a machine with disks and devices does at boot, some seconds of an emulated one's time.
    "usr/lib/systemd/system-generators",
    "usr/lib/systemd/system/sysinit.target.wants",
];

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
        self.archive
            .program(&self.place("/bin/busybox"), &fs::read(&busybox)?)?;
        for applet in output(Command::new(&busybox).arg("--list"))?.lines() {
            if !HOST_PROGRAMS.contains(&applet) && applet != "busybox" {
                let path = self.place(&format!("/bin/{applet}"));
                self.archive.link(&path, "busybox")?;
            }
        }
        Ok(())
    }

    /// Where a file goes that would lie behind one of the links to `/usr`.
    fn place(&self, path: &str) -> String {
        let first = path.trim_start_matches('/').split('/').next();
        if self.merged && first.is_some_and(|first| MERGED.contains(&first)) {
            format!("/usr{path}")
        } else {
            path.to_owned()
        }
    }

    fn links_to_usr(&mut self) -> Result<()> {
        for name in MERGED {
            self.archive.folder(&format!("usr/{name}"))?;
            self.archive.link(name, &format!("usr/{name}"))?;
        }
        Ok(())
    }

    /// All files under `root`, of which `folder` is a part.
    fn tree(&mut self, root: &Path, folder: &str) -> Result<()> {
        let mut entries: Vec<_> = fs::read_dir(root.join(folder))?.collect::<Result<_, _>>()?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let name = entry.file_name().to_string_lossy().into_owned();
            let path = format!("{folder}/{name}")
                .trim_start_matches('/')
                .to_owned();
            let kind = entry.file_type()?;
            if LEFT_OUT.contains(&path.as_str()) {
                continue;
            }
            if kind.is_dir() {
                self.archive.folder(&path)?;
                self.tree(root, &path)?;
            } else if kind.is_symlink() {
                let target = fs::read_link(entry.path())?;
                self.archive.link(&path, &target.to_string_lossy())?;
            } else if entry.metadata()?.permissions().mode() & 0o111 != 0 {
                self.archive.program(&path, &fs::read(entry.path())?)?;
            } else {
                self.archive.file(&path, &fs::read(entry.path())?)?;
            }
        }
        Ok(())
    }

    fn modules(&mut self, kernel: &Kernel) -> Result<()> {
        let folder = format!("{MODULES}/{}", kernel.release);
        let mut list = String::new();
        for (name, content) in kernel.modules()? {
            let path = format!("{folder}/{name}.ko");
            self.archive.file(&path, &content)?;
            list.push_str(&path);
            list.push('\n');
        }
        self.archive
            .file(&format!("{folder}/list"), list.as_bytes())?;
        Ok(())
    }

    /// What tests read: the inputs kept for fuzzing the programs, and the stock filter's verdicts where this machine has
    /// them (tests that want them say so where it hasn't).
    fn fixtures(&mut self) -> Result<()> {
        let corpus = root().join("xtask/fuzz").join(CORPUS);
        for entry in fs::read_dir(&corpus).with_context(|| format!("read {}", corpus.display()))? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            self.archive
                .file(&format!("/root/{CORPUS}/{name}"), &fs::read(&path)?)?;
        }
        let samples = env::var_os("LOWROAD_SAMPLES")
            .map_or_else(|| root().join("../shared/samples"), PathBuf::from);
        let Ok(content) = fs::read(samples.join(VECTORS)) else {
            return Ok(());
        };
        self.archive
            .file(&format!("{SAMPLES}/{VECTORS}"), &content)?;
        Ok(())
    }

    /// A program without its debug information, and its libraries where the loader looks for them.
    fn program(&mut self, path: &str, from: &Path) -> Result<()> {
        let strip = Command::new("strip")
            .args(["--strip-debug", "-o"])
            .arg(&self.stripped)
            .arg(from)
            // A script is no object, and stays as it is.
            .stderr(Stdio::null())
            .status();
        let small = strip.is_ok_and(|status| status.success());
        let source = if small { self.stripped.as_path() } else { from };
        let content = fs::read(source).with_context(|| format!("read {}", from.display()))?;
        self.archive.program(&self.place(path), &content)?;
        let _ = fs::remove_file(&self.stripped);
        // Fails for static programs, which need none.
        let libraries = output(Command::new("ldd").arg(from)).unwrap_or_default();
        for library in libraries
            .split_whitespace()
            .filter(|word| word.starts_with('/'))
        {
            let path = self.place(library);
            if !self.archive.contains(&path) {
                let content = fs::read(library).with_context(|| format!("read {library}"))?;
                self.archive.program(&path, &content)?;
            }
        }
        Ok(())
    }
}
