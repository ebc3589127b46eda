//! What a session has sent, and what it has to send so that its client knows the tailnet as it is (protocol.md 10.3).
//!
//! Always the difference between the two, never a queue of events: a client that reads slowly gets one larger difference later, and
//! the memory of a session is that of one netmap's references.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use lowroad_wire::control::{
    self as wire, FilterRule, MapResponse, NodeId, PeerChange, SshPolicy, UserId, UserProfile,
};
use time::OffsetDateTime;

use crate::{
    policy::{CompiledTailnet, NodeFilter, PeerView},
    view::{Common, Snapshot},
};

/// Name of the one packet filter we send.
const FILTER: &str = "base";

/// What one client knows.
#[derive(Debug)]
pub struct Sent {
    id: NodeId,
    generation: u64,
    own: wire::Node,
    peers: BTreeMap<NodeId, SentPeer>,
    users: BTreeMap<UserId, UserProfile>,
    filter: Arc<NodeFilter>,
    ssh: Arc<SshPolicy>,
    compiled: Arc<CompiledTailnet>,
}

#[derive(Debug, Clone)]
struct SentPeer {
    shown: Arc<wire::Node>,
    view: PeerView,
}

impl SentPeer {
    fn new(snapshot: &Snapshot, id: NodeId, view: PeerView) -> Option<Self> {
        let shown = snapshot.nodes.get(&id)?.shown.clone();
        Some(Self { shown, view })
    }

    fn full(&self) -> wire::Node {
        let mut node = wire::Node {
            allowed_ips: Some(self.view.allowed_ips.to_vec()),
            primary_routes: self.view.primary_routes.to_vec(),
            cap_map: self.view.cap_map(),
            ..wire::Node::clone(&self.shown)
        };
        // Addresses that the viewer is not to know of.
        let allowed = &self.view.allowed_ips;
        node.addresses.retain(|address| allowed.contains(address));
        node
    }
}

impl Sent {
    /// The first message of a poll, which says everything. `None` if the node is gone.
    pub fn first(
        id: NodeId,
        snapshot: &Snapshot,
        common: &Common,
        now: OffsetDateTime,
    ) -> Option<(Self, MapResponse)> {
        let own = snapshot.own(id)?;
        let peers = visible(snapshot, id, &own);
        let filter = filter(snapshot, id, &own);
        let ssh = logins(snapshot, id, &own);
        let users = profiles(snapshot, owners(&own, peers.values()));
        let message = MapResponse {
            node: Some(own.clone()),
            derp_map: Some(common.derp_map.clone().into()),
            peers: peers.values().map(|peer| Arc::new(peer.full())).collect(),
            dns_config: Some(common.dns.clone()),
            domain: common.domain.clone(),
            collect_services: Some(false),
            packet_filters: filters(&filter),
            user_profiles: users.values().cloned().collect(),
            ssh_policy: Some(in_json(&ssh)),
            control_time: Some(now),
            debug: Some(wire::Debug {
                disable_log_tail: true,
                ..wire::Debug::default()
            }),
            ..MapResponse::default()
        };
        let compiled = snapshot.compiled.clone();
        Some((
            Self {
                id,
                generation: snapshot.generation,
                own,
                peers,
                users,
                filter,
                ssh,
                compiled,
            },
            message,
        ))
    }

    /// What has changed, if anything has. `Err` if the node is gone.
    pub fn difference(
        &mut self,
        snapshot: &Snapshot,
        now: OffsetDateTime,
    ) -> Result<Option<MapResponse>, Gone> {
        if !snapshot.nodes.contains_key(&self.id) {
            return Err(Gone);
        }
        let mut message = MapResponse::default();
        let same_policy = Arc::ptr_eq(&self.compiled, &snapshot.compiled);
        let is_next = snapshot.previous == self.generation;
        if same_policy && snapshot.generation == self.generation {
            return Ok(None);
        } else if is_next && !snapshot.is_whole && !snapshot.changed.contains(&self.id) {
            self.follow(snapshot, &mut message);
        } else {
            self.compare(snapshot, &mut message)?;
        }
        self.compiled = snapshot.compiled.clone();
        self.generation = snapshot.generation;
        if message == MapResponse::default() {
            return Ok(None);
        }
        message.control_time = Some(now);
        Ok(Some(message))
    }

