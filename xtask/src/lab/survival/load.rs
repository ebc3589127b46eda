//! The traffic between the hub and a node in trouble.

use std::{
    net::{IpAddr, SocketAddr},
    time::Instant,
};

use anyhow::{Context, Result};

use super::{FLOOD, LIMIT, MORE_ANSWERS, PING, REFUSED, Row, STREAM};
use crate::{
    lab::secs,
    tailnet::{Client as _, Node},
    traffic::{Flood, Pinger, Stream, unmade_answers},
    wait,
};

/// Pings, a TCP stream in both directions, and packets that [`super::POLICY`] refuses, all of them from the hub.
pub struct Load {
    start: Instant,
    pub address: IpAddr,
    ping: Pinger,
    stream: Stream,
    flood: Flood,
    refused_before: u64,
    unmade_before: usize,
    /// Packets that asked for connections, beside the flood.
    pub refused_connecting: u64,
    /// Whether the filter's counters go on.
    pub counter_kept: bool,
}

impl Load {
    pub fn start(hub: &Node, node: &Node) -> Result<Self> {
        let start = Instant::now();
        let address = node.ip(4)?;
        let [open, closed] = [STREAM, REFUSED].map(|port| SocketAddr::new(address, port));
        let refused_before = node.refused_packets()?;
        let unmade_before = unmade_answers(&node.namespace)?;
        Ok(Self {
            start,
            address,
            stream: Stream::start(&hub.namespace, &node.namespace, open)?,
            flood: Flood::start(&hub.namespace, &node.namespace, closed, FLOOD)?,
            ping: Pinger::start(&hub.namespace, address, PING)?,
            refused_before,
            unmade_before,
            refused_connecting: 0,
            counter_kept: true,
        })
    }

    /// Pings, stream and flood all make progress.
    pub fn goes_on(&self, node: &Node) -> Result<()> {
        let (answered, bytes, sent) = (
            self.ping.answered(),
            self.stream.progress(),
            self.flood.sent(),
        );
        let what = format!("traffic of {}", node.name);
        wait::wait_for(&what, LIMIT, || {
            let more = self.ping.answered() > answered + MORE_ANSWERS
                && self.stream.progress() > bytes
                && self.flood.sent() > sent;
            Ok(more.then_some(()))
        })
        .map(drop)
    }

    /// Ends it, while the node's agent runs, and says what was lost. Session, events and adoptions are for the caller to add.
    pub fn end(mut self, what: &'static str, node: &Node) -> Result<Row> {
        let ping = self.ping.stop();
        let stream = self.stream.stop()?;
        self.flood.end_sending();
        let refused_sent = self.flood.sent() + self.refused_connecting;
        let before = if self.counter_kept {
            self.refused_before
        } else {
            0
        };
        let counted = || {
            let now = node.refused_packets()?;
            now.checked_sub(before)
                .context("the filter's counter went back")
        };
        if self.counter_kept {
            let _ = wait::wait_for("the last refused packets", secs(10), || {
                Ok((counted()? >= refused_sent).then_some(()))
            });
        }
        Ok(Row {
            what,
            ping,
            stream,
            refused_sent,
            refused_passed: self.flood.received(),
            refused_counted: counted()?,
            counter_kept: self.counter_kept,
            unmade: unmade_answers(&node.namespace)?.saturating_sub(self.unmade_before),
            ran: (self.start, Instant::now()),
            session: Ok(()),
            events: Vec::new(),
            adopted: Vec::new(),
        })
    }
}
