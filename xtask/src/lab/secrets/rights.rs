//! Who may do what on the agent's socket, by real users of this machine's kernel.

use std::{
    fs, io,
    os::unix::{
        fs::{FileTypeExt as _, PermissionsExt},
        process::CommandExt as _,
    },
    thread,
};

use anyhow::{Context, Result, anyhow, ensure};

use super::{
    super::{Lab, secs},
    READABLE, all,
    socket::{ask, status_of},
};
use crate::{
    process::{self, Finished},
    tailnet::{Node, binaries},
};

const GROUP: libc::gid_t = 54_321;
const USER: libc::uid_t = 4321;

/// What changes something, with a body that is understood, in an order in which one doesn't hinder the next.
const CHANGES: &[(&str, &str, &str)] = &[
    (
        "PATCH",
        "/localapi/v0/prefs",
        r#"{"ShieldsUp":false,"ShieldsUpSet":true}"#,
    ),
    ("POST", "/lowroad/v0/set", r#"{}"#),
    ("POST", "/localapi/v0/start", "{}"),
    ("POST", "/localapi/v0/login-interactive", ""),
    ("POST", "/lowroad/v0/up", "{}"),
    ("POST", "/lowroad/v0/down", ""),
    ("POST", "/localapi/v0/logout", ""),
];
/// Asks with a body, changes nothing.
const QUESTIONS: &[(&str, &str, &str)] = &[
    ("POST", "/localapi/v0/ping?ip=100.64.0.9&type=disco", ""),
    ("POST", "/localapi/v0/check-prefs", "{}"),
];

/// Somebody: primary group, further groups, whether they may change things.
struct Somebody {
    who: &'static str,
    primary: libc::gid_t,
    more: &'static [libc::gid_t],
    may: bool,
}

const SOMEBODIES: &[Somebody] = &[
    Somebody {
        who: "nobody in particular",
        primary: 1234,
        more: &[],
        may: false,
    },
    Somebody {
        who: "by another group",
        primary: 1234,
        more: &[GROUP + 1, 4],
        may: false,
    },
    Somebody {
        who: "by its own group",
        primary: GROUP,
        more: &[],
        may: true,
    },
    Somebody {
        who: "by one of many groups",
        primary: 1234,
        more: &[4, 5, 6, GROUP, 7],
        may: true,
    },
];

/// Root and the operator group may change things, others read.
pub fn only_root_and_the_operator_group_change_things(lab: &Lab) -> Result<()> {
    let mut node = lab.public_node("alpha", 30)?;
    node.stop_agent();
    let mut command = node.agent_command();
    command.args(["--operator-group", &GROUP.to_string()]);
    node.start_agent_as(&mut command, |_| Ok(()))?;
    let socket = fs::symlink_metadata(node.socket())?;
    let mode = socket.permissions().mode() & 0o7777;
    ensure!(
        socket.file_type().is_socket() && mode == 0o666,
        "the socket's mode is {mode:o}: all may ask, and none of them may run or replace it"
    );
    // Others must get as far as the socket.
    for folder in [
        lab.net.folder(),
        node.socket().parent().context("no folder")?,
    ] {
        fs::set_permissions(folder, fs::Permissions::from_mode(0o755))?;
    }
    for somebody in SOMEBODIES {
        by_requests(&node, somebody).context(somebody.who)?;
        by_commands(&node, somebody).context(somebody.who)?;
    }
    Ok(())
}

fn by_requests(node: &Node, somebody: &Somebody) -> Result<()> {
    let socket = node.socket();
    let status = |method: &str, path: &str, body: &str| {
        let answer = somebody.is_who(|| status_of(ask(&socket, method, path, body)?))??;
        Ok::<_, anyhow::Error>(answer)
    };
    for path in READABLE {
        let code = status("GET", path, "")?;
        ensure!(code == 200, "GET {path}: {code}");
    }
    let code = status("GET", "/localapi/v0/whois?addr=100.64.0.9", "")?;
    ensure!(code == 404, "whois of a stranger: {code}");
    for (method, path, body) in QUESTIONS {
        let code = status(method, path, body)?;
        ensure!(code == 200, "{method} {path}: {code}");
    }
    let prefs = || node.local("/localapi/v0/prefs");
    let before = prefs()?;
    for (method, path, body) in CHANGES {
        let code = status(method, path, body)?;
        ensure!((code == 403) != somebody.may, "{method} {path}: {code}");
    }
    ensure!(
        somebody.may || prefs()? == before,
        "it was refused, and done: {}",
        prefs()?
    );
    Ok(())
}

fn by_commands(node: &Node, somebody: &Somebody) -> Result<()> {
    let run = |arguments: &[&str]| command(node, somebody, arguments);
    let status = run(&["status", "--json"])?;
    ensure!(status.status.success(), "status: {}", status.stderr);
    for change in [&["set", "--shields-up=false"][..], &["down"], &["logout"]] {
        let finished = run(change)?;
        let denied = finished.stderr.contains("denied");
        ensure!(
            denied != somebody.may,
            "{}: {}",
            change.join(" "),
            all(&finished)
        );
    }
    Ok(())
}

impl Somebody {
    /// Does something as this user, on a thread of its own: the kernel keeps users by thread.
    fn is_who<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        thread::scope(|scope| {
            let worker = scope.spawn(|| become_user(self.primary, self.more).map(|()| work()));
            let done = worker
                .join()
                .map_err(|_| anyhow!("a thread of another user panicked"))?;
            done.context("become another user")
        })
    }
}

/// Of this thread alone: the C library's own calls would take all threads along.
fn become_user(group: libc::gid_t, more: &[libc::gid_t]) -> io::Result<()> {
    let check = |result: libc::c_long| match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    };
    // SAFETY: the list of groups lives through the call, and its length is given; the other calls take numbers.
    unsafe {
        check(libc::syscall(
            libc::SYS_setgroups,
            more.len(),
            more.as_ptr(),
        ))?;
        check(libc::syscall(libc::SYS_setresgid, group, group, group))?;
        check(libc::syscall(libc::SYS_setresuid, USER, USER, USER))
    }
}

fn command(node: &Node, somebody: &Somebody, arguments: &[&str]) -> Result<Finished> {
    let mut command = node.namespace.command(binaries().join("lowroad"));
    command.arg("--socket").arg(node.socket()).args(arguments);
    let (group, more) = (somebody.primary, somebody.more);
    // SAFETY: system calls only, which are async-signal-safe, on memory that is never freed.
    unsafe { command.pre_exec(move || become_user(group, more)) };
    process::run(&mut command, "", secs(30))
}
