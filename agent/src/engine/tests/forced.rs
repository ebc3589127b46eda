//! Logins by an auth key as the stock client makes them, of nodes that have a key and of those that have none.

use super::{
    bus::{logged_in, login, start, told, told_state, watched},
    keys::own_key,
    *,
};
use crate::localapi::watch::Watcher;

#[tokio::test]
async fn a_forced_login_of_an_expired_node_by_key_ends_with_another_node_key() {
    let (dir, mut server) = (tempfile::tempdir().unwrap(), TestServer::start(7).await);
    let (agent, known, mut bus, _stream) = expired(&dir, &mut server).await;
    start(&agent, &server, Some("renewal")).await.unwrap();
    // One that may be used once goes with the new key already.
    let register = expect_register(&mut server).await;
    assert_eq!(register.body["Auth"]["AuthKey"], "renewal");
    assert_eq!(register.body["OldNodeKey"], known);
    login(&agent).await.unwrap();
    is_let_in(register, &mut server, &mut bus).await;
    agent.end().await;
}

#[tokio::test]
async fn a_forced_login_by_key_of_a_node_that_is_stopped_ends_with_another_node_key() {
    let (dir, mut server) = (tempfile::tempdir().unwrap(), TestServer::start(7).await);
    let (agent, _stream) = logged_in(&dir, &mut server).await;
    let known = own_key(&agent).await;
    agent.ask(|reply| Ask::Down { reply }).await.unwrap();
    let (_, mut bus) = watched(&agent, 0).await;
    start(&agent, &server, Some("again")).await.unwrap();
    login(&agent).await.unwrap();
    // The first may have been sent before the second request came, and spends no key that is good for one login.
    let register = loop {
        let register = expect_register(&mut server).await;
        if register.body["NodeKey"] != known {
            break register;
        }
        assert!(register.body["Auth"].is_null(), "{}", register.body);
    };
    assert_eq!(register.body["Auth"]["AuthKey"], "again");
    assert_eq!(register.body["OldNodeKey"], known);
    is_let_in(register, &mut server, &mut bus).await;
    agent.end().await;
}

#[tokio::test]
async fn a_forced_login_by_key_is_not_made_twice_where_the_server_wanted_one_itself() {
    let (dir, mut server) = (tempfile::tempdir().unwrap(), TestServer::start(7).await);
    let (agent, _stream) = logged_in(&dir, &mut server).await;
    let known = own_key(&agent).await;
    agent.ask(|reply| Ask::Down { reply }).await.unwrap();
    let (_, mut bus) = watched(&agent, 0).await;
    start(&agent, &server, Some("once")).await.unwrap();
    let first = expect_register(&mut server).await;
    assert_eq!(first.body["NodeKey"], known);
    first.json(json!({"NodeKeyExpired": true}));
    let register = expect_register(&mut server).await;
    assert_eq!(register.body["Auth"]["AuthKey"], "once");
    login(&agent).await.unwrap();
    is_let_in(register, &mut server, &mut bus).await;
    agent.end().await;
}

#[tokio::test]
async fn a_login_by_key_that_has_succeeded_already_is_not_made_again() {
    let (dir, mut server) = (tempfile::tempdir().unwrap(), TestServer::start(7).await);
    let agent = Agent::start(&dir);
    start(&agent, &server, Some("once")).await.unwrap();
    let _stream = admit(&mut server).await;
    until_running(&agent).await;
    let known = own_key(&agent).await;
    // The stock client says so of every first login; here it comes late.
    login(&agent).await.unwrap();
    assert_eq!(agent.status().await.backend_state, BackendState::Running);
    assert_eq!(own_key(&agent).await, known);
    agent.end().await;
}

#[tokio::test]
async fn a_key_that_is_refused_and_for_which_nobody_waits_is_left() {
    let (dir, mut server) = (tempfile::tempdir().unwrap(), TestServer::start(7).await);
    let (agent, known, mut bus, _stream) = expired(&dir, &mut server).await;
    start(&agent, &server, Some("wrong")).await.unwrap();
    let register = expect_register(&mut server).await;
    assert_ne!(register.body["NodeKey"], known);
    register.json(json!({"Error": "no such authkey"}));
    told(&mut bus, "ErrMessage").await;
    start(&agent, &server, Some("right")).await.unwrap();
    let register = expect_register(&mut server).await;
    assert_eq!(register.body["NodeKey"], known);
    agent.end().await;
}

#[tokio::test]
async fn a_login_for_which_nobody_waits_goes_on_with_its_auth_key_after_another_was_refused() {
    let (dir, mut server) = (tempfile::tempdir().unwrap(), TestServer::start(7).await);
    let agent = Agent::start(&dir);
    start(&agent, &server, Some("first")).await.unwrap();
    let unanswered = expect_register(&mut server).await;
    assert_eq!(unanswered.body["Auth"]["AuthKey"], "first");
    let second = UpRequest {
        auth_key: Some(AuthKey::new("second".into())),
        ..request(&server.url)
    };
    let steps = agent.up(second).await;
    let register = expect_register(&mut server).await;
    assert_eq!(register.body["Auth"]["AuthKey"], "second");
    register.json(json!({"Error": "no such authkey"}));
    assert!(matches!(last(steps).await, Progress::Failed(_)));
    let again = expect_register(&mut server).await;
    assert_eq!(again.body["Auth"]["AuthKey"], "first");
    again.json(json!({"MachineAuthorized": true}));
    let _stream = admit(&mut server).await;
    until_running(&agent).await;
    agent.end().await;
}

#[tokio::test]
async fn a_login_that_takes_the_place_of_another_goes_back_to_the_login_before_both() {
    let (dir, mut server) = (tempfile::tempdir().unwrap(), TestServer::start(7).await);
    let (agent, _stream) = logged_in(&dir, &mut server).await;
    let known = own_key(&agent).await;
    // At once: the first has not come to make a key.
    login(&agent).await.unwrap();
    login(&agent).await.unwrap();
    let mut refused = 0;
    loop {
        let register = expect_register(&mut server).await;
        if register.body["NodeKey"] == known {
            break;
        }
        refused += 1;
        register.json(json!({"Error": "not now"}));
    }
    assert!((1..=2).contains(&refused), "{refused}");
    agent.end().await;
}

/// The server takes the key that it was asked to, which is the node's then.
async fn is_let_in(register: Call, server: &mut TestServer, bus: &mut Watcher) {
    let key = register.body["NodeKey"].clone();
    register.json(json!({"MachineAuthorized": true}));
    let _stream = admit(server).await;
    while told(bus, "SelfChange").await["Key"] != key {}
    told_state(bus, BackendState::Running).await;
}

/// A node whose key has expired, the key, what its watchers are told from there, and its map stream.
async fn expired(
    dir: &TempDir,
    server: &mut TestServer,
) -> (Agent, String, Watcher, mpsc::Sender<serde_json::Value>) {
    let (agent, stream) = logged_in(dir, server).await;
    let known = own_key(&agent).await;
    let (_, mut bus) = watched(&agent, 0).await;
    let node = json!({"ID": 1, "StableID": "n1", "Name": "gate.tail.lab.", "Key": known, "Addresses": ["100.64.0.1/32"], "MachineAuthorized": true, "KeyExpiry": "2020-01-01T00:00:00Z"});
    stream.send(json!({"Node": node})).await.unwrap();
    told_state(&mut bus, BackendState::NeedsLogin).await;
    (agent, known, bus, stream)
}
