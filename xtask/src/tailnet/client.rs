//! What a node's command line tells. The stock client's says the same in the same words, so this serves for both.

use std::{
    net::IpAddr,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::{
    process::{self, Finished},
    topology::Namespace,
    wait,
};

const CLI_LIMIT: Duration = Duration::from_secs(90);

/// How packets to a peer go, as the status says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PathKind {
    Direct(String),
    Relay(String),
    /// Nothing is known about the peer, or it isn't there.
    None,
}

impl PathKind {
    pub fn is_direct(&self) -> bool {
        matches!(self, Self::Direct(_))
    }
}

/// A node, seen through its command line.
pub trait Client {
    fn name(&self) -> &str;

    /// The host that it runs on.
    fn namespace(&self) -> &Namespace;

    /// Where `up` looks for the coordinator.
    fn server(&self) -> &str;

    /// Its command line, not run.
    fn command(&self, arguments: &[&str]) -> Command;

    fn try_cli(&self, arguments: &[&str]) -> Result<Finished> {
        process::run(&mut self.command(arguments), "", CLI_LIMIT)
    }

    fn cli(&self, arguments: &[&str]) -> Result<String> {
        let what = format!("{}: {}", self.name(), arguments.join(" "));
        Ok(self.try_cli(arguments)?.ok(&what)?.stdout)
    }

    /// Joins, and returns how long that took.
    fn up(&self, auth_key: &str) -> Result<Duration> {
        self.up_with(auth_key, &[])
    }

    fn up_with(&self, auth_key: &str, flags: &[&str]) -> Result<Duration> {
        let start = Instant::now();
        let server = format!("--login-server={}", self.server());
        let key = format!("--auth-key={auth_key}");
        let hostname = format!("--hostname={}", self.name());
        let mut arguments = vec!["up", &server, &key, &hostname, "--timeout=60s"];
        arguments.extend(flags);
        self.cli(&arguments)?;
        Ok(start.elapsed())
    }

    fn status(&self) -> Result<Value> {
        let text = self.cli(&["status", "--json"])?;
        serde_json::from_str(&text).with_context(|| format!("{}'s status {text}", self.name()))
    }

    fn ip(&self, family: u8) -> Result<IpAddr> {
        let text = self.cli(&["ip", &format!("-{family}")])?;
        let first = text.split_whitespace().next().unwrap_or_default();
        first
            .parse()
            .with_context(|| format!("{}'s address {text:?}", self.name()))
    }

    /// What the status says about the peer that has this host name.
    fn peer(&self, name: &str) -> Result<Option<Value>> {
        let mut status = self.status()?;
        let peers = status["Peer"].as_object_mut();
        Ok(peers.and_then(|peers| {
            let mut all = peers.values_mut().map(Value::take);
            all.find(|peer| peer["HostName"] == name)
        }))
    }

    fn path_to(&self, name: &str) -> Result<PathKind> {
        let Some(peer) = self.peer(name)? else {
            return Ok(PathKind::None);
        };
        let text = |key: &str| peer[key].as_str().unwrap_or_default().to_owned();
        Ok(match (text("CurAddr"), text("Relay")) {
            (direct, _) if !direct.is_empty() => PathKind::Direct(direct),
            (_, relay) if !relay.is_empty() => PathKind::Relay(relay),
            _ => PathKind::None,
        })
    }

    /// Waits until the agent is connected, as it is by itself after a restart.
    fn wait_until_running(&self, limit: Duration) -> Result<Duration> {
        let what = format!("the agent of {} running", self.name());
        let (_, time) = wait::wait_for(&what, limit, || {
            Ok((self.status()?["BackendState"] == "Running").then_some(()))
        })?;
        Ok(time)
    }

    /// Waits until packets to the peer go directly.
    fn wait_for_direct(&self, name: &str, limit: Duration) -> Result<(String, Duration)> {
        let what = format!("a direct path from {} to {name}", self.name());
        wait::wait_for(&what, limit, || {
            Ok(match self.path_to(name)? {
                PathKind::Direct(address) => Some(address),
                PathKind::Relay(_) | PathKind::None => None,
            })
        })
    }

    /// Waits until the netmap has the peer.
    fn wait_for_peer(&self, name: &str, limit: Duration) -> Result<Duration> {
        let what = format!("{name} among the peers of {}", self.name());
        let (_, time) = wait::wait_for(&what, limit, || self.peer(name))?;
        Ok(time)
    }
}
