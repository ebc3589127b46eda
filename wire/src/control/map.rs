use std::{collections::BTreeMap, fmt, net::SocketAddr, sync::Arc};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use time::OffsetDateTime;

use super::{
    CapMap, ClientVersion, ControlDialPlan, Debug, DerpMapUpdate, DisplayMessage, DnsConfig,
    FilterRule, Hostinfo, Node, NodeId, PingRequest, RegionId, TkaInfo, UserProfile, go,
};
use crate::key::{DiscoPublic, NodePublic};

/// `POST /machine/map`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct MapRequest {
    #[serde(rename = "Version")]
    pub version: u16,
    /// `zstd` or empty.
    #[serde(
        rename = "Compress",
        deserialize_with = "go::null",
        skip_serializing_if = "String::is_empty"
    )]
    pub compress: String,
    #[serde(
        rename = "KeepAlive",
        deserialize_with = "go::null",
        skip_serializing_if = "go::is_default"
    )]
    pub keep_alive: bool,
    #[serde(rename = "NodeKey", with = "go::key")]
    pub node_key: Option<NodePublic>,
    #[serde(rename = "DiscoKey", with = "go::key")]
    pub disco_key: Option<DiscoPublic>,
    /// A long poll.
    #[serde(
        rename = "Stream",
        deserialize_with = "go::null",
        skip_serializing_if = "go::is_default"
    )]
    pub stream: bool,
    #[serde(rename = "Hostinfo", skip_serializing_if = "Option::is_none")]
    pub hostinfo: Option<Hostinfo>,
    #[serde(
        rename = "MapSessionHandle",
        deserialize_with = "go::null",
        skip_serializing_if = "String::is_empty"
    )]
    pub map_session_handle: String,
    #[serde(
        rename = "MapSessionSeq",
        deserialize_with = "go::null",
        skip_serializing_if = "go::is_default"
    )]
    pub map_session_seq: i64,
    #[serde(
        rename = "Endpoints",
        deserialize_with = "go::lenient_list",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub endpoints: Vec<SocketAddr>,
    /// Parallel to `endpoints`, or shorter; informs only.
    #[serde(
        rename = "EndpointTypes",
        deserialize_with = "go::lenient_list",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub endpoint_types: Vec<EndpointType>,
    #[serde(
        rename = "TKAHead",
        deserialize_with = "go::null",
        skip_serializing_if = "String::is_empty"
    )]
    pub tka_head: String,
    #[serde(
        rename = "ReadOnly",
        deserialize_with = "go::null",
        skip_serializing_if = "go::is_default"
    )]
    pub read_only: bool,
    /// An update of what the server knows of us; the answer's body says nothing.
    #[serde(
        rename = "OmitPeers",
        deserialize_with = "go::null",
        skip_serializing_if = "go::is_default"
    )]
    pub omit_peers: bool,
    #[serde(
        rename = "DebugFlags",
        deserialize_with = "go::null",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub debug_flags: Vec<String>,
}

/// How an endpoint was found. Numbers that we don't know are kept.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct EndpointType(pub i64);

impl EndpointType {
    pub const UNKNOWN: Self = Self(0);
    pub const LOCAL: Self = Self(1);
    pub const STUN: Self = Self(2);
    pub const PORT_MAPPED: Self = Self(3);
    /// The STUN address with the local port: a guess at a hard NAT.
    pub const STUN_LOCAL_PORT: Self = Self(4);
    pub const EXPLICIT: Self = Self(5);
}

