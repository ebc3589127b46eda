//! `cargo xtask interop`: lowroad beside the stock programs, tried case by case. Not part of the tests: those programs are none of ours.

mod changes;
mod deltas;
mod hosts;
mod lifecycle;
mod local_api;
mod member;
mod mixed;
mod options;
mod peers;
mod policies;
mod relay;
mod routes;
mod served;
mod server;
mod shape;
mod single_use;
mod ssh;
mod stock;
mod table;
mod upgrade;

use std::{
    collections::BTreeSet,
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::Instant,
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::{Value, json};

use self::{
    member::Member,
    options::{Options, USAGE},
    peers::{Homes, Places},
    server::Kind::{Headscale, Ours},
    table::Table,
};
use crate::{
    lab::secs,
    process::{self, Daemon},
    setup, signals,
    tailnet::{self, Build, Client},
    topology::Net,
    vm, wait,
    workspace::{self, is_root},
};

/// The programs of `--bin`, or those of `--old`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Age {
    New,
    Old,
}

/// What has to be built, and from what.
const HOW_TO_BUILD: &str = "\
Build them with Go from checkouts of their public sources, and name the folder with --bin:
  in github.com/tailscale/tailscale:  go build -o DIR/ ./cmd/tailscaled ./cmd/tailscale ./cmd/derper
  in github.com/juanfont/headscale:   go build -o DIR/ ./cmd/headscale";

const PROGRAMS: &[&str] = &["tailscaled", "tailscale", "derper", "headscale"];
/// Of which older ones are tried.
const OLD_PROGRAMS: &[&str] = &["tailscaled", "tailscale", "headscale"];

/// What a part gets.
#[derive(Debug)]
pub struct Lab<'a> {
    pub net: &'a Net,
    pub programs: &'a Path,
    /// Older ones.
    pub old: Option<&'a Path>,
    /// How long the mixed tailnets are changed.
    pub minutes: u64,
}

/// Something to try, with servers and hosts of its own.
#[derive(Debug, Clone, Copy)]
enum Part {
    Lifecycle(member::Kind),
    Deltas(member::Kind),
    Policies,
    PoliciesTagged,
    PoliciesRouted,
    LocalApi,
    DerperAsks,
    StockOnOurs,
    OldStockOnOurs,
    HeadscaleUpgraded,
    Pair(server::Kind, Places),
    ByRelays(server::Kind, Homes),
    Routes(server::Kind, member::Kind),
    Changes(server::Kind, member::Kind),
    ChangesBehindNats(server::Kind, member::Kind),
    Idle(server::Kind),
    Mixed(server::Kind),
    SshOnOurs,
}

