//! Whether a lowroad node shows, and is shown, like a stock one: the same fields, of the same types, and what a node says of itself.

use anyhow::Result;
use serde_json::{Value, json};

use super::member::Member;
use crate::tailnet::Client;

/// What differs by nature.
const BY_NATURE: &[&str] = &[
    // A lowroad node has no PeerAPI.
    "status.PeerAPIURL",
    "socket.status.PeerAPIURL",
    "socket.daemon.Self.PeerAPIURL",
    // Of the login, and not of the client.
    "socket.daemon.Self.KeyExpiry",
    // The one's own words, and what only it has.
    "socket.daemon.Health",
    "socket.daemon.Lowroad",
    // Who came while it was offline has not heard of it.
    "socket.whois.Node.LastSeen",
    // lowroad keeps less of its peers' hosts.
    "socket.whois.Node.Hostinfo.NetInfo",
];

/// What a client tells of its host. Of a lowroad node there may be less (nothing of Go, desktops or services), but nothing else.
const HOST: &str = "whois.Node.Hostinfo";
/// What it tells of it like any other.
const TOLD: &[&str] = &["IPNVersion", "OS", "Hostname", "NetInfo"];
/// Of which Headscale makes a null where it isn't told.
const MEASURED: &str = ".Hostinfo.NetInfo.";

/// Whose keys are data.
const MAPS: &[&str] = &["CapMap", "DERPLatency", "daemon.Peer", "daemon.User"];

/// What a node's status says of itself, and where others show it.
const OWN: &[(&str, &[&str])] = &[
    ("PublicKey", &["/status/PublicKey", "/whois/Node/Key"]),
    (
        "HostName",
        &["/status/HostName", "/whois/Node/Hostinfo/Hostname"],
    ),
    ("DNSName", &["/status/DNSName", "/whois/Node/Name"]),
    ("OS", &["/status/OS", "/whois/Node/Hostinfo/OS"]),
    (
        "UserID",
        &[
            "/status/UserID",
            "/whois/Node/User",
            "/whois/UserProfile/ID",
        ],
    ),
    ("TailscaleIPs", &["/status/TailscaleIPs"]),
    (
        "AllowedIPs",
        &["/status/AllowedIPs", "/whois/Node/AllowedIPs"],
    ),
    ("Tags", &["/status/Tags", "/whois/Node/Tags"]),
    ("Relay", &["/status/Relay"]),
    ("Online", &["/status/Online", "/whois/Node/Online"]),
];

/// What two nodes of one user, online and without routes, have in common.
const COMMON: &[&str] = &[
    "/status/OS",
    "/status/Online",
    "/status/UserID",
    "/status/Tags",
    "/status/ExitNode",
    "/status/ExitNodeOption",
    "/status/InNetworkMap",
    "/status/InMagicSock",
    "/whois/Node/Online",
    "/whois/Node/MachineAuthorized",
    "/whois/Node/Tags",
    "/whois/Node/Hostinfo/OS",
    "/whois/UserProfile",
];

/// What differs between a lowroad and a stock peer in what a stock node shows of them, and from what they say of themselves.
pub fn differences(stock: &Member, lowroad: &Member, other: &Member) -> Result<Vec<String>> {
    let [of_lowroad, of_other] = [shown(stock, lowroad)?, shown(stock, other)?];
    let mut found = Vec::new();
    for view in ["status", "whois"] {
        compare(&of_lowroad[view], &of_other[view], view, &mut found);
    }
    for (node, view) in [(lowroad, &of_lowroad), (other, &of_other)] {
        disagreements(view, &node.status()?["Self"], node.name(), &mut found);
    }
    for place in COMMON {
        let [ours, theirs] = [&of_lowroad, &of_other].map(|view| at(view, place));
        if ours != theirs {
            found.push(format!("{place}: {ours} of lowroad, {theirs} of stock"));
        }
    }
    Ok(found)
}

/// A peer in the status, and what `whois` says of it.
fn shown(stock: &Member, peer: &Member) -> Result<Value> {
    let address = peer.ip(4)?.to_string();
    let whois = stock.cli(&["whois", "--json", &address])?;
    let whois: Value = serde_json::from_str(&whois)?;
    let status = stock.peer(peer.name())?.unwrap_or_default();
    Ok(json!({"status": status, "whois": whois}))
}

/// What differs between what the local APIs of a lowroad and a stock node answer: of themselves, and of a peer of both.
/// `lowroad` and `stock` run the stock command line on their sockets.
pub fn between_sockets(
    lowroad: &dyn Fn(&[&str]) -> Result<String>,
    stock: &dyn Fn(&[&str]) -> Result<String>,
    peer: &Member,
) -> Result<Vec<String>> {
    let [ours, theirs] = [answers(lowroad, peer)?, answers(stock, peer)?];
    let mut found = Vec::new();
    for view in ["daemon", "status", "whois"] {
        let at = format!("socket.{view}");
        compare(&ours[view], &theirs[view], &at, &mut found);
    }
    disagreements(&ours, &peer.status()?["Self"], peer.name(), &mut found);
    Ok(found)
}