/// One message of a map stream (protocol.md 1.7). What is absent is unchanged; [`crate::netmap::NetMap::apply`] has the rules.
///
/// Read one with [`MapResponse::parse`], which loses no more than what is malformed.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct MapResponse {
    #[serde(rename = "MapSessionHandle", skip_serializing_if = "String::is_empty")]
    pub map_session_handle: String,
    #[serde(rename = "Seq", skip_serializing_if = "go::is_default")]
    pub seq: i64,
    #[serde(rename = "KeepAlive", skip_serializing_if = "go::is_default")]
    pub keep_alive: bool,
    #[serde(rename = "PingRequest", skip_serializing_if = "Option::is_none")]
    pub ping_request: Option<PingRequest>,
    #[serde(rename = "PopBrowserURL", skip_serializing_if = "String::is_empty")]
    pub pop_browser_url: String,
    #[serde(rename = "Node", skip_serializing_if = "Option::is_none")]
    pub node: Option<Node>,
    #[serde(rename = "DERPMap", skip_serializing_if = "Option::is_none")]
    pub derp_map: Option<DerpMapUpdate>,
    /// Unless empty: all of the peers, instead of any other change of them.
    #[serde(
        rename = "Peers",
        serialize_with = "shared",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub peers: Vec<Arc<Node>>,
    #[serde(
        rename = "PeersChanged",
        serialize_with = "shared",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub peers_changed: Vec<Arc<Node>>,
    #[serde(rename = "PeersRemoved", skip_serializing_if = "Vec::is_empty")]
    pub peers_removed: Vec<NodeId>,
    #[serde(rename = "PeersChangedPatch", skip_serializing_if = "Vec::is_empty")]
    pub peers_changed_patch: Vec<PeerChange>,
    /// True: seen now. False: no longer known when.
    #[serde(rename = "PeerSeenChange", skip_serializing_if = "BTreeMap::is_empty")]
    pub peer_seen_change: BTreeMap<NodeId, bool>,
    #[serde(rename = "OnlineChange", skip_serializing_if = "BTreeMap::is_empty")]
    pub online_change: BTreeMap<NodeId, bool>,
    #[serde(rename = "DNSConfig", skip_serializing_if = "Option::is_none")]
    pub dns_config: Option<DnsConfig>,
    #[serde(rename = "Domain", skip_serializing_if = "String::is_empty")]
    pub domain: String,
    #[serde(rename = "CollectServices", skip_serializing_if = "Option::is_none")]
    pub collect_services: Option<bool>,
    /// The filter named `base`; `Some` of an empty list blocks all.
    #[serde(rename = "PacketFilter", skip_serializing_if = "Option::is_none")]
    pub packet_filter: Option<Vec<FilterRule>>,
    /// Per name: a list replaces, `None` deletes; `"*": None` deletes all first.
    #[serde(rename = "PacketFilters", skip_serializing_if = "BTreeMap::is_empty")]
    pub packet_filters: BTreeMap<String, Option<Vec<FilterRule>>>,
    #[serde(rename = "UserProfiles", skip_serializing_if = "Vec::is_empty")]
    pub user_profiles: Vec<UserProfile>,
    /// `Some` of an empty list: healthy.
    #[serde(rename = "Health", skip_serializing_if = "Option::is_none")]
    pub health: Option<Vec<String>>,
    #[serde(rename = "DisplayMessages", skip_serializing_if = "BTreeMap::is_empty")]
    pub display_messages: BTreeMap<String, Option<DisplayMessage>>,
    /// An [`SshPolicy`](super::SshPolicy), as it was sent: who has no SSH server need not understand it.
    #[serde(rename = "SSHPolicy", skip_serializing_if = "Option::is_none")]
    pub ssh_policy: Option<Value>,
    #[serde(
        rename = "ControlTime",
        with = "go::timestamp",
        skip_serializing_if = "Option::is_none"
    )]
    pub control_time: Option<OffsetDateTime>,
    #[serde(rename = "TKAInfo", skip_serializing_if = "Option::is_none")]
    pub tka_info: Option<TkaInfo>,
    #[serde(
        rename = "DomainDataPlaneAuditLogID",
        skip_serializing_if = "String::is_empty"
    )]
    pub domain_data_plane_audit_log_id: String,
    #[serde(rename = "Debug", skip_serializing_if = "Option::is_none")]
    pub debug: Option<Debug>,
    #[serde(rename = "ControlDialPlan", skip_serializing_if = "Option::is_none")]
    pub control_dial_plan: Option<ControlDialPlan>,
    #[serde(rename = "ClientVersion", skip_serializing_if = "Option::is_none")]
    pub client_version: Option<ClientVersion>,
    #[serde(rename = "DefaultAutoUpdate", skip_serializing_if = "Option::is_none")]
    pub default_auto_update: Option<bool>,
}

/// A change of one peer; what is absent stays.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PeerChange {
    #[serde(rename = "NodeID")]
    pub node_id: NodeId,
    #[serde(
        rename = "DERPRegion",
        deserialize_with = "go::region",
        skip_serializing_if = "Option::is_none"
    )]
    pub derp_region: Option<RegionId>,
    #[serde(
        rename = "Cap",
        deserialize_with = "go::lenient",
        skip_serializing_if = "go::is_default"
    )]
    pub cap: u16,
    #[serde(
        rename = "CapMap",
        skip_serializing_if = "Option::is_none",
        deserialize_with = "cap_map"
    )]
    pub cap_map: Option<CapMap>,
    #[serde(
        rename = "Endpoints",
        deserialize_with = "go::lenient_list",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub endpoints: Vec<SocketAddr>,
    #[serde(
        rename = "Key",
        with = "go::key",
        skip_serializing_if = "Option::is_none"
    )]
    pub key: Option<NodePublic>,
    #[serde(
        rename = "KeySignature",
        deserialize_with = "go::null",
        skip_serializing_if = "String::is_empty"
    )]
    pub key_signature: String,
    #[serde(
        rename = "DiscoKey",
        with = "go::key",
        skip_serializing_if = "Option::is_none"
    )]
    pub disco_key: Option<DiscoPublic>,
    #[serde(rename = "Online", skip_serializing_if = "Option::is_none")]
    pub online: Option<bool>,
    #[serde(
        rename = "LastSeen",
        with = "go::timestamp",
        skip_serializing_if = "Option::is_none"
    )]
    pub last_seen: Option<OffsetDateTime>,
    #[serde(
        rename = "KeyExpiry",
        with = "go::timestamp",
        skip_serializing_if = "Option::is_none"
    )]
    pub key_expiry: Option<OffsetDateTime>,
}

/// serde's own way needs a feature of it.
fn shared<S: serde::Serializer>(nodes: &[Arc<Node>], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(nodes.iter().map(Arc::as_ref))
}

fn cap_map<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<CapMap>, D::Error> {
    let map = Option::<BTreeMap<String, Option<Vec<Value>>>>::deserialize(deserializer)?;
    Ok(map.map(|map| {
        map.into_iter()
            .map(|(name, values)| (name, values.unwrap_or_default()))
            .collect()
    }))
}

impl fmt::Display for EndpointType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match *self {
            Self::LOCAL => "local",
            Self::STUN => "stun",
            Self::PORT_MAPPED => "portmap",
            Self::STUN_LOCAL_PORT => "stun4localport",
            Self::EXPLICIT => "explicit",
            _ => "unknown",
        })
    }
}
