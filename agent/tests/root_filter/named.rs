//! Packets with names: packet in, what becomes of it. By test run and by the reference.

use lowroad_agent::kernel::bpf::{Filter, FilterOptions};
use lowroad_core::filter::{
    Direction::{self, In, Out},
    Evaluator, Input, PeerFacts, RuleId, compile,
};
use lowroad_wire::control::FilterRule;

use crate::{
    counted,
    packets::{ACK, Ip, SYN, SYN_ACK, disco, icmp, sctp, tcp, udp},
};

const OWN: &str = "100.64.0.1";
const OWN6: &str = "fd7a:115c:a1e0::1";
const PEER: &str = "100.64.0.2";
const PEER6: &str = "fd7a:115c:a1e0::2";
const OPS: &str = "100.64.0.3";
const JAILED: &str = "100.64.0.4";
const STRANGER: &str = "100.64.0.5";
const BEHIND: &str = "10.77.0.9";
const DISCO: [u8; 32] = [0xd5; 32];

const GRE: u8 = 47;
const HOP_BY_HOP: u8 = 0;
const DESTINATION_OPTIONS: u8 = 60;

pub fn input() -> Input {
    let rules = r#"[
        {"SrcIPs": ["100.64.0.2"], "DstPorts": [{"IP": "100.64.0.1", "Ports": {"First": 80, "Last": 443}}], "IPProto": [6]},
        {"SrcIPs": ["*"], "DstPorts": [{"IP": "100.64.0.1", "Ports": {"First": 53, "Last": 53}}]},
        {"SrcIPs": ["100.64.0.0/10"], "DstPorts": [{"IP": "10.77.0.0/24", "Ports": {"First": 0, "Last": 65535}}], "IPProto": [47]},
        {"SrcIPs": ["cap:example.com/ops"], "DstPorts": [{"IP": "100.64.0.1", "Ports": {"First": 22, "Last": 22}}]},
        {"SrcIPs": ["fd7a:115c:a1e0::2"], "DstPorts": [{"IP": "fd7a:115c:a1e0::1", "Ports": {"First": 0, "Last": 65535}}]}
    ]"#;
    let rules: Vec<FilterRule> = serde_json::from_str(rules).expect("rules");
    let peer = |address: &str, caps: &[&str], jailed| PeerFacts {
        addresses: vec![address.parse().expect("address")],
        allowed_ips: vec![format!("{address}/32").parse().expect("prefix")],
        caps: caps.iter().map(|c| (*c).to_owned()).collect(),
        jailed,
        unsigned_peer_api_only: false,
    };
    Input {
        rules,
        local: ["100.64.0.1/32", "fd7a:115c:a1e0::1/128", "10.77.0.0/24"]
            .map(|n| n.parse().expect("prefix"))
            .to_vec(),
        peers: vec![
            peer(PEER, &[], false),
            peer(OPS, &["example.com/ops"], false),
            peer(JAILED, &[], true),
        ],
        own_addresses: [OWN, OWN6].map(|a| a.parse().expect("address")).to_vec(),
        peer_api_port: Some(4711),
        shields_up: false,
        disco: Some(DISCO),
    }
}

pub type Row = (&'static str, Direction, Ip, &'static str, Option<u32>);

fn ip(source: &str, destination: &str, protocol: u8, payload: &[u8]) -> Ip {
    Ip::new(source, destination, protocol, payload)
}

/// In order: what goes out lets answers in.
pub fn rows() -> impl Iterator<Item = Row> {
    transport_rows().into_iter().chain(other_rows())
}

