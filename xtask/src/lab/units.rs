//! The service units of both daemons under a real systemd: how confined they run, and that nothing of what the kernel holds depends on the service.

mod fallback;
mod probe;

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    os::unix::{net::UnixStream, process::CommandExt},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{Lab, host, ms, policy, secrets::Secrets, secs};
use crate::{
    process::{self, Finished},
    shell,
    tailnet::{COORDINATOR, Client as _, Node, URL},
    topology::Namespace,
    traffic::{self, Pinger},
    wait,
};

const WEB: &str = r#"{"acls": [{"action": "accept", "src": ["*"], "dst": ["*:80"]}]}"#;
const AGENT: &str = "lowroad.service";
const SERVER: &str = "lowroad-coordinator.service";
const SOCKET: &str = "/run/lowroad/lowroad.sock";
/// Highest exposure scores that `systemd-analyze security` may give, from 0 (confined) to 10.
const MAX_EXPOSURE: &[(&str, f64)] = &[(AGENT, 2.8), (SERVER, 1.5)];
/// That each daemon may have at most: the server CAP_NET_BIND_SERVICE.
const CAPABILITIES: [(&str, u64); 2] = [(AGENT, process::AGENT_CAPABILITIES), (SERVER, 1 << 10)];
/// Of the guest's `/etc/group`.
const OPERATORS: u32 = 4242;

pub fn the_units_run_confined_and_what_they_made_in_the_kernel_stays(lab: &Lab) -> Result<()> {
    let ourselves = lab.net.connect_ourselves(COORDINATOR)?;
    let before = host::of_machine(&ourselves)?;
    let outcome = scenario(lab, &ourselves).and_then(|()| {
        host::becomes(&before, secs(30), || host::of_machine(&ourselves))
            .context("after `down` and the end of both services")
    });
    if outcome.is_err() {
        for unit in [SERVER, AGENT] {
            let log = systemd("journalctl", &["-b", "-o", "cat", "-n", "40", "-u", unit]);
            eprintln!("--- {unit}\n{}", log.unwrap_or_default());
        }
    }
    outcome
}

fn scenario(lab: &Lab, ourselves: &Namespace) -> Result<()> {
    configure_coordinator()?;
    probe::what_the_units_forbid_is_refused(lab)?;
    systemd("systemctl", &["start", SERVER, AGENT])?;
    let bravo = lab.public_node("bravo", 31)?;
    let server = SocketAddr::from(([203, 0, 113, COORDINATOR], 8080));
    wait::wait_for("the coordinator's /health", secs(60), || {
        let code = traffic::status(&bravo.namespace, server, "/health")?;
        Ok((code == 200).then_some(()))
    })?;
    let key = auth_key()?;
    fs::write("/run/key", &key)?;
    wait_for_agent()?;
    let server = format!("--login-server={URL}");
    lowroad(&[
        "up",
        &server,
        "--auth-key=file:/run/key",
        "--hostname=alpha",
        "--timeout=60s",
    ])?;
    bravo.up(&key)?;
    confinement(lab)?;

    let address: IpAddr = lowroad(&["ip", "-4"])?.trim().parse()?;
    let _open = traffic::Server::start(ourselves, 80)?;
    let _closed = traffic::Server::start(ourselves, 81)?;
    let ping = Pinger::start(&bravo.namespace, address, ms(100))?;
    ping.first_answer(secs(60))?;
    bravo.wait_for_direct("alpha", secs(60))?;
    let status = status()?;
    ensure!(status["Lowroad"]["Dataplane"] == "kernel", "{status}");
    let survivor = Survivor {
        lab,
        bravo: &bravo,
        ping: &ping,
        address,
        device: device_index()?,
    };

    let redirects = fs::read_to_string("/proc/sys/net/ipv4/conf/all/send_redirects")?;
    ensure!(
        redirects.trim() == "1",
        "the confined agent could not put back what WireGuard changed: {redirects}"
    );

    systemd("systemctl", &["restart", AGENT])?;
    survivor.still_there("`systemctl restart`", true)?;

    let pid = property(AGENT, "MainPID")?;
    systemd("kill", &["-9", &pid])?;
    wait::wait_for("systemd's restart of the agent", secs(30), || {
        let new = property(AGENT, "MainPID")?;
        Ok((new != pid && new != "0" && property(AGENT, "NRestarts")? == "1").then_some(()))
    })?;
    survivor.still_there("`kill -9`", true)?;

    stop_cleanly(AGENT)?;
    let pins = pins()?;
    ensure!(
        pins.join("ingress_link").exists(),
        "`systemctl stop` took the pins"
    );
    survivor.still_there("`systemctl stop`", false)?;
    systemd("systemctl", &["start", AGENT])?;
    survivor.still_there("`systemctl start`", true)?;

    rights()?;
    let report = ping.stop();
    lab.note(&format!("through all of it: {report}"));
    ensure!(report.lost() == 0, "{report}");
    let log = journal(AGENT)?;
    ensure!(
        !log.contains("no pins"),
        "the agent found no lasting bpffs:\n{log}"
    );
    let secrets = secrets(&key)?;
    lowroad(&["down"])?;
    ensure!(!pins.exists(), "`down` left pins");
    ensure!(device_index().is_err(), "`down` left the device");
    fallback::carries_the_userspace_device(lab, &bravo, &key)?;
    for unit in [AGENT, SERVER] {
        stop_cleanly(unit)?;
        secrets.search(&format!("the journal of {unit}"), &journal(unit)?)?;
    }
    Ok(())
}

