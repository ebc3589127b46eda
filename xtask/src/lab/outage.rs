//! Control server, relay or both are gone, and come back: direct paths don't notice, and nobody storms the server.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use super::{Lab, losses::Traffic, ms, policy, secs, survival};
use crate::{
    tailnet::{Client as _, Coordinator, Node},
    topology::{Namespace, Nat},
    traffic::{self, Pinger, Report, Stalls, Stream, unmade_answers},
    wait,
};

const WEB: &str = r#"{"acls": [{"action": "accept", "src": ["*"], "dst": ["*:80"]}]}"#;
const WEB_AND_90: &str = r#"{"acls": [{"action": "accept", "src": ["*"], "dst": ["*:80,90"]}]}"#;
const LIMIT: Duration = secs(120);
/// How many seconds both are gone, and for how long one of them doesn't get through: always, and with `LOWROAD_LONG`.
const BOTH: [u32; 2] = [30, 180];
const ONE: [Duration; 2] = [secs(10), secs(150)];
/// In the last seconds of the outage nobody may knock more often than this: for the relay every 2.5 to 5 s, for control after
/// ever longer pauses.
const LAST: Duration = secs(20);
const KNOCKS_PER_NODE: u64 = 8 + 3;
/// `LONGEST_WAIT` in `agent/src/control.rs` for who knocked just before the server was back, and 5 s.
const RETURN: Duration = secs(30 + 5);
/// For the server's key, control and the relay, and one each while the server starts.
const KNOCKS_TO_RETURN: u64 = 6;
/// Marks of connections, by the first byte a client sends: a record of TLS is the relay's, a request is control's.
const RELAY: &str = "1";
const CONTROL: &str = "2";
const TELL_APART: &str = "table inet kinds { chain in { type filter hook input priority 0; tcp dport 8080 ct mark 0 jump first; }
    chain first { @ih,0,8 0x16 ct mark set 1; @ih,0,8 { 0x47, 0x50 } ct mark set 2; }; }";

pub fn direct_paths_outlive_control_and_relay_and_all_comes_back_without_a_storm(
    lab: &Lab,
) -> Result<()> {
    let mut coordinator = lab.coordinator(WEB)?;
    let key = coordinator.auth_key("ann", "")?;
    let hub = lab.public_node("hub", 30)?;
    let others = [
        lab.public_node("one", 31)?,
        lab.public_node("two", 32)?,
        lab.node_behind("blocked", 33, Nat::UdpBlocked)?,
    ];
    for node in [&hub].into_iter().chain(&others) {
        node.up(&key)?;
    }
    let [one, two, blocked] = &others;
    for node in [one, two] {
        survival::find_direct_path(&hub, node)?;
    }
    let relayed = Pinger::start(&hub.namespace, blocked.ip(4)?, ms(100))?;
    relayed.first_answer(LIMIT)?;
    let stalls = Stalls::watch();
    let mut direct = Vec::new();
    for node in [one, two] {
        let start = Instant::now();
        let address = node.ip(4)?;
        let to = SocketAddr::new(address, 80);
        let stream = Stream::start(&hub.namespace, &node.namespace, to)?;
        direct.push((
            (node, start),
            Pinger::start(&hub.namespace, address, ms(10))?,
            stream,
            unmade_answers(&node.namespace)?,
        ));
    }

    let (gone, one_of_them) = (BOTH[usize::from(lab.long)], ONE[usize::from(lab.long)]);
    let nodes = [&hub, one, two, blocked];
    both(lab, &mut coordinator, gone, &nodes)?;
    comes_back(lab, "the relayed path after both", &relayed)?;

    deafen(&coordinator.namespace, Some(RELAY))?;
    policy::silent(&relayed, LIMIT).context("the relayed path")?;
    let unsent = relayed.report().unsent;
    ensure!(unsent == 0, "{unsent} pings were never sent");
    wait::pass(one_of_them)?;
    deafen(&coordinator.namespace, None)?;
    comes_back(lab, "the relayed path after the relay", &relayed)?;

    let unmade = unmade_answers(&blocked.namespace)?;
    let start = Instant::now();
    let meanwhile = without_control(lab, &coordinator, (&hub, one), &relayed, one_of_them)?;
    let unmade = unmade_answers(&blocked.namespace)?.saturating_sub(unmade);
    let relayed = Traffic {
        what: "relayed while control was gone",
        ran: (start, Instant::now()),
        ping: &meanwhile,
        unmade,
        stream: None,
        refused: None,
    };

    let mut cases = Vec::new();
    for ((node, start), ping, stream, unmade) in direct {
        let (report, carried) = (ping.stop(), stream.stop()?);
        let unmade = unmade_answers(&node.namespace)?.saturating_sub(unmade);
        lab.note(&format!(
            "direct to {}: {report}, {unmade} of them had come; TCP {:.1} MB byte-exact, {} of {} segments lost",
            node.name,
            carried.bytes as f64 / 1e6,
            carried.lost,
            carried.segments
        ));
        let ran = (start, Instant::now());
        cases.push((&node.name, ran, report, unmade, carried));
    }
    let direct = cases
        .iter()
        .map(|(what, ran, ping, unmade, carried)| Traffic {
            what,
            ran: *ran,
            ping,
            unmade: *unmade,
            stream: Some(*carried),
            refused: None,
        });
    let traffic: Vec<_> = direct.chain([relayed]).collect();
    lab.lost(&traffic, &stalls)
}

