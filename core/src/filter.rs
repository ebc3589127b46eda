//! The packet filter: what the control server's rules mean (`protocol.md` 5), twice.
//!
//! [`compile`] turns rules into the tables that the kernel programs look packets up in. [`Evaluator`] reads the same rules directly, packet by packet; it is the reference that the
//! programs are tested against, and answers `lowroad why`.

mod answer;
mod classify;
mod compile;
mod compiled;
mod evaluate;
mod event;
mod grants;
mod layout;
mod packet;
mod ports;
mod prefix;
mod rules;

use std::{collections::BTreeSet, fmt, net::IpAddr};

use ipnet::IpNet;
pub use lowroad_abi::{Direction, DropReason, Pass};
use lowroad_wire::control::FilterRule;

pub use self::{
    compile::compile,
    compiled::{Compiled, CompiledRule, PairKey, PortKey, Service, Tables},
    evaluate::Evaluator,
    event::{FilterCounters, FilterEvent, FlowTuple, Punt, RuleCount},
    grants::granted,
    layout::{Layout, TooLarge},
    prefix::{Family, Prefix},
};

/// Everything that decides what the filter does.
#[derive(Clone, Debug, Default)]
pub struct Input {
    /// As the control server sent them; what does not parse is skipped and noted.
    pub rules: Vec<FilterRule>,
    /// What may be a destination here (`protocol.md` 5.2).
    pub local: Vec<IpNet>,
    pub peers: Vec<PeerFacts>,
    /// Our addresses in the tailnet, where the peer API listens.
    pub own_addresses: Vec<IpAddr>,
    pub peer_api_port: Option<u16>,
    pub shields_up: bool,
    /// Our disco public key: our own disco inside the tunnel is a loop.
    pub disco: Option<[u8; 32]>,
}

/// What the filter must know of a peer.
#[derive(Clone, Debug, Default)]
pub struct PeerFacts {
    /// Its own addresses: those that `cap:` sources mean.
    pub addresses: Vec<IpAddr>,
    /// All that it may send from (AllowedIPs): what jails a jailed peer.
    pub allowed_ips: Vec<IpNet>,
    /// Keys of its capability map.
    pub caps: BTreeSet<String>,
    /// It may answer, but begin nothing.
    pub jailed: bool,
    /// `UnsignedPeerAPIOnly`: rules that admit such a peer void the whole filter.
    pub unsigned_peer_api_only: bool,
}

/// Position of a rule in [`Input::rules`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RuleId(pub u32);

impl fmt::Display for RuleId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// What to do with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Accept(Pass),
    Drop(DropReason),
    /// For the agent, not for the stack.
    Consume,
}

/// A judgement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    pub action: Action,
    /// The rule that admitted it, if one did.
    pub rule: Option<RuleId>,
}

impl Verdict {
    const fn accept(pass: Pass) -> Self {
        Self {
            action: Action::Accept(pass),
            rule: None,
        }
    }
    const fn drop(reason: DropReason) -> Self {
        Self {
            action: Action::Drop(reason),
            rule: None,
        }
    }
    const fn rule(rule: RuleId) -> Self {
        Self {
            action: Action::Accept(Pass::Rule),
            rule: Some(rule),
        }
    }
    /// Whether the packet goes on its way.
    pub const fn accepted(&self) -> bool {
        matches!(self.action, Action::Accept(_))
    }
    /// Number of the outcome's counter.
    pub const fn outcome(&self) -> u8 {
        match self.action {
            Action::Accept(pass) => pass as u8,
            Action::Drop(reason) => reason as u8,
            Action::Consume => Pass::Consumed as u8,
        }
    }
}
