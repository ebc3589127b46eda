use std::collections::BTreeMap;

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use super::{RegionId, go};

/// What a node says about its host. Also a peer's, so what does not read in it never fails the whole.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Hostinfo {
    #[serde(
        rename = "IPNVersion",
        deserialize_with = "go::lenient",
        skip_serializing_if = "String::is_empty"
    )]
    pub ipn_version: String,
    #[serde(
        rename = "OS",
        deserialize_with = "go::lenient",
        skip_serializing_if = "String::is_empty"
    )]
    pub os: String,
    #[serde(
        rename = "Hostname",
        deserialize_with = "go::lenient",
        skip_serializing_if = "String::is_empty"
    )]
    pub hostname: String,
    #[serde(
        rename = "ShieldsUp",
        deserialize_with = "go::lenient",
        skip_serializing_if = "go::is_default"
    )]
    pub shields_up: bool,
    #[serde(
        rename = "ShareeNode",
        deserialize_with = "go::lenient",
        skip_serializing_if = "go::is_default"
    )]
    pub sharee_node: bool,
    /// Advertised prefixes: subnet routes, `0.0.0.0/0` and `::/0` of an exit node.
    #[serde(
        rename = "RoutableIPs",
        deserialize_with = "go::lenient_list",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub routable_ips: Vec<IpNet>,
    #[serde(
        rename = "RequestTags",
        deserialize_with = "go::lenient_list",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub request_tags: Vec<String>,
    #[serde(
        rename = "Services",
        deserialize_with = "go::lenient_list",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub services: Vec<Service>,
    #[serde(
        rename = "NetInfo",
        deserialize_with = "go::lenient",
        skip_serializing_if = "Option::is_none"
    )]
    pub net_info: Option<NetInfo>,
    #[serde(
        rename = "PeerRelay",
        deserialize_with = "go::lenient",
        skip_serializing_if = "go::is_default"
    )]
    pub peer_relay: bool,
    /// What nothing but a person asks about.
    #[serde(
        flatten,
        deserialize_with = "details",
        skip_serializing_if = "Option::is_none"
    )]
    pub details: Option<Box<HostDetails>>,
}

fn details<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Box<HostDetails>>, D::Error> {
    let details = HostDetails::deserialize(deserializer)?;
    Ok((details != HostDetails::default()).then(|| Box::new(details)))
}

