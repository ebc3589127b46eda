//! Whether a stock client shows a lowroad peer as it shows a stock one: the same fields, of the same types.

use anyhow::Result;
use serde_json::Value;

use super::member::Member;
use crate::tailnet::Client;

/// What differs by nature.
const BY_NATURE: &[&str] = &[
    // A lowroad node has no PeerAPI.
    "status.PeerAPIURL",
    // A home relay that is found after the node was told goes by a patch, which has no place for the rest of it.
    "whois.Node.Hostinfo.NetInfo",
];

/// What a client tells of its host. Of a lowroad node there may be less (nothing of Go, desktops or services), but nothing else.
const HOST: &str = "whois.Node.Hostinfo";

/// Whose keys are data.
const MAPS: &[&str] = &["CapMap", "DERPLatency"];

/// What differs between a lowroad and a stock peer in what a stock node shows of them.
pub fn differences(stock: &Member, lowroad: &Member, other: &Member) -> Result<Vec<String>> {
    let [of_lowroad, of_other] = [shown(stock, lowroad)?, shown(stock, other)?];
    let mut found = Vec::new();
    for (view, of_lowroad, of_other) in [
        ("status", &of_lowroad.0, &of_other.0),
        ("whois", &of_lowroad.1, &of_other.1),
    ] {
        compare(of_lowroad, of_other, view, &mut found);
    }
    Ok(found)
}

/// A peer in the status, and what `whois` says of it.
fn shown(stock: &Member, peer: &Member) -> Result<(Value, Value)> {
    let address = peer.ip(4)?.to_string();
    let whois = stock.cli(&["whois", "--json", &address])?;
    let status = stock.peer(peer.name())?.unwrap_or_default();
    Ok((status, serde_json::from_str(&whois)?))
}

fn compare(lowroad: &Value, stock: &Value, at: &str, found: &mut Vec<String>) {
    if BY_NATURE.contains(&at) {
        return;
    }
    match (lowroad, stock) {
        (Value::Object(ours), Value::Object(theirs)) => {
            let is_map = MAPS.iter().any(|map| at.ends_with(map));
            for (field, value) in ours.iter().filter(|_| !is_map) {
                let at = format!("{at}.{field}");
                match theirs.get(field) {
                    Some(other) => compare(value, other, &at, found),
                    None if BY_NATURE.contains(&at.as_str()) => {}
                    None => found.push(format!("{at}: only of lowroad")),
                }
            }
            let missing = theirs.keys().filter(|field| !ours.contains_key(*field));
            for field in missing.filter(|_| !is_map && !at.starts_with(HOST)) {
                found.push(format!("{at}.{field}: only of stock"));
            }
        }
        // Of lists the first entries are compared.
        (Value::Array(ours), Value::Array(theirs)) => match (ours.first(), theirs.first()) {
            (Some(ours), Some(theirs)) => compare(ours, theirs, &format!("{at}[0]"), found),
            (None, None) => {}
            _ if at.starts_with(HOST) => {}
            (ours, _) => found.push(format!(
                "{at}: empty of {}, and not of the other",
                if ours.is_none() { "lowroad" } else { "stock" }
            )),
        },
        _ if kind(lowroad) == kind(stock) => {}
        _ => found.push(format!(
            "{at}: {} of lowroad, {} of stock",
            kind(lowroad),
            kind(stock)
        )),
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a bool",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn found(view: &str, lowroad: &Value, stock: &Value) -> Vec<String> {
        let mut found = Vec::new();
        compare(lowroad, stock, view, &mut found);
        found
    }

    #[test]
    fn fields_and_types_are_compared_at_any_depth_and_values_are_not() {
        let stock = json!({"A": 1, "B": {"C": "x", "D": [{"E": true}]}, "F": null});
        let same = json!({"A": 2, "B": {"C": "y", "D": [{"E": false}]}, "F": null});
        assert!(found("status", &same, &stock).is_empty());
        let other = json!({"A": "2", "B": {"C": "y", "D": [{"E": null}]}, "G": 1});
        assert_eq!(
            found("status", &other, &stock),
            [
                "status.A: a string of lowroad, a number of stock",
                "status.B.D[0].E: null of lowroad, a bool of stock",
                "status.G: only of lowroad",
                "status.F: only of stock",
            ]
        );
        let empty = json!({"A": 2, "B": {"C": "y", "D": []}, "F": null});
        let said = |of| format!("status.B.D: empty of {of}, and not of the other");
        assert_eq!(found("status", &empty, &stock), [said("lowroad")]);
        assert_eq!(found("status", &stock, &empty), [said("stock")]);
    }

    #[test]
    fn less_may_be_told_of_a_host_and_the_keys_of_maps_are_data() {
        let stock = json!({"PeerAPIURL": ["x"], "Node": {"Hostinfo": {"GoArch": "x", "OS": "y"}, "CapMap": {"a": null}}});
        let lowroad =
            json!({"PeerAPIURL": null, "Node": {"Hostinfo": {"OS": "y"}, "CapMap": {"b": null}}});
        assert_eq!(
            found("whois", &lowroad, &stock),
            ["whois.PeerAPIURL: null of lowroad, a list of stock"]
        );
        let told_late = json!({"Node": {"Hostinfo": {"OS": "y", "NetInfo": {}}, "CapMap": {}}});
        let stock_node = json!({"Node": stock["Node"]});
        assert!(found("whois", &told_late, &stock_node).is_empty());
        let lowroad = json!({"Node": {"Hostinfo": {"OS": 1, "New": 2}}});
        assert_eq!(
            found("whois", &lowroad, &stock_node),
            [
                "whois.Node.Hostinfo.New: only of lowroad",
                "whois.Node.Hostinfo.OS: a number of lowroad, a string of stock",
                "whois.Node.CapMap: only of stock",
            ]
        );
    }
}
