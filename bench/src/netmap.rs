//! A netmap from the bytes on the wire to a programmed kernel, in this process: no network, and no kernel either unless it is asked for.

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use lowroad_agent::{
    engine::node::Node,
    kernel::{self, Dataplane, DataplaneChoice, Kernel, KernelOptions, fake},
};
use lowroad_core::{
    desired::{DEFAULT_MARK, Observed},
    filter,
    intent::{self, Choices},
    plan::plan,
};
use lowroad_wire::{
    control::MapResponse,
    framing::{self, Compression, MessageReader},
    key::{DiscoPrivate, NodePrivate},
    netmap::NetMap,
};
use serde_json::{Value, json};
use time::OffsetDateTime;
use xtask::topology::Net;

use crate::{
    Plan,
    figure::{Better, Figure},
    scenario::{Netmap, Place},
};

const DEVICE: &str = "bench0";
/// Sources of one rule, as policies of groups make them.
const SOURCES: usize = 250;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    /// Remembers what it was told.
    Memory,
    Wireguard,
}

/// One cold start and one change after it.
#[derive(Clone, Copy, Debug, Default)]
struct Times {
    parse: Duration,
    apply: Duration,
    plan: Duration,
    compile: Duration,
    whole: Duration,
    /// The median of several: the first also pays for caches that are cold.
    delta: Duration,
}

/// Changes of one peer after a cold start.
const DELTAS: usize = 9;

pub fn run(netmap: &Netmap, run: &Plan) -> Result<Vec<Figure>> {
    let targets: &[Target] = match run.place {
        Place::Native => &[Target::Memory],
        Place::Vm => &[Target::Memory, Target::Wireguard],
    };
    let sizes = run.sizes(&netmap.peers, netmap.quick_largest);
    ensure!(!sizes.is_empty(), "there is no netmap to measure");
    let mut samples: Vec<(usize, Target, Vec<Times>)> = Vec::new();
    for &peers in &sizes {
        for &target in targets {
            samples.push((peers, target, Vec::new()));
        }
    }
    let messages: Vec<(usize, Vec<u8>)> = sizes
        .iter()
        .map(|&peers| Ok((peers, message(&whole(peers))?)))
        .collect::<Result<_>>()?;
    for round in 0..run.rounds(netmap.rounds, netmap.quick_rounds) {
        for (peers, target, times) in &mut samples {
            xtask::signals::check()?;
            let bytes = &messages
                .iter()
                .find(|(count, _)| count == peers)
                .context("made above")?
                .1;
            let one = measure(*peers, *target, bytes)?;
            eprintln!(
                "      {}, round {}: {:.1} ms, delta {:.2} ms",
                label(*peers, *target),
                round + 1,
                milliseconds(one.whole),
                milliseconds(one.delta)
            );
            times.push(one);
        }
    }
    Ok(figures(&samples))
}

