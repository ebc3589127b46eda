//! Reads `samples/vectors/filter.jsonl`: the stock filter's verdict on sequences of packets. Used by tests of `core` and of `agent`.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::PathBuf,
};

use ipnet::IpNet;
use lowroad_core::filter::{Direction, Input, PeerFacts};
use lowroad_wire::control::FilterRule;
use serde::Deserialize;

/// One rule set and the packets judged under it, in order.
pub struct Case {
    pub input: Input,
    pub packets: Vec<Packet>,
}

#[derive(Deserialize)]
pub struct Packet {
    #[serde(deserialize_with = "direction")]
    pub dir: Direction,
    #[serde(deserialize_with = "unhex")]
    pub hex: Vec<u8>,
    verdict: String,
    pub what: String,
    #[serde(default)]
    malformed: bool,
    #[serde(default)]
    tsmp: bool,
}

impl Packet {
    /// Whether a verdict is right. The stock filter's own is, but: what the kernel's IP layer refuses may be dropped earlier; TSMP is consumed before the filter (inward), or never
    /// sent for the host (outward).
    pub fn agrees(&self, accepted: bool, consumed: bool) -> bool {
        match (self.tsmp, self.dir) {
            (true, Direction::In) if consumed => true,
            (true, Direction::Out) => !accepted,
            _ => {
                !consumed
                    && (accepted == (self.verdict == "accept") || (self.malformed && !accepted))
            }
        }
    }

    /// What the stock filter said.
    pub fn stock(&self) -> &str {
        &self.verdict
    }
}

/// All cases, or `None` after saying that they aren't there.
pub fn read() -> Option<Vec<Case>> {
    let samples = std::env::var_os("LOWROAD_SAMPLES").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared/samples"),
        PathBuf::from,
    );
    let path = samples.join("vectors/filter.jsonl");
    match std::fs::read_to_string(&path) {
        Ok(text) => Some(text.lines().map(case).collect()),
        Err(error) => {
            println!("SKIPPED: {}: {error}", path.display());
            println!("skipped 1");
            None
        }
    }
}

fn case(line: &str) -> Case {
    #[derive(Deserialize)]
    struct Line {
        rules: Option<Vec<FilterRule>>,
        local: Option<Vec<IpNet>>,
        peer_caps: Option<BTreeMap<IpAddr, BTreeSet<String>>>,
        #[serde(default)]
        shields_up: bool,
        packets: Vec<Packet>,
    }
    let line: Line = serde_json::from_str(line)
        .unwrap_or_else(|e| panic!("{e}: {}", &line[..line.len().min(300)]));
    let peers = line
        .peer_caps
        .unwrap_or_default()
        .into_iter()
        .map(|(address, caps)| PeerFacts {
            addresses: vec![address],
            caps,
            ..PeerFacts::default()
        });
    Case {
        input: Input {
            rules: line.rules.unwrap_or_default(),
            local: line.local.unwrap_or_default(),
            peers: peers.collect(),
            shields_up: line.shields_up,
            ..Input::default()
        },
        packets: line.packets,
    }
}

fn direction<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Direction, D::Error> {
    match String::deserialize(from)?.as_str() {
        "in" => Ok(Direction::In),
        "out" => Ok(Direction::Out),
        other => Err(serde::de::Error::custom(format!("direction {other}"))),
    }
}

fn unhex<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
    let text = String::deserialize(from)?;
    let byte = |at| u8::from_str_radix(text.get(at..at + 2).unwrap_or("?"), 16);
    let bytes: Result<Vec<u8>, _> = (0..text.len()).step_by(2).map(byte).collect();
    bytes.map_err(serde::de::Error::custom)
}
