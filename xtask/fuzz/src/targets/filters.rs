//! Packet filters: rules of others, packets of others, tables and the programs that look things up in them.

use std::{cell::RefCell, net::IpAddr};

use lowroad_agent::kernel::bpf::{Filter, FilterOptions};
use lowroad_core::filter::{
    Action, Direction, DropReason, Evaluator, FilterCounters, Input, Pass, Verdict, compile,
};
use lowroad_wire::control::FilterRule;
use rand::{SeedableRng, rngs::StdRng};

use super::{events, generate, lookup::Lookup};
use crate::script::Script;

/// Rules as a control server writes them, in JSON, then packets: tables and evaluator admit the same, nothing is admitted that no rule names,
/// and shields or an unreadable rule never open anything.
pub fn filter_rules(input: &[u8]) {
    let (rules, packets) = input.split_at(
        input
            .iter()
            .position(|byte| *byte == 0)
            .unwrap_or(input.len()),
    );
    let Ok(rules) = serde_json::from_slice::<Vec<FilterRule>>(rules) else {
        return;
    };
    let mut world = generate::input(&mut StdRng::seed_from_u64(1));
    world.rules = rules;
    world.shields_up = false;
    let compiled = compile(&world);
    for rule in &compiled.rules {
        assert!((rule.id.0 as usize) < world.rules.len());
    }
    let lookup = Lookup::new(&compiled);
    let mut open = Evaluator::new(&world);
    let mut shut = Evaluator::new(&Input {
        shields_up: true,
        ..world.clone()
    });
    let mut none = Evaluator::new(&Input {
        rules: Vec::new(),
        ..world.clone()
    });
    let mut random = StdRng::seed_from_u64(
        packets
            .iter()
            .fold(7, |sum, byte| sum * 31 % 0xffff_fffb + u64::from(*byte)),
    );
    let mut sent = Vec::new();
    for _ in 0..12 {
        let (direction, packet) = generate::packet(&mut random, &mut sent);
        let verdict = open.judge(direction, &packet);
        assert!(verdict.rule.is_none() || direction == Direction::In);
        for closed in [&mut shut, &mut none] {
            let verdict = closed.judge(direction, &packet);
            assert!(
                verdict.rule.is_none() && verdict.action != Action::Accept(Pass::Rule),
                "admitted without a rule in force"
            );
        }
        if matches!(
            verdict.action,
            Action::Accept(Pass::Rule) | Action::Drop(DropReason::Acl)
        ) {
            assert_eq!(
                lookup.rule(&packet),
                lookup.key(verdict.rule),
                "{packet:02x?}"
            );
        }
    }
}

pub fn filter_rules_seeds() -> Vec<Vec<u8>> {
    let mut seeds: Vec<Vec<u8>> = (0..24)
        .map(|seed| {
            let rules = generate::input(&mut StdRng::seed_from_u64(seed)).rules;
            let mut bytes = serde_json::to_vec(&rules).expect("rules can be written");
            bytes.extend([0, seed as u8]);
            bytes
        })
        .collect();
    seeds.push(br#"[{"SrcIPs":["::1-ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe"],"DstPorts":[{"IP":"*","Ports":{"First":65535,"Last":0}}],"IPProto":[-1,256]}]"#.to_vec());
    seeds
}

/// Packets of any shape under fixed rules: judged without a panic, and the same in tables and evaluator. And records of what the
/// programs report of packets.
pub fn packets(input: &[u8]) {
    events::events(input);
    let mut script = Script::new(input);
    let world = generate::input(&mut StdRng::seed_from_u64(u64::from(script.byte() & 7)));
    let mut evaluator = Evaluator::new(&world);
    let compiled = compile(&world);
    let lookup = Lookup::new(&compiled);
    while !script.is_empty() {
        let direction = direction(&mut script);
        let packet = script.bytes(120);
        let verdict = evaluator.judge(direction, packet);
        if direction == Direction::In
            && matches!(
                verdict.action,
                Action::Accept(Pass::Rule) | Action::Drop(DropReason::Acl)
            )
        {
            assert_eq!(lookup.rule(packet), lookup.key(verdict.rule));
        }
        local_only(&world, direction, packet, &verdict);
    }
}

/// What a rule admits is for one of our prefixes.
fn local_only(world: &Input, direction: Direction, packet: &[u8], verdict: &Verdict) {
    if direction == Direction::In && verdict.action == Action::Accept(Pass::Rule) {
        let destination = destination(packet);
        assert!(
            world.local.iter().any(|net| net.contains(&destination)),
            "{destination} is not ours"
        );
    }
}

fn destination(packet: &[u8]) -> IpAddr {
    if packet[0] >> 4 == 4 {
        <[u8; 4]>::try_from(&packet[16..20])
            .expect("four bytes")
            .into()
    } else {
        <[u8; 16]>::try_from(&packet[24..40])
            .expect("sixteen bytes")
            .into()
    }
}

fn script_of_packets(seed: u64) -> Vec<u8> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut out = vec![seed as u8];
    let mut sent = Vec::new();
    for _ in 0..10 {
        let (direction, packet) = generate::packet(&mut random, &mut sent);
        let packet = &packet[..packet.len().min(120)];
        out.extend([u8::from(direction == Direction::In), packet.len() as u8]);
        out.extend_from_slice(packet);
    }
    out
}