#[rustfmt::skip]
fn transport_rows() -> Vec<Row> {
    vec![
        ("a SYN that a rule admits", In, ip(PEER, OWN, 6, &tcp(4000, 80, SYN)), "rule", Some(0)),
        ("the last port of a range", In, ip(PEER, OWN, 6, &tcp(4000, 443, SYN)), "rule", Some(0)),
        ("one port beyond", In, ip(PEER, OWN, 6, &tcp(4000, 444, SYN)), "acl", None),
        ("a SYN of somebody else", In, ip(STRANGER, OWN, 6, &tcp(4000, 80, SYN)), "acl", None),
        ("a SYN with ECN bits", In, ip(PEER, OWN, 6, &tcp(4000, 444, SYN | 0xc0)), "acl", None),
        ("a SYN with ACK is an answer", In, ip(STRANGER, OWN, 6, &tcp(80, 4000, SYN_ACK)), "tcp_established", None),
        ("TCP that has begun", In, ip(STRANGER, OWN, 6, &tcp(4000, 80, ACK)), "tcp_established", None),
        ("UDP for everybody", In, ip(STRANGER, OWN, 17, &udp(4000, 53, b"q")), "rule", Some(1)),
        ("UDP where only TCP is admitted", In, ip(PEER, OWN, 17, &udp(4000, 80, b"q")), "acl", None),
        ("UDP to a port that nobody may", In, ip(PEER, OWN, 17, &udp(9, 9000, b"q")), "acl", None),
        ("UDP out", Out, ip(OWN, PEER, 17, &udp(9000, 9, b"q")), "outbound", None),
        ("its answer", In, ip(PEER, OWN, 17, &udp(9, 9000, b"a")), "flow", None),
        ("an answer from another port", In, ip(PEER, OWN, 17, &udp(10, 9000, b"a")), "acl", None),
        ("SCTP out", Out, ip(OWN, PEER, 132, &sctp(9000, 9)), "outbound", None),
        ("its answer by SCTP", In, ip(PEER, OWN, 132, &sctp(9, 9000)), "flow", None),
        ("a capability's port", In, ip(OPS, OWN, 6, &tcp(4000, 22, SYN)), "rule", Some(3)),
        ("the same port without it", In, ip(PEER, OWN, 6, &tcp(4000, 22, SYN)), "acl", None),
        ("to a routed prefix by GRE", In, ip(PEER, BEHIND, GRE, &[0; 8]), "rule", Some(2)),
        ("to a routed prefix by TCP", In, ip(PEER, BEHIND, 6, &tcp(4000, 80, SYN)), "acl", None),
        ("to nowhere here", In, ip(PEER, "8.8.8.8", 6, &tcp(4000, 80, ACK)), "not_local", None),
        ("the peer API for a stranger", In, ip(STRANGER, OWN, 6, &tcp(4000, 4711, SYN)), "peer_api", None),
        ("the peer API's port elsewhere", In, ip(STRANGER, BEHIND, 6, &tcp(4000, 4711, SYN)), "acl", None),
        ("a jailed peer begins", In, ip(JAILED, OWN, 17, &udp(4000, 53, b"q")), "jailed", None),
        ("UDP out to a jailed peer", Out, ip(OWN, JAILED, 17, &udp(53, 4000, b"q")), "outbound", None),
        ("a jailed peer answers", In, ip(JAILED, OWN, 17, &udp(4000, 53, b"a")), "flow", None),
        ("IPv6", In, ip(PEER6, OWN6, 6, &tcp(4000, 12345, SYN)), "rule", Some(4)),
        ("our own disco comes back", In, ip(PEER, OWN, 17, &udp(1, 53, &disco(DISCO))), "own_disco", None),
        ("a peer's disco", In, ip(PEER, OWN, 17, &udp(1, 53, &disco([1; 32]))), "rule", Some(1)),
        ("our disco into the tunnel", Out, ip(OWN, PEER, 17, &udp(1, 53, &disco(DISCO))), "own_disco", None),
    ]
}

