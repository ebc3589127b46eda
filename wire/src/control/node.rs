use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use time::OffsetDateTime;

use super::{Hostinfo, NodeId, RegionId, Resolver, StableId, UserId, go};
use crate::key::{DiscoPublic, MachinePublic, NodePublic};

/// Capability or attribute to its arguments.
pub type CapMap = BTreeMap<String, Vec<Value>>;

/// A machine of the tailnet: oneself or a peer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Node {
    #[serde(rename = "ID")]
    pub id: NodeId,
    #[serde(rename = "StableID", deserialize_with = "go::null")]
    pub stable_id: StableId,
    /// Fully qualified, with a trailing dot.
    #[serde(rename = "Name", deserialize_with = "go::null")]
    pub name: String,
    #[serde(rename = "User", deserialize_with = "go::null")]
    pub user: UserId,
    #[serde(
        rename = "Sharer",
        deserialize_with = "go::null",
        skip_serializing_if = "go::is_default"
    )]
    pub sharer: UserId,
    #[serde(rename = "Key")]
    pub key: NodePublic,
    /// None: never.
    #[serde(
        rename = "KeyExpiry",
        with = "go::timestamp",
        skip_serializing_if = "Option::is_none"
    )]
    pub key_expiry: Option<OffsetDateTime>,
    /// Base64, tailnet lock.
    #[serde(
        rename = "KeySignature",
        deserialize_with = "go::null",
        skip_serializing_if = "String::is_empty"
    )]
    pub key_signature: String,
    #[serde(
        rename = "Machine",
        with = "go::key",
        skip_serializing_if = "Option::is_none"
    )]
    pub machine: Option<MachinePublic>,
    #[serde(
        rename = "DiscoKey",
        with = "go::key",
        skip_serializing_if = "Option::is_none"
    )]
    pub disco_key: Option<DiscoPublic>,
    /// Each a /32 or /128 in [`CGNAT`] or [`ULA`]; either family may be missing.
    #[serde(rename = "Addresses", deserialize_with = "go::null")]
    pub addresses: Vec<IpNet>,
    /// None: the same as `addresses`; see [`Node::allowed_ips`].
    #[serde(rename = "AllowedIPs", skip_serializing_if = "Option::is_none")]
    pub allowed_ips: Option<Vec<IpNet>>,
    #[serde(
        rename = "Endpoints",
        deserialize_with = "go::lenient_list",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub endpoints: Vec<SocketAddr>,
    /// `127.3.3.40:<region>`, from servers older than `home_derp`; see [`Node::home_region`].
    #[serde(
        rename = "DERP",
        deserialize_with = "go::lenient",
        skip_serializing_if = "String::is_empty"
    )]
    pub legacy_derp: String,
    #[serde(
        rename = "HomeDERP",
        deserialize_with = "go::region",
        skip_serializing_if = "Option::is_none"
    )]
    pub home_derp: Option<RegionId>,
    #[serde(rename = "Hostinfo", deserialize_with = "go::lenient")]
    pub hostinfo: Hostinfo,
    #[serde(rename = "Created", with = "go::timestamp")]
    pub created: Option<OffsetDateTime>,
    /// Capability version.
    #[serde(
        rename = "Cap",
        deserialize_with = "go::lenient",
        skip_serializing_if = "go::is_default"
    )]
    pub cap: u16,
    #[serde(
        rename = "Tags",
        deserialize_with = "go::null",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub tags: Vec<String>,
    #[serde(
        rename = "PrimaryRoutes",
        deserialize_with = "go::lenient_list",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub primary_routes: Vec<IpNet>,
    /// Means something only while the node is offline.
    #[serde(
        rename = "LastSeen",
        with = "go::timestamp",
        skip_serializing_if = "Option::is_none"
    )]
    pub last_seen: Option<OffsetDateTime>,
    /// None: unknown.
    #[serde(rename = "Online", skip_serializing_if = "Option::is_none")]
    pub online: Option<bool>,
    #[serde(
        rename = "MachineAuthorized",
        deserialize_with = "go::null",
        skip_serializing_if = "go::is_default"
    )]
    pub machine_authorized: bool,
    #[serde(
        rename = "Capabilities",
        deserialize_with = "go::null",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub capabilities: Vec<String>,
    #[serde(
        rename = "CapMap",
        deserialize_with = "go::null_values",
        skip_serializing_if = "CapMap::is_empty"
    )]
    pub cap_map: CapMap,
    /// Ignore `allowed_ips` beyond `addresses`, and no packet filter may admit this peer.
    #[serde(
        rename = "UnsignedPeerAPIOnly",
        deserialize_with = "go::null",
        skip_serializing_if = "go::is_default"
    )]
    pub unsigned_peer_api_only: bool,
    #[serde(
        rename = "DataPlaneAuditLogID",
        deserialize_with = "go::null",
        skip_serializing_if = "String::is_empty"
    )]
    pub data_plane_audit_log_id: String,
    /// A client may turn it on (by `key_expiry`), never off.
    #[serde(
        rename = "Expired",
        deserialize_with = "go::null",
        skip_serializing_if = "go::is_default"
    )]
    pub expired: bool,
    #[serde(
        rename = "SelfNodeV4MasqAddrForThisPeer",
        skip_serializing_if = "Option::is_none"
    )]
    pub self_v4_masquerade: Option<Ipv4Addr>,
    #[serde(
        rename = "SelfNodeV6MasqAddrForThisPeer",
        skip_serializing_if = "Option::is_none"
    )]
    pub self_v6_masquerade: Option<Ipv6Addr>,
    /// Neither disco nor DERP; needs endpoints.
    #[serde(
        rename = "IsWireGuardOnly",
        deserialize_with = "go::null",
        skip_serializing_if = "go::is_default"
    )]
    pub is_wireguard_only: bool,
    /// May not open connections to us.
    #[serde(
        rename = "IsJailed",
        deserialize_with = "go::null",
        skip_serializing_if = "go::is_default"
    )]
    pub is_jailed: bool,
    #[serde(
        rename = "ExitNodeDNSResolvers",
        deserialize_with = "go::lenient_list",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub exit_node_dns_resolvers: Vec<Resolver>,
}