const PARTS: &[(&str, Part)] = &[
    ("lifecycle-lowroad", Part::Lifecycle(member::Kind::Lowroad)),
    ("lifecycle-stock", Part::Lifecycle(member::Kind::Stock)),
    ("deltas-stock", Part::Deltas(member::Kind::Stock)),
    ("deltas-lowroad", Part::Deltas(member::Kind::Lowroad)),
    ("policies", Part::Policies),
    ("policies-tagged", Part::PoliciesTagged),
    ("policies-routed", Part::PoliciesRouted),
    ("local-api", Part::LocalApi),
    ("derper-asks", Part::DerperAsks),
    ("stock-on-ours", Part::StockOnOurs),
    ("ssh-ours", Part::SshOnOurs),
    ("old-stock-on-ours", Part::OldStockOnOurs),
    ("headscale-upgraded", Part::HeadscaleUpgraded),
    (
        "peers-headscale-one-network",
        Part::Pair(Headscale, peers::ONE_NETWORK),
    ),
    (
        "peers-ours-one-network",
        Part::Pair(Ours, peers::ONE_NETWORK),
    ),
    (
        "peers-headscale-one-lan",
        Part::Pair(Headscale, peers::ONE_LAN),
    ),
    ("peers-ours-one-lan", Part::Pair(Ours, peers::ONE_LAN)),
    ("peers-headscale-easy", Part::Pair(Headscale, peers::EASY)),
    ("peers-ours-easy", Part::Pair(Ours, peers::EASY)),
    ("peers-headscale-hard", Part::Pair(Headscale, peers::HARD)),
    ("peers-ours-hard", Part::Pair(Ours, peers::HARD)),
    (
        "peers-headscale-hard-lowroad",
        Part::Pair(Headscale, peers::HARD_LOWROAD),
    ),
    (
        "peers-ours-hard-lowroad",
        Part::Pair(Ours, peers::HARD_LOWROAD),
    ),
    (
        "peers-headscale-hard-lowroad-public",
        Part::Pair(Headscale, peers::HARD_LOWROAD_PUBLIC),
    ),
    (
        "peers-ours-hard-lowroad-public",
        Part::Pair(Ours, peers::HARD_LOWROAD_PUBLIC),
    ),
    (
        "peers-headscale-hard-stock-public",
        Part::Pair(Headscale, peers::HARD_STOCK_PUBLIC),
    ),
    (
        "peers-ours-hard-stock-public",
        Part::Pair(Ours, peers::HARD_STOCK_PUBLIC),
    ),
    (
        "peers-headscale-relayed",
        Part::Pair(Headscale, peers::RELAYED),
    ),
    ("peers-ours-relayed", Part::Pair(Ours, peers::RELAYED)),
    ("peers-headscale-v6", Part::Pair(Headscale, peers::V6)),
    ("peers-ours-v6", Part::Pair(Ours, peers::V6)),
    (
        "peers-headscale-two-relays",
        Part::ByRelays(Headscale, peers::OWN),
    ),
    ("peers-ours-two-relays", Part::ByRelays(Ours, peers::OWN)),
    (
        "peers-headscale-stock-relay",
        Part::ByRelays(Headscale, peers::STOCK_RELAY),
    ),
    (
        "peers-ours-stock-relay",
        Part::ByRelays(Ours, peers::STOCK_RELAY),
    ),
    (
        "routes-headscale",
        Part::Routes(Headscale, member::Kind::Lowroad),
    ),
    ("routes-ours", Part::Routes(Ours, member::Kind::Lowroad)),
    ("routes-ours-stock", Part::Routes(Ours, member::Kind::Stock)),
    (
        "changes-headscale",
        Part::Changes(Headscale, member::Kind::Lowroad),
    ),
    ("changes-ours", Part::Changes(Ours, member::Kind::Lowroad)),
    (
        "changes-stock",
        Part::Changes(Headscale, member::Kind::Stock),
    ),
    (
        "changes-nat-headscale",
        Part::ChangesBehindNats(Headscale, member::Kind::Lowroad),
    ),
    (
        "changes-nat-ours",
        Part::ChangesBehindNats(Ours, member::Kind::Lowroad),
    ),
    (
        "changes-nat-stock",
        Part::ChangesBehindNats(Headscale, member::Kind::Stock),
    ),
    ("idle-headscale", Part::Idle(Headscale)),
    ("idle-ours", Part::Idle(Ours)),
    ("mixed-headscale", Part::Mixed(Headscale)),
    ("mixed-ours", Part::Mixed(Ours)),
];

impl Part {
    fn run(self, lab: &Lab, table: &mut Table) -> Result<()> {
        match self {
            Self::Lifecycle(kind) => lifecycle::on_headscale(lab, table, kind),
            Self::Deltas(kind) => deltas::on_headscale(lab, table, kind),
            Self::Policies => policies::on_headscale(lab, table),
            Self::PoliciesTagged => policies::tagged::on_headscale(lab, table),
            Self::PoliciesRouted => policies::routed::on_headscale(lab, table),
            Self::LocalApi => local_api::stock_command_line(lab, table),
            Self::DerperAsks => local_api::asks_lowroad(lab, table),
            Self::StockOnOurs => served::stock_nodes(lab, table, Age::New),
            Self::SshOnOurs => ssh::on_ours(lab, table),
            Self::OldStockOnOurs => old_stock_on_ours(lab, table),
            Self::HeadscaleUpgraded => upgrade::of_headscale(lab, table),
            Self::Pair(server, places) => peers::pair(lab, table, server, places),
            Self::ByRelays(server, homes) => peers::by_relays(lab, table, server, homes),
            Self::Routes(server, user) => routes::of_stock_nodes(lab, table, server, user),
            Self::Changes(server, first) => changes::under_traffic(lab, table, server, first),
            Self::ChangesBehindNats(server, first) => {
                changes::behind_nats(lab, table, server, first)
            }
            Self::Idle(server) => changes::idle(lab, table, server),
            Self::Mixed(server) => mixed::churn(lab, table, server),
        }
    }

