//! The shapes of the stock daemon's LocalAPI (`status`, `whois`, `ping`), written by the agent and read by the CLI.
//!
//! Field names and order are the stock client's (protocol.md 8), so that scripts written for it read ours.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Go's zero time, which means "never".
pub const NEVER: &str = "0001-01-01T00:00:00Z";

/// [`PingResult::err`] of a ping that nobody answered.
pub const TIMED_OUT: &str = "timed out";

/// Found in the binary by `strings`, for a file whose origin nobody remembers.
const NAMED_VERSION: &str = concat!("lowroad version ", env!("CARGO_PKG_VERSION"));

/// The version we show; the capability version stands beside it where stock has one.
pub fn version() -> &'static str {
    // Read from that one place, so that what the binary names is what it says when it runs.
    let named = std::hint::black_box(NAMED_VERSION);
    named.rsplit(' ').next().unwrap_or(named)
}

fn never() -> String {
    NEVER.to_owned()
}

fn is_false(flag: &bool) -> bool {
    !*flag
}

/// `GET /localapi/v0/status`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Status {
    pub version: String,
    #[serde(rename = "TUN")]
    pub tun: bool,
    pub backend_state: BackendState,
    pub have_node_key: bool,
    #[serde(rename = "AuthURL")]
    pub auth_url: String,
    #[serde(rename = "TailscaleIPs")]
    pub tailscale_ips: Option<Vec<IpAddr>>,
    #[serde(rename = "Self")]
    pub self_node: Option<PeerStatus>,
    pub health: Vec<String>,
    #[serde(rename = "MagicDNSSuffix")]
    pub magic_dns_suffix: String,
    pub current_tailnet: Option<Tailnet>,
    pub cert_domains: Option<Vec<String>>,
    pub extra_records: Option<Vec<Value>>,
    /// By node key. Absent when the request asked for no peers.
    pub peer: Option<BTreeMap<String, PeerStatus>>,
    pub user: Option<BTreeMap<i64, UserStatus>>,
    pub client_version: Option<Value>,
    pub lowroad: Lowroad,
}

/// What only lowroad has.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Lowroad {
    pub version: String,
    /// `kernel` or `userspace`; empty while there is no device.
    pub dataplane: String,
    pub device: String,
    pub port: u16,
    /// The region this node is reached through.
    pub home_relay: String,
    /// What `up` still waits for; empty when connected.
    pub waiting_for: String,
    /// Peers of the last netmap that could not be understood and were left out.
    pub malformed_peers: Vec<String>,
    /// Packets of WireGuard's that went over relays since the agent began to run.
    pub relayed_tx_packets: u64,
    pub relayed_rx_packets: u64,
    /// When the netmap in use was kept, while the server has not sent one since the agent started.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cached_netmap: Option<String>,
    /// How long after its start the agent had the kernel hold what a netmap wants.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adopted_ms: Option<u64>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum BackendState {
    #[default]
    NoState,
    NeedsLogin,
    NeedsMachineAuth,
    Stopped,
    Starting,
    Running,
}

