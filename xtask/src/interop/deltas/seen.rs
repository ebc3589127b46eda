//! What two nodes' statuses show of a third that changes, of the tailnet and of themselves, and where they differ.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use serde_json::{Map, Value, json};

use crate::{
    interop::{
        member::Member,
        shape::{capabilities, in_order},
    },
    tailnet::Client,
};

/// The two that look.
pub const WATCHERS: [&str; 2] = ["lowroad", "stock"];

/// What the netmap says of a peer, in a status. Left out is what each node finds out for itself: the path, WireGuard's session, traffic.
const FIELDS: &[&str] = &[
    "ID",
    "NodeID",
    "PublicKey",
    "HostName",
    "DNSName",
    "OS",
    "UserID",
    OWNER,
    "TailscaleIPs",
    "AllowedIPs",
    "Tags",
    "PrimaryRoutes",
    "Relay",
    "Created",
    "Online",
    "ExitNodeOption",
    "InNetworkMap",
    "Expired",
    "KeyExpiry",
];
/// The login of its user, which a status has elsewhere.
pub const OWNER: &str = "User.LoginName";
/// What it says of the node itself, where the two that look are not told apart.
const OWN_FIELDS: &[&str] = &[
    "OS",
    "UserID",
    OWNER,
    "Tags",
    "PrimaryRoutes",
    "Online",
    "ExitNodeOption",
    "InNetworkMap",
    "Expired",
    "KeyExpiry",
    "CapMap",
];

/// What a node's status shows of the tailnet.
#[derive(Debug, PartialEq)]
pub struct Seen {
    pub tailnet: Value,
    /// [`OWN_FIELDS`].
    pub own: Value,
    /// [`FIELDS`], by ID. Without the watchers, each of which sees the other alone.
    pub peers: BTreeMap<String, Value>,
}

impl Seen {
    pub fn by(watcher: &Member) -> Result<Self> {
        Ok(Self::of(&watcher.status()?))
    }

    fn of(status: &Value) -> Self {
        let peers = status["Peer"].as_object().into_iter().flatten();
        let others = peers.filter(|(_, peer)| {
            let name = peer["HostName"].as_str().unwrap_or_default();
            !WATCHERS.contains(&name)
        });
        Self {
            tailnet: json!({
                "MagicDNSSuffix": status["MagicDNSSuffix"],
                "CurrentTailnet": status["CurrentTailnet"],
                "ExtraRecords": status["ExtraRecords"],
                "CertDomains": status["CertDomains"],
            }),
            own: facts(&status["Self"], &status["User"], OWN_FIELDS),
            peers: others
                .map(|(_, peer)| (peer["ID"].to_string(), facts(peer, &status["User"], FIELDS)))
                .collect(),
        }
    }

    /// The one that is changed, and null while there is none.
    pub fn peer(&self) -> &Value {
        self.peers.values().next().unwrap_or(&Value::Null)
    }

    /// Fields in which a lowroad node sees something else than a stock one.
    pub fn differences(&self, lowroad: &Self) -> Vec<String> {
        let mut found = Vec::new();
        let mut compare = |what: &str, theirs: &Value, ours: &Value| {
            if theirs != ours {
                found.push(format!("{what}: stock {theirs}, lowroad {ours}"));
            }
        };
        compare("tailnet", &self.tailnet, &lowroad.tailnet);
        for field in OWN_FIELDS {
            let what = format!("own {field}");
            compare(&what, &self.own[*field], &lowroad.own[*field]);
        }
        let both = self.peers.keys().chain(lowroad.peers.keys());
        for id in both.collect::<BTreeSet<_>>() {
            let theirs = self.peers.get(id).unwrap_or(&Value::Null);
            let ours = lowroad.peers.get(id).unwrap_or(&Value::Null);
            for field in FIELDS {
                compare(&format!("{field} of {id}"), &theirs[*field], &ours[*field]);
            }
        }
        found
    }
}

fn facts(node: &Value, users: &Value, fields: &[&str]) -> Value {
    let mut facts = Map::new();
    for field in fields {
        let value = match *field {
            "CapMap" => capabilities(&node[*field]),
            _ => in_order(&node[*field]),
        };
        facts.insert((*field).to_owned(), value);
    }
    let user = node["UserID"].to_string();
    facts.insert(OWNER.to_owned(), users[user.as_str()]["LoginName"].clone());
    if node["Expired"] == true {
        // Stock spoils the key of a peer that it finds expired, where the server has not.
        facts.insert("PublicKey".to_owned(), Value::Null);
    }
    facts.into()
}

