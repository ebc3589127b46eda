//! Forced logins that somebody has to finish on a page, and doesn't.

use serde_json::Value;

use super::{
    bus::{at_the_page, logged_in, login, start, told, told_state, watched},
    *,
};
use crate::localapi::watch::Watcher;

const REFUSED: Reply = Reply::Status(hyper::StatusCode::UNAUTHORIZED, "no such authkey");

/// A node that is logged in, and whose user has been told to visit a page for a new login.
struct Pending {
    agent: Agent,
    /// By which it is logged in.
    key: String,
    /// Of the login on the page.
    new_key: Value,
    bus: Watcher,
    followup: Call,
}

async fn pending(dir: &TempDir, server: &mut TestServer) -> Pending {
    let (agent, _stream) = logged_in(dir, server).await;
    let key = agent.status().await.self_node.unwrap().public_key;
    let (_, mut bus) = watched(&agent, 0).await;
    start(&agent, server, None).await.unwrap();
    login(&agent).await.unwrap();
    let register = expect_register(server).await;
    let new_key = register.body["NodeKey"].clone();
    assert_ne!(new_key, key);
    register.json(json!({"AuthURL": "http://page/1"}));
    assert_eq!(told(&mut bus, "BrowseToURL").await, "http://page/1");
    let followup = expect_register(server).await;
    Pending {
        agent,
        key,
        new_key,
        bus,
        followup,
    }
}

fn without_key(server: &TestServer) -> UpRequest {
    UpRequest {
        auth_key: None,
        ..request(&server.url)
    }
}

#[tokio::test]
async fn a_page_that_is_left_open_costs_a_restarted_agent_nothing() {
    let (dir, mut server) = (tempfile::tempdir().unwrap(), TestServer::start(7).await);
    let left = pending(&dir, &mut server).await;
    left.agent.end().await;
    let agent = Agent::start(&dir);
    let register = expect_register(&mut server).await;
    assert_eq!(register.body["NodeKey"], left.key);
    register.json(json!({"MachineAuthorized": true}));
    let _stream = admit(&mut server).await;
    until_running(&agent).await;
    agent.end().await;
}

#[tokio::test]
async fn a_page_that_is_left_open_costs_a_node_that_goes_down_and_up_nothing() {
    let (dir, mut server) = (tempfile::tempdir().unwrap(), TestServer::start(7).await);
    let left = pending(&dir, &mut server).await;
    left.agent.ask(|reply| Ask::Down { reply }).await.unwrap();
    let steps = left.agent.up(without_key(&server)).await;
    let register = expect_register(&mut server).await;
    assert_eq!(register.body["NodeKey"], left.key);
    register.json(json!({"MachineAuthorized": true}));
    let _stream = admit(&mut server).await;
    assert_eq!(last(steps).await, Progress::Done);
    left.agent.end().await;
}

#[tokio::test]
async fn a_logout_while_a_page_is_open_is_of_the_key_that_is_registered() {
    let (dir, mut server) = (tempfile::tempdir().unwrap(), TestServer::start(7).await);
    let left = pending(&dir, &mut server).await;
    let (reply, _answer) = oneshot::channel();
    left.agent.asks.send(Ask::Logout { reply }).await.unwrap();
    let logout = expect_register(&mut server).await;
    assert_eq!(logout.body["NodeKey"], left.key);
    left.agent.end().await;
}

#[tokio::test]
async fn another_forced_login_that_is_refused_goes_back_to_the_key_that_is_registered() {
    let (dir, mut server) = (tempfile::tempdir().unwrap(), TestServer::start(7).await);
    let left = pending(&dir, &mut server).await;
    let forced = UpRequest {
        force_reauth: true,
        ..request(&server.url)
    };
    let steps = left.agent.up(forced).await;
    let register = expect_register(&mut server).await;
    assert_eq!(register.body["OldNodeKey"], left.key);
    register.answer(REFUSED);
    assert!(matches!(last(steps).await, Progress::Failed(_)));
    let again = expect_register(&mut server).await;
    assert_eq!(again.body["NodeKey"], left.key);
    left.agent.end().await;
}

#[tokio::test]
async fn a_key_that_is_refused_while_a_page_is_open_goes_back_to_the_key_that_is_registered() {
    let (dir, mut server) = (tempfile::tempdir().unwrap(), TestServer::start(7).await);
    let mut left = pending(&dir, &mut server).await;
    start(&left.agent, &server, Some("wrong")).await.unwrap();
    login(&left.agent).await.unwrap();
    let register = expect_register(&mut server).await;
    assert_eq!(register.body["Auth"]["AuthKey"], "wrong");
    register.answer(REFUSED);
    told(&mut left.bus, "ErrMessage").await;
    let again = expect_register(&mut server).await;
    assert_eq!(again.body["NodeKey"], left.key);
    left.agent.end().await;
}

