//! Restarts while the server is away.

use std::fs;

use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::*;
use crate::kernel::KernelChange;

/// An agent that is up and has kept its netmap, and what it gets from the server.
async fn runs(dir: &TempDir, server: &mut TestServer) -> (Agent, mpsc::Sender<serde_json::Value>) {
    let running = connected(dir, server).await;
    until(|| file(dir).exists()).await;
    running
}

/// An agent was up and has ended; returns what the kernel holds.
async fn ran_before(dir: &TempDir, server: &mut TestServer) -> Observed {
    let (agent, _stream) = runs(dir, server).await;
    let left = agent.kernel().observed();
    agent.end().await;
    left
}

/// An agent was up, and the own key has expired since then; returns what the kernel holds.
async fn ran_until_its_key_expired(dir: &TempDir, server: &mut TestServer) -> Observed {
    let (agent, stream) = runs(dir, server).await;
    let left = agent.kernel().observed();
    let key = agent.status().await.self_node.unwrap().public_key;
    // Only the file gets to know it: the kernel of the next agent holds what was there before.
    let own = json!({"ID": 1, "StableID": "n1", "Name": "gate.tail.lab.", "Key": key, "Addresses": ["100.64.0.1/32"], "MachineAuthorized": true, "KeyExpiry": "2020-01-02T03:04:05Z"});
    stream.send(json!({ "Node": own })).await.unwrap();
    let kept = || fs::read_to_string(file(dir)).is_ok_and(|text| text.contains("2020-01-02"));
    until(kept).await;
    agent.end().await;
    left
}

/// On a kernel that holds this and lets nothing be changed.
fn start_refused(dir: &TempDir, left: Observed) -> Agent {
    Agent::start_with(dir, move |kernel| {
        kernel.change(|observed| *observed = left.clone());
        kernel.fail_steps(|_| true);
    })
}

async fn until_without_peers(kernel: &FakeHandle) {
    let has_none = || {
        let device = kernel.observed().device;
        device.is_some_and(|device| device.peers.is_empty())
    };
    until(has_none).await;
}

fn file(dir: &TempDir) -> std::path::PathBuf {
    dir.path().join("netmap.cache")
}

