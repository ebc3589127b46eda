//! Tables and their migrations. A migration that has been released is never edited; append the next.

use std::path::Path;

use rusqlite::Connection;
use rusqlite_migration::{M, Migrations};

use super::BUSY;
use crate::Error;

// AUTOINCREMENT: an ID is never given twice, not even after its node is deleted.
// Times are microseconds since 1970; keys their text forms; lists and host info JSON.
const FIRST: &str = "
    CREATE TABLE users (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        name TEXT NOT NULL UNIQUE,
        display_name TEXT NOT NULL,
        created INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE auth_keys (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        prefix TEXT NOT NULL UNIQUE,
        hash BLOB NOT NULL,
        user INTEGER NOT NULL,
        reusable INTEGER NOT NULL,
        ephemeral INTEGER NOT NULL,
        used INTEGER NOT NULL,
        tags TEXT NOT NULL,
        created INTEGER NOT NULL,
        expiry INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE nodes (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        machine_key TEXT NOT NULL,
        node_key TEXT NOT NULL,
        disco_key TEXT NOT NULL,
        user INTEGER,
        tags TEXT NOT NULL,
        name TEXT NOT NULL,
        name_chosen INTEGER NOT NULL,
        hostinfo TEXT NOT NULL,
        endpoints TEXT NOT NULL,
        v4 TEXT NOT NULL,
        v6 TEXT NOT NULL,
        approved_routes TEXT NOT NULL,
        expiry INTEGER,
        ephemeral INTEGER NOT NULL,
        created INTEGER NOT NULL,
        last_seen INTEGER,
        online INTEGER NOT NULL,
        cap INTEGER NOT NULL,
        auth_key INTEGER
    ) STRICT;
    CREATE TABLE settings (
        name TEXT PRIMARY KEY,
        value TEXT NOT NULL
    ) STRICT;
";

fn migrations() -> Migrations<'static> {
    Migrations::new(vec![M::up(FIRST)])
}

pub(super) fn prepare(connection: &mut Connection, path: &Path) -> Result<(), Error> {
    let pragmas = |connection: &Connection| -> rusqlite::Result<()> {
        connection.busy_timeout(BUSY)?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        // A joined node must still be there after a power cut: its auth key may have been its only one.
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.pragma_update(None, "secure_delete", "ON")
    };
    pragmas(connection).map_err(|source| Error::Database {
        path: path.to_owned(),
        source,
    })?;
    migrations()
        .to_latest(connection)
        .map_err(|source| Error::Schema {
            path: path.to_owned(),
            source,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn migrations_are_valid() {
        migrations().validate().unwrap();
    }
}