type Part = (&'static str, fn(&Times) -> Duration);

fn figures(samples: &[(usize, Target, Vec<Times>)]) -> Vec<Figure> {
    let parts: [Part; 6] = [
        ("cold, to programmed", |times| times.whole),
        ("cold: decompress and parse", |times| times.parse),
        ("cold: apply to the netmap", |times| times.apply),
        ("cold: desired state and plan", |times| times.plan),
        ("cold: compile the filter", |times| times.compile),
        ("change of one peer", |times| times.delta),
    ];
    parts
        .into_iter()
        .map(|(name, part)| {
            let mut figure = Figure::new(name, "ms", Better::Less);
            for (peers, target, times) in samples {
                let values = times.iter().map(|times| milliseconds(part(times)));
                figure.push(label(*peers, *target), values.collect());
            }
            figure
        })
        .collect()
}

fn label(peers: usize, target: Target) -> String {
    match target {
        Target::Memory => format!("{peers} peers"),
        Target::Wireguard => format!("{peers} peers, kernel"),
    }
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn measure(peers: usize, target: Target, bytes: &[u8]) -> Result<Times> {
    let runtime = || {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
    };
    match target {
        Target::Memory => runtime()?.block_on(async {
            let (started, _handle) = fake::start(Dataplane::Kernel).await?;
            one(peers, started.kernel, bytes).await
        }),
        Target::Wireguard => {
            let net = Net::new()?;
            let host = net.public("netmap", 20)?;
            // The runtime's threads inherit the namespace of the one that makes them.
            host.enter(|| {
                runtime()?.block_on(async {
                    let started = kernel::start(options()).await?;
                    let result = one(peers, started.kernel, bytes).await;
                    kernel::cleanup(&options()).await?;
                    result
                })
            })?
        }
    }
}

fn options() -> KernelOptions {
    KernelOptions {
        device: DEVICE.to_owned(),
        port: 41641,
        dataplane: DataplaneChoice::Kernel,
        mark: DEFAULT_MARK,
        state_id: "be9cbe9cbe9cbe9c".to_owned(),
        state_dir: std::env::temp_dir(),
        filter_traces: false,
    }
}

async fn one(peers: usize, kernel: Box<dyn Kernel>, bytes: &[u8]) -> Result<Times> {
    let mut times = parts(bytes)?;
    let choices = choices();
    let disco = DiscoPrivate::from_random([2; 32]);
    let mut node = Node::adopt(kernel, choices, disco, [3; 32]).await?;

    let start = Instant::now();
    take(&mut node, bytes).await?;
    times.whole = start.elapsed();

    let mut deltas = Vec::new();
    for number in 0..DELTAS {
        // One moves to another home, an endpoint and an address: its peer, its relay and its routes are touched.
        let id = peers / 2 + number % (peers - peers / 2);
        let mut changed = peer(id);
        changed["Endpoints"] = json!([format!("198.51.100.7:{}", 41641 + number)]);
        changed["HomeDERP"] = json!(2);
        changed["AllowedIPs"] = json!([
            format!("{}/32", v4(id)),
            format!("{}/128", v6(id)),
            format!("100.127.255.{}/32", number + 1)
        ]);
        let change = message(&json!({"PeersChanged": [changed]}))?;
        let start = Instant::now();
        take(&mut node, &change).await?;
        deltas.push(start.elapsed());
    }
    deltas.sort_unstable();
    times.delta = deltas[DELTAS / 2];
    ensure!(
        node.map
            .as_ref()
            .is_some_and(|map| map.peers.len() == peers),
        "not all peers arrived"
    );
    Ok(times)
}

/// What the engine does with a message.
async fn take(node: &mut Node, bytes: &[u8]) -> Result<()> {
    let (response, malformed) = parse(bytes)?;
    let (now, clock) = (Instant::now(), OffsetDateTime::now_utc());
    node.take_map(response, &malformed, now, clock);
    node.reconcile(now, clock).await?;
    std::hint::black_box(node.take_relays());
    ensure!(node.programmed, "the kernel was not programmed");
    Ok(())
}

/// The steps of a cold start, each by itself.
fn parts(bytes: &[u8]) -> Result<Times> {
    let clock = OffsetDateTime::now_utc();
    let choices = choices();
    let start = Instant::now();
    let (response, _) = parse(bytes)?;
    let parse = start.elapsed();
    let start = Instant::now();
    let mut map = NetMap::default();
    map.apply(response, clock);
    let apply = start.elapsed();
    let start = Instant::now();
    let desired = intent::desired(&map, &choices, |_| None, clock);
    let steps = plan(&desired, &Observed::default());
    let plan = start.elapsed();
    let start = Instant::now();
    let compiled = filter::compile(&intent::filter_input(&map, &choices, clock));
    let compile = start.elapsed();
    std::hint::black_box((steps, compiled));
    Ok(Times {
        parse,
        apply,
        plan,
        compile,
        ..Times::default()
    })
}

fn parse(bytes: &[u8]) -> Result<(MapResponse, Vec<lowroad_wire::control::Malformed>)> {
    let mut reader = MessageReader::new(Compression::Zstd);
    reader.push(bytes);
    let json = reader.next_message()?.context("a whole message")?;
    Ok(MapResponse::parse(&json)?)
}

fn choices() -> Choices {
    Choices {
        device: DEVICE.to_owned(),
        listen_port: 41641,
        mark: DEFAULT_MARK,
        private_key: NodePrivate::from_random([1; 32]),
        accept_routes: false,
        shields_up: false,
        disco: [7; 32],
    }
}

fn message(value: &Value) -> Result<Vec<u8>> {
    Ok(framing::encode(value.to_string().as_bytes(), Compression::Zstd)?.to_vec())
}

/// A tailnet's first message, as servers of the field send it.
fn whole(peers: usize) -> Value {
    let list: Vec<Value> = (0..peers).map(peer).collect();
    let addresses: Vec<String> = (0..peers).map(|n| v4(n).to_string()).collect();
    let rules: Vec<Value> = addresses
        .chunks(SOURCES)
        .enumerate()
        .map(|(at, sources)| {
            json!({"SrcIPs": sources, "DstPorts": [
                {"IP": "100.64.0.1/32", "Ports": {"First": 22, "Last": 22}},
                {"IP": "100.64.0.1/32", "Ports": {"First": 8000 + at, "Last": 8000 + at}},
            ]})
        })
        .collect();
    json!({
        "Node": {"ID": 1, "StableID": "self", "Name": "me.tail.bench.", "MachineAuthorized": true,
            "Key": NodePrivate::from_random([1; 32]).public().to_string(),
            "Addresses": ["100.64.0.1/32", "fd7a:115c:a1e0::1/128"]},
        "Peers": list,
        "Domain": "tail.bench",
        "PacketFilters": {"base": rules},
    })
}

fn v4(n: usize) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(100, 65, 0, 1)) + n as u32)
}