impl BackendState {
    /// The number in `Notify.State`.
    pub fn number(self) -> u8 {
        match self {
            Self::NoState => 0,
            Self::NeedsLogin => 2,
            Self::NeedsMachineAuth => 3,
            Self::Stopped => 4,
            Self::Starting => 5,
            Self::Running => 6,
        }
    }
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Tailnet {
    pub name: String,
    #[serde(rename = "MagicDNSSuffix")]
    pub magic_dns_suffix: String,
    #[serde(rename = "MagicDNSEnabled")]
    pub magic_dns_enabled: bool,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct UserStatus {
    #[serde(rename = "ID")]
    pub id: i64,
    pub login_name: String,
    pub display_name: String,
    #[serde(rename = "ProfilePicURL", skip_serializing_if = "String::is_empty")]
    pub profile_pic_url: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct PeerStatus {
    #[serde(rename = "ID")]
    pub id: String,
    #[serde(rename = "NodeID")]
    pub node_id: i64,
    pub public_key: String,
    pub host_name: String,
    #[serde(rename = "DNSName")]
    pub dns_name: String,
    #[serde(rename = "OS")]
    pub os: String,
    #[serde(rename = "UserID")]
    pub user_id: i64,
    #[serde(rename = "TailscaleIPs")]
    pub tailscale_ips: Option<Vec<IpAddr>>,
    #[serde(rename = "AllowedIPs", skip_serializing_if = "Option::is_none")]
    pub allowed_ips: Option<Vec<IpNet>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub primary_routes: Vec<IpNet>,
    pub addrs: Option<Vec<SocketAddr>>,
    /// The direct path in use, or empty.
    pub cur_addr: String,
    /// Code of the home region.
    pub relay: String,
    pub peer_relay: String,
    pub rx_bytes: u64,
    pub tx_bytes: u64,
    pub created: String,
    pub last_write: String,
    pub last_seen: String,
    pub last_handshake: String,
    pub online: bool,
    pub exit_node: bool,
    pub exit_node_option: bool,
    pub active: bool,
    #[serde(rename = "PeerAPIURL")]
    pub peer_api_url: Option<Vec<String>>,
    pub taildrop_target: u8,
    pub no_file_sharing_reason: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub capabilities: Vec<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub cap_map: BTreeMap<String, Value>,
    pub in_network_map: bool,
    pub in_magic_sock: bool,
    pub in_engine: bool,
    #[serde(skip_serializing_if = "is_false")]
    pub expired: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_expiry: Option<String>,
}

impl Default for PeerStatus {
    fn default() -> Self {
        Self {
            id: String::new(),
            node_id: 0,
            public_key: String::new(),
            host_name: String::new(),
            dns_name: String::new(),
            os: String::new(),
            user_id: 0,
            tailscale_ips: None,
            allowed_ips: None,
            tags: Vec::new(),
            primary_routes: Vec::new(),
            addrs: None,
            cur_addr: String::new(),
            relay: String::new(),
            peer_relay: String::new(),
            rx_bytes: 0,
            tx_bytes: 0,
            created: never(),
            last_write: never(),
            last_seen: never(),
            last_handshake: never(),
            online: false,
            exit_node: false,
            exit_node_option: false,
            active: false,
            peer_api_url: None,
            taildrop_target: 0,
            no_file_sharing_reason: String::new(),
            capabilities: Vec::new(),
            cap_map: BTreeMap::new(),
            in_network_map: false,
            in_magic_sock: false,
            in_engine: false,
            expired: false,
            key_expiry: None,
        }
    }
}

impl PeerStatus {
    pub fn first_ip(&self) -> Option<IpAddr> {
        self.tailscale_ips.as_ref()?.first().copied()
    }

    /// True if `name` is this node's address, full name, first label or host name.
    pub fn is_called(&self, name: &str) -> bool {
        if let Ok(ip) = name.parse::<IpAddr>() {
            return self
                .tailscale_ips
                .as_ref()
                .is_some_and(|ips| ips.contains(&ip));
        }
        let dns = self.dns_name.trim_end_matches('.');
        let name = name.trim_end_matches('.');
        name.eq_ignore_ascii_case(dns)
            || dns
                .split('.')
                .next()
                .is_some_and(|label| !label.is_empty() && name.eq_ignore_ascii_case(label))
            || name.eq_ignore_ascii_case(&self.host_name)
    }
}

/// What a ping asks: the other agent outside the tunnel, the other agent in it, or the operating system behind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PingKind {
    #[default]
    Disco,
    Tsmp,
    Icmp,
}

impl fmt::Display for PingKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Disco => "disco",
            Self::Tsmp => "TSMP",
            Self::Icmp => "ICMP",
        })
    }
}

impl FromStr for PingKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "disco" => Ok(Self::Disco),
            "TSMP" => Ok(Self::Tsmp),
            "ICMP" => Ok(Self::Icmp),
            "peerapi" => Err(
                "lowroad knows no pings of type \"peerapi\"; disco, TSMP and ICMP it does"
                    .to_owned(),
            ),
            _ => Err("invalid 'type' parameter: disco, TSMP or ICMP".to_owned()),
        }
    }
}

/// `POST /localapi/v0/ping`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct PingResult {
    #[serde(rename = "IP")]
    pub ip: String,
    #[serde(rename = "NodeIP")]
    pub node_ip: String,
    pub node_name: String,
    pub err: String,
    pub latency_seconds: f64,
    pub endpoint: String,
    pub peer_relay: String,
    #[serde(rename = "DERPRegionID")]
    pub derp_region_id: u16,
    #[serde(rename = "DERPRegionCode")]
    pub derp_region_code: String,
    #[serde(rename = "PeerAPIPort", skip_serializing_if = "Option::is_none")]
    pub peer_api_port: Option<u16>,
    #[serde(rename = "IsLocalIP", skip_serializing_if = "is_false")]
    pub is_local_ip: bool,
}

/// `GET /localapi/v0/whois`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct WhoIs {
    /// The node as control sent it, with the computed names.
    pub node: Value,
    pub user_profile: UserStatus,
    pub cap_map: Option<BTreeMap<String, Value>>,
}

/// One line of the answer to `POST /lowroad/v0/up`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Progress {
    /// What `up` waits for now.
    Waiting(String),
    /// The user has to visit this page.
    AuthUrl(String),
    /// Connected.
    Done,
    /// It failed, and the host is as it was.
    Failed(String),
}

/// One line of `GET /lowroad/v0/flows`: a packet that was refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Flow {
    pub time: String,
    /// `in` (from a peer) or `out`.
    pub direction: String,
    pub verdict: String,
    pub reason: String,
    pub proto: String,
    pub src: IpAddr,
    pub src_port: u16,
    pub dst: IpAddr,
    pub dst_port: u16,
    pub length: u32,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub rule: Option<u32>,
}