/// Until it answers: `lowroad version` would do without it.
fn wait_for_agent() -> Result<()> {
    wait::wait_for("the agent's socket", secs(60), || {
        Ok(UnixStream::connect(SOCKET).is_ok().then_some(()))
    })?;
    Ok(())
}

/// SIGTERM, which the service must heed, and end without a complaint.
fn stop_cleanly(unit: &str) -> Result<()> {
    systemd("systemctl", &["stop", unit])?;
    // Killed, it would be `timeout`, and an error of its own `exit-code`.
    let (result, code) = (property(unit, "Result")?, property(unit, "ExecMainStatus")?);
    ensure!(
        result == "success" && code == "0",
        "{unit} ended with {result}, exit status {code}"
    );
    Ok(())
}

fn journal(unit: &str) -> Result<String> {
    systemd("journalctl", &["-b", "-o", "cat", "-u", unit])
}

/// Those of both services.
fn secrets(key: &str) -> Result<Secrets> {
    let mut secrets = Secrets::default();
    for folder in ["/var/lib/lowroad", "/var/lib/lowroad-coordinator"] {
        let found = secrets.of_folder(Path::new(folder))?;
        // Machine, disco and node key; control and relay key, and a certificate's.
        ensure!(found >= 3, "found only {found} keys in {folder}");
    }
    secrets.text("the coordinator's auth keys", key);
    Ok(secrets)
}

/// What must outlive each stop of the service.
struct Survivor<'a> {
    lab: &'a Lab<'a>,
    bravo: &'a Node,
    ping: &'a Pinger,
    address: IpAddr,
    device: u32,
}

impl Survivor<'_> {
    fn still_there(&self, after: &str, runs: bool) -> Result<()> {
        if runs {
            wait::wait_for(
                &format!("the agent running after {after}"),
                secs(60),
                || Ok((status()?["BackendState"] == "Running").then_some(())),
            )?;
        }
        let at = |port| SocketAddr::new(self.address, port);
        host::is_guarded(&Namespace::ours()?).with_context(|| format!("after {after}"))?;
        ensure!(
            device_index()? == self.device,
            "another device after {after}"
        );
        policy::refused(self.bravo, at(81)).with_context(|| format!("after {after}"))?;
        traffic::get(&self.bravo.namespace, at(80), 10_000, secs(20))
            .with_context(|| format!("after {after}"))?;
        let before = self.ping.answered();
        wait::wait_for("more answers", secs(20), || {
            Ok((self.ping.answered() > before + 10).then_some(()))
        })?;
        self.lab.note(&format!(
            "after {after}: same device, guarded, {}",
            self.ping.report()
        ));
        Ok(())
    }
}

/// How the processes run, by the kernel's word and by systemd's own judgement.
fn confinement(lab: &Lab) -> Result<()> {
    for (unit, capabilities) in CAPABILITIES {
        let pid = property(unit, "MainPID")?;
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        is_confined(&status, capabilities).context(unit)?;
        super::secrets::no_core_dump(&pid).context(unit)?;
    }
    for (unit, most) in MAX_EXPOSURE {
        let report = systemd("systemd-analyze", &["security", "--no-pager", unit])?;
        let line = report
            .lines()
            .find(|line| line.contains("Overall exposure"));
        let line = line.context("systemd-analyze gave no score")?.trim();
        lab.note(line.trim_start_matches(|c: char| !c.is_ascii_alphabetic()));
        let score = line
            .rsplit(": ")
            .next()
            .and_then(|rest| rest.split(' ').next());
        let score: f64 = score.unwrap_or_default().parse()?;
        ensure!(
            score <= *most,
            "{unit} is exposed by {score}, more than {most}:\n{report}"
        );
    }
    Ok(())
}

