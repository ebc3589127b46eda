//! What goes wrong is said in one line, with a non-zero exit, and leaves what worked working.

use std::{fs, io::Write as _, net::SocketAddr};

use anyhow::{Context, Result, bail, ensure};

use super::{ALLOW_ALL, Lab, host, ms, secs};
use crate::{
    process::{self, Daemon, Finished},
    tailnet::{self, Client, Node, URL},
    traffic::{Pinger, Server},
    wait,
};

/// One or two lines on stderr, no panic, a code other than zero.
fn one_clear_line(lab: &Lab, what: &str, finished: &Finished) -> Result<()> {
    let said = finished.stderr.trim();
    let last = said.lines().last().unwrap_or_default();
    lab.note(&format!("{what}: exit {}: {last}", finished.code()));
    ensure!(finished.code() != 0, "{what} succeeded");
    ensure!(!said.is_empty(), "{what} failed without a word");
    ensure!(!said.contains("panicked"), "{what} panicked: {said}");
    Ok(())
}

/// At most this many lines, of which progress ("waiting for …") may be some.
const MAX_LINES: usize = 4;

fn refused(lab: &Lab, what: &str, finished: &Finished) -> Result<()> {
    one_clear_line(lab, what, finished)?;
    let lines = finished.stderr.trim().lines().count();
    ensure!(
        lines <= MAX_LINES,
        "{what} said {lines} lines: {}",
        finished.stderr
    );
    Ok(())
}

pub fn up_says_what_is_wrong(lab: &Lab) -> Result<()> {
    let coordinator = lab.coordinator(ALLOW_ALL)?;
    let key = coordinator.auth_key("ann", "")?;
    let mut node = Node::not_started(lab.net, "alpha", lab.net.public("alpha", 30)?, &[])?;
    let before = host::of(&node, lab.emulated)?;
    node.start_agent()?;
    let _web = Server::start(&coordinator.namespace, 90)?;
    for (what, server, key) in [
        ("a wrong auth key", URL, "lrkey-doesnotexist"),
        ("an unreachable server", "http://203.0.113.99:8080", &key),
        ("a closed port", "http://203.0.113.10:81", &key),
        ("a server of something else", "http://203.0.113.10:90", &key),
        ("not a URL", "::nonsense::", &key),
    ] {
        let server = format!("--login-server={server}");
        let key = format!("--auth-key={key}");
        let finished = node.try_cli(&["up", &server, &key, "--timeout=5s"])?;
        refused(lab, what, &finished)?;
        host::is_as_before(&node, &before, lab.emulated, secs(20)).context(what)?;
    }
    let flag = node.try_cli(&["up", "--nonsense"])?;
    one_clear_line(lab, "an unknown flag", &flag)?;
    for later in [
        "--advertise-exit-node",
        "--advertise-routes=10.0.0.0/8",
        "--exit-node=x",
    ] {
        refused(lab, later, &node.try_cli(&["up", later])?)?;
    }
    host::is_as_before(&node, &before, lab.emulated, secs(20))?;
    node.up_with(&key, &["--reset"])?;
    Ok(())
}

pub fn a_server_with_another_key_is_not_trusted(lab: &Lab) -> Result<()> {
    let mut coordinator = lab.coordinator(ALLOW_ALL)?;
    let key = coordinator.auth_key("ann", "")?;
    let alpha = lab.public_node("alpha", 30)?;
    let bravo = lab.public_node("bravo", 31)?;
    alpha.up(&key)?;
    bravo.up(&key)?;
    let ping = Pinger::start(&alpha.namespace, bravo.ip(4)?, ms(50))?;
    alpha.wait_for_direct("bravo", secs(30))?;
    coordinator.start_as_another()?;
    let sent = ping.report().sent;
    wait::wait_for("pings meanwhile", secs(20), || {
        Ok((ping.report().sent > sent + 60).then_some(()))
    })?;
    let report = ping.stop();
    ensure!(report.lost() == 0, "what worked stopped working: {report}");
    let (line, _) = wait::wait_for("a word about the key in the agent's log", secs(30), || {
        let log = fs::read_to_string(alpha.log())?;
        let line = log
            .lines()
            .find(|line| line.contains("key") && line.contains("server"));
        Ok(line.map(str::to_owned))
    })?;
    lab.note(line.trim());
    Ok(())
}

