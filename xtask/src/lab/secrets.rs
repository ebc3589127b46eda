//! Private keys and auth keys are nowhere but where they belong: every secret that can be had is searched for, in all forms, in all that the daemons say.

use std::{
    collections::BTreeMap,
    fs,
    io::{Read, Write},
    os::unix::{
        fs::{MetadataExt, PermissionsExt},
        net::UnixStream,
        process::{CommandExt, ExitStatusExt},
    },
    path::Path,
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};

use super::{ALLOW_ALL, Lab, ms, secs};
use crate::{
    process::{self, Daemon, Finished},
    tailnet::{Client as _, Coordinator, Node, URL, binaries},
    traffic::Pinger,
    wait,
};

/// What private keys are called in the files that hold them.
const PRIVATE: &str = "privkey:";
const KEY_DIGITS: usize = 64;
const WRONG_KEY: &str = "lrkey-auth-thiskeyisknowntonobody0123456789";
/// Answered with GET to anybody.
const READABLE: &[&str] = &[
    "/localapi/v0/status",
    "/localapi/v0/prefs",
    "/localapi/v0/derpmap",
    "/localapi/v0/metrics",
    "/localapi/v0/usermetrics",
    "/localapi/v0/goroutines",
    "/lowroad/v0/counters",
    "/lowroad/v0/netcheck",
    "/lowroad/v0/flows",
];

/// Texts by which a secret would be recognised, and whose it is.
#[derive(Default)]
struct Secrets(BTreeMap<String, String>);

impl Secrets {
    fn text(&mut self, whose: &str, text: &str) {
        self.0.insert(text.to_owned(), whose.to_owned());
    }

    /// A key of 32 bytes: in hex and in both alphabets of base64 (whose last digit depends on what follows).
    fn key(&mut self, whose: &str, hex: &str) -> Result<()> {
        let bytes = (0..KEY_DIGITS / 2).map(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16));
        let bytes: Vec<u8> = bytes.collect::<Result<_, _>>()?;
        self.text(whose, &hex.to_lowercase());
        self.text(whose, &hex.to_uppercase());
        for alphabet in [b"+/", b"-_"] {
            let mut text = base64(&bytes, *alphabet);
            text.truncate(42);
            self.text(whose, &text);
        }
        let listed: Vec<String> = bytes.iter().take(8).map(u8::to_string).collect();
        self.text(whose, &listed.join(", "));
        Ok(())
    }

    /// Every private key of a file, whatever else it holds. Returns how many there were.
    fn of_file(&mut self, file: &Path) -> Result<usize> {
        let bytes = fs::read(file)?;
        let text = String::from_utf8_lossy(&bytes);
        let mut found = 0;
        for (at, _) in text.match_indices(PRIVATE) {
            let hex: String = text[at + PRIVATE.len()..]
                .chars()
                .take_while(char::is_ascii_hexdigit)
                .take(KEY_DIGITS)
                .collect();
            if hex.len() == KEY_DIGITS {
                self.key(&file.display().to_string(), &hex)?;
                found += 1;
            }
        }
        if let Some((_, pem)) = text.split_once("PRIVATE KEY-----") {
            for line in pem
                .lines()
                .skip(1)
                .take_while(|line| !line.starts_with('-'))
            {
                // The last one may be too short to be told from chance.
                if line.len() >= 32 {
                    self.text(&file.display().to_string(), line);
                    found += 1;
                }
            }
        }
        Ok(found)
    }

    fn of_folder(&mut self, folder: &Path) -> Result<usize> {
        let mut found = 0;
        for path in fs::read_dir(folder)?.flatten().map(|entry| entry.path()) {
            if path.is_dir() {
                found += self.of_folder(&path)?;
            } else if path.is_file() {
                found += self.of_file(&path)?;
            }
        }
        Ok(found)
    }

    /// # Errors
    /// One is in there.
    fn search(&self, place: &str, text: &str) -> Result<()> {
        for (secret, whose) in &self.0 {
            if let Some(at) = text.find(secret) {
                let line = text[..at].lines().count();
                bail!(
                    "a secret of {whose} ({} bytes) is in {place}, line {line}",
                    secret.len()
                );
            }
        }
        Ok(())
    }
}

