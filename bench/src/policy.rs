//! The coordinator's policy compiler in this process: all of a tailnet, and what one node more costs.

use std::{
    fs,
    hint::black_box,
    process::{Command, ExitCode},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use lowroad_coordinator::policy::{
    CompiledTailnet, NodeFacts, Policy, TailnetFacts, UserFacts, World, recompile,
};
use lowroad_wire::control::{NodeId, UserId};

use crate::{
    Plan,
    figure::{Better, Figure},
    scenario,
};

/// Of ten nodes, so many are devices of users.
const DEVICES: usize = 7;
/// Devices of one user.
const EACH: usize = 2;
/// Rules for each group and for each tag.
const PER_GROUP: usize = 10;
/// Nodes that join one after another; the median of their times is one sample.
const JOINS: usize = 9;

/// One round of one size.
#[derive(Clone, Copy, Debug, Default)]
struct Times {
    parse: Duration,
    compile: Duration,
    tell: Duration,
    join: Duration,
    /// The join, and what it means told to everybody.
    join_told: Duration,
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

type Part = (&'static str, fn(&Times) -> Duration);

fn figures(samples: &[((usize, usize), Vec<Times>)]) -> Vec<Figure> {
    let parts: [Part; 5] = [
        ("parsing", |times| times.parse),
        ("full compile", |times| times.compile),
        ("telling every node all, after that", |times| times.tell),
        ("one node joins", |times| times.join),
        ("one node joins, told to every node", |times| {
            times.join_told
        }),
    ];
    let mut figures = Vec::new();
    for (name, part) in parts {
        let mut figure = Figure::new(name, "ms", Better::Less);
        for (size, times) in samples {
            let values = times.iter().map(|times| part(times).as_secs_f64() * 1e3);
            figure.push(label(*size), values.collect());
        }
        figures.push(figure);
    }
    figures
}

fn label((nodes, rules): (usize, usize)) -> String {
    format!("{nodes} nodes, {rules} rules")
}

fn measure(nodes: usize, rules: usize) -> Result<Times> {
    let (text, world) = (policy_text(nodes, rules), world(nodes, rules));
    let mut times = Times::default();
    let start = Instant::now();
    let policy = Policy::parse(&text).map_err(|errors| anyhow::anyhow!("{errors}"))?;
    times.parse = start.elapsed();
    let start = Instant::now();
    let mut compiled = recompile(&policy, &world);
    times.compile = start.elapsed();
    let start = Instant::now();
    tell(&compiled, &world, None);
    times.tell = start.elapsed();
    let mut joins = Vec::new();
    for at in 0..JOINS {
        let joining = device(nodes + at, at);
        let id = joining.id;
        let start = Instant::now();
        let followed = compiled.follow(&[(id, Some(joining))]);
        let followed_after = start.elapsed();
        ensure!(!followed.is_whole, "a join was not followed");
        // Sessions have the version before until they have looked at this one.
        let before = std::mem::replace(&mut compiled, followed.compiled);
        tell(&compiled, &world, Some(id));
        joins.push((followed_after, start.elapsed()));
        drop(before);
    }
    let median = |part: fn(&(Duration, Duration)) -> Duration| {
        let mut times: Vec<Duration> = joins.iter().map(part).collect();
        times.sort_unstable();
        times[JOINS / 2]
    };
    times.join = median(|join| join.0);
    times.join_told = median(|join| join.1);
    Ok(times)
}

/// What sessions of all nodes ask for: everything, or what they ask after one node changed.
fn tell(compiled: &CompiledTailnet, world: &World, changed: Option<NodeId>) {
    for node in &world.nodes {
        black_box(compiled.rules_for(node.id));
        black_box(compiled.ssh_for(node.id));
        black_box(compiled.peer_view(node.id, changed.unwrap_or(node.id)));
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
    tell(&compiled, &world, None);
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

fn groups(rules: usize) -> usize {
    rules.div_ceil(PER_GROUP)
}

fn users(nodes: usize) -> usize {
    (nodes * DEVICES / 10).div_ceil(EACH).max(1)
}

fn policy_text(nodes: usize, rules: usize) -> String {
    let groups = groups(rules);
    let mut members = vec![Vec::new(); groups];
    for user in 0..users(nodes) {
        let second = (user * 7 + 1) % groups;
        for group in [user % groups, second] {
            members[group].push(format!("u{user}@"));
        }
    }
    for list in &mut members {
        list.dedup();
    }
    let members = members.iter().enumerate();
    let members: Vec<String> = members
        .map(|(group, list)| format!(r#""group:g{group}": {list:?}"#))
        .collect();
    let tags: Vec<String> = (0..groups)
        .map(|tag| format!(r#""tag:t{tag}": []"#))
        .collect();
    let rule = |at: usize| {
        let (group, tag, port) = (at % groups, (at * 3 + at / groups) % groups, 1000 + at);
        format!(
            r#"{{"action": "accept", "src": ["group:g{group}"], "dst": ["tag:t{tag}:{port}"]}}"#
        )
    };
    let mut written: Vec<String> = (1..rules).map(rule).collect();
    written.push(
        r#"{"action": "accept", "src": ["autogroup:member"], "dst": ["autogroup:self:*"]}"#
            .to_owned(),
    );
    format!(
        "{{\"groups\": {{{}}}, \"tagOwners\": {{{}}}, \"acls\": [{}]}}",
        members.join(","),
        tags.join(","),
        written.join(",\n")
    )
}

fn world(nodes: usize, rules: usize) -> World {
    let mut device_count = 0;
    let nodes_of = (0..nodes).map(|at| {
        let is_device = at % 10 < DEVICES;
        device_count += usize::from(is_device);
        match is_device {
            true => device(at, (device_count - 1) / EACH),
            false => NodeFacts {
                user: None,
                tags: vec![format!("tag:t{}", at % groups(rules))],
                ..device(at, 0)
            },
        }
    });
    let user = |at: usize| UserFacts {
        id: UserId(at as i64 + 1),
        login_name: format!("u{at}"),
    };
    World {
        nodes: nodes_of.collect(),
        users: (0..users(nodes)).map(user).collect(),
        tailnet: TailnetFacts::default(),
    }
}

fn device(at: usize, user: usize) -> NodeFacts {
    let number = at as u32 + 1;
    NodeFacts {
        id: NodeId(number.into()),
        user: Some(UserId(user as i64 + 1)),
        tags: Vec::new(),
        v4: Some((0x6440_0000 + number).into()),
        v6: Some(((0xfd7a_115c_a1e0_u128 << 80) + u128::from(number)).into()),
        announced: Vec::new(),
        admin_approved: Vec::new(),
        created: number.into(),
        online: true,
    }
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
