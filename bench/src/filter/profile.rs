//! Where the time of a verdict goes: packets of which each goes one part further through the program than the one before.

use anyhow::{Context, Result, ensure};
use lowroad_agent::kernel::bpf::{Filter, FilterOptions};
use lowroad_core::filter::{Direction, Input, compile};

use super::workload::{
    ACK, OWN, OWN_6, PORT, RuleSet, SYN, TCP, peer, peer_6, rule, tcp, udp, v4, v6,
};
use crate::figure::{Better, Figure};

/// As many as the smallest of the other rule sets has, and one for everybody.
const RULES: usize = 10;
/// What that one opens.
const EVERYBODY: u16 = 9090;

const FRAGMENT_HEADER: u8 = 44;
/// Where a later piece of a datagram begins, in blocks of 8 bytes.
const OFFSET: u16 = 1480 / 8;

/// What each packet has done beyond what the one before it had.
const PARTS: [&str; 5] = [
    "IP header, rule set, counter",
    "ports, destination's class",
    "service, rule's counter",
    "source's class, pair",
    "flow (UDP)",
];

/// A figure for each family.
pub fn measure(repeat: u32, rounds: usize) -> Result<Vec<Figure>> {
    let compiled = compile(&input());
    ensure!(compiled.notes.is_empty(), "{:?}", compiled.notes);
    let mut filter =
        Filter::detached(&FilterOptions::new("bench", 0)).context("load the filter")?;
    filter.install(&compiled)?;
    [4, 6]
        .into_iter()
        .map(|family| of_family(&mut filter, family, repeat, rounds))
        .collect()
}

fn of_family(filter: &mut Filter, family: u8, repeat: u32, rounds: usize) -> Result<Figure> {
    let packets = packets(family);
    // Of the empty program, and from the begin to the end of each part.
    let mut samples = vec![Vec::new(); 1 + PARTS.len()];
    for round in 0..rounds {
        xtask::signals::check()?;
        for n in 0..samples.len() {
            // Another one first in each round.
            let n = (n + round) % samples.len();
            let run = match n.checked_sub(1) {
                None => filter.run_nothing(&packets[0], repeat)?,
                Some(part) => filter.run(Direction::In, &packets[part], 0, repeat)?,
            };
            ensure!(run.passed, "packet {n} over IPv{family} is dropped");
            samples[n].push(run.nanoseconds as f64);
        }
    }
    let name = format!("where the time goes, v{family}");
    let mut figure = Figure::new(name, "ns", Better::Less);
    figure.push("an empty program", samples[0].clone());
    for (name, both) in PARTS.iter().zip(samples.windows(2)) {
        let added = both[1]
            .iter()
            .zip(&both[0])
            .map(|(then, before)| then - before);
        figure.push(*name, added.collect());
    }
    Ok(figure)
}

fn input() -> Input {
    let mut input = RuleSet::Rules(RULES).input();
    input.rules.push(rule(vec!["*".to_owned()], EVERYBODY));
    input
}

/// One for each part: a later fragment ends with its header, TCP data with the destination's class, a SYN to where everybody may connect with the service; one by
/// a peer's rule looks up the peer, and UDP before that a flow.
fn packets(family: u8) -> [Vec<u8>; PARTS.len()] {
    let from_peer = |segment: Vec<u8>| match family {
        4 => v4(peer(0), OWN, &segment),
        _ => v6(peer_6(0), OWN_6, &segment),
    };
    let data = tcp(ACK, PORT);
    let later_fragment = if family == 4 {
        let mut packet = from_peer(data.clone());
        packet[6..8].copy_from_slice(&OFFSET.to_be_bytes());
        packet
    } else {
        let [high, low] = (OFFSET << 3).to_be_bytes();
        let header = [FRAGMENT_HEADER, TCP, 0, high, low, 0, 0, 0, 0];
        from_peer([&header[..], &data[1..]].concat())
    };
    [
        later_fragment,
        from_peer(data),
        from_peer(tcp(SYN, EVERYBODY)),
        from_peer(tcp(SYN, PORT)),
        from_peer(udp(PORT)),
    ]
}

#[cfg(test)]
mod tests {
    use lowroad_core::filter::{Action, Evaluator, Pass, RuleId};

    use super::*;

    #[test]
    fn each_packet_passes_by_what_comes_after_that_of_the_one_before() {
        let mut reference = Evaluator::new(&input());
        let last = RULES as u32;
        let by_peer = Some(RuleId(last - 1));
        for family in [4, 6] {
            let verdicts = packets(family).map(|packet| reference.judge(Direction::In, &packet));
            assert_eq!(
                verdicts.map(|verdict| verdict.action),
                [
                    Action::Accept(Pass::Fragment),
                    Action::Accept(Pass::TcpEstablished),
                    Action::Accept(Pass::Rule),
                    Action::Accept(Pass::Rule),
                    Action::Accept(Pass::Rule),
                ],
                "v{family}"
            );
            assert_eq!(
                verdicts.map(|verdict| verdict.rule),
                [None, None, Some(RuleId(last)), by_peer, by_peer],
                "v{family}"
            );
        }
    }
}
