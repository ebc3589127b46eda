//! What nftables adds to a packet with the same rules as a set.
//!
//! nftables has no test run. So the filter's own packets are put on the loopback devices of two network namespaces, whose input hooks differ by the table
//! with the rules alone. In both a later chain of that hook drops everything: neither a socket nor an answer (a reset, an ICMP error) is part of a packet's
//! way, which ends within the call that sends it. What the calls take longer with the table is what it adds.

use std::{fmt::Write as _, time::Instant};

use anyhow::{Context, Result, ensure};
use xtask::{shell, topology::Namespace};

use super::{
    Samples,
    loopback::{self, Loopback},
    workload::{Case, OWN, OWN_6, RuleSet, peer, peer_6},
};
use crate::stats;

/// Packets whose time is taken together: some 0.2 ms of them, so that the machine is much the same during a group of such batches.
const BATCH: usize = 256;
/// Packets before them, which find the caches cold.
const WARM_UP: usize = 16;
/// Differences of which a sample is the median: it leaves out those groups in which somebody else ran.
const GROUPS: usize = 50;

/// What is left after the table with the rules, or without one.
const SINK: &str =
    "table inet sink { chain input { type filter hook input priority 10; policy drop; }; }";

/// What is sent.
pub struct Path {
    pub name: &'static str,
    /// The filter's case with the same packet.
    case: &'static str,
}

#[rustfmt::skip]
pub const PATHS: [Path; 8] = [
    Path { name: "TCP SYN in, v4, hit", case: "in, v4: TCP SYN, hit" },
    Path { name: "TCP SYN in, v4, miss", case: "in, v4: TCP SYN, miss" },
    Path { name: "TCP SYN in, v6, hit", case: "in, v6: TCP SYN, hit" },
    Path { name: "TCP SYN in, v6, miss", case: "in, v6: TCP SYN, miss" },
    Path { name: "UDP in, v4, hit", case: "in, v4: UDP, hit" },
    Path { name: "UDP in, v4, miss", case: "in, v4: UDP, miss" },
    Path { name: "UDP in, v6, hit", case: "in, v6: UDP, hit" },
    Path { name: "UDP in, v6, miss", case: "in, v6: UDP, miss" },
];

impl Path {
    /// Which of the cases it is.
    pub fn case(&self, cases: &[Case]) -> Result<usize> {
        cases
            .iter()
            .position(|case| case.name == self.case)
            .context("a path's case is one of the cases")
    }

    fn frame(&self, cases: &[Case]) -> Result<Vec<u8>> {
        Ok(loopback::frame(&cases[self.case(cases)?].packet))
    }
}

/// By path, then by rule set.
pub fn measure(sets: &[RuleSet], cases: &[Case], rounds: usize) -> Result<Vec<Samples>> {
    let without = namespace("none", "")?;
    let mut with = Vec::new();
    for (n, set) in sets.iter().enumerate() {
        let one = namespace(&n.to_string(), &table(*set))?;
        check(&one, cases).with_context(|| set.name())?;
        with.push(one);
    }
    let mut samples: Vec<Samples> = vec![vec![Vec::new(); sets.len()]; PATHS.len()];
    for _ in 0..rounds {
        for (path, samples) in PATHS.iter().zip(&mut samples) {
            xtask::signals::check()?;
            let frame = path.frame(cases)?;
            for (with, samples) in with.iter().zip(samples) {
                samples.push(added(&without, with, &frame)?);
            }
        }
    }
    Ok(samples)
}

/// Nanoseconds that the table adds to a packet.
fn added(without: &Loopback, with: &Loopback, frame: &[u8]) -> Result<f64> {
    let mut differences = Vec::new();
    for _ in 0..GROUPS {
        // In this order, what changes evenly meanwhile cancels out.
        let before = nanoseconds(without, frame)?;
        let both = nanoseconds(with, frame)? + nanoseconds(with, frame)?;
        let after = nanoseconds(without, frame)?;
        differences.push((both - before - after) / 2.0);
    }
    stats::median(&differences).context("no group was measured")
}

