//! `lowroad-coordinator` at 203.0.113.10, plain HTTP for control, its own pinned certificate for the relay.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::{COORDINATOR, binaries};
use crate::{
    process::{self, Daemon, Finished},
    topology::{Namespace, Net},
    traffic, wait,
};

pub const URL: &str = "http://203.0.113.10:8080";
/// For hosts that have no IPv4.
pub const URL_V6: &str = "http://[2001:db8::10]:8080";
const PORT: u16 = 8080;
const START_LIMIT: Duration = Duration::from_secs(30);
const CLI_LIMIT: Duration = Duration::from_secs(30);

/// How it is started, this time and every other.
#[derive(Debug)]
struct Options {
    level: &'static str,
    url: &'static str,
    flags: Vec<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            level: "info",
            url: URL,
            flags: Vec::new(),
        }
    }
}

#[derive(Debug)]
pub struct Coordinator {
    pub namespace: Namespace,
    folder: PathBuf,
    state: PathBuf,
    options: Options,
    daemon: Daemon,
}

impl Coordinator {
    /// On a host of its own in `net`, with this policy.
    pub fn start(net: &Net, policy: &str) -> Result<Self> {
        Self::launch(net, policy, Options::default())
    }

    /// With another level of logging.
    pub fn start_logging(net: &Net, policy: &str, level: &'static str) -> Result<Self> {
        let options = Options {
            level,
            ..Options::default()
        };
        Self::launch(net, policy, options)
    }

    /// Reached by this URL, relay included.
    pub fn start_at(net: &Net, policy: &str, url: &'static str) -> Result<Self> {
        let options = Options {
            url,
            ..Options::default()
        };
        Self::launch(net, policy, options)
    }

    /// With further flags of `serve`.
    pub fn start_with(net: &Net, policy: &str, flags: &[&str]) -> Result<Self> {
        let options = Options {
            flags: flags.iter().map(|&flag| flag.to_owned()).collect(),
            ..Options::default()
        };
        Self::launch(net, policy, options)
    }

    fn launch(net: &Net, policy: &str, options: Options) -> Result<Self> {
        let namespace = net.public("coordinator", COORDINATOR)?;
        let folder = net.folder().to_owned();
        let state = folder.join("coordinator");
        fs::write(folder.join("policy.hujson"), policy)?;
        let daemon = serve(&namespace, &folder, &state, &options)?;
        let mut coordinator = Self {
            namespace,
            folder,
            state,
            options,
            daemon,
        };
        coordinator.wait_until_ready()?;
        Ok(coordinator)
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        let (result, _) = wait::wait_for("the coordinator's /health", START_LIMIT, || {
            if let Some(status) = self.daemon.ended() {
                return Ok(Some(Err(status)));
            }
            Ok(self.is_healthy()?.then_some(Ok(())))
        })?;
        if let Err(status) = result {
            bail!(
                "the coordinator ended with {status}: {}",
                process::tail(&self.daemon.log, 5)
            );
        }
        Ok(())
    }

    /// # Errors
    /// It doesn't answer.
    pub fn is_healthy(&self) -> Result<bool> {
        let address = SocketAddr::from(([203, 0, 113, COORDINATOR], PORT));
        Ok(traffic::status(&self.namespace, address, "/health")? == 200)
    }

    /// How it is started, for a program in its place.
    pub fn serve_command(&self) -> Command {
        serve_command(&self.namespace, &self.folder, &self.state, &self.options)
    }

    pub fn pid(&self) -> u32 {
        self.daemon.pid()
    }

    /// `kill -9`, and nothing after it.
    pub fn kill_9(&mut self) {
        self.daemon.kill_9();
    }

    /// Starts it again on the same state.
    pub fn start_again(&mut self) -> Result<()> {
        self.daemon.stop();
        self.daemon = serve(&self.namespace, &self.folder, &self.state, &self.options)?;
        self.wait_until_ready()
    }

