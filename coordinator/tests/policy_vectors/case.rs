//! A recorded case: a policy, a tailnet, and what its nodes were sent.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use lowroad_coordinator::{
    Error,
    hub::check_policy,
    policy::{CompiledTailnet, NodeFacts, TailnetFacts, UnknownUsers, UserFacts, World},
    refused::RefusedPolicy,
};
use lowroad_wire::control::{CapMap, FilterRule, NodeId, SshPolicy, UserId};
use serde::{Deserialize, Deserializer};
use serde_json::{json, value::RawValue};

use crate::{filter, ssh};

/// Who owns the recorded tailnet, which users administer it besides, and the domain that is its own.
const OWNER: &str = "odin";
const ADMINS: [&str; 2] = ["thor", "freya"];
const DOMAIN: &str = "example.com";

/// How much was compared: filters of nodes, peers that they see, their own addresses, SSH policies, and attributes.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Compared {
    pub filters: usize,
    pub peers: usize,
    pub own: usize,
    pub logins: usize,
    pub attributes: usize,
}

impl Compared {
    pub fn add(&mut self, other: &Self) {
        self.filters += other.filters;
        self.peers += other.peers;
        self.own += other.own;
        self.logins += other.logins;
        self.attributes += other.attributes;
    }
}

#[derive(Deserialize)]
pub struct Case {
    pub id: String,
    policy: Box<RawValue>,
    pub status: u16,
    users: Vec<CaseUser>,
    nodes: BTreeMap<String, CaseNode>,
    got: BTreeMap<String, Got>,
}

#[derive(Deserialize)]
struct CaseUser {
    id: i64,
    name: String,
    email: String,
}

#[derive(Deserialize)]
struct CaseNode {
    tags: Vec<String>,
    user: Option<String>,
    ipv4: Option<std::net::Ipv4Addr>,
    ipv6: Option<std::net::Ipv6Addr>,
    routable_ips: Option<Vec<IpNet>>,
    created: Option<String>,
}

#[derive(Deserialize)]
struct Got {
    #[serde(default)]
    rules: Option<Vec<FilterRule>>,
    #[serde(default)]
    allowed_ips: Option<Vec<IpNet>>,
    #[serde(default)]
    peers: Option<BTreeMap<String, GotPeer>>,
    #[serde(default)]
    ssh: Option<SshPolicy>,
    #[serde(default, deserialize_with = "some_cap_map")]
    caps: Option<CapMap>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct GotPeer {
    #[serde(default, rename = "AllowedIPs")]
    allowed_ips: Vec<IpNet>,
    #[serde(default)]
    primary_routes: Vec<IpNet>,
    #[serde(default, deserialize_with = "cap_map")]
    cap_map: CapMap,
}

impl Case {
    fn world(&self) -> World {
        let users = self.users.iter().map(|user| UserFacts {
            id: UserId(user.id),
            // Some recordings lost the e-mail address, not its use in the policy.
            login_name: if user.email.is_empty() {
                format!("{}@example.com", user.name)
            } else {
                user.email.clone()
            },
        });
        let nodes = self.nodes.values().enumerate().map(|(at, node)| NodeFacts {
            id: NodeId(at as i64 + 1),
            user: node.user.as_ref().map(|name| {
                let user = self.users.iter().find(|user| user.name == *name);
                UserId(user.expect("a node's user is listed").id)
            }),
            tags: node.tags.clone(),
            v4: node.ipv4,
            v6: node.ipv6,
            announced: node.routable_ips.clone().unwrap_or_default(),
            admin_approved: Vec::new(),
            created: node.created.as_deref().map_or(0, nanoseconds),
            online: true,
        });
        World {
            users: users.collect(),
            nodes: nodes.collect(),
            tailnet: self.tailnet(),
        }
    }

    fn tailnet(&self) -> TailnetFacts {
        let users = || self.users.iter();
        let named = |name: &str| {
            users()
                .find(|user| user.name == name)
                .map(|user| UserId(user.id))
        };
        TailnetFacts {
            domains: vec![DOMAIN.to_owned()],
            owner: named(OWNER),
            admins: ADMINS.iter().filter_map(|name| named(name)).collect(),
        }
    }

    fn id_of(&self, name: &str) -> NodeId {
        let at = self.nodes.keys().position(|known| known == name);
        NodeId(at.expect("the node is listed") as i64 + 1)
    }

    /// As our server takes the policy.
    pub fn check(&self) -> Result<CompiledTailnet, Box<RefusedPolicy>> {
        // Where the e-mail addresses were lost, so were users: who else a policy names, the service knew.
        let unknown = match self.users.iter().any(|user| user.email.is_empty()) {
            true => UnknownUsers::Accept,
            false => UnknownUsers::Refuse,
        };
        match check_policy(self.policy.get(), &self.world(), unknown) {
            Ok((_, tailnet)) => Ok(tailnet),
            Err(Error::Policy(refused)) => Err(refused),
            Err(error) => panic!("{}: {error}", self.id),
        }
    }

