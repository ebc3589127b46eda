//! The netmap: what the messages of one map stream add up to (protocol.md 1.7).

mod room;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde_json::Value;
use time::OffsetDateTime;

use crate::control::{
    ClientVersion, ControlDialPlan, DerpMap, DisplayMessage, DnsConfig, FilterRule, MapResponse,
    Node, NodeId, PeerChange, TkaInfo, UserId, UserProfile,
};

pub use self::room::Room;

/// The name of the filter that the field without a name stands for.
const BASE: &str = "base";
/// In a map of changes: everything.
const ALL: &str = "*";

/// Most peers, and most users, of a netmap. One message cannot hold many more; any number of differences can.
pub const MAX_NODES: usize = 1 << 17;
/// Most named filters, and most messages for people.
const MAX_NAMED: usize = 256;

/// What we know of the tailnet. Every map stream begins with an empty one.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NetMap {
    pub self_node: Option<Node>,
    /// Shared with whoever follows the netmap: most of them stay as they are for long.
    pub peers: BTreeMap<NodeId, Arc<Node>>,
    /// In force is their concatenation, see [`Self::filter_rules`].
    pub filters: BTreeMap<String, Vec<FilterRule>>,
    pub derp_map: DerpMap,
    pub dns: DnsConfig,
    pub users: BTreeMap<UserId, UserProfile>,
    /// Name of the tailnet.
    pub domain: String,
    pub health: Vec<String>,
    pub display_messages: BTreeMap<String, DisplayMessage>,
    pub ssh_policy: Option<Value>,
    pub collect_services: Option<bool>,
    pub tka: Option<TkaInfo>,
    pub dial_plan: Option<ControlDialPlan>,
    pub client_version: Option<ClientVersion>,
    pub audit_log_id: String,
    /// The control server's clock minus ours, as of the last message that told it.
    pub clock_offset: Option<time::Duration>,
    /// What peers, users, filters and messages for people take. There is an end to it.
    pub room: Room,
}

/// What a message changed. A part that was sent again as it was has not changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    pub self_node: bool,
    pub peers_added: BTreeSet<NodeId>,
    pub peers_changed: BTreeSet<NodeId>,
    pub peers_removed: BTreeSet<NodeId>,
    pub filter: bool,
    pub derp: bool,
    pub dns: bool,
    pub users: bool,
    pub domain: bool,
    pub health: bool,
    pub ssh: bool,
    /// Peers, users, filters and messages that there was no room for.
    pub left_out: usize,
}

impl Changes {
    pub fn any_peers(&self) -> bool {
        !(self.peers_added.is_empty()
            && self.peers_changed.is_empty()
            && self.peers_removed.is_empty())
    }

