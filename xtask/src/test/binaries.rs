//! Cargo's test binaries: built once, then run.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Mutex,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::tally::Tally;
use crate::{process, shell::cargo};

/// Far above what any of them needs: only a hang meets it.
const LIMIT: Duration = Duration::from_secs(20 * 60);

#[derive(Debug, Clone)]
pub struct Binary {
    pub package: String,
    pub target: String,
    pub executable: PathBuf,
    folder: PathBuf,
}

/// Builds all tests of the workspace, and the programs that the lab runs.
pub fn build() -> Result<Vec<Binary>> {
    eprintln!("=> building the tests");
    let start = Instant::now();
    let output = cargo()
        .args(["build", "--tests", "--bins", "--locked", "--workspace"])
        .args(["--exclude", "lowroad-ebpf"])
        .arg("--message-format=json-render-diagnostics")
        .stderr(Stdio::inherit())
        .output()
        .context("start cargo")?;
    if !output.status.success() {
        bail!("the tests don't build");
    }
    let mut binaries: Vec<Binary> = String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| Binary::of_message(&serde_json::from_str(line).ok()?))
        .collect();
    binaries.sort_by(|a, b| (&a.package, &a.target).cmp(&(&b.package, &b.target)));
    eprintln!(
        "   {} test binaries in {:.0} s",
        binaries.len(),
        start.elapsed().as_secs_f32()
    );
    Ok(binaries)
}

impl Binary {
    fn of_message(message: &Value) -> Option<Self> {
        let is_test = message["profile"]["test"].as_bool()?;
        let executable = PathBuf::from(message["executable"].as_str()?);
        let manifest = PathBuf::from(message["manifest_path"].as_str()?);
        let folder = manifest.parent()?.to_owned();
        is_test.then_some(Self {
            package: folder.file_name()?.to_string_lossy().into_owned(),
            target: message["target"]["name"].as_str()?.to_owned(),
            executable,
            folder,
        })
    }

    /// A binary that the VM's image holds as `<package>--<target>`.
    pub fn packed(path: &Path) -> Option<Self> {
        let name = path.file_name()?.to_str()?;
        let (package, target) = name.split_once("--")?;
        Some(Self {
            package: package.to_owned(),
            target: target.to_owned(),
            executable: path.to_owned(),
            folder: PathBuf::from("/root"),
        })
    }

    pub fn needs_root(&self) -> bool {
        self.target.starts_with("root_")
    }

    pub fn is_ebpf(&self) -> bool {
        self.target.starts_with("root_filter")
    }

    /// Tests of this binary's module `kernel` want a kernel with WireGuard: they belong to the VM's suite, whatever this
    /// machine's kernel has.
    pub fn wants_vm(&self) -> bool {
        self.target.starts_with("root_kernel")
    }

    /// Runs in the VM, too: on kernels that this machine doesn't have.
    pub fn goes_to_vm(&self) -> bool {
        self.wants_vm() || self.is_ebpf()
    }

    pub fn name(&self) -> String {
        format!("{}/{}", self.package, self.target)
    }

    pub fn run(&self, arguments: &[&str], tally: &mut Tally) -> Result<()> {
        let start = Instant::now();
        let mut command = Command::new(&self.executable);
        command
            .arg("--show-output")
            .args(arguments)
            .current_dir(&self.folder)
            .env("CARGO_MANIFEST_DIR", &self.folder);
        let finished = match process::run(&mut command, "", LIMIT) {
            Ok(finished) => finished,
            Err(error) => {
                crate::signals::check()?;
                tally.fail(&self.name(), &format!("{error:#}"));
                return Ok(());
            }
        };
        let counts = tally.add_libtest(&self.name(), &finished.stdout);
        if !finished.status.success() {
            eprintln!("{}{}", finished.stdout, finished.stderr);
        }
        if !counts.complete || (counts.failed == 0 && !finished.status.success()) {
            tally.fail(&self.name(), &format!("ended with {}", finished.status));
        }
        if counts.passed + counts.failed + counts.skipped > 0 {
            eprintln!(
                "   {:40} {:4} passed {:2} failed {:2} skipped {:6.1} s",
                self.name(),
                counts.passed,
                counts.failed,
                counts.skipped,
                start.elapsed().as_secs_f32()
            );
        }
        Ok(())
    }
}

/// Runs them two at a time, as none of them keeps two processors busy. `run` is given what one counts, and then it is added.
pub fn side_by_side(
    binaries: &[Binary],
    tally: &mut Tally,
    run: impl Fn(&Binary, &mut Tally) -> Result<()> + Sync,
) -> Result<()> {
    let (left, counted) = (Mutex::new(binaries.iter()), Mutex::new(tally));
    // Not in the loop's head: there it would stay locked while one runs.
    let next = || lock(&left).next();
    let work = || {
        while let Some(binary) = next() {
            let mut of_one = Tally::default();
            let result = run(binary, &mut of_one);
            lock(&counted).add(of_one);
            result?;
        }
        Ok(())
    };
    thread::scope(|scope| {
        let beside = scope.spawn(work);
        let here = work();
        here.and(beside.join().expect("the other thread"))
    })
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().expect("nobody panics with it")
}

/// Examples in the documentation.
pub fn documentation(tally: &mut Tally) -> Result<()> {
    let mut command = cargo();
    command.args(["test", "--doc", "--locked", "--quiet", "--workspace"]);
    command.args(["--exclude", "lowroad-ebpf", "--", "--format=pretty"]);
    let finished = process::run(&mut command, "", LIMIT)?;
    let counts = tally.add_libtest("documentation", &finished.stdout);
    if !finished.status.success() {
        eprintln!("{}{}", finished.stdout, finished.stderr);
        if counts.failed == 0 {
            tally.fail("documentation", "cargo test --doc failed");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::wait;

    #[test]
    fn two_binaries_run_at_a_time() {
        let binary = |target: &str| Binary {
            package: "some".to_owned(),
            target: target.to_owned(),
            executable: PathBuf::new(),
            folder: PathBuf::new(),
        };
        let running = AtomicUsize::new(0);
        let mut tally = Tally::default();
        let result = side_by_side(&[binary("one"), binary("other")], &mut tally, |_, tally| {
            running.fetch_add(1, Ordering::SeqCst);
            let both = || Ok((running.load(Ordering::SeqCst) == 2).then_some(()));
            wait::wait_for("the other one", Duration::from_secs(10), both)?;
            tally.pass(1);
            Ok(())
        });
        result.expect("both ran");
        assert_eq!(tally.counts(), (2, 0, 0));
    }
}
