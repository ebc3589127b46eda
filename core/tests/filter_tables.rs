//! The compiled tables, looked up as the kernel programs do, admit what the reference admits, by the same rule.

#[path = "support/generate.rs"]
mod generate;
#[path = "support/lookup.rs"]
mod lookup;
#[path = "support/packets.rs"]
#[expect(dead_code, reason = "the tests of `agent` use the rest")]
mod packets;

use std::collections::BTreeMap;

use lookup::Lookup;
use lowroad_core::filter::{Action, DropReason, Evaluator, Layout, Pass, compile};
use rand::{SeedableRng as _, rngs::StdRng};

const CASES: u64 = 300;
const PACKETS: usize = 200;

#[test]
fn tables_admit_by_the_rule_that_the_reference_names() {
    let mut compared: BTreeMap<&str, u32> = BTreeMap::new();
    for seed in 0..CASES {
        let mut rng = StdRng::seed_from_u64(seed);
        let input = generate::input(&mut rng);
        let compiled = compile(&input);
        Layout::new(&compiled.tables, |_| 1).expect("room for what is accepted");
        let lookup = Lookup::new(&compiled);
        let mut evaluator = Evaluator::new(&input);
        for _ in 0..PACKETS {
            let (direction, packet) = generate::packet(&mut rng, &mut Vec::new());
            let verdict = evaluator.judge(direction, &packet);
            let outcome = match verdict.action {
                Action::Accept(Pass::Rule) => "rule",
                Action::Drop(DropReason::Acl | DropReason::ShieldsUp) => "refused",
                // Decided by something else than tables of rules.
                _ => continue,
            };
            let found = lookup.rule(&packet);
            let wanted = lookup.key(verdict.rule);
            assert_eq!(found, wanted, "seed {seed}: {packet:02x?}\n{input:#?}");
            *compared.entry(outcome).or_default() += 1;
        }
    }
    println!("{compared:?}");
    assert!(
        compared["rule"] > 500 && compared["refused"] > 500,
        "{compared:?}"
    );
}
