//! Nanoseconds per packet of the packet filter, by number of rules and of nodes, beside an empty program and nftables with the same rules.

mod loopback;
mod nftables;
mod profile;
mod workload;

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use lowroad_agent::kernel::bpf::{Filter, FilterOptions};
use lowroad_core::filter::compile;

use self::workload::{Case, RuleSet};
use crate::{
    Plan,
    figure::{Better, Figure},
    scenario,
};

/// A test run with so few repetitions that a small machine isn't taken from others for long.
const MAX_REPEAT: u32 = 1_000_000;

/// Samples of one case, by rule set.
type Samples = Vec<Vec<f64>>;

/// A rule set in the kernel.
struct Installed {
    set: RuleSet,
    filter: Filter,
    compiling: f64,
    installing: f64,
}

/// Nanoseconds of test runs.
struct Verdicts {
    /// By case.
    of_sets: Vec<Samples>,
    /// By case.
    of_nothing: Vec<Vec<f64>>,
}

pub fn run(filter: &scenario::Filter, plan: &Plan) -> Result<Vec<Figure>> {
    let sizes = |all: &[usize]| plan.sizes(all, filter.quick_largest).into_iter();
    let rules = sizes(&filter.rules).map(RuleSet::Rules);
    let sets: Vec<RuleSet> = rules
        .chain(sizes(&filter.nodes).map(RuleSet::Nodes))
        .collect();
    ensure!(!sets.is_empty(), "there is no rule set to measure");
    let mut installed = sets
        .iter()
        .map(|set| install(*set))
        .collect::<Result<Vec<_>>>()?;
    let cases = Case::all();
    let repeat = filter.repeat.clamp(1, MAX_REPEAT);
    let rounds = plan.rounds(filter.rounds, filter.quick_rounds);
    let verdicts = verdicts(&mut installed, &cases, repeat, rounds)?;
    let mut figures = vec![
        once("compiling the rules", &installed, |one| one.compiling),
        once("putting them in force", &installed, |one| one.installing),
    ];
    drop(installed);
    let nothing = verdicts.of_nothing.concat();
    for (case, samples) in cases.iter().zip(&verdicts.of_sets) {
        let mut figure = Figure::new(format!("verdict {}", case.name), "ns", Better::Less);
        for (set, samples) in sets.iter().zip(samples) {
            figure.push(set.name(), samples.clone());
        }
        figure.push("an empty program", nothing.clone());
        figures.push(figure);
    }
    figures.extend(profile::measure(repeat, rounds)?);
    figures.extend(beside_nftables(&sets, &cases, &verdicts, rounds)?);
    Ok(figures)
}

fn verdicts(
    installed: &mut [Installed],
    cases: &[Case],
    repeat: u32,
    rounds: usize,
) -> Result<Verdicts> {
    let sets = installed.len();
    let mut verdicts = Verdicts {
        of_sets: vec![vec![Vec::new(); sets]; cases.len()],
        of_nothing: vec![Vec::new(); cases.len()],
    };
    for round in 0..rounds {
        xtask::signals::check()?;
        for (at, case) in cases.iter().enumerate() {
            // Another one first in each round: who comes after the empty program finds the caches cold.
            for n in 0..sets {
                let n = (n + round) % sets;
                let verdict = installed[n].verdict(case, repeat)?;
                verdicts.of_sets[at][n].push(verdict);
            }
            let nothing = installed[0].filter.run_nothing(&case.packet, repeat)?;
            verdicts.of_nothing[at].push(nothing.nanoseconds as f64);
        }
    }
    Ok(verdicts)
}

/// What is added to packets: by the filter's programs to an empty one, by nftables to the hook.
fn beside_nftables(
    sets: &[RuleSet],
    cases: &[Case],
    verdicts: &Verdicts,
    rounds: usize,
) -> Result<Vec<Figure>> {
    let nftables = nftables::measure(sets, cases, rounds);
    let mut figures = Vec::new();
    for (n, path) in nftables::PATHS.iter().enumerate() {
        let case = path.case(cases)?;
        let mut figure = Figure::new(format!("added to {}", path.name), "ns", Better::Less);
        for (set, samples) in sets.iter().zip(&verdicts.of_sets[case]) {
            let added = samples
                .iter()
                .zip(&verdicts.of_nothing[case])
                .map(|(with, without)| with - without);
            figure.push(format!("lowroad, {}", set.name()), added.collect());
        }
        for (s, set) in sets.iter().enumerate() {
            let label = format!("nftables, {}", set.name());
            match &nftables {
                Ok(samples) => figure.push(label, samples[n][s].clone()),
                Err(why) => figure.push_missing(&label, &format!("{why:#}")),
            }
        }
        figures.push(figure);
    }
    Ok(figures)
}

fn install(set: RuleSet) -> Result<Installed> {
    let input = set.input();
    let begun = Instant::now();
    let compiled = compile(&input);
    let compiling = begun.elapsed().as_secs_f64() * 1e3;
    let name = set.name();
    ensure!(compiled.notes.is_empty(), "{name}: {:?}", compiled.notes);
    let mut filter = Filter::detached(&FilterOptions::new("bench", 0))
        .context("load the filter (root and a kernel with BPF are needed)")?;
    let begun = Instant::now();
    filter.install(&compiled)?;
    let installing = begun.elapsed().as_secs_f64() * 1e3;
    eprintln!("      {name}: compiled in {compiling:.1} ms, in force after {installing:.1} ms");
    Ok(Installed {
        set,
        filter,
        compiling,
        installing,
    })
}

impl Installed {
    fn verdict(&mut self, case: &Case, repeat: u32) -> Result<f64> {
        let run = self.filter.run(case.direction, &case.packet, 0, repeat)?;
        ensure!(
            run.passed == case.passes,
            "{} with {}: the filter's verdict is not the expected one",
            case.name,
            self.set.name()
        );
        Ok(run.nanoseconds as f64)
    }
}

fn once(name: &str, installed: &[Installed], value: fn(&Installed) -> f64) -> Figure {
    let mut figure = Figure::new(name, "ms", Better::Less);
    for one in installed {
        figure.push(one.set.name(), vec![value(one)]);
    }
    figure
}
