//! The coordinator's state directory, as a bad disk, another version or a person may have left it.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use lowroad_coordinator::{
    Error,
    admin::api::{AuthKeyInfo, NodeInfo, UserInfo, VersionInfo},
    delta::Sent,
    hub::{Hub, now},
    model::AuthKeyText,
    policy::Policy,
    state::{NewPolicy, Registered, Settings, State, Stranger},
    store::{Setting, Store},
    tls::Front,
    view::Common,
};
use lowroad_wire::{
    control::{Hostinfo, RegisterAuth, RegisterRequest, UserId},
    key::{MachinePrivate, MachinePublic, NodePrivate},
};
use rusqlite::Connection;
use serde_json::Value;
use time::OffsetDateTime;

use super::coordinator::{folder, key_of};

const VERSION: u16 = 130;
const DATABASE: &str = "coordinator.sqlite";
const CERTIFICATE: &str = "self-signed.json";

/// What the database holds: a table, what SQLite takes its columns for, their names.
const COLUMNS: [(&str, &str, &str); 9] = [
    ("users", "TEXT", "name display_name role"),
    ("users", "INTEGER", "id created"),
    ("auth_keys", "TEXT", "prefix tags"),
    ("auth_keys", "BLOB", "hash"),
    (
        "auth_keys",
        "INTEGER",
        "id user reusable ephemeral used created expiry",
    ),
    (
        "nodes",
        "TEXT",
        "machine_key node_key disco_key tags name hostinfo endpoints v4 v6 approved_routes",
    ),
    (
        "nodes",
        "INTEGER",
        "id user name_chosen expiry ephemeral created last_seen online cap auth_key",
    ),
    ("policies", "TEXT", "text author account note"),
    ("policies", "INTEGER", "id created"),
];
const SETTINGS: &str = "control-key relay-key policy-seed last-address pool-turns";
const MEMBERS: &str = "names expires certificate_pem key_pem";