    /// What differs, as text.
    pub fn compare(&self, tailnet: &CompiledTailnet, compared: &mut Compared) -> Vec<String> {
        let mut differences = Vec::new();
        for (name, got) in &self.got {
            let id = self.id_of(name);
            let mut differ = |what: String| differences.push(format!("{name}: {what}"));
            if let Some(rules) = &got.rules {
                compared.filters += 1;
                let ours = tailnet.filter_for(id);
                if let Some(difference) = filter::difference(&ours, rules) {
                    differ(format!("filter: {difference}"));
                }
                let (ours, expected) = (filter::capabilities(&ours), filter::capabilities(rules));
                if ours != expected {
                    differ(format!("granted: {ours:x?}, not {expected:x?}"));
                }
            }
            if let Some(expected) = &got.allowed_ips {
                compared.own += 1;
                let ours = tailnet.own_allowed_ips(id);
                if nets(&ours) != nets(expected) {
                    differ(format!("own: {ours:?}, not {expected:?}"));
                }
            }
            if let Some(expected) = &got.peers {
                compared.peers += expected.len();
                let (ours, expected) = (seen(tailnet, id), self.expected_peers(expected));
                if ours != expected {
                    differ(format!("peers: {ours:?}, not {expected:?}"));
                }
            }
            if let Some(expected) = &got.ssh {
                compared.logins += 1;
                if let Some(difference) = ssh::difference(&tailnet.ssh_for(id), expected) {
                    differ(format!("ssh: {difference}"));
                }
            }
            if let Some(expected) = &got.caps {
                compared.attributes += expected.len();
                let mut ours = self.given();
                ours.extend(CapMap::clone(&tailnet.attributes_of(id)));
                if ours != *expected {
                    differ(format!("attributes: {ours:?}, not {expected:?}"));
                }
            }
        }
        differences
    }

    fn expected_peers(&self, peers: &BTreeMap<String, GotPeer>) -> BTreeMap<NodeId, Peer> {
        let peers = peers.iter().map(|(peer, got)| {
            let routes = (nets(&got.allowed_ips), nets(&got.primary_routes));
            (self.id_of(peer), (routes, got.cap_map.clone()))
        });
        peers.collect()
    }

    /// What the service gives every node whatever the policy says, one by a setting of the tailnet.
    fn given(&self) -> CapMap {
        const CAPABILITY: &str = "https://tailscale.com/cap/";
        let mut given = CapMap::new();
        let mut give = |name: String| given.insert(name, Vec::new());
        for name in ["file-sharing", "ssh", "tailnet-lock"] {
            give(format!("{CAPABILITY}{name}"));
        }
        for name in [
            "probe-udp-lifetime",
            "ssh-behavior-v1",
            "ssh-env-vars",
            "store-appc-routes",
        ] {
            give(name.to_owned());
        }
        let updates = self.id == "nodeattrs-tailnet-devices-auto-updates-on";
        given.insert("default-auto-update".to_owned(), vec![json!(updates)]);
        let owner = self.users.iter().find(|user| user.name == OWNER);
        let owner = owner.expect("the owner is a user").email.clone();
        given.insert("tailnet-display-name".to_owned(), vec![json!(owner)]);
        given
    }
}

/// AllowedIPs and PrimaryRoutes, and what the CapMap shows.
type Peer = ((BTreeSet<IpNet>, BTreeSet<IpNet>), CapMap);

fn seen(tailnet: &CompiledTailnet, viewer: NodeId) -> BTreeMap<NodeId, Peer> {
    let peers = tailnet.peers_of(viewer).into_iter().map(|(peer, view)| {
        let routes = (nets(&view.allowed_ips), nets(&view.primary_routes));
        (peer, (routes, view.cap_map()))
    });
    peers.collect()
}

/// A CapMap as the service writes it: without values, a capability is null.
fn cap_map<'de, D: Deserializer<'de>>(deserializer: D) -> Result<CapMap, D::Error> {
    let map: BTreeMap<String, Option<Vec<serde_json::Value>>> =
        Deserialize::deserialize(deserializer)?;
    let map = map.into_iter();
    Ok(map
        .map(|(name, values)| (name, values.unwrap_or_default()))
        .collect())
}

fn some_cap_map<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<CapMap>, D::Error> {
    cap_map(deserializer).map(Some)
}

fn nanoseconds(time: &str) -> i64 {
    let format = &time::format_description::well_known::Rfc3339;
    let time = time::OffsetDateTime::parse(time, format).expect("a time of creation");
    i64::try_from(time.unix_timestamp_nanos()).expect("a time of this century")
}

fn nets(nets: &[IpNet]) -> BTreeSet<IpNet> {
    nets.iter().copied().collect()
}
