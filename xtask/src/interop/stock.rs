//! A stock node: `tailscaled` in a namespace, driven by the `tailscale` command line.

use std::{
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail};

use super::server;
use crate::{
    process::{self, Daemon},
    tailnet::Client,
    topology::{Namespace, Net},
    wait,
};

const START_LIMIT: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub struct Stock {
    name: String,
    namespace: Namespace,
    programs: PathBuf,
    folder: PathBuf,
    daemon: Option<Daemon>,
}

impl Stock {
    /// Starts a daemon in `namespace`; it joins nothing yet.
    pub fn start(net: &Net, programs: &Path, name: &str, namespace: Namespace) -> Result<Self> {
        let mut stock = Self {
            name: name.to_owned(),
            namespace,
            programs: programs.to_owned(),
            folder: net.folder().join(name),
            daemon: None,
        };
        std::fs::create_dir_all(&stock.folder)?;
        stock.start_daemon()?;
        Ok(stock)
    }

    fn socket(&self) -> PathBuf {
        self.folder.join("sock")
    }

    pub fn start_daemon(&mut self) -> Result<()> {
        let socket = self.socket();
        let _ = std::fs::remove_file(&socket);
        let mut command = self.namespace.command(self.programs.join("tailscaled"));
        command
            // It must not report to its maker.
            .args(["--no-logs-no-support", "--tun=tailscale0", "--port=41641"])
            .arg(format!("--state={}", self.folder.join("state").display()))
            .arg(format!("--statedir={}", self.folder.display()))
            .arg(format!("--socket={}", socket.display()))
            .env("TS_DEBUG_FIREWALL_MODE", "nftables");
        let log = self.folder.with_extension("log");
        let daemon = self.daemon.insert(Daemon::spawn(&mut command, &log)?);
        let (ended, _) = wait::wait_for("tailscaled's socket", START_LIMIT, || {
            let ended = daemon.ended();
            Ok((ended.is_some() || UnixStream::connect(&socket).is_ok()).then_some(ended))
        })?;
        if let Some(status) = ended {
            bail!(
                "tailscaled of {} ended with {status}: {}",
                self.name,
                process::tail(&log, 5)
            );
        }
        Ok(())
    }

    pub fn kill_9(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            daemon.kill_9();
        }
    }

    pub fn stop(&mut self) {
        self.daemon = None;
    }

    pub fn pid(&self) -> Result<u32> {
        let daemon = self.daemon.as_ref();
        daemon
            .map(Daemon::pid)
            .context("a daemon that does not run")
    }

    /// The stock command line on any socket, this one's or another daemon's.
    pub fn command_line(
        programs: &Path,
        namespace: &Namespace,
        socket: &Path,
        arguments: &[&str],
    ) -> Command {
        let mut command = namespace.command(programs.join("tailscale"));
        command.arg(format!("--socket={}", socket.display()));
        command.args(arguments);
        command
    }
}

impl Client for Stock {
    fn name(&self) -> &str {
        &self.name
    }

    fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    fn server(&self) -> &str {
        server::URL
    }

    fn command(&self, arguments: &[&str]) -> Command {
        Self::command_line(&self.programs, &self.namespace, &self.socket(), arguments)
    }
}
