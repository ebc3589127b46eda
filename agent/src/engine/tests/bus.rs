//! The IPN bus, and logins as the stock client makes them: a watch, `start`, perhaps `login-interactive`, and what it is told then.

use serde_json::Value;

use super::*;
use crate::localapi::watch::{self, Watcher};

pub(super) async fn watched(agent: &Agent, mask: u64) -> (Vec<Value>, Watcher) {
    agent.ask(|reply| Ask::Watch { mask, reply }).await
}

pub(super) async fn start(
    agent: &Agent,
    server: &TestServer,
    auth_key: Option<&str>,
) -> Result<(), String> {
    let change = Change {
        control_url: Some(server.url.clone()),
        hostname: Some("gate".into()),
        ..Change::default()
    };
    let auth_key = auth_key.map(|key| AuthKey::new(key.to_owned()));
    let ask = |reply| Ask::Start {
        auth_key,
        change,
        reply,
    };
    agent.ask(ask).await
}

pub(super) async fn login(agent: &Agent) -> Result<(), String> {
    agent.ask(|reply| Ask::Login { reply }).await
}

/// The next notification that has the field.
pub(super) async fn told(bus: &mut Watcher, field: &str) -> Value {
    let wait = async {
        loop {
            let notification = bus.next().await.expect("nothing is missed");
            if let Some(value) = notification.get(field) {
                break value.clone();
            }
        }
    };
    let value = timeout(PATIENCE, wait).await;
    value.unwrap_or_else(|_| panic!("{field} is told"))
}

pub(super) async fn told_state(bus: &mut Watcher, state: BackendState) {
    while told(bus, "State").await != state.number() {}
}

/// An agent whose user the stock client has told to visit a page, what told it, and the server's call that waits for that.
pub(super) async fn at_the_page(dir: &TempDir, server: &mut TestServer) -> (Agent, Watcher, Call) {
    let agent = Agent::start(dir);
    let (_, mut bus) = watched(&agent, 0).await;
    start(&agent, server, None).await.unwrap();
    login(&agent).await.unwrap();
    let register = expect_register(server).await;
    register.json(json!({"AuthURL": "http://page/1"}));
    assert_eq!(told(&mut bus, "BrowseToURL").await, "http://page/1");
    let followup = expect_register(server).await;
    (agent, bus, followup)
}

/// An agent that the stock client has logged in with a key.
pub(super) async fn logged_in(
    dir: &TempDir,
    server: &mut TestServer,
) -> (Agent, mpsc::Sender<Value>) {
    let agent = Agent::start(dir);
    let (first, mut bus) = watched(&agent, 0).await;
    assert!(first.is_empty());
    start(&agent, server, Some("key")).await.unwrap();
    let register = expect_register(server).await;
    assert_eq!(register.body["Auth"]["AuthKey"], "key");
    // It comes while the key is looked at, and begins no other login.
    login(&agent).await.unwrap();
    register.json(json!({"MachineAuthorized": true, "User": {"ID": 1}}));
    let stream = admit(server).await;
    assert_eq!(told(&mut bus, "LoginFinished").await, json!({}));
    let own = told(&mut bus, "SelfChange").await;
    assert_eq!(
        own["Key"],
        agent.status().await.self_node.unwrap().public_key
    );
    told_state(&mut bus, BackendState::Running).await;
    (agent, stream)
}

#[tokio::test]
async fn a_login_by_key_is_told_until_the_node_runs_and_is_not_begun_twice() {
    let (dir, mut server) = (tempfile::tempdir().unwrap(), TestServer::start(7).await);
    let (agent, _stream) = logged_in(&dir, &mut server).await;
    // Of one that runs the stock client waits to be told that it does.
    let (_, mut bus) = watched(&agent, 0).await;
    start(&agent, &server, Some("another")).await.unwrap();
    told_state(&mut bus, BackendState::Running).await;
    agent.end().await;
}

#[tokio::test]
async fn the_page_of_a_login_without_a_key_is_told_and_told_again_to_whoever_asks() {
    let (dir, mut server) = (tempfile::tempdir().unwrap(), TestServer::start(7).await);
    let (agent, _, _followup) = at_the_page(&dir, &mut server).await;
    let (first, mut bus) = watched(&agent, watch::INITIAL_STATE).await;
    assert_eq!(first[0]["BrowseToURL"], "http://page/1");
    assert_eq!(first[0]["State"], BackendState::NeedsLogin.number());
    login(&agent).await.unwrap();
    assert_eq!(told(&mut bus, "BrowseToURL").await, "http://page/1");
    agent.end().await;
}

