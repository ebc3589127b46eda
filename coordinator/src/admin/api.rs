//! What commands and server say to each other, which is also what `--json` prints.
//!
//! Field names are Headscale's where it has them, so that scripts carry over.

use ipnet::IpNet;
use lowroad_wire::control::UserId;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::{
    model::{AuthKey, Basis, Node, PolicyVersion, Role, User, VersionNumber},
    policy::{CompiledTailnet, Report},
    state::State,
    text::rfc3339,
};

/// Where the server takes requests on its socket.
pub const PATH: &str = "/v1";

#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case")]
pub enum Ask {
    UsersList,
    UsersCreate {
        name: String,
        display_name: String,
    },
    UsersRole {
        user: String,
        role: Role,
    },
    UsersDelete {
        user: String,
    },
    AuthKeysList {
        user: Option<String>,
    },
    AuthKeysCreate(NewKey),
    AuthKeysExpire {
        key: String,
    },
    NodesList {
        user: Option<String>,
    },
    NodesShow {
        node: String,
    },
    NodesApproveRoutes {
        node: String,
        routes: Vec<IpNet>,
    },
    NodesApprove {
        registration: String,
        user: String,
    },
    NodesExpire {
        node: String,
    },
    NodesSetExpiry {
        node: String,
        /// RFC 3339; none: it does not end by itself.
        expiry: Option<String>,
    },
    NodesDelete {
        node: String,
    },
    NodesRename {
        node: String,
        name: String,
    },
    PolicyCheck {
        text: String,
    },
    PolicyGet {
        /// None: the one in force.
        version: Option<VersionNumber>,
    },
    PolicyLog,
    /// What this text, or that version, would change.
    PolicyDiff(Proposal),
    PolicyExplain {
        node: String,
    },
    PolicyWhy {
        from: String,
        to: String,
        protocol: u8,
        port: u16,
    },
    PolicySet {
        text: String,
        #[serde(flatten)]
        signature: Signature,
        /// Refused with status 409 if something else is in force than what it was made from.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        based_on: Option<Basis>,
    },
    PolicyRollback {
        version: VersionNumber,
        #[serde(flatten)]
        signature: Signature,
    },
}

/// A policy that isn't in force.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Proposal {
    Text(String),
    Version(VersionNumber),
}

/// Who changes the policy, and why.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Signature {
    /// Empty: the account that asks.
    pub author: String,
    pub message: String,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct NewKey {
    pub user: String,
    pub reusable: bool,
    pub ephemeral: bool,
    pub expiry_seconds: u64,
    pub tags: Vec<String>,
}

