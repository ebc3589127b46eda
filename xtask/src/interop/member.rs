//! A node of either kind.

use std::{process::Command, time::Duration};

use anyhow::{Context as _, Result};

use serde_json::Value;

use super::{Lab, hosts, server, stock::Stock};
use crate::{
    lab::secs,
    tailnet::{Client, Node},
    topology::{Namespace, Nat},
    traffic::Pinger,
    wait,
};

/// For a first answer, and between pings that wait for it.
const FIRST_ANSWER: Duration = secs(30);
const PACE: Duration = Duration::from_millis(20);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Lowroad,
    Stock,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Lowroad => "lowroad",
            Self::Stock => "stock",
        }
    }
}

/// What decides whether and how packets go to a peer, in a status.
const KNOWN: [&str; 8] = [
    "CurAddr",
    "Relay",
    "LastHandshake",
    "InNetworkMap",
    "InEngine",
    "Online",
    "RxBytes",
    "TxBytes",
];

#[derive(Debug)]
pub enum Member {
    Lowroad(Box<Node>),
    Stock(Stock),
}

impl Member {
    /// Starts a node of this kind on this host; it joins nothing yet.
    pub fn start(lab: &Lab, kind: Kind, name: &str, host: &Namespace) -> Result<Self> {
        let host = hosts::with_etc(host, lab.net.folder())?;
        Ok(match kind {
            Kind::Lowroad => {
                let mut node = Node::start(lab.net, name, host)?;
                node.server = server::URL;
                Self::Lowroad(Box::new(node))
            }
            Kind::Stock => Self::Stock(Stock::start(lab.net, lab.programs, name, host)?),
        })
    }

    /// On the public segment, at 203.0.113.`last`.
    pub fn public(lab: &Lab, kind: Kind, name: &str, last: u8) -> Result<Self> {
        Self::start(lab, kind, name, &lab.net.public(name, last)?)
    }

    /// Behind a router of its own at 203.0.113.`last`.
    pub fn behind(lab: &Lab, kind: Kind, name: &str, last: u8, nat: Nat) -> Result<Self> {
        let router = lab.net.router(&format!("{name}-nat"), last, nat)?;
        Self::start(lab, kind, name, &lab.net.behind(name, &router, 2)?)
    }

    pub fn kind(&self) -> Kind {
        match self {
            Self::Lowroad(_) => Kind::Lowroad,
            Self::Stock(_) => Kind::Stock,
        }
    }

    /// Ends the daemon as a service manager does.
    pub fn stop(&mut self) {
        match self {
            Self::Lowroad(node) => node.stop_agent(),
            Self::Stock(stock) => stock.stop(),
        }
    }

    /// Ends it so, and starts it again.
    pub fn restart(&mut self) -> Result<()> {
        self.stop();
        self.start_again()
    }

    /// `kill -9`, and the daemon started again so much later.
    pub fn crash(&mut self, dead: Duration) -> Result<()> {
        match self {
            Self::Lowroad(node) => node.kill_9(),
            Self::Stock(stock) => stock.kill_9(),
        }
        wait::pass(dead)?;
        self.start_again()
    }

    fn start_again(&mut self) -> Result<()> {
        match self {
            Self::Lowroad(node) => node.start_agent(),
            Self::Stock(stock) => stock.start_daemon(),
        }
    }

    /// From 203.0.113.`old` and 2001:db8::`old` to those of `new`.
    pub fn move_on_segment(&self, old: u8, new: u8) -> Result<()> {
        self.namespace().ip(&format!(
            "addr del 203.0.113.{old}/24 dev wan0\n\
             addr del 2001:db8::{old}/64 dev wan0\n\
             addr add 203.0.113.{new}/24 dev wan0\n\
             addr add 2001:db8::{new}/64 dev wan0 nodad"
        ))
    }

    /// What its status knows of a peer, for a person who looks for what went wrong between them.
    pub fn knows_of(&self, name: &str) -> String {
        let known = match self.peer(name) {
            Ok(Some(peer)) => KNOWN
                .map(|field| format!("{field} {}", peer[field]))
                .join(", "),
            Ok(None) => "no such peer".to_owned(),
            Err(error) => format!("no status: {error:#}"),
        };
        format!("{} of {name}: {known}", self.name())
    }

    /// The key that it has, which a stock one knows by its netmap.
    pub fn node_key(&self) -> Result<Value> {
        Ok(self.status()?["Self"]["PublicKey"].clone())
    }

    /// Pings another one until it answers by the tunnel. Returns how long that took.
    pub fn answered_by(&self, other: &Self) -> Result<Duration> {
        let ping = Pinger::start(self.namespace(), other.ip(4)?, PACE)?;
        ping.first_answer(FIRST_ANSWER)
    }

    pub fn pid(&self) -> Result<u32> {
        match self {
            Self::Lowroad(node) => node.agent_pid().context("an agent that does not run"),
            Self::Stock(stock) => stock.pid(),
        }
    }
}

impl Client for Member {
    fn name(&self) -> &str {
        match self {
            Self::Lowroad(node) => Client::name(&**node),
            Self::Stock(stock) => stock.name(),
        }
    }

    fn namespace(&self) -> &Namespace {
        match self {
            Self::Lowroad(node) => Client::namespace(&**node),
            Self::Stock(stock) => stock.namespace(),
        }
    }

    fn server(&self) -> &str {
        server::URL
    }

    fn command(&self, arguments: &[&str]) -> Command {
        match self {
            Self::Lowroad(node) => node.command(arguments),
            Self::Stock(stock) => stock.command(arguments),
        }
    }
}
