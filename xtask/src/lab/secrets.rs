//! Private keys and auth keys are nowhere but where they belong: every secret that can be had is searched for, in all forms, in all that the daemons say.

mod dump;
mod processes;
mod rights;
mod search;
mod socket;

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    os::unix::fs::{MetadataExt, PermissionsExt},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};

pub use self::{
    dump::a_daemon_that_aborts_leaves_no_core_dump,
    rights::only_root_and_the_operator_group_change_things, search::Secrets,
};
use super::{ALLOW_ALL, Lab, ms, secs};
use crate::{
    process::{Daemon, Finished},
    tailnet::{COORDINATOR, Client as _, Coordinator, Node, URL},
    traffic::{self, Pinger},
    wait,
};

/// Of the coordinator, for browsers and probes.
const PAGES: &[&str] = &[
    "/",
    "/health",
    "/key",
    "/key?v=138",
    "/derp",
    "/derp/probe",
    "/register/nobody",
    "/bootstrap-dns",
    "/nothing",
];
/// Between its start and its next one, without the key, a command's key is there for all to see: its own start, a pipe and an exec.
const REVEALED: Duration = secs(1);
/// Answered with GET to anybody.
const READABLE: &[&str] = &[
    "/localapi/v0/status",
    "/localapi/v0/prefs",
    "/localapi/v0/derpmap",
    "/localapi/v0/usermetrics",
    "/localapi/v0/watch-ipn-bus?mask=16526",
    "/localapi/v0/serve-config",
    "/lowroad/v0/counters",
    "/lowroad/v0/netcheck",
    "/lowroad/v0/flows",
];

pub fn no_secret_is_found_where_others_look(lab: &Lab) -> Result<()> {
    let coordinator = Coordinator::start_logging(lab.net, ALLOW_ALL, "trace")?;
    let key = coordinator.auth_key("ann", "")?;
    let mut alpha = talkative_node(lab, "alpha", 30)?;
    let bravo = talkative_node(lab, "bravo", 31)?;

    let mistyped = mistyped_key();
    let mut said = vec![("a failed up".to_owned(), all(&with_key(&alpha, &mistyped)?))];
    said.push(("up".into(), all(&with_key(&alpha, &key)?.ok("up")?)));
    bravo.up(&key)?;
    let ping = Pinger::start(&alpha.namespace, bravo.ip(4)?, ms(50))?;
    ping.first_answer(secs(20))?;
    let plane = alpha.dataplane()?;
    let whois = format!("/localapi/v0/whois?addr={}", bravo.ip(4)?);
    for path in READABLE.iter().copied().chain([&*whois]) {
        said.push((
            format!("the answer to GET {path}"),
            socket::get(&alpha.socket(), path)?,
        ));
    }
    said.extend(pages(lab)?);
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
    let mut agents = 0;
    for node in [&alpha, &bravo] {
        let found = secrets.of_folder(&node.state_folder())?;
        // Machine, disco and node key.
        ensure!(found >= 3, "found only {found} keys of {}", node.name);
        agents += found;
    }
    let servers = secrets.of_folder(&lab.net.folder().join("coordinator"))?;
    secrets.text("the coordinator's auth keys", &key);
    secrets.text("somebody who mistyped", &mistyped);
    // Control and relay key, and a certificate's.
    ensure!(servers >= 3, "found only {servers} keys of the server");

    while_up_waits(lab, &secrets, &key)?;
    let searched = daemons(&alpha, &coordinator, &secrets)?;
    alpha.cli(&["down"])?;
    alpha.cli(&["logout"])?;
    alpha.stop_agent();
    for (place, text) in &said {
        secrets.search(place, text)?;
    }
    let bytes = search_logs(lab, &secrets)?;
    // Proof that the logs have everything there is to say.
    ensure!(bytes > 100_000, "the logs have only {bytes} bytes");
    lab.note(&format!(
        "data plane {plane}: {} forms of {} secrets searched for in {} answers, {} MB of logs, command lines and environments of {searched}",
        secrets.forms(),
        agents + servers + 2,
        said.len(),
        bytes / 1_000_000,
    ));
    files_are_private(lab, &bravo)
}