    /// All that were added, changed or removed.
    pub fn peers(&self) -> impl Iterator<Item = NodeId> {
        let changed = self.peers_added.iter().chain(&self.peers_changed);
        changed.chain(&self.peers_removed).copied()
    }

    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Skews below this are network latency (protocol.md 1.6).
pub const MIN_CLOCK_SKEW: time::Duration = time::Duration::MINUTE;

impl NetMap {
    /// Takes in one message. `now` is our clock.
    pub fn apply(&mut self, response: MapResponse, now: OffsetDateTime) -> Changes {
        if let Some(control_time) = response.control_time {
            self.clock_offset = Some(control_time - now);
        }
        if let Some(plan) = response.control_dial_plan {
            self.dial_plan = Some(plan);
        }
        if let Some(version) = response.client_version {
            self.client_version = Some(version);
        }
        let mut changes = Changes::default();
        // A keep-alive carries nothing else, whatever else it carries.
        if response.keep_alive {
            return changes;
        }
        if let Some(node) = response.node {
            changes.self_node = replace(&mut self.self_node, Some(node));
        }
        if let Some(update) = response.derp_map {
            let mut map = self.derp_map.clone();
            map.apply(update);
            changes.derp = replace(&mut self.derp_map, map);
        }
        if let Some(dns) = response.dns_config {
            changes.dns = replace(&mut self.dns, dns);
        }
        if !response.domain.is_empty() {
            changes.domain = replace(&mut self.domain, response.domain);
        }
        for profile in response.user_profiles {
            self.put_user(profile, &mut changes);
        }
        if let Some(health) = response.health {
            changes.health |= replace(&mut self.health, health);
        }
        if let Some(policy) = response.ssh_policy {
            changes.ssh = replace(&mut self.ssh_policy, Some(policy));
        }
        if response.collect_services.is_some() {
            self.collect_services = response.collect_services;
        }
        if response.tka_info.is_some() {
            self.tka = response.tka_info;
        }
        if !response.domain_data_plane_audit_log_id.is_empty() {
            self.audit_log_id = response.domain_data_plane_audit_log_id;
        }
        changes.health |=
            self.apply_display_messages(response.display_messages, &mut changes.left_out);
        changes.filter = self.apply_filters(
            response.packet_filter,
            response.packet_filters,
            &mut changes.left_out,
        );
        let peers = PeerChanges {
            all: response.peers,
            removed: response.peers_removed,
            changed: response.peers_changed,
            seen: response.peer_seen_change,
            online: response.online_change,
            patches: response.peers_changed_patch,
        };
        self.apply_peers(peers, now, &mut changes);
        changes
    }

    fn put_user(&mut self, profile: UserProfile, changes: &mut Changes) {
        let known = self.users.get(&profile.id);
        if known == Some(&profile) {
            return;
        }
        let room = Room::of(&profile);
        let full = known.is_none() && self.users.len() >= MAX_NODES;
        if full || !self.room.has_room_for(room) {
            changes.left_out += 1;
            return;
        }
        self.room.take(room);
        if let Some(before) = self.users.insert(profile.id, profile) {
            self.room.give(Room::of(&before));
        }
        changes.users = true;
    }

    /// One message from which an empty netmap becomes this one, but for its clock: for keeping it.
    pub fn to_response(&self) -> MapResponse {
        let named =
            |(name, rules): (&String, &Vec<FilterRule>)| (name.clone(), Some(rules.clone()));
        let messages = self.display_messages.iter();
        MapResponse {
            node: self.self_node.clone(),
            derp_map: Some(self.derp_map.clone().into()),
            peers: self.peers.values().cloned().collect(),
            dns_config: Some(self.dns.clone()),
            domain: self.domain.clone(),
            collect_services: self.collect_services,
            packet_filters: self.filters.iter().map(named).collect(),
            user_profiles: self.users.values().cloned().collect(),
            health: Some(self.health.clone()),
            display_messages: messages
                .map(|(id, message)| (id.clone(), Some(message.clone())))
                .collect(),
            ssh_policy: self.ssh_policy.clone(),
            tka_info: self.tka.clone(),
            domain_data_plane_audit_log_id: self.audit_log_id.clone(),
            control_dial_plan: self.dial_plan.clone(),
            client_version: self.client_version.clone(),
            ..MapResponse::default()
        }
    }

    /// The rules in force, in the order of their filters' names.
    pub fn filter_rules(&self) -> impl Iterator<Item = &FilterRule> {
        self.filters.values().flatten()
    }

    /// The control server's time, which decides what has expired.
    pub fn control_time(&self, now: OffsetDateTime) -> OffsetDateTime {
        match self.clock_offset {
            Some(offset) if offset.abs() > MIN_CLOCK_SKEW => now.checked_add(offset).unwrap_or(now),
            _ => now,
        }
    }

    /// Until it is renewed this node exchanges packets with nobody. `now` by the control server's clock, see [`Self::control_time`].
    pub fn own_key_has_expired(&self, now: OffsetDateTime) -> bool {
        let own = self.self_node.as_ref();
        own.is_some_and(|own| own.is_expired(now))
    }

