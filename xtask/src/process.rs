//! Programs with a time limit, and programs that run beside us and die with us.

use std::{
    fs::OpenOptions,
    io::{Read, Write},
    os::unix::process::{CommandExt, ExitStatusExt},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use crate::signals;

const POLL: Duration = Duration::from_millis(3);

/// How a program ended, and what it wrote.
#[derive(Debug)]
pub struct Finished {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl Finished {
    /// Exit code; a signal counts as 128 plus its number, as in a shell.
    pub fn code(&self) -> i32 {
        let signal = || 128 + self.status.signal().unwrap_or_default();
        self.status.code().unwrap_or_else(signal)
    }

    pub fn ok(self, what: &str) -> Result<Self> {
        if !self.status.success() {
            bail!(
                "{what}: exit {}: {}",
                self.code(),
                format!("{}\n{}", self.stderr.trim(), self.stdout.trim()).trim()
            );
        }
        Ok(self)
    }
}

/// Kills the program if this process goes away, however it does. Spawn from a thread that outlives the
/// program: the kernel ties this to the spawning thread. Its own process group keeps Ctrl-C from it.
pub fn die_with_us(command: &mut Command) -> &mut Command {
    command.process_group(0);
    // SAFETY: prctl is async-signal-safe.
    unsafe {
        command.pre_exec(|| {
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                return Err(std::io::Error::last_os_error());
            }
            Ok(())
        })
    }
}

/// CAP_NET_ADMIN, CAP_NET_RAW, CAP_PERFMON and CAP_BPF: those of `agent/dist/lowroad.service`.
pub const AGENT_CAPABILITIES: u64 = 1 << 12 | 1 << 13 | 1 << 38 | 1 << 39;

/// Takes all capabilities but these from the program for good, as a service manager's bounding set does.
pub fn confine(command: &mut Command, kept: u64) -> &mut Command {
    // SAFETY: prctl is async-signal-safe.
    unsafe {
        command.pre_exec(move || {
            for capability in 0..u64::BITS {
                if kept >> capability & 1 == 1 {
                    continue;
                }
                if libc::prctl(
                    libc::PR_CAPBSET_DROP,
                    libc::c_ulong::from(capability),
                    0,
                    0,
                    0,
                ) != 0
                {
                    let error = std::io::Error::last_os_error();
                    // Above the last one that this kernel knows.
                    if error.raw_os_error() == Some(libc::EINVAL) {
                        continue;
                    }
                    return Err(error);
                }
            }
            Ok(())
        })
    }
}

/// Runs a program to its end, with `input`, for at most `limit`. A signal to us ends it.
pub fn run(command: &mut Command, input: &str, limit: Duration) -> Result<Finished> {
    signals::check()?;
    run_until(command, input, limit, signals::interrupted)
}

/// For cleaning up: goes on after a signal, too.
pub fn run_regardless(command: &mut Command, limit: Duration) -> Result<Finished> {
    run_until(command, "", limit, || false)
}

fn run_until(
    command: &mut Command,
    input: &str,
    limit: Duration,
    stop: impl Fn() -> bool,
) -> Result<Finished> {
    let name = command.get_program().to_string_lossy().into_owned();
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = die_with_us(command)
        .spawn()
        .with_context(|| format!("start {name}"))?;
    let mut stdin = child.stdin.take().expect("piped");
    // A program that doesn't read its input is its own affair.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    let stdout = drain(child.stdout.take().expect("piped"));
    let stderr = drain(child.stderr.take().expect("piped"));
    let deadline = Instant::now() + limit;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if stop() || Instant::now() > deadline {
            kill_group(&mut child);
            signals::check()?;
            bail!(
                "{name} didn't end within {} s and was killed; it said: {}",
                limit.as_secs(),
                collect(&stderr).trim()
            );
        }
        thread::sleep(POLL);
    };
    Ok(Finished {
        status,
        stdout: collect(&stdout),
        stderr: collect(&stderr),
    })
}

fn drain(mut pipe: impl Read + Send + 'static) -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = pipe.read_to_end(&mut bytes);
        let _ = sender.send(String::from_utf8_lossy(&bytes).into_owned());
    });
    receiver
}

/// A grandchild may hold the pipe open after the program's end: then its output is given up.
fn collect(receiver: &mpsc::Receiver<String>) -> String {
    receiver
        .recv_timeout(Duration::from_secs(2))
        .unwrap_or_default()
}

fn kill_group(child: &mut Child) {
    signal_group(child, libc::SIGKILL);
    let _ = child.wait();
}

fn signal_group(child: &Child, signal: libc::c_int) {
    let pid = libc::pid_t::try_from(child.id()).expect("Linux's pids fit");
    // SAFETY: no pointers; the child isn't reaped, so its group id is still its own.
    unsafe { libc::kill(-pid, signal) };
}

/// A program that runs beside us, with its output in a log file. Stopped when dropped.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    pub log: PathBuf,
}

