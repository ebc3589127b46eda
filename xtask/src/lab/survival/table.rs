//! What was lost in each case, out of how many.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::{
    lab::losses::{Refused, Traffic},
    traffic::{Carried, Report},
};

#[derive(Debug)]
pub struct Row {
    pub what: &'static str,
    /// From the first packet until all were counted.
    pub ran: (Instant, Instant),
    pub ping: Report,
    pub stream: Carried,
    pub refused_sent: u64,
    /// Of those, how many reached a socket.
    pub refused_passed: u64,
    /// And how many the filter's own counter counted.
    pub refused_counted: u64,
    /// Whether that counter could go on.
    pub counter_kept: bool,
    /// What was wrong with the WireGuard session.
    pub session: Result<(), String>,
    /// What changed among links, addresses, routes and rules.
    pub events: Vec<String>,
    /// Pings that came, and that the node's kernel had no room to answer.
    pub unmade: usize,
    pub adopted: Vec<Adoption>,
}

/// How an agent took over what it found.
#[derive(Debug, Clone, Copy)]
pub struct Adoption {
    /// From its start until it had.
    pub after: Duration,
    /// What it had used of the CPU soon after.
    pub cpu: Duration,
}

impl Row {
    /// What must hold in any case.
    pub fn check_kept(&self) -> Result<()> {
        self.expect(&[
            (
                self.refused_passed == 0,
                format!("{} refused packets passed", self.refused_passed),
            ),
            (
                self.refused_counted <= self.refused_sent && self.refused_counted > 0,
                self.counted(),
            ),
            (
                self.session.is_ok(),
                self.session.clone().err().unwrap_or_default(),
            ),
            (
                self.events.is_empty(),
                format!("the kernel's network state was changed: {:?}", self.events),
            ),
        ])
    }

    /// What a machine without time for its queues cannot keep.
    pub fn traffic(&self) -> Traffic<'_> {
        let refused = Refused {
            sent: self.refused_sent,
            counted: self.refused_counted,
        };
        Traffic {
            what: self.what,
            ran: self.ran,
            ping: &self.ping,
            unmade: self.unmade,
            stream: Some(self.stream),
            refused: self.counter_kept.then_some(refused),
        }
    }

    fn counted(&self) -> String {
        format!(
            "{} of {} refused packets were counted",
            self.refused_counted, self.refused_sent
        )
    }

    fn expect(&self, all: &[(bool, String)]) -> Result<()> {
        let wrong: Vec<&str> = all
            .iter()
            .filter(|(holds, _)| !holds)
            .map(|(_, what)| what.as_str())
            .collect();
        if !wrong.is_empty() {
            bail!("{}: {}", self.what, wrong.join("; "));
        }
        Ok(())
    }
}

pub fn print(kernel: &str, rows: &[Row]) {
    eprintln!(
        "      | case (Linux {kernel}) | pings lost (no room to answer) | TCP segments lost | TCP, both ways, byte-exact | longest silence of TCP | refused packets passed | session | other changes | adopted after |"
    );
    eprintln!("      |---|---|---|---|---|---|---|---|---|");
    for row in rows {
        let adopted: Vec<String> = row
            .adopted
            .iter()
            .map(|one| {
                let (after, cpu) = (one.after.as_millis(), one.cpu.as_millis());
                format!("{after} ms ({cpu} of them its own CPU)")
            })
            .collect();
        eprintln!(
            "      | {} | {} of {} ({}) | {} of {} | {:.1} MB | {} ms | {} of {} | {} | {} | {} |",
            row.what,
            row.ping.lost(),
            row.ping.sent,
            row.unmade,
            row.stream.lost,
            row.stream.segments,
            row.stream.bytes as f64 / 1e6,
            row.stream.longest_silence.as_millis(),
            row.refused_passed,
            row.refused_sent,
            row.session
                .as_ref()
                .map_or_else(String::as_str, |()| "kept"),
            row.events.len(),
            adopted.join(", ")
        );
    }
}
