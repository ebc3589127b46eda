-- The tables as the first schema made them.
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
INSERT INTO users (name, display_name, created) VALUES ('alice', '', 1764400000000000);
PRAGMA user_version = 1;
