//! What is measured: files in `bench/scenarios/`, described in `bench/README.md`.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    title: String,
    about: String,
    places: Vec<Place>,
    #[serde(default)]
    aims: Vec<Aim>,
    tunnel: Option<Tunnel>,
    netmap: Option<Netmap>,
    agent: Option<Agent>,
    filter: Option<Filter>,
    policy: Option<Policy>,
}

/// One file.
#[derive(Debug)]
pub struct Scenario {
    /// The file's name.
    pub name: String,
    pub title: String,
    pub about: String,
    pub places: Vec<Place>,
    pub aims: Vec<Aim>,
    pub kind: Kind,
}

#[derive(Debug)]
pub enum Kind {
    Tunnel(Tunnel),
    Netmap(Netmap),
    Agent(Agent),
    Filter(Filter),
    Policy(Policy),
}

/// Where a scenario makes sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Place {
    Native,
    Vm,
}

/// What a row should reach; shown beside the figures, never a failure.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Aim {
    /// Part of the figure's name that it is about.
    pub figure: String,
    pub row: String,
    /// Only here; everywhere if it isn't said.
    pub place: Option<Place>,
    /// The median, at most or at least, as the figure's direction is.
    pub value: Option<f64>,
    /// The median relative to this row's.
    pub relative_to: Option<String>,
    pub ratio: Option<f64>,
}

/// Traffic between a hub and its peers.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tunnel {
    #[serde(default)]
    pub topology: Topology,
    /// Programs in `bench/drivers/`, or one of ours: `lowroad-kernel`, `lowroad-userspace`, `lowroad-unfiltered`.
    pub drivers: Vec<String>,
    pub cases: Vec<Case>,
    #[serde(default)]
    pub protocol: Protocol,
    /// Of the tunnel's device; ours always has 1280.
    #[serde(default = "default_mtu")]
    pub mtu: u32,
    pub rounds: usize,
    pub seconds: f64,
    pub quick_rounds: usize,
    pub quick_seconds: f64,
}

fn default_mtu() -> u32 {
    1280
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Topology {
    /// All on one segment.
    #[default]
    Segment,
    /// Every node behind a router of its own that lets no UDP through: what reaches the other goes over the relay.
    Relayed,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    #[default]
    Tcp,
    Udp,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    /// How many peers the hub sends to.
    pub peers: usize,
    /// How many streams, spread over the peers.
    pub flows: usize,
    /// Left out with `--quick`.
    #[serde(default)]
    pub long: bool,
}

/// A netmap of so many peers, from the bytes on the wire to a programmed kernel, in this process.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Netmap {
    pub peers: Vec<usize>,
    /// Larger ones are left out with `--quick`.
    pub quick_largest: Option<usize>,
    pub rounds: usize,
    pub quick_rounds: usize,
}

/// A real agent with so many peers: memory, time to be up, CPU when idle.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Agent {
    pub peers: Vec<usize>,
    pub idle_seconds: f64,
    pub quick_idle_seconds: f64,
    /// Each with an agent and a coordinator of its own.
    pub rounds: usize,
    pub quick_rounds: usize,
}

/// The eBPF filter's time per packet by test-run, beside an empty program and nftables.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Filter {
    /// Rule sets of so many rules, each for a peer, a port and both families.
    pub rules: Vec<usize>,
    /// Rule sets of one rule that admits so many peers.
    pub nodes: Vec<usize>,
    /// Larger ones of both are left out with `--quick`.
    pub quick_largest: Option<usize>,
    /// Packets in a sample.
    pub repeat: u32,
    pub rounds: usize,
    pub quick_rounds: usize,
}

/// The coordinator's policy compiler, in this process: so many nodes under so many rules.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    pub nodes: Vec<usize>,
    pub rules: Vec<usize>,
    pub rounds: usize,
    pub quick_rounds: usize,
}

impl Scenario {
    fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        Self::parse(&name, &text).with_context(|| path.display().to_string())
    }

    fn parse(name: &str, text: &str) -> Result<Self> {
        let file: File = toml::from_str(text)?;
        let mut kinds = [
            file.tunnel.map(Kind::Tunnel),
            file.netmap.map(Kind::Netmap),
            file.agent.map(Kind::Agent),
            file.filter.map(Kind::Filter),
            file.policy.map(Kind::Policy),
        ]
        .into_iter()
        .flatten();
        let kind = kinds
            .next()
            .context("has no [tunnel], [netmap], [agent], [filter] or [policy]")?;
        ensure!(
            kinds.next().is_none(),
            "has more than one kind of measurement"
        );
        if let Kind::Tunnel(tunnel) = &kind {
            ensure!(
                tunnel
                    .cases
                    .iter()
                    .all(|case| case.flows > 0 && (1..=MAX_PEERS).contains(&case.peers)),
                "a case needs flows, and 1 to {MAX_PEERS} peers"
            );
        }
        Ok(Self {
            name: name.to_owned(),
            title: file.title,
            about: file.about,
            places: file.places,
            aims: file.aims,
            kind,
        })
    }
}

/// As many as the public segment has addresses for, beside the coordinator's.
const MAX_PEERS: usize = 100;

/// Those in `folder`, by name.
pub fn all(folder: &Path) -> Result<Vec<Scenario>> {
    let entries = fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))?;
    let mut paths: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "toml")
        })
        .collect();
    paths.sort();
    paths.iter().map(|path| Scenario::read(path)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scenarios_that_come_along_can_be_read() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
        assert!(all(&folder).unwrap().len() >= 7);
    }

    #[test]
    fn what_a_scenario_does_not_have_is_refused() {
        let text = "title = \"t\"\nabout = \"a\"\nplaces = [\"vm\"]\n";
        assert!(Scenario::parse("x", text).is_err(), "no kind");
        let netmap = "[netmap]\npeers = [1]\nrounds = 1\nquick_rounds = 1\n";
        assert!(Scenario::parse("x", &format!("{text}{netmap}")).is_ok());
        assert!(Scenario::parse("x", &format!("{text}{netmap}colour = 1\n")).is_err());
    }
}