    /// The last message to a node that has been deleted: its key is good no more, and it sees nobody. Of a poll that only ends a stock client makes
    /// nothing but another, for ever, with what it knew in force.
    pub fn last(&self, now: OffsetDateTime) -> MapResponse {
        let own = wire::Node {
            key_expiry: Some(self.own.key_expiry.map_or(now, |expiry| expiry.min(now))),
            expired: true,
            allowed_ips: Some(self.own.addresses.clone()),
            ..self.own.clone()
        };
        MapResponse {
            node: Some(own),
            peers_removed: self.peers.keys().copied().collect(),
            packet_filters: filters(&NodeFilter::default()),
            ssh_policy: Some(in_json(&SshPolicy::default())),
            control_time: Some(now),
            ..MapResponse::default()
        }
    }

    /// Looks at the nodes that changed since the last snapshot, and at the filter if it is another: no others are seen otherwise.
    fn follow(&mut self, snapshot: &Snapshot, message: &mut MapResponse) {
        if self.own.expired {
            return;
        }
        self.compare_rules(snapshot, message);
        let mut owners = BTreeSet::new();
        for id in &snapshot.changed {
            let Some(new) = seen(snapshot, self.id, *id) else {
                if self.peers.remove(id).is_some() {
                    message.peers_removed.push(*id);
                }
                continue;
            };
            match self.peers.get(id) {
                Some(sent) => tell(sent, &new, message),
                None => message.peers_changed.push(Arc::new(new.full())),
            }
            owners.insert(new.shown.user);
            self.peers.insert(*id, new);
        }
        self.tell_users(profiles(snapshot, owners), message);
    }

    fn compare_rules(&mut self, snapshot: &Snapshot, message: &mut MapResponse) {
        let filter = filter(snapshot, self.id, &self.own);
        if !Arc::ptr_eq(&filter, &self.filter) && filter != self.filter {
            message.packet_filters = filters(&filter);
        }
        self.filter = filter;
        let ssh = logins(snapshot, self.id, &self.own);
        if !Arc::ptr_eq(&ssh, &self.ssh) && ssh != self.ssh {
            message.ssh_policy = Some(in_json(&ssh));
        }
        self.ssh = ssh;
    }

    /// Looks at everything.
    fn compare(&mut self, snapshot: &Snapshot, message: &mut MapResponse) -> Result<(), Gone> {
        let own = snapshot.own(self.id).ok_or(Gone)?;
        if matters(&own) != matters(&self.own) {
            message.node = Some(own.clone());
        }
        self.own = own;
        let own = &self.own;
        let peers = visible(snapshot, self.id, own);
        let removed = self.peers.keys().filter(|id| !peers.contains_key(id));
        message.peers_removed = removed.copied().collect();
        for (id, peer) in &peers {
            match self.peers.get(id) {
                Some(sent) => tell(sent, peer, message),
                None => message.peers_changed.push(Arc::new(peer.full())),
            }
        }
        self.peers = peers;
        self.compare_rules(snapshot, message);
        let owners = owners(&self.own, self.peers.values());
        self.tell_users(profiles(snapshot, owners), message);
        Ok(())
    }

    /// Those that are new to this client, or have changed.
    fn tell_users(&mut self, users: BTreeMap<UserId, UserProfile>, message: &mut MapResponse) {
        message.user_profiles = users
            .values()
            .filter(|user| self.users.get(&user.id) != Some(user))
            .cloned()
            .collect();
        // Clients keep what they have heard, so nobody is forgotten here either.
        self.users.extend(users);
    }
}

/// The node that a session belongs to has been deleted.
#[derive(Debug, PartialEq, Eq)]
pub struct Gone;

fn visible(snapshot: &Snapshot, id: NodeId, own: &wire::Node) -> BTreeMap<NodeId, SentPeer> {
    if own.expired {
        return BTreeMap::new();
    }
    let peers = snapshot.compiled.peers_of(id).into_iter();
    peers
        .filter_map(|(id, view)| Some((id, SentPeer::new(snapshot, id, view)?)))
        .collect()
}

/// A node as another sees it, if it does.
fn seen(snapshot: &Snapshot, viewer: NodeId, id: NodeId) -> Option<SentPeer> {
    SentPeer::new(snapshot, id, snapshot.compiled.peer_view(viewer, id)?)
}

