//! The short run: every input that is kept, and as many changed ones as the target says.

use std::{env, fs, process::Command, time::Instant};

use lowroad_fuzz::{Corpus, Mutator, Target, check};

/// The same inputs every time. `LOWROAD_SEED` says otherwise, and `LOWROAD_FUZZ_TIMES` how many times as many.
const SEED: u64 = 0x10_3040;

/// Set in the process that runs one test.
const ALONE: &str = "LOWROAD_FUZZ_ALONE";

/// The target in a process of its own, as nothing else may be counted as its doing: `test` once more, alone.
pub fn run(test: &str, name: &str) {
    if env::var_os(ALONE).is_some() {
        return run_here(name);
    }
    let program = env::current_exe().expect("a test is a program");
    let mut command = Command::new(program);
    command
        .args(["--exact", test, "--nocapture"])
        .env(ALONE, "1");
    let output = command.output().expect("it can be run again");
    let said = String::from_utf8_lossy(&output.stdout);
    for line in said.lines().filter(|line| line.starts_with("REPORT:")) {
        println!("{line}");
    }
    assert!(
        output.status.success() && said.contains("1 passed"),
        "{said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn run_here(name: &str) {
    let target = Target::find(name).expect("a target of this name");
    let corpus = Corpus::read(target).expect("its corpus is committed");
    assert!(!corpus.inputs.is_empty(), "no inputs for {name}");
    let start = Instant::now();
    for (file, input) in &corpus.inputs {
        judge(target, file, input);
    }
    let inputs: Vec<Vec<u8>> = corpus.inputs.into_iter().map(|(_, input)| input).collect();
    let mut mutator = Mutator::new(from_env("LOWROAD_SEED", SEED));
    let changed = target.mutations * from_env("LOWROAD_FUZZ_TIMES", 1) as usize;
    for number in 0..changed {
        let input = mutator.next(&inputs, target.max_len);
        judge(target, &format!("changed-{number}"), &input);
    }
    println!(
        "REPORT: fuzz {name}: {} inputs of the corpus and {} changed ones in {:.1} s",
        inputs.len(),
        changed,
        start.elapsed().as_secs_f32()
    );
}

fn judge(target: &Target, file: &str, input: &[u8]) {
    if let Err(failure) = check(target, input) {
        let kept = format!("{}/{}-{file}", env!("CARGO_TARGET_TMPDIR"), target.name);
        fs::write(&kept, input).expect("the target folder can be written to");
        panic!(
            "{} on {file}: {failure}\nagain: cargo xtask fuzz {} {kept}",
            target.name, target.name
        );
    }
}

fn from_env(name: &str, default: u64) -> u64 {
    let text = env::var(name).ok();
    text.and_then(|text| text.parse().ok()).unwrap_or(default)
}
