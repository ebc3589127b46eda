//! The instrumented build, and libFuzzer's command line.

use std::{
    fmt, fs,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use super::{Target, folder, keep};
use crate::{
    apt, process,
    shell::{cargo, find_program, step},
    workspace::{lock_tools, root, target},
};

/// What the stable compiler can do: counters per edge with their places, and compared values.
const COVERAGE: &[&str] = &[
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
];
/// Named, so that build scripts and macros stay without instrumentation.
const TRIPLE: &str = "x86_64-unknown-linux-gnu";
/// As tokio's threads have it: what overflows there overflows here.
const STACK: u64 = 2 << 20;
/// Beyond a target's own limits: the whole process, C libraries included.
const RSS_MB: u32 = 2048;
/// An input that takes longer hangs.
const HANG_SECONDS: u32 = 60;

#[derive(Debug)]
pub struct Engine(PathBuf);

/// What a run did.
#[derive(Debug, Default)]
pub struct Stats {
    executions: u64,
    coverage: String,
    seconds: f32,
    kept: keep::Kept,
    crashes: Vec<PathBuf>,
}

impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:9} executions in {:4.0} s, {}, corpus {} inputs of {} bytes, {} crashes",
            self.executions,
            self.seconds,
            self.coverage,
            self.kept.inputs,
            self.kept.bytes,
            self.crashes.len()
        )
    }
}

impl Stats {
    /// True if there are any.
    pub fn tell_crashes(&self, name: &str) -> bool {
        for crash in &self.crashes {
            eprintln!(
                "   FAILED {name}; again: cargo xtask fuzz {name} {}",
                crash.display()
            );
        }
        !self.crashes.is_empty()
    }
}

impl Engine {
    pub fn build() -> Result<Self> {
        const COMPILER: &[(&str, &str)] = &[("c++", "g++")];
        if find_program(COMPILER[0].0).is_none() {
            let _lock = lock_tools()?;
            apt::install_programs(COMPILER)?;
        }
        let folder = target().join("fuzz");
        step(
            "building the targets with instrumentation (minutes, the first time)",
            cargo()
                .args(["build", "--locked", "--profile", "fuzz", "--target", TRIPLE])
                .args(["--package", "lowroad-fuzz", "--features", "engine"])
                .args(["--bin", "lowroad-fuzz-engine", "--target-dir"])
                .arg(&folder)
                .env_remove("RUSTFLAGS")
                .env("CARGO_ENCODED_RUSTFLAGS", COVERAGE.join("\x1f")),
        )?;
        Ok(Self(folder.join(TRIPLE).join("fuzz/lowroad-fuzz-engine")))
    }

    fn command(&self, target: &Target) -> Command {
        let mut command = Command::new(&self.0);
        command
            .current_dir(root())
            .env("LOWROAD_FUZZ_TARGET", &target.name)
            .env("RUST_BACKTRACE", "0")
            .arg(format!("-max_len={}", target.max_len))
            .arg(format!("-rss_limit_mb={RSS_MB}"))
            .arg(format!("-timeout={HANG_SECONDS}"));
        // SAFETY: setrlimit is async-signal-safe, and reads a local.
        unsafe {
            command.pre_exec(|| {
                let limit = libc::rlimit {
                    rlim_cur: STACK,
                    rlim_max: libc::RLIM_INFINITY,
                };
                if libc::setrlimit(libc::RLIMIT_STACK, &limit) != 0 {
                    return Err(std::io::Error::last_os_error());
                }
                Ok(())
            });
        }
        command
    }

    /// Fuzzes for `time`, or until a crash; then takes what is new into the corpus.
    pub fn fuzz(&self, target: &Target, time: Duration) -> Result<Stats> {
        let start = Instant::now();
        let (found, crashes) = (
            folder("found", &target.name)?,
            folder("crashes", &target.name)?,
        );
        let known = listed(&crashes)?;
        let sources = [
            found,
            keep::folder(&target.name)?,
            folder("seeds", &target.name)?,
        ];
        let mut command = self.command(target);
        command
            .arg(format!("-max_total_time={}", time.as_secs().max(1)))
            .arg(format!("-artifact_prefix={}/", crashes.display()))
            .args(["-print_final_stats=1", "-use_value_profile=1"])
            .args(&sources);
        let finished = process::run(&mut command, "", time * 2 + Duration::from_secs(300))?;
        let crashes: Vec<PathBuf> = listed(&crashes)?
            .into_iter()
            .filter(|file| !known.contains(file))
            .collect();
        if crashes.is_empty() && !finished.status.success() {
            let lines: Vec<&str> = finished.stderr.lines().collect();
            bail!(
                "libFuzzer ended with {}:\n{}",
                finished.status,
                lines[lines.len().saturating_sub(15)..].join("\n")
            );
        }
        let mut stats = Stats {
            executions: number_after(&finished.stderr, "stat::number_of_executed_units:"),
            coverage: coverage(&finished.stderr),
            seconds: start.elapsed().as_secs_f32(),
            crashes,
            kept: keep::Kept::default(),
        };
        stats.kept = self.keep(target, &sources)?;
        Ok(stats)
    }

    /// The smallest inputs that reach all that is reached, within the corpus's bound; named ones stay.
    fn keep(&self, target: &Target, sources: &[PathBuf]) -> Result<keep::Kept> {
        let merged = folder("merged", &target.name)?;
        fs::remove_dir_all(&merged)?;
        fs::create_dir_all(&merged)?;
        keep::copy_named(&target.name, &merged)?;
        let mut command = self.command(target);
        command.arg("-merge=1").arg(&merged).args(sources);
        process::run(&mut command, "", Duration::from_secs(1200))?.ok("merging the corpus")?;
        keep::replace(&target.name, &merged)
    }
}

fn listed(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))?;
    Ok(entries.flatten().map(|entry| entry.path()).collect())
}

fn number_after(text: &str, word: &str) -> u64 {
    let line = text.lines().rev().find_map(|line| line.strip_prefix(word));
    line.and_then(|number| number.trim().parse().ok())
        .unwrap_or_default()
}

/// `cov: 1234 ft: 5678` of the last line that says so.
fn coverage(text: &str) -> String {
    let words = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let at = words.iter().position(|word| *word == "cov:")?;
        words.get(at..at + 4).map(|words| words.join(" "))
    };
    text.lines().rev().find_map(words).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libfuzzers_words_are_understood() {
        let text = "#1\tINITED cov: 10 ft: 11 corp: 1/1b\n#200\tDONE   cov: 4321 ft: 9876 corp: 5/50b lim: 4 exec/s: 9\nstat::number_of_executed_units: 200\n";
        assert_eq!(coverage(text), "cov: 4321 ft: 9876");
        assert_eq!(number_after(text, "stat::number_of_executed_units:"), 200);
    }
}
