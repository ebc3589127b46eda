//! Kernels of Debian's releases with their modules, unpacked beside our tools and installed nowhere.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use crate::{apt::Suites, shell::output, workspace::tools};

/// The releases whose kernels we boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Debian {
    /// 13, with 6.12: filters hang on the device by TCX.
    Trixie,
    /// 12, with 6.1: filters hang on the device by clsact.
    Bookworm,
}

impl Debian {
    pub const ALL: [Self; 2] = [Self::Trixie, Self::Bookworm];

    pub const fn suite(self) -> &'static str {
        match self {
            Self::Trixie => "trixie",
            Self::Bookworm => "bookworm",
        }
    }

    pub fn named(name: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|release| release.suite() == name)
    }
}

/// Depends on the current kernel package of the suite, whose name has the version in it.
const META_PACKAGE: &str = "linux-image-cloud-amd64";

/// What we need of it, besides what the kernel has built in.
const MODULES: &[&str] = &[
    "wireguard",
    "veth",
    "tun",
    "bridge",
    "dummy",
    "nf_tables",
    "nft_ct",
    "nft_masq",
    "nft_nat",
    "nft_chain_nat",
    "sch_ingress",
    "sch_netem",
    "cls_bpf",
    "act_bpf",
    "cls_matchall",
    "act_gact",
];

#[derive(Debug)]
pub struct Kernel {
    pub release: String,
    pub image: PathBuf,
    modules: PathBuf,
}

/// Finds or fetches it (25 to 34 MB).
pub fn ensure(debian: Debian) -> Result<Kernel> {
    let suite = debian.suite();
    let folder = tools()?.join(format!("kernel-{suite}"));
    if let Ok(kernel) = Kernel::in_folder(&folder) {
        return Ok(kernel);
    }
    eprintln!("=> fetching the kernel of Debian {suite} for the VM");
    let downloads = tools()?.join("apt-kernel");
    let suites = Suites::open(&downloads, &[suite])?;
    let package = suites.dependency(META_PACKAGE, "linux-image-")?;
    let file = suites.download(&package)?;
    let _ = fs::remove_dir_all(&folder);
    output(Command::new("dpkg-deb").arg("-x").arg(&file).arg(&folder))?;
    fs::remove_dir_all(&downloads)?;
    // depmod wants lib/modules, which Debian 13's package has under usr/.
    let modules = folder.join("usr/lib/modules");
    if modules.is_dir() && !folder.join("lib").exists() {
        std::os::unix::fs::symlink("usr/lib", folder.join("lib"))?;
    }
    let release = only_entry(&folder.join("lib/modules"))?;
    let depmod = crate::shell::find_program("depmod").context("there is no depmod")?;
    output(Command::new(depmod).arg("-b").arg(&folder).arg(&release))?;
    Kernel::in_folder(&folder)
}

fn only_entry(folder: &Path) -> Result<String> {
    let entry = fs::read_dir(folder)
        .with_context(|| format!("read {}", folder.display()))?
        .flatten()
        .next()
        .with_context(|| format!("{} is empty", folder.display()))?;
    Ok(entry.file_name().to_string_lossy().into_owned())
}

impl Kernel {
    fn in_folder(folder: &Path) -> Result<Self> {
        let release = only_entry(&folder.join("lib/modules"))?;
        let kernel = Self {
            image: folder.join(format!("boot/vmlinuz-{release}")),
            modules: folder.join("lib/modules").join(&release),
            release,
        };
        for file in [&kernel.image, &kernel.modules.join("modules.dep")] {
            anyhow::ensure!(file.is_file(), "{} is missing", file.display());
        }
        Ok(kernel)
    }

    /// Our modules and those that they need, decompressed, in the order in which they load.
    pub fn modules(&self) -> Result<Vec<(String, Vec<u8>)>> {
        let dependencies = fs::read_to_string(self.modules.join("modules.dep"))?;
        let mut order: Vec<&str> = Vec::new();
        for module in MODULES {
            // What isn't listed is built in.
            let line = dependencies.lines().find(|line| name_of(line) == *module);
            let Some((path, needs)) = line.and_then(|line| line.split_once(':')) else {
                continue;
            };
            for path in needs.split_whitespace().rev().chain([path]) {
                if !order.contains(&path) {
                    order.push(path);
                }
            }
        }
        order
            .into_iter()
            .map(|path| Ok((name_of(path).to_owned(), self.read_module(path)?)))
            .collect()
    }

    fn read_module(&self, path: &str) -> Result<Vec<u8>> {
        let file = self.modules.join(path);
        let unpack = match file.extension().and_then(|extension| extension.to_str()) {
            Some("xz") => "xz",
            Some("zst") => "zstd",
            _ => return fs::read(&file).with_context(|| format!("read {}", file.display())),
        };
        let output = Command::new(unpack).arg("-dc").arg(&file).output()?;
        anyhow::ensure!(output.status.success(), "{unpack} -dc {}", file.display());
        Ok(output.stdout)
    }
}

/// `kernel/net/foo-bar.ko.xz: …` is the module `foo_bar`, but we name modules as their files do, with `_` for `-`.
fn name_of(line: &str) -> &str {
    let path = line.split(':').next().unwrap_or(line);
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split(".ko").next().unwrap_or(file)
}
