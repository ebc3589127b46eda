//! `lowroad-bench`: what lowroad costs and carries, beside other WireGuards. `cargo xtask bench` builds and starts it; `bench/README.md`
//! says how to add a scenario or a driver.

mod agent;
mod cpu;
mod driver;
mod figure;
mod filter;
mod machine;
mod netmap;
mod policy;
mod report;
mod scenario;
mod stats;
mod traffic;
mod tunnel;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Instant,
};

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand};
use xtask::tailnet::{self, Build};

use crate::{
    figure::{Figure, Results, ScenarioResults},
    machine::Machine,
    scenario::{Kind, Place, Scenario},
};

/// In front of the results on a console that carries other lines, too.
const RESULTS: &str = "LOWROAD-BENCH-RESULTS ";

/// What `cargo xtask bench` looks at, too; `bench/README.md` says more.
const ENVIRONMENT: &str = "\
Environment of `cargo xtask bench`, which starts this program:
  LOWROAD_BIN_DIR=DIR         measure the programs in DIR instead of building them
  LOWROAD_BENCH_DIR=DIR       scenarios and drivers of your own, in DIR/scenarios and DIR/drivers
  LOWROAD_BENCH_PROGRAMS=A,B  programs that such drivers call, by name or path: with --vm they come along
  LOWROAD_BENCH_OFFLINE=1     fetch no other WireGuards";

#[derive(Debug, Parser)]
#[command(
    name = "lowroad-bench",
    version,
    about = "Measures lowroad and other WireGuards on this machine (needs root)"
)]
struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Run scenarios: all that make sense here, or those whose name contains one of these
    #[command(after_help = ENVIRONMENT)]
    Run(Run),
    /// Print how many MB of memory a compiled policy takes (a process of its own, for scenarios)
    #[command(hide = true)]
    PolicyMemory { nodes: usize, rules: usize },
    /// Write the report of results
    Report {
        /// The results' JSON
        results: PathBuf,
        /// Folder of the report
        #[arg(long)]
        out: PathBuf,
    },
}

#[derive(Debug, Args)]
struct Run {
    names: Vec<String>,
    /// Say which scenarios there are, and run none
    #[arg(long)]
    list: bool,
    /// Rounds, instead of what the scenarios say
    #[arg(long)]
    rounds: Option<usize>,
    /// Few and short rounds, to see that it works
    #[arg(long)]
    quick: bool,
    /// How long an agent is watched that has nothing to do, instead of what the scenario says
    #[arg(long, value_name = "SECONDS")]
    idle: Option<f64>,
    /// Folder of the report
    #[arg(long, default_value = "docs/bench")]
    out: PathBuf,
    /// Print the results, marked, instead of writing a report
    #[arg(long)]
    to_console: bool,
}

/// How a run goes, beside what the scenarios say.
#[derive(Debug)]
pub struct Plan {
    pub place: Place,
    pub quick: bool,
    rounds: Option<usize>,
    idle: Option<f64>,
    folder: PathBuf,
}

impl Plan {
    pub fn rounds(&self, normally: usize, quickly: usize) -> usize {
        let chosen = if self.quick { quickly } else { normally };
        self.rounds.unwrap_or(chosen).max(1)
    }

    pub fn seconds(&self, normally: f64, quickly: f64) -> f64 {
        if self.quick { quickly } else { normally }
    }

    pub fn idle_seconds(&self, normally: f64, quickly: f64) -> f64 {
        let chosen = self.seconds(normally, quickly);
        self.idle.unwrap_or(chosen).max(1.0)
    }

    /// The sizes to measure: with `--quick` those up to what the scenario says.
    pub fn sizes(&self, all: &[usize], quick_largest: Option<usize>) -> Vec<usize> {
        let largest = quick_largest.filter(|_| self.quick).unwrap_or(usize::MAX);
        all.iter()
            .copied()
            .filter(|size| *size <= largest)
            .collect()
    }

