//! Core dumps, which would hold every key: those of the daemons, and of an `up` that waits with an auth key.

use std::{
    fs,
    os::unix::{
        net::UnixStream,
        process::{CommandExt, ExitStatusExt},
    },
    path::Path,
    process::Command,
};

use anyhow::{Result, ensure};

use super::{
    super::{ALLOW_ALL, Lab, NotJudged, secs},
    waiting_up,
};
use crate::{process::Daemon, wait};

/// An abort leaves no core file where another program's would.
pub fn a_daemon_that_aborts_leaves_no_core_dump(lab: &Lab) -> Result<()> {
    let folder = lab.net.folder().join("cores");
    fs::create_dir(&folder)?;
    let log = lab.net.folder().join("sleep.log");
    let mut sleep = Command::new("sleep");
    if !aborted(may_dump(sleep.arg("60"), &folder), &log, || Ok(true))? {
        let pattern = fs::read_to_string("/proc/sys/kernel/core_pattern")?;
        let pattern = pattern.trim();
        return Err(NotJudged::Never(format!(
            "this machine dumps nobody's core (kernel.core_pattern is {pattern:?}), so daemons that leave none show nothing"
        ))
        .into());
    }
    let mut node = lab.public_node("alpha", 30)?;
    let log = lab.net.folder().join("waiting-up.log");
    let mut up = waiting_up(&node);
    up.arg("--auth-key=lrkey-auth-thiskeyisknowntonobody0123456789");
    let dumped = aborted(may_dump(&mut up, &folder), &log, || {
        Ok(fs::read_to_string(&log)?.contains("waiting for"))
    })?;
    ensure!(!dumped, "an `up` that waited with an auth key dumped core");

    node.stop_agent();
    let socket = node.socket();
    let dumped = aborted(
        may_dump(&mut node.agent_command(), &folder),
        &node.log(),
        || Ok(UnixStream::connect(&socket).is_ok()),
    )?;
    ensure!(!dumped, "the agent dumped core");

    let mut coordinator = lab.coordinator(ALLOW_ALL)?;
    coordinator.kill_9();
    let dumped = aborted(
        may_dump(&mut coordinator.serve_command(), &folder),
        &lab.net.folder().join("coordinator.log"),
        || coordinator.is_healthy(),
    )?;
    ensure!(!dumped, "the coordinator dumped core");
    lab.note("aborted with core dumps allowed: another program dumped core; a waiting `up`, agent and coordinator did not");
    Ok(())
}

fn may_dump<'a>(command: &'a mut Command, folder: &Path) -> &'a mut Command {
    command.current_dir(folder);
    // SAFETY: setrlimit is async-signal-safe; the limit lives through the call.
    unsafe {
        command.pre_exec(|| {
            let all = libc::rlimit {
                rlim_cur: libc::RLIM_INFINITY,
                rlim_max: libc::RLIM_INFINITY,
            };
            if libc::setrlimit(libc::RLIMIT_CORE, &raw const all) != 0 {
                return Err(std::io::Error::last_os_error());
            }
            Ok(())
        })
    }
}

/// Runs it until it is ready, aborts it, and says whether the kernel wrote a dump.
fn aborted(command: &mut Command, log: &Path, ready: impl Fn() -> Result<bool>) -> Result<bool> {
    let mut daemon = Daemon::spawn(command, log)?;
    wait::wait_for("a daemon that can be aborted", secs(30), || {
        Ok(ready()?.then_some(()))
    })?;
    let pid = libc::pid_t::try_from(daemon.pid())?;
    // SAFETY: no pointers; the child isn't reaped yet.
    unsafe { libc::kill(pid, libc::SIGABRT) };
    let (status, _) = wait::wait_for("the end of an aborted program", secs(20), || {
        Ok(daemon.ended())
    })?;
    ensure!(
        status.signal() == Some(libc::SIGABRT),
        "it ended with {status}"
    );
    Ok(status.core_dumped())
}
