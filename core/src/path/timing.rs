//! Every time and bound of path discovery, in one place.
//!
//! Values without a remark are the field's (protocol reference 3.4).

use std::time::Duration;

/// How often the path in use is pinged while the session is active.
pub const HEARTBEAT: Duration = Duration::from_secs(3);
/// How long after the last outgoing data a session counts as active.
pub const SESSION_ACTIVE: Duration = Duration::from_secs(45);
/// How long a peer that asked for pings keeps us pinging without data of our own. Short, so that two idle
/// nodes never keep each other awake.
pub const CALLED_ACTIVE: Duration = Duration::from_secs(10);
/// How long a path is used after the last sign of life on it.
pub const TRUST: Duration = Duration::from_millis(6500);
/// After this an unanswered ping is forgotten.
pub const PING_TIMEOUT: Duration = Duration::from_secs(5);
/// Least time between two pings of one endpoint in ordinary rounds.
pub const PER_ENDPOINT: Duration = Duration::from_secs(5);
/// A slow direct path is compared with all others this often.
pub const UPGRADE: Duration = Duration::from_secs(60);
/// At or below this latency a path is not compared again.
pub const GOOD_ENOUGH: Duration = Duration::from_millis(5);
/// Own endpoints younger than this are told to peers without asking STUN again.
pub const ENDPOINTS_FRESH: Duration = Duration::from_secs(27);
/// Own endpoints are asked again after a random time in this range while any session is active.
pub const RESTUN_MILLIS: std::ops::Range<u64> = 20_000..26_000;
/// How long an endpoint learned from a ping (or from roaming) stays a candidate.
pub const LEARNED_VALID: Duration = Duration::from_secs(45);

/// Repetitions of the first ping round. The first pings through two NATs die in the other one, which opens
/// only when its own host has pinged; the stock client waits 5 s for the next round.
pub const RETRIES: [Duration; 4] = [
    Duration::from_millis(100),
    Duration::from_millis(250),
    Duration::from_millis(500),
    Duration::from_millis(1000),
];
/// Least time between two such bursts while nothing new has been learned, so that a pair that stays on the
/// relay costs no more than ordinary rounds.
pub const BURST_MIN: Duration = Duration::from_secs(15);
/// Inside a burst an endpoint is not pinged twice within this time.
pub const BURST_PER_ENDPOINT: Duration = Duration::from_millis(60);
/// A CallMeMaybe younger than this is sent again when there is a new connection to its relay: the one before may have been dead for so long.
pub const CALL_AGAIN: Duration = Duration::from_secs(5);
/// Least time between two CallMeMaybe to one peer.
pub const CALL_MIN: Duration = Duration::from_millis(200);
/// Least time between two requests to refresh the own endpoints.
pub const REFRESH_MIN: Duration = Duration::from_secs(5);

/// How often WireGuard's counters are read while a session is active (few peers, many peers: a dump of ten
/// thousand costs tens of milliseconds) and while peers with silent agents are parked on direct paths.
pub const STATS: Duration = Duration::from_secs(1);
pub const STATS_MANY: Duration = Duration::from_secs(3);
pub const STATS_PARKED: Duration = Duration::from_secs(10);
pub const MANY_PEERS: usize = 256;
/// Relayed data seen this recently makes growing receive counters no evidence for the direct path: it is
/// injected with the direct endpoint as its source.
pub const RELAYED_RECENTLY: Duration = Duration::from_secs(3);
/// While data leaves and nothing comes, a path that has left so many pings unanswered for so long is left before
/// its trust runs out, if the relay does answer.
pub const SILENT_PINGS: usize = 2;
pub const SILENT_PING: Duration = Duration::from_millis(900);
/// A peer that roamed to another endpoint: the two are asked, and after this time one is chosen.
pub const CONTEST: Duration = Duration::from_millis(600);
/// An endpoint given up is not taken back for this long because packets arrive from it: the way out may be
/// cut while the way in is not, and packets injected with the old source look the same. A pong takes it back
/// at once.
pub const LEFT_LINGERS: Duration = Duration::from_secs(10);
/// After a change of links a path must prove itself again within this time.
pub const LINK_CHANGE_GRACE: Duration = Duration::from_millis(2500);
/// Nothing came back for this long by relay or otherwise: the peer's agent may be dead, so the last direct
/// path that worked is tried, at most once per `LAST_RESORT_EVERY`.
pub const LAST_RESORT_AFTER: Duration = Duration::from_secs(2);
pub const LAST_RESORT_EVERY: Duration = Duration::from_secs(16);

/// Bounds against floods, per peer.
pub const MAX_NETMAP_ENDPOINTS: usize = 24;
pub const MAX_CALLED_ENDPOINTS: usize = 24;
pub const MAX_LEARNED_ENDPOINTS: usize = 8;
pub const MAX_OUTSTANDING: usize = 256;
pub const MAX_RECENT_TX: usize = 64;
pub const MAX_LOCAL_ENDPOINTS: usize = 48;
/// Command-line pings waiting at one time, all peers together.
pub const MAX_USER_PINGS: usize = 128;
/// Pings answered per peer: bucket size, and refill per second.
pub const ANSWER_BURST: u32 = 128;
pub const ANSWER_PER_SECOND: u32 = 32;
/// CallMeMaybe obeyed per peer: bucket size, and refill per second.
pub const CALL_BURST: u32 = 5;
pub const CALL_PER_SECOND: u32 = 1;