/// Control doesn't get through: what is relayed goes on, a new policy waits until it does. Returns what became of the relayed pings.
fn without_control(
    lab: &Lab,
    coordinator: &Coordinator,
    (hub, one): (&Node, &Node),
    relayed: &Pinger,
    time: Duration,
) -> Result<Report> {
    let _server = traffic::Server::start(&one.namespace, 90)?;
    let to = SocketAddr::new(one.ip(4)?, 90);
    let before = relayed.report();
    deafen(&coordinator.namespace, Some(CONTROL))?;
    coordinator.set_policy(WEB_AND_90)?;
    wait::pass(time)?;
    policy::refused_by(one, hub, to).context("control was not reached")?;
    let during = relayed.report();
    deafen(&coordinator.namespace, None)?;
    let (_, time) = wait::wait_for("a policy from the outage", LIMIT, || {
        traffic::get(&hub.namespace, to, 1000, ms(500)).map(Some)
    })?;
    lab.note(&format!(
        "the policy of the outage came through {:.1} s after it",
        time.as_secs_f64()
    ));
    let meanwhile = before.sent as u32..during.sent as u32;
    let unanswered = || {
        let mut report = relayed.report();
        report
            .unanswered
            .retain(|one| meanwhile.contains(&one.number));
        report.sent = meanwhile.len();
        report.answered = report.sent - report.unanswered.len();
        report
    };
    // Those under way.
    let _ = wait::wait_for("answers from without control", secs(10), || {
        Ok((unanswered().lost() == 0).then_some(()))
    });
    let report = unanswered();
    lab.note(&format!(
        "relayed while control was gone: {} pings, {} lost",
        report.sent,
        report.lost()
    ));
    Ok(report)
}

