//! What the policy lets applications at this node take a peer for: the capability grants of filter rules (`protocol.md` 5.1).

use std::net::IpAddr;

use lowroad_wire::control::{CapMap, FilterRule, Node};

use super::{Family, rules::prefixes};

/// Capabilities that `rules` grant `peer` at a node with the addresses `own`, values of several rules in their order. A rule that doesn't name both by the same family
/// grants nothing.
pub fn granted<'a>(
    rules: impl Iterator<Item = &'a FilterRule>,
    peer: &Node,
    own: &[IpAddr],
) -> CapMap {
    let mut out = CapMap::new();
    for rule in rules.filter(|rule| !rule.cap_grant.is_empty()) {
        let families: Vec<Family> = [Family::V4, Family::V6]
            .into_iter()
            .filter(|family| names(rule, peer, *family))
            .collect();
        for grant in &rule.cap_grant {
            let here = own.iter().any(|address| {
                families.contains(&Family::of(*address))
                    && grant.dsts.iter().any(|net| net.contains(address))
            });
            if !here {
                continue;
            }
            for (name, values) in &grant.cap_map {
                let all = out.entry(name.clone()).or_default();
                all.extend(values.iter().cloned());
            }
            for name in &grant.caps {
                out.entry(name.clone()).or_default();
            }
        }
    }
    out
}

/// Whether the peer is a source of the rule with an address of this family.
fn names(rule: &FilterRule, peer: &Node, family: Family) -> bool {
    let addresses: Vec<IpAddr> = peer.ips().filter(|ip| Family::of(*ip) == family).collect();
    !addresses.is_empty()
        && rule
            .src_ips
            .iter()
            .any(|source| match source.strip_prefix("cap:") {
                Some(cap) => peer.cap_map.contains_key(cap),
                None => prefixes(source).is_some_and(|found| {
                    let holds = |ip: &IpAddr| found.iter().any(|prefix| prefix.contains(*ip));
                    addresses.iter().any(holds)
                }),
            })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_peer_is_granted_what_rules_say_of_it_at_this_node() {
        let peer: Node = serde_json::from_value(json!({
            "ID": 2, "Key": format!("nodekey:{:064x}", 2), "Addresses": ["100.64.0.2/32", "fd7a::2/128"], "CapMap": {"x/ops": null}
        }))
        .unwrap();
        let rules: Vec<FilterRule> = serde_json::from_value(json!([
            {"SrcIPs": ["100.64.0.0/24"], "CapGrant": [{"Dsts": ["100.64.0.1/32"], "CapMap": {"a": [1]}}]},
            {"SrcIPs": ["100.64.0.2", "fd7a::2"], "CapGrant": [{"Dsts": ["100.64.0.1/32", "fd7a::1/128"], "CapMap": {"a": [{"b": 2}], "bare": null}}]},
            {"SrcIPs": ["cap:x/ops"], "CapGrant": [{"Dsts": ["100.64.0.0/10"], "Caps": ["old"]}]},
            {"SrcIPs": ["100.64.0.3"], "CapGrant": [{"Dsts": ["100.64.0.1/32"], "CapMap": {"other source": [1]}}]},
            {"SrcIPs": ["*"], "CapGrant": [{"Dsts": ["100.64.0.9/32"], "CapMap": {"other node": [1]}}]},
            {"SrcIPs": ["100.64.0.2"], "CapGrant": [{"Dsts": ["fd7a::1/128"], "CapMap": {"families mixed": [1]}}]},
            {"SrcIPs": ["*"], "DstPorts": [{"IP": "*", "Ports": {"First": 1, "Last": 2}}]}
        ]))
        .unwrap();
        let own = ["100.64.0.1".parse().unwrap(), "fd7a::1".parse().unwrap()];
        let found = granted(rules.iter(), &peer, &own);
        assert_eq!(
            serde_json::to_value(&found).unwrap(),
            json!({"a": [1, {"b": 2}], "bare": [], "old": []})
        );
    }
}
