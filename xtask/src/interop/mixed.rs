//! Eight nodes, four of each kind, while nodes restart, addresses change and policies come and go.

use std::{
    net::{IpAddr, SocketAddr},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};

use super::{
    Lab,
    member::{Kind, Member},
    server::{self, KeyOptions, Server},
    table::Table,
};
use crate::{
    lab::{ALLOW_ALL, secs},
    process::{cpu_time, memory},
    signals,
    tailnet::Client,
    topology::Nat,
    traffic::{self, Pinger},
    wait,
};

const MINUTE: Duration = secs(60);
/// After the last change of a minute: for what has to settle.
const SETTLE: Duration = secs(20);
const PACE: Duration = Duration::from_millis(100);
const SILENCE: Duration = secs(1);
/// For a direct path, of nodes that have talked before.
const UPGRADE: Duration = secs(60);
const QUICK: Duration = Duration::from_millis(20);
const PORT: u16 = 80;
const BYTES: usize = 100_000_000;
const USERS: [&str; 2] = ["ann", "bob"];
/// Of the hosts of the public segment: lowroad 0 and 2, stock 1 and 3.
const KINDS: [(usize, usize); 4] = [(0, 2), (0, 1), (1, 0), (1, 3)];

/// A policy, and whether it lets the first user's node reach the second's.
struct Policy {
    name: &'static str,
    text: &'static str,
    allows: fn(from: &str, to: &str) -> bool,
}

const POLICIES: [Policy; 3] = [
    Policy {
        name: "everybody",
        text: ALLOW_ALL,
        allows: |_, _| true,
    },
    Policy {
        name: "ann's nodes only",
        text: r#"{"acls": [{"action": "accept", "src": ["ann@"], "dst": ["*:*"]}]}"#,
        allows: |from, _| from == "ann",
    },
    Policy {
        name: "each user's own nodes",
        text: r#"{"acls": [{"action": "accept", "src": ["autogroup:member"], "dst": ["autogroup:self:*"]}]}"#,
        allows: |from, to| from == to,
    },
];

struct Eight {
    server: Server,
    members: Vec<Member>,
    users: Vec<&'static str>,
    policy: &'static Policy,
}

pub fn churn(lab: &Lab, table: &mut Table, kind: server::Kind) -> Result<()> {
    table.area(&format!(
        "eight nodes on {}, for {} minutes",
        kind.name(),
        lab.minutes
    ));
    let mut eight = join(lab, kind)?;
    eight.check().context("before any change")?;
    let begin = Instant::now();
    for minute in 1..=lab.minutes {
        signals::check()?;
        let mut done = String::new();
        table.try_it(&format!("minute {minute}"), || {
            let end = begin + MINUTE * u32::try_from(minute)?;
            done = eight.change(lab, minute)?;
            wait::pass((end - SETTLE).saturating_duration_since(Instant::now()))?;
            let pairs = eight.check().with_context(|| done.clone())?;
            wait::pass(end.saturating_duration_since(Instant::now()))?;
            Ok(format!("{done}; {}: {pairs}", eight.policy.name))
        });
    }
    eight.figures(table)
}

fn join(lab: &Lab, kind: server::Kind) -> Result<Eight> {
    let server = Server::start(lab, kind, ALLOW_ALL)?;
    let mut members = Vec::new();
    let mut users = Vec::new();
    for number in 0..8_u8 {
        let kind = [Kind::Lowroad, Kind::Stock][usize::from(number % 2)];
        let user = USERS[usize::from(number / 2 % 2)];
        let name = format!("{}{number}", kind.name());
        let last = 30 + number;
        let member = match number {
            0..4 => Member::public(lab, kind, &name, last)?,
            4 | 5 => Member::behind(lab, kind, &name, last, Nat::Easy)?,
            6 => Member::behind(lab, kind, &name, last, Nat::Hard)?,
            _ => Member::behind(lab, kind, &name, last, Nat::UdpBlocked)?,
        };
        member.up(&server.auth_key(user, KeyOptions::default())?)?;
        members.push(member);
        users.push(user);
    }
    Ok(Eight {
        server,
        members,
        users,
        policy: &POLICIES[0],
    })
}

/// Whether pings are answered, as is wanted of these two.
fn pair(from: &Member, to: &Member, address: IpAddr, wanted: bool) -> Result<()> {
    let what = || format!("{} to {}", from.name(), to.name());
    let ping = Pinger::start(from.namespace(), address, PACE)?;
    if wanted {
        return ping.first_answer(SETTLE).map(drop).with_context(what);
    }
    wait::pass(SILENCE)?;
    let report = ping.report();
    ensure!(
        report.answered == 0,
        "{} is refused, and answered: {report}",
        what()
    );
    Ok(())
}