/// By a `/proc/PID/status`.
fn is_confined(status: &str, capabilities: u64) -> Result<()> {
    let field = |name: &str| {
        let mut fields = status.lines().filter_map(|line| line.split_once(':'));
        let found = fields.find(|(one, _)| *one == name);
        let (_, value) = found.with_context(|| format!("no {name} in its status"))?;
        Ok::<_, anyhow::Error>(value.trim())
    };
    let bounding = u64::from_str_radix(field("CapBnd")?, 16)?;
    ensure!(
        bounding == capabilities,
        "it may have the capabilities {bounding:x}"
    );
    ensure!(field("NoNewPrivs")? == "1", "it may gain privileges");
    ensure!(field("Seccomp")? == "2", "it may make any system call");
    Ok(())
}

/// Root and the group change, others read.
fn rights() -> Result<()> {
    let stranger = as_user(None, &["status"])?;
    ensure!(
        stranger.status.success(),
        "others can't read the status: {}",
        stranger.stderr
    );
    let stranger = as_user(None, &["down"])?;
    ensure!(
        !stranger.status.success() && stranger.stderr.contains("denied"),
        "others may change things: {}",
        stranger.stderr
    );
    let member = as_user(Some(OPERATORS), &["set", "--shields-up=false"])?;
    ensure!(
        member.status.success(),
        "a member of the group may not: {}",
        member.stderr
    );
    Ok(())
}

/// By a user who is nobody in particular, with a supplementary group.
fn as_user(group: Option<u32>, arguments: &[&str]) -> Result<Finished> {
    let mut command = Command::new("/usr/local/bin/lowroad");
    command.args(arguments);
    let groups: Vec<libc::gid_t> = group.into_iter().collect();
    // SAFETY: these calls are async-signal-safe; the list of groups moves into the closure.
    unsafe {
        command.pre_exec(move || {
            if libc::setgroups(groups.len(), groups.as_ptr()) != 0
                || libc::setgid(1234) != 0
                || libc::setuid(1234) != 0
            {
                return Err(std::io::Error::last_os_error());
            }
            Ok(())
        });
    }
    process::run(&mut command, "", secs(30))
}

fn configure_coordinator() -> Result<()> {
    fs::create_dir_all("/etc/default")?;
    fs::write("/etc/lowroad-policy.hujson", WEB)?;
    fs::write(
        "/etc/default/lowroad-coordinator",
        format!(
            "LISTEN=0.0.0.0:8080\nURL={URL}\n\
             OPTIONS=--stun 0.0.0.0:3478 --base-domain tail.lab --policy /etc/lowroad-policy.hujson\n"
        ),
    )?;
    Ok(())
}

fn auth_key() -> Result<String> {
    let text = shell::output(Command::new("/usr/local/bin/lowroad-coordinator").args([
        "--state-dir",
        "/var/lib/lowroad-coordinator",
        "--json",
        "auth-keys",
        "create",
        "--user",
        "ann",
        "--reusable",
    ]))?;
    let answer: Value = serde_json::from_str(&text)?;
    Ok(answer["key"].as_str().context("no key")?.to_owned())
}

fn lowroad(arguments: &[&str]) -> Result<String> {
    let mut command = Command::new("/usr/local/bin/lowroad");
    let what = format!("lowroad {}", arguments.join(" "));
    Ok(process::run(command.args(arguments), "", secs(90))?
        .ok(&what)?
        .stdout)
}

fn status() -> Result<Value> {
    Ok(serde_json::from_str(&lowroad(&["status", "--json"])?)?)
}

fn systemd(program: &str, arguments: &[&str]) -> Result<String> {
    let mut command = Command::new(program);
    let what = format!("{program} {}", arguments.join(" "));
    Ok(process::run(command.args(arguments), "", secs(90))?
        .ok(&what)?
        .stdout)
}

fn property(unit: &str, name: &str) -> Result<String> {
    Ok(systemd("systemctl", &["show", "-P", name, unit])?
        .trim()
        .to_owned())
}

fn pins() -> Result<PathBuf> {
    let state: Value = serde_json::from_slice(&fs::read("/var/lib/lowroad/state.json")?)?;
    let id = state["id"].as_str().context("no id in the state")?;
    Ok(Path::new("/sys/fs/bpf/lowroad").join(id))
}

fn device_index() -> Result<u32> {
    let index = host::index_of(host::DEVICE);
    ensure!(index != 0, "there is no device");
    Ok(index)
}
