//! What watchers of the IPN bus ask for: the stock daemon's `ipn.NotifyWatchOpt`, as `mask` in the query.

use std::sync::Arc;

use hyper::StatusCode;
use serde_json::{Value, json};
use tokio::sync::broadcast;

use super::Refusal;
use crate::status::version;

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

/// Only for those who watch from inside the stock daemon.
const IN_PROCESS: u64 = 1 << 16;
/// What WireGuard of each peer does, which this agent doesn't tell.
const WIREGUARD: u64 = 1 << 18;

/// As the stock daemon says it.
const FELL_BEHIND: &str = "IPN bus consumer fell behind; closing watch";

/// Reads the parameter `mask`; without it nothing is asked for but changes. Other bits ask for what never happens here, such as updates of the engine's
/// counters, files that are sent and exit nodes that are suggested, or for less.
///
/// # Errors
/// It is no number, or asks for what there isn't.
pub fn read(text: Option<&str>) -> Result<u64, Refusal> {
    let Some(text) = text.filter(|text| !text.is_empty()) else {
        return Ok(0);
    };
    let bad = |why: &str| Err(Refusal::new(StatusCode::BAD_REQUEST, why));
    match text.parse::<u64>() {
        Err(_) => bad(&format!(
            "the mask {text:?} is no number from 0 to {}",
            u64::MAX
        )),
        Ok(mask) if mask & IN_PROCESS != 0 => bad("only the daemon itself may watch so"),
        Ok(mask) if mask & WIREGUARD != 0 => Err(Refusal::new(
            StatusCode::NOT_IMPLEMENTED,
            "watchers are not told of the state of WireGuard of each peer by this agent",
        )),
        Ok(mask) => Ok(mask),
    }
}

/// Whoever watches, as long as it does.
#[derive(Debug)]
pub struct Watcher {
    /// `None` once it has fallen behind.
    notifications: Option<broadcast::Receiver<Arc<Value>>>,
}

impl Watcher {
    pub fn new(notifications: broadcast::Receiver<Arc<Value>>) -> Self {
        Self {
            notifications: Some(notifications),
        }
    }

    /// The next notification. One that fell behind is told so, and nothing more: what it missed it wouldn't be told again.
    pub async fn next(&mut self) -> Option<Arc<Value>> {
        match self.notifications.as_mut()?.recv().await {
            Ok(notification) => Some(notification),
            Err(broadcast::error::RecvError::Lagged(_)) => {
                self.notifications = None;
                let last = json!({"Version": version(), "ErrMessage": FELL_BEHIND});
                Some(Arc::new(last))
            }
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }
}

/// Whether a watcher with this mask is told of peers, and of their owners.
pub fn wants_peers(mask: u64) -> bool {
    mask & (PEERS | PEER_PATCHES) != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_is_a_number_and_asks_for_what_there_is() {
        let mask = |text| read(text).map_err(|refusal| refusal.status);
        assert_eq!(mask(None), Ok(0));
        assert_eq!(mask(Some("")), Ok(0));
        assert_eq!(
            mask(Some("4110")),
            Ok(INITIAL_STATE | INITIAL_PREFS | INITIAL_NETMAP | PEERS)
        );
        // Of the engine, and the netmap: as programs ask that wait for it.
        assert_eq!(mask(Some("9")), Ok(1 | INITIAL_NETMAP));
        for no_mask in ["state", "-1", "65536"] {
            assert_eq!(mask(Some(no_mask)), Err(StatusCode::BAD_REQUEST));
        }
        assert_eq!(mask(Some("262144")), Err(StatusCode::NOT_IMPLEMENTED));
    }

    #[tokio::test]
    async fn a_watcher_that_falls_behind_is_told_so_and_nothing_more() {
        let (sender, receiver) = broadcast::channel(2);
        let mut watcher = Watcher::new(receiver);
        for state in 0..3 {
            sender
                .send(Arc::new(json!({"State": state})))
                .expect("somebody watches");
        }
        let last = watcher.next().await.expect("it is told");
        assert_eq!(last["ErrMessage"], FELL_BEHIND);
        assert_eq!(watcher.next().await, None);
    }
}
