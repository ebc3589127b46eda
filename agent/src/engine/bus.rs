//! The IPN bus: what the stock daemon's watchers are told (`ipn.Notify`), by whichever fields the stock client reads (protocol.md 8).

use std::collections::BTreeSet;

use lowroad_wire::control::{Node, NodeId};
use serde_json::{Map, Value, json};
use tokio::sync::broadcast;

use super::Engine;
use crate::{
    localapi::watch,
    prefs::Prefs,
    status::{BackendState, version},
};

/// Notifications that a slow watcher may be behind.
const BEHIND: usize = 64;

/// Who watches, and what they know.
#[derive(Debug)]
pub struct Bus {
    sender: broadcast::Sender<Value>,
    told: Told,
    watchers: u64,
}

/// What was told last.
#[derive(Debug, Default)]
struct Told {
    state: Option<BackendState>,
    url: String,
    prefs: Option<Prefs>,
    own: Option<Node>,
    registered: bool,
    failure: Option<String>,
}

impl Default for Bus {
    fn default() -> Self {
        Self {
            sender: broadcast::channel(BEHIND).0,
            told: Told::default(),
            watchers: 0,
        }
    }
}

impl Bus {
    /// Whoever has just asked for something waits to be told how it stands, also if that is as it was.
    pub fn tell_again(&mut self) {
        self.told.state = None;
        self.told.url.clear();
        self.told.failure = None;
    }

    /// Something that was asked for has failed.
    pub fn tell_failure(&mut self, why: &str) {
        let fields = Map::from_iter([("ErrMessage".to_owned(), json!(why))]);
        // Nobody listening is no error.
        let _ = self.sender.send(notification(fields));
        self.told.failure = Some(why.to_owned());
    }
}

/// A notification with these fields.
fn notification(fields: Map<String, Value>) -> Value {
    let mut all = Map::from_iter([("Version".to_owned(), json!(version()))]);
    all.extend(fields);
    Value::Object(all)
}

impl Engine {
    /// What a new watcher wants to be told first, if it wants anything, and what is told from now on.
    pub(super) fn watch(&mut self, mask: u64) -> (Vec<Value>, broadcast::Receiver<Value>) {
        let mut first = Map::new();
        let mut tell = |name: &str, value: Value| first.insert(name.to_owned(), value);
        if mask & watch::INITIAL_STATE != 0 {
            self.bus.watchers += 1;
            tell("SessionID", json!(format!("{:x}", self.bus.watchers)));
            tell("State", json!(self.backend_state().number()));
            let url = self.auth_url();
            if !url.is_empty() {
                tell("BrowseToURL", json!(url));
            }
        }
        if mask & watch::INITIAL_PREFS != 0 {
            tell("Prefs", self.prefs.to_stock_json());
        }
        if mask & watch::INITIAL_NETMAP != 0
            && let Some(netmap) = self.netmap_for_watchers()
        {
            tell("NetMap", netmap);
        }
        if mask & watch::INITIAL_STATUS != 0 {
            tell("InitialStatus", json!(self.status(true)));
        }
        if mask & watch::INITIAL_HEALTH != 0 {
            tell("Health", health(&self.health()));
        }
        let first = (!first.is_empty()).then(|| notification(first));
        (first.into_iter().collect(), self.bus.sender.subscribe())
    }

    /// Tells all watchers what is other than before.
    pub(super) fn tell_watchers(&mut self) {
        let state = self.backend_state();
        let (changed, removed) = self.take_news();
        let url = self.auth_url().to_owned();
        let registered = self
            .session
            .as_ref()
            .is_some_and(|session| session.registered.is_some());
        let failure = self.final_failure();
        let mut news = Map::new();
        let mut tell = |name: &str, value: Value| news.insert(name.to_owned(), value);
        if self.bus.told.state != Some(state) {
            tracing::info!(?state, "state");
            self.bus.told.state = Some(state);
            tell("State", json!(state.number()));
        }
        if self.bus.told.prefs.as_ref() != Some(&self.prefs) {
            self.bus.told.prefs = Some(self.prefs.clone());
            tell("Prefs", self.prefs.to_stock_json());
        }
        if self.bus.told.url != url {
            if !url.is_empty() {
                tell("BrowseToURL", json!(url));
            }
            self.bus.told.url = url;
        }
        if registered && !self.bus.told.registered {
            tell("LoginFinished", json!({}));
        }
        self.bus.told.registered = registered;
        let own = self.map().and_then(|map| map.self_node.as_ref());
        if own != self.bus.told.own.as_ref() {
            let own = own.cloned();
            if let Some(own) = &own {
                tell("SelfChange", json!(own));
            }
            self.bus.told.own = own;
        }
        if self.bus.told.failure != failure {
            if let Some(why) = &failure {
                tell("ErrMessage", json!(why));
            }
            self.bus.told.failure = failure;
        }
        if self.bus.sender.receiver_count() == 0 {
            return;
        }
        if let Some(map) = self.map().filter(|_| !changed.is_empty()) {
            let peers = changed.iter().filter_map(|id| map.peers.get(id));
            let peers: Vec<&Node> = peers.map(|peer| &**peer).collect();
            if !peers.is_empty() {
                tell("PeersChanged", json!(peers));
            }
        }
        if !removed.is_empty() {
            tell("PeersRemoved", json!(removed));
        }
        if !news.is_empty() {
            // Nobody listening is no error.
            let _ = self.bus.sender.send(notification(news));
        }
    }

    fn take_news(&mut self) -> (BTreeSet<NodeId>, BTreeSet<NodeId>) {
        let node = self
            .session
            .as_mut()
            .and_then(|session| session.node.as_mut());
        node.map(super::node::Node::take_news).unwrap_or_default()
    }

    fn auth_url(&self) -> &str {
        self.session
            .as_ref()
            .map_or("", |session| &session.auth_url)
    }

    /// What no waiting helps against.
    fn final_failure(&self) -> Option<String> {
        let trouble = self
            .session
            .as_ref()
            .and_then(|session| session.trouble.as_ref());
        let trouble = trouble.filter(|trouble| trouble.ends_up);
        self.failure
            .clone()
            .or_else(|| trouble.map(|trouble| trouble.message.clone()))
    }

    /// The stock daemon's `netmap.NetworkMap`, as far as programs read it.
    fn netmap_for_watchers(&self) -> Option<Value> {
        let map = self.map()?;
        let own = map.self_node.as_ref()?;
        let profiles: Map<String, Value> = map
            .users
            .iter()
            .map(|(id, profile)| (id.0.to_string(), json!(profile)))
            .collect();
        Some(json!({
            "SelfNode": own,
            "AllCaps": own.cap_map.keys().map(|name| (name.clone(), json!({}))).collect::<Map<_, _>>(),
            "NodeKey": own.key,
            "Peers": map.peers.values().map(|peer| &**peer).collect::<Vec<&Node>>(),
            "DNS": map.dns,
            "Domain": map.domain,
            "UserProfiles": profiles,
        }))
    }
}

/// The stock daemon's `health.State`.
fn health(lines: &[String]) -> Value {
    let warnings: Map<String, Value> = lines
        .iter()
        .enumerate()
        .map(|(at, line)| {
            let code = format!("lowroad-{at}");
            let warning =
                json!({"WarnableCode": code, "Severity": "medium", "Title": line, "Text": line});
            (code, warning)
        })
        .collect();
    json!({"Warnings": warnings})
}
