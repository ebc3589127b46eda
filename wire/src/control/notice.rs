//! What the control server says beside the netmap.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::{RegionId, go};

/// The control server wants to hear from us, or that we ping somebody (protocol.md 1.10).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PingRequest {
    #[serde(rename = "URL", deserialize_with = "go::null")]
    pub url: String,
    #[serde(
        rename = "URLIsNoise",
        deserialize_with = "go::null",
        skip_serializing_if = "go::is_default"
    )]
    pub url_is_noise: bool,
    #[serde(
        rename = "Log",
        deserialize_with = "go::null",
        skip_serializing_if = "go::is_default"
    )]
    pub log: bool,
    /// Comma list; empty: HEAD the URL.
    #[serde(
        rename = "Types",
        deserialize_with = "go::null",
        skip_serializing_if = "String::is_empty"
    )]
    pub types: String,
    #[serde(
        rename = "IP",
        deserialize_with = "go::lenient",
        skip_serializing_if = "Option::is_none"
    )]
    pub ip: Option<IpAddr>,
    /// Base64.
    #[serde(
        rename = "Payload",
        deserialize_with = "go::null",
        skip_serializing_if = "String::is_empty"
    )]
    pub payload: String,
}

/// Answer to a [`PingRequest`] with types.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PingResponse {
    #[serde(rename = "Type")]
    pub kind: String,
    #[serde(rename = "IP", skip_serializing_if = "String::is_empty")]
    pub ip: String,
    #[serde(rename = "NodeIP", skip_serializing_if = "String::is_empty")]
    pub node_ip: String,
    #[serde(rename = "NodeName", skip_serializing_if = "String::is_empty")]
    pub node_name: String,
    #[serde(rename = "Err", skip_serializing_if = "String::is_empty")]
    pub err: String,
    #[serde(rename = "LatencySeconds", skip_serializing_if = "go::is_default")]
    pub latency_seconds: f64,
    #[serde(rename = "Endpoint", skip_serializing_if = "String::is_empty")]
    pub endpoint: String,
    #[serde(rename = "PeerRelay", skip_serializing_if = "String::is_empty")]
    pub peer_relay: String,
    #[serde(
        rename = "DERPRegionID",
        deserialize_with = "go::region",
        skip_serializing_if = "Option::is_none"
    )]
    pub derp_region_id: Option<RegionId>,
    #[serde(rename = "DERPRegionCode", skip_serializing_if = "String::is_empty")]
    pub derp_region_code: String,
    #[serde(rename = "PeerAPIPort", skip_serializing_if = "go::is_default")]
    pub peer_api_port: u16,
    #[serde(rename = "IsLocalIP", skip_serializing_if = "go::is_default")]
    pub is_local_ip: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DisplayMessage {
    #[serde(
        rename = "Title",
        deserialize_with = "go::null",
        skip_serializing_if = "String::is_empty"
    )]
    pub title: String,
    #[serde(
        rename = "Text",
        deserialize_with = "go::null",
        skip_serializing_if = "String::is_empty"
    )]
    pub text: String,
    /// `high`, `medium` or `low`.
    #[serde(
        rename = "Severity",
        deserialize_with = "go::null",
        skip_serializing_if = "String::is_empty"
    )]
    pub severity: String,
    #[serde(
        rename = "ImpactsConnectivity",
        deserialize_with = "go::null",
        skip_serializing_if = "go::is_default"
    )]
    pub impacts_connectivity: bool,
    #[serde(rename = "PrimaryAction", skip_serializing_if = "Option::is_none")]
    pub primary_action: Option<DisplayMessageAction>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DisplayMessageAction {
    #[serde(
        rename = "URL",
        deserialize_with = "go::null",
        skip_serializing_if = "String::is_empty"
    )]
    pub url: String,
    #[serde(
        rename = "Label",
        deserialize_with = "go::null",
        skip_serializing_if = "String::is_empty"
    )]
    pub label: String,
}

/// State of the tailnet lock at the server.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TkaInfo {
    #[serde(
        rename = "Head",
        deserialize_with = "go::null",
        skip_serializing_if = "String::is_empty"
    )]
    pub head: String,
    #[serde(
        rename = "Disabled",
        deserialize_with = "go::null",
        skip_serializing_if = "go::is_default"
    )]
    pub disabled: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Debug {
    /// To be capped at five minutes.
    #[serde(
        rename = "SleepSeconds",
        deserialize_with = "go::null",
        skip_serializing_if = "go::is_default"
    )]
    pub sleep_seconds: f64,
    #[serde(
        rename = "DisableLogTail",
        deserialize_with = "go::null",
        skip_serializing_if = "go::is_default"
    )]
    pub disable_log_tail: bool,
    #[serde(rename = "Exit", skip_serializing_if = "Option::is_none")]
    pub exit: Option<i64>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ControlDialPlan {
    #[serde(
        rename = "Candidates",
        deserialize_with = "go::lenient_list",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub candidates: Vec<ControlIpCandidate>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ControlIpCandidate {
    #[serde(
        rename = "IP",
        deserialize_with = "go::lenient",
        skip_serializing_if = "Option::is_none"
    )]
    pub ip: Option<IpAddr>,
    #[serde(
        rename = "ACEHost",
        deserialize_with = "go::null",
        skip_serializing_if = "String::is_empty"
    )]
    pub ace_host: String,
    #[serde(
        rename = "DialStartDelaySec",
        deserialize_with = "go::null",
        skip_serializing_if = "go::is_default"
    )]
    pub dial_start_delay_sec: f64,
    #[serde(
        rename = "DialTimeoutSec",
        deserialize_with = "go::null",
        skip_serializing_if = "go::is_default"
    )]
    pub dial_timeout_sec: f64,
    #[serde(
        rename = "Priority",
        deserialize_with = "go::null",
        skip_serializing_if = "go::is_default"
    )]
    pub priority: i64,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ClientVersion {
    #[serde(
        rename = "RunningLatest",
        deserialize_with = "go::null",
        skip_serializing_if = "go::is_default"
    )]
    pub running_latest: bool,
    #[serde(
        rename = "LatestVersion",
        deserialize_with = "go::null",
        skip_serializing_if = "String::is_empty"
    )]
    pub latest_version: String,
    #[serde(
        rename = "UrgentSecurityUpdate",
        deserialize_with = "go::null",
        skip_serializing_if = "go::is_default"
    )]
    pub urgent_security_update: bool,
    #[serde(
        rename = "Notify",
        deserialize_with = "go::null",
        skip_serializing_if = "go::is_default"
    )]
    pub notify: bool,
    #[serde(
        rename = "NotifyURL",
        deserialize_with = "go::null",
        skip_serializing_if = "String::is_empty"
    )]
    pub notify_url: String,
    #[serde(
        rename = "NotifyText",
        deserialize_with = "go::null",
        skip_serializing_if = "String::is_empty"
    )]
    pub notify_text: String,
}