fn base64(bytes: &[u8], last_two: [u8; 2]) -> String {
    let digit = |value: u32| match value & 63 {
        value @ 0..26 => (b'A' + value as u8) as char,
        value @ 26..52 => (b'a' + value as u8 - 26) as char,
        value @ 52..62 => (b'0' + value as u8 - 52) as char,
        value => last_two[value as usize - 62] as char,
    };
    bytes
        .chunks(3)
        .flat_map(|chunk| {
            let word = chunk
                .iter()
                .fold(0u32, |word, byte| word << 8 | u32::from(*byte))
                << (8 * (3 - chunk.len()));
            [18, 12, 6, 0].map(|shift| digit(word >> shift))
        })
        .collect()
}

pub fn no_secret_is_found_where_others_look(lab: &Lab) -> Result<()> {
    let coordinator = Coordinator::start_logging(lab.net, ALLOW_ALL, "trace")?;
    let key = coordinator.auth_key("ann", "")?;
    let mut alpha = talkative_node(lab, "alpha", 30)?;
    let bravo = talkative_node(lab, "bravo", 31)?;

    let mut said = vec![("a failed up".to_owned(), all(&with_key(&alpha, WRONG_KEY)?))];
    said.push(("up".into(), all(&with_key(&alpha, &key)?.ok("up")?)));
    bravo.up(&key)?;
    let ping = Pinger::start(&alpha.namespace, bravo.ip(4)?, ms(50))?;
    ping.first_answer(secs(20))?;
    for path in READABLE {
        said.push((
            format!("the answer to GET {path}"),
            get(&alpha.socket(), path)?,
        ));
    }
    for arguments in [
        &["status", "--json"][..],
        &["netcheck"],
        &["ping", "-c1", "--until-direct=false", "bravo"],
        &["flows"],
        &["set", "--shields-up"],
    ] {
        said.push((
            format!("lowroad {}", arguments.join(" ")),
            all(&alpha.try_cli(arguments)?),
        ));
    }
    for arguments in [
        &["nodes", "list"][..],
        &["users", "list"],
        &["auth-keys", "list"],
        &["policy", "get"],
    ] {
        said.push((arguments.join(" "), all(&coordinator.try_cli(arguments)?)));
    }

    let mut secrets = Secrets::default();
    let agents =
        secrets.of_folder(&alpha.state_folder())? + secrets.of_folder(&bravo.state_folder())?;
    let servers = secrets.of_folder(&lab.net.folder().join("coordinator"))?;
    secrets.text("the coordinator's auth keys", &key);
    secrets.text("somebody who mistyped", WRONG_KEY);
    // Machine and node key of each node; control and relay key, and a certificate's.
    ensure!(
        agents >= 4 && servers >= 3,
        "found only {agents} keys of agents and {servers} of the server"
    );

    while_up_waits(lab, &secrets, &key)?;
    daemons(&alpha, &coordinator, &secrets)?;
    alpha.cli(&["down"])?;
    alpha.cli(&["logout"])?;
    alpha.stop_agent();
    for (place, text) in &said {
        secrets.search(place, text)?;
    }
    let mut bytes = 0;
    for entry in fs::read_dir(lab.net.folder())?.flatten() {
        let path = entry.path();
        if path.extension().is_some_and(|extension| extension == "log") {
            let log = String::from_utf8_lossy(&fs::read(&path)?).into_owned();
            bytes += log.len();
            secrets.search(&path.display().to_string(), &log)?;
        }
    }
    // Proof that the logs have everything there is to say.
    ensure!(bytes > 100_000, "the logs have only {bytes} bytes");
    lab.note(&format!(
        "{} forms of {} secrets searched for in {} answers, {} MB of logs, command lines and environments",
        secrets.0.len(),
        agents + servers + 2,
        said.len(),
        bytes / 1_000_000,
    ));
    files_are_private(lab, &bravo)
}

/// An agent that logs all it can, and would dump core if it were let.
fn talkative_node(lab: &Lab, name: &str, last: u8) -> Result<Node> {
    let mut node = lab.public_node(name, last)?;
    node.stop_agent();
    let mut command = node.agent_command();
    command.env("RUST_LOG", "trace");
    node.start_agent_as(&mut command, |_| Ok(()))?;
    Ok(node)
}

fn with_key(node: &Node, key: &str) -> Result<Finished> {
    let server = format!("--login-server={URL}");
    let key = format!("--auth-key={key}");
    let hostname = format!("--hostname={}", node.name);
    node.try_cli(&["up", &server, &key, &hostname, "--timeout=30s"])
}