/// Answer to what failed.
#[derive(Debug, Serialize, Deserialize)]
pub struct Failure {
    pub error: String,
    /// Of a policy that is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub report: Option<Report>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UserInfo {
    pub id: String,
    pub name: String,
    pub display_name: String,
    pub created_at: String,
    /// From an older server: a member.
    #[serde(default)]
    pub role: Role,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AuthKeyInfo {
    pub id: String,
    /// Whole only in the answer to its creation.
    pub key: String,
    pub user: Option<UserInfo>,
    pub reusable: bool,
    pub ephemeral: bool,
    pub used: bool,
    pub acl_tags: Vec<String>,
    pub created_at: String,
    pub expiration: String,
    pub expired: bool,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeInfo {
    pub id: String,
    /// What the host calls itself.
    pub name: String,
    /// What the tailnet calls it.
    pub given_name: String,
    pub fqdn: String,
    /// Nobody's, if it has tags.
    pub user: Option<UserInfo>,
    pub tags: Vec<String>,
    pub ip_addresses: Vec<String>,
    pub machine_key: String,
    pub node_key: String,
    pub disco_key: String,
    pub online: bool,
    pub last_seen: Option<String>,
    pub created_at: String,
    pub expiry: Option<String>,
    pub expired: bool,
    pub ephemeral: bool,
    pub register_method: String,
    pub auth_key_id: Option<String>,
    /// What it announces.
    pub available_routes: Vec<IpNet>,
    /// What of it may be used, by an administrator's word or the policy's.
    pub approved_routes: Vec<IpNet>,
    /// What an administrator approved, announced or not.
    pub admin_approved_routes: Vec<IpNet>,
    /// What of it goes through this node: it is the primary.
    pub subnet_routes: Vec<IpNet>,
    pub endpoints: Vec<String>,
    pub home_region: Option<u16>,
    pub os: String,
    pub client_version: String,
    pub capability_version: u16,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PolicyInfo {
    /// None: everybody may reach everybody.
    pub policy: Option<String>,
    #[serde(flatten)]
    pub version: Option<VersionInfo>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VersionInfo {
    pub version: VersionNumber,
    pub created_at: String,
    /// Empty: unknown.
    pub author: String,
    /// The host's account that asked for it; empty for a `--policy` file.
    pub account: String,
    pub message: String,
    /// Bytes of its text.
    pub size: usize,
    pub in_force: bool,
}

/// Answer to what may put a policy into force.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PolicySetInfo {
    pub ok: bool,
    /// The version in force.
    pub version: VersionNumber,
    /// It wasn't in force before.
    pub changed: bool,
    /// Without errors.
    #[serde(flatten)]
    pub report: Report,
}

/// Answer to a policy that is good.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyDone {
    pub ok: bool,
    /// Without errors.
    #[serde(flatten)]
    pub report: Report,
}

impl From<&User> for UserInfo {
    fn from(user: &User) -> Self {
        Self {
            id: user.id.to_string(),
            name: user.name.clone(),
            display_name: user.display_name.clone(),
            created_at: rfc3339(user.created),
            role: user.role,
        }
    }
}

fn user_info(state: &State, id: UserId) -> Option<UserInfo> {
    state.user(id).map(|user| UserInfo::from(&**user))
}

impl VersionInfo {
    pub fn new(version: &PolicyVersion, state: &State) -> Self {
        let in_force = state.policy_history().in_force();
        Self {
            version: version.number,
            created_at: rfc3339(version.created),
            author: version.author.clone(),
            account: version.account.clone(),
            message: version.note.clone(),
            size: version.text.len(),
            in_force: in_force.is_some_and(|newest| newest.number == version.number),
        }
    }
}

impl AuthKeyInfo {
    pub fn new(key: &AuthKey, state: &State, now: OffsetDateTime) -> Self {
        Self {
            id: key.id.0.to_string(),
            key: format!("lrkey-auth-{}-***", key.prefix),
            user: user_info(state, key.user),
            reusable: key.reusable,
            ephemeral: key.ephemeral,
            used: key.used,
            acl_tags: key.tags.clone(),
            created_at: rfc3339(key.created),
            expiration: rfc3339(key.expiry),
            expired: key.expiry <= now,
        }
    }
}

impl NodeInfo {
    pub fn new(
        node: &Node,
        state: &State,
        compiled: &CompiledTailnet,
        now: OffsetDateTime,
    ) -> Self {
        let by_key = node.auth_key.is_some();
        Self {
            id: node.id.to_string(),
            name: node.hostinfo.hostname.clone(),
            given_name: node.name.clone(),
            fqdn: format!("{}.{}", node.name, state.base_domain()),
            user: node.owner.user().and_then(|user| user_info(state, user)),
            tags: node.owner.tags().to_vec(),
            ip_addresses: vec![node.v4.to_string(), node.v6.to_string()],
            machine_key: node.machine.to_string(),
            node_key: node.key.to_string(),
            disco_key: node.disco.to_string(),
            online: node.online,
            last_seen: node.last_seen.map(rfc3339),
            created_at: rfc3339(node.created),
            expiry: node.expiry.map(rfc3339),
            expired: node.is_expired(now),
            ephemeral: node.ephemeral,
            register_method: if by_key {
                "REGISTER_METHOD_AUTH_KEY"
            } else {
                "REGISTER_METHOD_CLI"
            }
            .to_owned(),
            auth_key_id: node.auth_key.map(|key| key.0.to_string()),
            available_routes: node.announced().to_vec(),
            approved_routes: compiled.approved(node.id),
            admin_approved_routes: node.approved_routes.clone(),
            subnet_routes: compiled.carried_routes(node.id),
            endpoints: node
                .endpoints
                .iter()
                .map(|endpoint| endpoint.address.to_string())
                .collect(),
            home_region: node.home().map(|region| region.0),
            os: node.hostinfo.os.clone(),
            client_version: node.hostinfo.ipn_version.clone(),
            capability_version: node.cap,
        }
    }
}
