//! What one end may do at another: ports by protocol, and capabilities.

use std::collections::{BTreeMap, BTreeSet};

use lowroad_wire::control::{CapMap, PortRange};

use super::addresses::Ranges;
use super::alias::{has_ports, protocol_name};

/// What a rule without protocols allows: TCP, UDP and ICMP of both families.
pub(crate) const DEFAULT_PROTOCOLS: [u8; 4] = [6, 17, 1, 58];

/// Ports by protocol, and capabilities with their values. Protocols without ports have all or none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Access {
    ports: BTreeMap<u8, Ranges<u16>>,
    capabilities: BTreeSet<String>,
}

impl Access {
    /// What a rule gives; no protocols are the default ones.
    pub(crate) fn of_ports(protocols: &[u8], ports: &[PortRange]) -> Self {
        let ranges = Ranges::new(
            ports
                .iter()
                .map(|range| (range.first, range.last))
                .collect(),
        );
        let protocols = match protocols {
            [] => &DEFAULT_PROTOCOLS,
            listed => listed,
        };
        let of = |&protocol: &u8| {
            let ports = if has_ports(protocol) {
                ranges.clone()
            } else {
                Ranges::new(vec![(0, u16::MAX)])
            };
            (protocol, ports)
        };
        Self {
            ports: protocols
                .iter()
                .filter(|_| !ports.is_empty())
                .map(of)
                .collect(),
            capabilities: BTreeSet::new(),
        }
    }

    /// A capability with other values is another one.
    pub(crate) fn of_capabilities(capabilities: &CapMap) -> Self {
        let text = |(name, values): (&String, &Vec<serde_json::Value>)| match values.as_slice() {
            [] => name.clone(),
            values => {
                let values: Vec<String> = values.iter().map(ToString::to_string).collect();
                format!("{name} [{}]", values.join(", "))
            }
        };
        Self {
            ports: BTreeMap::new(),
            capabilities: capabilities.iter().map(text).collect(),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.ports.is_empty() && self.capabilities.is_empty()
    }

    pub(crate) fn unite(&mut self, other: &Self) {
        for (protocol, ports) in &other.ports {
            self.ports.entry(*protocol).or_default().unite(ports);
        }
        self.capabilities.extend(other.capabilities.iter().cloned());
    }

    /// What of this is not in `other`.
    pub(crate) fn minus(&self, other: &Self) -> Self {
        let left = |(protocol, ports): (&u8, &Ranges<u16>)| {
            let left = match other.ports.get(protocol) {
                Some(taken) => ports.minus(taken),
                None => ports.clone(),
            };
            (!left.is_empty()).then_some((*protocol, left))
        };
        let capabilities = self.capabilities.difference(&other.capabilities);
        Self {
            ports: self.ports.iter().filter_map(left).collect(),
            capabilities: capabilities.cloned().collect(),
        }
    }

    /// As people write it: `tcp:22,80-90`, `udp:*`, `icmp`; protocols with the same ports stand together.
    pub(crate) fn texts(&self) -> Vec<String> {
        let mut by_ports: Vec<(Option<&Ranges<u16>>, Vec<String>)> = Vec::new();
        for (protocol, ports) in &self.ports {
            let ports = has_ports(*protocol).then_some(ports);
            let name = protocol_name(*protocol);
            match by_ports.iter_mut().find(|(known, _)| *known == ports) {
                Some((_, names)) => names.push(name),
                None => by_ports.push((ports, vec![name])),
            }
        }
        // ICMP last, as an afterthought.
        by_ports.sort_by_key(|(ports, _)| ports.is_none());
        let mut texts: Vec<String> = by_ports
            .into_iter()
            .map(|(ports, names)| match ports {
                Some(ports) => format!("{}:{}", names.join(","), ports_text(ports)),
                None => names.join(","),
            })
            .collect();
        texts.extend(self.capabilities.iter().cloned());
        texts
    }
}

fn ports_text(ports: &Ranges<u16>) -> String {
    let text = |(first, last): (u16, u16)| match (first, last) {
        (0, u16::MAX) => "*".to_owned(),
        _ if first == last => first.to_string(),
        _ => format!("{first}-{last}"),
    };
    ports.iter().map(text).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ports(protocols: &[u8], ranges: &[(u16, u16)]) -> Access {
        let ranges: Vec<PortRange> = ranges
            .iter()
            .map(|&(first, last)| PortRange { first, last })
            .collect();
        Access::of_ports(protocols, &ranges)
    }

    #[test]
    fn access_reads_as_policies_write_it() {
        for (access, texts) in [
            (
                ports(&[], &[(0, u16::MAX)]),
                &["tcp,udp:*", "icmp,ipv6-icmp"][..],
            ),
            (
                ports(&[6], &[(22, 22), (80, 89), (90, 90)]),
                &["tcp:22,80-90"],
            ),
            (ports(&[132, 17], &[(53, 53)]), &["udp,sctp:53"]),
            (ports(&[47, 99], &[(0, u16::MAX)]), &["gre,99"]),
            (ports(&[6], &[]), &[]),
        ] {
            assert_eq!(access.texts(), texts);
        }
    }

    #[test]
    fn what_is_left_is_what_the_other_does_not_have() {
        let mut both = ports(&[6], &[(20, 30)]);
        both.unite(&ports(&[17], &[(53, 53)]));
        for (taken, left) in [
            (ports(&[6], &[(25, 25)]), &["tcp:20-24,26-30", "udp:53"][..]),
            (ports(&[6], &[(0, u16::MAX)]), &["udp:53"]),
            (ports(&[], &[(20, 53)]), &[]),
            (Access::default(), &["tcp:20-30", "udp:53"]),
        ] {
            assert_eq!(both.minus(&taken).texts(), left);
        }
        assert!(both.minus(&both).is_empty());
    }

    #[test]
    fn a_capability_with_other_values_is_another() {
        let of = |value: u32| {
            let values = vec![serde_json::json!({"n": value})];
            Access::of_capabilities(&CapMap::from([("x.com/cap/a".to_owned(), values)]))
        };
        assert_eq!(of(1).minus(&of(2)).texts(), ["x.com/cap/a [{\"n\":1}]"]);
        assert!(of(1).minus(&of(1)).is_empty());
    }
}
