//! One node: `lowroad agent` in a namespace, driven by the `lowroad` command line.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::{Client, URL, binaries};
use crate::{
    process::{self, Daemon},
    topology::{Namespace, Net},
    wait,
};

const START_LIMIT: Duration = Duration::from_secs(30);
const CLI_LIMIT: Duration = Duration::from_secs(90);
/// An agent has nothing to wait for, but its machine may have little time.
const STOP_LIMIT: Duration = Duration::from_secs(10);
const CLEANUP_LIMIT: Duration = Duration::from_secs(120);

/// Packets of WireGuard's that went by relays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Relayed {
    pub sent: u64,
    pub received: u64,
}

impl Relayed {
    pub fn all(self) -> u64 {
        self.sent + self.received
    }
}

#[derive(Debug)]
pub struct Node {
    pub name: String,
    pub namespace: Namespace,
    folder: PathBuf,
    agent: Option<Daemon>,
    options: Vec<String>,
    /// Run the agent with all of root's capabilities: it may mount a bpffs then. Else with those of its service unit.
    pub all_capabilities: bool,
    /// Where `up` looks for the coordinator.
    pub server: &'static str,
    /// The program that its agent runs.
    pub program: PathBuf,
}

impl Node {
    /// Starts an agent in `namespace`; it joins nothing yet.
    pub fn start(net: &Net, name: &str, namespace: Namespace) -> Result<Self> {
        Self::start_with(net, name, namespace, &[])
    }

    pub fn start_with(
        net: &Net,
        name: &str,
        namespace: Namespace,
        options: &[&str],
    ) -> Result<Self> {
        let mut node = Self::not_started(net, name, namespace, options)?;
        node.start_agent()?;
        Ok(node)
    }

    /// Where no agent has run yet.
    pub fn not_started(
        net: &Net,
        name: &str,
        namespace: Namespace,
        options: &[&str],
    ) -> Result<Self> {
        let node = Self {
            name: name.to_owned(),
            namespace,
            folder: net.folder().join(name),
            agent: None,
            options: options.iter().map(|&option| option.to_owned()).collect(),
            all_capabilities: false,
            server: URL,
            program: binaries().join("lowroad"),
        };
        std::fs::create_dir_all(&node.folder)?;
        Ok(node)
    }

    pub fn state_folder(&self) -> PathBuf {
        self.folder.join("state")
    }

    /// Names the node's pins; made by the agent's first start.
    pub fn state_id(&self) -> Result<String> {
        let file = self.state_folder().join("state.json");
        let state: Value = serde_json::from_slice(&std::fs::read(&file)?)?;
        let id = state["id"].as_str().context("the state has no id")?;
        Ok(id.to_owned())
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.join("sock")
    }

    pub fn log(&self) -> PathBuf {
        self.folder.with_extension("log")
    }

    /// `lowroad agent` with this node's folders, not started.
    pub fn agent_command(&self) -> Command {
        let mut command = self.namespace.command(&self.program);
        command.arg("agent").arg("--state-dir");
        command.arg(self.state_folder());
        command.arg("--socket").arg(self.socket());
        command.args(&self.options);
        if !self.all_capabilities {
            process::confine(&mut command, process::AGENT_CAPABILITIES);
        }
        command
    }

    /// Starts the agent (again) and waits for its socket to answer.
    pub fn start_agent(&mut self) -> Result<()> {
        let mut command = self.agent_command();
        self.start_agent_as(&mut command, |_| Ok(()))
    }

    /// Starts the agent by an [`Self::agent_command`] that was changed, and shows its process id to `spawned` at once.
    pub fn start_agent_as(
        &mut self,
        command: &mut Command,
        spawned: impl FnOnce(u32) -> Result<()>,
    ) -> Result<()> {
        let daemon = Daemon::spawn(command, &self.log())?;
        let agent = self.agent.insert(daemon);
        spawned(agent.pid())?;
        let socket = self.folder.join("sock");
        let (result, _) = wait::wait_for("the agent's socket", START_LIMIT, || {
            if let Some(status) = agent.ended() {
                return Ok(Some(Err(status)));
            }
            let connected = UnixStream::connect(&socket).is_ok();
            Ok(connected.then_some(Ok(())))
        })?;
        if let Err(status) = result {
            let log = process::tail(&self.log(), 5);
            bail!("the agent of {} ended with {status}: {log}", self.name);
        }
        Ok(())
    }

    pub fn kill_9(&mut self) {
        if let Some(mut agent) = self.agent.take() {
            agent.kill_9();
        }
    }

