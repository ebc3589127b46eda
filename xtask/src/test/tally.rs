//! Counting tests.

use std::process::ExitCode;

/// `#[ignore = "a measurement…"]`: prints numbers, judges nothing, and so is no test that could be skipped.
const MEASUREMENT: &str = "a measurement";

#[derive(Debug, Default)]
pub struct Tally {
    passed: usize,
    failed: Vec<String>,
    skipped: Vec<String>,
}

impl Tally {
    pub fn pass(&mut self, count: usize) {
        self.passed += count;
    }

    pub fn fail(&mut self, what: &str, why: &str) {
        self.failed.push(if why.is_empty() {
            what.to_owned()
        } else {
            format!("{what}: {why}")
        });
    }

    /// Prints the reason at once, too: a skip is never silent.
    pub fn skip(&mut self, what: &str, why: &str) {
        eprintln!("   SKIPPED {what}: {why}");
        self.skipped.push(format!("{what}: {why}"));
    }

    pub fn counts(&self) -> (usize, usize, usize) {
        (self.passed, self.failed.len(), self.skipped.len())
    }

    pub fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed.extend(other.failed);
        self.skipped.extend(other.skipped);
    }

    /// For a host that counts what ran in a guest.
    pub fn write_lines(&self) {
        println!("TALLY passed {}", self.passed);
        for (kind, list) in [("failed", &self.failed), ("skipped", &self.skipped)] {
            for line in list {
                println!("TALLY {kind} {}", line.replace('\n', " "));
            }
        }
    }

    /// Takes one line of `write_lines` from the guest `name`; says whether it was one.
    pub fn read_line(&mut self, name: &str, line: &str) -> bool {
        let Some((kind, rest)) = line.strip_prefix("TALLY ").and_then(|l| l.split_once(' ')) else {
            return false;
        };
        match kind {
            "passed" => self.passed += rest.parse::<usize>().unwrap_or(0),
            "failed" => self.failed.push(format!("{name}: {rest}")),
            _ => self.skipped.push(format!("{name}: {rest}")),
        }
        true
    }

    /// The summary; its last line is for scripts: `N passed, N failed, N skipped`.
    pub fn print(&self) -> ExitCode {
        for (title, list) in [("failed", &self.failed), ("skipped", &self.skipped)] {
            if !list.is_empty() {
                println!("\n{title}:");
            }
            for line in list {
                println!("  {line}");
            }
        }
        let (passed, failed, skipped) = self.counts();
        println!("\n{passed} passed, {failed} failed, {skipped} skipped");
        if failed == 0 {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
    }

    /// Adds what libtest printed (`--show-output`), for the tests of `binary`.
    ///
    /// A test that cannot run prints `SKIPPED: why`, and libtest takes it for passed.
    pub fn add_libtest(&mut self, binary: &str, output: &str) -> LibtestCounts {
        let mut counts = LibtestCounts::default();
        let mut showing = "";
        let mut skipped_shown = Vec::new();
        for line in output.lines() {
            if let Some(result) = line.strip_prefix("test result: ") {
                counts.complete = true;
                counts.passed += number_before(result, " passed");
                counts.failed += number_before(result, " failed");
            } else if let Some((name, result)) = test_line(line) {
                if result == "FAILED" {
                    self.fail(&format!("{binary} {name}"), "");
                } else if let Some(why) = result.strip_prefix("ignored") {
                    let why = why.trim_start_matches([',', ' ']);
                    if why.starts_with(MEASUREMENT) {
                        eprintln!("   left out {binary} {name}: {why}");
                        continue;
                    }
                    counts.skipped += 1;
                    let why = if why.is_empty() { "ignored" } else { why };
                    self.skip(&format!("{binary} {name}"), why);
                }
            } else if let Some(report) = line.strip_prefix("REPORT: ") {
                eprintln!("   {report}");
            } else if let Some(name) = shown_test(line) {
                showing = name;
            } else if let Some(why) = line.trim().strip_prefix("SKIPPED: ")
                && !skipped_shown.contains(&showing)
            {
                skipped_shown.push(showing);
                counts.skipped += 1;
                self.skip(&format!("{binary} {showing}"), why);
            }
        }
        counts.passed = counts.passed.saturating_sub(skipped_shown.len());
        self.passed += counts.passed;
        counts
    }
}

#[derive(Debug, Default)]
pub struct LibtestCounts {
    pub passed: usize,
    pub failed: usize,
    pub skipped: usize,
    /// Libtest got as far as its result line.
    pub complete: bool,
}

/// `test some::name ... ok`
fn test_line(line: &str) -> Option<(&str, &str)> {
    line.strip_prefix("test ")?.split_once(" ... ")
}

/// `---- some::name stdout ----`
fn shown_test(line: &str) -> Option<&str> {
    line.strip_prefix("---- ")?.strip_suffix(" stdout ----")
}

fn number_before(text: &str, word: &str) -> usize {
    text.split(';')
        .find_map(|part| part.strip_suffix(word)?.rsplit(' ').next()?.parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libtest_output_is_counted_with_skips_taken_out_of_the_passed() {
        let output = "\
running 5 tests
test a::works ... ok
test a::breaks ... FAILED
test a::waits ... ignored, for a reason
test a::scale ... ignored, a measurement
test a::lacks ... ok

successes:

---- a::lacks stdout ----
SKIPPED: no samples
skipped 1

test result: FAILED. 2 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s
";
        let mut tally = Tally::default();
        let counts = tally.add_libtest("some", output);
        assert!(counts.complete);
        assert_eq!(tally.counts(), (1, 1, 2));
        assert_eq!((counts.passed, counts.failed, counts.skipped), (1, 1, 2));
    }
}
