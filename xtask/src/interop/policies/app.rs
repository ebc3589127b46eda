//! Grants of capabilities to applications: what either node's `whois` says of those that reach it.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{LIMIT, Tailnet};
use crate::{
    interop::{member::Member, shape::capabilities},
    tailnet::Client,
    wait,
};

/// Grants, and what ann and bob have by them at both nodes; a tagged node has nothing, as it is no member.
const GRANTS: [(&str, &str, &str); 3] = [
    (
        r#"{"src": ["bob@"], "dst": ["ann@"], "app": {"lab.example/cap/x": [{"n": 5}]}}"#,
        "null",
        r#"{"lab.example/cap/x": [{"n": 5}]}"#,
    ),
    (
        r#"{"src": ["bob@"], "dst": ["ann@"], "app": {"lab.example/cap/x": [{"n": 6}], "lab.example/cap/y": []}},
           {"src": ["autogroup:member"], "dst": ["100.64.0.0/10"], "ip": ["tcp:80"], "app": {"lab.example/cap/x": [{"n": 7}, "seven"]}}"#,
        r#"{"lab.example/cap/x": [{"n": 7}, "seven"]}"#,
        r#"{"lab.example/cap/x": [{"n": 6}, {"n": 7}, "seven"], "lab.example/cap/y": []}"#,
    ),
    (
        r#"{"src": ["bob@"], "dst": ["bob@"], "app": {"lab.example/cap/x": [{"n": 8}]}}"#,
        "null",
        "null",
    ),
];

pub(super) fn granted(tailnet: &Tailnet) -> Result<String> {
    for (grants, of_ann, of_bob) in GRANTS {
        tailnet.set_policy(&format!(r#"{{"grants": [{grants}]}}"#))?;
        for node in tailnet.nodes() {
            let peers = tailnet.sources();
            for (peer, wanted) in peers.into_iter().zip([of_ann, of_bob, "null"]) {
                let wanted: Value = serde_json::from_str(wanted)?;
                wait::wait_for("the capabilities", LIMIT, || {
                    let found = of(peer, node)?;
                    ensure!(found == wanted, "{found} instead of {wanted}");
                    Ok(Some(()))
                })
                .with_context(|| format!("of {} at {}", peer.name(), node.name()))?;
            }
        }
    }
    let shown = GRANTS.map(|(_, _, of_bob)| of_bob);
    Ok(format!("of bob at both: {}", shown.join(", then ")))
}

/// As `whois` lists them.
fn of(peer: &Member, node: &Member) -> Result<Value> {
    let text = node.cli(&["whois", "--json", &peer.ip(4)?.to_string()])?;
    let who: Value = serde_json::from_str(&text)?;
    Ok(capabilities(&who["CapMap"]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grants_and_what_they_give_are_json() {
        for (grants, of_ann, of_bob) in GRANTS {
            let grants = format!("[{grants}]");
            for text in [grants.as_str(), of_ann, of_bob] {
                assert!(serde_json::from_str::<Value>(text).is_ok(), "{text}");
            }
        }
    }
}
