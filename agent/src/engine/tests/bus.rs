//! The IPN bus, and logins as the stock client makes them: a watch, `start`, perhaps `login-interactive`, and what it is told then.

use serde_json::Value;
use tokio::sync::broadcast;

use super::*;
use crate::localapi::watch;

pub(super) async fn watched(agent: &Agent, mask: u64) -> (Vec<Value>, broadcast::Receiver<Value>) {
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
pub(super) async fn told(bus: &mut broadcast::Receiver<Value>, field: &str) -> Value {
    let wait = async {
        loop {
            let notification = bus.recv().await.expect("nothing is missed");
            if let Some(value) = notification.get(field) {
                break value.clone();
            }
        }
    };
    let value = timeout(PATIENCE, wait).await;
    value.unwrap_or_else(|_| panic!("{field} is told"))
}

pub(super) async fn told_state(bus: &mut broadcast::Receiver<Value>, state: BackendState) {
    while told(bus, "State").await != state.number() {}
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
    let agent = Agent::start(&dir);
    let (_, mut bus) = watched(&agent, 0).await;
    start(&agent, &server, None).await.unwrap();
    login(&agent).await.unwrap();
    let register = expect_register(&mut server).await;
    register.json(json!({"AuthURL": "http://page/1"}));
    assert_eq!(told(&mut bus, "BrowseToURL").await, "http://page/1");
    let _followup = expect_register(&mut server).await;
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
        | watch::INITIAL_STATUS;
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
    stream
        .send(json!({"PeersChanged": [peer(3)]}))
        .await
        .unwrap();
    assert_eq!(told(&mut bus, "PeersChanged").await[0]["ID"], 3);
    stream.send(json!({"PeersRemoved": [2]})).await.unwrap();
    assert_eq!(told(&mut bus, "PeersRemoved").await, json!([2]));
    agent.end().await;
}
