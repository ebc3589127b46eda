//! Node keys that a server may have accepted without this node hearing of it, and logins with another server.

use super::{bus::start, *};

fn forced(url: &str) -> UpRequest {
    UpRequest {
        force_reauth: true,
        ..request(url)
    }
}

/// Nothing can be saved any more until that is gone.
fn block_saving(dir: &TempDir) -> std::path::PathBuf {
    let blocked = dir.path().join("state.json.new");
    std::fs::create_dir(&blocked).unwrap();
    blocked
}

/// In the status.
async fn is_told_that_a_key_cannot_be_saved(agent: &Agent) {
    let of_it = |line: &String| line.contains("cannot be saved");
    let told = async {
        while !agent.status().await.health.iter().any(of_it) {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, told).await.expect("health tells it");
}

pub(super) async fn own_key(agent: &Agent) -> String {
    agent.status().await.self_node.unwrap().public_key
}

async fn control_url(agent: &Agent) -> serde_json::Value {
    agent.ask(|reply| Ask::Prefs { reply }).await["ControlURL"].clone()
}

/// A forced login that waits for somebody to visit a page.
struct AtPage {
    key: serde_json::Value,
    steps: mpsc::Receiver<Progress>,
    _followup: Call,
}

async fn at_page(agent: &Agent, server: &mut TestServer) -> AtPage {
    let request = UpRequest {
        auth_key: None,
        ..forced(&server.url)
    };
    let steps = agent.up(request).await;
    let register = expect_register(server).await;
    let key = register.body["NodeKey"].clone();
    register.json(json!({"AuthURL": "http://page/1"}));
    let followup = expect_register(server).await;
    assert_eq!(followup.body["Followup"], "http://page/1");
    AtPage {
        key,
        steps,
        _followup: followup,
    }
}

/// A login that another server has accepted, and which waits for the netmap.
struct Elsewhere {
    key: serde_json::Value,
    steps: mpsc::Receiver<Progress>,
    _unanswered: Call,
}

async fn accepted_elsewhere(agent: &Agent, server: &mut TestServer) -> Elsewhere {
    let steps = agent.up(forced(&server.url)).await;
    let register = expect_register(server).await;
    let key = register.body["NodeKey"].clone();
    register.json(json!({"MachineAuthorized": true}));
    Elsewhere {
        key,
        steps,
        _unanswered: server.expect("/machine/map").await,
    }
}

/// Lets the node in by this key, which it has to register, until it runs.
async fn runs_again(
    agent: &Agent,
    server: &mut TestServer,
    key: &str,
) -> mpsc::Sender<serde_json::Value> {
    let register = expect_register(server).await;
    assert_eq!(register.body["NodeKey"], key);
    register.json(json!({"MachineAuthorized": true}));
    let stream = admit(server).await;
    until_running(agent).await;
    stream
}

/// Answers registrations until one is accepted; the others are to visit a page.
async fn accept_only(server: &mut TestServer, key: &serde_json::Value) {
    loop {
        let register = expect_register(server).await;
        if register.body["NodeKey"] == *key {
            return register.json(json!({"MachineAuthorized": true}));
        }
        let followup = register.body["Followup"].as_str();
        assert_eq!(
            followup.unwrap_or_default(),
            "",
            "nobody waits for a person"
        );
        register.json(json!({"AuthURL": "http://page/2"}));
    }
}

#[tokio::test]
async fn a_login_that_somebody_finishes_while_the_agent_is_away_is_found() {
    let (dir, mut server) = (tempfile::tempdir().unwrap(), TestServer::start(7).await);
    let (agent, _stream) = connected(&dir, &mut server).await;
    let known = own_key(&agent).await;
    let AtPage { key, .. } = at_page(&agent, &mut server).await;
    agent.end().await;

    let agent = Agent::start(&dir);
    let first = expect_register(&mut server).await;
    assert_eq!(first.body["NodeKey"], known);
    first.json(json!({"AuthURL": "http://page/2"}));
    accept_only(&mut server, &key).await;
    let _stream = admit(&mut server).await;
    until_running(&agent).await;
    assert_eq!(own_key(&agent).await, key);
    agent.end().await;

    // And from then on it is the node's.
    let agent = Agent::start(&dir);
    assert_eq!(expect_register(&mut server).await.body["NodeKey"], key);
    agent.end().await;
}

#[tokio::test]
async fn a_login_that_somebody_finishes_after_it_was_interrupted_is_found_when_the_server_drops_the_old_key()
 {
    let (dir, mut server) = (tempfile::tempdir().unwrap(), TestServer::start(7).await);
    let (agent, _stream) = connected(&dir, &mut server).await;
    let known = own_key(&agent).await;
    let AtPage { key, steps, .. } = at_page(&agent, &mut server).await;
    drop(steps);
    let stream = runs_again(&agent, &mut server, &known).await;
    drop(stream);
    expect_register_anew(&mut server)
        .await
        .json(json!({"AuthURL": "http://page/2"}));
    accept_only(&mut server, &key).await;
    let _stream = admit(&mut server).await;
    until_running(&agent).await;
    assert_eq!(own_key(&agent).await, key);
    agent.end().await;
}

#[tokio::test]
async fn a_logout_is_of_every_key_that_a_server_may_know() {
    let (dir, mut server) = (tempfile::tempdir().unwrap(), TestServer::start(7).await);
    let (agent, _stream) = connected(&dir, &mut server).await;
    let known = own_key(&agent).await;
    let page = at_page(&agent, &mut server).await;
    let (reply, answer) = oneshot::channel();
    agent.asks.send(Ask::Logout { reply }).await.unwrap();
    let mut told = Vec::new();
    for _ in 0..2 {
        let register = expect_register(&mut server).await;
        assert!(register.body["Expiry"].is_string(), "{}", register.body);
        let node = register.body["NodeKey"].clone();
        // Of one that it doesn't know a server may say so.
        match node == page.key {
            true => register.answer(Reply::Status(hyper::StatusCode::NOT_FOUND, "unknown node")),
            false => register.json(json!({})),
        }
        told.push(node);
    }
    assert!(
        told.contains(&page.key) && told.contains(&json!(known)),
        "{told:?}"
    );
    assert_eq!(answer.await.unwrap(), Ok(()));
    assert_eq!(agent.status().await.backend_state, BackendState::NeedsLogin);
    agent.end().await;
}

#[tokio::test]
async fn a_new_key_that_cannot_be_kept_is_sent_to_nobody() {
    let (dir, mut server) = (tempfile::tempdir().unwrap(), TestServer::start(7).await);
    let (agent, _stream) = connected(&dir, &mut server).await;
    let known = own_key(&agent).await;
    let blocked = block_saving(&dir);
    let steps = agent.up(forced(&server.url)).await;
    let outcome = last(steps).await;
    std::fs::remove_dir(&blocked).unwrap();
    let Progress::Failed(why) = outcome else {
        panic!("{outcome:?}")
    };
    assert!(
        why.contains("cannot be saved") && why.contains("state.json"),
        "{why}"
    );
    let _stream = runs_again(&agent, &mut server, &known).await;
    agent.end().await;
}

#[tokio::test]
async fn a_rotation_that_cannot_be_kept_is_tried_again() {
    let (dir, mut server) = (tempfile::tempdir().unwrap(), TestServer::start(7).await);
    let (agent, stream) = connected(&dir, &mut server).await;
    let known = own_key(&agent).await;
    let netmap = dir.path().join("netmap.cache");
    until(|| netmap.exists()).await;
    let blocked = block_saving(&dir);
    drop(stream);
    expect_register_anew(&mut server)
        .await
        .json(json!({"NodeKeyExpired": true}));
    is_told_that_a_key_cannot_be_saved(&agent).await;
    assert!(!netmap.exists(), "it is of a key that has expired");
    std::fs::remove_dir(&blocked).unwrap();
    let again = expect_register(&mut server).await;
    assert_eq!(again.body["NodeKey"], known);
    again.json(json!({"NodeKeyExpired": true}));
    let rotated = expect_register(&mut server).await;
    assert_eq!(rotated.body["OldNodeKey"], known);
    let key = rotated.body["NodeKey"].clone();
    rotated.json(json!({"MachineAuthorized": true}));
    let _stream = admit(&mut server).await;
    until_running(&agent).await;
    assert_eq!(own_key(&agent).await, key);
    agent.end().await;
}

#[tokio::test]
async fn a_login_for_which_nobody_waits_is_tried_again_with_its_auth_key() {
    let (dir, mut server) = (tempfile::tempdir().unwrap(), TestServer::start(7).await);
    let (agent, _stream) = connected(&dir, &mut server).await;
    let known = own_key(&agent).await;
    agent.ask(|reply| Ask::Down { reply }).await.unwrap();
    start(&agent, &server, Some("once")).await.unwrap();
    let first = expect_register(&mut server).await;
    let blocked = block_saving(&dir);
    first.json(json!({"NodeKeyExpired": true}));
    is_told_that_a_key_cannot_be_saved(&agent).await;
    std::fs::remove_dir(&blocked).unwrap();
    let again = expect_register(&mut server).await;
    assert_eq!(again.body["NodeKey"], known);
    again.json(json!({"NodeKeyExpired": true}));
    let login = expect_register(&mut server).await;
    assert_eq!(login.body["Auth"]["AuthKey"], "once");
    assert_eq!(login.body["OldNodeKey"], known);
    login.json(json!({"MachineAuthorized": true}));
    let _stream = admit(&mut server).await;
    until_running(&agent).await;
    agent.end().await;
}

#[tokio::test]
async fn a_login_elsewhere_that_is_interrupted_after_it_was_accepted_goes_back_with_the_first_servers_key()
 {
    let dir = tempfile::tempdir().unwrap();
    let (mut first, mut second) = (TestServer::start(7).await, TestServer::start(8).await);
    let (agent, _stream) = connected(&dir, &mut first).await;
    let known = own_key(&agent).await;
    let login = accepted_elsewhere(&agent, &mut second).await;
    drop(login.steps);
    let _stream = runs_again(&agent, &mut first, &known).await;
    assert_eq!(control_url(&agent).await, json!(first.url));

    // The second knows the key it has accepted, and is told of a logout.
    let (reply, answer) = oneshot::channel();
    agent.asks.send(Ask::Logout { reply }).await.unwrap();
    let logout = expect_register(&mut first).await;
    assert_eq!(logout.body["NodeKey"], known);
    logout.json(json!({}));
    let logout = expect_register(&mut second).await;
    assert_eq!(logout.body["NodeKey"], login.key);
    logout.json(json!({"Error": "not by you"}));
    let why = answer.await.unwrap().unwrap_err();
    assert!(
        why.contains(&second.url) && why.contains("not by you"),
        "{why}"
    );
    agent.end().await;
}

#[tokio::test]
async fn a_login_elsewhere_that_the_agents_end_interrupts_goes_back_with_the_first_servers_key() {
    let dir = tempfile::tempdir().unwrap();
    let (mut first, mut second) = (TestServer::start(7).await, TestServer::start(8).await);
    let (agent, _stream) = connected(&dir, &mut first).await;
    let known = own_key(&agent).await;
    let _login = accepted_elsewhere(&agent, &mut second).await;
    agent.end().await;
    let agent = Agent::start(&dir);
    let _stream = runs_again(&agent, &mut first, &known).await;
    agent.end().await;
}

#[tokio::test]
async fn a_node_that_is_stopped_during_a_login_elsewhere_is_the_first_servers() {
    let dir = tempfile::tempdir().unwrap();
    let (mut first, mut second) = (TestServer::start(7).await, TestServer::start(8).await);
    let (agent, _stream) = connected(&dir, &mut first).await;
    let known = own_key(&agent).await;
    let _login = accepted_elsewhere(&agent, &mut second).await;
    // As the stock client does it.
    let change = Change {
        want_running: Some(false),
        ..Change::default()
    };
    agent.ask(|reply| Ask::Set { change, reply }).await.unwrap();
    assert_eq!(control_url(&agent).await, json!(first.url));
    let change = Change {
        want_running: Some(true),
        ..Change::default()
    };
    agent.ask(|reply| Ask::Set { change, reply }).await.unwrap();
    assert_eq!(expect_register(&mut first).await.body["NodeKey"], known);
    agent.end().await;
}

#[tokio::test]
async fn a_stopped_node_whose_login_elsewhere_the_agents_end_interrupts_is_the_first_servers() {
    let dir = tempfile::tempdir().unwrap();
    let (mut first, mut second) = (TestServer::start(7).await, TestServer::start(8).await);
    let (agent, _stream) = connected(&dir, &mut first).await;
    let known = own_key(&agent).await;
    agent.ask(|reply| Ask::Down { reply }).await.unwrap();
    let _login = accepted_elsewhere(&agent, &mut second).await;
    agent.end().await;
    let agent = Agent::start(&dir);
    assert_eq!(own_key(&agent).await, known);
    assert_eq!(agent.status().await.backend_state, BackendState::Stopped);
    agent.end().await;
}

#[tokio::test]
async fn a_first_login_that_is_interrupted_goes_on_with_its_key() {
    let (dir, mut server) = (tempfile::tempdir().unwrap(), TestServer::start(7).await);
    let agent = Agent::start(&dir);
    let steps = agent.up(request(&server.url)).await;
    let register = expect_register(&mut server).await;
    let key = register.body["NodeKey"].clone();
    drop(steps);
    until(|| agent.kernel().is_torn_down()).await;
    assert_eq!(agent.status().await.backend_state, BackendState::NeedsLogin);
    let steps = agent.up(request(&server.url)).await;
    let again = expect_register(&mut server).await;
    assert_eq!(again.body["NodeKey"], key);
    again.json(json!({"MachineAuthorized": true}));
    let _stream = admit(&mut server).await;
    assert_eq!(last(steps).await, Progress::Done);
    agent.end().await;
}

#[tokio::test]
async fn a_first_key_that_cannot_be_saved_fails_the_login_and_is_sent_to_nobody() {
    let (dir, mut server) = (tempfile::tempdir().unwrap(), TestServer::start(7).await);
    let agent = Agent::start(&dir);
    let blocked = block_saving(&dir);
    let outcome = last(agent.up(request(&server.url)).await).await;
    assert!(
        matches!(&outcome, Progress::Failed(why) if why.contains("cannot be saved")),
        "{outcome:?}"
    );
    assert!(agent.kernel().is_torn_down() && server.asked().is_none());
    std::fs::remove_dir(&blocked).unwrap();
    let steps = agent.up(request(&server.url)).await;
    let _stream = admit(&mut server).await;
    assert_eq!(last(steps).await, Progress::Done);
    agent.end().await;
}

#[tokio::test]
async fn what_is_set_while_an_up_waits_stays_when_it_fails() {
    let (dir, mut server) = (tempfile::tempdir().unwrap(), TestServer::start(7).await);
    let (agent, _stream) = connected(&dir, &mut server).await;
    let steps = agent.up(forced(&server.url)).await;
    let register = expect_register(&mut server).await;
    let change = Change {
        route_all: Some(true),
        ..Change::default()
    };
    agent.ask(|reply| Ask::Set { change, reply }).await.unwrap();
    register.answer(Reply::Status(
        hyper::StatusCode::UNAUTHORIZED,
        "no such authkey",
    ));
    assert!(matches!(last(steps).await, Progress::Failed(_)));
    let prefs = agent.ask(|reply| Ask::Prefs { reply }).await;
    assert_eq!(prefs["RouteAll"], true);
    agent.end().await;
    let agent = Agent::start(&dir);
    let prefs = agent.ask(|reply| Ask::Prefs { reply }).await;
    assert_eq!(prefs["RouteAll"], true);
    agent.end().await;
}

#[tokio::test]
async fn what_an_up_changes_is_not_saved_by_a_set_while_it_waits() {
    let dir = tempfile::tempdir().unwrap();
    let (mut first, mut second) = (TestServer::start(7).await, TestServer::start(8).await);
    let (agent, _stream) = connected(&dir, &mut first).await;
    let _steps = agent.up(forced(&second.url)).await;
    let _unanswered = expect_register(&mut second).await;
    let change = Change {
        shields_up: Some(true),
        ..Change::default()
    };
    agent.ask(|reply| Ask::Set { change, reply }).await.unwrap();
    agent.end().await;
    let agent = Agent::start(&dir);
    assert_eq!(control_url(&agent).await, json!(first.url));
    agent.end().await;
}

#[tokio::test]
async fn an_up_that_waits_already_goes_back_to_the_first_server_with_a_login_elsewhere() {
    let dir = tempfile::tempdir().unwrap();
    let (mut first, mut second) = (TestServer::start(7).await, TestServer::start(8).await);
    let (agent, stream) = connected(&dir, &mut first).await;
    let known = own_key(&agent).await;
    drop(stream);
    expect_register_anew(&mut first)
        .await
        .json(json!({"AuthURL": "http://page/1"}));
    let _followup = expect_register(&mut first).await;
    let at_the_page = UpRequest {
        auth_key: None,
        ..request(&first.url)
    };
    let waits = agent.up(at_the_page).await;
    let elsewhere = agent.up(forced(&second.url)).await;
    let _unanswered = expect_register(&mut second).await;
    drop((waits, elsewhere));
    let back = expect_register(&mut first).await;
    assert_eq!(back.body["NodeKey"], known);
    assert_eq!(control_url(&agent).await, json!(first.url));
    agent.end().await;
}
