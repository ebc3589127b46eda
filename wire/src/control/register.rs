use std::fmt;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::{Hostinfo, Login, User, go};
use crate::key::{MachinePublic, NodePublic};

/// Answer of `GET /key?v=<version>`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct OverTlsPublicKey {
    #[serde(rename = "legacyPublicKey", with = "go::key")]
    pub legacy_public_key: Option<MachinePublic>,
    #[serde(rename = "publicKey", with = "go::key")]
    pub public_key: Option<MachinePublic>,
}

/// `POST /machine/register`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RegisterRequest {
    #[serde(rename = "Version")]
    pub version: u16,
    #[serde(rename = "NodeKey", with = "go::key")]
    pub node_key: Option<NodePublic>,
    /// The key before this one, when rotating.
    #[serde(rename = "OldNodeKey", with = "go::key")]
    pub old_node_key: Option<NodePublic>,
    /// Tailnet-lock public key, as text.
    #[serde(
        rename = "NLKey",
        deserialize_with = "go::null",
        skip_serializing_if = "String::is_empty"
    )]
    pub nl_key: String,
    #[serde(rename = "Auth", skip_serializing_if = "Option::is_none")]
    pub auth: Option<RegisterAuth>,
    /// None normally; a past time logs out.
    #[serde(rename = "Expiry", with = "go::timestamp")]
    pub expiry: Option<OffsetDateTime>,
    /// The AuthURL of an earlier response: wait until the user is done with it.
    #[serde(rename = "Followup", deserialize_with = "go::null")]
    pub followup: String,
    #[serde(rename = "Hostinfo", skip_serializing_if = "Option::is_none")]
    pub hostinfo: Option<Hostinfo>,
    /// The node is deleted once it goes inactive.
    #[serde(
        rename = "Ephemeral",
        deserialize_with = "go::null",
        skip_serializing_if = "go::is_default"
    )]
    pub ephemeral: bool,
    /// Base64, tailnet lock.
    #[serde(rename = "NodeKeySignature", skip_serializing_if = "Option::is_none")]
    pub node_key_signature: Option<String>,
    #[serde(
        rename = "Tailnet",
        deserialize_with = "go::null",
        skip_serializing_if = "String::is_empty"
    )]
    pub tailnet: String,
}

#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RegisterAuth {
    #[serde(
        rename = "AuthKey",
        deserialize_with = "go::null",
        skip_serializing_if = "String::is_empty"
    )]
    pub auth_key: String,
}

impl fmt::Debug for RegisterAuth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RegisterAuth(redacted)")
    }
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RegisterResponse {
    #[serde(rename = "User", deserialize_with = "go::null")]
    pub user: User,
    #[serde(rename = "Login", deserialize_with = "go::null")]
    pub login: Login,
    #[serde(rename = "NodeKeyExpired", deserialize_with = "go::null")]
    pub node_key_expired: bool,
    #[serde(rename = "MachineAuthorized", deserialize_with = "go::null")]
    pub machine_authorized: bool,
    /// Where a person has to go to approve the node; empty once the key is accepted.
    #[serde(rename = "AuthURL", deserialize_with = "go::null")]
    pub auth_url: String,
    /// Base64, tailnet lock.
    #[serde(rename = "NodeKeySignature")]
    pub node_key_signature: Option<String>,
    #[serde(rename = "Error", deserialize_with = "go::null")]
    pub error: String,
}
