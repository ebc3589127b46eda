//! Reading everything at start.

use std::{fmt::Display, path::Path, str::FromStr};

use lowroad_wire::control::{NodeId, UserId};
use rusqlite::{OptionalExtension as _, Row};
use serde::de::DeserializeOwned;
use time::OffsetDateTime;

use super::{Setting, Store};
use crate::{
    Error,
    model::{AuthKey, KeyId, Node, Owner, PolicyVersion, User, VersionNumber},
};

/// All rows, and the highest ID ever given in each table.
#[derive(Debug)]
pub struct Loaded {
    pub users: Vec<User>,
    pub nodes: Vec<Node>,
    pub auth_keys: Vec<AuthKey>,
    pub policies: Vec<PolicyVersion>,
    pub last_user: i64,
    pub last_node: i64,
    pub last_auth_key: i64,
    pub last_policy: i64,
}

impl Store {
    pub fn load(&self) -> Result<Loaded, Error> {
        Ok(Loaded {
            users: self.rows("users", user)?,
            nodes: self.rows("nodes", node)?,
            auth_keys: self.rows("auth_keys", auth_key)?,
            policies: self.rows("policies", policy)?,
            last_user: self.last_id("users")?,
            last_node: self.last_id("nodes")?,
            last_auth_key: self.last_id("auth_keys")?,
            last_policy: self.last_id("policies")?,
        })
    }

    pub fn setting(&self, setting: Setting) -> Result<Option<String>, Error> {
        self.connection
            .query_row(
                "SELECT value FROM settings WHERE name = ?1",
                [setting.name()],
                |row| row.get(0),
            )
            .optional()
            .map_err(self.error())
    }

    fn rows<T>(
        &self,
        table: &'static str,
        read: fn(&Reader<'_>) -> Result<T, Error>,
    ) -> Result<Vec<T>, Error> {
        let mut statement = self
            .connection
            .prepare(&format!("SELECT * FROM {table} ORDER BY id"))
            .map_err(self.error())?;
        let mut rows = statement.query([]).map_err(self.error())?;
        let mut out = Vec::new();
        while let Some(row) = rows.next().map_err(self.error())? {
            out.push(read(&Reader {
                row,
                table,
                path: &self.path,
            })?);
        }
        Ok(out)
    }

    fn last_id(&self, table: &str) -> Result<i64, Error> {
        self.connection
            .query_row(
                "SELECT seq FROM sqlite_sequence WHERE name = ?1",
                [table],
                |row| row.get(0),
            )
            .optional()
            .map(|id| id.unwrap_or(0))
            .map_err(self.error())
    }
}

/// One row, and what to say when it makes no sense.
struct Reader<'a> {
    row: &'a Row<'a>,
    table: &'static str,
    path: &'a Path,
}

impl Reader<'_> {
    fn get<T: rusqlite::types::FromSql>(&self, column: &str) -> Result<T, Error> {
        self.row
            .get(column)
            .map_err(|error| self.corrupt(column, error))
    }

    fn text<T: FromStr<Err: Display>>(&self, column: &str) -> Result<T, Error> {
        self.get::<String>(column)?
            .parse()
            .map_err(|error| self.corrupt(column, error))
    }

    fn json<T: DeserializeOwned>(&self, column: &str) -> Result<T, Error> {
        serde_json::from_str(&self.get::<String>(column)?)
            .map_err(|error| self.corrupt(column, error))
    }

    fn time(&self, column: &str) -> Result<OffsetDateTime, Error> {
        let micros: i64 = self.get(column)?;
        OffsetDateTime::from_unix_timestamp_nanos(i128::from(micros) * 1000)
            .map_err(|error| self.corrupt(column, error))
    }

    fn some_time(&self, column: &str) -> Result<Option<OffsetDateTime>, Error> {
        self.get::<Option<i64>>(column)?
            .map(|_| self.time(column))
            .transpose()
    }

    fn corrupt(&self, column: &str, error: impl Display) -> Error {
        let id: i64 = self.row.get("id").unwrap_or_default();
        let what = format!("row {id} of {}, {column}: {error}", self.table);
        Error::Corrupt {
            path: self.path.to_owned(),
            what,
        }
    }
}

fn user(row: &Reader<'_>) -> Result<User, Error> {
    Ok(User {
        id: UserId(row.get("id")?),
        name: row.get("name")?,
        display_name: row.get("display_name")?,
        created: row.time("created")?,
        role: row.json("role")?,
    })
}

fn auth_key(row: &Reader<'_>) -> Result<AuthKey, Error> {
    Ok(AuthKey {
        id: KeyId(row.get("id")?),
        prefix: row.get("prefix")?,
        hash: row.get("hash")?,
        user: UserId(row.get("user")?),
        reusable: row.get("reusable")?,
        ephemeral: row.get("ephemeral")?,
        used: row.get("used")?,
        tags: row.json("tags")?,
        created: row.time("created")?,
        expiry: row.time("expiry")?,
    })
}

fn policy(row: &Reader<'_>) -> Result<PolicyVersion, Error> {
    Ok(PolicyVersion {
        number: VersionNumber(row.get("id")?),
        text: row.get("text")?,
        author: row.get("author")?,
        account: row.get("account")?,
        note: row.get("note")?,
        created: row.time("created")?,
    })
}

fn node(row: &Reader<'_>) -> Result<Node, Error> {
    let owner = match row.get::<Option<i64>>("user")? {
        Some(user) => Owner::User(UserId(user)),
        None => Owner::Tags(row.json("tags")?),
    };
    Ok(Node {
        id: NodeId(row.get("id")?),
        machine: row.text("machine_key")?,
        key: row.text("node_key")?,
        disco: row.text("disco_key")?,
        owner,
        name: row.get("name")?,
        name_chosen: row.get("name_chosen")?,
        hostinfo: row.json("hostinfo")?,
        endpoints: row.json("endpoints")?,
        v4: row.text("v4")?,
        v6: row.text("v6")?,
        approved_routes: row.json("approved_routes")?,
        expiry: row.some_time("expiry")?,
        ephemeral: row.get("ephemeral")?,
        created: row.time("created")?,
        last_seen: row.some_time("last_seen")?,
        online: row.get("online")?,
        cap: row.get("cap")?,
        auth_key: row.get::<Option<i64>>("auth_key")?.map(KeyId),
    })
}
