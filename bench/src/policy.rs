//! The coordinator's policy compiler in this process: all of a tailnet, and what one change costs.

mod change;
mod tailnet;

use std::{
    fs,
    hint::black_box,
    process::{Command, ExitCode},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use lowroad_coordinator::policy::{CompiledTailnet, Policy, World, recompile};
use lowroad_wire::control::NodeId;

use crate::{
    Plan,
    figure::{Better, Figure},
    scenario,
};
use change::{Change, Took};
use tailnet::{policy_text, world};

/// One round of one size.
#[derive(Clone, Copy, Debug)]
struct Times {
    parse: Duration,
    compile: Duration,
    tell: Duration,
    /// In the order of [`Change::ALL`].
    changes: [Took; Change::ALL.len()],
}

pub fn run(policy: &scenario::Policy, run: &Plan) -> Result<Vec<Figure>> {
    let sizes = || {
        let nodes = policy.nodes.iter();
        nodes.flat_map(|&nodes| policy.rules.iter().map(move |&rules| (nodes, rules)))
    };
    let mut samples: Vec<((usize, usize), Vec<Times>)> =
        sizes().map(|size| (size, Vec::new())).collect();
    for _ in 0..run.rounds(policy.rounds, policy.quick_rounds) {
        for ((nodes, rules), times) in &mut samples {
            xtask::signals::check()?;
            let one = measure(*nodes, *rules)?;
            eprintln!("      {}: {one:.1?}", label((*nodes, *rules)));
            times.push(one);
        }
    }
    let mut figures = figures(&samples);
    let mut memory = Figure::new("memory, compiled and told", "MB", Better::Less);
    for size in sizes() {
        xtask::signals::check()?;
        memory.push(label(size), vec![memory_of(size)?]);
    }
    figures.push(memory);
    Ok(figures)
}

fn figures(samples: &[((usize, usize), Vec<Times>)]) -> Vec<Figure> {
    let figure = |name: &str, part: &dyn Fn(&Times) -> Duration| {
        let mut figure = Figure::new(name, "ms", Better::Less);
        for (size, times) in samples {
            let values = times.iter().map(|times| part(times).as_secs_f64() * 1e3);
            figure.push(label(*size), values.collect());
        }
        figure
    };
    let mut figures = vec![
        figure("parsing", &|times| times.parse),
        figure("full compile", &|times| times.compile),
        figure("telling every node all, after that", &|times| times.tell),
    ];
    for (at, change) in Change::ALL.into_iter().enumerate() {
        let (name, told) = (
            change.name(),
            format!("{}, told to every node", change.name()),
        );
        figures.push(figure(name, &|times| times.changes[at].followed));
        figures.push(figure(&told, &|times| times.changes[at].told));
    }
    figures
}

fn label((nodes, rules): (usize, usize)) -> String {
    format!("{nodes} nodes, {rules} rules")
}

fn measure(nodes: usize, rules: usize) -> Result<Times> {
    let (text, mut world) = (policy_text(nodes, rules), world(nodes, rules));
    let start = Instant::now();
    let policy = Policy::parse(&text).map_err(|errors| anyhow::anyhow!("{errors}"))?;
    let parse = start.elapsed();
    let start = Instant::now();
    let mut compiled = recompile(&policy, &world);
    let compile = start.elapsed();
    let start = Instant::now();
    tell_all(&compiled, &world);
    let tell = start.elapsed();
    let mut changes = Vec::new();
    for change in Change::ALL {
        changes.push(change.measure(&mut compiled, &mut world)?);
    }
    Ok(Times {
        parse,
        compile,
        tell,
        changes: changes.try_into().ok().context("a change was left out")?,
    })
}

/// What sessions of all nodes ask for first.
fn tell_all(compiled: &CompiledTailnet, world: &World) {
    for node in &world.nodes {
        black_box(compiled.rules_for(node.id));
        black_box(compiled.ssh_for(node.id));
        black_box(compiled.peers_of(node.id));
    }
}

/// What sessions of all nodes ask for after some nodes changed.
fn tell(compiled: &CompiledTailnet, world: &World, changed: &[NodeId]) {
    for node in &world.nodes {
        black_box(compiled.rules_for(node.id));
        black_box(compiled.ssh_for(node.id));
        for changed in changed {
            black_box(compiled.peer_view(node.id, *changed));
        }
    }
}

/// Measured in a process of its own, where no memory of earlier sizes is used again.
fn memory_of((nodes, rules): (usize, usize)) -> Result<f64> {
    let program = std::env::current_exe().context("find this program")?;
    let output = Command::new(program)
        .args(["policy-memory", &nodes.to_string(), &rules.to_string()])
        .output()
        .context("start this program again")?;
    let text = String::from_utf8_lossy(&output.stdout);
    text.trim()
        .parse()
        .with_context(|| format!("{text:?} is no number of MB"))
}

pub fn print_memory(nodes: usize, rules: usize) -> Result<ExitCode> {
    let (text, world) = (policy_text(nodes, rules), world(nodes, rules));
    let policy = Policy::parse(&text).map_err(|errors| anyhow::anyhow!("{errors}"))?;
    let before = anonymous_kib()?;
    let compiled = recompile(&policy, &world);
    tell_all(&compiled, &world);
    let after = anonymous_kib()?;
    black_box(&compiled);
    println!("{:.2}", after.saturating_sub(before) as f64 / 1024.0);
    Ok(ExitCode::SUCCESS)
}

fn anonymous_kib() -> Result<u64> {
    let status = fs::read_to_string("/proc/self/status").context("read /proc/self/status")?;
    let mut lines = status.lines();
    let line = lines.find_map(|line| line.strip_prefix("RssAnon:"));
    let number = line.and_then(|line| line.trim().strip_suffix(" kB"));
    number
        .and_then(|number| number.parse().ok())
        .context("/proc/self/status has no RssAnon")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_size_is_a_policy_that_people_reach_servers_under() {
        for (nodes, rules) in [(100, 10), (100, 1000), (1000, 100)] {
            let policy = Policy::parse(&policy_text(nodes, rules)).unwrap();
            let compiled = recompile(&policy, &world(nodes, rules));
            let servers = (1..=nodes).filter(|&at| {
                let filter = compiled.rules_for(NodeId(at as i64)).to_wire();
                filter
                    .iter()
                    .any(|rule| rule.dst_ports.iter().any(|to| to.ports.first >= 1000))
            });
            assert!(
                servers.count() >= nodes / 10,
                "{nodes} nodes, {rules} rules"
            );
            assert!(measure(nodes, rules).is_ok());
        }
    }
}
