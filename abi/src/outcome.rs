//! Why a packet passed or was dropped, and where that is counted.

/// Which way a packet goes.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// From a peer to us.
    In = 0,
    /// From us to a peer.
    Out = 1,
}

/// Why a packet passed.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Pass {
    /// A rule admits it.
    Rule = 0,
    /// TCP other than a first SYN: judged when the connection began.
    TcpEstablished = 1,
    /// Answer to a UDP or SCTP packet that we sent.
    Flow = 2,
    /// ICMP answer or error.
    IcmpReply = 3,
    /// Later fragment.
    Fragment = 4,
    /// TCP SYN to our peer API, which judges for itself.
    PeerApi = 5,
    /// TSMP that the agent has no business with.
    Tsmp = 6,
    /// Outward: everything well-formed.
    Outbound = 7,
    /// Not let up the stack but not refused: TSMP for the agent.
    Consumed = 8,
}

/// Why a packet was dropped.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DropReason {
    /// No rule set was installed yet.
    NoPolicy = 16,
    /// No rule admits it.
    Acl = 17,
    /// The destination is neither ours nor one we route for.
    NotLocal = 18,
    /// Shields are up.
    ShieldsUp = 19,
    /// The peer is jailed.
    Jailed = 20,
    /// Multicast destination.
    Multicast = 21,
    /// Link-local destination.
    LinkLocalUnicast = 22,
    /// Shorter than its headers say or need.
    TooShort = 23,
    /// A fragment that could overwrite a header, or of what must not be fragmented.
    Fragment = 24,
    /// Neither IPv4 nor IPv6, or a protocol number that is none.
    UnknownProtocol = 25,
    /// Our own disco inside the tunnel: a loop.
    OwnDisco = 26,
    /// TSMP from a program on this host, which only the agent may send.
    TsmpFromHost = 27,
    /// The programs met a state that cannot be.
    Error = 28,
}

/// Outcomes per direction.
const OUTCOMES: u32 = 32;
/// Entries of the map of counters.
pub const COUNTER_SLOTS: usize = 2 * OUTCOMES as usize;

/// Index of the counter of an outcome (`Pass as u8` or `DropReason as u8`).
#[inline(always)]
pub const fn counter_slot(direction: Direction, outcome: u8) -> u32 {
    direction as u32 * OUTCOMES + outcome as u32 % OUTCOMES
}

impl Pass {
    pub const ALL: [Self; 9] = [
        Self::Rule,
        Self::TcpEstablished,
        Self::Flow,
        Self::IcmpReply,
        Self::Fragment,
        Self::PeerApi,
        Self::Tsmp,
        Self::Outbound,
        Self::Consumed,
    ];

    /// Name for humans and JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Rule => "rule",
            Self::TcpEstablished => "tcp_established",
            Self::Flow => "flow",
            Self::IcmpReply => "icmp_reply",
            Self::Fragment => "fragment",
            Self::PeerApi => "peer_api",
            Self::Tsmp => "tsmp",
            Self::Outbound => "outbound",
            Self::Consumed => "consumed",
        }
    }
}

impl DropReason {
    pub const ALL: [Self; 13] = [
        Self::NoPolicy,
        Self::Acl,
        Self::NotLocal,
        Self::ShieldsUp,
        Self::Jailed,
        Self::Multicast,
        Self::LinkLocalUnicast,
        Self::TooShort,
        Self::Fragment,
        Self::UnknownProtocol,
        Self::OwnDisco,
        Self::TsmpFromHost,
        Self::Error,
    ];

    /// The reason with this number.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|r| *r as u8 == number)
    }

    /// Name for humans and JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NoPolicy => "no_policy",
            Self::Acl => "acl",
            Self::NotLocal => "not_local",
            Self::ShieldsUp => "shields_up",
            Self::Jailed => "jailed",
            Self::Multicast => "multicast",
            Self::LinkLocalUnicast => "link_local_unicast",
            Self::TooShort => "too_short",
            Self::Fragment => "fragment",
            Self::UnknownProtocol => "unknown_protocol",
            Self::OwnDisco => "own_disco",
            Self::TsmpFromHost => "tsmp_from_host",
            Self::Error => "error",
        }
    }

    /// The stock client's metric label that covers this reason (`protocol.md` 5.3).
    pub const fn metric(self) -> &'static str {
        match self {
            Self::NoPolicy
            | Self::Acl
            | Self::NotLocal
            | Self::ShieldsUp
            | Self::Jailed
            | Self::OwnDisco
            | Self::TsmpFromHost => "acl",
            other => other.name(),
        }
    }

    /// One line for a person who wonders where the packet went.
    pub const fn explain(self) -> &'static str {
        match self {
            Self::NoPolicy => "no policy has arrived yet",
            Self::Acl => "no rule of the policy admits it",
            Self::NotLocal => "the destination is neither this node nor a route it advertises",
            Self::ShieldsUp => "shields are up: nothing new comes in",
            Self::Jailed => "the sender is isolated: it may only answer",
            Self::Multicast => "multicast does not cross the tailnet",
            Self::LinkLocalUnicast => "link-local addresses mean nothing across the tailnet",
            Self::TooShort => "the packet is shorter than its headers need",
            Self::Fragment => {
                "a fragment that could overwrite a header, or of a packet that must not be fragmented"
            }
            Self::UnknownProtocol => "not an IP packet with a protocol",
            Self::OwnDisco => "this node's own path discovery inside the tunnel: a routing loop",
            Self::TsmpFromHost => "only the agent itself may send tunnel control messages",
            Self::Error => "the filter met a state that cannot be; please report it",
        }
    }
}