#[tokio::test]
async fn an_agent_that_starts_while_the_server_is_away_goes_on_with_what_it_knew() {
    let (dir, mut server) = (tempfile::tempdir().unwrap(), TestServer::start(7).await);
    let left = ran_before(&dir, &mut server).await;

    let again = Agent::start_on(&dir, left);
    until_running(&again).await;
    let steps = again.kernel().take_steps();
    assert!(steps.is_empty(), "all of it was there: {steps:?}");
    assert_eq!(
        again.kernel().installed().len(),
        1,
        "the policy is made sure of"
    );
    let status = again.status().await;
    assert_eq!(status.peer.unwrap().len(), 1);
    let own = &status.lowroad;
    assert!(own.cached_netmap.is_some() && own.adopted_ms.is_some());
    assert!(own.waiting_for.contains("the login server"), "{own:?}");
    assert!(file(&dir).exists());
    let told = |line: &String| line.contains("it runs on the netmap of 0 min ago");
    assert!(status.health.iter().any(told), "{:?}", status.health);

    let call = expect_register(&mut server).await;
    call.json(json!({"MachineAuthorized": true}));
    let _stream = admit(&mut server).await;
    let by_server = async {
        while again.status().await.lowroad.cached_netmap.is_some() {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, by_server)
        .await
        .expect("the server's netmap");
    again.end().await;
}

#[tokio::test]
async fn what_concerns_no_kernel_is_kept_as_soon_as_what_does() {
    let (dir, mut server) = (tempfile::tempdir().unwrap(), TestServer::start(7).await);
    let (agent, stream) = runs(&dir, &mut server).await;
    stream.send(json!({"Domain": "renamed"})).await.unwrap();
    until(|| fs::read_to_string(file(&dir)).is_ok_and(|text| text.contains("renamed"))).await;
    agent.end().await;
}

#[tokio::test]
async fn the_clock_that_a_keep_alive_tells_is_kept() {
    let (dir, mut server) = (tempfile::tempdir().unwrap(), TestServer::start(7).await);
    let (agent, stream) = runs(&dir, &mut server).await;
    let kept = || fs::read_to_string(file(&dir)).unwrap();
    assert!(kept().contains(r#""clock_offset":null"#));
    let keep_alive = json!({"KeepAlive": true, "ControlTime": "2020-01-01T00:00:00Z"});
    stream.send(keep_alive).await.unwrap();
    until(|| kept().contains(r#""clock_offset":-"#)).await;
    agent.end().await;
}

#[tokio::test]
async fn without_a_kernel_device_the_kept_netmap_makes_one() {
    let (dir, mut server) = (tempfile::tempdir().unwrap(), TestServer::start(7).await);
    ran_before(&dir, &mut server).await;
    let again = Agent::start(&dir);
    until_running(&again).await;
    let device = again.kernel().observed().device.unwrap();
    assert!(device.up && device.filter_attached && device.peers.len() == 1);
    again.end().await;
}

#[tokio::test]
async fn an_agent_whose_own_key_has_expired_since_drops_the_peers_that_it_finds() {
    let (dir, mut server) = (tempfile::tempdir().unwrap(), TestServer::start(7).await);
    let left = ran_until_its_key_expired(&dir, &mut server).await;
    assert_eq!(left.device.as_ref().unwrap().peers.len(), 1);

    let again = Agent::start_on(&dir, left);
    let _unanswered = expect_register(&mut server).await;
    let kernel = again.kernel();
    until_without_peers(&kernel).await;
    until(|| {
        let installed = kernel.installed();
        installed.last().is_some_and(|last| last.rules.is_empty())
    })
    .await;
    assert!(!kernel.is_torn_down());
    until(|| !file(&dir).exists()).await;
    again.end().await;
}

#[tokio::test]
async fn that_the_own_key_has_expired_is_kept_until_the_peers_are_gone() {
    let (dir, mut server) = (tempfile::tempdir().unwrap(), TestServer::start(7).await);
    let left = ran_until_its_key_expired(&dir, &mut server).await;

    // This one ends before it has dropped them.
    let refusing = start_refused(&dir, left);
    let expired = expect_register(&mut server).await;
    let kernel = refusing.kernel();
    until(|| !kernel.take_steps().is_empty()).await;
    let status = refusing.status().await;
    assert_eq!(status.backend_state, BackendState::NeedsLogin);
    let told = |line: &String| line.starts_with("this node's key has expired");
    assert!(status.health.iter().any(told), "{:?}", status.health);
    assert!(file(&dir).exists());
    refusing.end().await;
    drop(expired);
    let left = kernel.observed();
    assert_eq!(left.device.as_ref().unwrap().peers.len(), 1);

    let again = Agent::start_on(&dir, left);
    let _unanswered = expect_register(&mut server).await;
    let kernel = again.kernel();
    until_without_peers(&kernel).await;
    until(|| !file(&dir).exists()).await;
    again.end().await;
}

/// Whatever the server says meanwhile.
#[tokio::test]
async fn the_peers_of_a_key_that_has_expired_go_as_soon_as_the_kernel_lets_them() {
    for answer in [
        json!({"NodeKeyExpired": true}),
        json!({"AuthURL": "http://page/1"}),
    ] {
        let (dir, mut server) = (tempfile::tempdir().unwrap(), TestServer::start(7).await);
        let left = ran_until_its_key_expired(&dir, &mut server).await;
        let agent = start_refused(&dir, left);
        let register = expect_register(&mut server).await;
        let kernel = agent.kernel();
        until(|| !kernel.take_steps().is_empty()).await;
        let visit = answer.get("AuthURL").is_some();
        register.json(answer);
        let _unanswered = expect_register(&mut server).await;
        while visit && agent.status().await.auth_url.is_empty() {
            tokio::task::yield_now().await;
        }
        assert!(file(&dir).exists());
        assert_eq!(kernel.observed().device.unwrap().peers.len(), 1);
        kernel.heal();
        until_without_peers(&kernel).await;
        until(|| !file(&dir).exists()).await;
        agent.end().await;
    }
}

#[tokio::test]
async fn a_key_that_ends_while_the_server_is_away_takes_the_peers_with_it() {
    let (dir, mut server) = (tempfile::tempdir().unwrap(), TestServer::start(7).await);
    let (agent, stream) = runs(&dir, &mut server).await;
    let left = agent.kernel().observed();
    let key = agent.status().await.self_node.unwrap().public_key;
    let end = OffsetDateTime::now_utc() + Duration::from_secs(4);
    let end = end.format(&Rfc3339).unwrap();
    let own = json!({"ID": 1, "StableID": "n1", "Name": "gate.tail.lab.", "Key": key, "Addresses": ["100.64.0.1/32"], "MachineAuthorized": true, "KeyExpiry": end});
    stream.send(json!({ "Node": own })).await.unwrap();
    until(|| fs::read_to_string(file(&dir)).is_ok_and(|text| text.contains(&end))).await;
    agent.end().await;

    // If it starts so late that the key has ended by then, that is the other test.
    let again = Agent::start_on(&dir, left);
    let _unanswered = expect_register(&mut server).await;
    let kernel = again.kernel();
    let ended = async {
        while again.status().await.backend_state != BackendState::NeedsLogin {
            kernel.changes.send(KernelChange::Rules).await.unwrap();
        }
    };
    timeout(PATIENCE, ended).await.expect("the end is noticed");
    until_without_peers(&kernel).await;
    until(|| !file(&dir).exists()).await;
    assert!(again.status().await.lowroad.cached_netmap.is_none());
    again.end().await;
}

#[tokio::test]
async fn without_a_device_of_an_earlier_agent_a_key_that_has_expired_makes_none() {
    let (dir, mut server) = (tempfile::tempdir().unwrap(), TestServer::start(7).await);
    ran_until_its_key_expired(&dir, &mut server).await;
    let again = Agent::start(&dir);
    let _unanswered = expect_register(&mut server).await;
    assert_eq!(again.status().await.backend_state, BackendState::NeedsLogin);
    assert!(again.kernel().observed().device.is_none());
    until(|| !file(&dir).exists()).await;
    again.end().await;
}

#[tokio::test]
async fn a_damaged_kept_netmap_keeps_no_agent_from_starting() {
    let (dir, mut server) = (tempfile::tempdir().unwrap(), TestServer::start(7).await);
    ran_before(&dir, &mut server).await;
    let text = fs::read_to_string(file(&dir)).unwrap();
    assert!(!text.contains("privkey"), "no private key is in it");
    fs::write(file(&dir), text.replace("p2.tail.lab", "p3.tail.lab")).unwrap();
    let again = Agent::start(&dir);
    let register = expect_register(&mut server).await;
    assert_eq!(again.status().await.backend_state, BackendState::Starting);
    assert!(!file(&dir).exists());
    register.json(json!({"MachineAuthorized": true}));
    let _stream = admit(&mut server).await;
    until_running(&again).await;
    again.end().await;
}

#[tokio::test]
async fn down_and_logout_leave_no_netmap() {
    for logout in [false, true] {
        let (dir, mut server) = (tempfile::tempdir().unwrap(), TestServer::start(7).await);
        let (agent, _stream) = runs(&dir, &mut server).await;
        if logout {
            let (reply, _answer) = oneshot::channel();
            agent.asks.send(Ask::Logout { reply }).await.unwrap();
            until(|| !file(&dir).exists()).await;
        } else {
            agent.ask(|reply| Ask::Down { reply }).await.unwrap();
            assert!(!file(&dir).exists());
        }
        agent.end().await;
        assert!(!file(&dir).exists());
    }
}

#[tokio::test]
async fn a_node_that_is_refused_while_it_runs_on_a_kept_netmap_loses_it() {
    let (dir, mut server) = (tempfile::tempdir().unwrap(), TestServer::start(7).await);
    ran_before(&dir, &mut server).await;
    let again = Agent::start(&dir);
    until_running(&again).await;
    let refused = expect_register(&mut server).await;
    refused.json(json!({"AuthURL": "http://page/1"}));
    until(|| {
        let device = again.kernel().observed().device;
        device.is_some_and(|device| device.peers.is_empty())
    })
    .await;
    assert!(!file(&dir).exists());

    // Registered again it has no netmap before the server sends one.
    let approved = expect_register(&mut server).await;
    approved.json(json!({"MachineAuthorized": true}));
    let poll = loop {
        let call = server.call().await;
        match call.body["Stream"] == true {
            true => break call,
            false => call.json(json!({})),
        }
    };
    let own = again.status().await.lowroad;
    assert_eq!(own.waiting_for, "the netmap");
    drop(poll);
    again.end().await;
}
