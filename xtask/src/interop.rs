//! `cargo xtask interop`: lowroad beside the stock programs, tried case by case. Not part of the tests: those programs are none of ours.

mod hosts;
mod lifecycle;
mod local_api;
mod member;
mod mixed;
mod peers;
mod policies;
mod relay;
mod served;
mod server;
mod stock;
mod table;

use std::{
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::{Value, json};

use self::{server::Kind, table::Table};
use crate::{
    process::Daemon,
    setup, signals,
    tailnet::{self, Client},
    topology::Net,
    wait,
    workspace::is_root,
};

const USAGE: &str = "\
usage: cargo xtask interop --bin DIR [--out DIR] [name]…

Runs lowroad beside the stock programs in DIR and prints what works: all parts, or those whose name contains one of these.

  --bin DIR   folder with tailscaled, tailscale, derper and headscale
  --minutes N how long each tailnet of eight is changed (30)
  --out DIR   also write interop.md and interop.json there
  --list      the names of the parts
";

/// What has to be built, and from what.
const HOW_TO_BUILD: &str = "\
Build them with Go from checkouts of their public sources, and name the folder with --bin:
  in github.com/tailscale/tailscale:  go build -o DIR/ ./cmd/tailscaled ./cmd/tailscale ./cmd/derper
  in github.com/juanfont/headscale:   go build -o DIR/ ./cmd/headscale";

const PROGRAMS: &[&str] = &["tailscaled", "tailscale", "derper", "headscale"];

pub const ALLOW_ALL: &str = r#"{"acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}]}"#;

/// What a part gets.
#[derive(Debug)]
pub struct Lab<'a> {
    pub net: &'a Net,
    pub programs: &'a Path,
    /// How long the mixed tailnets are changed.
    pub minutes: u64,
}

type Part = fn(&Lab, &mut Table) -> Result<()>;

const PARTS: &[(&str, Part)] = &[
    ("lifecycle-lowroad", |lab, table| {
        lifecycle::on_headscale(lab, table, member::Kind::Lowroad)
    }),
    ("lifecycle-stock", |lab, table| {
        lifecycle::on_headscale(lab, table, member::Kind::Stock)
    }),
    ("policies", policies::on_headscale),
    ("local-api", local_api::stock_command_line),
    ("stock-on-ours", served::stock_nodes),
    ("peers-headscale-easy", |lab, table| {
        peers::pairs(lab, table, Kind::Headscale, peers::EASY)
    }),
    ("peers-ours-easy", |lab, table| {
        peers::pairs(lab, table, Kind::Ours, peers::EASY)
    }),
    ("peers-headscale-hard", |lab, table| {
        peers::pairs(lab, table, Kind::Headscale, peers::HARD)
    }),
    ("peers-ours-hard", |lab, table| {
        peers::pairs(lab, table, Kind::Ours, peers::HARD)
    }),
    ("peers-headscale-relayed", |lab, table| {
        peers::pairs(lab, table, Kind::Headscale, peers::RELAYED)
    }),
    ("peers-ours-relayed", |lab, table| {
        peers::pairs(lab, table, Kind::Ours, peers::RELAYED)
    }),
    ("peers-headscale-two-relays", |lab, table| {
        peers::two_regions(lab, table, Kind::Headscale)
    }),
    ("peers-ours-two-relays", |lab, table| {
        peers::two_regions(lab, table, Kind::Ours)
    }),
    ("mixed-headscale", |lab, table| {
        mixed::churn(lab, table, Kind::Headscale)
    }),
    ("mixed-ours", |lab, table| {
        mixed::churn(lab, table, Kind::Ours)
    }),
];