#[tokio::test]
async fn a_forced_login_by_key_changes_the_node_key_and_one_that_is_refused_does_not() {
    let (dir, mut server) = (tempfile::tempdir().unwrap(), TestServer::start(7).await);
    let (agent, stream) = logged_in(&dir, &mut server).await;
    let key = agent.status().await.self_node.unwrap().public_key;
    let (_, mut bus) = watched(&agent, 0).await;

    start(&agent, &server, Some("wrong")).await.unwrap();
    login(&agent).await.unwrap();
    let register = expect_register(&mut server).await;
    assert_eq!(register.body["Auth"]["AuthKey"], "wrong");
    assert_ne!(register.body["NodeKey"], json!(key));
    drop(stream);
    register.answer(Reply::Status(
        hyper::StatusCode::UNAUTHORIZED,
        "no such authkey",
    ));
    let why = told(&mut bus, "ErrMessage").await;
    assert!(why.as_str().unwrap().contains("no such authkey"), "{why}");
    let again = expect_register(&mut server).await;
    assert_eq!(again.body["NodeKey"], json!(key));
    again.json(json!({"MachineAuthorized": true}));
    let stream = admit(&mut server).await;
    until_running(&agent).await;

    let (_, mut bus) = watched(&agent, 0).await;
    start(&agent, &server, Some("right")).await.unwrap();
    login(&agent).await.unwrap();
    let register = expect_register(&mut server).await;
    assert_eq!(register.body["Auth"]["AuthKey"], "right");
    let new = register.body["NodeKey"].clone();
    drop(stream);
    register.json(json!({"MachineAuthorized": true}));
    let _stream = admit(&mut server).await;
    assert_eq!(told(&mut bus, "SelfChange").await["Key"], new);
    told_state(&mut bus, BackendState::Running).await;
    assert_ne!(new, json!(key));
    agent.end().await;
}

#[tokio::test]
async fn an_expired_key_is_renewed_by_start_with_an_auth_key() {
    let (dir, mut server) = (tempfile::tempdir().unwrap(), TestServer::start(7).await);
    let (agent, stream) = logged_in(&dir, &mut server).await;
    let key = agent.status().await.self_node.unwrap().public_key;
    let (_, mut bus) = watched(&agent, 0).await;
    let expired = json!({"ID": 1, "StableID": "n1", "Name": "gate.tail.lab.", "Key": key, "Addresses": ["100.64.0.1/32"], "MachineAuthorized": true, "KeyExpiry": "2020-01-01T00:00:00Z"});
    stream.send(json!({"Node": expired})).await.unwrap();
    told_state(&mut bus, BackendState::NeedsLogin).await;
    start(&agent, &server, Some("renewal")).await.unwrap();
    let register = expect_register(&mut server).await;
    assert_eq!(register.body["Auth"]["AuthKey"], "renewal");
    register.json(json!({"MachineAuthorized": true}));
    let _stream = admit(&mut server).await;
    told_state(&mut bus, BackendState::Running).await;
    agent.end().await;
}

#[tokio::test]
async fn watchers_are_told_of_preferences_peers_and_what_they_ask_for_first() {
    let (dir, mut server) = (tempfile::tempdir().unwrap(), TestServer::start(7).await);
    let (agent, stream) = logged_in(&dir, &mut server).await;
    let all = watch::INITIAL_STATE
        | watch::INITIAL_PREFS
        | watch::INITIAL_NETMAP
        | watch::INITIAL_HEALTH
        | watch::INITIAL_STATUS
        | watch::PEERS;
    let (first, mut bus) = watched(&agent, all).await;
    let first = &first[0];
    assert_eq!(first["State"], BackendState::Running.number());
    assert_eq!(first["Prefs"]["Hostname"], "gate");
    assert_eq!(first["NetMap"]["Peers"][0]["ID"], 2);
    assert_eq!(first["NetMap"]["SelfNode"]["Name"], "gate.tail.lab.");
    assert_eq!(first["InitialStatus"]["BackendState"], "Running");
    assert!(first["Health"]["Warnings"].is_object());
    assert!(!first.to_string().contains("privkey"));

    let change = Change {
        shields_up: Some(true),
        ..Change::default()
    };
    agent.ask(|reply| Ask::Set { change, reply }).await.unwrap();
    assert_eq!(told(&mut bus, "Prefs").await["ShieldsUp"], true);
    let mut third = peer(3);
    third["User"] = json!(5);
    let ann = json!({"ID": 5, "LoginName": "ann@lab"});
    let message = json!({"PeersChanged": [third], "UserProfiles": [ann]});
    stream.send(message).await.unwrap();
    let (owner, change) = loop {
        let notification = bus.next().await.unwrap();
        if let Some(change) = notification.get("PeersChanged") {
            break (notification["UserProfiles"]["5"].clone(), change.clone());
        }
    };
    assert_eq!(
        (&change[0]["ID"], &owner["LoginName"]),
        (&json!(3), &json!("ann@lab"))
    );
    stream.send(json!({"PeersRemoved": [2]})).await.unwrap();
    assert_eq!(told(&mut bus, "PeersRemoved").await, json!([2]));
    agent.end().await;
}

