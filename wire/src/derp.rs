//! DERP: packets between nodes by way of a relay, addressed by node key (protocol.md 2).

mod codec;
mod hello;

use std::{net::SocketAddr, time::Duration};

use bytes::Bytes;
pub use codec::{Codec, put_recv_packet, put_send_packet};
pub use hello::{
    ClientInfo, ServerInfo, client_info, open_client_info, open_server_info, server_info,
};

use crate::key::NodePublic;

/// What both sides speak.
pub const PROTOCOL_VERSION: i32 = 2;
/// Value of the header `Upgrade`.
pub const UPGRADE: &str = "DERP";
/// Where a server takes upgrades.
pub const PATH: &str = "/derp";

/// The longest packet that a relay carries.
pub const MAX_PACKET: usize = 64 << 10;
/// The longest frame that a client takes.
pub const CLIENT_FRAME_LIMIT: usize = 1 << 20;
/// The longest frame that a server takes; before the client has proven its key too.
pub const SERVER_FRAME_LIMIT: usize = 256 << 10;

/// One frame, of either direction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    ServerKey(NodePublic),
    ClientInfo {
        key: NodePublic,
        /// Nonce and box; for [`open_client_info`].
        sealed: Bytes,
    },
    ServerInfo {
        /// Nonce and box; for [`open_server_info`].
        sealed: Bytes,
    },
    SendPacket {
        to: NodePublic,
        packet: Bytes,
    },
    RecvPacket {
        from: NodePublic,
        packet: Bytes,
    },
    KeepAlive,
    NotePreferred(bool),
    PeerGone {
        key: NodePublic,
        reason: GoneReason,
    },
    PeerPresent {
        key: NodePublic,
        address: Option<SocketAddr>,
        flags: u8,
    },
    ForwardPacket {
        from: NodePublic,
        to: NodePublic,
        packet: Bytes,
    },
    WatchConns,
    ClosePeer(NodePublic),
    Ping([u8; 8]),
    Pong([u8; 8]),
    /// Empty: healthy again.
    Health(String),
    Restarting {
        reconnect_in: Duration,
        try_for: Duration,
    },
    /// To be skipped.
    Unknown(u8),
}

/// Why a relay does not reach a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GoneReason {
    Disconnected,
    /// The server does not know it.
    NotHere,
    /// The link between servers broke.
    MeshConnectionBroke,
    Other(u8),
}

impl From<u8> for GoneReason {
    fn from(byte: u8) -> Self {
        match byte {
            0 => Self::Disconnected,
            1 => Self::NotHere,
            0xf0 => Self::MeshConnectionBroke,
            other => Self::Other(other),
        }
    }
}

impl From<GoneReason> for u8 {
    fn from(reason: GoneReason) -> Self {
        match reason {
            GoneReason::Disconnected => 0,
            GoneReason::NotHere => 1,
            GoneReason::MeshConnectionBroke => 0xf0,
            GoneReason::Other(byte) => byte,
        }
    }
}