/// As they come: the command line's own commands print all fields that it knows.
fn answers(run: &dyn Fn(&[&str]) -> Result<String>, peer: &Member) -> Result<Value> {
    let get = |path: &str| -> Result<Value> {
        let text = run(&["debug", "localapi", "GET", path])?;
        Ok(serde_json::from_str(&text)?)
    };
    let daemon = get("status")?;
    let peers = daemon["Peer"].as_object().into_iter().flatten();
    let mut peers = peers.map(|(_, status)| status);
    let status = peers.find(|status| status["HostName"] == peer.name());
    let whois = get(&format!("whois?addr={}", peer.ip(4)?))?;
    Ok(json!({"status": status, "whois": whois, "daemon": daemon}))
}

/// Where others show a node otherwise than it shows itself.
fn disagreements(view: &Value, own: &Value, whose: &str, found: &mut Vec<String>) {
    for (field, places) in OWN {
        for place in *places {
            let (shown, own) = (at(view, place), &own[*field]);
            if in_order(shown) != in_order(own) {
                found.push(format!(
                    "{place} of {whose}: {shown}, and its own {field} is {own}"
                ));
            }
        }
    }
}

fn at<'a>(view: &'a Value, place: &str) -> &'a Value {
    view.pointer(place).unwrap_or(&Value::Null)
}

/// Lists stand for sets, and come in any order.
pub fn in_order(value: &Value) -> Value {
    let mut value = value.clone();
    if let Some(list) = value.as_array_mut() {
        list.sort_by_cached_key(Value::to_string);
    }
    value
}

/// A map of capabilities, of which those without values have null or an empty list.
pub fn capabilities(map: &Value) -> Value {
    let mut map = map.clone();
    if let Some(all) = map.as_object_mut() {
        for values in all.values_mut().filter(|values| values.is_null()) {
            *values = json!([]);
        }
    }
    map
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
            for field in theirs.keys().filter(|field| !ours.contains_key(*field)) {
                let may_lack = is_map || (is_of_host(at) && !TOLD.contains(&field.as_str()));
                let at = format!("{at}.{field}");
                if !may_lack && !BY_NATURE.contains(&at.as_str()) {
                    found.push(format!("{at}: only of stock"));
                }
            }
        }
        // Of lists the first entries are compared.
        (Value::Array(ours), Value::Array(theirs)) => match (ours.first(), theirs.first()) {
            (Some(ours), Some(theirs)) => compare(ours, theirs, &format!("{at}[0]"), found),
            (None, None) => {}
            _ if is_of_host(at) => {}
            (ours, _) => found.push(format!(
                "{at}: empty of {}, and not of the other",
                if ours.is_none() { "lowroad" } else { "stock" }
            )),
        },
        _ if kind(lowroad) == kind(stock) => {}
        (Value::Null, _) if at.contains(MEASURED) => {}
        _ => found.push(format!(
            "{at}: {} of lowroad, {} of stock",
            kind(lowroad),
            kind(stock)
        )),
    }
}

fn is_of_host(at: &str) -> bool {
    at.trim_start_matches("socket.").starts_with(HOST)
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
        let stock_node = json!({"Node": stock["Node"]});
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

    #[test]
    fn what_a_host_has_measured_is_told_of_both_and_on_lowroads_socket_of_none() {
        let host = |info: Value| json!({"Node": {"Hostinfo": info}});
        let measured = json!({"WorkingUDP": true, "UPnP": false, "PreferredDERP": 1});
        let stock = host(json!({"OS": "x", "NetInfo": measured}));
        let less = host(json!({"OS": "x", "NetInfo": {"WorkingUDP": true, "UPnP": null}}));
        assert!(found("whois", &less, &stock).is_empty());
        let wrong = host(json!({"OS": "x", "NetInfo": {"WorkingUDP": 1}}));
        assert_eq!(
            found("whois", &wrong, &stock),
            ["whois.Node.Hostinfo.NetInfo.WorkingUDP: a number of lowroad, a bool of stock"]
        );
        let none = host(json!({"OS": "x"}));
        assert_eq!(
            found("whois", &none, &stock),
            ["whois.Node.Hostinfo.NetInfo: only of stock"]
        );
        assert!(found("socket.whois", &none, &stock).is_empty());
        assert_eq!(
            found("socket.whois", &host(json!({})), &stock),
            ["socket.whois.Node.Hostinfo.OS: only of stock"]
        );
    }

    #[test]
    fn what_is_shown_of_a_node_is_what_it_says_of_itself() {
        let own = json!({"OS": "linux", "AllowedIPs": ["a", "b"], "Online": true});
        let node = json!({"AllowedIPs": ["b", "a"], "Online": true, "Hostinfo": {"OS": "linux"}});
        let status = json!({"OS": "linux", "AllowedIPs": ["a", "b"], "Online": true});
        let found = |view: Value| {
            let mut found = Vec::new();
            disagreements(&view, &own, "n", &mut found);
            found
        };
        let view = json!({"status": status, "whois": {"Node": node}});
        assert!(found(view.clone()).is_empty());
        let mut other = view.clone();
        other["status"]["AllowedIPs"] = json!(["a"]);
        other["whois"]["Node"]["Tags"] = json!(["tag:x"]);
        assert_eq!(
            found(other),
            [
                r#"/status/AllowedIPs of n: ["a"], and its own AllowedIPs is ["a","b"]"#,
                r#"/whois/Node/Tags of n: ["tag:x"], and its own Tags is null"#,
            ]
        );
    }
}
