//! What users see while agents are killed, stopped, replaced and crash: nothing.
//!
//! One node, `hub`, whose agent lives, talks to several others whose agents don't: each under a ping every 10 ms, a TCP stream in
//! both directions and a flood of packets that the policy refuses.

mod crash;
mod load;
mod table;
mod upgrade;

use std::{
    fs,
    net::SocketAddr,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail, ensure};

use super::{Lab, kernel::device_index, ms, policy, secs};
use crate::{
    process,
    tailnet::{Client as _, Coordinator, Node, WgPeer},
    topology::{Events, Nat},
    traffic::{self, Flood, Pinger, Stalls, Unanswered},
    wait,
};
use table::Adoption;

pub use crash::start_watched;
pub use load::Load;
pub use table::Row;

/// Port 80 for the stream; pings are admitted with it. Nobody may send to [`REFUSED`].
pub const POLICY: &str = r#"{"acls": [{"action": "accept", "src": ["*"], "dst": ["*:80"]}]}"#;
const STREAM: u16 = 80;
const REFUSED: u16 = 81;
const PING: Duration = ms(10);
const FLOOD: Duration = ms(20);
const LIMIT: Duration = secs(120);
/// From the start of the process until it has adopted what it found.
const ADOPTED: Duration = ms(300);
/// Of the CPU, an emulated one included, which is ten to twenty times slower: 1.5 to 2 s, and 5 beside a compiler.
const ADOPTED_CPU: Duration = secs(10);
/// For how long an agent stays dead: always longer than a path of stock's lives without an answer (6.5 s) and than a session that
/// gets none (15 s), and with `LOWROAD_LONG` a minute.
const DEAD: [Duration; 2] = [secs(20), secs(60)];
/// Where that is most of the scenario: several rounds of path discovery and of WireGuard's timers.
const LONE_DEAD: Duration = secs(30);
/// For new connections while agents are dead: two that are served, and two that nobody answers for a second each.
const CONNECTING: Duration = secs(8);
/// How much traffic counts as "it goes on".
const MORE_ANSWERS: usize = 100;

/// One node whose agent is in trouble, and the traffic between it and the hub.
struct Case {
    what: &'static str,
    node: Node,
    device: u32,
    load: Load,
    /// The hub in this node's WireGuard, before the trouble.
    before: WgPeer,
    hub_prefix: String,
    events: Events,
    adopted: Vec<Adoption>,
    crashed_at: Vec<String>,
}

pub fn nothing_is_lost_while_agents_die_and_others_take_over(lab: &Lab) -> Result<()> {
    let coordinator = lab.coordinator(POLICY)?;
    let key = coordinator.auth_key("ann", "")?;
    let hub = lab.single_path_node("hub", 30)?;
    hub.up(&key)?;
    // All join and find their paths before any traffic: on a busy machine an emulated CPU has no room for both.
    let mut nodes = Vec::new();
    for number in 0..5 {
        let (name, last) = (format!("node{number}"), 40 + number);
        // The first, whose agent is killed, is where most nodes are.
        let node = match number {
            0 => lab.node_behind(&name, last, Nat::Easy)?,
            _ => lab.single_path_node(&name, last)?,
        };
        node.up(&key)?;
        find_direct_path(&hub, &node)?;
        nodes.push(node);
    }
    let stalls = Stalls::watch();
    let mut cases = Cases::of(lab, &hub, nodes);
    cases.run(["kill -9", "SIGTERM"], |[killed, stopped]| {
        let start = Instant::now();
        killed.node.kill_9();
        stopped.node.stop_agent_gracefully()?;
        let dead = DEAD[usize::from(lab.long)];
        wait::pass(dead.saturating_sub(CONNECTING))?;
        for case in [&mut *killed, &mut *stopped] {
            case.serves_and_refuses(&hub)?;
        }
        wait::pass(dead.saturating_sub(start.elapsed()))?;
        lab.note(&format!("agents dead for {} s", start.elapsed().as_secs()));
        killed.start_agent()?;
        stopped.start_agent()?;
        killed.serves_and_refuses(&hub)
    })?;
    let another = upgrade::another_version(lab)?;
    let other = upgrade::Other::or(&another)?;
    cases.run(
        ["upgrade", "upgrade, other maps"],
        |[upgraded, remapped]| {
            upgrade::to_another_version(lab, upgraded, &other)?;
            upgrade::to_other_maps(remapped, &another)
        },
    )?;
    cases.run(["kill -9 in mid-reconcile"], |[crashed]| {
        crash::in_mid_reconcile(lab, &coordinator, crashed)
    })?;
    cases.judge(&coordinator, &stalls)
}

