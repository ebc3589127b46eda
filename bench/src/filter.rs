//! Nanoseconds per packet of the packet filter, by number of rules.

use std::net::{IpAddr, Ipv4Addr};

use anyhow::{Context, Result, ensure};
use clap::Args;
use lowroad_agent::kernel::bpf::{Filter, FilterOptions};
use lowroad_core::filter::{Compiled, Direction, Input, PeerFacts, compile};
use lowroad_wire::control::{FilterRule, NetPortRange, PortRange};

const OWN: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 1);
/// The port that the last rule opens: what is measured must have passed over all others.
const PORT: u16 = 8080;

#[derive(Debug, Args)]
pub struct Options {
    /// Sizes of the rule sets to compare
    #[arg(long, value_delimiter = ',', default_value = "1,100,10000")]
    rules: Vec<usize>,
    /// Packets per round and rule set
    #[arg(long, default_value_t = 200_000)]
    repeat: u32,
    /// Interleaved rounds; the median is printed
    #[arg(long, default_value_t = 9)]
    rounds: usize,
    /// One JSON object instead of the table
    #[arg(long)]
    json: bool,
}

struct Packet {
    name: &'static str,
    bytes: Vec<u8>,
    direction: Direction,
    passes: bool,
}

pub fn run(options: &Options) -> Result<()> {
    let packets = packets();
    let mut filters = Vec::new();
    for &rules in &options.rules {
        let mut filter = Filter::detached(&FilterOptions::new("bench", 0))
            .context("load the filter (root and a kernel with BPF are needed)")?;
        filter.install(&rule_set(rules))?;
        filters.push(filter);
    }
    let mut samples = vec![vec![Vec::new(); packets.len()]; filters.len()];
    for _ in 0..options.rounds {
        for (p, packet) in packets.iter().enumerate() {
            for (f, filter) in filters.iter_mut().enumerate() {
                let run = filter.run(packet.direction, &packet.bytes, 0, options.repeat)?;
                ensure!(
                    run.passed == packet.passes,
                    "{} with {} rules: the filter's verdict is not the expected one",
                    packet.name,
                    options.rules[f]
                );
                samples[f][p].push(run.nanoseconds);
            }
        }
    }
    let median = |values: &[u64]| {
        let mut sorted = values.to_vec();
        sorted.sort_unstable();
        sorted[sorted.len() / 2]
    };
    let rows = packets.iter().enumerate().map(|(p, packet)| {
        let per_size: Vec<u64> = samples
            .iter()
            .map(|by_packet| median(&by_packet[p]))
            .collect();
        (packet.name, per_size)
    });
    if options.json {
        let figures: serde_json::Map<String, serde_json::Value> = rows
            .map(|(name, figures)| (name.to_owned(), serde_json::json!(figures)))
            .collect();
        println!(
            "{}",
            serde_json::json!({ "unit": "ns/packet", "statistic": "median", "rounds": options.rounds,
                "repeat": options.repeat, "rules": options.rules, "figures": figures })
        );
        return Ok(());
    }
    print!("{:<28}", "ns per packet (median)");
    for rules in &options.rules {
        print!("{:>14}", format!("{rules} rules"));
    }
    println!();
    for (name, figures) in rows {
        print!("{name:<28}");
        for figure in figures {
            print!("{figure:>14}");
        }
        println!();
    }
    Ok(())
}

/// `count` rules of distinct sources and ports towards us; the last one opens [`PORT`] to the measured peer.
fn rule_set(count: usize) -> Compiled {
    let rules = (0..count.max(1)).rev().map(|n| {
        let (source, port) = if n == 0 {
            (peer(0), PORT)
        } else {
            (peer(n), 1024 + (n % 40_000) as u16)
        };
        FilterRule {
            src_ips: vec![source.to_string()],
            dst_ports: vec![NetPortRange {
                ip: OWN.to_string(),
                ports: PortRange {
                    first: port,
                    last: port,
                },
            }],
            ..Default::default()
        }
    });
    compile(&Input {
        rules: rules.collect(),
        local: vec![IpAddr::from(OWN).into()],
        peers: (0..count.max(1)).map(|n| facts(peer(n))).collect(),
        own_addresses: vec![OWN.into()],
        ..Input::default()
    })
}

fn peer(n: usize) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(100, 65, 0, 1)) + n as u32)
}

fn facts(address: Ipv4Addr) -> PeerFacts {
    PeerFacts {
        addresses: vec![address.into()],
        ..PeerFacts::default()
    }
}

fn packets() -> Vec<Packet> {
    const SYN: u8 = 0x02;
    const ACK: u8 = 0x10;
    let tcp = |flags, port| segment(peer(0), OWN, flags, port);
    vec![
        Packet {
            name: "in: TCP data",
            bytes: tcp(ACK, PORT),
            direction: Direction::In,
            passes: true,
        },
        Packet {
            name: "in: TCP SYN, accepted",
            bytes: tcp(SYN, PORT),
            direction: Direction::In,
            passes: true,
        },
        Packet {
            name: "in: TCP SYN, refused",
            bytes: tcp(SYN, 23),
            direction: Direction::In,
            passes: false,
        },
        Packet {
            name: "out: TCP data",
            bytes: segment(OWN, peer(0), ACK, 443),
            direction: Direction::Out,
            passes: true,
        },
    ]
}

/// An IPv4 TCP segment without payload; the filter does not look at checksums.
fn segment(source: Ipv4Addr, destination: Ipv4Addr, flags: u8, port: u16) -> Vec<u8> {
    let mut packet = vec![0u8; 40];
    packet[0] = 0x45;
    packet[3] = 40;
    packet[8] = 64;
    packet[9] = 6;
    packet[12..16].copy_from_slice(&source.octets());
    packet[16..20].copy_from_slice(&destination.octets());
    packet[20..22].copy_from_slice(&40_000u16.to_be_bytes());
    packet[22..24].copy_from_slice(&port.to_be_bytes());
    packet[32] = 0x50;
    packet[33] = flags;
    packet
}
