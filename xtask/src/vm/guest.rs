//! The init of the VM: mounts, loads modules, runs one command, and hands its exit code to QEMU.

use std::{
    ffi::{CStr, CString},
    fs::{self, File},
    io,
    os::{fd::AsRawFd, unix::process::CommandExt},
    path::Path,
    process::Command,
};

use anyhow::{Context, Result};

use super::image::{MODULES, OTHER_PROGRAM, OTHER_VERSION, SAMPLES};

/// Kernel parameter with the command; spaces are written as `+`.
pub const COMMAND: &str = "lowroad.command";
/// Printed when the guest is ready and the command begins.
pub const BEGINS: &str = "LOWROAD-VM ready";
const DEBUG_EXIT_PORT: u16 = 0xf4;

/// Debian's, in the image that has it.
const SYSTEMD: &str = "/usr/lib/systemd/systemd";

/// Whether this process is the VM's init.
pub fn is_init() -> bool {
    std::process::id() == 1
}

/// Never returns to the caller alive: it becomes systemd, or powers the machine off.
pub fn main() -> ! {
    end(run().unwrap_or_else(|error| {
        println!("init: {error:#}");
        125
    }))
}

/// The command, by a service of systemd's.
pub fn command_of_systemd() -> ! {
    end(command().unwrap_or_else(|error| {
        println!("init: {error:#}");
        125
    }))
}

fn end(code: u8) -> ! {
    println!("LOWROAD-VM command ended with {code}");
    // The emulator ends at once, with what is still on its way through the serial line.
    // SAFETY: no pointers; if this is no terminal, nothing happens.
    unsafe { libc::tcdrain(libc::STDOUT_FILENO) };
    debug_exit(code);
    // SAFETY: no pointers. Reached only without the debug-exit device.
    unsafe { libc::reboot(libc::RB_POWER_OFF) };
    std::process::exit(1);
}

fn run() -> Result<u8> {
    let has_systemd = Path::new(SYSTEMD).exists();
    if has_systemd {
        leave_rootfs().context("make a root that can be left")?;
    }
    for (kind, folder) in [
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("devtmpfs", "/dev"),
        ("tmpfs", "/tmp"),
        ("tmpfs", "/run"),
        ("devpts", "/dev/pts"),
        ("bpf", "/sys/fs/bpf"),
        ("cgroup2", "/sys/fs/cgroup"),
    ] {
        // These two it mounts by itself, with options of its own.
        if has_systemd && folder.starts_with("/sys/fs") {
            continue;
        }
        let _ = fs::create_dir_all(folder);
        if let Err(error) = mount(kind, folder) {
            println!("init: mount {kind} on {folder}: {error}");
        }
    }
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let list = format!("{MODULES}/{}/list", kernel.trim());
    let list = fs::read_to_string(&list).with_context(|| format!("read {list}"))?;
    for module in list.lines() {
        if let Err(error) = load_module(module) {
            println!("init: load {module}: {error}");
        }
    }
    let _ = Command::new("/bin/ip")
        .args(["link", "set", "lo", "up"])
        .status();
    if has_systemd {
        return Err(Command::new(SYSTEMD).exec()).context("become systemd");
    }
    command()
}

/// The kernel refuses to make mount namespaces with another root out of the initramfs itself, as services with a sandbox have them: so the root becomes a
/// mount on top of it.
fn leave_rootfs() -> io::Result<()> {
    let mount = |from: &CStr, to: &CStr, flags| {
        // SAFETY: terminated strings that outlive the call; neither kind nor data.
        let result = unsafe {
            libc::mount(
                from.as_ptr(),
                to.as_ptr(),
                std::ptr::null(),
                flags,
                std::ptr::null(),
            )
        };
        if result == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    };
    mount(c"/", c"/mnt", libc::MS_BIND)?;
    std::env::set_current_dir("/mnt")?;
    mount(c".", c"/", libc::MS_MOVE)?;
    std::os::unix::fs::chroot(".")?;
    std::env::set_current_dir("/")
}

fn command() -> Result<u8> {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let kernel = kernel.trim();
    let uptime = fs::read_to_string("/proc/uptime").unwrap_or_default();
    let seconds = uptime.split(' ').next().unwrap_or_default();
    // On a line of its own, whatever systemd has written to the console.
    println!("\n{BEGINS} after {seconds} s, kernel {kernel}");
    let parameters = fs::read_to_string("/proc/cmdline")?;
    let command = parameters
        .split_whitespace()
        .find_map(|word| word.strip_prefix(COMMAND)?.strip_prefix('='))
        .unwrap_or_default()
        .replace('+', " ");
    let mut shell = Command::new("/bin/sh");
    if command.is_empty() {
        shell = Command::new("/bin/setsid");
        shell.args(["cttyhack", "sh"]);
    } else {
        shell.args(["-c", &command]);
    }
    shell
        .env_clear()
        .env("PATH", "/bin")
        .env("HOME", "/root")
        .env("RUST_BACKTRACE", "1")
        .env("LOWROAD_BIN_DIR", "/bin")
        .env("LOWROAD_EMULATED", "1")
        .env("LOWROAD_SAMPLES", SAMPLES)
        // Of the filter's random tests, which are run in full outside.
        .env("LOWROAD_FILTER_CASES", "8")
        .current_dir("/root")
        .process_group(0);
    if Path::new(OTHER_PROGRAM).exists() {
        shell.env(OTHER_VERSION, OTHER_PROGRAM);
    }
    wait_for(shell.spawn().context("start the command")?.id())
}

/// Waits for `command`, reaping whatever else ends meanwhile, as an init must.
fn wait_for(command: u32) -> Result<u8> {
    loop {
        let mut status = 0;
        // SAFETY: `status` outlives the call.
        let pid = unsafe { libc::wait(&raw mut status) };
        if pid < 0 {
            return Err(io::Error::last_os_error()).context("wait for the command");
        }
        if u32::try_from(pid) == Ok(command) {
            let code = if libc::WIFEXITED(status) {
                libc::WEXITSTATUS(status)
            } else {
                128 + libc::WTERMSIG(status)
            };
            return Ok(u8::try_from(code).unwrap_or(u8::MAX));
        }
    }
}

fn mount(kind: &str, folder: &str) -> Result<()> {
    let (kind, folder) = (CString::new(kind)?, CString::new(folder)?);
    // SAFETY: terminated strings that outlive the call; no data.
    let result = unsafe {
        libc::mount(
            kind.as_ptr(),
            folder.as_ptr(),
            kind.as_ptr(),
            0,
            std::ptr::null(),
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error().into());
    }
    Ok(())
}

fn load_module(path: &str) -> Result<()> {
    let file = File::open(path)?;
    // SAFETY: an open descriptor and a terminated string, which outlive the call.
    let result =
        unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), c"".as_ptr(), 0) };
    let error = io::Error::last_os_error();
    if result != 0 && error.raw_os_error() != Some(libc::EEXIST) {
        return Err(error.into());
    }
    Ok(())
}

/// QEMU's isa-debug-exit device ends the emulator with `(code << 1) | 1`.
fn debug_exit(code: u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: only reached as the init of our own VM, where this port belongs to the debug-exit device.
    unsafe {
        if libc::ioperm(DEBUG_EXIT_PORT.into(), 1, 1) == 0 {
            std::arch::asm!("out dx, al", in("dx") DEBUG_EXIT_PORT, in("al") code);
        }
    }
}