/// The short one: between two nodes behind routers one agent is killed, and its successor is told to end.
pub fn nothing_is_lost_while_an_agent_is_dead_and_another_takes_over(lab: &Lab) -> Result<()> {
    let coordinator = lab.coordinator(POLICY)?;
    let key = coordinator.auth_key("ann", "")?;
    let hub = lab.node_behind("hub", 30, Nat::Easy)?;
    let node = lab.node_behind("node", 40, Nat::Easy)?;
    hub.up(&key)?;
    node.up(&key)?;
    find_direct_path(&hub, &node)?;
    let stalls = Stalls::watch();
    let mut cases = Cases::of(lab, &hub, vec![node]);
    cases.run(["kill -9, then SIGTERM"], |[case]| {
        let start = Instant::now();
        case.node.kill_9();
        wait::pass(LONE_DEAD.saturating_sub(CONNECTING))?;
        case.serves_and_refuses(&hub)?;
        wait::pass(LONE_DEAD.saturating_sub(start.elapsed()))?;
        case.start_agent()?;
        case.node.stop_agent_gracefully()?;
        case.start_agent()?;
        case.serves_and_refuses(&hub)
    })?;
    cases.judge(&coordinator, &stalls)
}

/// Few at a time: what an emulated CPU has no room for is lost by nobody's fault.
struct Cases<'a> {
    lab: &'a Lab<'a>,
    hub: &'a Node,
    waiting: std::vec::IntoIter<Node>,
    nodes: Vec<Node>,
    rows: Vec<Row>,
}

impl<'a> Cases<'a> {
    fn of(lab: &'a Lab<'a>, hub: &'a Node, nodes: Vec<Node>) -> Self {
        Self {
            lab,
            hub,
            waiting: nodes.into_iter(),
            nodes: Vec::new(),
            rows: Vec::new(),
        }
    }

    /// The next nodes in trouble, all of them under traffic until the last is through it.
    fn run<const N: usize>(
        &mut self,
        whats: [&'static str; N],
        trouble: impl FnOnce(&mut [Case; N]) -> Result<()>,
    ) -> Result<()> {
        let cases = whats
            .into_iter()
            .zip(self.waiting.by_ref())
            .map(|(what, node)| Case::start(self.lab, self.hub, node, what));
        let cases: Vec<Case> = cases.collect::<Result<_>>()?;
        let Ok(mut cases) = <[Case; N]>::try_from(cases) else {
            bail!("not enough nodes for {whats:?}");
        };
        trouble(&mut cases)?;
        for case in &cases {
            case.load.goes_on(&case.node)?;
        }
        for case in cases {
            let (row, node) = case.finish(self.hub)?;
            self.rows.push(row);
            self.nodes.push(node);
        }
        Ok(())
    }

    /// Prints what was seen, and fails if it is not what must be.
    fn judge(&self, coordinator: &Coordinator, stalls: &Stalls) -> Result<()> {
        let Self { lab, rows, .. } = self;
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
        table::print(kernel.trim(), rows);
        for one in rows.iter().flat_map(|row| &row.adopted) {
            lab.within("adopted after the agent's start", one.after, ADOPTED)?;
            ensure!(
                one.cpu <= ADOPTED_CPU,
                "an agent took {} ms of the CPU to adopt what it found",
                one.cpu.as_millis()
            );
        }
        rows.iter().try_for_each(Row::check_kept)?;
        what_was_refused_would_have_been_seen(coordinator, self.hub, &self.nodes[0])?;
        let traffic: Vec<_> = rows.iter().map(Row::traffic).collect();
        lab.lost(&traffic, stalls)
    }
}

/// The flood again, with a policy that admits it.
pub fn what_was_refused_would_have_been_seen(
    coordinator: &Coordinator,
    hub: &Node,
    node: &Node,
) -> Result<()> {
    coordinator.set_policy(&POLICY.replace("*:80", "*:80-81"))?;
    let to = SocketAddr::new(node.ip(4)?, REFUSED);
    let flood = Flood::start(&hub.namespace, &node.namespace, to, FLOOD)?;
    wait::wait_for("packets that are admitted", LIMIT, || {
        Ok((flood.received() > 0).then_some(()))
    })
    .map(drop)
}

/// Both ways.
pub fn find_direct_path(hub: &Node, node: &Node) -> Result<()> {
    let _ping = Pinger::start(&hub.namespace, node.ip(4)?, ms(100))?;
    hub.wait_for_direct(&node.name, LIMIT)?;
    node.wait_for_direct(&hub.name, LIMIT).map(drop)
}

impl Case {
    fn start(lab: &Lab, hub: &Node, node: Node, what: &'static str) -> Result<Self> {
        let hub_prefix = format!("{}/32", hub.ip(4)?);
        let case = Self {
            what,
            device: device_index(&node)?,
            load: Load::start(hub, &node)?,
            before: node.wireguard_peer_with(&hub_prefix)?,
            hub_prefix,
            events: Events::watch(
                &node.namespace,
                &lab.net.folder().join(format!("{}.events", node.name)),
            )?,
            node,
            adopted: Vec::new(),
            crashed_at: Vec::new(),
        };
        case.load.goes_on(&case.node)?;
        Ok(case)
    }