pub fn the_agent_says_why_it_does_not_start(lab: &Lab) -> Result<()> {
    let mut node = lab.public_node("alpha", 30)?;
    let mut second = node.agent_command();
    let finished = process::run(&mut second, "", secs(20))?;
    refused(lab, "a second agent on the same socket", &finished)?;
    node.stop_agent();

    let taken = node
        .namespace
        .enter(|| std::net::UdpSocket::bind("0.0.0.0:41641"))??;
    let finished = start_or_up(&node)?;
    refused(lab, "a port that is taken", &finished)?;
    drop(taken);

    let mut command = node.namespace.command(tailnet::binaries().join("lowroad"));
    command.args(["agent", "--state-dir", "/tmp", "--socket", "/tmp/none"]);
    as_nobody(&mut command);
    let finished = process::run(&mut command, "", secs(20))?;
    one_clear_line(lab, "an agent without privileges", &finished)?;
    if !finished.stderr.contains("CAP_NET_ADMIN") {
        bail!("an agent without privileges does not say which it needs");
    }

    damage_state(lab, &mut node)
}

/// After the namespace has been entered, which needs root.
fn as_nobody(command: &mut std::process::Command) {
    // SAFETY: setgid and setuid are async-signal-safe.
    unsafe {
        std::os::unix::process::CommandExt::pre_exec(command, || {
            if libc::setgid(65534) != 0 || libc::setuid(65534) != 0 {
                return Err(std::io::Error::last_os_error());
            }
            Ok(())
        });
    }
}

/// Runs an agent to its end; one that starts all the same is asked to go up.
fn start_or_up(node: &Node) -> Result<Finished> {
    let mut agent = Daemon::spawn(&mut node.agent_command(), &node.log())?;
    wait::wait_for("the agent's end or its socket", secs(20), || {
        let connected = std::os::unix::net::UnixStream::connect(node.socket()).is_ok();
        Ok((connected || agent.ended().is_some()).then_some(()))
    })?;
    if let Some(status) = agent.ended() {
        let stderr = process::tail(&node.log(), 3);
        return Ok(Finished {
            status,
            stdout: String::new(),
            stderr,
        });
    }
    let server = format!("--login-server={URL}");
    node.try_cli(&["up", &server, "--auth-key=x", "--timeout=5s"])
}

fn damage_state(lab: &Lab, node: &mut Node) -> Result<()> {
    node.start_agent()?;
    node.stop_agent();
    let file = fs::read_dir(node.state_folder())?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.is_file())
        .max_by_key(|path| fs::metadata(path).map_or(0, |data| data.len()))
        .context("the agent keeps no state")?;
    let whole = fs::read(&file)?;
    for (what, content) in [
        ("a truncated state file", whole[..whole.len() / 2].to_vec()),
        ("a state file of garbage", b"\x00\xff not json".to_vec()),
    ] {
        fs::File::create(&file)?.write_all(&content)?;
        let finished = process::run(&mut node.agent_command(), "", secs(20))?;
        one_clear_line(lab, what, &finished)?;
    }
    fs::write(&file, &whole)?;
    node.start_agent()
}

pub fn the_coordinator_says_what_is_wrong(lab: &Lab) -> Result<()> {
    let coordinator = lab.coordinator(ALLOW_ALL)?;
    let key = coordinator.auth_key("ann", "")?;
    let broken = lab.net.folder().join("broken.hujson");
    fs::write(
        &broken,
        "{\n  \"acls\": [{\"action\": \"accept\", \"src\": [\"nobody@\"]}\n",
    )?;
    let path = broken.to_str().context("a path that is not UTF-8")?;
    for command in ["check", "set"] {
        let finished = coordinator.try_cli(&["policy", command, path])?;
        one_clear_line(lab, &format!("policy {command}"), &finished)?;
    }
    let finished = coordinator.try_cli(&["nodes", "show", "nobody"])?;
    one_clear_line(lab, "a node that isn't there", &finished)?;

    // Garbage on its ports leaves it working.
    let alpha = lab.public_node("alpha", 30)?;
    alpha.namespace.enter(throw_garbage)??;
    alpha.up(&key)?;
    Ok(())
}

fn throw_garbage() -> Result<()> {
    let udp = std::net::UdpSocket::bind("0.0.0.0:0")?;
    for length in [0, 1, 19, 20, 28, 1400] {
        udp.send_to(&vec![0x5a; length], "203.0.113.10:3478")?;
    }
    for start in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        &[0x16, 3, 1, 0xff, 0xff, 0],
        &[0; 3000],
    ] {
        let address = SocketAddr::from(([203, 0, 113, 10], 8080));
        let mut stream = std::net::TcpStream::connect_timeout(&address, secs(5))?;
        // It may close on us at any byte.
        let _ = stream.write_all(start);
    }
    Ok(())
}
