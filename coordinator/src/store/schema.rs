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

// The version with the highest number is in force.
const POLICY_VERSIONS: &str = "
    CREATE TABLE policies (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        text TEXT NOT NULL,
        author TEXT NOT NULL,
        account TEXT NOT NULL,
        note TEXT NOT NULL,
        created INTEGER NOT NULL
    ) STRICT;
    INSERT INTO policies (text, author, account, note, created)
        SELECT value, '', '', 'found when versions began to be kept', unixepoch() * 1000000
        FROM settings WHERE name = 'policy';
    DELETE FROM settings WHERE name = 'policy';
";

const ROLES: &str = "ALTER TABLE users ADD COLUMN role TEXT NOT NULL DEFAULT '\"member\"';";

fn migrations() -> Migrations<'static> {
    Migrations::new(vec![M::up(FIRST), M::up(POLICY_VERSIONS), M::up(ROLES)])
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

    /// A database as the first schema left it.
    fn first() -> Connection {
        let mut connection = Connection::open_in_memory().unwrap();
        Migrations::new(vec![M::up(FIRST)])
            .to_latest(&mut connection)
            .unwrap();
        connection
            .execute_batch(
                "INSERT INTO users (name, display_name, created) VALUES ('alice', '', 1);
                 INSERT INTO settings VALUES ('control-key', 'k'), ('policy-seed', 'abc');",
            )
            .unwrap();
        connection
    }

    fn policies(connection: &Connection) -> Vec<(i64, String, String, i64)> {
        let mut statement = connection
            .prepare("SELECT id, text, author, created FROM policies")
            .unwrap();
        let rows = statement.query_map([], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
        });
        rows.unwrap().collect::<Result<_, _>>().unwrap()
    }

    #[test]
    fn the_policy_of_the_first_schema_becomes_version_1_and_nothing_else_changes() {
        let mut connection = first();
        connection
            .execute(
                "INSERT INTO settings VALUES ('policy', '{\"acls\": []} // ü')",
                [],
            )
            .unwrap();
        migrations().to_latest(&mut connection).unwrap();
        let versions = policies(&connection);
        let [(1, text, author, created)] = versions.as_slice() else {
            panic!("{versions:?}");
        };
        assert_eq!(
            (text.as_str(), author.as_str()),
            ("{\"acls\": []} // ü", "")
        );
        // Microseconds: after 2020, before 2200.
        assert!((1_577_836_800_000_000..7_258_118_400_000_000).contains(created));
        let settings: String = connection
            .query_row(
                "SELECT group_concat(name) FROM (SELECT name FROM settings ORDER BY name)",
                [],
                |row| row.get(0),
            )
            .unwrap();
        assert_eq!(settings, "control-key,policy-seed");
        let users: i64 = connection
            .query_row("SELECT count(*) FROM users", [], |row| row.get(0))
            .unwrap();
        assert_eq!(users, 1);
    }

    #[test]
    fn a_database_of_the_first_schema_without_a_policy_still_has_none() {
        let mut connection = first();
        migrations().to_latest(&mut connection).unwrap();
        assert!(policies(&connection).is_empty());
    }
}
