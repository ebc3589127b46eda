//! `cargo xtask lab [name…]`: whole tailnets in namespaces, one scenario after another.

mod absent;
mod bad_input;
mod bpf;
mod foreign;
mod host;
mod hostile;
mod join;
mod kernel;
mod losses;
mod neighbour;
mod network;
mod outage;
mod paths;
mod peers;
mod policy;
mod restart;
mod roaming;
mod scenarios;
mod secrets;
mod spoof;
mod survival;
mod traces;
mod underlay;
mod units;

use std::{
    error::Error,
    fmt, fs,
    panic::{AssertUnwindSafe, catch_unwind},
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail};

use self::{
    losses::{Traffic, Verdict},
    scenarios::{IN_THE_VM, SCENARIOS, Scenario},
};
use crate::{
    setup, signals,
    tailnet::{self, Build, Coordinator, Node},
    test::Tally,
    topology::{Nat, Net},
    traffic::Stalls,
    vm::Debian,
    workspace::is_root,
};

/// What a scenario gets.
#[derive(Debug)]
pub struct Lab<'a> {
    pub net: &'a Net,
    /// On an emulated CPU time bounds are printed, not asserted.
    pub emulated: bool,
    /// Outages at full length: `LOWROAD_LONG`.
    pub long: bool,
}

/// In the VM with systemd.
const UNITS: &[(&str, Scenario)] = &[(
    "units",
    units::the_units_run_confined_and_what_they_made_in_the_kernel_stays,
)];

/// The policy of most scenarios, which are about other things.
pub const ALLOW_ALL: &str = r#"{"acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}]}"#;

pub const fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

const fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

pub fn main(names: &[&str]) -> Result<ExitCode> {
    signals::catch();
    let mut tally = Tally::default();
    run(names, &mut tally)?;
    Ok(tally.print())
}

/// Runs the scenarios whose name contains one of `names`; without names, all.
pub fn run(names: &[&str], tally: &mut Tally) -> Result<()> {
    if emulated() {
        return run_in_vm(Debian::Trixie, names, tally);
    }
    run_some(SCENARIOS, names, tally)
}

/// The VM's scenarios, on the kernel of this release.
pub fn run_in_vm(debian: Debian, names: &[&str], tally: &mut Tally) -> Result<()> {
    if names.is_empty() {
        skip_left_out(debian, tally);
    }
    run_some(&in_vm(debian, names, long()), names, tally)
}

fn skip_left_out(debian: Debian, tally: &mut Tally) {
    for (name, on, _) in IN_THE_VM {
        if let Some(elsewhere) = on.left_out(debian, long()) {
            let why = format!(
                "takes long, and runs {elsewhere}: here by its name, or with LOWROAD_LONG=1"
            );
            tally.skip(&format!("lab/{name}"), &why);
        }
    }
}

/// Among which `names` chooses there.
fn in_vm(debian: Debian, names: &[&str], long: bool) -> Vec<(&'static str, Scenario)> {
    IN_THE_VM
        .iter()
        .filter(|(name, on, _)| on.includes(debian, long) || names.contains(name))
        .map(|(name, _, scenario)| (*name, *scenario))
        .collect()
}

fn run_some(all: &[(&str, Scenario)], names: &[&str], tally: &mut Tally) -> Result<()> {
    let chosen: Vec<_> = all
        .iter()
        .filter(|(name, _)| names.is_empty() || names.iter().any(|part| name.contains(part)))
        .collect();
    if chosen.is_empty() {
        let all: Vec<_> = all.iter().map(|(name, _)| *name).collect();
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
    tailnet::build(Build::Tests)?;
    for (name, scenario) in chosen {
        signals::check()?;
        counted(name, *scenario, tally)?;
    }
    Ok(())
}

/// Those that want systemd's service units.
pub fn run_units(tally: &mut Tally) -> Result<()> {
    tailnet::build(Build::Tests)?;
    for (name, scenario) in UNITS {
        signals::check()?;
        counted(name, *scenario, tally)?;
    }
    Ok(())
}

/// A guest tells its host at once: it may not live to its end.
fn counted(name: &str, scenario: Scenario, tally: &mut Tally) -> Result<()> {
    let mut of_one = Tally::default();
    one(name, scenario, &mut of_one)?;
    if emulated() {
        of_one.write_lines();
    }
    tally.add(of_one);
    Ok(())
}

/// All scenarios, wherever they run.
pub fn names() -> Vec<&'static str> {
    let natively = SCENARIOS.iter().chain(UNITS).map(|(name, _)| *name);
    natively
        .chain(IN_THE_VM.iter().map(|(name, ..)| *name))
        .collect()
}

fn one(name: &str, scenario: Scenario, tally: &mut Tally) -> Result<()> {
    match again_if_busy(name, has_time, || attempt(name, scenario))? {
        Ok(()) => tally.pass(1),
        Err(error) if error.is::<NotJudged>() => {
            tally.skip(&format!("lab/{name}"), &format!("{error:#}"));
        }
        Err(error) => tally.fail(&format!("lab/{name}"), &format!("{error:#}")),
    }
    Ok(())
}