fn filter(snapshot: &Snapshot, id: NodeId, own: &wire::Node) -> Arc<NodeFilter> {
    if own.expired {
        Arc::default()
    } else {
        snapshot.compiled.rules_for(id)
    }
}

fn logins(snapshot: &Snapshot, id: NodeId, own: &wire::Node) -> Arc<SshPolicy> {
    if own.expired {
        Arc::default()
    } else {
        snapshot.compiled.ssh_for(id)
    }
}

fn in_json(policy: &SshPolicy) -> serde_json::Value {
    serde_json::to_value(policy)
        .expect("its keys are strings, and the compiler's rules never expire")
}

/// An empty list blocks everything; that it is sent at all is what matters.
fn filters(rules: &NodeFilter) -> BTreeMap<String, Option<Vec<FilterRule>>> {
    BTreeMap::from([(FILTER.to_owned(), Some(rules.to_wire()))])
}

fn owners<'a>(own: &wire::Node, peers: impl Iterator<Item = &'a SentPeer>) -> BTreeSet<UserId> {
    peers
        .map(|peer| peer.shown.user)
        .chain([own.user])
        .collect()
}

fn profiles(snapshot: &Snapshot, owners: BTreeSet<UserId>) -> BTreeMap<UserId, UserProfile> {
    owners
        .into_iter()
        .filter_map(|id| Some((id, snapshot.profile(id)?)))
        .collect()
}

/// A node need not be told what it has told us: host info and endpoints.
fn matters(own: &wire::Node) -> wire::Node {
    wire::Node {
        hostinfo: wire::Hostinfo::default(),
        endpoints: Vec::new(),
        cap: 0,
        ..own.clone()
    }
}

/// Says what is new about a peer: in a patch if one can say it, else the whole node.
fn tell(sent: &SentPeer, new: &SentPeer, message: &mut MapResponse) {
    if Arc::ptr_eq(&sent.shown, &new.shown) && sent.view == new.view {
        return;
    }
    let (old, now) = (sent.full(), new.full());
    if old == now {
        return;
    }
    match patch(&old, &now) {
        Some(patch)
            if patch
                == (PeerChange {
                    node_id: new.shown.id,
                    ..PeerChange::default()
                }) => {}
        Some(patch) => message.peers_changed_patch.push(patch),
        None => message.peers_changed.push(Arc::new(now)),
    }
}

/// The patch that makes `old` into `new`, if there is one. A patch cannot say that something is none.
fn patch(old: &wire::Node, new: &wire::Node) -> Option<PeerChange> {
    let sayable = (!new.endpoints.is_empty() || old.endpoints.is_empty())
        && (new.home_derp.is_some() || old.home_derp.is_none())
        && (new.disco_key.is_some() || old.disco_key.is_none())
        && (new.cap != 0 || old.cap == 0);
    let patched = wire::Node {
        endpoints: new.endpoints.clone(),
        home_derp: new.home_derp,
        disco_key: new.disco_key,
        online: new.online,
        last_seen: new.last_seen,
        cap: new.cap,
        // The home region stands in the host info as well, where nobody looks for it.
        hostinfo: new.hostinfo.clone(),
        ..old.clone()
    };
    if !sayable || patched != *new || !same_host(&old.hostinfo, &new.hostinfo) {
        return None;
    }
    Some(PeerChange {
        node_id: new.id,
        derp_region: new.home_derp.filter(|_| new.home_derp != old.home_derp),
        cap: if new.cap == old.cap { 0 } else { new.cap },
        endpoints: if new.endpoints == old.endpoints {
            Vec::new()
        } else {
            new.endpoints.clone()
        },
        disco_key: new.disco_key.filter(|_| new.disco_key != old.disco_key),
        online: new.online.filter(|_| new.online != old.online),
        last_seen: new.last_seen.filter(|_| new.last_seen != old.last_seen),
        ..PeerChange::default()
    })
}

/// Whether two host infos say the same to peers. What a node measures of its network is its own business, but that it has measured shows in `whois`.
fn same_host(old: &wire::Hostinfo, new: &wire::Hostinfo) -> bool {
    if old.net_info.is_none() && new.net_info.is_some() {
        return false;
    }
    let without = |info: &wire::Hostinfo| wire::Hostinfo {
        net_info: None,
        ..info.clone()
    };
    without(old) == without(new)
}
