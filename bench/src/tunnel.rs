//! Throughput of tunnels and the CPU time that it costs, drivers taking turns.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use xtask::wait;

use crate::{
    Plan,
    cpu::Sample,
    driver::{Driver, Unusable, World},
    figure::{Better, Figure},
    scenario::{Case, Place, Tunnel},
    traffic::{Route, Streams},
};

/// Until streams are up to speed.
const WARM_UP_SECONDS: f64 = 0.5;
const FIRST_PORT: u16 = 5201;

/// One driver's samples of one case.
#[derive(Debug, Default)]
struct Samples {
    megabits: Vec<f64>,
    cpu: Vec<f64>,
    own_cpu: Vec<f64>,
    /// Of those whose everything goes through a relay: its share, and that of the other processes but this.
    relay_cpu: Vec<f64>,
    node_cpu: Vec<f64>,
    failed: Option<String>,
}

pub fn run(tunnel: &Tunnel, plan: &Plan) -> Result<Vec<Figure>> {
    let cases: Vec<Case> = tunnel
        .cases
        .iter()
        .filter(|case| !(plan.quick && case.long))
        .copied()
        .collect();
    let peers = cases.iter().map(|case| case.peers).max().unwrap_or(1);
    let worlds: Vec<(&str, Result<World, Unusable>)> = tunnel
        .drivers
        .iter()
        .map(|name| (name.as_str(), world(name, tunnel, peers, plan)))
        .collect();
    xtask::signals::check()?;
    let mut figures = Vec::new();
    for case in cases {
        let mut samples: Vec<Samples> = worlds.iter().map(|_| Samples::default()).collect();
        for round in 0..plan.rounds(tunnel.rounds, tunnel.quick_rounds) {
            for ((name, world), samples) in worlds.iter().zip(&mut samples) {
                let Ok(world) = world else { continue };
                match measure(world, tunnel, case, plan) {
                    Ok(one) => {
                        eprintln!(
                            "      {} peers, {} flows, round {}: {name}: {:.0} Mbit/s, {:.2} CPU-s/GB",
                            case.peers,
                            case.flows,
                            round + 1,
                            one.megabits,
                            one.cpu
                        );
                        samples.megabits.push(one.megabits);
                        samples.cpu.push(one.cpu);
                        samples.own_cpu.push(one.own_cpu);
                        if let Some((relay, nodes)) = one.shares {
                            samples.relay_cpu.push(relay);
                            samples.node_cpu.push(nodes);
                        }
                    }
                    Err(error) => {
                        xtask::signals::check()?;
                        eprintln!("      {name}: {error:#}");
                        samples.failed = Some(format!("{error:#}"));
                    }
                }
            }
        }
        figures.extend(figures_of(plan, case, &worlds, samples));
    }
    Ok(figures)
}

fn world(name: &str, tunnel: &Tunnel, peers: usize, plan: &Plan) -> Result<World, Unusable> {
    let start = Instant::now();
    let world = Driver::find(name, plan).and_then(|driver| {
        driver
            .up(tunnel, peers)
            .map_err(|error| Unusable(format!("{error:#}")))
    });
    match &world {
        Ok(_) => eprintln!(
            "      {name}: up after {:.1} s",
            start.elapsed().as_secs_f64()
        ),
        Err(Unusable(why)) => eprintln!("      {name}: not measured: {why}"),
    }
    world
}

struct One {
    megabits: f64,
    cpu: f64,
    own_cpu: f64,
    shares: Option<(f64, f64)>,
}

fn measure(world: &World, tunnel: &Tunnel, case: Case, plan: &Plan) -> Result<One> {
    let (hub, spokes) = world.ends.split_first().context("there is a hub")?;
    let routes: Vec<Route<'_>> = (0..case.flows)
        .map(|flow| {
            let spoke = &spokes[flow % case.peers];
            Route {
                sender: &hub.namespace,
                receiver: &spoke.namespace,
                address: SocketAddr::new(spoke.address, FIRST_PORT + flow as u16),
            }
        })
        .collect();
    let streams = Streams::start(tunnel.protocol, &routes)?;
    let seconds = plan.seconds(tunnel.seconds, tunnel.quick_seconds);
    wait::pass(Duration::from_secs_f64(WARM_UP_SECONDS))?;
    let (start, bytes, cpu, shares) = (
        Instant::now(),
        streams.received(),
        Sample::take(&world.groups)?,
        world.shares()?,
    );
    wait::pass(Duration::from_secs_f64(seconds))?;
    let spent = Sample::take(&world.groups)?.since(&cpu);
    let (bytes, time) = (streams.received() - bytes, start.elapsed());
    let shares_then = world.shares()?;
    let gigabytes = bytes as f64 / 1e9;
    anyhow::ensure!(bytes > 0, "nothing came through");
    Ok(One {
        megabits: gigabytes * 8e3 / time.as_secs_f64(),
        cpu: spent.machine.as_secs_f64() / gigabytes,
        own_cpu: spent.processes.as_secs_f64() / gigabytes,
        shares: shares.zip(shares_then).map(|(before, then)| {
            let each = |before: Duration, then: Duration| (then - before).as_secs_f64() / gigabytes;
            (each(before.0, then.0), each(before.1, then.1))
        }),
    })
}

fn figures_of(
    plan: &Plan,
    case: Case,
    worlds: &[(&str, Result<World, Unusable>)],
    samples: Vec<Samples>,
) -> Vec<Figure> {
    let count = |number: usize, what: &str| {
        let s = if number == 1 { "" } else { "s" };
        format!("{number} {what}{s}")
    };
    let case = format!(
        "{}, {}",
        count(case.flows, "flow"),
        count(case.peers, "peer")
    );
    let figure = |what: &str, unit, better| Figure::new(format!("{what}, {case}"), unit, better);
    let mut throughput = figure("throughput", "Mbit/s", Better::More);
    let mut cpu = figure("CPU of the machine", "CPU-s/GB", Better::Less);
    let mut own = figure("CPU of the processes", "CPU-s/GB", Better::Less);
    let mut relay = figure("of it the relay's", "CPU-s/GB", Better::Less);
    let mut nodes = figure("of it the nodes'", "CPU-s/GB", Better::Less);
    let mut core = figure("what a core of the relay carries", "Mbit/s", Better::More);
    for ((name, world), samples) in worlds.iter().zip(samples) {
        let why = match (world, &samples.failed) {
            (Err(Unusable(why)), _) => Some(why),
            (Ok(_), Some(why)) if samples.megabits.is_empty() => Some(why),
            _ => None,
        };
        if let Some(why) = why {
            throughput.push_missing(name, why);
            cpu.push_missing(name, why);
            continue;
        }
        throughput.push(*name, samples.megabits);
        cpu.push(*name, samples.cpu);
        own.push(*name, samples.own_cpu);
        if !samples.relay_cpu.is_empty() {
            let per_core = samples.relay_cpu.iter().map(|cpu| 8e3 / cpu);
            core.push(*name, per_core.collect());
            relay.push(*name, samples.relay_cpu);
            nodes.push(*name, samples.node_cpu);
        }
    }
    let mut figures = vec![throughput, cpu];
    // No userspace WireGuard's work is elsewhere: this is the figure that a busy machine does not spoil.
    if plan.place == Place::Native {
        figures.push(own);
    }
    let shares = [relay, nodes, core].into_iter();
    figures.extend(shares.filter(|figure| !figure.rows.is_empty()));
    figures
}
