//! From the control server's spelling to rules that cannot be wrong (`protocol.md` 5.1).

use std::{fmt::Write as _, net::IpAddr};

use ipnet::IpNet;
use lowroad_wire::control::{FilterRule, PortRange};

use super::{Family, Input, Prefix, RuleId};

/// Protocols of a rule that names none.
const DEFAULT_PROTOCOLS: [u8; 4] = [6, 17, 1, 58];

/// Prefixes of all rules together; a range of IPv6 addresses can stand for 254. A bound for rules sent to do harm.
const MAX_PREFIXES: usize = 1 << 19;

/// Skipped entries that are told of.
const MAX_NOTES: usize = 100;

/// A rule, parsed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    pub id: RuleId,
    pub sources: Vec<Prefix>,
    pub caps: Vec<String>,
    pub destinations: Vec<(Prefix, PortRange)>,
    pub protocols: Vec<u8>,
}

impl Rule {
    /// Whether its sources hold the whole family.
    pub fn admits_everyone(&self, family: Family) -> bool {
        self.sources.contains(&Prefix::everything(family))
    }
}

/// The rules that count, and what was wrong with others.
#[derive(Clone, Debug, Default)]
pub(super) struct Rules {
    pub rules: Vec<Rule>,
    pub notes: Vec<String>,
}

impl Rules {
    /// Parses what of the input's rules is in force: none with shields up, none if they admit a peer that is only allowed to the peer API.
    pub fn of(input: &Input) -> Self {
        let mut out = Self::default();
        let mut prefixes = 0;
        for (number, rule) in input.rules.iter().enumerate() {
            let rule = parse(RuleId(number as u32), rule, &mut out.notes);
            prefixes += rule.sources.len() + rule.destinations.len();
            out.rules.push(rule);
            if prefixes > MAX_PREFIXES {
                out.notes.push(format!(
                    "{} rules name more than {MAX_PREFIXES} prefixes: none is in force",
                    input.rules.len()
                ));
                out.rules.clear();
                break;
            }
        }
        if let Some(rule) = admits_unsigned(input, &out.rules) {
            out.notes.push(format!(
                "rule {rule} admits a peer without a signature: the whole filter is refused"
            ));
            out.rules.clear();
        }
        if input.shields_up {
            out.rules.clear();
        }
        // A rule without destinations grants capabilities or nothing.
        out.rules.retain(|r| !r.destinations.is_empty());
        out
    }
}

fn admits_unsigned(input: &Input, rules: &[Rule]) -> Option<RuleId> {
    let unsigned: Vec<Prefix> = input
        .peers
        .iter()
        .filter(|p| p.unsigned_peer_api_only)
        .flat_map(|p| {
            p.allowed_ips
                .iter()
                .map(|net| Prefix::from(*net))
                .chain(p.addresses.iter().map(|a| Prefix::host(*a)))
        })
        .collect();
    rules
        .iter()
        .find(|r| {
            !r.destinations.is_empty()
                && r.sources
                    .iter()
                    .any(|s| unsigned.iter().any(|u| u.overlaps(s)))
        })
        .map(|r| r.id)
}

fn parse(id: RuleId, rule: &FilterRule, notes: &mut Vec<String>) -> Rule {
    let mut note = |what: &str| {
        if notes.len() < MAX_NOTES {
            notes.push(format!("rule {id}: skipped {what:?}"));
        }
    };
    let mut out = Rule {
        id,
        sources: Vec::new(),
        caps: Vec::new(),
        destinations: Vec::new(),
        protocols: if rule.ip_proto.is_empty() {
            DEFAULT_PROTOCOLS.to_vec()
        } else {
            rule.ip_proto
                .iter()
                .filter_map(|n| u8::try_from(*n).ok())
                .collect()
        },
    };
    for source in &rule.src_ips {
        match source.strip_prefix("cap:") {
            Some(cap) => out.caps.push(cap.to_owned()),
            None => match prefixes(source) {
                Some(found) => out.sources.extend(found),
                None => note(source),
            },
        }
    }
    for destination in &rule.dst_ports {
        match prefixes(&destination.ip) {
            Some(found) => out
                .destinations
                .extend(found.into_iter().map(|p| (p, destination.ports))),
            None => note(&destination.ip),
        }
    }
    out.sources.sort();
    out.sources.dedup();
    out.caps.sort();
    out.caps.dedup();
    out.protocols.sort_unstable();
    out.protocols.dedup();
    out
}