    fn apply_filters(
        &mut self,
        base: Option<Vec<FilterRule>>,
        named: BTreeMap<String, Option<Vec<FilterRule>>>,
        left_out: &mut usize,
    ) -> bool {
        if base.is_none() && named.is_empty() {
            return false;
        }
        let before = self.filters.clone();
        if let Some(rules) = base {
            self.filters.insert(BASE.to_owned(), rules);
        }
        if named.get(ALL).is_some_and(Option::is_none) {
            self.filters.clear();
        }
        let mut names: Vec<String> = vec![BASE.to_owned()];
        names.extend(named.keys().cloned());
        for (name, rules) in named {
            change_entry(&mut self.filters, name, rules, left_out);
        }
        let changed = before != self.filters;
        if changed {
            self.room.give(Room::of(&before));
            // Rules only ever allow: without those that there is no room for, less is admitted, and never more.
            for name in names {
                if !self.room.has_room_for(Room::of(&self.filters))
                    && let Some(rules) = self
                        .filters
                        .get_mut(&name)
                        .filter(|rules| !rules.is_empty())
                {
                    *rules = Vec::new();
                    *left_out += 1;
                }
            }
            self.room.take(Room::of(&self.filters));
        }
        changed
    }

    fn apply_display_messages(
        &mut self,
        messages: BTreeMap<String, Option<DisplayMessage>>,
        left_out: &mut usize,
    ) -> bool {
        if messages.is_empty() {
            return false;
        }
        let before = self.display_messages.clone();
        if messages.get(ALL).is_some_and(Option::is_none) {
            self.display_messages.clear();
        }
        for (id, message) in messages {
            change_entry(&mut self.display_messages, id, message, left_out);
        }
        self.room.give(Room::of(&before));
        if !self.room.has_room_for(Room::of(&self.display_messages)) {
            *left_out += self.display_messages.len();
            self.display_messages.clear();
        }
        self.room.take(Room::of(&self.display_messages));
        before != self.display_messages
    }

    /// In the order that the protocol lays down.
    fn apply_peers(&mut self, peers: PeerChanges, now: OffsetDateTime, changes: &mut Changes) {
        if !peers.all.is_empty() {
            let mut others = self.room;
            others.give(self.peers.values().map(|node| Room::of(&**node)).sum());
            let room = peers.all.iter().map(|node| Room::of(&**node)).sum();
            if peers.all.len() > MAX_NODES || !others.has_room_for(room) {
                changes.left_out += peers.all.len();
                return;
            }
            let kept: BTreeSet<NodeId> = peers.all.iter().map(|node| node.id).collect();
            let gone: Vec<NodeId> = self
                .peers
                .keys()
                .filter(|id| !kept.contains(id))
                .copied()
                .collect();
            gone.into_iter()
                .for_each(|id| self.remove_peer(id, changes));
            peers
                .all
                .into_iter()
                .for_each(|node| self.put_peer(node, changes));
            return;
        }
        peers
            .removed
            .into_iter()
            .for_each(|id| self.remove_peer(id, changes));
        let whole = peers.changed.iter().map(|node| Room::of(&**node));
        let patches = peers.patches.iter().map(Room::of);
        // All of them or none: which ones there is room for would be chance.
        let new = |node: &&Arc<Node>| !self.peers.contains_key(&node.id);
        let refused = self.peers.len() + peers.changed.iter().filter(new).count() > MAX_NODES
            || !self.room.has_room_for(whole.chain(patches).sum());
        if refused {
            changes.left_out += peers.changed.len() + peers.patches.len();
        }
        let (changed, patches) = match refused {
            true => (Vec::new(), Vec::new()),
            false => (peers.changed, peers.patches),
        };
        changed
            .into_iter()
            .for_each(|node| self.put_peer(node, changes));
        for (id, seen) in peers.seen {
            self.change_peer(id, changes, |node| node.last_seen = seen.then_some(now));
        }
        for (id, online) in peers.online {
            self.change_peer(id, changes, |node| node.online = Some(online));
        }
        for patch in patches {
            self.change_peer(patch.node_id, changes, |node| patch_node(node, patch));
        }
    }