/// The rest of [`Hostinfo`]. Apart from it, because a node with ten thousand peers keeps none of theirs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct HostDetails {
    #[serde(
        rename = "FrontendLogID",
        deserialize_with = "go::lenient",
        skip_serializing_if = "String::is_empty"
    )]
    pub frontend_log_id: String,
    /// 64 hex digits; stock servers expect one, and want no more of it.
    #[serde(
        rename = "BackendLogID",
        deserialize_with = "go::lenient",
        skip_serializing_if = "String::is_empty"
    )]
    pub backend_log_id: String,
    #[serde(
        rename = "OSVersion",
        deserialize_with = "go::lenient",
        skip_serializing_if = "String::is_empty"
    )]
    pub os_version: String,
    #[serde(
        rename = "Container",
        deserialize_with = "go::lenient",
        skip_serializing_if = "Option::is_none"
    )]
    pub container: Option<bool>,
    #[serde(
        rename = "Env",
        deserialize_with = "go::lenient",
        skip_serializing_if = "String::is_empty"
    )]
    pub env: String,
    #[serde(
        rename = "Distro",
        deserialize_with = "go::lenient",
        skip_serializing_if = "String::is_empty"
    )]
    pub distro: String,
    #[serde(
        rename = "DistroVersion",
        deserialize_with = "go::lenient",
        skip_serializing_if = "String::is_empty"
    )]
    pub distro_version: String,
    #[serde(
        rename = "DistroCodeName",
        deserialize_with = "go::lenient",
        skip_serializing_if = "String::is_empty"
    )]
    pub distro_code_name: String,
    #[serde(
        rename = "App",
        deserialize_with = "go::lenient",
        skip_serializing_if = "String::is_empty"
    )]
    pub app: String,
    #[serde(
        rename = "Desktop",
        deserialize_with = "go::lenient",
        skip_serializing_if = "Option::is_none"
    )]
    pub desktop: Option<bool>,
    #[serde(
        rename = "Package",
        deserialize_with = "go::lenient",
        skip_serializing_if = "String::is_empty"
    )]
    pub package: String,
    #[serde(
        rename = "DeviceModel",
        deserialize_with = "go::lenient",
        skip_serializing_if = "String::is_empty"
    )]
    pub device_model: String,
    #[serde(
        rename = "NoLogsNoSupport",
        deserialize_with = "go::lenient",
        skip_serializing_if = "go::is_default"
    )]
    pub no_logs_no_support: bool,
    #[serde(
        rename = "WireIngress",
        deserialize_with = "go::lenient",
        skip_serializing_if = "go::is_default"
    )]
    pub wire_ingress: bool,
    #[serde(
        rename = "IngressEnabled",
        deserialize_with = "go::lenient",
        skip_serializing_if = "go::is_default"
    )]
    pub ingress_enabled: bool,
    #[serde(
        rename = "AllowsUpdate",
        deserialize_with = "go::lenient",
        skip_serializing_if = "go::is_default"
    )]
    pub allows_update: bool,
    /// `uname -m`.
    #[serde(
        rename = "Machine",
        deserialize_with = "go::lenient",
        skip_serializing_if = "String::is_empty"
    )]
    pub machine: String,
    #[serde(
        rename = "GoArch",
        deserialize_with = "go::lenient",
        skip_serializing_if = "String::is_empty"
    )]
    pub go_arch: String,
    #[serde(
        rename = "GoArchVar",
        deserialize_with = "go::lenient",
        skip_serializing_if = "String::is_empty"
    )]
    pub go_arch_var: String,
    #[serde(
        rename = "GoVersion",
        deserialize_with = "go::lenient",
        skip_serializing_if = "String::is_empty"
    )]
    pub go_version: String,
    #[serde(
        rename = "WoLMACs",
        deserialize_with = "go::lenient_list",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub wol_macs: Vec<String>,
    #[serde(
        rename = "sshHostKeys",
        deserialize_with = "go::lenient_list",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub ssh_host_keys: Vec<String>,
    #[serde(
        rename = "Cloud",
        deserialize_with = "go::lenient",
        skip_serializing_if = "String::is_empty"
    )]
    pub cloud: String,
    #[serde(
        rename = "Userspace",
        deserialize_with = "go::lenient",
        skip_serializing_if = "Option::is_none"
    )]
    pub userspace: Option<bool>,
    #[serde(
        rename = "UserspaceRouter",
        deserialize_with = "go::lenient",
        skip_serializing_if = "Option::is_none"
    )]
    pub userspace_router: Option<bool>,
    #[serde(
        rename = "AppConnector",
        deserialize_with = "go::lenient",
        skip_serializing_if = "Option::is_none"
    )]
    pub app_connector: Option<bool>,
    #[serde(
        rename = "ServicesHash",
        deserialize_with = "go::lenient",
        skip_serializing_if = "String::is_empty"
    )]
    pub services_hash: String,
    #[serde(
        rename = "ExitNodeID",
        deserialize_with = "go::lenient",
        skip_serializing_if = "String::is_empty"
    )]
    pub exit_node_id: String,
    #[serde(
        rename = "Location",
        deserialize_with = "go::lenient",
        skip_serializing_if = "Option::is_none"
    )]
    pub location: Option<Location>,
    #[serde(
        rename = "TPM",
        deserialize_with = "go::lenient",
        skip_serializing_if = "Option::is_none"
    )]
    pub tpm: Option<Value>,
    #[serde(
        rename = "StateEncrypted",
        deserialize_with = "go::lenient",
        skip_serializing_if = "Option::is_none"
    )]
    pub state_encrypted: Option<bool>,
}

