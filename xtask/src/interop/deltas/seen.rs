//! What two nodes' statuses show of a third that changes, and where they differ.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use serde_json::{Map, Value, json};

use crate::{interop::member::Member, tailnet::Client};

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

/// What a node's status shows of the tailnet.
#[derive(Debug)]
pub struct Seen {
    pub tailnet: Value,
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
            }),
            peers: others
                .map(|(_, peer)| (peer["ID"].to_string(), facts(peer, &status["User"])))
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

fn facts(peer: &Value, users: &Value) -> Value {
    let mut facts = Map::new();
    for field in FIELDS {
        facts.insert((*field).to_owned(), in_order(&peer[*field]));
    }
    let user = peer["UserID"].to_string();
    facts.insert(OWNER.to_owned(), users[user.as_str()]["LoginName"].clone());
    if peer["Expired"] == true {
        // Stock spoils the key of a peer that it finds expired, where the server has not.
        facts.insert("PublicKey".to_owned(), Value::Null);
    }
    facts.into()
}

/// Lists stand for sets.
pub fn in_order(value: &Value) -> Value {
    let Some(list) = value.as_array() else {
        return value.clone();
    };
    let mut list = list.clone();
    list.sort_by_cached_key(Value::to_string);
    list.into()
}

/// The peer's field is this; null for one that is not there.
pub fn is(field: &'static str, value: impl Into<Value>) -> impl Fn(&Seen) -> bool {
    let value = value.into();
    move |seen: &Seen| {
        let peer = seen.peer();
        !peer.is_null() && peer[field] == value
    }
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
    fn without_the_peer_no_field_is_anything() {
        let none = Seen::of(&json!({"Peer": {"a": {"ID": "1", "HostName": "lowroad"}}}));
        assert!(none.peers.is_empty() && none.peer().is_null());
        assert!(!is("Expired", Value::Null)(&none) && !has("Tags", "tag:a")(&none));
    }
}
