//! `cargo xtask setup`: finds or fetches what the other tasks need. Safe to repeat; says what it does.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::{
    apt,
    shell::{cargo, find_program, output, step},
    vm,
    workspace::{ToolsLock, lock_tools, tools},
};

const BPF_LINKER: &str = "0.13.0";

/// Debian's packages of `rust-src`, by compiler release: (release, suite, package, sha256).
const RUST_SRC_PACKAGES: &[(&str, &str, &str, &str)] = &[(
    "1.95.0",
    "trixie-backports",
    "rust-src=1.95.0+dfsg1-2~bpo13+1",
    "7b76db5b880a77f9e52975d2baa6209d2f76d2c9c2789515c3088cb960e2c83b",
)];

/// What namespaces with NAT routers are made with: (program, package).
pub const LAB_PROGRAMS: &[(&str, &str)] = &[("ip", "iproute2"), ("nft", "nftables")];

/// All of it.
pub fn everything() -> Result<()> {
    let toolchain = toolchain()?;
    println!("rust-src    {}", toolchain.rust_src.display());
    println!("bpf-linker  {}", toolchain.bpf_linker.display());
    lab()?;
    println!("lab         {}", programs(LAB_PROGRAMS));
    println!("vm          {}", vm::setup()?);
    Ok(())
}

/// Programs that the lab, the demo and the tests in namespaces need.
pub fn lab() -> Result<()> {
    // Also in the VM, where nothing can be installed and all of it is there.
    if LAB_PROGRAMS
        .iter()
        .all(|(program, _)| find_program(program).is_some())
    {
        return Ok(());
    }
    let _lock = lock_tools()?;
    apt::install_programs(LAB_PROGRAMS)
}

fn programs(list: &[(&str, &str)]) -> String {
    list.iter()
        .map(|(program, _)| *program)
        .collect::<Vec<_>>()
        .join(", ")
}

/// What building for the BPF target needs.
#[derive(Debug)]
pub struct Toolchain {
    /// The standard library's sources, of exactly this compiler.
    pub rust_src: PathBuf,
    pub bpf_linker: PathBuf,
}

pub fn toolchain() -> Result<Toolchain> {
    let lock = lock_tools()?;
    let compiler = Compiler::find()?;
    Ok(Toolchain {
        rust_src: rust_src(&compiler, &lock)?,
        bpf_linker: bpf_linker(&compiler, &lock)?,
    })
}

struct Compiler {
    release: String,
    llvm_major: String,
    sysroot: PathBuf,
}

impl Compiler {
    fn find() -> Result<Self> {
        let rustc = || Command::new("rustc");
        let version = output(rustc().arg("-vV"))?;
        let field = |name: &str| {
            version
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
                .with_context(|| format!("`rustc -vV` names no {name}"))
        };
        let llvm = field("LLVM version")?;
        Ok(Self {
            release: field("release")?.to_owned(),
            llvm_major: llvm.split('.').next().unwrap_or(llvm).to_owned(),
            sysroot: output(rustc().args(["--print", "sysroot"]))?.into(),
        })
    }
}

fn rust_src(compiler: &Compiler, _lock: &ToolsLock) -> Result<PathBuf> {
    let complete = |library: &Path| {
        library.join("Cargo.lock").is_file() && library.join("core/src/lib.rs").is_file()
    };
    let own = compiler.sysroot.join("lib/rustlib/src/rust/library");
    if complete(&own) {
        return Ok(own);
    }
    let release = &compiler.release;
    let folder = tools()?.join(format!("rust-src-{release}"));
    let library = folder.join("library");
    if complete(&library) {
        return Ok(library);
    }
    let package = RUST_SRC_PACKAGES.iter().find(|entry| entry.0 == release);
    let (Some((_, suite, package, sha256)), Some(_)) = (package, apt::debian_codename()) else {
        bail!(
            "the sources of the standard library are missing: run `rustup component add rust-src`"
        );
    };
    eprintln!("=> fetching Debian's {package} for the BPF target's core library (45 MB)");
    let downloads = tools()?.join("apt-rust-src");
    let file = apt::Suites::open(&downloads, &[suite])?.download(package)?;
    let sum = output(Command::new("sha256sum").arg(&file))?;
    if !sum.starts_with(sha256) {
        bail!("{package} has the checksum {sum}, not the expected {sha256}");
    }
    let unpacked = folder.join("unpacked");
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&unpacked)?;
    output(Command::new("dpkg-deb").arg("-x").arg(&file).arg(&unpacked))?;
    fs::rename(
        unpacked.join(format!("usr/src/rustc-{release}/library")),
        &library,
    )
    .context("the package holds no library/ of this release")?;
    fs::remove_dir_all(&unpacked)?;
    fs::remove_dir_all(&downloads)?;
    if !complete(&library) {
        bail!("{package} doesn't hold the standard library's sources");
    }
    Ok(library)
}

/// bpf-linker, linked against the very libLLVM that rustc itself uses: no LLVM package is needed.
fn bpf_linker(compiler: &Compiler, _lock: &ToolsLock) -> Result<PathBuf> {
    let tools = tools()?;
    let binary = tools.join("bin/bpf-linker");
    let version = output(Command::new(&binary).arg("--version"));
    if version.is_ok_and(|version| version.ends_with(BPF_LINKER)) {
        return Ok(binary);
    }
    let llvm = tools.join("llvm");
    link_llvm(&compiler.sysroot.join("lib"), &llvm.join("lib"))?;
    let build = tools.join("build");
    step(
        "building bpf-linker (about 90 s, once)",
        cargo()
            .args(["install", "bpf-linker", "--version", BPF_LINKER])
            .args(["--locked", "--force", "--debug", "--no-default-features"])
            .args(["--features", &format!("llvm-{}", compiler.llvm_major)])
            .arg("--root")
            .arg(&tools)
            .arg("--target-dir")
            .arg(&build)
            .env("LLVM_PREFIX", &llvm)
            .env("CARGO_PROFILE_DEV_DEBUG", "0")
            .env_remove("RUSTFLAGS")
            .env_remove("CARGO_ENCODED_RUSTFLAGS"),
    )?;
    fs::remove_dir_all(&build).context("remove bpf-linker's build folder")?;
    Ok(binary)
}

fn link_llvm(sysroot: &Path, folder: &Path) -> Result<()> {
    let library = fs::read_dir(sysroot)
        .with_context(|| format!("read {}", sysroot.display()))?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with("libLLVM.so.")
        })
        .context("rustc has no libLLVM.so.* of its own: use a toolchain from rustup")?;
    fs::create_dir_all(folder)?;
    let own_name = library.file_name().expect("found by its file name");
    for name in ["libLLVM.so".as_ref(), own_name] {
        let link = folder.join(name);
        let _ = fs::remove_file(&link);
        symlink(&library, &link).with_context(|| format!("link {}", link.display()))?;
    }
    Ok(())
}
