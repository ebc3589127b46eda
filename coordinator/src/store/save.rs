//! Writing what changed, in one transaction.

use std::{fmt, sync::Arc};

use lowroad_wire::control::{NodeId, UserId};
use rusqlite::{Connection, Transaction, params};
use serde::Serialize;
use time::OffsetDateTime;
use zeroize::Zeroizing;

use super::{Setting, Store};
use crate::{
    Error,
    model::{AuthKey, KeyId, Node, PolicyVersion, User, VersionNumber},
};

/// Rows to write; `None` deletes.
#[derive(Default)]
pub struct Rows {
    pub users: Vec<(UserId, Option<Arc<User>>)>,
    pub nodes: Vec<(NodeId, Option<Arc<Node>>)>,
    pub auth_keys: Vec<(KeyId, Option<Arc<AuthKey>>)>,
    pub policies: Vec<(VersionNumber, Option<Arc<PolicyVersion>>)>,
    /// Some are private keys.
    pub settings: Vec<(Setting, Option<Zeroizing<String>>)>,
}

impl fmt::Debug for Rows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rows")
            .field("users", &self.users)
            .field("nodes", &self.nodes)
            .field("auth_keys", &self.auth_keys)
            .field("policies", &self.policies)
            .finish_non_exhaustive()
    }
}

impl Rows {
    fn is_empty(&self) -> bool {
        self.users.is_empty()
            && self.nodes.is_empty()
            && self.auth_keys.is_empty()
            && self.policies.is_empty()
            && self.settings.is_empty()
    }
}

impl Store {
    /// All of `rows` or, on an error, none.
    pub fn save(&mut self, rows: &Rows) -> Result<(), Error> {
        if rows.is_empty() {
            return Ok(());
        }
        let error = self.error();
        write(&mut self.connection, rows).map_err(error)
    }
}

fn write(connection: &mut Connection, rows: &Rows) -> rusqlite::Result<()> {
    let transaction = connection.transaction()?;
    for (id, user) in &rows.users {
        match user {
            Some(user) => put_user(&transaction, user)?,
            None => delete(&transaction, "users", id.0)?,
        }
    }
    for (id, key) in &rows.auth_keys {
        match key {
            Some(key) => put_auth_key(&transaction, key)?,
            None => delete(&transaction, "auth_keys", id.0)?,
        }
    }
    for (id, node) in &rows.nodes {
        match node {
            Some(node) => put_node(&transaction, node)?,
            None => delete(&transaction, "nodes", id.0)?,
        }
    }
    for (number, version) in &rows.policies {
        match version {
            Some(version) => put_policy(&transaction, version)?,
            None => delete(&transaction, "policies", number.0)?,
        }
    }
    for (setting, value) in &rows.settings {
        match value {
            Some(value) => transaction
                .prepare_cached("INSERT OR REPLACE INTO settings (name, value) VALUES (?1, ?2)")?
                .execute(params![setting.name(), value.as_str()])?,
            None => transaction
                .prepare_cached("DELETE FROM settings WHERE name = ?1")?
                .execute([setting.name()])?,
        };
    }
    transaction.commit()
}

fn delete(transaction: &Transaction<'_>, table: &str, id: i64) -> rusqlite::Result<()> {
    transaction
        .prepare_cached(&format!("DELETE FROM {table} WHERE id = ?1"))?
        .execute([id])
        .map(|_| ())
}

fn micros(time: OffsetDateTime) -> i64 {
    i64::try_from(time.unix_timestamp_nanos() / 1000).unwrap_or(i64::MAX)
}

fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("what is stored has string keys and finite numbers")
}

fn put_user(transaction: &Transaction<'_>, user: &User) -> rusqlite::Result<()> {
    transaction
        .prepare_cached("INSERT OR REPLACE INTO users (id, name, display_name, created, role) VALUES (?1, ?2, ?3, ?4, ?5)")?
        .execute(params![user.id.0, user.name, user.display_name, micros(user.created), json(&user.role)])
        .map(|_| ())
}

fn put_auth_key(transaction: &Transaction<'_>, key: &AuthKey) -> rusqlite::Result<()> {
    transaction
        .prepare_cached(
            "INSERT OR REPLACE INTO auth_keys (id, prefix, hash, user, reusable, ephemeral, used, tags, created, expiry)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
        )?
        .execute(params![
            key.id.0,
            key.prefix,
            key.hash,
            key.user.0,
            key.reusable,
            key.ephemeral,
            key.used,
            json(&key.tags),
            micros(key.created),
            micros(key.expiry),
        ])
        .map(|_| ())
}

fn put_policy(transaction: &Transaction<'_>, version: &PolicyVersion) -> rusqlite::Result<()> {
    transaction
        .prepare_cached("INSERT OR REPLACE INTO policies (id, text, author, account, note, created) VALUES (?1, ?2, ?3, ?4, ?5, ?6)")?
        .execute(params![
            version.number.0,
            version.text,
            version.author,
            version.account,
            version.note,
            micros(version.created),
        ])
        .map(|_| ())
}

fn put_node(transaction: &Transaction<'_>, node: &Node) -> rusqlite::Result<()> {
    transaction
        .prepare_cached(
            "INSERT OR REPLACE INTO nodes (id, machine_key, node_key, disco_key, user, tags, name, name_chosen, hostinfo, endpoints,
                 v4, v6, approved_routes, expiry, ephemeral, created, last_seen, online, cap, auth_key)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20)",
        )?
        .execute(params![
            node.id.0,
            node.machine.to_string(),
            node.key.to_string(),
            node.disco.to_string(),
            node.owner.user().map(|user| user.0),
            json(&node.owner.tags()),
            node.name,
            node.name_chosen,
            json(&node.hostinfo),
            json(&node.endpoints),
            node.v4.to_string(),
            node.v6.to_string(),
            json(&node.approved_routes),
            node.expiry.map(micros),
            node.ephemeral,
            micros(node.created),
            node.last_seen.map(micros),
            node.online,
            node.cap,
            node.auth_key.map(|key| key.0),
        ])
        .map(|_| ())
}