/// Says how many bytes they have.
fn search_logs(lab: &Lab, secrets: &Secrets) -> Result<usize> {
    let mut bytes = 0;
    for entry in fs::read_dir(lab.net.folder())?.flatten() {
        let path = entry.path();
        if path.extension().is_some_and(|extension| extension == "log") {
            let log = String::from_utf8_lossy(&fs::read(&path)?).into_owned();
            bytes += log.len();
            secrets.search(&path.display().to_string(), &log)?;
        }
    }
    Ok(bytes)
}

/// What the coordinator shows to anybody who asks, also of a machine that waits to be let in.
fn pages(lab: &Lab) -> Result<Vec<(String, String)>> {
    let node = lab.public_node("delta", 33)?;
    let server = format!("--login-server={URL}");
    let log = lab.net.folder().join("login-up.log");
    let _up = Daemon::spawn(&mut node.command(&["up", &server, "--timeout=60s"]), &log)?;
    let (login, _) = wait::wait_for("a login page", secs(30), || {
        let said = fs::read_to_string(&log)?;
        let found = said
            .split_whitespace()
            .find_map(|word| word.strip_prefix(URL));
        Ok(found
            .filter(|path| path.starts_with("/register/"))
            .map(str::to_owned))
    })?;
    let address = SocketAddr::new(IpAddr::from([203, 0, 113, COORDINATOR]), 8080);
    let mut pages = Vec::new();
    for path in PAGES.iter().copied().chain([&*login]) {
        let answer = traffic::page(&node.namespace, address, path)?;
        pages.push((format!("the coordinator's page {path}"), answer));
    }
    let (_, shown) = pages.last().context("no page")?;
    ensure!(
        shown.starts_with("HTTP/1.1 200"),
        "the login page is {shown}"
    );
    Ok(pages)
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

/// Nobody else on this machine has the same, not even another lab: all processes are searched for it.
fn mistyped_key() -> String {
    format!(
        "lrkey-auth-thiskeyisknowntonobody{:010}",
        std::process::id()
    )
}

/// `up` with a server that isn't there. A key is still to be given.
fn waiting_up(node: &Node) -> Command {
    node.command(&[
        "up",
        "--login-server=http://203.0.113.99:1",
        "--timeout=30s",
    ])
}

/// `up` with a key as an argument, and in the environment, while it waits for a server that isn't there.
fn while_up_waits(lab: &Lab, secrets: &Secrets, key: &str) -> Result<()> {
    let node = lab.public_node("charlie", 32)?;
    for by_environment in [false, true] {
        let mut command = waiting_up(&node);
        if by_environment {
            command.env("LOWROAD_AUTH_KEY", key);
        } else {
            command.arg(format!("--auth-key={key}"));
        }
        // One each: what it says is its own.
        let log = format!("waiting-up-{by_environment}.log");
        let mut up = Daemon::spawn(&mut command, &lab.net.folder().join(log))?;
        // Started again without the key: from then on none may be seen.
        let (seen, time) = wait::wait_for("an `up` that has concealed its key", secs(10), || {
            ensure!(up.ended().is_none(), "it has ended");
            let text = processes::visible(up.pid())?.text;
            Ok(text.contains("--auth-key=file:").then_some(text))
        })?;
        secrets.search("the process list", &seen)?;
        lab.within(
            "the key of an `up` to be seen in the process list",
            time,
            REVEALED,
        )?;
        // It waits, as it should with the key that it was given.
        wait::wait_for("`up` waiting for the server", secs(10), || {
            Ok(fs::read_to_string(&up.log)?
                .contains("waiting for")
                .then_some(()))
        })?;
        processes::search(secrets, &[up.pid()])?;
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

/// Says how many processes were searched, these among them.
fn daemons(agent: &Node, coordinator: &Coordinator, secrets: &Secrets) -> Result<String> {
    let daemons = [agent.agent_pid().context("no agent")?, coordinator.pid()];
    for pid in daemons {
        no_core_dump(pid)?;
    }
    processes::search(secrets, &daemons)
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