/// What a piece of an input takes the place of.
#[derive(Clone, Copy)]
enum Place {
    /// In a table's last row.
    Column {
        table: &'static str,
        column: &'static str,
        kind: &'static str,
    },
    Setting(&'static str),
    /// The whole file of the certificate.
    Certificate,
    /// Of that file's JSON.
    Member(&'static str),
}

impl Place {
    fn name(self) -> String {
        match self {
            Self::Column { table, column, .. } => format!("{table}.{column}"),
            Self::Setting(name) | Self::Member(name) => name.to_owned(),
            Self::Certificate => CERTIFICATE.to_owned(),
        }
    }
}

fn places() -> Vec<Place> {
    let columns = COLUMNS.into_iter().flat_map(|(table, kind, columns)| {
        columns.split(' ').map(move |column| Place::Column {
            table,
            column,
            kind,
        })
    });
    let settings = SETTINGS.split(' ').map(Place::Setting);
    let members = MEMBERS.split(' ').map(Place::Member);
    let all = columns.chain(settings).chain([Place::Certificate]);
    all.chain(members).collect()
}

/// A state directory that is right.
struct Scene {
    database: Vec<u8>,
    certificate: Value,
}

thread_local!(static SCENE: Scene = Scene::make());

/// Pieces with a zero byte between: the first byte of each says which column, setting or file is made the rest. The server starts or
/// says what is damaged; what it has read can be listed and told to nodes. Of the certificate nothing is told.
pub fn coordinator_state(input: &[u8]) {
    let folder = damaged(input);
    match Hub::open(&folder, Settings::default(), None) {
        Ok(hub) => {
            shown(&hub);
            hub.close();
        }
        Err(error) => refused(&error, input),
    }
    match Front::self_signed(&folder, &names()) {
        Ok(front) => assert_eq!(front.pin().expect("it is its own").len(), 75),
        Err(error) => {
            let text = error.to_string();
            assert!(
                text.contains(CERTIFICATE) && !text.contains("PRIVATE"),
                "{text}"
            );
        }
    }
}

/// The state directory with the input in it.
fn damaged(input: &[u8]) -> PathBuf {
    let folder = folder("damaged");
    fs::remove_dir_all(&folder).expect("the folder is ours");
    fs::create_dir(&folder).expect("the folder is ours");
    SCENE.with(|scene| scene.write(&folder, input));
    folder
}

/// Of the certificate.
fn names() -> Vec<String> {
    vec!["192.0.2.1".to_owned(), "relay.example".to_owned()]
}

/// What is asked first: lists for administrators, and the whole netmap of each node.
fn shown(hub: &Hub) {
    let snapshot = hub.snapshot();
    let compiled = &snapshot.compiled;
    hub.read(|state| {
        let users = state.users().values().map(|user| UserInfo::from(&**user));
        written(&users.collect::<Vec<_>>());
        let nodes = state.nodes();
        let nodes = nodes.map(|node| NodeInfo::new(node, state, compiled, now()));
        written(&nodes.collect::<Vec<_>>());
        let keys = state.auth_keys();
        let keys = keys.map(|key| AuthKeyInfo::new(key, state, now()));
        written(&keys.collect::<Vec<_>>());
        let versions = state.policy_history().iter();
        let versions = versions.map(|version| VersionInfo::new(version, state));
        written(&versions.collect::<Vec<_>>());
    });
    for id in snapshot.nodes.keys() {
        let told = Sent::first(*id, &snapshot, &Common::default(), now());
        let (_, message) = told.expect("it is there");
        // A time before the year 0 cannot be said: the poll ends with that.
        drop(serde_json::to_vec(&message));
    }
}

fn written(list: &impl serde::Serialize) {
    serde_json::to_vec(list).expect("what was read can be listed");
}

/// An error names what is damaged, and there is none without damage.
fn refused(error: &Error, input: &[u8]) {
    let text = error.to_string();
    let names_it = match error {
        Error::Corrupt { .. } | Error::Database { .. } => text.contains(DATABASE),
        Error::Setting(_) => text.contains("key of the server"),
        Error::Policy(_) => text.contains("stored policy"),
        _ => false,
    };
    assert!(names_it && !input.is_empty(), "{text}");
}

impl Scene {
    fn make() -> Self {
        let folder = folder("seeded");
        let path = folder.join(DATABASE);
        let mut store = Store::open(&folder).expect("the folder is ours");
        let (mut rows, _) = tailnet(&store).take_rows();
        let control = MachinePrivate::from_random([7; 32]).to_text();
        let relay = NodePrivate::from_random([7; 32]).to_text();
        rows.settings.push((Setting::ControlKey, Some(control)));
        rows.settings.push((Setting::RelayKey, Some(relay)));
        store.save(&rows).expect("there is room");
        drop(store);
        all_columns_are_fed(&path);
        Front::self_signed(&folder, &names()).expect("a new certificate");
        let certificate = fs::read(folder.join(CERTIFICATE)).expect("it is kept");
        Self {
            database: fs::read(&path).expect("it is written"),
            certificate: serde_json::from_slice(&certificate).expect("it is JSON"),
        }
    }

    /// Database and certificate, with the input's pieces in their places.
    fn write(&self, folder: &Path, input: &[u8]) {
        let path = folder.join(DATABASE);
        fs::write(&path, &self.database).expect("the folder is ours");
        let database = Connection::open(&path).expect("it is a database");
        let mut certificate = self.certificate.clone();
        let mut file = None;
        let places = places();
        for piece in input.split(|byte| *byte == 0).take(8) {
            let Some((place, bytes)) = piece.split_first() else {
                continue;
            };
            // It is none of the zero bytes between.
            match places[usize::from(*place - 1) % places.len()] {
                Place::Column {
                    table,
                    column,
                    kind,
                } => {
                    // What SQLite lets nobody write stays as it was.
                    let _ = put(&database, (table, column, kind), bytes);
                }
                Place::Setting(name) => set(&database, name, bytes),
                Place::Certificate => file = Some(bytes.to_vec()),
                Place::Member(name) => {
                    certificate[name] = serde_json::from_slice(bytes)
                        .unwrap_or_else(|_| String::from_utf8_lossy(bytes).into());
                }
            }
        }
        let file = file.unwrap_or_else(|| certificate.to_string().into_bytes());
        fs::write(folder.join(CERTIFICATE), file).expect("the folder is ours");
    }
}

/// How many rows it changed.
fn put(
    database: &Connection,
    (table, column, kind): (&str, &str, &str),
    bytes: &[u8],
) -> rusqlite::Result<usize> {
    let change = format!(
        "UPDATE {table} SET {column} = CAST(?1 AS {kind}) WHERE id = (SELECT max(id) FROM {table})"
    );
    database.execute(&change, [bytes])
}

fn set(database: &Connection, name: &str, bytes: &[u8]) {
    const CHANGE: &str =
        "INSERT OR REPLACE INTO settings (name, value) VALUES (?1, CAST(?2 AS TEXT))";
    let changed = database.execute(CHANGE, (name, bytes));
    changed.expect("any text can be a setting");
}

/// A column that comes later has to be named here, too.
fn all_columns_are_fed(path: &Path) {
    const THERE: &str =
        "SELECT t.name || '.' || c.name FROM sqlite_schema AS t JOIN pragma_table_info(t.name) AS c
        WHERE t.type = 'table' AND t.name NOT LIKE 'sqlite%' AND t.name <> 'settings'";
    let database = Connection::open(path).expect("it is a database");
    let mut statement = database.prepare(THERE).expect("good SQL");
    let rows = statement.query_map([], |row| row.get(0));
    let rows = rows.expect("good SQL").map(|row| row.expect("a text"));
    let there: BTreeSet<String> = rows.collect();
    let fed = places().into_iter();
    let fed = fed.filter(|place| matches!(place, Place::Column { .. }));
    assert_eq!(fed.map(Place::name).collect::<BTreeSet<_>>(), there);
}

fn tailnet(store: &Store) -> State {
    let now = OffsetDateTime::UNIX_EPOCH + Duration::from_secs(1 << 30);
    let settings = Arc::new(Settings::default());
    let state = State::load(store, settings, now, Instant::now());
    let mut state = state.expect("an empty store");
    populate(&mut state, now);
    let text = r#"{"tagOwners": {"tag:a": ["bea@"]}, "acls": [{"action": "accept", "src": ["bea@"], "dst": ["tag:a:443"]}]}"#;
    let new = NewPolicy {
        text: text.to_owned(),
        author: "bea".to_owned(),
        account: "root".to_owned(),
        note: "why".to_owned(),
    };
    let policy = Policy::parse(text).expect("a constant");
    let set = state.set_policy(new, policy, now);
    set.expect("one line each");
    state
}

/// A user with an auth key and a node, and a node with a tag.
pub fn populate(state: &mut State, now: OffsetDateTime) {
    let user = state.create_user("bea", "Bea", now);
    let user = user.expect("a good name").id;
    let text = AuthKeyText::from_random([5; 30]);
    state.create_auth_key(key_of(user), &text, now);
    join(state, 1, &text, Vec::new(), now);
    join(state, 2, &text, vec!["tag:a".to_owned()], now);
}

fn join(
    state: &mut State,
    machine: u8,
    key: &AuthKeyText,
    request_tags: Vec<String>,
    now: OffsetDateTime,
) {
    let request = RegisterRequest {
        version: VERSION,
        node_key: Some(NodePrivate::from_random([machine; 32]).public()),
        auth: Some(RegisterAuth {
            auth_key: key.reveal(),
        }),
        hostinfo: Some(Hostinfo {
            hostname: format!("n{machine}"),
            routable_ips: vec!["10.0.0.0/8".parse().expect("a prefix")],
            request_tags,
            ..Hostinfo::default()
        }),
        ..RegisterRequest::default()
    };
    let may_tag = |_: UserId, _: &str| true;
    let who = Stranger {
        machine: MachinePublic::from_bytes([machine; 32]),
        remote: [198, 51, 100, machine].into(),
        random: [machine; 16],
        now,
        instant: Instant::now(),
        may_tag: &may_tag,
    };
    let joined = state.register(request, &who).expect("a good key");
    assert!(matches!(joined, Registered::Accepted(_)), "{joined:?}");
}

/// A piece of an input: the text in the place of this name.
fn at(name: &str, text: &str) -> Vec<u8> {
    let number = places().iter().position(|place| place.name() == name);
    let number = 1 + number.expect("a place") as u8;
    [&[number][..], text.as_bytes()].concat()
}

pub fn coordinator_state_seeds() -> Vec<Vec<u8>> {
    let pem = |what: &str| format!("-----BEGIN {what}-----\nMAA=\n-----END {what}-----\n");
    let key = "5a".repeat(32);
    let mut seeds = vec![
        Vec::new(),
        at("users.name", "\x1b[2J ann@example.com"),
        at("users.role", "\"owner\""),
        at("users.role", "\"king\""),
        at("users.id", "-9223372036854775808"),
        at("users.created", "9223372036854775807"),
        at("auth_keys.tags", "[\"tag:a\",null]"),
        at("auth_keys.hash", "short"),
        at("auth_keys.expiry", "-62135596800000000"),
        at("nodes.machine_key", &format!("mkey:{key}")),
        at("nodes.node_key", "nodekey:zz"),
        at("nodes.disco_key", &format!("discokey:{key}")),
        at("nodes.tags", "[\"tag:a\",\"tag:b\"]"),
        at("nodes.name", "A b.\u{202e}"),
        at("nodes.hostinfo", HOST),
        at("nodes.hostinfo", &"[".repeat(2000)),
        at("nodes.endpoints", ENDPOINTS),
        at("nodes.v4", "255.255.255.255"),
        at("nodes.v6", "::ffff:1.2.3.4"),
        at("nodes.approved_routes", "[\"10.0.0.1/8\",\"::/0\"]"),
        at("nodes.user", "7"),
        at("nodes.created", "-377705116800000000"),
        at("nodes.cap", "65536"),
        at("policies.text", "{\"acls\": 5}"),
        at("policies.text", GONE),
        at("policies.note", "two\nlines"),
        at("control-key", "privkey:zz"),
        at("relay-key", &format!("privkey:{key}")),
        at("policy-seed", ""),
        at("last-address", "100.127.255.255"),
        at("pool-turns", "100.64.0.0/10 100.64.0.9\n10.0.0.0/33 x\n"),
        at(CERTIFICATE, "{\"names\":"),
        at(CERTIFICATE, ""),
        at("names", "[]"),
        at("expires", "9223372036854775807"),
        at("certificate_pem", &pem("CERTIFICATE")),
        at("key_pem", &pem("PRIVATE KEY")),
        at("key_pem", "-----BEGIN PRIVATE KEY-----\n"),
    ];
    let several = [
        at("users.role", "\"admin\""),
        at("nodes.hostinfo", "{}"),
        at("names", "[\"other.example\"]"),
    ];
    seeds.push(several.join(&0));
    seeds
}

const HOST: &str = r#"{"OS":"linux","Hostname":"n","RoutableIPs":["0.0.0.0/0","::/0"],"NetInfo":{"PreferredDERP":65535}}"#;
const ENDPOINTS: &str = r#"[{"address":"192.0.2.1:1","kind":1},{"address":"[::]:0","kind":99}]"#;
/// A policy whose user is gone.
const GONE: &str = r#"{"grants": [{"src": ["gone@"], "dst": ["*"], "ip": ["*"]}]}"#;

#[cfg(test)]
mod tests;
