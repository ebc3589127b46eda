use std::{panic, thread};

use super::*;
use crate::check::alone;

/// On a thread that leaves nothing behind, while no other test measures what the process takes.
fn by_itself(test: fn()) {
    let _alone = alone();
    if let Err(panicked) = thread::spawn(test).join() {
        panic::resume_unwind(panicked);
    }
}

#[test]
fn every_column_takes_what_is_put_there() {
    by_itself(|| {
        let database = damaged(b"").join(DATABASE);
        let database = Connection::open(database).expect("it is a database");
        for place in places() {
            let name = place.name();
            let Place::Column {
                table,
                column,
                kind,
            } = place
            else {
                continue;
            };
            let changed = put(&database, (table, column, kind), b"7");
            assert_eq!(changed, Ok(1), "{name}");
            let query =
                format!("SELECT CAST({column} AS TEXT) FROM {table} ORDER BY id DESC LIMIT 1");
            let there: String = database
                .query_row(&query, [], |row| row.get(0))
                .expect("there is a row");
            assert_eq!(there, "7", "{name}");
        }
    });
}

#[test]
fn what_seeds_damage_is_found() {
    by_itself(|| {
        assert_eq!(start(b""), None, "nothing is damaged");
        let seeds = coordinator_state_seeds();
        for (name, text, why) in [
            ("users.role", "\"king\"", "row 1 of users, role"),
            ("auth_keys.hash", "short", "row 1 of auth_keys, hash"),
            ("nodes.node_key", "nodekey:zz", "row 2 of nodes, node_key"),
            (
                "policies.text",
                "{\"acls\": 5}",
                "the stored policy is refused",
            ),
            ("control-key", "privkey:zz", "a key of the server"),
        ] {
            let input = at(name, text);
            assert!(seeds.contains(&input), "{name} has no such seed");
            let refused = start(&input);
            let refused = refused.unwrap_or_else(|| panic!("{name}: it starts"));
            assert!(refused.contains(why), "{name}: {refused}");
        }
    });
}

/// Why the server doesn't.
fn start(input: &[u8]) -> Option<String> {
    match Hub::open(&damaged(input), Settings::default(), None) {
        Ok(hub) => {
            hub.close();
            None
        }
        Err(error) => Some(error.to_string()),
    }
}