    fn remove_peer(&mut self, id: NodeId, changes: &mut Changes) {
        let Some(gone) = self.peers.remove(&id) else {
            return;
        };
        self.room.give(Room::of(&*gone));
        if !changes.peers_added.remove(&id) {
            changes.peers_changed.remove(&id);
            changes.peers_removed.insert(id);
        }
    }

    fn put_peer(&mut self, mut node: Arc<Node>, changes: &mut Changes) {
        let id = node.id;
        // Half of what a node takes. Nothing is done with it; `whois` of a peer lacks it.
        if node.hostinfo.details.is_some() || node.hostinfo.net_info.is_some() {
            let hostinfo = &mut Arc::make_mut(&mut node).hostinfo;
            (hostinfo.details, hostinfo.net_info) = (None, None);
        }
        match self.peers.get_mut(&id) {
            Some(known) if *known == node => {}
            Some(known) => {
                self.room.give(Room::of(&**known));
                self.room.take(Room::of(&*node));
                *known = node;
                changes.note_changed(id);
            }
            None => {
                self.room.take(Room::of(&*node));
                self.peers.insert(id, node);
                // Removed and back in one message: for the reader, changed.
                if changes.peers_removed.remove(&id) {
                    changes.peers_changed.insert(id);
                } else {
                    changes.peers_added.insert(id);
                }
            }
        }
    }

    fn change_peer(&mut self, id: NodeId, changes: &mut Changes, change: impl FnOnce(&mut Node)) {
        let Some(node) = self.peers.get_mut(&id) else {
            return;
        };
        let mut after = Node::clone(node);
        change(&mut after);
        if after != **node {
            self.room.give(Room::of(&**node));
            self.room.take(Room::of(&after));
            *node = Arc::new(after);
            changes.note_changed(id);
        }
    }
}

impl Changes {
    fn note_changed(&mut self, id: NodeId) {
        if !self.peers_added.contains(&id) {
            self.peers_changed.insert(id);
        }
    }
}

struct PeerChanges {
    all: Vec<Arc<Node>>,
    removed: Vec<NodeId>,
    changed: Vec<Arc<Node>>,
    seen: BTreeMap<NodeId, bool>,
    online: BTreeMap<NodeId, bool>,
    patches: Vec<PeerChange>,
}

fn patch_node(node: &mut Node, patch: PeerChange) {
    if let Some(region) = patch.derp_region {
        node.home_derp = Some(region);
    }
    if patch.cap != 0 {
        node.cap = patch.cap;
    }
    if let Some(cap_map) = patch.cap_map {
        node.cap_map = cap_map;
    }
    if !patch.endpoints.is_empty() {
        node.endpoints = patch.endpoints;
    }
    if let Some(key) = patch.key {
        node.key = key;
    }
    if !patch.key_signature.is_empty() {
        node.key_signature = patch.key_signature;
    }
    if patch.disco_key.is_some() {
        node.disco_key = patch.disco_key;
    }
    if patch.online.is_some() {
        node.online = patch.online;
    }
    if patch.last_seen.is_some() {
        node.last_seen = patch.last_seen;
    }
    if patch.key_expiry.is_some() {
        node.key_expiry = patch.key_expiry;
    }
}

/// `None` removes the entry. A new one that there is no room for is left out.
fn change_entry<T>(
    map: &mut BTreeMap<String, T>,
    name: String,
    value: Option<T>,
    left_out: &mut usize,
) {
    match value {
        None => drop(map.remove(&name)),
        Some(_) if map.len() >= MAX_NAMED && !map.contains_key(&name) => *left_out += 1,
        Some(value) => drop(map.insert(name, value)),
    }
}

/// Whether that changed anything.
fn replace<T: PartialEq>(old: &mut T, new: T) -> bool {
    let changed = *old != new;
    *old = new;
    changed
}