impl Daemon {
    pub fn spawn(command: &mut Command, log: &Path) -> Result<Self> {
        let name = command.get_program().to_string_lossy().into_owned();
        let file = OpenOptions::new().create(true).append(true).open(log)?;
        command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file);
        let child = die_with_us(command)
            .spawn()
            .with_context(|| format!("start {name}"))?;
        Ok(Self {
            child,
            log: log.to_owned(),
        })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its end, if it has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// SIGKILL, as `kill -9` does; returns when it is gone.
    pub fn kill_9(&mut self) {
        kill_group(&mut self.child);
    }

    /// SIGINT, as Ctrl-C in a terminal.
    pub fn interrupt(&mut self) {
        signal_group(&self.child, libc::SIGINT);
    }

    /// SIGTERM, and SIGKILL for a program that ignores it for 5 s: for those whose end is not the subject.
    pub fn stop(&mut self) {
        if self.terminated(Duration::from_secs(5)).is_none() {
            eprintln!("   {} ignored SIGTERM for 5 s", self.log.display());
            kill_group(&mut self.child);
        }
    }

    /// SIGTERM, which it must heed within `limit`, and end without a complaint.
    ///
    /// # Errors
    /// It didn't (then it is killed), had ended before, or its exit status is not 0.
    pub fn stop_gracefully(&mut self, limit: Duration) -> Result<()> {
        let name = self.log.display().to_string();
        if let Some(status) = self.ended() {
            bail!("the program that writes {name} had ended before, with {status}");
        }
        let Some(status) = self.terminated(limit) else {
            kill_group(&mut self.child);
            bail!(
                "the program that writes {name} ignored SIGTERM for {} s",
                limit.as_secs()
            );
        };
        if !status.success() {
            bail!("the program that writes {name} ended with {status} on SIGTERM");
        }
        Ok(())
    }

    /// Its end, if it comes within `limit` after SIGTERM.
    fn terminated(&mut self, limit: Duration) -> Option<ExitStatus> {
        if let Some(status) = self.ended() {
            return Some(status);
        }
        signal_group(&self.child, libc::SIGTERM);
        let deadline = Instant::now() + limit;
        while Instant::now() < deadline {
            if let Some(status) = self.ended() {
                return Some(status);
            }
            thread::sleep(POLL);
        }
        None
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.stop();
    }
}

/// What `/proc/<pid>/stat` says of a process and its threads (proc_pid_stat(5)).
#[derive(Debug, Clone, Copy)]
pub struct Stat {
    pub group: u32,
    /// CPU time, user's and system's.
    pub ticks: u64,
}

impl Stat {
    /// The name may hold anything, so count from the last parenthesis.
    pub fn parse(stat: &str) -> Option<Self> {
        let (_, rest) = stat.rsplit_once(')')?;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        let number = |at: usize| fields.get(at)?.parse::<u64>().ok();
        Some(Self {
            group: u32::try_from(number(2)?).ok()?,
            ticks: number(11)? + number(12)?,
        })
    }
}

pub fn ticks_per_second() -> f64 {
    // SAFETY: takes a number, returns a number.
    let ticks = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    if ticks > 0 { ticks as f64 } else { 100.0 }
}

/// CPU time that a process has used so far, its threads included.
pub fn cpu_time(pid: u32) -> Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .with_context(|| format!("process {pid} is gone"))?;
    let process = Stat::parse(&stat).with_context(|| format!("/proc/{pid}/stat is {stat:?}"))?;
    Ok(Duration::from_secs_f64(
        process.ticks as f64 / ticks_per_second(),
    ))
}

/// A field of `/proc/<pid>/status` that counts memory, in MB: `VmRSS`, `VmHWM`.
pub fn memory(pid: u32, field: &str) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find(|line| line.starts_with(field));
    let kb = line.and_then(|line| line.split_whitespace().nth(1));
    let kb: u64 = kb.context("a process without memory has ended")?.parse()?;
    Ok(kb / 1024)
}

/// The last lines of a log.
pub fn tail(log: &Path, lines: usize) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A shell that has set its traps before it is told to end.
    fn shell(script: &str) -> Daemon {
        let log = std::env::temp_dir().join(format!(
            "lowroad-shell-{}-{}",
            std::process::id(),
            script.len()
        ));
        let _ = std::fs::remove_file(&log);
        let mut command = Command::new("sh");
        command.arg("-c").arg(format!(
            "{script}; echo ready; while :; do sleep 0.01; done"
        ));
        let daemon = Daemon::spawn(&mut command, &log).unwrap();
        let ready = || Ok(tail(&daemon.log, 1).contains("ready").then_some(()));
        crate::wait::wait_for("a shell", Duration::from_secs(20), ready).unwrap();
        std::fs::remove_file(&log).unwrap();
        daemon
    }

    #[test]
    fn a_program_that_ignores_sigterm_or_ends_with_an_error_does_not_stop_gracefully() {
        let limit = Duration::from_millis(300);
        let stop = |script| {
            shell(script)
                .stop_gracefully(limit)
                .map_err(|error| error.to_string())
        };
        assert_eq!(stop("trap 'exit 0' TERM"), Ok(()));
        assert!(
            stop("trap '' TERM")
                .unwrap_err()
                .contains("ignored SIGTERM")
        );
        assert!(
            stop("trap 'exit 3' TERM")
                .unwrap_err()
                .contains("exit status: 3")
        );
        assert!(stop(":").unwrap_err().contains("signal"));
    }
}
