//! `cargo xtask lab [name…]`: whole tailnets in namespaces, one scenario after another.

mod network;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow, bail};

use crate::{setup, signals, tailnet, test::Tally, topology::Net, workspace::is_root};

/// What a scenario gets.
#[derive(Debug)]
pub struct Lab<'a> {
    pub net: &'a Net,
    /// On an emulated CPU time bounds are printed, not asserted.
    pub emulated: bool,
}

type Scenario = fn(&Lab) -> Result<()>;

const SCENARIOS: &[(&str, Scenario)] = &[
    ("network-easy-nat", network::an_easy_nat_keeps_one_mapping),
    (
        "network-hard-nat",
        network::a_hard_nat_has_a_mapping_for_every_destination,
    ),
    (
        "network-traffic",
        network::traffic_is_counted_and_cut_networks_heal,
    ),
];

pub fn main(names: &[&str]) -> Result<ExitCode> {
    signals::catch();
    let mut tally = Tally::default();
    run(names, &mut tally)?;
    Ok(tally.print())
}

/// Runs the scenarios whose name contains one of `names`; without names, all.
pub fn run(names: &[&str], tally: &mut Tally) -> Result<()> {
    let chosen: Vec<_> = SCENARIOS
        .iter()
        .filter(|(name, _)| names.is_empty() || names.iter().any(|part| name.contains(part)))
        .collect();
    if chosen.is_empty() {
        let all: Vec<_> = SCENARIOS.iter().map(|(name, _)| *name).collect();
        bail!("no scenario of this name; there are: {}", all.join(", "));
    }
    if !is_root() {
        tally.skip(
            "lab",
            "namespaces need root: run the same command with sudo",
        );
        return Ok(());
    }
    setup::lab()?;
    tailnet::build()?;
    for (name, scenario) in chosen {
        signals::check()?;
        one(name, *scenario, tally)?;
    }
    Ok(())
}

fn one(name: &str, scenario: Scenario, tally: &mut Tally) -> Result<()> {
    let start = Instant::now();
    eprintln!("   lab/{name}");
    let net = Net::new()?;
    let lab = Lab {
        net: &net,
        emulated: emulated(),
    };
    let result = catch_unwind(AssertUnwindSafe(|| scenario(&lab)))
        .unwrap_or_else(|_| Err(anyhow!("panicked")));
    signals::check()?;
    match result {
        Ok(()) => {
            tally.pass(1);
            eprintln!("   lab/{name}: ok, {:.1} s", start.elapsed().as_secs_f32());
        }
        Err(error) => {
            tailnet::print_logs(net.folder(), 40);
            eprintln!("   lab/{name}: FAILED: {error:#}");
            tally.fail(&format!("lab/{name}"), &format!("{error:#}"));
        }
    }
    Ok(())
}

/// Set by the VM's init.
fn emulated() -> bool {
    std::env::var_os("LOWROAD_EMULATED").is_some()
}

impl Lab<'_> {
    /// Prints what was measured, and on real hardware asserts the bound.
    pub fn within(&self, what: &str, measured: Duration, bound: Duration) -> Result<()> {
        let measured = measured.as_secs_f64();
        let bound = bound.as_secs_f64();
        eprintln!("      {what}: {measured:.2} s (at most {bound:.1} s)");
        if measured > bound && !self.emulated {
            bail!("{what} took {measured:.2} s, more than {bound:.1} s");
        }
        Ok(())
    }

    pub fn note(&self, text: &str) {
        eprintln!("      {text}");
    }
}