#[rustfmt::skip]
fn other_rows() -> Vec<Row> {
    vec![
        ("a ping that a rule's prefixes admit", In, ip(PEER, OWN, 1, &icmp(8, 0)), "rule", Some(1)),
        ("a ping to a prefix with only GRE", In, ip(PEER, BEHIND, 1, &icmp(8, 0)), "rule", Some(2)),
        ("a ping by capability, anywhere", In, ip(OPS, BEHIND, 1, &icmp(8, 0)), "rule", Some(2)),
        ("a ping in IPv6 from a stranger", In, ip("fd7a:115c:a1e0::5", OWN6, 58, &icmp(128, 0)), "acl", None),
        ("a pong", In, ip(STRANGER, BEHIND, 1, &icmp(0, 0)), "icmp_reply", None),
        ("unreachable", In, ip(STRANGER, OWN, 1, &icmp(3, 1)), "icmp_reply", None),
        ("packet too big, IPv6", In, ip("fd7a:115c:a1e0::5", OWN6, 58, &icmp(2, 0)), "icmp_reply", None),
        ("a pong of seven bytes is judged by rules", In, ip(STRANGER, BEHIND, 1, &icmp(0, 0)[..7]), "rule", Some(2)),
        ("multicast", In, ip(PEER, "224.0.0.251", 17, &udp(5353, 5353, b"m")), "multicast", None),
        ("multicast in IPv6, outward", Out, ip(OWN6, "ff02::2", 58, &icmp(133, 0)), "multicast", None),
        ("link-local", In, ip(PEER, "169.254.1.1", 6, &tcp(1, 80, ACK)), "link_local_unicast", None),
        ("the metadata service, not routed here", In, ip(PEER, "169.254.169.254", 6, &tcp(1, 80, ACK)), "not_local", None),
        ("a later fragment", In, ip(STRANGER, BEHIND, 17, &[0; 64]).fragment(100, false), "fragment", None),
        ("a fragment over the header", In, ip(PEER, OWN, 17, &[0; 64]).fragment(2, true), "fragment", None),
        ("a first fragment is judged by its ports", In, ip(PEER, OWN, 17, &udp(1, 53, &[0; 64])).fragment(0, true), "rule", Some(1)),
        ("an atomic fragment in IPv6", In, ip(PEER6, OWN6, 6, &tcp(4000, 80, SYN)).fragment(0, false), "rule", Some(4)),
        ("half a TCP header", In, ip(PEER, OWN, 6, &tcp(4000, 80, SYN)[..10]), "too_short", None),
        ("a length beyond the packet", In, Ip { lie: 20, ..ip(PEER, OWN, 6, &tcp(4000, 80, SYN)) }, "too_short", None),
        ("bytes behind the packet", In, Ip { trailing: 9, ..ip(PEER, OWN, 6, &tcp(4000, 80, SYN)) }, "rule", Some(0)),
        ("IPv4 options", In, Ip { options: 10, ..ip(PEER, OWN, 6, &tcp(4000, 80, SYN)) }, "rule", Some(0)),
        ("hop-by-hop options", In, ip(PEER6, OWN6, HOP_BY_HOP, &[6; 64]), "unknown_protocol", None),
        ("destination options", In, ip(PEER6, OWN6, DESTINATION_OPTIONS, &[6; 64]), "acl", None),
        ("a TSMP ping", In, ip(STRANGER, BEHIND, 99, b"pabcdefgh"), "consumed", None),
        ("a TSMP ping one byte short", In, ip(STRANGER, OWN, 99, b"pabcdefg"), "tsmp", None),
        ("a rejection", In, ip(STRANGER, OWN, 99, b"!\x06A\x00\x50\x0f\xa0"), "consumed", None),
        ("a rejection of an unknown transit", In, ip(STRANGER, OWN, 99, b"!\x06T\x00\x50\x0f\xa0"), "tsmp", None),
        ("a TSMP fragment", In, ip(PEER, OWN, 99, &[b'p'; 16]).fragment(0, true), "fragment", None),
        ("TSMP from a program here", Out, ip(OWN, PEER, 99, b"pabcdefgh"), "tsmp_from_host", None),
        ("a SYN out", Out, ip(OWN, PEER, 6, &tcp(4000, 80, SYN)), "outbound", None),
    ]
}

