//! The reference against the stock filter.

#[path = "support/vectors.rs"]
mod vectors;

use lowroad_core::filter::{Action, Evaluator};

#[test]
fn the_evaluator_gives_the_stock_filters_verdict_on_every_packet() {
    let Some(cases) = vectors::read() else { return };
    let (mut ran, mut consumed, mut differ) = (0, 0, Vec::new());
    for (number, case) in cases.iter().enumerate() {
        let mut evaluator = Evaluator::new(&case.input);
        for packet in &case.packets {
            let verdict = evaluator.judge(packet.dir, &packet.hex);
            ran += 1;
            consumed += usize::from(verdict.action == Action::Consume);
            if !packet.agrees(verdict.accepted(), verdict.action == Action::Consume) {
                differ.push(format!(
                    "case {number}: {} {:?}: stock {}, ours {verdict:?}",
                    packet.what,
                    packet.dir,
                    packet.stock()
                ));
            }
        }
    }
    println!(
        "filter vectors, evaluator: {ran} packets ran, {} differ, {consumed} consumed",
        differ.len()
    );
    assert!(differ.is_empty(), "{}", differ.join("\n"));
    assert!(ran >= 1000, "only {ran} packets: is this the whole file?");
}