    fn wants_old(self) -> bool {
        matches!(self, Self::OldStockOnOurs | Self::HeadscaleUpgraded)
    }
}

pub fn main(arguments: &[&str]) -> Result<ExitCode> {
    let options = Options::parse(arguments)?;
    if options.list {
        PARTS.iter().for_each(|(name, _)| println!("{name}"));
        return Ok(ExitCode::SUCCESS);
    }
    let Some(programs) = options.programs else {
        print!("{USAGE}");
        bail!("--bin is missing.\n{HOW_TO_BUILD}");
    };
    let programs = folder_with(&programs, PROGRAMS)?;
    let old = options.old.map(|old| folder_with(&old, OLD_PROGRAMS));
    let old = old.transpose()?;
    if options.vm {
        return in_vm(&programs, options.minutes, &options.names);
    }
    ensure!(
        is_root(),
        "namespaces need root: run the same command with sudo"
    );
    signals::catch();
    setup::lab()?;
    tailnet::build(Build::Release)?;
    let mut table = Table::default();
    let head = head(&programs)?;
    eprintln!("{head}");
    let mut ended = Ok(());
    for (name, part) in chosen(&options.names)? {
        if part.wants_old() && old.is_none() {
            table.skip(name, "wants older programs: --old DIR");
            continue;
        }
        ended = Net::new().and_then(|net| {
            let lab = Lab {
                net: &net,
                programs: &programs,
                old: old.as_deref(),
                minutes: options.minutes,
            };
            one(name, *part, &lab, &mut table)
        });
        // A run takes hours: what it has found is there whatever comes.
        if let Some(out) = &options.out {
            write(out, &head, &table)?;
        }
        if ended.is_err() {
            break;
        }
    }
    println!("{head}\n{}", table.markdown());
    ended?;
    println!(
        "{} tried, {} failed, {} parts skipped",
        table.len(),
        table.failed(),
        table.skipped()
    );
    Ok(match table.failed() {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}

/// The parts of these names: those that are called so, or else those whose name contains it.
fn chosen(names: &[String]) -> Result<Vec<&'static (&'static str, Part)>> {
    if names.is_empty() {
        return Ok(PARTS.iter().collect());
    }
    let mut positions = BTreeSet::new();
    for name in names {
        let position = |is: &dyn Fn(&str) -> bool| -> Vec<usize> {
            let parts = PARTS.iter().enumerate();
            parts
                .filter(|(_, (part, _))| is(part))
                .map(|(at, _)| at)
                .collect()
        };
        let mut found = position(&|part| part == name);
        if found.is_empty() {
            found = position(&|part| part.contains(&**name));
        }
        ensure!(
            !found.is_empty(),
            "no part is called {name:?}: see cargo xtask interop --list"
        );
        positions.extend(found);
    }
    Ok(positions.into_iter().map(|at| &PARTS[at]).collect())
}

fn write(out: &Path, head: &str, table: &Table) -> Result<()> {
    fs::create_dir_all(out)?;
    fs::write(
        out.join("interop.md"),
        format!("{head}\n{}", table.markdown()),
    )?;
    let all = json!({"programs": head, "rows": table.json()});
    let text = serde_json::to_string_pretty(&all)?;
    fs::write(out.join("interop.json"), text)?;
    Ok(())
}

/// The same in a guest.
fn in_vm(programs: &Path, minutes: u64, names: &[String]) -> Result<ExitCode> {
    signals::catch();
    let files: Vec<_> = PROGRAMS
        .iter()
        .map(|name| (format!("/stock/{name}"), programs.join(name)))
        .collect();
    let command = format!(
        "xtask interop --bin /stock --minutes {minutes} {}",
        names.join(" ")
    );
    let code = vm::with_files(&command, &files, &mut |line| println!("{line}"))?;
    Ok(ExitCode::from(code))
}

fn one(name: &str, part: Part, lab: &Lab, table: &mut Table) -> Result<()> {
    signals::check()?;
    let start = Instant::now();
    hosts::certify(lab.net.folder())?;
    let before = table.failed();
    table.area(name);
    let run = || part.run(lab, table);
    let result = catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_| Err(anyhow!("panicked")));
    signals::check()?;
    if let Err(why) = result {
        table.try_it("to its end", || Err(why));
    }
    if table.failed() > before {
        tailnet::print_logs(lab.net.folder(), 40);
    }
    eprintln!("   {name}: {:.1} s", start.elapsed().as_secs_f32());
    Ok(())
}