#[test]
fn every_named_packet_has_its_outcome_in_the_programs_and_in_the_reference() {
    let input = input();
    let mut filter = Filter::detached(&FilterOptions::new("test", 0)).expect("load");
    filter.install(&compile(&input)).expect("install");
    let mut evaluator = Evaluator::new(&input);
    for (name, direction, ip, wanted, rule) in rows() {
        let packet = ip.bytes();
        let verdict = evaluator.judge(direction, &packet);
        assert_eq!(
            (counted::name(&verdict), verdict.rule),
            (wanted, rule.map(RuleId)),
            "reference: {name}"
        );
        let before = filter.counters().expect("counters");
        filter.run(direction, &packet, 0, 1).expect("run");
        let after = filter.counters().expect("counters");
        assert_eq!(
            counted::between(&before, &after),
            [(direction, wanted)],
            "programs: {name}"
        );
        let mut by = before.rules.iter().zip(&after.rules);
        let by = by.find(|(b, a)| a.count.packets == b.count.packets + 1);
        assert_eq!(
            by.map(|(_, a)| a.rule),
            rule.map(RuleId),
            "programs: {name}"
        );
        if let Some((before, after)) = by {
            assert_eq!(
                after.count.bytes - before.count.bytes,
                packet.len() as u64,
                "bytes: {name}"
            );
        }
    }
}

#[test]
fn nothing_passes_before_a_policy_is_installed() {
    let mut filter = Filter::detached(&FilterOptions::new("test", 0)).expect("load");
    for (name, direction, ip, ..) in transport_rows() {
        let got = filter.run(direction, &ip.bytes(), 0, 1).expect("run");
        assert!(!got.passed, "{name}");
    }
}

#[test]
fn only_the_agents_own_tsmp_leaves() {
    const MARK: u32 = 0x0200_0000;
    let mut filter = Filter::detached(&FilterOptions::new("test", MARK)).expect("load");
    filter.install(&compile(&input())).expect("install");
    let pong = ip(OWN, PEER, 99, b"oabcdefgh\x00\x00").bytes();
    let mut passes = |mark| filter.run(Out, &pong, mark, 1).expect("run").passed;
    assert!(!passes(0));
    assert!(!passes(0x0100_0000));
    assert!(passes(MARK));
    assert!(passes(MARK | 1), "other bits are other people's");
}

#[test]
fn raising_shields_forgets_flows_and_lowering_them_does_not() {
    let open = input();
    let shut = Input {
        shields_up: true,
        ..input()
    };
    let mut filter = Filter::detached(&FilterOptions::new("test", 0)).expect("load");
    let out = ip(OWN, PEER, 17, &udp(9000, 9, b"q")).bytes();
    let answer = ip(PEER, OWN, 17, &udp(9, 9000, b"a")).bytes();
    let mut step = |install: Option<&Input>, direction, packet: &[u8]| {
        if let Some(input) = install {
            filter.install(&compile(input)).expect("install");
        }
        filter.run(direction, packet, 0, 1).expect("run").passed
    };
    assert!(step(Some(&open), Out, &out));
    assert!(
        step(Some(&open), In, &answer),
        "another rule set keeps flows"
    );
    assert!(
        !step(Some(&shut), In, &answer),
        "recorded before shields were up"
    );
    assert!(step(None, Out, &out));
    assert!(step(None, In, &answer), "recorded while they are up");
    assert!(
        step(Some(&open), In, &answer),
        "lowering shields keeps flows"
    );
}

#[test]
fn traces_can_be_switched_on() {
    let options = FilterOptions {
        traces: true,
        ..FilterOptions::new("test", 0)
    };
    let mut filter = Filter::detached(&options).expect("load");
    filter.install(&compile(&input())).expect("install");
    let packet = ip(PEER, OWN, 6, &tcp(4000, 80, SYN)).bytes();
    assert!(filter.run(In, &packet, 0, 1).expect("run").passed);
}