fn all(finished: &Finished) -> String {
    format!("{}\n{}", finished.stdout, finished.stderr)
}

fn get(socket: &Path, path: &str) -> Result<String> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(secs(3)))?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: local-tailscaled.sock\r\nConnection: close\r\n\r\n"
    )?;
    let mut bytes = Vec::new();
    // An answer without end is read until nothing comes.
    let _ = stream.read_to_end(&mut bytes);
    ensure!(bytes.starts_with(b"HTTP/1.1 "), "no answer to GET {path}");
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Command line and environment of a process, as others see them.
fn visible(pid: u32) -> Result<String> {
    let mut text = String::new();
    for file in ["cmdline", "environ"] {
        let bytes = fs::read(format!("/proc/{pid}/{file}"))?;
        text.push_str(&String::from_utf8_lossy(&bytes).replace('\0', "\n"));
        text.push('\n');
    }
    Ok(text)
}

/// `up` with a key as an argument, and in the environment, while it waits for a server that isn't there.
fn while_up_waits(lab: &Lab, secrets: &Secrets, key: &str) -> Result<()> {
    let node = lab.public_node("charlie", 32)?;
    for by_environment in [false, true] {
        let mut command = node.namespace.command(binaries().join("lowroad"));
        command.arg("--socket").arg(node.socket());
        command.args([
            "up",
            "--login-server=http://203.0.113.99:1",
            "--timeout=30s",
        ]);
        if by_environment {
            command.env("LOWROAD_AUTH_KEY", key);
        } else {
            command.arg(format!("--auth-key={key}"));
        }
        let mut up = Daemon::spawn(&mut command, &lab.net.folder().join("waiting-up.log"))?;
        wait::wait_for("an `up` that shows no key", secs(10), || {
            ensure!(up.ended().is_none(), "it has ended");
            let text = visible(up.pid())?;
            ensure!(text.contains("--auth-key=file:"), "not yet concealed");
            secrets.search("the process list", &text).map(Some)
        })?;
        // It waits, as it should with the key that it was given.
        wait::wait_for("`up` waiting for the server", secs(10), || {
            Ok(fs::read_to_string(&up.log)?
                .contains("waiting for")
                .then_some(()))
        })?;
    }
    Ok(())
}

/// Neither of the limits lets the process dump core.
pub fn no_core_dump(pid: impl std::fmt::Display) -> Result<()> {
    let limits = fs::read_to_string(format!("/proc/{pid}/limits"))?;
    let core = limits
        .lines()
        .find(|line| line.starts_with("Max core file size"));
    let core: Vec<&str> = core.unwrap_or_default().split_whitespace().collect();
    ensure!(
        core.get(4..6) == Some(&["0", "0"][..]),
        "core dumps of {pid} are limited to {core:?}"
    );
    Ok(())
}

fn daemons(agent: &Node, coordinator: &Coordinator, secrets: &Secrets) -> Result<()> {
    for pid in [agent.agent_pid().context("no agent")?, coordinator.pid()] {
        secrets.search("the process list", &visible(pid)?)?;
        no_core_dump(pid)?;
    }
    Ok(())
}

/// Secrets for their owner only, and nobody else in their folders.
fn files_are_private(lab: &Lab, node: &Node) -> Result<()> {
    let mut folders = vec![node.state_folder(), lab.net.folder().join("coordinator")];
    let mut count = 0;
    while let Some(folder) = folders.pop() {
        let mode = fs::metadata(&folder)?.permissions().mode() & 0o777;
        ensure!(mode == 0o700, "{} is {mode:o}", folder.display());
        for path in fs::read_dir(&folder)?.flatten().map(|entry| entry.path()) {
            let data = fs::symlink_metadata(&path)?;
            if data.is_dir() {
                folders.push(path);
                continue;
            }
            ensure!(
                data.mode() & 0o077 == 0,
                "{} is {:o}",
                path.display(),
                data.mode() & 0o777
            );
            count += 1;
        }
    }
    lab.note(&format!(
        "{count} files in state directories, none readable by others"
    ));
    Ok(())
}

