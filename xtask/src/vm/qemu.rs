//! QEMU: version 10 or newer, without KVM (the machines this runs on have no nested one that boots a stock kernel).

use std::{
    ffi::OsString,
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Command, ExitCode, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use super::guest::{BEGINS, COMMAND};
use crate::{
    apt, process,
    shell::{find_program, output},
    signals,
    workspace::{is_root, tools},
};

const PROGRAM: &str = "qemu-system-x86_64";
/// Debian 12's own 7.2 emulates too badly: 5 of 14 boots of a 6.12 kernel oopsed, 0 of 20 with 10.0.2.
const MIN_MAJOR: u32 = 10;
/// Kernel and modules are up after 6 to 8 s on an idle machine.
const BOOT_LIMIT: Duration = Duration::from_secs(120);
const BOOTS: u32 = 3;

pub fn ensure() -> Result<()> {
    if major_version().is_some_and(|major| major >= MIN_MAJOR) {
        return Ok(());
    }
    if !is_root() {
        bail!("the VM needs QEMU {MIN_MAJOR} or newer: run `cargo xtask setup` as root");
    }
    let codename = apt::debian_codename().context("this is not Debian with apt")?;
    eprintln!("=> installing QEMU {MIN_MAJOR} or newer from Debian's archive");
    let backports = format!("{codename}-backports");
    let updates = format!("{codename}-updates");
    let install = |suites: &[&str], release: &str| {
        let folder = tools()?.join("apt-qemu");
        apt::Suites::open(&folder, suites)?.install(release, &["qemu-system-x86"])?;
        std::fs::remove_dir_all(&folder).context("remove apt's files for QEMU")
    };
    // Debian 13 has it; Debian 12 has it in its backports.
    if codename == "bookworm" {
        install(&[&codename, &updates, &backports], &backports)?;
    } else {
        install(&[&codename, &updates], &codename)?;
    }
    match major_version() {
        Some(major) if major >= MIN_MAJOR => Ok(()),
        other => bail!("installed QEMU {other:?}, but the VM needs {MIN_MAJOR} or newer"),
    }
}

fn major_version() -> Option<u32> {
    let version = output(Command::new(find_program(PROGRAM)?).arg("--version")).ok()?;
    let number = version.split("version ").nth(1)?;
    number.split('.').next()?.parse().ok()
}

#[derive(Debug)]
pub struct Machine {
    pub kernel: PathBuf,
    pub initramfs: PathBuf,
}

enum Ended {
    /// The command in the guest ended with this code.
    Code(u8),
    /// The guest died before the command began: an accident of the emulation, not of the test.
    BeforeItBegan,
}

impl Machine {
    /// Runs a shell command in a fresh guest, passing on its output by lines; returns the command's exit code.
    pub fn run(&self, command: &str, limit: Duration, on_line: &mut dyn FnMut(&str)) -> Result<u8> {
        for boot in 1..=BOOTS {
            match self.boot(command, limit, on_line)? {
                Ended::Code(code) => return Ok(code),
                Ended::BeforeItBegan if boot < BOOTS => {
                    eprintln!("   the guest died before its command began; booting again");
                }
                Ended::BeforeItBegan => {}
            }
        }
        bail!("the guest died {BOOTS} times before its command began")
    }

    fn boot(&self, command: &str, limit: Duration, on_line: &mut dyn FnMut(&str)) -> Result<Ended> {
        eprintln!("=> booting the VM");
        let mut qemu = self.qemu(command);
        qemu.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = process::die_with_us(&mut qemu)
            .spawn()
            .context("start QEMU")?;
        let lines = lines(child.stdout.take().expect("piped"));
        let start = Instant::now();
        let mut begun = false;
        let mut boot_log = Vec::new();
        let stopped = loop {
            match lines.recv_timeout(Duration::from_millis(100)) {
                Ok(line) if begun => on_line(&line),
                Ok(line) if line.starts_with(BEGINS) => {
                    begun = true;
                    eprintln!("   {line}");
                }
                Ok(line) => boot_log.push(line),
                Err(mpsc::RecvTimeoutError::Timeout) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => break false,
            }
            let bound = if begun { limit } else { BOOT_LIMIT };
            if signals::interrupted() || start.elapsed() > bound {
                break true;
            }
        };
        if stopped {
            let _ = child.kill();
        }
        let status = child.wait()?;
        signals::check()?;
        match status.code() {
            // isa-debug-exit: (value << 1) | 1.
            Some(code) if begun && !stopped && code & 1 == 1 => {
                Ok(Ended::Code(u8::try_from(code >> 1).unwrap_or(u8::MAX)))
            }
            _ if begun && stopped => {
                bail!(
                    "the guest's command didn't end within {} s",
                    limit.as_secs()
                )
            }
            _ if begun => bail!("the guest died while its command ran (QEMU: {status})"),
            _ => {
                for line in boot_log.iter().rev().take(15).rev() {
                    eprintln!("   | {line}");
                }
                Ok(Ended::BeforeItBegan)
            }
        }
    }

    /// A shell on this terminal. Ctrl-A X ends QEMU.
    pub fn shell(&self) -> Result<ExitCode> {
        eprintln!("=> booting the VM; `exit` or Ctrl-A X ends it");
        self.qemu("").status().context("start QEMU")?;
        Ok(ExitCode::SUCCESS)
    }

    fn qemu(&self, command: &str) -> Command {
        let mut qemu = Command::new(PROGRAM);
        let serial = if command.is_empty() {
            "mon:stdio"
        } else {
            "stdio"
        };
        qemu.args(["-machine", "q35,acpi=on", "-cpu", "qemu64", "-smp", "2"])
            .args(["-accel", "tcg,thread=multi,tb-size=512", "-m", "3G"])
            .args(["-nodefaults", "-no-user-config", "-display", "none"])
            .args(["-no-reboot", "-serial", serial])
            .args(["-device", "isa-debug-exit,iobase=0xf4,iosize=4"])
            .arg("-kernel")
            .arg(&self.kernel)
            .arg("-initrd")
            .arg(&self.initramfs)
            .arg("-append");
        // On a busy machine the emulated timer is late for the kernel's check of it, and 6.1 panics: no check.
        let mut parameters = OsString::from(
            "console=ttyS0 quiet panic=-1 oops=panic nokaslr mitigations=off tsc=reliable no_timer_check",
        );
        // The kernel splits its command line at spaces.
        parameters.push(format!(" {COMMAND}={}", command.replace(' ', "+")));
        qemu.arg(parameters);
        qemu
    }
}

fn lines(pipe: impl std::io::Read + Send + 'static) -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut reader = BufReader::new(pipe);
        let mut bytes = Vec::new();
        while reader.read_until(b'\n', &mut bytes).is_ok_and(|n| n > 0) {
            let line = String::from_utf8_lossy(&bytes).trim_end().to_owned();
            bytes.clear();
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}