#[tokio::test]
async fn the_netmap_has_the_types_of_the_stock_one() {
    let (dir, mut server) = (tempfile::tempdir().unwrap(), TestServer::start(7).await);
    let (agent, stream) = logged_in(&dir, &mut server).await;
    let (_, mut bus) = watched(&agent, 0).await;
    let key = agent.status().await.self_node.unwrap().public_key;
    let own = json!({"ID": 1, "StableID": "n1", "Name": "gate.tail.lab.", "Key": key, "User": 1, "Addresses": ["100.64.0.1/32"], "MachineAuthorized": true, "CapMap": {"https://lab/cap/a": null}});
    let ann = json!({"ID": 1, "LoginName": "ann@lab"});
    let message = json!({"Node": own, "UserProfiles": [ann], "DNSConfig": {"Domains": ["lab"]}});
    stream.send(message).await.unwrap();
    while told(&mut bus, "SelfChange").await["CapMap"].is_null() {}
    let (first, _) = watched(&agent, watch::INITIAL_NETMAP).await;
    let netmap = first[0]["NetMap"].as_object().unwrap();
    let shape = |value: &Value| match value {
        Value::Object(_) => "struct or map",
        Value::Array(_) => "slice or set",
        Value::String(_) => "string",
        _ => "other",
    };
    let shapes: Vec<_> = netmap
        .iter()
        .map(|(name, value)| (name.as_str(), shape(value)))
        .collect();
    // netmap.NetworkMap; a set.Set is written as a list.
    let stock = [
        ("AllCaps", "slice or set"),
        ("DNS", "struct or map"),
        ("Domain", "string"),
        ("NodeKey", "string"),
        ("Peers", "slice or set"),
        ("SelfNode", "struct or map"),
        ("UserProfiles", "struct or map"),
    ];
    assert_eq!(shapes, stock);
    assert_eq!(netmap["AllCaps"], json!(["https://lab/cap/a"]));
    assert_eq!(netmap["NodeKey"], key);
    assert_eq!(netmap["DNS"]["Domains"], json!(["lab"]));
    assert_eq!(netmap["UserProfiles"]["1"]["LoginName"], "ann@lab");
    assert!(netmap["Peers"][0].is_object());
    agent.end().await;
}

#[tokio::test]
async fn peers_go_for_watchers_when_their_netmap_does() {
    let (dir, mut server) = (tempfile::tempdir().unwrap(), TestServer::start(7).await);
    let (agent, _stream) = logged_in(&dir, &mut server).await;
    let (_, mut bus) = watched(&agent, watch::PEERS).await;
    agent.ask(|reply| Ask::Down { reply }).await.unwrap();
    assert_eq!(told(&mut bus, "PeersRemoved").await, json!([2]));

    // As somebody else, who has other peers.
    login(&agent).await.unwrap();
    let register = expect_register(&mut server).await;
    register.json(json!({"MachineAuthorized": true}));
    let _stream = admit_among(&mut server, json!([peer(3), peer(4)])).await;
    assert_eq!(told(&mut bus, "PeersChanged").await[1]["ID"], 4);
    until_running(&agent).await;
    login(&agent).await.unwrap();
    assert_eq!(told(&mut bus, "PeersRemoved").await, json!([3, 4]));
    agent.end().await;
}

#[tokio::test]
async fn peers_that_went_while_the_server_was_away_are_told() {
    let (dir, mut server) = (tempfile::tempdir().unwrap(), TestServer::start(7).await);
    let (agent, stream) = logged_in(&dir, &mut server).await;
    let (_, mut bus) = watched(&agent, watch::PEERS).await;
    drop(stream);
    let _stream = admit_among(&mut server, json!([peer(5)])).await;
    assert_eq!(told(&mut bus, "PeersRemoved").await, json!([2]));
    agent.end().await;
}