impl Eight {
    /// What happens in this minute, in turns.
    fn change(&mut self, lab: &Lab, minute: u64) -> Result<String> {
        let chosen = usize::try_from(minute)? * 3 % self.members.len();
        let name = self.members[chosen].name().to_owned();
        Ok(match minute % 5 {
            0 => {
                self.members[chosen].restart()?;
                format!("{name} restarted")
            }
            1 => {
                self.members[chosen].crash(Duration::ZERO)?;
                format!("{name} killed and started again")
            }
            2 => {
                self.policy = &POLICIES[(usize::try_from(minute)? / 5 + 1) % POLICIES.len()];
                self.server.set_policy(self.policy.text)?;
                "another policy".to_owned()
            }
            3 => {
                // Only the hosts of the public segment.
                let chosen = chosen % 4;
                let (old, new) = match minute / 5 % 2 {
                    0 => (30 + chosen, 130 + chosen),
                    _ => (130 + chosen, 30 + chosen),
                };
                let member = &self.members[chosen];
                // Whichever it has now.
                let _ = member
                    .namespace()
                    .ip(&format!("addr del 203.0.113.{old}/24 dev wan0"));
                let _ = member
                    .namespace()
                    .ip(&format!("addr del 203.0.113.{new}/24 dev wan0"));
                member
                    .namespace()
                    .ip(&format!("addr add 203.0.113.{new}/24 dev wan0"))?;
                format!("{} moved to 203.0.113.{new}", member.name())
            }
            _ => {
                let last = 30 + u8::try_from(chosen)?;
                lab.net.cut(last)?;
                wait::pass(secs(10))?;
                lab.net.heal(last)?;
                format!("{name} cut off for 10 s")
            }
        })
    }

    /// Every pair that the policy allows answers, and no other.
    fn check(&self) -> Result<String> {
        let addresses: Vec<_> = self
            .members
            .iter()
            .map(|member| member.ip(4))
            .collect::<Result<_>>()?;
        let one = |from: usize, to: usize| -> Result<bool> {
            let wanted = (self.policy.allows)(self.users[from], self.users[to]);
            let (from, to, address) = (&self.members[from], &self.members[to], addresses[to]);
            pair(from, to, address, wanted).map_err(|error| {
                let (from, to) = (from.knows_of(to.name()), to.knows_of(from.name()));
                anyhow!("{error:#} ({from}; {to})")
            })?;
            Ok(wanted)
        };
        let all = (0..self.members.len())
            .flat_map(|from| (0..self.members.len()).map(move |to| (from, to)));
        let pairs: Vec<_> = all.filter(|(from, to)| from != to).collect();
        let results: Vec<Result<bool>> = thread::scope(|scope| {
            let running: Vec<_> = pairs
                .iter()
                .map(|&(from, to)| scope.spawn(move || one(from, to)))
                .collect();
            let end = |thread: thread::ScopedJoinHandle<'_, _>| {
                thread.join().unwrap_or_else(|_| Err(anyhow!("panicked")))
            };
            running.into_iter().map(end).collect()
        });
        let failed: Vec<_> = results
            .iter()
            .filter_map(|result| result.as_ref().err())
            .map(|error| format!("{error:#}"))
            .collect();
        ensure!(
            failed.is_empty(),
            "{} of {} pairs: {}",
            failed.len(),
            pairs.len(),
            failed.join("; ")
        );
        let allowed = results
            .iter()
            .filter(|result| matches!(result, Ok(true)))
            .count();
        Ok(format!(
            "{allowed} pairs answer, {} are refused",
            pairs.len() - allowed
        ))
    }

    /// What it costs with either kind, side by side.
    fn figures(&mut self, table: &mut Table) -> Result<()> {
        self.memory_and_cpu(table);
        self.policy = &POLICIES[0];
        self.server.set_policy(self.policy.text)?;
        for (from, to) in KINDS {
            let [from, to] = [&self.members[from], &self.members[to]];
            let what = format!("{} to {}", from.kind().name(), to.kind().name());
            table.try_it(&format!("{what}, after all that: ping and TCP"), || {
                latency_and_throughput(from, to)
            });
        }
        Ok(())
    }

    fn memory_and_cpu(&self, table: &mut Table) {
        for kind in [Kind::Lowroad, Kind::Stock] {
            table.try_it(&format!("{} nodes: memory and CPU", kind.name()), || {
                let mut all = Vec::new();
                for member in self.members.iter().filter(|member| member.kind() == kind) {
                    let pid = member.pid()?;
                    all.push(format!(
                        "{} MB, {:.1} CPU-s since its last start",
                        memory(pid, "VmRSS")?,
                        cpu_time(pid)?.as_secs_f64()
                    ));
                }
                Ok(all.join("; "))
            });
        }
    }
}

/// Over the direct path, which they have found by then.
fn latency_and_throughput(from: &Member, to: &Member) -> Result<String> {
    let address = to.ip(4)?;
    let ping = Pinger::start(from.namespace(), address, PACE)?;
    from.wait_for_direct(to.name(), UPGRADE)?;
    drop(ping);
    let ping = Pinger::start(from.namespace(), address, QUICK)?;
    wait::pass(secs(5))?;
    let report = ping.stop();
    let median = report.median.with_context(|| report.to_string())?;
    let _web = traffic::Server::start(to.namespace(), PORT)?;
    let got = traffic::get(
        from.namespace(),
        SocketAddr::new(address, PORT),
        BYTES,
        secs(60),
    )?;
    Ok(format!(
        "median {:.2} ms, {} of {} lost; {} MB byte-exact at {:.0} Mbit/s",
        median.as_secs_f64() * 1e3,
        report.lost(),
        report.sent,
        BYTES / 1_000_000,
        got.megabits_per_second()
    ))
}