    /// SIGTERM, as a service manager does on restart; one that ignores it is killed.
    pub fn stop_agent(&mut self) {
        self.agent = None;
    }

    /// SIGTERM as the subject: the agent must end by itself, without an error.
    pub fn stop_agent_gracefully(&mut self) -> Result<()> {
        let mut agent = self.agent.take().context("there is no agent to stop")?;
        agent.stop_gracefully(STOP_LIMIT)
    }

    /// Whether the agent has ended by itself.
    pub fn agent_has_ended(&mut self) -> bool {
        self.agent
            .as_mut()
            .is_none_or(|agent| agent.ended().is_some())
    }

    pub fn agent_pid(&self) -> Option<u32> {
        self.agent.as_ref().map(Daemon::pid)
    }

    /// What the local API answers to `GET` of this path.
    pub fn local(&self, path: &str) -> Result<Value> {
        let mut stream = UnixStream::connect(self.socket())?;
        stream.set_read_timeout(Some(CLI_LIMIT))?;
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: local-tailscaled.sock\r\nConnection: close\r\n\r\n"
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer
            .split_once("\r\n\r\n")
            .with_context(|| format!("{path} answered {answer:?}"))?;
        ensure!(head.starts_with("HTTP/1.1 200"), "{path} answered {head}");
        serde_json::from_str(body).with_context(|| format!("{path} answered {body}"))
    }

    /// Inbound packets that the policy refused, since the filter was first put on the device.
    pub fn refused_packets(&self) -> Result<u64> {
        let counters = self.local("/lowroad/v0/counters")?;
        let dropped = counters["Dropped"].as_array().context("no drop counters")?;
        let refused = dropped
            .iter()
            .find(|one| one["Direction"] == "in" && one["Reason"] == "acl");
        let refused = refused.context("no counter of packets that no rule admits")?;
        refused["Packets"].as_u64().context("not a number")
    }

    /// `kernel` or `userspace`.
    pub fn dataplane(&self) -> Result<String> {
        let status = self.status()?;
        let plane = status["Lowroad"]["Dataplane"].as_str();
        Ok(plane
            .context("no Lowroad.Dataplane in the status")?
            .to_owned())
    }

    /// How many packets the agent has passed to relays and got from them.
    pub fn relayed_packets(&self) -> Result<Relayed> {
        let status = self.status()?;
        let count = |key: &str| status["Lowroad"][key].as_u64();
        let both = count("RelayedTxPackets").zip(count("RelayedRxPackets"));
        let (sent, received) = both.context("the status does not count relayed packets")?;
        Ok(Relayed { sent, received })
    }

    /// The last drop that involves this port, as `lowroad flows` tells it.
    pub fn drop_event(&self, port: u16) -> Result<Option<String>> {
        let flows = self.cli(&["flows", "--port", &port.to_string()])?;
        Ok(flows.lines().last().map(|line| line.trim().to_owned()))
    }

    /// Ends the agent, and removes what it left in the kernel as a user would without one.
    pub fn clean_up(&mut self) -> Result<()> {
        self.agent = None;
        let mut command = self.agent_command();
        process::run_regardless(command.arg("--cleanup"), CLEANUP_LIMIT)?
            .ok("lowroad agent --cleanup")
            .map(drop)
    }
}

impl Client for Node {
    fn name(&self) -> &str {
        &self.name
    }

    fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    fn server(&self) -> &str {
        self.server
    }

    /// `lowroad --socket … <arguments>`.
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.namespace.command(binaries().join("lowroad"));
        command.arg("--socket").arg(self.socket()).args(arguments);
        command
    }
}

impl Drop for Node {
    /// Without this, what is pinned in the bpffs would stay behind.
    fn drop(&mut self) {
        if let Err(error) = self.clean_up() {
            let failure = format!("cleaning up {}: {error:#}", self.name);
            eprintln!("   {failure}");
            failures().push(failure);
        }
    }
}

/// Of `agent --cleanup` at the end of nodes, which have nobody to return them to.
static FAILURES: Mutex<Vec<String>> = Mutex::new(Vec::new());

fn failures() -> MutexGuard<'static, Vec<String>> {
    FAILURES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What went wrong when nodes were dropped since this was asked for.
pub fn cleanup_failures() -> Vec<String> {
    std::mem::take(&mut failures())
}

/// The last lines of every log in `folder`, for a person who looks for what went wrong.
pub fn print_logs(folder: &Path, lines: usize) {
    let mut logs: Vec<PathBuf> = std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "log"))
        .collect();
    logs.sort();
    for log in logs {
        eprintln!("--- {}", log.display());
        eprintln!("{}", process::tail(&log, lines));
    }
}
