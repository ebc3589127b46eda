//! What a packet costs, by rules. Printed, not asserted: machines differ.

use lowroad_agent::kernel::bpf::{Filter, FilterOptions};
use lowroad_core::filter::{Direction, Input, compile};
use lowroad_wire::control::{FilterRule, NetPortRange, PortRange};

use crate::packets::{ACK, Ip, SYN, tcp, udp};

const REPEAT: u32 = 200_000;
const RUNS: usize = 5;
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

#[test]
fn a_packet_costs_the_same_however_many_rules_there_are() {
    for count in [1u32, 100, 10_000] {
        let input = Input {
            rules: rules(count),
            local: vec!["100.64.0.1/32".parse().expect("prefix")],
            ..Input::default()
        };
        let begun = std::time::Instant::now();
        let compiled = compile(&input);
        let compiling = begun.elapsed();
        let mut filter = Filter::detached(&FilterOptions::new("test", 0)).expect("load");
        let begun = std::time::Instant::now();
        filter.install(&compiled).expect("install");
        let installing = begun.elapsed();
        let source = &input.rules.last().expect("a rule").src_ips[0];
        let port = 1000 + count as u16;
        let mut cost = |direction, ip: Ip, passes| {
            let packet = ip.bytes();
            let runs = (0..RUNS).map(|_| {
                let got = filter.run(direction, &packet, 0, REPEAT).expect("run");
                assert_eq!(got.passed, passes);
                got.nanoseconds
            });
            runs.min().expect("some runs")
        };
        let syn = cost(
            Direction::In,
            Ip::new(source, OWN, 6, &tcp(1, port, SYN)),
            true,
        );
        let established = cost(
            Direction::In,
            Ip::new(source, OWN, 6, &tcp(1, port, ACK)),
            true,
        );
        let admitted = cost(
            Direction::In,
            Ip::new(source, OWN, 17, &udp(1, port, b"x")),
            true,
        );
        let refused = cost(
            Direction::In,
            Ip::new(source, OWN, 17, &udp(1, 1, b"x")),
            false,
        );
        let out = cost(
            Direction::Out,
            Ip::new(OWN, source, 17, &udp(7, 7, b"x")),
            true,
        );
        let answer = cost(
            Direction::In,
            Ip::new(source, OWN, 17, &udp(7, 7, b"x")),
            true,
        );
        println!(
            "{count:>6} rules: compile {compiling:?}, install {installing:?}; ns a packet: SYN by rule {syn}, TCP established {established}, UDP by rule {admitted}, \
             refused {refused}, UDP out {out}, UDP answer {answer}"
        );
    }
}