/// `*`, an address, a prefix without host bits, or `first-last`.
pub(super) fn prefixes(text: &str) -> Option<Vec<Prefix>> {
    if text == "*" {
        return Some(vec![
            Prefix::everything(Family::V4),
            Prefix::everything(Family::V6),
        ]);
    }
    if let Some((first, last)) = text.split_once('-') {
        let found = Prefix::cover_range(first.parse().ok()?, last.parse().ok()?);
        return (!found.is_empty()).then_some(found);
    }
    if let Ok(address) = text.parse::<IpAddr>() {
        return Some(vec![Prefix::host(address)]);
    }
    let net: IpNet = text.parse().ok()?;
    (net.addr() == net.network()).then(|| vec![Prefix::from(net)])
}

/// The rule in one line, for people: `tcp,udp from 100.64.0.1, cap:example.com/ops to 10.0.0.0/8:80-443`.
pub(super) fn describe(rule: &Rule) -> String {
    /// More is not read anyway, and a rule can hold thousands.
    const SHOWN: usize = 6;
    /// Destinations looked at.
    const SCANNED: usize = 64;
    fn list(out: &mut String, items: impl ExactSizeIterator<Item = String>) {
        let count = items.len();
        for (n, item) in items.take(SHOWN).enumerate() {
            let comma = if n == 0 { "" } else { "," };
            write!(out, "{comma}{item}").expect("writing to a string");
        }
        if count > SHOWN {
            write!(out, ",+{}", count - SHOWN).expect("writing to a string");
        }
    }
    let mut out = String::new();
    if rule.protocols == [1, 6, 17, 58] {
        out.push_str("any");
    } else {
        list(&mut out, rule.protocols.iter().map(|p| protocol_name(*p)));
    }
    out.push_str(" from ");
    let sources: Vec<String> = spell(&rule.sources)
        .into_iter()
        .chain(rule.caps.iter().map(|c| format!("cap:{c}")))
        .collect();
    list(&mut out, sources.into_iter());
    out.push_str(" to ");
    let mut destinations: Vec<(Vec<Prefix>, PortRange)> = Vec::new();
    for (prefix, ports) in rule.destinations.iter().take(SCANNED) {
        match destinations.iter_mut().find(|(_, p)| p == ports) {
            Some((prefixes, _)) => prefixes.push(*prefix),
            None => destinations.push((vec![*prefix], *ports)),
        }
    }
    let spelled: Vec<String> = destinations
        .iter()
        .flat_map(|(prefixes, ports)| {
            spell(prefixes)
                .into_iter()
                .map(|p| format!("{p}:{}", spell_ports(*ports)))
        })
        .collect();
    list(&mut out, spelled.into_iter());
    out
}

fn spell(prefixes: &[Prefix]) -> Vec<String> {
    let everything = [Family::V4, Family::V6].map(Prefix::everything);
    if everything.iter().all(|e| prefixes.contains(e)) {
        return vec!["*".to_owned()];
    }
    prefixes
        .iter()
        .map(|p| match p.family() {
            Family::V6 => format!("[{p}]"),
            Family::V4 => p.to_string(),
        })
        .collect()
}

fn spell_ports(ports: PortRange) -> String {
    match ports {
        PortRange::ANY => "*".to_owned(),
        PortRange { first, last } if first == last => first.to_string(),
        PortRange { first, last } => format!("{first}-{last}"),
    }
}

/// Names that people know, else the number.
pub(super) fn protocol_name(number: u8) -> String {
    match number {
        1 => "icmp".to_owned(),
        2 => "igmp".to_owned(),
        6 => "tcp".to_owned(),
        17 => "udp".to_owned(),
        47 => "gre".to_owned(),
        50 => "esp".to_owned(),
        58 => "icmpv6".to_owned(),
        99 => "tsmp".to_owned(),
        132 => "sctp".to_owned(),
        other => format!("proto-{other}"),
    }
}
