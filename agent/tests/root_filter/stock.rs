//! The programs against the stock filter and against the reference: by `BPF_PROG_TEST_RUN`, and what is too short for that through a device.

use lowroad_agent::kernel::bpf::{Filter, FilterOptions};
use lowroad_core::filter::{Direction, Evaluator, FilterCounters, Verdict, compile};

use crate::{
    counted,
    device::end,
    property::from_env,
    tun::{Tun, eventually, fresh_namespace},
    vectors::{self, Case, Packet},
};

/// A test run needs this many bytes.
const MIN_RUN: usize = 14;

#[test]
fn the_programs_give_the_stock_filters_verdict_on_every_packet() {
    let Some(cases) = vectors::read() else { return };
    // Each loads the programs anew, which takes an emulated CPU a second.
    let wanted = from_env("LOWROAD_FILTER_CASES", cases.len());
    let step = cases.len().div_ceil(wanted.max(1));
    fresh_namespace();
    let mut tally = Tally::default();
    for (number, case) in cases.iter().enumerate().step_by(step) {
        run_case(number, case, &mut tally);
    }
    let Tally {
        ran,
        carried,
        refused,
        differ,
    } = &tally;
    println!(
        "filter vectors, eBPF: {} packets: {ran} by test run, {carried} (below {MIN_RUN} bytes) through a TUN, {} refused by the kernel before the program; {} differ",
        ran + carried + refused.len(),
        refused.len(),
        differ.len()
    );
    refused.iter().for_each(|why| println!("  {why}"));
    assert!(differ.is_empty(), "{}", differ.join("\n"));
    assert!(
        ran * step >= 1000,
        "only {ran} packets: is this the whole file?"
    );
    assert!(
        *carried > 0 || step > 1,
        "no short packet: is this the whole file?"
    );
}

#[derive(Default)]
struct Tally {
    ran: usize,
    carried: usize,
    /// What the kernel said.
    refused: Vec<String>,
    differ: Vec<String>,
}

/// One rule set, its packets in order: what went out before decides about answers, so all go through the same filter.
fn run_case(number: usize, case: &Case, tally: &mut Tally) {
    let options = FilterOptions::new(format!("test-stock-{}", std::process::id()), 0);
    let is_short = |packet: &Packet| packet.hex.len() < MIN_RUN;
    let tun = case.packets.iter().any(is_short).then(|| Tun::new("lr0"));
    let mut filter = match &tun {
        Some(tun) => Filter::attach_or_adopt(&tun.name, tun.index, &options).expect("attach"),
        None => Filter::detached(&options).expect("load"),
    };
    filter.install(&compile(&case.input)).expect("install");
    if let Some(tun) = &tun {
        tun.up("10.7.0.1/24");
    }
    let mut evaluator = Evaluator::new(&case.input);
    let mut before = filter.counters().expect("counters");
    for packet in &case.packets {
        let wanted = evaluator.judge(packet.dir, &packet.hex);
        let passed = match tun.as_ref().filter(|_| is_short(packet)) {
            None => {
                tally.ran += 1;
                let verdict = filter.run(packet.dir, &packet.hex, 0, 1).expect("run");
                Some(verdict.passed)
            }
            Some(tun) => match carry(tun, &filter, packet, &before) {
                Ok(()) => {
                    tally.carried += 1;
                    None
                }
                Err(error) => {
                    let what = format!("case {number}: {} {:?}: {error}", packet.what, packet.dir);
                    tally.refused.push(what);
                    continue;
                }
            },
        };
        let after = filter.counters().expect("counters");
        let outcome = counted::between(&before, &after);
        before = after;
        if !is_right(packet, &wanted, &outcome, passed) {
            tally.differ.push(format!(
                "case {number}: {} {:?}: stock {}, evaluator {wanted:?}, program passed {passed:?} {outcome:?}",
                packet.what, packet.dir, packet.stock()
            ));
        }
    }
    if let Some(tun) = tun {
        end(filter, tun);
    }
}

/// Through the device itself; the counters say when the program has seen it.
fn carry(
    tun: &Tun,
    filter: &Filter,
    packet: &Packet,
    before: &FilterCounters,
) -> std::io::Result<()> {
    let sent = match packet.dir {
        Direction::In => tun.try_send(&packet.hex),
        Direction::Out => tun.try_send_out(&packet.hex),
    };
    let is_seen = || !counted::between(before, &filter.counters().expect("counters")).is_empty();
    match sent {
        // A sender hears of a drop on the way out as ENOBUFS: that one was seen.
        Err(error) if !is_seen() => Err(error),
        _ => {
            eventually(&format!("{} is counted", packet.what), is_seen);
            Ok(())
        }
    }
}

/// `passed` is what a test run returned; of a carried packet the counters tell.
fn is_right(
    packet: &Packet,
    wanted: &Verdict,
    outcome: &[(Direction, &str)],
    passed: Option<bool>,
) -> bool {
    let consumed = outcome == [(packet.dir, "consumed")];
    let passed = passed.unwrap_or(wanted.accepted());
    outcome == [(packet.dir, counted::name(wanted))]
        && passed == wanted.accepted()
        && packet.agrees(passed, consumed)
}