/// A port that a host offers; `peerapi4`, `peerapi6` and `peerapi-dns-proxy` are protocols of their own.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Service {
    #[serde(rename = "Proto", deserialize_with = "go::null")]
    pub proto: String,
    #[serde(rename = "Port", deserialize_with = "go::null")]
    pub port: u16,
    #[serde(
        rename = "Description",
        deserialize_with = "go::null",
        skip_serializing_if = "String::is_empty"
    )]
    pub description: String,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Location {
    #[serde(
        rename = "Country",
        deserialize_with = "go::null",
        skip_serializing_if = "String::is_empty"
    )]
    pub country: String,
    #[serde(
        rename = "CountryCode",
        deserialize_with = "go::null",
        skip_serializing_if = "String::is_empty"
    )]
    pub country_code: String,
    #[serde(
        rename = "City",
        deserialize_with = "go::null",
        skip_serializing_if = "String::is_empty"
    )]
    pub city: String,
    #[serde(
        rename = "CityCode",
        deserialize_with = "go::null",
        skip_serializing_if = "String::is_empty"
    )]
    pub city_code: String,
    #[serde(
        rename = "Latitude",
        deserialize_with = "go::null",
        skip_serializing_if = "go::is_default"
    )]
    pub latitude: f64,
    #[serde(
        rename = "Longitude",
        deserialize_with = "go::null",
        skip_serializing_if = "go::is_default"
    )]
    pub longitude: f64,
    #[serde(
        rename = "Priority",
        deserialize_with = "go::null",
        skip_serializing_if = "go::is_default"
    )]
    pub priority: i64,
}

/// What netcheck found out about the network.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct NetInfo {
    /// A hard NAT: each destination sees another address or port of ours.
    #[serde(
        rename = "MappingVariesByDestIP",
        skip_serializing_if = "Option::is_none"
    )]
    pub mapping_varies_by_dest_ip: Option<bool>,
    #[serde(rename = "WorkingIPv6", skip_serializing_if = "Option::is_none")]
    pub working_ipv6: Option<bool>,
    #[serde(rename = "OSHasIPv6", skip_serializing_if = "Option::is_none")]
    pub os_has_ipv6: Option<bool>,
    #[serde(rename = "WorkingUDP", skip_serializing_if = "Option::is_none")]
    pub working_udp: Option<bool>,
    #[serde(rename = "WorkingICMPv4", skip_serializing_if = "Option::is_none")]
    pub working_icmpv4: Option<bool>,
    #[serde(
        rename = "HavePortMap",
        deserialize_with = "go::null",
        skip_serializing_if = "go::is_default"
    )]
    pub have_port_map: bool,
    #[serde(rename = "UPnP", skip_serializing_if = "Option::is_none")]
    pub upnp: Option<bool>,
    #[serde(rename = "PMP", skip_serializing_if = "Option::is_none")]
    pub pmp: Option<bool>,
    #[serde(rename = "PCP", skip_serializing_if = "Option::is_none")]
    pub pcp: Option<bool>,
    /// How the control server learns a node's home region.
    #[serde(
        rename = "PreferredDERP",
        deserialize_with = "go::region",
        skip_serializing_if = "Option::is_none"
    )]
    pub preferred_derp: Option<RegionId>,
    #[serde(
        rename = "LinkType",
        deserialize_with = "go::null",
        skip_serializing_if = "String::is_empty"
    )]
    pub link_type: String,
    /// `"<region>-v4"` or `"<region>-v6"` to seconds.
    #[serde(
        rename = "DERPLatency",
        deserialize_with = "go::null",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub derp_latency: BTreeMap<String, f64>,
    #[serde(
        rename = "FirewallMode",
        deserialize_with = "go::null",
        skip_serializing_if = "String::is_empty"
    )]
    pub firewall_mode: String,
}
