//! What compiling a rule set gives.

use lowroad_abi::{Address, Class};

use super::{Prefix, RuleId, rules::Rule};

/// A rule set ready for the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compiled {
    /// Rules in force, in order, without repeats.
    pub rules: Vec<CompiledRule>,
    /// What was skipped, for people.
    pub notes: Vec<String>,
    pub tables: Tables,
    pub shields_up: bool,
    pub peer_api_port: Option<u16>,
    pub disco: Option<[u8; 32]>,
}

/// A rule in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompiledRule {
    pub id: RuleId,
    /// Names it in the tables and its counter: the same for the same rule in any rule set.
    pub key: u64,
    /// For people.
    pub text: String,
}

/// What the kernel's maps are made from (`layout.rs`), sorted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tables {
    pub hosts: Vec<(Address, Class)>,
    /// With the length of the prefix, tag included.
    pub prefixes: Vec<(u32, Address, Class)>,
    pub ports: Vec<(PortKey, Service)>,
    pub pairs: Vec<(PairKey, u64)>,
    /// Whether some source is jailed.
    pub jail: bool,
}

/// A block of `2^(16-bits)` ports from `port` on, of a destination class and protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortKey {
    pub bits: u32,
    pub class: u32,
    pub protocol: u8,
    pub port: u16,
}

/// The rules that a destination class, protocol and port select.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Service {
    /// The rule with this key admits every source.
    Everybody(u64),
    /// Which one admits depends on the source: look this number up with the source's class.
    Number(u32),
}

/// Source class and service: found means accepted, by the rule whose key is the value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PairKey {
    pub source: u32,
    pub service: u32,
}

/// Names a rule by what it says (FNV-1a, 64 bits), so that its counter outlives changes of other rules.
pub(super) fn key(rule: &Rule) -> u64 {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    let mut feed = |bytes: &[u8]| {
        for byte in bytes {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
        }
    };
    let prefix = |feed: &mut dyn FnMut(&[u8]), p: &Prefix| {
        feed(&[p.family().number(), p.length()]);
        feed(&p.bytes());
    };
    for p in &rule.sources {
        prefix(&mut feed, p);
    }
    for cap in &rule.caps {
        feed(&(cap.len() as u64).to_be_bytes());
        feed(cap.as_bytes());
    }
    feed(b"to");
    for (p, ports) in &rule.destinations {
        prefix(&mut feed, p);
        feed(&ports.first.to_be_bytes());
        feed(&ports.last.to_be_bytes());
    }
    feed(&rule.protocols);
    hash.max(1)
}
