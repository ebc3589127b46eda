//! The programs against the stock filter and against the reference, by `BPF_PROG_TEST_RUN`.

use lowroad_agent::kernel::bpf::{Filter, FilterOptions};
use lowroad_core::filter::{Evaluator, compile};

use crate::{counted, vectors};

/// A test run needs this many bytes.
const MIN_RUN: usize = 14;

#[test]
fn the_programs_give_the_stock_filters_verdict_on_every_packet() {
    let Some(cases) = vectors::read() else { return };
    let (mut ran, mut short, mut differ) = (0, 0, Vec::new());
    for (number, case) in cases.iter().enumerate() {
        let mut filter = Filter::detached(&FilterOptions::new("test", 0)).expect("load");
        filter.install(&compile(&case.input)).expect("install");
        let mut evaluator = Evaluator::new(&case.input);
        let mut before = filter.counters().expect("counters");
        for packet in &case.packets {
            let wanted = evaluator.judge(packet.dir, &packet.hex);
            if packet.hex.len() < MIN_RUN {
                short += 1;
                continue;
            }
            let got = filter.run(packet.dir, &packet.hex, 0, 1).expect("run");
            let after = filter.counters().expect("counters");
            let outcome = counted::between(&before, &after);
            before = after;
            ran += 1;
            let consumed = outcome == [(packet.dir, "consumed")];
            let right = packet.agrees(got.passed, consumed);
            if !right
                || outcome != [(packet.dir, counted::name(&wanted))]
                || got.passed != wanted.accepted()
            {
                differ.push(format!(
                    "case {number}: {} {:?}: stock {}, evaluator {wanted:?}, program {got:?} {outcome:?}",
                    packet.what, packet.dir, packet.stock()
                ));
            }
        }
    }
    println!(
        "filter vectors, eBPF: {ran} packets ran, {} differ, {short} too short for a test run",
        differ.len()
    );
    assert!(differ.is_empty(), "{}", differ.join("\n"));
    assert!(ran >= 1000, "only {ran} packets: is this the whole file?");
}
