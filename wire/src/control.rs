//! The JSON of the control protocol (protocol.md 1.6 to 1.10), in the spelling that Go's encoder gives it.
//!
//! Decoding ignores unknown fields, takes `null` for the default and Go's zero time for none; encoding leaves out what
//! Go's `omitempty` would. Strings are owned: Go escapes `&`, `<` and `>`, so nothing can be borrowed from the input.

mod census;
mod derpmap;
mod dns;
mod filter;
mod go;
mod hostinfo;
mod map;
mod node;
mod notice;
mod parse;
mod register;
mod ssh;
mod user;

use std::{fmt, str::FromStr};

pub use census::check_request;
pub use derpmap::{DerpMap, DerpMapUpdate, DerpNode, DerpRegion, HomeParams};
pub use dns::{DnsConfig, DnsRecord, Resolver};
pub use filter::{CapGrant, FilterRule, NetPortRange, PortRange};
pub use hostinfo::{HostDetails, Hostinfo, Location, NetInfo, Service};
pub use map::{EndpointType, MapRequest, MapResponse, PeerChange};
pub use node::{CGNAT, CapMap, Node, ULA};
pub use notice::{
    ClientVersion, ControlDialPlan, ControlIpCandidate, Debug, DisplayMessage,
    DisplayMessageAction, PingRequest, PingResponse, TkaInfo,
};
pub use parse::Malformed;
pub use register::{OverTlsPublicKey, RegisterAuth, RegisterRequest, RegisterResponse};
use serde::{Deserialize, Deserializer, Serialize, de};
pub use ssh::{SshAction, SshPolicy, SshPrincipal, SshRule};
pub use user::{Login, User, UserProfile};

/// The version that we claim wherever one is asked for: Noise header and prologue, `/key`, register and map requests.
///
/// 130 is what the official Rust crates send; what comes after it (429 on register, in-tunnel disco keys, relays'
/// attributes) we either honour anyway or may ignore (protocol.md 1.9). Headscale 0.30 refuses less than 113.
pub const CAPABILITY_VERSION: u16 = 130;

/// Number of a node at the control server; positive, below 2^53.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct NodeId(pub i64);

/// Name of a node that never changes and is never used again.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct StableId(pub String);

#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct UserId(pub i64);

/// A DERP region. They start at 1; 900 to 999 are for those who run their own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct RegionId(pub u16);

impl<'de> Deserialize<'de> for RegionId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let number = i64::deserialize(deserializer)?;
        u16::try_from(number).map(Self).map_err(|_| {
            de::Error::custom(format_args!("no DERP region can have the number {number}"))
        })
    }
}

macro_rules! number {
    ($($name:ident),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl FromStr for $name {
            type Err = std::num::ParseIntError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                text.parse().map(Self)
            }
        }
    )*};
}
number!(NodeId, UserId, RegionId);

impl fmt::Display for StableId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
