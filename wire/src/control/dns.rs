use std::{collections::BTreeMap, net::IpAddr};

use serde::{Deserialize, Serialize};

use super::go;

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DnsConfig {
    /// Global resolvers, in order.
    #[serde(
        rename = "Resolvers",
        deserialize_with = "go::lenient_list",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub resolvers: Vec<Resolver>,
    /// Suffix to its resolvers; with none it is answered from the netmap.
    #[serde(
        rename = "Routes",
        deserialize_with = "go::null_values",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub routes: BTreeMap<String, Vec<Resolver>>,
    #[serde(
        rename = "FallbackResolvers",
        deserialize_with = "go::lenient_list",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub fallback_resolvers: Vec<Resolver>,
    /// Search list, without trailing dots.
    #[serde(
        rename = "Domains",
        deserialize_with = "go::null",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub domains: Vec<String>,
    /// MagicDNS is on.
    #[serde(
        rename = "Proxied",
        deserialize_with = "go::null",
        skip_serializing_if = "go::is_default"
    )]
    pub proxied: bool,
    #[serde(
        rename = "Nameservers",
        deserialize_with = "go::lenient_list",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub nameservers: Vec<IpAddr>,
    #[serde(
        rename = "CertDomains",
        deserialize_with = "go::null",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub cert_domains: Vec<String>,
    #[serde(
        rename = "ExtraRecords",
        deserialize_with = "go::lenient_list",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub extra_records: Vec<DnsRecord>,
    #[serde(
        rename = "ExitNodeFilteredSet",
        deserialize_with = "go::null",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub exit_node_filtered_set: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Resolver {
    /// `IP`, `IP:port`, `https://…`, `http://…` or `tls://…`.
    #[serde(
        rename = "Addr",
        deserialize_with = "go::null",
        skip_serializing_if = "String::is_empty"
    )]
    pub addr: String,
    #[serde(
        rename = "BootstrapResolution",
        deserialize_with = "go::lenient_list",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub bootstrap_resolution: Vec<IpAddr>,
    #[serde(
        rename = "UseWithExitNode",
        deserialize_with = "go::null",
        skip_serializing_if = "go::is_default"
    )]
    pub use_with_exit_node: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DnsRecord {
    #[serde(rename = "Name", deserialize_with = "go::null")]
    pub name: String,
    /// Empty, `A` or `AAAA`.
    #[serde(
        rename = "Type",
        deserialize_with = "go::null",
        skip_serializing_if = "String::is_empty"
    )]
    pub kind: String,
    #[serde(rename = "Value", deserialize_with = "go::null")]
    pub value: String,
}