#[derive(Debug, Default)]
struct Options {
    programs: Option<PathBuf>,
    out: Option<PathBuf>,
    list: bool,
    minutes: Option<u64>,
    names: Vec<String>,
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
    let there = |program: &&&str| programs.join(program).is_file();
    if let Some(missing) = PROGRAMS.iter().find(|program| !there(program)) {
        bail!("{} has no {missing}.\n{HOW_TO_BUILD}", programs.display());
    }
    let programs = fs::canonicalize(&programs)?;
    ensure!(
        is_root(),
        "namespaces need root: run the same command with sudo"
    );
    signals::catch();
    setup::lab()?;
    tailnet::build()?;
    let mut table = Table::default();
    let head = head(&programs)?;
    eprintln!("{head}");
    let wanted =
        |name: &str| options.names.is_empty() || options.names.iter().any(|n| name.contains(&**n));
    let chosen: Vec<_> = PARTS.iter().filter(|(name, _)| wanted(name)).collect();
    ensure!(
        !chosen.is_empty(),
        "no part of this name: see cargo xtask interop --list"
    );
    for (name, part) in chosen {
        let net = Net::new()?;
        let lab = Lab {
            net: &net,
            programs: &programs,
            minutes: options.minutes.unwrap_or(mixed::MINUTES),
        };
        one(name, *part, &lab, &mut table)?;
    }
    let text = format!("{head}\n{}", table.markdown());
    println!("{text}");
    if let Some(out) = options.out {
        fs::create_dir_all(&out)?;
        fs::write(out.join("interop.md"), &text)?;
        let all = json!({"programs": head, "rows": table.json()});
        fs::write(
            out.join("interop.json"),
            serde_json::to_string_pretty(&all)?,
        )?;
    }
    println!("{} tried, {} failed", table.len(), table.failed());
    Ok(match table.failed() {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}

fn one(name: &str, part: Part, lab: &Lab, table: &mut Table) -> Result<()> {
    signals::check()?;
    let start = Instant::now();
    hosts::certify(lab.net.folder())?;
    let before = table.failed();
    table.area(name);
    let run = || part(lab, table);
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

/// Which programs these are.
fn head(programs: &Path) -> Result<String> {
    let version = |program: &str, argument: &str| {
        let output = Command::new(programs.join(program)).arg(argument).output();
        let output = output.with_context(|| format!("run {program}"))?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let first = text.lines().next().unwrap_or_default().to_owned();
        Ok::<_, anyhow::Error>(first.trim_start_matches("headscale version ").to_owned())
    };
    let ours = env!("CARGO_PKG_VERSION");
    Ok(format!(
        "lowroad {ours}, tailscale {}, headscale {}",
        version("tailscale", "version")?,
        version("headscale", "version")?
    ))
}

impl Options {
    fn parse(arguments: &[&str]) -> Result<Self> {
        let mut options = Self::default();
        let mut rest = arguments.iter();
        while let Some(argument) = rest.next() {
            let (name, joined) = match argument.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (*argument, None),
            };
            let mut folder = || {
                let value = joined.or_else(|| rest.next().copied());
                let value = value.with_context(|| format!("{name} wants a folder\n\n{USAGE}"))?;
                Ok::<_, anyhow::Error>(Some(PathBuf::from(value)))
            };
            match name {
                "--bin" => options.programs = folder()?,
                "--out" => options.out = folder()?,
                "--list" => options.list = true,
                "--minutes" => {
                    let value = joined.or_else(|| rest.next().copied());
                    let number = value.and_then(|value| value.parse().ok());
                    options.minutes = Some(number.context("--minutes wants a number")?);
                }
                _ if name.starts_with('-') => bail!("no option {argument}\n\n{USAGE}"),
                _ => options.names.push((*argument).to_owned()),
            }
        }
        Ok(options)
    }
}

/// A login without a key, which goes on until it is dropped.
struct Login {
    /// Where a person would sign in.
    page: String,
    _up: Daemon,
}

impl Login {
    fn begin(lab: &Lab, node: &impl Client) -> Result<Self> {
        let server = format!("--login-server={}", node.server());
        let hostname = format!("--hostname={}", node.name());
        let mut up = node.command(&["up", &server, &hostname, "--reset"]);
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

/// Nothing is wrong, as a stock node sees it.
fn healthy(node: &impl Client) -> Result<()> {
    let health = node.status()?["Health"].clone();
    let mut warnings: Vec<Value> = health.as_array().cloned().unwrap_or_default();
    // Of how it was built.
    warnings.retain(|text| !text.to_string().contains("unstable version"));
    ensure!(warnings.is_empty(), "{warnings:?}");
    Ok(())
}

pub const fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}
