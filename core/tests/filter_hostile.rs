//! Rule sets sent to do harm: compiling ends soon, in bounded memory, and refuses rather than admits.

use std::time::{Duration, Instant};

use lowroad_core::filter::{Compiled, Direction, Evaluator, Input, Layout, PeerFacts, compile};
use lowroad_wire::control::{FilterRule, NetPortRange, PortRange};

/// Debug builds on a busy machine take a few seconds for the worst of these.
const SOON: Duration = Duration::from_secs(60);

fn rule(sources: Vec<String>, destination: &str, first: u16, last: u16) -> FilterRule {
    FilterRule {
        src_ips: sources,
        dst_ports: vec![NetPortRange {
            ip: destination.to_owned(),
            ports: PortRange { first, last },
        }],
        ..FilterRule::default()
    }
}

fn compiled_soon(rules: Vec<FilterRule>, peers: Vec<PeerFacts>) -> Compiled {
    let input = Input {
        rules,
        peers,
        local: vec![
            "100.64.0.1/32".parse().expect("prefix"),
            "fd7a::1/128".parse().expect("prefix"),
        ],
        ..Input::default()
    };
    let begun = Instant::now();
    let compiled = compile(&input);
    assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
    compiled
}

/// IPv6 addresses and blocks of ports take more room than one entry.
#[test]
fn the_kernels_largest_table_holds_whatever_is_accepted() {
    // Each destination has 4,096 blocks of eight ports, the next smaller size of which is one port, for TCP and UDP: 65,536 entries.
    let ports = |destination: u32| FilterRule {
        src_ips: vec!["*".to_owned()],
        dst_ports: (0..4096)
            .map(|block| NetPortRange {
                ip: format!("10.77.0.{destination}"),
                ports: PortRange {
                    first: block * 16,
                    last: block * 16 + 7,
                },
            })
            .collect(),
        ..FilterRule::default()
    };
    let host6 = |n: u32| std::net::Ipv6Addr::from(0xfd7a << 112 | u128::from(n)).to_string();
    for (sources, destinations, accepted) in [(0, 17, true), (0, 18, false), (500_000, 3, false)] {
        let mut input = Input {
            rules: (1..=destinations).map(ports).collect(),
            local: vec![
                "10.77.0.0/24".parse().expect("prefix"),
                "fd7a::1/128".parse().expect("prefix"),
            ],
            ..Input::default()
        };
        if sources > 0 {
            let sources = (2..sources + 2).map(host6).collect();
            input.rules.push(rule(sources, "fd7a::1", 80, 80));
        }
        let compiled = compile(&input);
        assert_eq!(
            compiled.rules.is_empty(),
            !accepted,
            "{sources} sources, {destinations} destinations"
        );
        Layout::new(&compiled.tables, |_| 1).expect("room for what is accepted");
    }
}

fn host(n: u32) -> String {
    std::net::Ipv4Addr::from(0x6440_0000 + n).to_string()
}

#[test]
fn nested_port_ranges_of_many_sources_are_refused_as_a_whole() {
    let rules = (0..8000u16).map(|n| rule(vec![host(n.into())], "*", n, 65535 - n));
    let compiled = compiled_soon(rules.collect(), Vec::new());
    assert!(compiled.rules.is_empty());
    assert!(compiled.tables.pairs.is_empty() && compiled.tables.ports.is_empty());
    assert!(
        compiled
            .notes
            .iter()
            .any(|n| n.contains("none is in force")),
        "{:?}",
        compiled.notes.last()
    );
}

/// Each of so many ports is a piece of its own, at which the rule's sources count.
#[test]
fn many_single_ports_of_many_sources_end_soon() {
    let ports = |n: u16| NetPortRange {
        ip: "100.64.0.1".to_owned(),
        ports: PortRange {
            first: 2 * n + 1,
            last: 2 * n + 1,
        },
    };
    let sources = (2..400_000).map(host).collect();
    let rule = FilterRule {
        src_ips: sources,
        dst_ports: (0..32_767).map(ports).collect(),
        ..FilterRule::default()
    };
    let compiled = compiled_soon(vec![rule], Vec::new());
    assert_eq!(compiled.rules.len(), 1, "{:?}", compiled.notes);
    // Of TCP and UDP each, and pings.
    assert_eq!(compiled.tables.ports.len(), 2 * 32_767 + 1);
}

#[test]
fn nested_prefixes_of_many_rules_end_soon() {
    let nested = |n: u32| {
        let address = std::net::Ipv6Addr::from(u128::MAX << (128 - n.clamp(1, 127)));
        format!("{address}/{}", n.clamp(1, 127))
    };
    let rules = (0..5000u32).map(|n| rule(vec![nested(n % 128), host(n)], "*", 1, n as u16));
    compiled_soon(rules.collect(), Vec::new());
}

#[test]
fn ranges_that_stand_for_hundreds_of_prefixes_each_are_bounded() {
    let range = "::1-ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe".to_owned();
    let rules = (0..20_000).map(|_| rule(vec![range.clone()], "*", 0, 65535));
    let compiled = compiled_soon(rules.collect(), Vec::new());
    assert!(compiled.rules.is_empty());
}

#[test]
fn many_capabilities_of_many_peers_end_soon() {
    let peer = |n: u32| PeerFacts {
        addresses: vec![std::net::Ipv4Addr::from(0x6440_0000 + n).into()],
        caps: (0..10)
            .map(|c| format!("cap-{}", (n * 7 + c) % 3000))
            .collect(),
        ..PeerFacts::default()
    };
    let rules = (0..3000u32).map(|n| rule(vec![format!("cap:cap-{n}")], "*", n as u16, n as u16));
    let compiled = compiled_soon(rules.collect(), (0..5000).map(peer).collect());
    assert_eq!(compiled.rules.len(), 3000);
}

#[test]
fn what_does_not_parse_is_skipped_and_noted() {
    let sources = [
        "100.64.0.1/8",
        "1.2.3.4-::1",
        "9-8",
        "",
        "cap:",
        "*x",
        "300.1.1.1",
    ]
    .map(str::to_owned);
    let compiled = compiled_soon(
        vec![rule(sources.to_vec(), "100.64.0.1", 0, 65535)],
        Vec::new(),
    );
    assert_eq!(compiled.notes.len(), 6, "{:?}", compiled.notes);
    assert!(compiled.tables.pairs.is_empty(), "nobody is admitted");
}

#[test]
fn rules_that_admit_a_peer_without_a_signature_are_refused_as_a_whole() {
    let unsigned = PeerFacts {
        addresses: vec!["100.64.0.9".parse().expect("address")],
        unsigned_peer_api_only: true,
        ..PeerFacts::default()
    };
    let rules = vec![
        rule(vec![host(2)], "*", 0, 65535),
        rule(vec!["100.64.0.0/10".to_owned()], "*", 80, 80),
    ];
    let compiled = compiled_soon(rules, vec![unsigned]);
    assert!(compiled.rules.is_empty());
}

#[test]
fn the_reference_judges_any_bytes() {
    use rand::{Rng as _, SeedableRng as _};
    let mut rng = rand::rngs::StdRng::seed_from_u64(5);
    let mut evaluator = Evaluator::new(&Input::default());
    for _ in 0..200_000 {
        let mut packet = [0u8; 80];
        rng.fill(&mut packet[..]);
        packet[0] = if rng.random_bool(0.5) { 0x45 } else { 0x60 };
        let length = rng.random_range(0..=packet.len());
        for direction in [Direction::In, Direction::Out] {
            evaluator.judge(direction, &packet[..length]);
        }
    }
}
