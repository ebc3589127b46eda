use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::{UserId, go};

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct User {
    #[serde(rename = "ID")]
    pub id: UserId,
    #[serde(rename = "DisplayName", deserialize_with = "go::null")]
    pub display_name: String,
    #[serde(
        rename = "ProfilePicURL",
        deserialize_with = "go::null",
        skip_serializing_if = "String::is_empty"
    )]
    pub profile_pic_url: String,
    #[serde(rename = "Created", with = "go::timestamp")]
    pub created: Option<OffsetDateTime>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Login {
    /// Number of the login, which need not be the user's.
    #[serde(rename = "ID")]
    pub id: i64,
    #[serde(rename = "Provider", deserialize_with = "go::null")]
    pub provider: String,
    #[serde(rename = "LoginName", deserialize_with = "go::null")]
    pub login_name: String,
    #[serde(rename = "DisplayName", deserialize_with = "go::null")]
    pub display_name: String,
    #[serde(
        rename = "ProfilePicURL",
        deserialize_with = "go::null",
        skip_serializing_if = "String::is_empty"
    )]
    pub profile_pic_url: String,
}

/// Who a node belongs to, for people to read.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct UserProfile {
    #[serde(rename = "ID")]
    pub id: UserId,
    #[serde(rename = "LoginName", deserialize_with = "go::null")]
    pub login_name: String,
    #[serde(rename = "DisplayName", deserialize_with = "go::null")]
    pub display_name: String,
    #[serde(
        rename = "ProfilePicURL",
        deserialize_with = "go::null",
        skip_serializing_if = "String::is_empty"
    )]
    pub profile_pic_url: String,
}
