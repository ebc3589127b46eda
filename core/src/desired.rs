//! What the kernel shall hold, and what it holds: the two sides that [`crate::plan::plan`] compares.
//!
//! Everything here is owned by lowroad: one device, table [`TABLE`], rules with priorities [`RULE_PRIORITIES`] that carry
//! our protocol number. What others put beside it never enters an [`Observed`], so no plan can touch it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use ipnet::IpNet;
use lowroad_wire::key::{NodePrivate, NodePublic};

/// Routing table of all tunnel routes (stock has 52).
pub const TABLE: u32 = 7052;

/// Priorities of our policy rules (stock has 5210 to 5270).
pub const RULE_PRIORITIES: RangeInclusive<u32> = 5310..=5370;

/// `rtm_protocol` and `FRA_PROTOCOL` of what we install, by which we know it again. Unassigned in `rt_protos`.
pub const PROTOCOL: u8 = 152;

/// Mark of what the agent and the device send outside the tunnel, when the user configures no other (stock uses 0x80000/0xff0000).
pub const DEFAULT_MARK: Mark = Mark {
    value: 0x0200_0000,
    mask: 0x0200_0000,
};

/// MTU of the device that stock peers expect.
pub const DEFAULT_MTU: u32 = 1280;

/// Everything that the kernel shall hold.
#[derive(Clone, Debug)]
pub struct Desired {
    pub device: String,
    pub mtu: u32,
    pub addresses: BTreeSet<IpNet>,
    pub wireguard: WireGuard,
    pub routes: BTreeSet<Route>,
    pub rules: BTreeSet<Rule>,
}

#[derive(Clone, Debug)]
pub struct WireGuard {
    pub private_key: NodePrivate,
    pub listen_port: u16,
    /// Mark of the encrypted packets, 0 for none.
    pub fwmark: u32,
    pub peers: BTreeMap<NodePublic, Peer>,
}

/// `endpoint: None` leaves alone what is there: WireGuard has no way to forget an endpoint.
///
/// A prefix has one owner. When two desired peers name the same one, the peer with the lower key gets it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peer {
    pub endpoint: Option<SocketAddr>,
    pub allowed_ips: BTreeSet<IpNet>,
}

/// A route in table [`TABLE`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Route {
    pub prefix: IpNet,
    pub kind: RouteKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RouteKind {
    /// Into the tunnel.
    Device,
    /// Keep out of the tunnel: the lookup goes on with the next rule.
    Throw,
    /// Drop: an exit node is selected but offers no such family or is gone.
    Blackhole,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    V4,
    V6,
}

/// `value` of the bits in `mask`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mark {
    pub value: u32,
    pub mask: u32,
}

/// A policy rule; `mark: None` matches everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rule {
    pub family: Family,
    pub priority: u32,
    pub mark: Option<Mark>,
    pub action: RuleAction,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RuleAction {
    Table(u32),
    Unreachable,
}

/// The eight rules (four per family) of a running node: what carries `mark` is routed as if we were not here,
/// or not at all; everything else asks [`TABLE`] first. Same shape as the stock client's 5210 to 5270.
pub fn policy_rules(mark: Mark) -> BTreeSet<Rule> {
    const MAIN: u32 = 254;
    const DEFAULT: u32 = 253;
    let shape = [
        (5310, Some(mark), RuleAction::Table(MAIN)),
        (5330, Some(mark), RuleAction::Table(DEFAULT)),
        (5350, Some(mark), RuleAction::Unreachable),
        (5370, None, RuleAction::Table(TABLE)),
    ];
    [Family::V4, Family::V6]
        .into_iter()
        .flat_map(|family| {
            shape.map(|(priority, mark, action)| Rule {
                family,
                priority,
                mark,
                action,
            })
        })
        .collect()
}

/// What was read back from the kernel, our own objects only.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    pub device: Option<ObservedDevice>,
    pub routes: BTreeSet<Route>,
    pub rules: BTreeSet<Rule>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObservedDevice {
    pub mtu: u32,
    pub up: bool,
    pub filter_attached: bool,
    /// Without link-local ones, which the kernel manages.
    pub addresses: BTreeSet<IpNet>,
    /// Of the private key that is set.
    pub public_key: Option<NodePublic>,
    pub listen_port: u16,
    pub fwmark: u32,
    pub peers: BTreeMap<NodePublic, Peer>,
}

/// Counters of one peer, as WireGuard has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerStats {
    pub key: NodePublic,
    pub endpoint: Option<SocketAddr>,
    /// Bytes since the peer was added; a smaller number than before means that it was added anew.
    pub rx_bytes: u64,
    pub tx_bytes: u64,
    /// Since the Unix epoch.
    pub last_handshake: Option<Duration>,
}