/// The ranges that nodes and services of tailnets have their addresses from. Stock clients count on them, and Headscale supports no others.
pub const CGNAT: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(100, 64, 0, 0), 10);
pub const ULA: Ipv6Net =
    Ipv6Net::new_assert(Ipv6Addr::new(0xfd7a, 0x115c, 0xa1e0, 0, 0, 0, 0, 0), 48);

/// Whether this may be an address of a node.
pub(super) fn is_address(net: &IpNet) -> bool {
    net.prefix_len() == net.max_prefix_len()
        && match net {
            IpNet::V4(v4) => CGNAT.contains(v4),
            IpNet::V6(v6) => ULA.contains(v6),
        }
}

/// What the legacy DERP string begins with.
const DERP_MAGIC: &str = "127.3.3.40:";

impl Node {
    /// What may come from this node, and goes to it.
    pub fn allowed_ips(&self) -> &[IpNet] {
        match &self.allowed_ips {
            Some(prefixes) if !self.unsigned_peer_api_only => prefixes,
            _ => &self.addresses,
        }
    }

    pub fn ips(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.addresses.iter().map(IpNet::addr)
    }

    pub fn home_region(&self) -> Option<RegionId> {
        self.home_derp.or_else(|| {
            let region = self.legacy_derp.strip_prefix(DERP_MAGIC)?.parse().ok()?;
            (region != 0).then_some(RegionId(region))
        })
    }

    /// `now` by the control server's clock.
    pub fn is_expired(&self, now: OffsetDateTime) -> bool {
        self.expired || self.key_expiry.is_some_and(|expiry| expiry <= now)
    }

    /// Whether packets can reach it at all, by what the control server says.
    pub fn is_routable(&self, now: OffsetDateTime) -> bool {
        !self.is_expired(now)
            && (self.disco_key.is_some() || self.home_region().is_some() || self.is_wireguard_only)
    }
}
