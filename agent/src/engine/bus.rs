//! The IPN bus: what the stock daemon's watchers are told (`ipn.Notify`), by whichever fields the stock client reads (protocol.md 8).

use std::{collections::BTreeSet, sync::Arc};

use lowroad_wire::{
    control::{Node, NodeId, UserId, UserProfile},
    netmap::NetMap,
};
use serde_json::{Map, Value, json};
use tokio::sync::broadcast;

use super::{Engine, lifecycle::LONG_MAP};
use crate::{
    localapi::watch::{self, Watcher},
    prefs::Prefs,
    process::without_stalling,
    status::{BackendState, version},
};

/// Notifications that a slow watcher may be behind.
const BEHIND: usize = 64;

/// Who watches, and what they know.
#[derive(Debug)]
pub struct Bus {
    plain: broadcast::Sender<Arc<Value>>,
    /// To those who are told of peers, too.
    with_peers: broadcast::Sender<Arc<Value>>,
    told: Told,
    watchers: u64,
}

/// What was told last.
#[derive(Debug, Default)]
struct Told {
    state: Option<BackendState>,
    url: Option<String>,
    prefs: Option<Prefs>,
    own: Option<Node>,
    registered: Option<()>,
    failure: Option<String>,
    peers: BTreeSet<NodeId>,
}

impl Default for Bus {
    fn default() -> Self {
        Self {
            plain: broadcast::channel(BEHIND).0,
            with_peers: broadcast::channel(BEHIND).0,
            told: Told::default(),
            watchers: 0,
        }
    }
}

impl Bus {
    /// Whoever has just asked for something waits to be told how it stands, also if that is as it was.
    pub fn tell_again(&mut self) {
        self.told.state = None;
        self.told.url = None;
        self.told.failure = None;
    }

    /// Something that was asked for has failed.
    pub fn tell_failure(&mut self, why: &str) {
        let fields = Map::from_iter([("ErrMessage".to_owned(), json!(why))]);
        self.send(fields, Map::new());
        self.told.failure = Some(why.to_owned());
    }

    fn send(&self, news: Map<String, Value>, of_peers: Map<String, Value>) {
        let send = |to: &broadcast::Sender<Arc<Value>>, fields: Map<String, Value>| {
            if !fields.is_empty() {
                // Nobody listening is no error.
                let _ = to.send(Arc::new(notification(fields)));
            }
        };
        if self.is_told_of_peers() {
            let all = news.clone().into_iter().chain(of_peers);
            send(&self.with_peers, all.collect());
        }
        send(&self.plain, news);
    }

    fn watcher(&self, mask: u64) -> Watcher {
        Watcher::new(match watch::wants_peers(mask) {
            true => self.with_peers.subscribe(),
            false => self.plain.subscribe(),
        })
    }