pub fn packets_seeds() -> Vec<Vec<u8>> {
    let mut seeds = ebpf_seeds();
    seeds.extend(events::records());
    seeds
}

pub fn ebpf_seeds() -> Vec<Vec<u8>> {
    (0..24).map(script_of_packets).collect()
}

thread_local! {
    static LOADED: RefCell<Option<Filter>> = const { RefCell::new(None) };
}

/// The same script through the programs in the kernel, by test run: the same verdict and the same counter as the evaluator's.
pub fn ebpf(input: &[u8]) {
    let mut script = Script::new(input);
    let world = generate::input(&mut StdRng::seed_from_u64(u64::from(script.byte() & 7)));
    let mut filter = LOADED.take().unwrap_or_else(|| {
        Filter::detached(&FilterOptions::new("fuzz", 0)).expect("the programs load")
    });
    // Raised shields make the programs forget the flows of the input before.
    for world in [
        &Input {
            shields_up: true,
            ..world.clone()
        },
        &world,
    ] {
        filter
            .install(&compile(world))
            .expect("the tables are taken");
    }
    let mut evaluator = Evaluator::new(&world);
    let mut before = filter.counters().expect("counters");
    while !script.is_empty() {
        let direction = direction(&mut script);
        let packet = script.bytes(120);
        if !fits_a_test_run(packet) {
            continue;
        }
        let wanted = evaluator.judge(direction, packet);
        let got = filter.run(direction, packet, 0, 1).expect("a test run");
        let after = filter.counters().expect("counters");
        assert_eq!(
            got.passed,
            wanted.accepted(),
            "{direction:?} {wanted:?} {packet:02x?}"
        );
        assert_eq!(
            changed(&before, &after),
            [(direction, wanted.outcome())],
            "{wanted:?} {packet:02x?}"
        );
        before = after;
    }
    LOADED.set(Some(filter));
}

/// A test run takes the first 14 bytes for an Ethernet header too, and no less than an IP header behind one of its type.
fn fits_a_test_run(packet: &[u8]) -> bool {
    match packet.get(12..14) {
        Some([0x08, 0x00]) => packet.len() >= 14 + 20,
        Some([0x86, 0xdd]) => packet.len() >= 14 + 40,
        kind => kind.is_some(),
    }
}

/// The outcomes that were counted in between.
fn changed(before: &FilterCounters, after: &FilterCounters) -> Vec<(Direction, u8)> {
    let outcomes = |counters: &FilterCounters| {
        let passed = counters
            .passed
            .iter()
            .map(|(direction, pass, count)| (*direction, *pass as u8, count.packets));
        let dropped = counters
            .dropped
            .iter()
            .map(|(direction, reason, count)| (*direction, *reason as u8, count.packets));
        passed.chain(dropped).collect::<Vec<_>>()
    };
    let pairs = outcomes(before).into_iter().zip(outcomes(after));
    pairs
        .flat_map(|((direction, outcome, old), (.., new))| {
            (old..new).map(move |_| (direction, outcome))
        })
        .collect()
}

fn direction(script: &mut Script) -> Direction {
    if script.flag() {
        Direction::In
    } else {
        Direction::Out
    }
}
