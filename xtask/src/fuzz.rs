//! `cargo xtask fuzz`: libFuzzer on the targets of `xtask/fuzz/`, and single inputs through them.

mod engine;
mod keep;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::Duration,
};

use anyhow::{Context, Result, bail};

use crate::{
    ebpf,
    shell::{cargo, output},
    signals,
    workspace::{is_root, root, target},
};
use engine::{Engine, Stats};

/// How long all targets together run, unless told otherwise.
const MINUTES: f64 = 10.0;

/// What the package says of a target.
#[derive(Debug, Clone)]
struct Target {
    name: String,
    max_len: String,
    needs_root: bool,
}

pub fn main(arguments: &[&str]) -> Result<ExitCode> {
    ebpf::build()?;
    match arguments {
        ["--list"] => println!("{}", output(&mut plain(&["--list"]))?),
        ["--seeds"] => {
            let corpus = root().join(keep::CORPUS);
            output(&mut plain(&["--seeds", &corpus.to_string_lossy()]))?;
        }
        [name, files @ ..] if files.iter().any(|file| Path::new(file).is_file()) => {
            let status = plain(&[&[*name], files].concat()).status()?;
            return Ok(ExitCode::from(u8::from(!status.success())));
        }
        _ => {
            let (minutes, names) = options(arguments)?;
            return run(&chosen(&names)?, Duration::from_secs_f64(minutes * 60.0));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn options<'a>(arguments: &[&'a str]) -> Result<(f64, Vec<&'a str>)> {
    let (mut minutes, mut names) = (MINUTES, Vec::new());
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        if *argument == "--minutes" {
            let text = rest.next().context("--minutes needs a number")?;
            minutes = text.parse().with_context(|| format!("--minutes {text}"))?;
            if !(0.0..1e6).contains(&minutes) {
                bail!("--minutes {text}: between 0 and a million");
            }
        } else if argument.starts_with('-') {
            bail!("no option `{argument}`; there are --list, --seeds and --minutes N");
        } else {
            names.push(*argument);
        }
    }
    Ok((minutes, names))
}

/// The package's own program, without instrumentation: it is built at once. Paths are those of the caller.
fn plain(arguments: &[&str]) -> Command {
    let mut command = cargo();
    command
        .args(["run", "--quiet", "--locked", "--manifest-path"])
        .arg(root().join("Cargo.toml"))
        .args(["--package", "lowroad-fuzz", "--bin", "lowroad-fuzz", "--"])
        .args(arguments);
    if let Ok(here) = std::env::current_dir() {
        command.current_dir(here);
    }
    command
}

/// The named targets, or all that can run here.
fn chosen(names: &[&str]) -> Result<Vec<Target>> {
    let list = output(&mut plain(&["--list"]))?;
    let target = |line: &str| {
        let mut words = line.split_whitespace();
        Some(Target {
            name: words.next()?.to_owned(),
            max_len: words.next()?.to_owned(),
            needs_root: words.next()? == "root",
        })
    };
    let all: Vec<Target> = list.lines().filter_map(target).collect();
    if let Some(unknown) = names
        .iter()
        .find(|name| all.iter().all(|target| target.name != **name))
    {
        bail!("no target and no file `{unknown}`; `cargo xtask fuzz --list` lists the targets");
    }
    let wanted = all
        .into_iter()
        .filter(|target| names.is_empty() || names.contains(&&*target.name));
    let (here, elsewhere): (Vec<_>, Vec<_>) =
        wanted.partition(|target| is_root() || !target.needs_root);
    for target in elsewhere {
        eprintln!(
            "   SKIPPED {}: needs root, run the same command with sudo",
            target.name
        );
    }
    Ok(here)
}

/// Folders of a run: `target/fuzz/…` beside the build.
fn folder(kind: &str, target_name: &str) -> Result<PathBuf> {
    let folder = target().join("fuzz").join(kind).join(target_name);
    fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
    Ok(folder)
}

fn run(targets: &[Target], time: Duration) -> Result<ExitCode> {
    signals::catch();
    let engine = Engine::build()?;
    let seeds = target().join("fuzz/seeds");
    output(&mut plain(&["--seeds", &seeds.to_string_lossy()]))?;
    let workers = std::thread::available_parallelism()
        .map_or(1, usize::from)
        .min(targets.len().max(1));
    let share = time.mul_f64(workers as f64) / u32::try_from(targets.len().max(1))?;
    eprintln!(
        "=> {} targets, {workers} at a time, {:.0} s each",
        targets.len(),
        share.as_secs_f64()
    );
    let mut queue = targets.iter();
    let queue = std::sync::Mutex::new(&mut queue);
    let next = || queue.lock().expect("nobody panics holding it").next();
    let mut results: Vec<(String, Result<Stats>)> = std::thread::scope(|scope| {
        let work = || {
            let mut results = Vec::new();
            while !signals::interrupted()
                && let Some(target) = next()
            {
                let result = engine.fuzz(target, share);
                if let Ok(stats) = &result {
                    eprintln!("   {:22} {stats}", target.name);
                }
                results.push((target.name.clone(), result));
            }
            results
        };
        let threads: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        threads
            .into_iter()
            .flat_map(|thread| thread.join().expect("workers don't panic"))
            .collect()
    });
    results.sort_by(|a, b| a.0.cmp(&b.0));
    let mut failed = false;
    for (name, result) in results {
        match result {
            Ok(stats) => failed |= stats.tell_crashes(&name),
            Err(error) => {
                failed = true;
                eprintln!("   {name}: {error:#}");
            }
        }
    }
    Ok(ExitCode::from(u8::from(failed)))
}