/// The peer's field is this; null for one that is not there.
pub fn is(field: &'static str, value: impl Into<Value>) -> impl Fn(&Seen) -> bool {
    let value = value.into();
    move |seen: &Seen| {
        let peer = seen.peer();
        !peer.is_null() && peer[field] == value
    }
}

/// The watcher's own field is this; null for one that is not there.
pub fn own(field: &'static str, value: impl Into<Value>) -> impl Fn(&Seen) -> bool {
    let value = value.into();
    move |seen: &Seen| seen.own[field] == value
}

/// The peer's list has this entry.
pub fn has(field: &'static str, entry: &'static str) -> impl Fn(&Seen) -> bool {
    move |seen: &Seen| {
        let list = seen.peer()[field].as_array();
        list.is_some_and(|list| list.iter().any(|one| one == entry))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(peer: &Value) -> Value {
        json!({
            "MagicDNSSuffix": "tail.lab", "CurrentTailnet": {"Name": "tail.lab"},
            "User": {"7": {"LoginName": "ann"}},
            "Peer": {"a": {"ID": "1", "HostName": "stock"}, "b": peer},
        })
    }

    #[test]
    fn what_each_node_finds_out_for_itself_and_the_order_of_lists_are_no_differences() {
        let seen = |peer: Value| Seen::of(&status(&peer));
        let stock = seen(
            json!({"ID": "2", "HostName": "peer", "UserID": 7, "Tags": ["tag:a", "tag:b"], "CurAddr": "x"}),
        );
        let same = seen(
            json!({"ID": "2", "HostName": "peer", "UserID": 7, "Tags": ["tag:b", "tag:a"], "CurAddr": "y"}),
        );
        assert!(stock.differences(&same).is_empty());
        assert!(is(OWNER, "ann")(&stock) && has("Tags", "tag:a")(&stock));
        assert!(is("Expired", Value::Null)(&stock) && !is("Expired", true)(&stock));
        let other = seen(json!({"ID": "2", "HostName": "peer", "UserID": 8, "Online": true}));
        let found = stock.differences(&other);
        let wanted = [
            r#"UserID of "2": stock 7, lowroad 8"#,
            r#"User.LoginName of "2": stock "ann", lowroad null"#,
            r#"Tags of "2": stock ["tag:a","tag:b"], lowroad null"#,
            r#"Online of "2": stock null, lowroad true"#,
        ];
        assert_eq!(found, wanted);
    }

    #[test]
    fn what_is_the_watchers_own_is_compared_but_for_what_tells_them_apart() {
        let seen = |name: &str, tags: Value, caps: Value, records: Value| {
            Seen::of(&json!({
                "ExtraRecords": records, "User": {"7": {"LoginName": "ann"}},
                "Self": {"ID": name, "UserID": 7, "Tags": tags, "CapMap": caps},
            }))
        };
        let stock = seen("1", json!(["tag:a"]), json!({"ssh": null}), Value::Null);
        let same = seen("2", json!(["tag:a"]), json!({"ssh": []}), Value::Null);
        assert!(stock.differences(&same).is_empty());
        assert!(own(OWNER, "ann")(&same) && own("Tags", vec!["tag:a"])(&same));
        assert!(own("KeyExpiry", Value::Null)(&same) && !own("Tags", Value::Null)(&same));
        let other = seen("2", Value::Null, json!({}), json!([]));
        let found = stock.differences(&other);
        assert_eq!(found.len(), 3, "{found:?}");
        assert!(found[0].starts_with("tailnet: stock {"), "{found:?}");
        let wanted = [
            r#"own Tags: stock ["tag:a"], lowroad null"#,
            r#"own CapMap: stock {"ssh":[]}, lowroad {}"#,
        ];
        assert_eq!(found[1..], wanted);
    }

    #[test]
    fn without_the_peer_no_field_is_anything() {
        let none = Seen::of(&json!({"Peer": {"a": {"ID": "1", "HostName": "lowroad"}}}));
        assert!(none.peers.is_empty() && none.peer().is_null());
        assert!(!is("Expired", Value::Null)(&none) && !has("Tags", "tag:a")(&none));
    }
}