/// The folder, if it has these programs.
fn folder_with(folder: &Path, programs: &[&str]) -> Result<PathBuf> {
    let there = |program: &&&str| folder.join(program).is_file();
    if let Some(missing) = programs.iter().find(|program| !there(program)) {
        bail!("{} has no {missing}.\n{HOW_TO_BUILD}", folder.display());
    }
    Ok(fs::canonicalize(folder)?)
}

fn old_stock_on_ours(lab: &Lab, table: &mut Table) -> Result<()> {
    let programs = lab.old.context("--old is missing")?;
    let lab = Lab { programs, ..*lab };
    served::stock_nodes(&lab, table, Age::Old)
}

/// Which programs these are.
fn head(programs: &Path) -> Result<String> {
    let ours = env!("CARGO_PKG_VERSION");
    Ok(format!(
        "lowroad {ours} of commit {}, tailscale {}, headscale {}",
        workspace::commit(),
        version(programs, "tailscale")?,
        version(programs, "headscale")?
    ))
}

fn version(programs: &Path, program: &str) -> Result<String> {
    let output = Command::new(programs.join(program)).arg("version").output();
    let output = output.with_context(|| format!("run {program}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let first = text.lines().next().unwrap_or_default();
    let is_known = first.chars().any(|char| char.is_ascii_digit()) && !first.contains("ERR-");
    if !is_known {
        // Built without Git's history: what it says of itself tells nobody which one it is.
        let mut sum = Command::new("sha256sum");
        let sum = process::run(sum.arg(programs.join(program)), "", secs(30))?.ok("sha256sum")?;
        let sum: String = sum.stdout.chars().take(16).collect();
        return Ok(format!("{first} (SHA-256 {sum}…)"));
    }
    Ok(first.trim_start_matches("headscale version ").to_owned())
}

/// A login without a key, which goes on until it is dropped.
struct Login {
    /// Where a person would sign in.
    page: String,
    _up: Daemon,
}

impl Login {
    fn begin(lab: &Lab, node: &impl Client, flags: &[&str]) -> Result<Self> {
        let server = format!("--login-server={}", node.server());
        let hostname = format!("--hostname={}", node.name());
        let fixed = ["up", &server, &hostname, "--reset"];
        let mut up = node.command(&[&fixed[..], flags].concat());
        let output = lab.net.folder().join(format!("{}.up", node.name()));
        let up = Daemon::spawn(&mut up, &output)?;
        let (page, _) = wait::wait_for("the login page", secs(20), || {
            let status = node.status()?;
            let page = status["AuthURL"].as_str().unwrap_or_default();
            Ok((!page.is_empty()).then(|| page.to_owned()))
        })?;
        Ok(Self { page, _up: up })
    }
}

/// Nothing is wrong, as the node sees it.
fn healthy(node: &Member) -> Result<()> {
    let known: &[&str] = match node.kind() {
        // Of how it was built.
        member::Kind::Stock => &["unstable version"],
        // Of what it does by default, and of what the host's kernel lacks.
        member::Kind::Lowroad => &[
            "--accept-dns changes nothing yet",
            "packets pass through userspace",
        ],
    };
    let health = node.status()?["Health"].clone();
    let mut warnings: Vec<Value> = health.as_array().cloned().unwrap_or_default();
    warnings.retain(|text| {
        let text = text.to_string();
        !known.iter().any(|one| text.contains(*one))
    });
    ensure!(warnings.is_empty(), "{warnings:?}");
    Ok(())
}