    /// A driver's program: in the folder that the scenarios came from, or one that comes along.
    pub fn driver(&self, name: &str) -> Option<PathBuf> {
        [&self.folder, &own_folder()]
            .map(|folder| folder.join("drivers").join(name))
            .into_iter()
            .find(|path| path.is_file())
    }
}

/// Scenarios and drivers of this repository.
fn own_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

fn main() -> Result<ExitCode> {
    match Arguments::parse().what {
        What::Run(options) => run(&options),
        What::PolicyMemory { nodes, rules } => policy::print_memory(nodes, rules),
        What::Report { results, out } => {
            let text = fs::read_to_string(&results)
                .with_context(|| format!("read {}", results.display()))?;
            report::write(&serde_json::from_str(&text)?, &out)?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn run(options: &Run) -> Result<ExitCode> {
    let folder = env::var_os("LOWROAD_BENCH_DIR").map_or_else(own_folder, Into::into);
    let all = scenario::all(&folder.join("scenarios"))?;
    if options.list {
        for scenario in &all {
            println!("{:16} {}", scenario.name, scenario.title);
        }
        return Ok(ExitCode::SUCCESS);
    }
    let plan = Plan {
        place: machine::place(),
        quick: options.quick,
        rounds: options.rounds,
        idle: options.idle,
        folder,
    };
    let chosen: Vec<&Scenario> = all.iter().filter(|one| is_chosen(one, options)).collect();
    if chosen.is_empty() {
        bail!("no scenario of this name; `--list` lists them");
    }
    xtask::signals::catch();
    tailnet::build(Build::Release)?;
    let machine = Machine::here();
    let mut results = Results {
        machine,
        quick: options.quick,
        scenarios: Vec::new(),
    };
    let mut code = ExitCode::SUCCESS;
    for scenario in chosen {
        if !scenario.places.contains(&plan.place) {
            eprintln!("   {}: not here", scenario.name);
            continue;
        }
        let one = measure(scenario, &plan)?;
        if one.failed.is_some() {
            code = ExitCode::FAILURE;
        }
        results.scenarios.push(one);
    }
    if options.to_console {
        println!("{RESULTS}{}", serde_json::to_string(&results)?);
    } else {
        report::write(&results, &options.out)?;
    }
    Ok(code)
}

fn is_chosen(scenario: &Scenario, options: &Run) -> bool {
    let names = &options.names;
    names.is_empty() || names.iter().any(|part| scenario.name.contains(part))
}

/// A scenario that fails is reported as that; the others go on.
fn measure(scenario: &Scenario, plan: &Plan) -> Result<ScenarioResults> {
    eprintln!("=> {}: {}", scenario.name, scenario.title);
    let start = Instant::now();
    let figures: Result<Vec<Figure>> = match &scenario.kind {
        Kind::Tunnel(tunnel) => tunnel::run(tunnel, plan),
        Kind::Netmap(netmap) => netmap::run(netmap, plan),
        Kind::Agent(agent) => agent::run(agent, plan),
        Kind::Filter(filter) => filter::run(filter, plan),
        Kind::Policy(policy) => policy::run(policy, plan),
    };
    xtask::signals::check()?;
    let left = tailnet::cleanup_failures();
    let (mut figures, failed) = match figures {
        Ok(figures) if left.is_empty() => (figures, None),
        Ok(figures) => {
            eprintln!("   FAILED: {}", left.join("; "));
            (figures, Some(left.join("; ")))
        }
        Err(error) => {
            eprintln!("   FAILED: {error:#}");
            (Vec::new(), Some(format!("{error:#}")))
        }
    };
    for figure in &mut figures {
        figure.judge(&scenario.aims, plan.place);
    }
    eprintln!("   {:.0} s", start.elapsed().as_secs_f64());
    Ok(ScenarioResults {
        name: scenario.name.clone(),
        title: scenario.title.clone(),
        about: scenario.about.clone(),
        figures,
        failed,
    })
}
