//! `cargo xtask vm [command]`: Debian 13's kernel in QEMU, with an initramfs made here and nothing shared with the host.

mod cpio;
mod guest;
mod image;
mod kernel;
mod qemu;
mod systemd;

use std::{process::ExitCode, time::Duration};

use anyhow::{Result, bail};

use crate::{
    apt, signals, tailnet,
    test::{Binary, Tally},
};

pub use guest::{command_of_systemd, is_init, main as init};

/// What the host needs besides what every Debian has: (program, package).
const PROGRAMS: &[(&str, &str)] = &[
    ("busybox", "busybox-static"),
    ("depmod", "kmod"),
    ("xz", "xz-utils"),
    ("zstd", "zstd"),
    ("ip", "iproute2"),
    ("nft", "nftables"),
];

/// Far above what the demo or the suite take on a busy machine.
const LIMIT: Duration = Duration::from_secs(20 * 60);

/// Runs a shell command in the VM, or without one an interactive shell.
pub fn main(command: &[&str]) -> Result<ExitCode> {
    if let Some(why) = unavailable() {
        bail!("{why}");
    }
    let machine = prepare(&[])?;
    if command.is_empty() {
        return machine.shell();
    }
    signals::catch();
    let code = machine.run(&command.join(" "), LIMIT, &mut |line| println!("{line}"))?;
    Ok(ExitCode::from(code))
}

/// Why there can be no VM here.
pub fn unavailable() -> Option<String> {
    if std::env::consts::ARCH != "x86_64" {
        return Some("the VM is made for x86_64".to_owned());
    }
    apt::debian_codename().is_none().then(|| {
        "the VM's kernel comes from Debian's archive, and this is not Debian with apt".to_owned()
    })
}

/// All that `setup` can do in advance.
pub fn setup() -> Result<String> {
    if let Some(why) = unavailable() {
        return Ok(why);
    }
    let _lock = crate::workspace::lock_tools()?;
    apt::install_programs(PROGRAMS)?;
    qemu::ensure()?;
    systemd::ensure()?;
    Ok(kernel::ensure()?.release)
}

/// Builds everything and packs it.
fn prepare(tests: &[Binary]) -> Result<qemu::Machine> {
    setup()?;
    tailnet::build()?;
    let _lock = crate::workspace::lock_tools()?;
    let kernel = kernel::ensure()?;
    let initramfs = image::build(&kernel, tests, None)?;
    Ok(qemu::Machine {
        kernel: kernel.image,
        initramfs,
    })
}

/// As [`prepare`], with Debian's systemd as the guest's first process.
fn prepare_systemd() -> Result<qemu::Machine> {
    setup()?;
    tailnet::build()?;
    let _lock = crate::workspace::lock_tools()?;
    let kernel = kernel::ensure()?;
    let initramfs = image::build(&kernel, &[], Some(&systemd::ensure()?))?;
    Ok(qemu::Machine {
        kernel: kernel.image,
        initramfs,
    })
}

/// `test vm`: the tests that want a whole kernel, and the VM's own scenarios.
pub fn suite(binaries: &[Binary], tally: &mut Tally) -> Result<()> {
    if let Some(why) = unavailable() {
        tally.skip("vm", &why);
        return Ok(());
    }
    let tests: Vec<Binary> = binaries
        .iter()
        .filter(|binary| binary.wants_vm())
        .cloned()
        .collect();
    inside(&prepare(&tests)?, "xtask vm-suite", tally)?;
    inside(&prepare_systemd()?, "xtask vm-units", tally)
}

/// `vm-units`: the service units alone.
pub fn units() -> Result<ExitCode> {
    if let Some(why) = unavailable() {
        bail!("{why}");
    }
    signals::catch();
    let mut tally = Tally::default();
    inside(&prepare_systemd()?, "xtask vm-units", &mut tally)?;
    Ok(tally.print())
}

/// Runs a suite in a fresh guest, and counts what it counted.
fn inside(machine: &qemu::Machine, command: &str, tally: &mut Tally) -> Result<()> {
    let mut inside = Tally::default();
    let code = machine.run(command, LIMIT, &mut |line| {
        if !inside.read_line(line) {
            eprintln!("   | {line}");
        }
    })?;
    let (passed, failed, _) = inside.counts();
    if code != 0 && failed == 0 {
        inside.fail("vm", &format!("the suite ended with {code}"));
    } else if code == 0 && passed == 0 {
        inside.fail("vm", "the suite ran no test");
    }
    tally.add(inside);
    Ok(())
}

/// Inside the VM: the suite itself.
pub fn suite_inside() -> Result<ExitCode> {
    signals::catch();
    let mut tally = Tally::default();
    for binary in image::tests_inside()? {
        binary.run(&["--test-threads=1", "kernel::"], &mut tally)?;
    }
    crate::lab::run(&[], &mut tally)?;
    tally.write_lines();
    Ok(tally.print())
}

/// Inside the VM with systemd: the scenarios of the service units.
pub fn units_inside() -> Result<ExitCode> {
    signals::catch();
    let mut tally = Tally::default();
    crate::lab::run_units(&mut tally)?;
    tally.write_lines();
    Ok(tally.print())
}

/// `demo --vm`.
pub fn demo() -> Result<ExitCode> {
    if let Some(why) = unavailable() {
        bail!("{why}");
    }
    signals::catch();
    let machine = prepare(&[])?;
    let code = machine.run("xtask demo", LIMIT, &mut |line| println!("{line}"))?;
    Ok(ExitCode::from(code))
}
