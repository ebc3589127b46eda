//! What compiling a rule set gives.

use lowroad_abi::{Address, Class, PairKey, PortKey, Service};

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

/// Contents of the kernel's maps, sorted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tables {
    pub hosts: Vec<(Address, Class)>,
    /// With the length of the prefix, tag included.
    pub prefixes: Vec<(u32, Address, Class)>,
    /// With the length of the prefix.
    pub ports: Vec<(u32, PortKey, Service)>,
    pub pairs: Vec<(PairKey, u64)>,
    /// Whether some source is jailed.
    pub jail: bool,
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
