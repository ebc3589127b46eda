//! Random rules and packets: the programs do what the reference does, outcome and rule alike.

use std::{collections::BTreeMap, str::FromStr};

use lowroad_agent::kernel::bpf::{Filter, FilterOptions};
use lowroad_core::filter::{Evaluator, RuleId, compile};
use rand::{SeedableRng as _, rngs::StdRng};

use crate::{counted, generate};

/// Rule sets, and packets under each. `LOWROAD_FILTER_CASES` and `LOWROAD_SEED` say otherwise.
const CASES: u64 = 80;
const PACKETS: usize = 250;
/// Rule sets that one filter has in turn: flows outlive them.
const IN_TURN: u64 = 4;
const SEED: u64 = 0x10_3040;

#[test]
fn random_packets_under_random_rules_are_judged_as_by_the_reference() {
    let seed = from_env("LOWROAD_SEED", SEED);
    let cases = from_env("LOWROAD_FILTER_CASES", CASES);
    let mut outcomes: BTreeMap<&str, u64> = BTreeMap::new();
    for case in 0..cases.div_ceil(IN_TURN) {
        let mut rng = StdRng::seed_from_u64(seed.wrapping_add(case));
        let mut filter = Filter::detached(&FilterOptions::new("test", 0)).expect("load");
        let mut evaluator: Option<Evaluator> = None;
        let mut sent = Vec::new();
        for _ in 0..IN_TURN {
            let input = generate::input(&mut rng);
            let compiled = compile(&input);
            assert_eq!(compiled, compile(&input), "compiling is deterministic");
            filter.install(&compiled).expect("install");
            match &mut evaluator {
                Some(evaluator) => evaluator.replace(&input),
                None => evaluator = Some(Evaluator::new(&input)),
            }
            let evaluator = evaluator.as_mut().expect("made above");
            let started = filter.counters().expect("counters");
            let mut before = started.clone();
            let mut admitted: BTreeMap<RuleId, u64> = BTreeMap::new();
            for _ in 0..PACKETS {
                let (direction, packet) = generate::packet(&mut rng, &mut sent);
                if packet.len() < 14 {
                    continue;
                }
                let wanted = evaluator.judge(direction, &packet);
                let got = filter.run(direction, &packet, 0, 1).expect("run");
                let after = filter.counters().expect("counters");
                assert!(
                    counted::between(&before, &after) == [(direction, counted::name(&wanted))]
                        && got.passed == wanted.accepted(),
                    "LOWROAD_SEED={} {direction:?}: evaluator {wanted:?}, program {got:?}\n{packet:02x?}\n{input:#?}",
                    seed.wrapping_add(case)
                );
                before = after;
                if let Some(rule) = wanted.rule {
                    *admitted.entry(rule).or_default() += 1;
                }
                *outcomes.entry(counted::name(&wanted)).or_default() += 1;
            }
            for (start, end) in started.rules.iter().zip(&before.rules) {
                let counted = end.count.packets - start.count.packets;
                let wanted = admitted.remove(&end.rule).unwrap_or(0);
                assert_eq!(
                    counted,
                    wanted,
                    "LOWROAD_SEED={}: packets of rule {} ({}) of\n{input:#?}",
                    seed.wrapping_add(case),
                    end.rule,
                    end.text
                );
            }
            assert!(admitted.is_empty(), "rules without a counter: {admitted:?}");
        }
    }
    println!("random packets by outcome (seed {seed:#x}): {outcomes:?}");
}

pub fn from_env<T: FromStr>(name: &str, default: T) -> T {
    std::env::var(name)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(default)
}
