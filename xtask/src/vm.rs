//! `cargo xtask vm [--kernel trixie|bookworm] [command]`: a kernel of Debian's in QEMU, with an initramfs made here and nothing
//! shared with the host. `xtask vm-suite KERNEL [name]…` is a command of the guest: the suite, or of it scenarios and the packed tests (`tests`).

mod cpio;
mod guest;
mod image;
mod kernel;
mod qemu;
mod systemd;

use std::{
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use crate::{
    apt, ebpf, signals,
    tailnet::{self, Build},
    test::{self, Binary, Tally},
};

use kernel::Kernel;

pub use guest::{command_of_systemd, is_init, main as init};
pub use image::OTHER_VERSION;
pub use kernel::Debian;
pub use qemu::Machine;

/// What the host needs besides what every Debian has: (program, package).
const PROGRAMS: &[(&str, &str)] = &[
    ("busybox", "busybox-static"),
    ("depmod", "kmod"),
    ("xz", "xz-utils"),
    ("zstd", "zstd"),
    ("ip", "iproute2"),
    ("nft", "nftables"),
    ("wg", "wireguard-tools"),
];

/// Far above what the demo or a suite take on a busy machine; and with `LOWROAD_LONG`, every step of `traces` included.
const LIMIT: Duration = Duration::from_secs(20 * 60);
const LONG_LIMIT: Duration = Duration::from_secs(3 * 60 * 60);

/// By which a command, or our own environment, asks for what takes hours.
const LONG: &str = "LOWROAD_LONG=";

/// What runs scenarios there, and the name by which it runs the packed test binaries.
const SUITE: &str = "vm-suite";
const TESTS: &str = "tests";

/// Of the scenarios `hostile-*`.
const ATTACKER: &str = "lowroad-hostile";

/// Runs a shell command in the VM, or without one an interactive shell; `--kernel NAME` in front names the kernel.
pub fn main(arguments: &[&str]) -> Result<ExitCode> {
    if let Some(why) = unavailable() {
        bail!("{why}");
    }
    let (debian, command) = match arguments {
        ["--kernel", name, command @ ..] => (named(name)?, command),
        [option, command @ ..] if option.starts_with("--kernel=") => {
            (named(&option["--kernel=".len()..])?, command)
        }
        command => (Debian::Trixie, command),
    };
    let machine = prepare(debian, Wanted::by(command))?;
    if command.is_empty() {
        return machine.shell();
    }
    signals::catch();
    let (command, limit) = limited(command, crate::lab::long());
    let code = machine.run(&command, limit, &mut |line| println!("{line}"))?;
    Ok(ExitCode::from(code))
}

/// What the guest's shell is to do, and for how long it may. The guest has none of our environment: what that asks for is told there.
fn limited(command: &[&str], long: bool) -> (String, Duration) {
    let text = command.join(" ");
    let asks = text.split_whitespace().any(|word| word.starts_with(LONG));
    match (asks, long) {
        (true, _) => (text, LONG_LIMIT),
        (false, true) => (format!("export {LONG}1; {text}"), LONG_LIMIT),
        (false, false) => (text, LIMIT),
    }
}

fn named(name: &str) -> Result<Debian> {
    let all = Debian::ALL.map(Debian::suite).join(", ");
    Debian::named(name).with_context(|| format!("no kernel `{name}`; there are {all}"))
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
    let kernels: Vec<String> = kernels()?.into_iter().map(|k| k.release).collect();
    Ok(kernels.join(", "))
}

fn kernels() -> Result<Vec<Kernel>> {
    Debian::ALL.into_iter().map(kernel::ensure).collect()
}

/// What the image has to hold for a command.
#[derive(Debug, PartialEq, Eq)]
struct Wanted {
    /// Lowroad as the tests build it, and what attacks it.
    scenarios: bool,
    tests: bool,
}

impl Wanted {
    fn by(command: &[&str]) -> Self {
        let text = command.join(" ");
        let words: Vec<&str> = text.split_whitespace().collect();
        let suite = words.iter().position(|word| *word == SUITE);
        // Behind the kernel's; without one it runs everything.
        let names = suite.map(|at| words.get(at + 2..).unwrap_or_default());
        Self {
            scenarios: suite.is_some() || words.contains(&"lab"),
            tests: names.is_some_and(|names| names.is_empty() || names.contains(&TESTS)),
        }
    }
}

/// Builds what a command wants and packs it, for a machine with the kernel of this release.
fn prepare(debian: Debian, wanted: Wanted) -> Result<Machine> {
    let tests = if wanted.tests {
        ebpf::build()?;
        packed(&test::build()?)
    } else {
        Vec::new()
    };
    let build = if wanted.scenarios {
        Build::Tests
    } else {
        Build::Release
    };
    prepare_with(debian, build, &tests, &[])
}

fn packed(binaries: &[Binary]) -> Vec<Binary> {
    let of_vm = binaries.iter().filter(|binary| binary.goes_to_vm());
    of_vm.cloned().collect()
}

/// The attacker's place in the image. Whoever names a folder of programs (`LOWROAD_BIN_DIR`) may have none there.
fn attacker() -> Option<(String, PathBuf)> {
    let path = tailnet::binaries().join(ATTACKER);
    if !path.exists() {
        eprintln!(
            "   there is no {}: in this machine the scenarios `hostile-*` fail",
            path.display()
        );
        return None;
    }
    Some((format!("/bin/{ATTACKER}"), path))
}

/// With tests in the image, and more files: (path inside, path here).
fn prepare_with(
    debian: Debian,
    build: Build,
    tests: &[Binary],
    files: &[(String, PathBuf)],
) -> Result<Machine> {
    setup()?;
    tailnet::build(build)?;
    let _lock = crate::workspace::lock_tools()?;
    let mut files = files.to_vec();
    if matches!(build, Build::Tests) {
        files.extend(attacker());
    }
    let initramfs = image::build(&kernels()?, tests, &files, None)?;
    Ok(Machine {
        kernel: kernel::ensure(debian)?.image,
        initramfs,
    })
}

/// As [`prepare`], with Debian 13's systemd as the guest's first process.
fn prepare_systemd() -> Result<Machine> {
    setup()?;
    tailnet::build(Build::Tests)?;
    let _lock = crate::workspace::lock_tools()?;
    let kernel = kernel::ensure(Debian::Trixie)?;
    let image = kernel.image.clone();
    let initramfs = image::build(&[kernel], &[], &[], Some(&systemd::ensure()?))?;
    Ok(Machine {
        kernel: image,
        initramfs,
    })
}

/// `test vm`: the tests that want a whole kernel, and the VM's own scenarios, on each kernel.
pub fn suite(binaries: &[Binary], tally: &mut Tally) -> Result<()> {
    if let Some(why) = unavailable() {
        tally.skip("vm", &why);
        return Ok(());
    }
    let tests = packed(binaries);
    let mut machine = prepare_with(Debian::Trixie, Build::Tests, &tests, &[])?;
    let long = if crate::lab::long() {
        "LOWROAD_LONG=1 "
    } else {
        ""
    };
    for debian in Debian::ALL {
        machine.kernel = kernel::ensure(debian)?.image;
        let suite = debian.suite();
        inside(
            &machine,
            &format!("vm/{suite}"),
            &format!("{long}xtask {SUITE} {suite}"),
            tally,
        )?;
    }
    inside(&prepare_systemd()?, "vm/units", "xtask vm-units", tally)
}

/// `vm-units`: the service units alone.
pub fn units() -> Result<ExitCode> {
    if let Some(why) = unavailable() {
        bail!("{why}");
    }
    signals::catch();
    let mut tally = Tally::default();
    inside(
        &prepare_systemd()?,
        "vm/units",
        "xtask vm-units",
        &mut tally,
    )?;
    Ok(tally.print())
}

/// Runs a suite in a fresh guest, and counts what it counted.
fn inside(machine: &Machine, name: &str, command: &str, tally: &mut Tally) -> Result<()> {
    let start = Instant::now();
    let mut inside = Tally::default();
    let limit = if crate::lab::long() {
        LONG_LIMIT
    } else {
        LIMIT
    };
    let ended = machine.run(command, limit, &mut |line| {
        if !inside.read_line(name, line) {
            eprintln!("   | {line}");
        }
    });
    signals::check()?;
    let (passed, failed, skipped) = inside.counts();
    eprintln!(
        "   {name}: {passed} passed, {failed} failed, {skipped} skipped in {:.0} s",
        start.elapsed().as_secs_f32()
    );
    match ended {
        Err(error) => inside.fail(name, &format!("{error:#}")),
        Ok(0) if passed == 0 => inside.fail(name, "the suite ran no test"),
        Ok(code) if code != 0 && failed == 0 => {
            inside.fail(name, &format!("the suite ended with {code}"));
        }
        Ok(_) => {}
    }
    tally.add(inside);
    Ok(())
}

/// Tests that run on the host only, and why.
const LEFT_OUT: [(&str, &str); 2] = [
    (
        "speed::",
        "a measurement, which means nothing on an emulated CPU",
    ),
    (
        "flood_of_others",
        "takes an emulated CPU a minute, and ran on the host",
    ),
];

/// And of those that judge packets, whoever's hooks they pass: Debian 13's kernel has the host's, and Debian 12's, with the oldest verifier, has them all.
const LEFT_OUT_ON_TRIXIE: [(&str, &str); 2] = [
    (
        "property::",
        "judges packets only: ran on the host, and runs on Debian 12's kernel",
    ),
    (
        "stock::",
        "judges packets only: ran on the host, and runs on Debian 12's kernel",
    ),
];

/// Inside the VM: the suite itself, or of it what has these names: `tests`, and scenarios.
pub fn suite_inside(kernel: &str, names: &[&str]) -> Result<ExitCode> {
    signals::catch();
    let debian = named(kernel)?;
    let mut tally = Tally::default();
    let scenarios = names.iter().copied().filter(|name| *name != TESTS);
    let scenarios: Vec<&str> = scenarios.collect();
    if names.is_empty() || names.contains(&TESTS) {
        tests_inside(debian, &mut tally)?;
    }
    // None of them by its name: all of them, or `tests` alone.
    if names.is_empty() || !scenarios.is_empty() {
        crate::lab::run_in_vm(debian, &scenarios, &mut tally)?;
    }
    Ok(tally.print())
}

fn tests_inside(debian: Debian, tally: &mut Tally) -> Result<()> {
    let binaries = image::tests_inside()?;
    if binaries.is_empty() {
        tally.fail(TESTS, "this machine's image was packed without them");
    }
    test::side_by_side(&binaries, tally, |binary, tally| {
        run_inside(debian, binary, tally)
    })
}

fn run_inside(debian: Debian, binary: &Binary, tally: &mut Tally) -> Result<()> {
    // The userspace device is the host's affair: there it runs without emulation.
    let mut arguments = vec!["--test-threads=1"];
    if binary.wants_vm() {
        arguments.push("kernel::");
    } else {
        let on_trixie = match debian {
            Debian::Trixie if !crate::lab::long() => &LEFT_OUT_ON_TRIXIE[..],
            _ => &[],
        };
        for (left_out, why) in LEFT_OUT.iter().chain(on_trixie) {
            arguments.extend(["--skip", left_out]);
            tally.skip(&format!("{} {left_out}", binary.name()), why);
        }
    }
    let ran = binary.run(&arguments, tally);
    tally.write_lines();
    ran
}

/// Inside the VM with systemd: the scenarios of the service units.
pub fn units_inside() -> Result<ExitCode> {
    signals::catch();
    let mut tally = Tally::default();
    crate::lab::run_units(&mut tally)?;
    Ok(tally.print())
}

/// `bench --vm`, `interop --vm`: a command, with more files in the image.
pub fn with_files(
    command: &str,
    files: &[(String, PathBuf)],
    on_line: &mut dyn FnMut(&str),
) -> Result<u8> {
    if let Some(why) = unavailable() {
        bail!("{why}");
    }
    prepare_with(Debian::Trixie, Build::Release, &[], files)?.run(command, LIMIT, on_line)
}

/// `demo --vm`.
pub fn demo() -> Result<ExitCode> {
    if let Some(why) = unavailable() {
        bail!("{why}");
    }
    signals::catch();
    let machine = prepare_with(Debian::Trixie, Build::Release, &[], &[])?;
    let code = machine.run("xtask demo", LIMIT, &mut |line| println!("{line}"))?;
    Ok(ExitCode::from(code))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_of_scenarios_gets_the_tests_build_and_one_of_tests_has_them_packed() {
        let wanted = |command: &str| {
            let words: Vec<&str> = command.split(' ').collect();
            // As words of their own, and as one.
            let wanted = Wanted::by(&words);
            assert_eq!(wanted, Wanted::by(&[command]), "{command}");
            (wanted.scenarios, wanted.tests)
        };
        for (command, scenarios, tests) in [
            ("xtask vm-suite trixie hostile-peer", true, false),
            ("LOWROAD_LONG=1 xtask vm-suite bookworm tests", true, true),
            ("xtask vm-suite trixie kernel tests", true, true),
            ("xtask vm-suite trixie", true, true),
            ("xtask lab hostile-peer", true, false),
            ("xtask demo", false, false),
            ("ls /tests", false, false),
        ] {
            assert_eq!(wanted(command), (scenarios, tests), "{command}");
        }
        let shell = Wanted::by(&[]);
        assert!(!shell.scenarios && !shell.tests);
    }

    #[test]
    fn what_takes_hours_is_asked_for_in_the_command_or_before_it() {
        let suite = ["xtask", "vm-suite", "trixie", "agents-die"];
        let plain = suite.join(" ");
        assert_eq!(limited(&suite, false), (plain.clone(), LIMIT));
        let exported = format!("export LOWROAD_LONG=1; {plain}");
        assert_eq!(limited(&suite, true), (exported, LONG_LIMIT));
        // As words of their own, and as one.
        let asking = format!("LOWROAD_LONG=1 {plain}");
        let words: Vec<&str> = asking.split(' ').collect();
        for command in [&words[..], &[&*asking]] {
            for long in [false, true] {
                assert_eq!(limited(command, long), (asking.clone(), LONG_LIMIT));
            }
        }
    }
}