/// An abort leaves no core file where another program's would.
pub fn a_daemon_that_aborts_leaves_no_core_dump(lab: &Lab) -> Result<()> {
    let folder = lab.net.folder().join("cores");
    fs::create_dir(&folder)?;
    let mut node = lab.public_node("alpha", 30)?;
    node.stop_agent();
    let mut sleep = Command::new("sleep");
    let control = aborted(
        may_dump(sleep.arg("60"), &folder),
        &lab.net.folder().join("sleep.log"),
        || Ok(()),
    )?;
    let mut agent = node.agent_command();
    let socket = node.socket();
    let dumped = aborted(may_dump(&mut agent, &folder), &node.log(), || {
        wait::wait_for("the agent's socket", secs(30), || {
            Ok(UnixStream::connect(&socket).is_ok().then_some(()))
        })
        .map(drop)
    })?;
    lab.note(&format!("aborted with core dumps allowed: another program dumped core: {control}, the agent: {dumped}"));
    ensure!(!dumped, "the agent dumped core");
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

/// Runs it until `ready`, aborts it, and says whether the kernel wrote a dump.
fn aborted(command: &mut Command, log: &Path, ready: impl FnOnce() -> Result<()>) -> Result<bool> {
    let mut daemon = Daemon::spawn(command, log)?;
    ready()?;
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

/// Root and the operator group may change things, others read; by real users of this machine's kernel.
pub fn only_root_and_the_operator_group_change_things(lab: &Lab) -> Result<()> {
    const GROUP: libc::gid_t = 54_321;
    let mut node = lab.public_node("alpha", 30)?;
    node.stop_agent();
    let mut command = node.agent_command();
    command.args(["--operator-group", &GROUP.to_string()]);
    node.start_agent_as(&mut command, |_| Ok(()))?;
    // Others must get as far as the socket.
    for folder in [
        lab.net.folder(),
        node.socket().parent().context("no folder")?,
    ] {
        fs::set_permissions(folder, fs::Permissions::from_mode(0o755))?;
    }
    for (who, primary, more, may) in [
        ("nobody in particular", 1234, &[][..], false),
        ("by another group", 1234, &[GROUP + 1, 4], false),
        ("by its own group", GROUP, &[], true),
        ("by one of many groups", 1234, &[4, 5, 6, GROUP, 7], true),
    ] {
        let status = as_user(&node, primary, more, &["status", "--json"])?;
        ensure!(status.status.success(), "{who}: status: {}", status.stderr);
        for change in [&["set", "--shields-up=false"][..], &["down"], &["logout"]] {
            let finished = as_user(&node, primary, more, change)?;
            let denied = finished.stderr.contains("denied");
            ensure!(
                denied != may,
                "{who}: {}: {}",
                change.join(" "),
                all(&finished)
            );
        }
    }
    Ok(())
}

fn as_user(
    node: &Node,
    group: libc::gid_t,
    more: &[libc::gid_t],
    arguments: &[&str],
) -> Result<Finished> {
    let mut command = node.namespace.command(binaries().join("lowroad"));
    command.arg("--socket").arg(node.socket()).args(arguments);
    let more = more.to_vec();
    // SAFETY: these calls are async-signal-safe; the list of groups moves into the closure.
    unsafe {
        command.pre_exec(move || {
            if libc::setgroups(more.len(), more.as_ptr()) != 0
                || libc::setgid(group) != 0
                || libc::setuid(4321) != 0
            {
                return Err(std::io::Error::last_os_error());
            }
            Ok(())
        });
    }
    process::run(&mut command, "", secs(30))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_found_in_each_form_and_a_certificates_by_its_lines() {
        assert_eq!(base64(b"Man", *b"+/"), "TWFu");
        let hex = "00112233445566778899aabbccddeefffb8fb8fb00112233445566778899aabb";
        let mut secrets = Secrets::default();
        secrets.key("test", hex).expect("hexadecimal");
        for place in [
            "key=00112233445566778899aabbccddeefffb8fb8fb00112233445566778899aabb\n",
            "00112233445566778899AABBCCDDEEFFFB8FB8FB00112233445566778899AABB",
            "ABEiM0RVZneImaq7zN3u//uPuPsAESIzRFVmd4iZqrs=",
            "ABEiM0RVZneImaq7zN3u__uPuPsAESIzRFVmd4iZqrs",
            "[0, 17, 34, 51, 68, 85, 102, 119, 136, 153]",
        ] {
            assert!(secrets.search("there", place).is_err(), "{place}");
        }
        assert!(secrets.search("there", "0011223344").is_ok());
    }
}
