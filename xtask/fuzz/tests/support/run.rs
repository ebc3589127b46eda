//! The short run: every input that is kept, and as many changed ones as the target says.

use std::{fs, time::Instant};

use lowroad_fuzz::{Corpus, Mutator, Target, check};

/// The same inputs every time. `LOWROAD_SEED` says otherwise, and `LOWROAD_FUZZ_TIMES` how many times as many.
const SEED: u64 = 0x10_3040;

pub fn run(name: &str) {
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
    let text = std::env::var(name).ok();
    text.and_then(|text| text.parse().ok()).unwrap_or(default)
}
