use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{CapMap, go};

/// A permission; nothing is refused by a rule (protocol.md 5.1).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct FilterRule {
    /// `*`, an address, a CIDR, a range `a-b`, or `cap:<name>`; what does not parse is to be skipped.
    #[serde(rename = "SrcIPs", deserialize_with = "go::null")]
    pub src_ips: Vec<String>,
    #[serde(
        rename = "DstPorts",
        deserialize_with = "go::null",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub dst_ports: Vec<NetPortRange>,
    /// Empty: TCP, UDP, ICMP and ICMPv6. Kept as sent: a list of nothing but numbers outside 0..=255 matches no protocol.
    #[serde(
        rename = "IPProto",
        deserialize_with = "go::null",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub ip_proto: Vec<i64>,
    #[serde(
        rename = "CapGrant",
        deserialize_with = "go::null",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub cap_grant: Vec<CapGrant>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(default)]
pub struct NetPortRange {
    /// As in [`FilterRule::src_ips`], without `cap:`.
    #[serde(rename = "IP", deserialize_with = "go::null")]
    pub ip: String,
    #[serde(rename = "Ports", deserialize_with = "go::null")]
    pub ports: PortRange,
}

/// Both ends belong to it.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(default)]
pub struct PortRange {
    #[serde(rename = "First")]
    pub first: u16,
    #[serde(rename = "Last")]
    pub last: u16,
}

impl PortRange {
    pub const ANY: Self = Self {
        first: 0,
        last: u16::MAX,
    };

    pub fn contains(self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }
}

/// What an application at `dsts` may take a source for.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct CapGrant {
    #[serde(rename = "Dsts", deserialize_with = "go::lenient_list")]
    pub dsts: Vec<IpNet>,
    /// The old form of `cap_map`.
    #[serde(
        rename = "Caps",
        deserialize_with = "go::null",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub caps: Vec<String>,
    #[serde(
        rename = "CapMap",
        deserialize_with = "go::null_values",
        skip_serializing_if = "CapMap::is_empty"
    )]
    pub cap_map: CapMap,
}
