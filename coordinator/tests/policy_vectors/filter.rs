//! Packet filters and capabilities by meaning.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use lowroad_wire::control::{FilterRule, PortRange};

pub type Span<T> = (T, T);
/// Family and number, so that one order holds both families.
pub type Point = (u8, u128);

/// A rule as ranges.
struct Meaning {
    sources: Vec<Span<Point>>,
    destinations: Vec<(Span<Point>, PortRange)>,
    protocols: Vec<i64>,
}

/// The first connection that one of the two allows and the other doesn't, described.
///
/// Everything that a filter can tell apart lies between the ends of its ranges, so it is enough
/// to compare the sources allowed at each such end of destinations and ports, per protocol.
pub fn difference(ours: &[FilterRule], theirs: &[FilterRule]) -> Option<String> {
    let (ours, theirs) = (meanings(ours), meanings(theirs));
    let all = || ours.iter().chain(&theirs);
    let protocols: BTreeSet<i64> = all()
        .flat_map(|rule| rule.protocols.iter().copied())
        .collect();
    let destinations = || all().flat_map(|rule| &rule.destinations);
    let places: BTreeSet<Point> = destinations()
        .flat_map(|&((first, last), _)| [Some(first), after(last)])
        .flatten()
        .collect();
    let ports: BTreeSet<u16> = destinations()
        .flat_map(|&(_, ports)| [Some(ports.first), ports.last.checked_add(1)])
        .flatten()
        .collect();
    for &protocol in &protocols {
        for &place in &places {
            for &port in &ports {
                let ours = allowed(&ours, protocol, place, port);
                let theirs = allowed(&theirs, protocol, place, port);
                if ours != theirs {
                    return Some(format!(
                        "to {place:x?} port {port} protocol {protocol}: from {ours:x?}, not {theirs:x?}"
                    ));
                }
            }
        }
    }
    None
}

fn after((family, number): Point) -> Option<Point> {
    let end = if family == 4 {
        u128::from(u32::MAX)
    } else {
        u128::MAX
    };
    (number < end).then(|| (family, number + 1))
}

/// Who holds which value of which capability at which address; capabilities without values have an empty one.
pub fn capabilities(rules: &[FilterRule]) -> BTreeMap<(IpNet, String, String), Vec<Span<Point>>> {
    let mut held: BTreeMap<_, Vec<Span<Point>>> = BTreeMap::new();
    for rule in rules.iter().filter(|rule| !rule.src_ips.is_empty()) {
        for grant in &rule.cap_grant {
            assert!(grant.caps.is_empty(), "the old form is not recorded");
            for (name, values) in &grant.cap_map {
                let mut values: Vec<String> = values.iter().map(ToString::to_string).collect();
                values.push(String::new());
                for (dst, value) in grant
                    .dsts
                    .iter()
                    .flat_map(|dst| values.iter().map(move |value| (dst, value)))
                {
                    held.entry((*dst, name.clone(), value.clone()))
                        .or_default()
                        .extend(rule.src_ips.iter().flat_map(|text| spans(text)));
                }
            }
        }
    }
    held.into_iter()
        .map(|(what, sources)| (what, merged(sources)))
        .collect()
}

/// The merged sources that may connect.
fn allowed(rules: &[Meaning], protocol: i64, place: Point, port: u16) -> Vec<Span<Point>> {
    let sources = rules
        .iter()
        .filter(|rule| rule.protocols.contains(&protocol))
        .filter(|rule| {
            rule.destinations.iter().any(|&((first, last), ports)| {
                (first..=last).contains(&place) && ports.contains(port)
            })
        })
        .flat_map(|rule| rule.sources.iter().copied());
    merged(sources.collect())
}

fn merged(mut sources: Vec<Span<Point>>) -> Vec<Span<Point>> {
    sources.sort_unstable();
    let mut merged: Vec<Span<Point>> = Vec::new();
    for (first, last) in sources {
        match merged.last_mut() {
            Some(previous) if first <= previous.1 || after(previous.1) == Some(first) => {
                previous.1 = previous.1.max(last);
            }
            _ => merged.push((first, last)),
        }
    }
    merged
}

fn meanings(rules: &[FilterRule]) -> Vec<Meaning> {
    let meaning = |rule: &FilterRule| Meaning {
        sources: rule.src_ips.iter().flat_map(|text| spans(text)).collect(),
        destinations: rule
            .dst_ports
            .iter()
            .flat_map(|entry| spans(&entry.ip).into_iter().map(|span| (span, entry.ports)))
            .collect(),
        protocols: if rule.ip_proto.is_empty() {
            vec![6, 17, 1, 58]
        } else {
            rule.ip_proto.clone()
        },
    };
    rules.iter().map(meaning).collect()
}

fn spans(text: &str) -> Vec<Span<Point>> {
    let point = |address: IpAddr| match address {
        IpAddr::V4(v4) => (4, u128::from(v4.to_bits())),
        IpAddr::V6(v6) => (6, v6.to_bits()),
    };
    if text == "*" {
        return vec![
            ((4, 0), (4, u128::from(u32::MAX))),
            ((6, 0), (6, u128::MAX)),
        ];
    }
    if let Some((first, last)) = text.split_once('-') {
        let end = |text: &str| point(text.parse().expect("a range ends in addresses"));
        return vec![(end(first), end(last))];
    }
    let net: IpNet = text
        .parse()
        .or_else(|_| text.parse::<IpAddr>().map(IpNet::from))
        .unwrap_or_else(|_| panic!("{text:?} in a filter"));
    assert_eq!(net, net.trunc(), "host bits in a filter");
    vec![(point(net.network()), point(net.broadcast()))]
}
