//! Nanoseconds per packet of the packet filter, by number of rules and of nodes, beside an empty program and nftables with the same rules.

mod nftables;
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

pub fn run(filter: &scenario::Filter, plan: &Plan) -> Result<Vec<Figure>> {
    let sets: Vec<RuleSet> = filter
        .rules
        .iter()
        .map(|count| RuleSet::Rules(*count))
        .chain(filter.nodes.iter().map(|count| RuleSet::Nodes(*count)))
        .collect();
    let mut installed = sets
        .iter()
        .map(|set| install(*set))
        .collect::<Result<Vec<_>>>()?;
    let cases = Case::all();
    let repeat = filter.repeat.clamp(1, MAX_REPEAT);
    let rounds = plan.rounds(filter.rounds, filter.quick_rounds);
    let mut empty = Vec::new();
    let mut verdicts: Vec<Samples> = vec![vec![Vec::new(); sets.len()]; cases.len()];
    for round in 0..rounds {
        xtask::signals::check()?;
        for (case, samples) in cases.iter().zip(&mut verdicts) {
            // Another one first in each round: who comes after the empty program finds the caches cold.
            for n in 0..sets.len() {
                let n = (n + round) % sets.len();
                samples[n].push(installed[n].verdict(case, repeat)?);
            }
            let nothing = installed[0].filter.run_nothing(&case.packet, repeat)?;
            empty.push(nothing.nanoseconds as f64);
        }
    }
    let mut figures = vec![once("compiling the rules", &installed, |one| one.compiling)];
    figures.push(once("putting them in force", &installed, |one| {
        one.installing
    }));
    drop(installed);
    for (case, samples) in cases.iter().zip(&verdicts) {
        let mut figure = Figure::new(format!("verdict {}", case.name), "ns", Better::Less);
        for (set, samples) in sets.iter().zip(samples) {
            figure.push(set.name(), samples.clone());
        }
        figure.push("an empty program", empty.clone());
        figures.push(figure);
    }
    let nftables = nftables::measure(&sets, rounds);
    for (n, path) in nftables::PATHS.iter().enumerate() {
        let mut figure = Figure::new(format!("added to {}", path.name), "ns", Better::Less);
        let case = cases.iter().position(|case| case.name == path.case);
        let verdict = &verdicts[case.context("a path's case is one of the cases")?];
        for (set, samples) in sets.iter().zip(verdict) {
            let of_empty = empty.iter().skip(case.unwrap_or(0)).step_by(cases.len());
            let added = samples
                .iter()
                .zip(of_empty)
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