fn v6(n: usize) -> Ipv6Addr {
    let first = Ipv6Addr::new(0xfd7a, 0x115c, 0xa1e0, 1, 0, 0, 0, 1);
    Ipv6Addr::from(u128::from(first) + n as u128)
}

fn peer(n: usize) -> Value {
    let mut seed = [5; 32];
    seed[8..16].copy_from_slice(&(n as u64).to_be_bytes());
    let key = public_key(seed);
    json!({
        "ID": n + 2, "StableID": format!("s{n}"), "Name": format!("host-{n}.tail.bench."), "User": 1 + n % 50,
        "Key": format!("nodekey:{key}"), "Machine": format!("mkey:{key}"), "DiscoKey": format!("discokey:{:064x}", n + 1),
        "Addresses": [format!("{}/32", v4(n)), format!("{}/128", v6(n))],
        "AllowedIPs": [format!("{}/32", v4(n)), format!("{}/128", v6(n))],
        "Endpoints": [format!("203.0.113.{}:{}", n % 250, 1024 + n % 60000), format!("192.168.{}.2:41641", n % 250)],
        "HomeDERP": 1 + n % 20,
        "Hostinfo": {"OS": "linux", "OSVersion": "6.12", "Hostname": format!("host-{n}"), "Services": [{"Proto": "peerapi4", "Port": 40000}],
            "NetInfo": {"PreferredDERP": 1 + n % 20, "WorkingUDP": true}},
        "Created": "2026-01-01T00:00:00Z", "Cap": 130, "Online": true, "MachineAuthorized": true,
        "CapMap": {"https://tailscale.com/cap/is-admin": null},
    })
}

/// Any 32 bytes are one; making a real one from a private key ten thousand times would take seconds.
fn public_key(seed: [u8; 32]) -> String {
    use std::fmt::Write as _;
    seed.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
