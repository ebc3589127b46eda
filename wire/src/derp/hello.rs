//! The greeting: client and server tell each other about themselves, sealed between their keys.

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{Frame, PROTOCOL_VERSION};
use crate::{
    Error,
    disco::{open_box, salsa_box, seal_into},
    key::{NodePrivate, NodePublic},
};

const NONCE_LEN: usize = 24;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ClientInfo {
    pub version: i32,
    /// 64 hex digits, from servers of the same region only.
    #[serde(rename = "meshKey", skip_serializing_if = "String::is_empty")]
    pub mesh_key: String,
    #[serde(rename = "CanAckPings")]
    pub can_ack_pings: bool,
    #[serde(rename = "IsProber", skip_serializing_if = "std::ops::Not::not")]
    pub is_prober: bool,
    #[serde(rename = "AppName", skip_serializing_if = "String::is_empty")]
    pub app_name: String,
}

impl Default for ClientInfo {
    fn default() -> Self {
        Self {
            version: PROTOCOL_VERSION,
            mesh_key: String::new(),
            can_ack_pings: false,
            is_prober: false,
            app_name: String::new(),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ServerInfo {
    pub version: i32,
    /// A client has to drop what it would send beyond it. 0: no limit.
    #[serde(rename = "TokenBucketBytesPerSecond", skip_serializing_if = "is_zero")]
    pub bytes_per_second: u64,
    #[serde(rename = "TokenBucketBytesBurst", skip_serializing_if = "is_zero")]
    pub bytes_burst: u64,
}

impl Default for ServerInfo {
    fn default() -> Self {
        Self {
            version: PROTOCOL_VERSION,
            bytes_per_second: 0,
            bytes_burst: 0,
        }
    }
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// The client's answer to [`Frame::ServerKey`]. `nonce` has to be random.
pub fn client_info(
    node: &NodePrivate,
    server: &NodePublic,
    nonce: [u8; 24],
    info: &ClientInfo,
) -> Frame {
    Frame::ClientInfo {
        key: node.public(),
        sealed: seal(node, server, nonce, info).into(),
    }
}

/// Opens a [`Frame::ClientInfo`]; that it opens proves the client's key.
pub fn open_client_info(
    server: &NodePrivate,
    client: &NodePublic,
    sealed: &[u8],
) -> Result<ClientInfo, Error> {
    open(server, client, "DERP client's greeting", sealed)
}

/// The server's answer to [`Frame::ClientInfo`]. `nonce` has to be random.
pub fn server_info(
    server: &NodePrivate,
    client: &NodePublic,
    nonce: [u8; 24],
    info: &ServerInfo,
) -> Frame {
    Frame::ServerInfo {
        sealed: seal(server, client, nonce, info).into(),
    }
}

/// Opens a [`Frame::ServerInfo`]; that it opens proves the server's key.
pub fn open_server_info(
    node: &NodePrivate,
    server: &NodePublic,
    sealed: &[u8],
) -> Result<ServerInfo, Error> {
    open(node, server, "DERP server's greeting", sealed)
}

fn seal(own: &NodePrivate, peer: &NodePublic, nonce: [u8; 24], info: &impl Serialize) -> Vec<u8> {
    let json = serde_json::to_vec(info).expect("numbers and strings serialise");
    let mut out = nonce.to_vec();
    seal_into(
        &salsa_box(own.to_bytes(), *peer.as_bytes()),
        &nonce,
        &json,
        &mut out,
    );
    out
}

fn open<T: DeserializeOwned>(
    own: &NodePrivate,
    peer: &NodePublic,
    what: &'static str,
    sealed: &[u8],
) -> Result<T, Error> {
    let Some((nonce, sealed)) = sealed.split_first_chunk::<NONCE_LEN>() else {
        return Err(Error::Short {
            what,
            need: NONCE_LEN,
            got: sealed.len(),
        });
    };
    let json = open_box(
        &salsa_box(own.to_bytes(), *peer.as_bytes()),
        what,
        nonce,
        sealed,
    )?;
    serde_json::from_slice(&json).map_err(|source| Error::Json { what, source })
}