    /// Whether anybody is told of peers.
    fn is_told_of_peers(&self) -> bool {
        self.with_peers.receiver_count() > 0
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
    pub(super) fn watch(&mut self, mask: u64) -> (Vec<Value>, Watcher) {
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
            && let Some(netmap) = without_stalling(|| self.netmap_for_watchers())
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
        (first.into_iter().collect(), self.bus.watcher(mask))
    }

    /// Tells all watchers what is other than before.
    pub(super) fn tell_watchers(&mut self) {
        let state = self.backend_state();
        let url = Some(self.auth_url().to_owned()).filter(|url| !url.is_empty());
        let session = self.session.as_ref();
        let registered = session.and_then(|session| session.registered.as_ref().map(|_| ()));
        let failure = self.final_failure();
        let (mut news, mut told) = (Map::new(), std::mem::take(&mut self.bus.told));
        let mut tell = |name: &str, value: Value| drop(news.insert(name.to_owned(), value));
        if let Some(state) = anew(&mut told.state, Some(&state)) {
            tracing::info!(?state, "state");
            tell("State", json!(state.number()));
        }
        if let Some(prefs) = anew(&mut told.prefs, Some(&self.prefs)) {
            tell("Prefs", prefs.to_stock_json());
        }
        if let Some(url) = anew(&mut told.url, url.as_ref()) {
            tell("BrowseToURL", json!(url));
        }
        if anew(&mut told.registered, registered.as_ref()).is_some() {
            tell("LoginFinished", json!({}));
        }
        let own = self.map().and_then(|map| map.self_node.as_ref());
        if let Some(own) = anew(&mut told.own, own) {
            tell("SelfChange", json!(own));
        }
        if let Some(why) = anew(&mut told.failure, failure.as_ref()) {
            tell("ErrMessage", json!(why));
        }
        let of_peers = self.news_of_peers(&mut told.peers);
        self.bus.told = told;
        self.bus.send(news, of_peers);
    }

    fn news_of_peers(&mut self, told: &mut BTreeSet<NodeId>) -> Map<String, Value> {
        let mut news = Map::new();
        let session = self.session.as_mut();
        let (changed, removed) = match session.and_then(|session| session.node.as_mut()) {
            Some(node) => node.take_news(told),
            None => (BTreeSet::new(), std::mem::take(told)),
        };
        if !self.bus.is_told_of_peers() {
            return news;
        }
        if let Some(map) = self.map().filter(|_| !changed.is_empty()) {
            let write = || written(map, &changed);
            news.extend(match changed.len() > LONG_MAP {
                true => without_stalling(write),
                false => write(),
            });
        }
        if !removed.is_empty() {
            news.insert("PeersRemoved".to_owned(), json!(removed));
        }
        news
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
        let profiles = profiles(map.users.iter());
        Some(json!({
            "SelfNode": own,
            // A set, which Go writes as a list.
            "AllCaps": own.cap_map.keys().collect::<Vec<_>>(),
            "NodeKey": own.key,
            "Peers": map.peers.values().map(|peer| &**peer).collect::<Vec<&Node>>(),
            "DNS": map.dns,
            "Domain": map.domain,
            "UserProfiles": profiles,
        }))
    }
}

/// What is there, if it isn't what was told; it is told from now on.
fn anew<'a, T: Clone + PartialEq>(told: &mut Option<T>, there: Option<&'a T>) -> Option<&'a T> {
    if told.as_ref() == there {
        return None;
    }
    *told = there.cloned();
    there
}

/// These peers, and who their owners are.
fn written(map: &NetMap, peers: &BTreeSet<NodeId>) -> Map<String, Value> {
    let peers = peers.iter().filter_map(|id| map.peers.get(id));
    let peers: Vec<&Node> = peers.map(|peer| &**peer).collect();
    let owners: BTreeSet<_> = peers.iter().map(|peer| peer.user).collect();
    let owners = owners.iter().filter_map(|id| map.users.get_key_value(id));
    let (owners, mut fields) = (profiles(owners), Map::new());
    if !peers.is_empty() {
        fields.insert("PeersChanged".to_owned(), json!(peers));
    }
    if !owners.is_empty() {
        fields.insert("UserProfiles".to_owned(), Value::Object(owners));
    }
    fields
}

fn profiles<'a>(users: impl Iterator<Item = (&'a UserId, &'a UserProfile)>) -> Map<String, Value> {
    users
        .map(|(id, profile)| (id.0.to_string(), json!(profile)))
        .collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(value: Value) -> Map<String, Value> {
        value.as_object().expect("it is one").clone()
    }

    #[tokio::test]
    async fn peers_are_told_to_those_who_asked_for_them_and_written_down_for_nobody_else() {
        let bus = Bus::default();
        let mut plain = bus.watcher(watch::INITIAL_STATE | watch::INITIAL_NETMAP);
        assert!(!bus.is_told_of_peers());
        let mut peers = bus.watcher(watch::PEERS);
        assert!(bus.is_told_of_peers());
        let removed = || fields(json!({"PeersRemoved": [1]}));
        bus.send(Map::new(), removed());
        bus.send(fields(json!({"State": 6})), removed());
        let first = plain.next().await.expect("it is told");
        assert_eq!(*first, json!({"Version": version(), "State": 6}));
        let first = peers.next().await.expect("it is told");
        assert_eq!(*first, json!({"Version": version(), "PeersRemoved": [1]}));
        let second = peers.next().await.expect("it is told");
        let both = json!({"Version": version(), "State": 6, "PeersRemoved": [1]});
        assert_eq!(*second, both);
        drop(peers);
        assert!(!bus.is_told_of_peers());
    }
}
