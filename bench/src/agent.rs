//! A real agent on a tailnet of a given size: how much memory it takes, how long it takes to be up, and what it costs when nothing happens.

use std::{
    fs,
    net::{Ipv4Addr, Ipv6Addr},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use lowroad_coordinator::{
    model::{Endpoint, Node as Row, Owner, Role, User},
    store::{Rows, Store},
};
use lowroad_wire::{
    control::{EndpointType, Hostinfo, NetInfo, NodeId, RegionId, UserId},
    key::{DiscoPrivate, MachinePublic, NodePublic},
};
use time::OffsetDateTime;
use xtask::{
    process::{self, cpu_time},
    tailnet::{Client as _, Coordinator, Node},
    topology::Net,
    wait,
};

use crate::{
    Plan,
    figure::{Better, Figure},
    scenario::{Agent, Place},
};

const ALLOW_ALL: &str = r#"{"acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}]}"#;
/// Ten thousand peers on an emulated CPU.
const PATIENCE: Duration = Duration::from_secs(180);
/// The kernel waits for a grace period of RCU for each WireGuard peer of a device that goes: some 20 ms on an emulated CPU.
const DOWN: Duration = Duration::from_secs(600);
/// CPU time that the embedded device's timers may take for a peer in a second.
const PER_PEER: Duration = Duration::from_micros(10);
/// From the embedded relay's number on down there is room; nodes are spread over none but it.
const REGION: RegionId = RegionId(999);

pub fn run(agent: &Agent, plan: &Plan) -> Result<Vec<Figure>> {
    let seconds = plan.idle_seconds(agent.idle_seconds, agent.quick_idle_seconds);
    let idle = format!("CPU when idle, watched for {seconds:.0} s");
    let mut figures = [
        ("resident memory, idle", "MB"),
        ("of it anonymous", "MB"),
        ("resident memory, at most", "MB"),
        ("`up`, until it returns", "ms"),
        (idle.as_str(), "ms per minute"),
        ("adoption after `kill -9`", "ms"),
        ("`down`, until it returns", "ms"),
    ]
    .map(|(name, unit)| Figure::new(name, unit, Better::Less));
    let mut samples: Vec<Vec<One>> = agent.peers.iter().map(|_| Vec::new()).collect();
    let mut failed: Vec<Option<String>> = agent.peers.iter().map(|_| None).collect();
    for round in 0..plan.rounds(agent.rounds, agent.quick_rounds) {
        for (number, peers) in agent.peers.iter().enumerate() {
            let what = format!("{peers} peers, round {}", round + 1);
            match one(*peers, seconds, plan.place) {
                Ok(one) => {
                    eprintln!(
                        "      {what}: {:.1} MB, up in {:.0} ms, {:.0} ms of CPU a minute, adopted in {:.0} ms, down in {:.0} ms",
                        one.memory.resident, one.up, one.idle, one.adopted, one.down
                    );
                    samples[number].push(one);
                }
                Err(error) => {
                    xtask::signals::check()?;
                    eprintln!("      {what}: {error:#}");
                    failed[number] = Some(format!("{error:#}"));
                }
            }
        }
    }
    for ((peers, samples), failed) in agent.peers.iter().zip(samples).zip(failed) {
        let label = format!("{peers} peers");
        let values: Vec<[f64; 7]> = samples.iter().map(One::values).collect();
        for (number, figure) in figures.iter_mut().enumerate() {
            match &failed {
                Some(why) if values.is_empty() => figure.push_missing(&label, why),
                _ => figure.push(&label, values.iter().map(|one| one[number]).collect()),
            }
        }
    }
    Ok(figures.into())
}

struct One {
    memory: Memory,
    up: f64,
    idle: f64,
    /// From the start of the next agent until the kernel holds what it should, in milliseconds.
    adopted: f64,
    down: f64,
}

impl One {
    /// In the order of the figures.
    fn values(&self) -> [f64; 7] {
        let memory = &self.memory;
        [
            memory.resident,
            memory.anonymous,
            memory.peak,
            self.up,
            self.idle,
            self.adopted,
            self.down,
        ]
    }
}

fn one(peers: usize, idle_seconds: f64, place: Place) -> Result<One> {
    let net = Net::new()?;
    populate(&net, peers)?;
    let coordinator = Coordinator::start(&net, ALLOW_ALL)?;
    let key = coordinator.auth_key("bench", "")?;
    let dataplane = match place {
        Place::Native => "userspace",
        Place::Vm => "kernel",
    };
    let host = net.public("agent", 20)?;
    let mut node = Node::start_with(&net, "agent", host, &["--dataplane", dataplane])?;
    let start = Instant::now();
    node.up(&key)?;
    let up = start.elapsed().as_secs_f64() * 1e3;
    wait::wait_for("all peers", PATIENCE, || {
        let status = node.status()?;
        let known = status["Peer"].as_object().map_or(0, serde_json::Map::len);
        Ok((known == peers).then_some(()))
    })?;
    let pid = node.agent_pid().context("the agent runs")?;
    // Until what `up` has set off is over: a second in which it does next to nothing but look after its peers.
    let little = Duration::from_millis(30) + PER_PEER * peers as u32;
    wait::wait_for("the agent being idle", PATIENCE, || {
        let before = cpu_time(pid)?;
        wait::pass(Duration::from_secs(1))?;
        Ok((cpu_time(pid)? - before < little).then_some(()))
    })?;
    let before = cpu_time(pid)?;
    wait::pass(Duration::from_secs_f64(idle_seconds))?;
    let spent = cpu_time(pid)? - before;
    let memory = Memory::of(pid)?;
    wait::wait_for("the netmap being kept", PATIENCE, || {
        let kept = node.state_folder().join("netmap.cache");
        Ok(kept.exists().then_some(()))
    })?;
    node.kill_9();
    node.start_agent()?;
    let (adopted, _) = wait::wait_for("the next agent", PATIENCE, || {
        Ok(node.status()?["Lowroad"]["AdoptedMs"].as_f64())
    })?;
    let start = Instant::now();
    process::run(&mut node.command(&["down"]), "", DOWN)?.ok("lowroad down")?;
    let down = start.elapsed().as_secs_f64() * 1e3;
    Ok(One {
        memory,
        up,
        idle: spent.as_secs_f64() * 1e3 * 60.0 / idle_seconds,
        adopted,
        down,
    })
}

/// In megabytes.
struct Memory {
    resident: f64,
    anonymous: f64,
    peak: f64,
}

impl Memory {
    fn of(pid: u32) -> Result<Self> {
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let field = |name: &str| -> Result<f64> {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let kilobytes = line.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
            let kilobytes: f64 = kilobytes.with_context(|| format!("no {name} of {pid}"))?;
            Ok(kilobytes * 1024.0 / 1e6)
        };
        Ok(Self {
            resident: field("VmRSS:")?,
            anonymous: field("RssAnon:")?,
            peak: field("VmHWM:")?,
        })
    }
}

/// Writes a coordinator's database with so many nodes, where [`Coordinator::start`] will look for it.
fn populate(net: &Net, peers: usize) -> Result<()> {
    let mut store = Store::open(&net.folder().join("coordinator"))?;
    let now = OffsetDateTime::now_utc();
    let user = User {
        id: UserId(1),
        name: "many".to_owned(),
        display_name: String::new(),
        created: now,
        role: Role::Member,
    };
    let nodes = (0..peers).map(|number| {
        let row = row(number, now);
        (row.id, Some(Arc::new(row)))
    });
    store.save(&Rows {
        users: vec![(user.id, Some(Arc::new(user)))],
        nodes: nodes.collect(),
        ..Rows::default()
    })?;
    Ok(())
}

fn row(number: usize, now: OffsetDateTime) -> Row {
    let mut bytes = [0x2b; 32];
    bytes[..8].copy_from_slice(&(number as u64).to_le_bytes());
    Row {
        id: NodeId(1 + number as i64),
        machine: MachinePublic::from_bytes(bytes),
        key: NodePublic::from_bytes(bytes),
        disco: DiscoPrivate::from_random(bytes).public(),
        owner: Owner::User(UserId(1)),
        name: format!("host-{number}"),
        name_chosen: false,
        hostinfo: Hostinfo {
            hostname: format!("host-{number}"),
            os: "linux".to_owned(),
            net_info: Some(NetInfo {
                preferred_derp: Some(REGION),
                ..NetInfo::default()
            }),
            ..Hostinfo::default()
        },
        endpoints: vec![Endpoint {
            address: ([198, 51, 100, 7], 1024 + (number % 60_000) as u16).into(),
            kind: EndpointType::STUN,
        }],
        v4: Ipv4Addr::from(u32::from(Ipv4Addr::new(100, 70, 0, 1)) + number as u32),
        v6: Ipv6Addr::from(
            u128::from(Ipv6Addr::new(0xfd7a, 0x115c, 0xa1e0, 7, 0, 0, 0, 1)) + number as u128,
        ),
        approved_routes: Vec::new(),
        expiry: None,
        ephemeral: false,
        created: now,
        last_seen: Some(now),
        online: false,
        cap: 130,
        auth_key: None,
    }
}
