//! What a packet costs, by rules. How much is printed, as machines differ; that rules don't matter is asserted.

use std::time::Instant;

use lowroad_agent::kernel::bpf::{Filter, FilterOptions};
use lowroad_core::filter::{
    Direction::{self, In, Out},
    Input, compile,
};
use lowroad_wire::control::{FilterRule, NetPortRange, PortRange};

use crate::packets::{ACK, Ip, SYN, tcp, udp};

const REPEAT: u32 = 200_000;
const RUNS: usize = 5;
const MOST_RUNS: usize = 25;
/// A search through the rules would cost hundreds of times as much; caches that hold a small table cost some.
const FACTOR: u64 = 2;
const OWN: &str = "100.64.0.1";

/// Each rule has a source and a port of its own; the last is the one that the packets meet.
fn rules(count: u32) -> Vec<FilterRule> {
    let source = |n: u32| std::net::Ipv4Addr::from(0x6440_0100 + n).to_string();
    let rule = |n: u32| FilterRule {
        src_ips: vec![source(n)],
        dst_ports: vec![NetPortRange {
            ip: OWN.to_owned(),
            ports: PortRange {
                first: 1000 + n as u16,
                last: 1003 + n as u16,
            },
        }],
        ..FilterRule::default()
    };
    (1..=count).map(rule).collect()
}

/// A filter with so many rules, and the packets that meet the last of them.
struct Subject {
    rules: u32,
    filter: Filter,
    packets: [(&'static str, Direction, Vec<u8>, bool); 6],
    /// The least that each has cost so far.
    nanoseconds: [u64; 6],
}

impl Subject {
    fn new(count: u32) -> Self {
        let input = Input {
            rules: rules(count),
            local: vec!["100.64.0.1/32".parse().expect("prefix")],
            ..Input::default()
        };
        let begun = Instant::now();
        let compiled = compile(&input);
        let compiling = begun.elapsed();
        let mut filter = Filter::detached(&FilterOptions::new("test", 0)).expect("load");
        let begun = Instant::now();
        filter.install(&compiled).expect("install");
        println!(
            "{count:>6} rules: compile {compiling:?}, install {:?}",
            begun.elapsed()
        );
        let source = &input.rules.last().expect("a rule").src_ips[0];
        let port = 1000 + count as u16;
        let from = |protocol, payload: &[u8]| Ip::new(source, OWN, protocol, payload).bytes();
        let to = Ip::new(OWN, source, 17, &udp(7, 7, b"x")).bytes();
        Self {
            rules: count,
            filter,
            packets: [
                ("SYN by rule", In, from(6, &tcp(1, port, SYN)), true),
                ("TCP established", In, from(6, &tcp(1, port, ACK)), true),
                ("UDP by rule", In, from(17, &udp(1, port, b"x")), true),
                ("refused", In, from(17, &udp(1, 1, b"x")), false),
                ("UDP out", Out, to, true),
                ("UDP answer", In, from(17, &udp(7, 7, b"x")), true),
            ],
            nanoseconds: [u64::MAX; 6],
        }
    }

    fn measure(&mut self) {
        for (packet, least) in self.packets.iter().zip(&mut self.nanoseconds) {
            let (name, direction, bytes, passes) = packet;
            let got = self.filter.run(*direction, bytes, 0, REPEAT).expect("run");
            assert_eq!(got.passed, *passes, "{name} with {} rules", self.rules);
            *least = got.nanoseconds.min(*least);
        }
    }
}

#[test]
fn a_packet_costs_the_same_however_many_rules_there_are() {
    let mut subjects = [1, 100, 10_000].map(Subject::new);
    let mut rounds = 0;
    // In turns, and again while something else on this machine may be what costs more.
    let costs_the_same = loop {
        subjects.iter_mut().for_each(Subject::measure);
        rounds += 1;
        let [few, .., many] = &subjects;
        let mut both = few.nanoseconds.iter().zip(&many.nanoseconds);
        let same = both.all(|(few, many)| *many <= FACTOR * few);
        if rounds >= RUNS && (same || rounds >= MOST_RUNS) {
            break same;
        }
    };
    for subject in &subjects {
        let named = subject.packets.iter().zip(subject.nanoseconds);
        let costs: Vec<String> = named.map(|(p, ns)| format!("{} {ns}", p.0)).collect();
        println!(
            "{:>6} rules, ns a packet: {}",
            subject.rules,
            costs.join(", ")
        );
    }
    assert!(
        costs_the_same,
        "with 10,000 rules more than {FACTOR} times as with one: {:?}",
        subjects.map(|s| s.nanoseconds)
    );
}
