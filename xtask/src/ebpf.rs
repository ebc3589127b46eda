//! `cargo xtask ebpf`: the kernel programs, into `target/bpf/lowroad.o`.

use std::{fs, path::PathBuf};

use anyhow::{Context, Result};

use crate::{
    setup,
    shell::{cargo, step},
    workspace::target,
};

const TARGET: &str = "bpfel-unknown-none";

pub fn build() -> Result<PathBuf> {
    let toolchain = setup::toolchain()?;
    let folder = target().join("ebpf");
    let flags = [
        format!("--cfg=bpf_target_arch=\"{}\"", std::env::consts::ARCH),
        "-Cdebuginfo=2".to_owned(),
        "-Clink-arg=--btf".to_owned(),
        format!("-Clinker={}", toolchain.bpf_linker.display()),
    ];
    step(
        "building the eBPF programs (the first time up to 90 s)",
        cargo()
            .args(["build", "--locked", "--profile", "ebpf", "--quiet"])
            .args(["--package", "lowroad-ebpf", "--bins"])
            .args(["--target", TARGET, "-Zbuild-std=core", "--target-dir"])
            .arg(&folder)
            // Unstable flags of this one command: build-std, for a target without a prebuilt core.
            .env("RUSTC_BOOTSTRAP", "1")
            .env("__CARGO_TESTS_ONLY_SRC_ROOT", &toolchain.rust_src)
            .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
            .env_remove("RUSTFLAGS"),
    )?;
    let built = folder.join(TARGET).join("ebpf/lowroad");
    let object = fs::read(&built).with_context(|| format!("read {}", built.display()))?;
    let destination = target().join("bpf/lowroad.o");
    fs::create_dir_all(destination.parent().expect("has a folder"))?;
    // Written only on change, so that the agent is not rebuilt for nothing.
    if fs::read(&destination).ok().as_deref() != Some(&object[..]) {
        fs::write(&destination, &object)
            .with_context(|| format!("write {}", destination.display()))?;
    }
    eprintln!("   {}", destination.display());
    Ok(destination)
}
