//! What nodes are shown: the tailnet at one moment, and in the terms of the protocol.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use lowroad_wire::control::{self as wire, CapMap, NodeId, StableId, UserId, UserProfile};
use serde_json::json;
use time::OffsetDateTime;

use crate::{
    model::{Node, Owner, TAGGED_DEVICES, User},
    policy::CompiledTailnet,
};

/// A node, and what peers are shown of it whoever they are.
#[derive(Debug, Clone)]
pub struct Published {
    pub node: Arc<Node>,
    /// Without AllowedIPs and PrimaryRoutes: those depend on the viewer.
    pub shown: Arc<wire::Node>,
}

impl Published {
    pub fn new(node: Arc<Node>, base_domain: &str, now: OffsetDateTime) -> Self {
        let shown = Arc::new(shown(&node, base_domain, now));
        Self { node, shown }
    }
}

/// The tailnet at one moment. Sessions compare what it says with what they have sent.
#[derive(Debug)]
pub struct Snapshot {
    pub generation: u64,
    /// The generation of the snapshot before, to which `changed` is the difference unless `is_whole`.
    pub previous: u64,
    pub changed: BTreeSet<NodeId>,
    pub nodes: BTreeMap<NodeId, Published>,
    pub users: BTreeMap<UserId, Arc<User>>,
    pub compiled: Arc<CompiledTailnet>,
    /// Whether anybody may see anybody otherwise than before: another policy, other subnet routes. Otherwise only
    /// `changed` are seen otherwise, by whomever, and filters are the same unless `compiled` has other ones. Routers count as changed
    /// if others may be led through them otherwise.
    pub is_whole: bool,
    /// Whether the policy could not be compiled, so that everything is refused.
    pub is_closed: bool,
}

/// What is the same for all nodes as long as the server runs.
#[derive(Debug, Default)]
pub struct Common {
    pub domain: String,
    pub derp_map: wire::DerpMap,
    pub dns: wire::DnsConfig,
}

fn shown(node: &Node, base_domain: &str, now: OffsetDateTime) -> wire::Node {
    wire::Node {
        id: node.id,
        stable_id: StableId(node.id.to_string()),
        name: format!("{}.{base_domain}.", node.name),
        user: node.owner.shown_user(),
        key: node.key,
        key_expiry: node.expiry,
        machine: Some(node.machine),
        disco_key: Some(node.disco).filter(|key| !key.is_zero()),
        addresses: node.addresses(),
        endpoints: node
            .endpoints
            .iter()
            .map(|endpoint| endpoint.address)
            .collect(),
        home_derp: node.home(),
        hostinfo: node.hostinfo.clone(),
        created: Some(node.created),
        cap: node.cap,
        tags: node.owner.tags().to_vec(),
        last_seen: node.last_seen.filter(|_| !node.online),
        online: Some(node.online),
        machine_authorized: true,
        expired: node.is_expired(now),
        ..wire::Node::default()
    }
}

impl Snapshot {
    /// How a node sees itself.
    pub fn own(&self, id: NodeId) -> Option<wire::Node> {
        let published = self.nodes.get(&id)?;
        let mut node = wire::Node::clone(&published.shown);
        let allowed = self.compiled.own_allowed_ips(id);
        node.addresses.retain(|address| allowed.contains(address));
        node.allowed_ips = Some(if node.expired {
            node.addresses.clone()
        } else {
            allowed
        });
        node.cap_map = CapMap::clone(&self.compiled.attributes_of(id));
        node.cap_map.extend(own_capabilities());
        node.online = Some(true);
        node.last_seen = None;
        Some(node)
    }

    /// The profile of a user; of tagged nodes' stand-in as well.
    pub fn profile(&self, id: UserId) -> Option<UserProfile> {
        if id == TAGGED_DEVICES {
            return Some(tagged_devices());
        }
        self.users.get(&id).map(|user| UserProfile {
            id,
            login_name: user.name.clone(),
            display_name: user.shown_as().to_owned(),
            ..UserProfile::default()
        })
    }
}

pub fn tagged_devices() -> UserProfile {
    UserProfile {
        id: TAGGED_DEVICES,
        login_name: "tagged-devices".to_owned(),
        display_name: "Tagged Devices".to_owned(),
        ..UserProfile::default()
    }
}

/// What every node may do at itself, as the hosted service grants it (protocol.md 10.4), so that their SSH servers do what `ssh`
/// rules say, too: sessions as users expect them, and `acceptEnv`. What depends on the user is among the policy's attributes.
fn own_capabilities() -> CapMap {
    const CAPABILITY: &str = "https://tailscale.com/cap/";
    let granted = ["ssh", "file-sharing"].map(|name| (format!("{CAPABILITY}{name}"), Vec::new()));
    let ssh = ["ssh-behavior-v1", "ssh-env-vars"].map(|name| (name.to_owned(), Vec::new()));
    let update = ("default-auto-update".to_owned(), vec![json!(false)]);
    granted.into_iter().chain(ssh).chain([update]).collect()
}

/// The two forms in which the answer to a registration names the owner.
pub fn owner_of(node: &Node, users: &BTreeMap<UserId, Arc<User>>) -> (wire::User, wire::Login) {
    let (profile, created) = match &node.owner {
        Owner::Tags(_) => (tagged_devices(), None),
        Owner::User(id) => match users.get(id) {
            Some(user) => (
                UserProfile {
                    id: *id,
                    login_name: user.name.clone(),
                    display_name: user.shown_as().to_owned(),
                    ..UserProfile::default()
                },
                Some(user.created),
            ),
            None => (
                UserProfile {
                    id: *id,
                    ..UserProfile::default()
                },
                None,
            ),
        },
    };
    let UserProfile {
        id,
        login_name,
        display_name,
        ..
    } = profile;
    let user = wire::User {
        id,
        display_name: display_name.clone(),
        created,
        ..wire::User::default()
    };
    let login = wire::Login {
        id: id.0,
        login_name,
        display_name,
        ..wire::Login::default()
    };
    (user, login)
}
