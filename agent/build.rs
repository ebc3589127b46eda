//! Takes the object that `cargo xtask ebpf` built. No nested cargo here.
use std::{env, fs, path::PathBuf};

fn main() {
    let object = env::var_os("LOWROAD_EBPF_OBJECT").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target/bpf/lowroad.o"),
        PathBuf::from,
    );
    println!("cargo:rerun-if-env-changed=LOWROAD_EBPF_OBJECT");
    println!("cargo:rerun-if-changed={}", object.display());
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("lowroad.o");
    if let Err(error) = fs::copy(&object, &out) {
        println!(
            "cargo::error=the eBPF object {} is missing ({error}): run `cargo xtask ebpf` first",
            object.display()
        );
    }
}