    /// A new connection is served where the policy admits it and dropped where not, whether an agent runs or none.
    fn serves_and_refuses(&mut self, hub: &Node) -> Result<()> {
        let address = self.load.address;
        let [open, closed] = [STREAM, REFUSED].map(|port| SocketAddr::new(address, port));
        let _both = [
            traffic::Server::start(&self.node.namespace, STREAM)?,
            traffic::Server::start(&self.node.namespace, REFUSED)?,
        ];
        traffic::get(&hub.namespace, open, 10_000, secs(20)).context(self.what)?;
        // How often a kernel asks for a connection depends on how long a second is.
        hub.namespace.nft(&format!(
            "table inet asked {{}}
             delete table inet asked
             table inet asked {{ chain out {{ type filter hook output priority 0; ip daddr {address} tcp dport {REFUSED} counter; }}; }}
            "
        ))?;
        policy::refused(hub, closed).context(self.what)?;
        let asked = hub.namespace.nft_counter("asked")?;
        ensure!(asked > 0, "{}: nobody asked for a connection", self.what);
        self.load.refused_connecting += asked;
        Ok(())
    }

    /// Starts the agent, and notes how long it says that it took until the kernel held what it should.
    fn start_agent(&mut self) -> Result<()> {
        let known = adoptions(&self.node.log())?;
        let found = self.node.wireguard_peer_with(&self.hub_prefix)?;
        self.node.start_agent()?;
        self.adopts(known)?;
        // Counters of megabytes that began anew could not be there again so soon.
        let adopted = self.node.wireguard_peer_with(&self.hub_prefix)?;
        found
            .has_become(&adopted)
            .map_err(|what| anyhow!("{}: adopted, but {what}", self.what))?;
        let pid = self.node.agent_pid().context("an agent that has ended")?;
        let cpu = process::cpu_time(pid)?;
        let status = self.node.status()?;
        let after = status["Lowroad"]["AdoptedMs"].as_u64();
        let after = ms(after.context("not adopted")?);
        self.adopted.push(Adoption { after, cpu });
        Ok(())
    }

    /// Waits for one more adoption.
    fn adopts(&self, known: usize) -> Result<()> {
        wait::wait_for("the adoption", LIMIT, || {
            Ok((adoptions(&self.node.log())? > known).then_some(()))
        })
        .map(drop)
    }

    /// Waits until one more policy is in force.
    fn settles(&self, known: usize) -> Result<()> {
        wait::wait_for("the new policy", LIMIT, || {
            Ok((installs(&self.node.log())? > known).then_some(()))
        })
        .map(drop)
    }

    /// Ends the traffic, and says what was lost and what has changed.
    fn finish(self, hub: &Node) -> Result<(Row, Node)> {
        ensure!(
            device_index(&self.node)? == self.device,
            "{}: another device",
            self.what
        );
        ensure!(
            hub.path_to(&self.node.name)?.is_direct(),
            "{}: the path is no longer direct",
            self.what
        );
        let mut row = self.load.end(self.what, &self.node)?;
        if row.ping.lost() > 0 || row.stream.lost > 0 {
            let beside = |one: &Unanswered| (one.number, one.beside.as_millis());
            eprintln!(
                "      lost, and how many ms those beside took: {:?}",
                row.ping.unanswered.iter().map(beside).collect::<Vec<_>>()
            );
            eprintln!(
                "      {}: {}; {}; {}",
                self.what,
                row.ping,
                drops(hub)?,
                drops(&self.node)?
            );
        }
        let after = self.node.wireguard_peer_with(&self.hub_prefix)?;
        row.session = self.before.has_become(&after);
        row.events = self.events.seen()?;
        row.adopted = self.adopted;
        Ok((row, self.node))
    }
}

/// What a node's filter and its kernel's devices say that they dropped: where to look for what was lost.
fn drops(node: &Node) -> Result<String> {
    let counters = node.local("/lowroad/v0/counters")?;
    let all = counters["Dropped"].as_array().cloned().unwrap_or_default();
    let filter: Vec<_> = all
        .iter()
        .filter(|one| one["Packets"] != 0)
        .map(|one| format!("{} {} {}", one["Direction"], one["Reason"], one["Packets"]))
        .collect();
    let read = |file: &'static str| {
        let path = format!("/proc/thread-self/net/{file}");
        node.namespace
            .enter(move || fs::read_to_string(path))?
            .context(file)
    };
    let devices = read("dev")?;
    let lines = devices.lines().map(str::trim);
    let ours = lines.filter(|line| line.starts_with("lowroad0") || line.starts_with("wan0"));
    let ours: Vec<_> = ours
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect();
    let backlog = read("softnet_stat")?;
    let backlog: Vec<_> = backlog
        .lines()
        .filter_map(|line| line.split(' ').nth(1))
        .collect();
    Ok(format!(
        "{}: filter {filter:?}, devices {ours:?}, backlog {backlog:?}",
        node.name
    ))
}

/// By its log: asking the agent would take the emulated CPU away from it.
fn adoptions(log: &Path) -> Result<usize> {
    let log = fs::read_to_string(log)?;
    Ok(log
        .matches("adopted: the kernel holds what the netmap wants")
        .count())
}

fn installs(log: &Path) -> Result<usize> {
    let log = fs::read_to_string(log)?;
    Ok(log.matches("the packet filter is in force").count())
}