    /// Starts it with a state of its own: another server with other keys at the same address.
    pub fn start_as_another(&mut self) -> Result<()> {
        self.daemon.stop();
        self.state = self.folder.join("another-coordinator");
        self.daemon = serve(&self.namespace, &self.folder, &self.state, &self.options)?;
        self.wait_until_ready()
    }

    /// Lets nobody speak to its control side any more, connections that are open included; the relay, which is spoken to by TLS, goes on.
    pub fn cut_control(&mut self) -> Result<()> {
        self.kill_9();
        // The first bytes of requests: "GET " and "POST".
        self.namespace.nft(
            "table inet cut { chain in { type filter hook input priority 0; \
             tcp dport 8080 @ih,0,32 { 0x47455420, 0x504f5354 } drop; }; }",
        )?;
        self.daemon.stop();
        self.daemon = serve(&self.namespace, &self.folder, &self.state, &self.options)?;
        let address = SocketAddr::from(([203, 0, 113, COORDINATOR], PORT));
        wait::wait_for("the relay's port", START_LIMIT, || {
            let connected = self
                .namespace
                .enter(|| std::net::TcpStream::connect_timeout(&address, CLI_LIMIT).is_ok())?;
            Ok(connected.then_some(()))
        })?;
        Ok(())
    }

    pub fn heal_control(&self) -> Result<()> {
        self.namespace.nft("delete table inet cut")
    }

    /// Runs its administration command line.
    pub fn try_cli(&self, arguments: &[&str]) -> Result<Finished> {
        let mut command = self
            .namespace
            .command(binaries().join("lowroad-coordinator"));
        command.arg("--state-dir").arg(&self.state).arg("--json");
        process::run(command.args(arguments), "", CLI_LIMIT)
    }

    pub fn cli(&self, arguments: &[&str]) -> Result<Value> {
        let finished = self
            .try_cli(arguments)?
            .ok(&format!("lowroad-coordinator {}", arguments.join(" ")))?;
        if finished.stdout.trim().is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_str(&finished.stdout)
            .with_context(|| format!("{} answered {}", arguments.join(" "), finished.stdout))
    }

    /// A reusable auth key, for nodes of `user`, or with `tags`.
    pub fn auth_key(&self, user: &str, tags: &str) -> Result<String> {
        let mut arguments = vec!["auth-keys", "create", "--user", user, "--reusable"];
        if !tags.is_empty() {
            arguments.extend(["--tags", tags]);
        }
        let answer = self.cli(&arguments)?;
        let key = answer["key"].as_str().context("no `key` in the answer")?;
        Ok(key.to_owned())
    }

    pub fn set_policy(&self, policy: &str) -> Result<()> {
        let file = self.folder.join("new-policy.hujson");
        fs::write(&file, policy)?;
        self.cli(&["policy", "set", path(&file)?]).map(drop)
    }
}

fn serve(namespace: &Namespace, folder: &Path, state: &Path, options: &Options) -> Result<Daemon> {
    let mut command = serve_command(namespace, folder, state, options);
    Daemon::spawn(&mut command, &folder.join("coordinator.log"))
}

fn serve_command(namespace: &Namespace, folder: &Path, state: &Path, options: &Options) -> Command {
    let mut command = namespace.command(binaries().join("lowroad-coordinator"));
    let any = match options.url {
        URL_V6 => "[::]",
        _ => "0.0.0.0",
    };
    command
        .args(["serve", "--url", options.url, "--base-domain", "tail.lab"])
        .args(["--listen", &format!("{any}:8080")])
        .args(["--stun", &format!("{any}:3478")])
        .env("LOWROAD_LOG", options.level)
        .arg("--state-dir")
        .arg(state)
        .arg("--policy")
        .arg(folder.join("policy.hujson"))
        .args(&options.flags);
    command
}

fn path(path: &Path) -> Result<&str> {
    path.to_str().context("a path that is not UTF-8")
}