/// From sending a packet until it is dropped.
fn nanoseconds(one: &Loopback, frame: &[u8]) -> Result<f64> {
    one.send(frame, WARM_UP)?;
    let begun = Instant::now();
    one.send(frame, BATCH)?;
    Ok(begun.elapsed().as_secs_f64() * 1e9 / BATCH as f64)
}

/// The rules admit what the filter admits, and nothing else. By each path another power of two of packets is sent, so that the sum of what the rules have
/// counted tells by which of them they were admitted.
fn check(one: &Loopback, cases: &[Case]) -> Result<()> {
    let mut expected = 0;
    for (n, path) in PATHS.iter().enumerate() {
        one.send(&path.frame(cases)?, 1 << n)?;
        if cases[path.case(cases)?].passes {
            expected += 1 << n;
        }
    }
    let nft = shell::find_program("nft").context("there is no nft")?;
    // Tersely: the sets' elements are hundreds of thousands.
    let listing = shell::output(
        one.namespace
            .command(nft)
            .args(["-t", "list", "chain", "inet", "bench", "input"]),
    )?;
    let admitted = counted(&listing);
    ensure!(
        admitted == expected,
        "nftables admits other packets than the filter: {admitted:08b} instead of {expected:08b}, the first path's last"
    );
    Ok(())
}

/// How many packets the rules of a listing have counted.
fn counted(listing: &str) -> usize {
    listing
        .split("counter packets ")
        .skip(1)
        .filter_map(|rest| rest.split(' ').next()?.parse::<usize>().ok())
        .sum()
}

/// With these rules in front of the chain that drops what is left.
fn namespace(name: &str, rules: &str) -> Result<Loopback> {
    // A name by which the next run removes it, should this one be killed.
    let namespace = Namespace::create(&format!("lr{}-nft-{name}", std::process::id()))?;
    // A packet from an address of the host's own would be refused by routing; strict filters of reverse paths want a route to the peer.
    namespace.ip(&format!(
        "addr add {OWN}/32 dev lo\n\
         addr add {OWN_6}/128 dev lo nodad\n\
         route add {}/32 dev lo",
        peer(0)
    ))?;
    namespace.nft(&format!("{rules}\n{SINK}\n"))?;
    Loopback::open(namespace)
}

/// The rule set as nftables has it: an accepting rule per family, by a set of source, protocol and port.
fn table(set: RuleSet) -> String {
    let mut elements = [String::new(), String::new()];
    for (peer_number, port) in set.ports() {
        let addresses = [
            peer(peer_number).to_string(),
            peer_6(peer_number).to_string(),
        ];
        for (elements, address) in elements.iter_mut().zip(addresses) {
            for protocol in ["tcp", "udp"] {
                write!(elements, "{address} . {protocol} . {port},").expect("writing to a string");
            }
        }
    }
    let [v4, v6] = elements;
    format!(
        "table inet bench {{
            set v4 {{ type ipv4_addr . inet_proto . inet_service; elements = {{ {v4} }} }}
            set v6 {{ type ipv6_addr . inet_proto . inet_service; elements = {{ {v6} }} }}
            chain input {{
                type filter hook input priority 0; policy accept;
                ip daddr {OWN} ip saddr . meta l4proto . th dport @v4 counter accept
                ip6 daddr {OWN_6} ip6 saddr . meta l4proto . th dport @v6 counter accept
            }}
        }}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_is_a_case_of_the_filter() {
        let cases = Case::all();
        for path in &PATHS {
            let case = &cases[path.case(&cases).unwrap()];
            assert_eq!(case.passes, path.name.ends_with("hit"), "{}", path.name);
        }
    }

    #[test]
    fn what_all_rules_of_a_chain_have_counted_is_summed_up() {
        let listing = "chain input {\n\
            ip daddr 100.64.0.1 ip saddr . meta l4proto . th dport @v4 counter packets 17 bytes 680 accept\n\
            ip6 daddr fd7a:115c:a1e0::1 ip6 saddr . meta l4proto . th dport @v6 counter packets 68 bytes 4080 accept\n\
            }";
        assert_eq!(counted(listing), 85);
        assert_eq!(counted("chain input { }"), 0);
    }
}
