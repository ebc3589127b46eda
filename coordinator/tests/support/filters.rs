//! A slow, separate reading of packet filters.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use lowroad_wire::control::FilterRule;

/// Whether `*`, an address, a prefix or `a-b` holds an address.
pub fn holds(text: &str, address: IpAddr) -> bool {
    if text == "*" {
        return true;
    }
    if let Ok(one) = text.parse::<IpAddr>() {
        return one == address;
    }
    if let Ok(net) = text.parse::<IpNet>() {
        return net.contains(&address);
    }
    let (first, last) = text.split_once('-').unwrap();
    let (first, last): (IpAddr, IpAddr) = (first.parse().unwrap(), last.parse().unwrap());
    first.is_ipv4() == address.is_ipv4() && (first..=last).contains(&address)
}

fn is_source(rule: &FilterRule, source: IpAddr) -> bool {
    rule.src_ips.iter().any(|text| holds(text, source))
}

/// Whether a filter lets a probe (protocol, port) pass; protocols without ports ignore them.
pub fn allows(
    filter: &[FilterRule],
    source: IpAddr,
    to: IpAddr,
    (protocol, port): (u8, u16),
) -> bool {
    let by_protocol = |rule: &FilterRule| match rule.ip_proto.as_slice() {
        [] => [1, 6, 17, 58].contains(&protocol),
        listed => listed.contains(&protocol.into()),
    };
    filter.iter().any(|rule| {
        is_source(rule, source)
            && by_protocol(rule)
            && rule.dst_ports.iter().any(|entry| {
                let any_port = !matches!(protocol, 6 | 17 | 132);
                holds(&entry.ip, to) && (any_port || entry.ports.contains(port))
            })
    })
}

/// The capabilities that a filter grants, with their values, as differences write them.
pub fn grants(filter: &[FilterRule], source: IpAddr, to: IpAddr) -> BTreeSet<String> {
    let rules = filter.iter().filter(|rule| is_source(rule, source));
    let granted = rules.flat_map(|rule| &rule.cap_grant);
    let here = granted.filter(|grant| grant.dsts.iter().any(|net| net.contains(&to)));
    let named = here.flat_map(|grant| &grant.cap_map);
    named
        .map(|(name, values)| {
            let values: Vec<String> = values.iter().map(ToString::to_string).collect();
            format!("{name} [{}]", values.join(", "))
        })
        .collect()
}