/// The coordinator, which is the relay too, is killed for so many seconds.
fn both(lab: &Lab, coordinator: &mut Coordinator, gone: u32, nodes: &[&Node]) -> Result<()> {
    let host = coordinator.namespace.clone();
    // Not those of the lab itself, which asks from there whether the server is up.
    host.nft(
        "table inet knocks { chain in { type filter hook input priority 0; \
         iifname != lo tcp dport 8080 tcp flags & (syn | ack) == syn counter; }; }",
    )?;
    host.nft(TELL_APART)?;
    let mut knocks = Knocks::begin(&host)?;
    coordinator.kill_9();
    let gone = secs(gone.into());
    while knocks.since_begin() < gone {
        wait::pass(secs(1))?;
        knocks.note()?;
    }
    let last = knocks.a_second_during(LAST)?;
    let (returning, start) = (knocks.count()?, Instant::now());
    coordinator.start_again()?;
    let up = Instant::now();
    while !all_follow(nodes)? {
        ensure!(start.elapsed() < LIMIT, "not all nodes came back");
        wait::pass(secs(1))?;
        knocks.note()?;
    }
    let time = up.elapsed();
    let returned = knocks.count()? - returning;
    lab.note(&format!(
        "all {} nodes back {:.1} s after the server's start by {returned} connections; connections by then: {}",
        nodes.len(),
        start.elapsed().as_secs_f64(),
        knocks.history()
    ));
    let count = nodes.len() as u64;
    let bound = (count * KNOCKS_PER_NODE) as f64 / LAST.as_secs_f64();
    ensure!(
        last <= bound,
        "{last:.2} connections a second of {count} nodes at the end, at most {bound:.2} are no storm"
    );
    ensure!(
        returned <= count * KNOCKS_TO_RETURN,
        "{returned} connections of {count} nodes to return"
    );
    lab.within("all nodes back since the server answers", time, RETURN)
}

/// Whether every node has both its control connection and its relay.
fn all_follow(nodes: &[&Node]) -> Result<bool> {
    for node in nodes {
        let health = node.status()?["Health"].to_string();
        if health.contains("login server") || health.contains("relay") {
            return Ok(false);
        }
    }
    Ok(true)
}

/// How many connections were asked for, over time: asking takes time too.
struct Knocks<'a> {
    host: &'a Namespace,
    begin: Instant,
    seen: Vec<(Duration, u64)>,
}

impl<'a> Knocks<'a> {
    fn begin(host: &'a Namespace) -> Result<Self> {
        let mut knocks = Self {
            host,
            begin: Instant::now(),
            seen: Vec::new(),
        };
        knocks.note()?;
        Ok(knocks)
    }

    fn since_begin(&self) -> Duration {
        self.begin.elapsed()
    }

    fn count(&self) -> Result<u64> {
        self.host.nft_counter("knocks")
    }

    fn note(&mut self) -> Result<()> {
        let count = self.count()?;
        self.seen.push((self.since_begin(), count));
        Ok(())
    }

    /// Connections a second in the last part of the time, which is at least this long.
    fn a_second_during(&self, last: Duration) -> Result<f64> {
        let (end, after) = *self.seen.last().context("nothing was noted")?;
        let mut earlier = self.seen.iter().rev();
        let (begin, before) = earlier
            .find(|(at, _)| end - *at >= last)
            .context("the time was too short")?;
        Ok((after - before) as f64 / (end - *begin).as_secs_f64())
    }

    fn history(&self) -> String {
        let one = |(at, count): &(Duration, u64)| format!("{} at {:.0} s", count, at.as_secs_f64());
        self.seen.iter().map(one).collect::<Vec<_>>().join(", ")
    }
}

/// The coordinator's host lets nothing through of one kind of connections, or all again.
fn deafen(host: &Namespace, kind: Option<&str>) -> Result<()> {
    let chain = |hook| {
        let drop = kind.map_or_else(String::new, |kind| format!("ct mark {kind} drop;"));
        format!("chain {hook} {{ type filter hook {hook} priority 10; {drop} }};")
    };
    host.nft(&format!(
        "table inet deaf {{}}
         delete table inet deaf
         table inet deaf {{ {}
         {} }}
        ",
        chain("input"),
        chain("output")
    ))
}

fn comes_back(lab: &Lab, what: &str, ping: &Pinger) -> Result<()> {
    let before = ping.answered();
    let (_, time) = wait::wait_for(what, LIMIT, || {
        Ok((ping.answered() > before + 10).then_some(()))
    })?;
    lab.note(&format!("{what}: back after {:.1} s", time.as_secs_f64()));
    Ok(())
}
