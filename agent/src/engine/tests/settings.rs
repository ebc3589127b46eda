//! Preferences, and the end of an identity.

use super::*;

#[tokio::test]
async fn preferences_set_while_running_take_effect_at_once() {
    let (dir, mut server) = (tempfile::tempdir().unwrap(), TestServer::start(7).await);
    let (agent, _stream) = connected(&dir, &mut server).await;
    let change = Change {
        shields_up: Some(true),
        ..Change::default()
    };
    agent.ask(|reply| Ask::Set { change, reply }).await.unwrap();
    let report = server.expect("/machine/map").await;
    assert_eq!(report.body["Hostinfo"]["ShieldsUp"], true);
    report.json(json!({}));
    let refused = Change {
        advertise_exit_node: Some(true),
        ..Change::default()
    };
    assert!(
        agent
            .ask(|reply| Ask::Set {
                change: refused,
                reply
            })
            .await
            .unwrap_err()
            .starts_with("--advertise-exit-node is refused")
    );
    agent.end().await;
}

#[tokio::test]
async fn status_says_that_accept_dns_changes_nothing_as_long_as_it_is_on() {
    let dir = tempfile::tempdir().unwrap();
    let agent = Agent::start(&dir);
    let lines = |status: Status| {
        let of_dns = |line: &&String| line.contains("--accept-dns changes nothing yet");
        status.health.iter().filter(of_dns).count()
    };
    assert_eq!(lines(agent.status().await), 1, "it is on by default");
    let change = Change {
        corp_dns: Some(false),
        ..Change::default()
    };
    agent.ask(|reply| Ask::Set { change, reply }).await.unwrap();
    assert_eq!(lines(agent.status().await), 0);
    agent.end().await;
}

#[tokio::test]
async fn status_shows_the_dns_records_and_names_of_certificates_that_the_server_tells() {
    let (dir, mut server) = (tempfile::tempdir().unwrap(), TestServer::start(7).await);
    let (agent, stream) = connected(&dir, &mut server).await;
    let shown = async || {
        let status = agent.status().await;
        (status.cert_domains, status.extra_records)
    };
    assert_eq!(shown().await, (None, None));
    let record = json!({"Name": "wiki.lab", "Type": "A", "Value": "192.0.2.1"});
    let some = json!({"CertDomains": ["gate.lab"], "ExtraRecords": [record]});
    let wanted = (Some(vec!["gate.lab".to_owned()]), Some(vec![record]));
    for (config, wanted) in [(some, wanted), (json!({}), (None, None))] {
        stream.send(json!({"DNSConfig": config})).await.unwrap();
        let seen = async { while shown().await != wanted {} };
        timeout(PATIENCE, seen).await.expect("status shows them");
    }
    agent.end().await;
}

#[tokio::test]
async fn no_way_of_setting_it_changes_the_server_of_a_registered_node() {
    let (dir, mut server) = (tempfile::tempdir().unwrap(), TestServer::start(7).await);
    let (agent, _stream) = connected(&dir, &mut server).await;
    agent.ask(|reply| Ask::Down { reply }).await.unwrap();
    let elsewhere = || Change {
        control_url: Some("http://192.0.2.1".to_owned()),
        ..Change::default()
    };
    for want_running in [None, Some(true), Some(false)] {
        let change = Change {
            want_running,
            ..elsewhere()
        };
        let why = agent.ask(|reply| Ask::Set { change, reply }).await;
        let why = why.unwrap_err();
        assert!(why.contains("can't change --login-server"), "{why}");
    }
    let change = elsewhere();
    let started = agent
        .ask(|reply| Ask::Start {
            auth_key: None,
            change,
            reply,
        })
        .await;
    assert!(started.is_err());
    let prefs = agent.ask(|reply| Ask::Prefs { reply }).await;
    assert_eq!(
        (&prefs["ControlURL"], &prefs["WantRunning"]),
        (&json!(server.url), &json!(false))
    );
    agent.end().await;
}

#[tokio::test]
async fn a_logout_that_the_server_never_answers_holds_up_nobody() {
    let (dir, mut server) = (tempfile::tempdir().unwrap(), TestServer::start(7).await);
    let (agent, _stream) = connected(&dir, &mut server).await;
    let (reply, mut answer) = oneshot::channel();
    agent.asks.send(Ask::Logout { reply }).await.unwrap();
    let _unanswered = expect_register(&mut server).await;
    let asked = Instant::now();
    let status = agent.status().await;
    assert_eq!(status.backend_state, BackendState::NeedsLogin);
    assert!(agent.kernel().is_torn_down());
    assert!(asked.elapsed() < Duration::from_secs(5), "the loop waits");
    assert!(answer.try_recv().is_err(), "the server hasn't answered");
    agent.end().await;
}

#[tokio::test]
async fn a_logout_after_an_interrupted_up_goes_to_the_server_that_knows_the_node() {
    let (dir, mut server) = (tempfile::tempdir().unwrap(), TestServer::start(7).await);
    let agent = Agent::start(&dir);
    let steps = agent.up(request(&server.url)).await;
    let register = expect_register(&mut server).await;
    register.json(json!({"MachineAuthorized": true}));
    let _unanswered = server.expect("/machine/map").await;
    drop(steps);
    let is_back = async || {
        let prefs = agent.ask(|reply| Ask::Prefs { reply }).await;
        prefs["ControlURL"] != json!(server.url)
    };
    let until = Instant::now() + Duration::from_secs(20);
    while !is_back().await {
        assert!(Instant::now() < until, "the interrupted `up` is not undone");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let (reply, answer) = oneshot::channel();
    agent.asks.send(Ask::Logout { reply }).await.unwrap();
    expect_register(&mut server).await.json(json!({}));
    assert_eq!(answer.await.unwrap(), Ok(()));
    agent.end().await;
}
