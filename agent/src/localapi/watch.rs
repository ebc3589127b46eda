//! What watchers of the IPN bus ask for: the stock daemon's `ipn.NotifyWatchOpt`, as `mask` in the query.

use serde_json::Value;

/// The first notification has the state, the page to log in at, and a number of the watch.
pub const INITIAL_STATE: u64 = 1 << 1;
/// It has the preferences.
pub const INITIAL_PREFS: u64 = 1 << 2;
/// It has the netmap.
pub const INITIAL_NETMAP: u64 = 1 << 3;
/// It has what a person should look at.
pub const INITIAL_HEALTH: u64 = 1 << 7;
/// It has what `status` tells.
pub const INITIAL_STATUS: u64 = 1 << 14;
/// Peers that come, change and go are told of.
pub const PEERS: u64 = 1 << 12;
/// So are changes of them that are small; here they come whole, too.
const PEER_PATCHES: u64 = 1 << 15;

/// What this agent doesn't tell anybody.
const NOT_THERE: [(u64, &str); 2] = [
    (1 << 0, "engine updates"),
    (1 << 18, "the state of WireGuard of each peer"),
];

/// Reads the parameter `mask`; without it nothing is asked for but changes.
///
/// # Errors
/// It is no number, or asks for what there isn't.
pub fn read(text: Option<&str>) -> Result<u64, String> {
    let Some(text) = text.filter(|text| !text.is_empty()) else {
        return Ok(0);
    };
    let mask: u64 = text
        .parse()
        .map_err(|_| format!("the mask {text:?} is no number from 0 to {}", u64::MAX))?;
    match NOT_THERE.iter().find(|(bit, _)| mask & bit != 0) {
        Some((_, what)) => Err(format!("watchers are not told of {what} by this agent")),
        None => Ok(mask),
    }
}

/// What of a notification is for a watcher with this mask, if anything is.
pub fn reduced(mut notification: Value, mask: u64) -> Option<Value> {
    let fields = notification.as_object_mut()?;
    if mask & (PEERS | PEER_PATCHES) == 0 {
        fields.remove("PeersChanged");
        fields.remove("PeersRemoved");
    }
    fields
        .keys()
        .any(|name| name != "Version")
        .then_some(notification)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_mask_is_a_number_and_asks_for_what_there_is() {
        assert_eq!(read(None), Ok(0));
        assert_eq!(read(Some("")), Ok(0));
        assert_eq!(
            read(Some("4110")),
            Ok(INITIAL_STATE | INITIAL_PREFS | INITIAL_NETMAP | PEERS)
        );
        assert!(read(Some("state")).unwrap_err().contains("no number"));
        assert!(read(Some("-1")).is_err());
        assert!(read(Some("3")).unwrap_err().contains("engine updates"));
    }

    #[test]
    fn peers_are_told_to_those_who_asked_for_them() {
        let both = json!({"Version": "1", "State": 6, "PeersChanged": [], "PeersRemoved": [1]});
        let peers = json!({"Version": "1", "PeersRemoved": [1]});
        assert_eq!(reduced(both.clone(), PEERS), Some(both.clone()));
        assert_eq!(reduced(both, 0), Some(json!({"Version": "1", "State": 6})));
        assert_eq!(reduced(peers.clone(), PEER_PATCHES), Some(peers.clone()));
        assert_eq!(reduced(peers, INITIAL_STATE), None);
    }
}