/// Once more, and no oftener: that a machine was busy says nothing, and another moment may be better. Its second judgement counts. Where there is no time for
/// it, the first does: those that come after would not run.
fn again_if_busy(
    name: &str,
    has_time: impl FnOnce() -> Result<bool>,
    mut attempt: impl FnMut() -> Result<Result<()>>,
) -> Result<Result<()>> {
    let result = attempt()?;
    let Err(error) = &result else {
        return Ok(result);
    };
    let Some(NotJudged::Busy(why)) = error.downcast_ref() else {
        return Ok(result);
    };
    if !has_time()? {
        return Ok(result);
    }
    eprintln!("   lab/{name}: not judged, so it is run once more: {why}");
    attempt()
}

/// Whether a guest, which has 20 minutes, is early enough for one more run of the longest and for all that is left.
fn has_time() -> Result<bool> {
    const UNTIL: f64 = 14.0 * 60.0;
    if long() {
        return Ok(true);
    }
    let uptime = fs::read_to_string("/proc/uptime")?;
    let seconds = uptime.split('.').next().and_then(|text| text.parse().ok());
    let seconds: f64 = seconds.context("/proc/uptime has no seconds")?;
    Ok(seconds < UNTIL)
}

/// In a network of its own.
///
/// # Errors
/// A network could not be made, or a signal came. What became of the scenario is the value.
fn attempt(name: &str, scenario: Scenario) -> Result<Result<()>> {
    let start = Instant::now();
    eprintln!("   lab/{name}");
    let net = Net::new()?;
    let lab = Lab {
        net: &net,
        emulated: emulated(),
        long: long(),
    };
    tailnet::cleanup_failures();
    let result = catch_unwind(AssertUnwindSafe(|| scenario(&lab)))
        .unwrap_or_else(|_| Err(anyhow!("panicked")));
    let result = with_cleanup(result, &tailnet::cleanup_failures());
    signals::check()?;
    match &result {
        Ok(()) => eprintln!("   lab/{name}: ok, {:.1} s", start.elapsed().as_secs_f32()),
        Err(error) if error.is::<NotJudged>() => {}
        Err(error) => {
            tailnet::print_logs(net.folder(), 40);
            eprintln!("   lab/{name}: FAILED: {error:#}");
        }
    }
    Ok(result)
}

/// A scenario whose nodes could not be cleaned up has failed, whatever else became of it.
fn with_cleanup(result: Result<()>, failures: &[String]) -> Result<()> {
    match result {
        result if failures.is_empty() => result,
        Ok(()) => Err(anyhow!("{}", failures.join("; "))),
        Err(error) => Err(anyhow!("{error:#}; {}", failures.join("; "))),
    }
}

/// The scenario saw something that says nothing of lowroad: why.
#[derive(Debug)]
enum NotJudged {
    /// The machine had no time, which may be otherwise soon.
    Busy(String),
    /// This machine never shows it.
    Never(String),
}

impl fmt::Display for NotJudged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Busy(why) | Self::Never(why)) = self;
        f.write_str(why)
    }
}

impl Error for NotJudged {}

/// Whether agents and servers stay dead for minutes; else for as long as all timers take.
pub fn long() -> bool {
    std::env::var_os("LOWROAD_LONG").is_some()
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

    /// Fails if something was lost, unless it was while the emulated CPU stood still or had no time for what was queued: then queues run over that a running one empties, whoever made them.
    pub fn lost(&self, cases: &[Traffic], stalls: &Stalls) -> Result<()> {
        let standstills = stalls.seen();
        self.note(&format!(
            "this machine stood still for {} ms at most",
            standstills.longest.as_millis()
        ));
        match losses::judge(cases, &standstills, self.emulated) {
            Verdict::Kept => Ok(()),
            Verdict::Excused(why) => Err(NotJudged::Busy(why).into()),
            Verdict::Lost(what) => bail!(what),
        }
    }

    pub fn coordinator(&self, policy: &str) -> Result<Coordinator> {
        Coordinator::start(self.net, policy)
    }

    /// An agent on the public segment, at 203.0.113.`last`.
    pub fn public_node(&self, name: &str, last: u8) -> Result<Node> {
        Node::start(self.net, name, self.net.public(name, last)?)
    }

    /// As [`Self::public_node`], with IPv4 only: there is one path to it, and nothing to choose.
    pub fn single_path_node(&self, name: &str, last: u8) -> Result<Node> {
        let node = self.public_node(name, last)?;
        let address = format!("addr del 2001:db8::{last}/64 dev wan0");
        node.namespace.ip(&address)?;
        Ok(node)
    }

    /// An agent behind a router of its own, which is at 203.0.113.`last`.
    pub fn node_behind(&self, name: &str, last: u8, nat: Nat) -> Result<Node> {
        let router = self.net.router(&format!("router-{name}"), last, nat)?;
        Node::start(self.net, name, self.net.behind(name, &router, 2)?)
    }

    pub fn note(&self, text: &str) {
        eprintln!("      {text}");
    }
}

#[cfg(test)]
mod tests;
