//! The kernel programs against the stock filter and against the reference, by `BPF_PROG_TEST_RUN`. Needs root.

#[path = "../../core/tests/support/vectors.rs"]
mod vectors;

use lowroad_agent::kernel::bpf::{Filter, FilterOptions};
use lowroad_core::filter::{Action, Direction, Evaluator, FilterCounters, compile};

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
            let outcome = counted(packet.dir, &before, &after);
            before = after;
            ran += 1;
            let consumed = outcome == ["consumed"];
            let right = packet.agrees(got.passed, consumed);
            if !right || outcome != [name(wanted.action)] || got.passed != wanted.accepted() {
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

fn name(action: Action) -> &'static str {
    match action {
        Action::Accept(pass) => pass.name(),
        Action::Drop(reason) => reason.name(),
        Action::Consume => "consumed",
    }
}

/// Outcomes counted between two readings.
fn counted(
    direction: Direction,
    before: &FilterCounters,
    after: &FilterCounters,
) -> Vec<&'static str> {
    let passed = before.passed.iter().zip(&after.passed);
    let passed = passed.filter(|(b, a)| a.0 == direction && a.2.packets == b.2.packets + 1);
    let dropped = before.dropped.iter().zip(&after.dropped);
    let dropped = dropped.filter(|(b, a)| a.0 == direction && a.2.packets == b.2.packets + 1);
    let names = passed.map(|(_, a)| a.1.name());
    names.chain(dropped.map(|(_, a)| a.1.name())).collect()
}