#[tokio::test]
async fn a_second_forced_login_gets_a_page_of_its_own_and_ends_with_a_key_that_is_new() {
    let (dir, mut server) = (tempfile::tempdir().unwrap(), TestServer::start(7).await);
    let left = pending(&dir, &mut server).await;
    let known = left.agent.status().await.self_node.unwrap().public_key;
    assert_eq!(known, left.key, "the stock client waits for another key");
    let (_, mut bus) = watched(&left.agent, 0).await;
    start(&left.agent, &server, None).await.unwrap();
    login(&left.agent).await.unwrap();
    let register = expect_register(&mut server).await;
    assert_eq!(register.body["OldNodeKey"], left.key);
    let new_key = register.body["NodeKey"].clone();
    assert!(new_key != left.new_key && new_key != left.key);
    register.json(json!({"AuthURL": "http://page/2"}));
    while told(&mut bus, "BrowseToURL").await != "http://page/2" {}
    let visited = expect_register(&mut server).await;
    visited.json(json!({"MachineAuthorized": true}));
    let _stream = admit(&mut server).await;
    assert_eq!(told(&mut bus, "SelfChange").await["Key"], new_key);
    told_state(&mut bus, BackendState::Running).await;
    left.agent.end().await;
}

#[tokio::test]
async fn a_second_forced_login_of_a_node_that_is_nobody_yet_gets_a_page_of_its_own() {
    let (dir, mut server) = (tempfile::tempdir().unwrap(), TestServer::start(7).await);
    let (agent, mut bus, _followup) = at_the_page(&dir, &mut server).await;
    let known = agent.status().await.self_node.unwrap().public_key;
    start(&agent, &server, None).await.unwrap();
    login(&agent).await.unwrap();
    let register = expect_register(&mut server).await;
    assert_ne!(register.body["NodeKey"], known);
    register.json(json!({"AuthURL": "http://page/2"}));
    while told(&mut bus, "BrowseToURL").await != "http://page/2" {}
    agent.end().await;
}

#[tokio::test]
async fn a_connection_that_was_lost_is_no_trouble_once_there_is_a_page_again() {
    let (dir, mut server) = (tempfile::tempdir().unwrap(), TestServer::start(7).await);
    let mut left = pending(&dir, &mut server).await;
    left.followup.answer(Reply::Status(
        hyper::StatusCode::INTERNAL_SERVER_ERROR,
        "restarting",
    ));
    let again = expect_register(&mut server).await;
    assert_eq!(again.body["NodeKey"], left.new_key);
    again.json(json!({"AuthURL": "http://page/2"}));
    assert_eq!(told(&mut left.bus, "BrowseToURL").await, "http://page/2");
    let health = left.agent.status().await.health;
    assert!(!format!("{health:?}").contains("restarting"), "{health:?}");
    left.agent.end().await;
}

#[tokio::test]
async fn an_auth_key_that_nobody_used_is_forgotten_when_the_node_is_stopped() {
    let (dir, mut server) = (tempfile::tempdir().unwrap(), TestServer::start(7).await);
    let (agent, _stream) = logged_in(&dir, &mut server).await;
    start(&agent, &server, Some("another")).await.unwrap();
    agent.ask(|reply| Ask::Down { reply }).await.unwrap();
    login(&agent).await.unwrap();
    let register = expect_register(&mut server).await;
    assert!(!register.body.to_string().contains("another"));
    agent.end().await;
}

#[tokio::test]
async fn the_failure_of_a_login_is_told_once() {
    let (dir, mut server) = (tempfile::tempdir().unwrap(), TestServer::start(7).await);
    let (agent, _stream) = logged_in(&dir, &mut server).await;
    agent.ask(|reply| Ask::Down { reply }).await.unwrap();
    let (_, mut bus) = watched(&agent, 0).await;
    login(&agent).await.unwrap();
    expect_register(&mut server).await.answer(REFUSED);
    told(&mut bus, "ErrMessage").await;
    agent.end().await;
    while let Some(more) = bus.next().await {
        assert!(more.get("ErrMessage").is_none(), "{more}");
    }
}

#[tokio::test]
async fn a_login_that_was_refused_before_somebody_goes_on_with_it_says_so() {
    let (dir, mut server) = (tempfile::tempdir().unwrap(), TestServer::start(7).await);
    let agent = Agent::start(&dir);
    let (_, mut bus) = watched(&agent, 0).await;
    start(&agent, &server, Some("wrong")).await.unwrap();
    expect_register(&mut server).await.answer(REFUSED);
    told(&mut bus, "ErrMessage").await;
    let why = login(&agent).await.unwrap_err();
    assert!(why.contains("no such authkey"), "{why}");
    agent.end().await;
}
