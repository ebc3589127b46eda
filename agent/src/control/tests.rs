mod auth_key;
pub(crate) mod server;
mod silent;

use std::sync::Arc;

use hyper::StatusCode;
use lowroad_wire::key::{DiscoPrivate, NodePublic};
use serde_json::{Value, json};
use tokio::{io::AsyncWriteExt, net::TcpListener, time::timeout};

use self::server::{Reply, TestServer};
use super::*;

fn options(url: &str) -> ControlOptions {
    ControlOptions {
        url: url.to_owned(),
        machine: MachinePrivate::from_random([1; 32]),
        node: None,
        old_node: None,
        accepted: false,
        left: Vec::new(),
        disco: DiscoPrivate::from_random([2; 32]).public(),
        auth_key: Some(AuthKey::new("hskey-auth-test".into())),
        force_reauth: false,
        known_server: None,
        fwmark: 0,
        tls: no_roots(),
    }
}

fn no_roots() -> Arc<rustls::ClientConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap();
    Arc::new(
        config
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth(),
    )
}

struct Client {
    control: Control,
    events: mpsc::Receiver<ControlEvent>,
}

impl Client {
    /// Keeps every node key, and its events until they are asked for.
    fn start(options: ControlOptions) -> Self {
        let (control, mut received) = Control::start(options, Facts::default());
        let (sender, events) = mpsc::channel(EVENT_QUEUE);
        tokio::spawn(async move {
            while let Some(event) = received.recv().await {
                if sender.send(keep(event)).await.is_err() {
                    break;
                }
            }
        });
        Self { control, events }
    }

    async fn next(&mut self) -> ControlEvent {
        timeout(Duration::from_secs(20), self.events.recv())
            .await
            .expect("no event came")
            .expect("the client ended")
    }

    /// Skips events until one fits.
    async fn until<T>(&mut self, mut fits: impl FnMut(ControlEvent) -> Option<T>) -> T {
        loop {
            if let Some(found) = fits(self.next().await) {
                return found;
            }
        }
    }

    async fn failed(&mut self) -> ControlError {
        self.until(|event| match event {
            ControlEvent::Failed(why) => Some(why),
            _ => None,
        })
        .await
    }

    async fn lost(&mut self) -> ControlError {
        self.until(|event| match event {
            ControlEvent::Lost { why, .. } => Some(why),
            _ => None,
        })
        .await
    }
}

fn keep(event: ControlEvent) -> ControlEvent {
    match event {
        ControlEvent::NodeKey { node, old, kept } => {
            kept.send(()).expect("the client waits for it");
            let (kept, _) = oneshot::channel();
            ControlEvent::NodeKey { node, old, kept }
        }
        event => event,
    }
}

fn accepted() -> Value {
    json!({"User": {"ID": 1}, "Login": {"ID": 1, "LoginName": "lab"}, "NodeKeyExpired": false, "MachineAuthorized": true, "AuthURL": "", "Error": ""})
}

fn self_node(key: &str) -> Value {
    json!({"ID": 1, "StableID": "1", "Name": "a.tail.lab.", "Key": key, "Addresses": ["100.64.0.1/32"], "MachineAuthorized": true})
}

/// Answers reports until the poll comes, and returns it.
async fn poll(server: &mut TestServer) -> server::Call {
    loop {
        let call = server.expect("/machine/map").await;
        if call.body["Stream"] == true {
            return call;
        }
        call.json(json!({}));
    }
}

#[tokio::test]
async fn a_node_registers_polls_and_its_reports_are_acknowledged() {
    let mut server = TestServer::start(7).await;
    let mut client = Client::start(options(&server.url));
    assert!(matches!(client.next().await, ControlEvent::ServerKey(_)));
    let ControlEvent::NodeKey {
        node, old: None, ..
    } = client.next().await
    else {
        panic!("the new key is to be kept first")
    };
    let register = server.expect("/machine/register").await;
    assert_eq!(
        register.machine,
        MachinePrivate::from_random([1; 32]).public()
    );
    assert_eq!(register.body["NodeKey"], node.public().to_string());
    assert_eq!(register.body["Auth"]["AuthKey"], "hskey-auth-test");
    register.json(accepted());
    assert!(matches!(client.next().await, ControlEvent::Registered(_)));
    let map = poll(&mut server).await;
    assert_eq!(
        (&map.body["Compress"], &map.body["KeepAlive"]),
        (&json!("zstd"), &json!(true))
    );
    let stream = map.stream();
    stream.send(json!({"KeepAlive": true})).await.unwrap();
    stream
        .send(json!({"Node": self_node(&node.public().to_string())}))
        .await
        .unwrap();
    client
        .until(|event| matches!(event, ControlEvent::Map { .. }).then_some(()))
        .await;

    let endpoint = "192.0.2.1:41641".parse().unwrap();
    client.control.report(Facts {
        generation: 5,
        endpoints: vec![(endpoint, EndpointType::STUN)],
        ..Facts::default()
    });
    loop {
        let report = server.expect("/machine/map").await;
        assert_eq!(report.body["OmitPeers"], true);
        let newest = report.body["Endpoints"] == json!(["192.0.2.1:41641"]);
        report.json(json!({}));
        if newest {
            break;
        }
    }
    client
        .until(|event| matches!(event, ControlEvent::Acknowledged(5)).then_some(()))
        .await;
}

#[tokio::test]
async fn an_expired_key_is_replaced_once_and_the_old_one_named() {
    let mut server = TestServer::start(7).await;
    let saved = NodePrivate::from_random([3; 32]);
    let mut client = Client::start(ControlOptions {
        node: Some(saved.clone()),
        ..options(&server.url)
    });
    let first = server.expect("/machine/register").await;
    assert_eq!(first.body["NodeKey"], saved.public().to_string());
    first.json(json!({"NodeKeyExpired": true}));
    let second = server.expect("/machine/register").await;
    assert_eq!(second.body["OldNodeKey"], saved.public().to_string());
    assert_ne!(second.body["NodeKey"], first_key(&saved));
    second.json(json!({"NodeKeyExpired": true}));
    assert!(matches!(client.failed().await, ControlError::KeyExpired));
}

#[tokio::test]
async fn a_key_that_is_not_kept_is_not_sent() {
    let mut server = TestServer::start(7).await;
    let (_control, mut events) = Control::start(options(&server.url), Facts::default());
    let mut next = async || {
        timeout(Duration::from_secs(20), events.recv())
            .await
            .expect("it tells or ends")
    };
    let kept = loop {
        let event = next().await.expect("the client runs");
        if let ControlEvent::NodeKey { kept, .. } = event {
            break kept;
        }
    };
    drop(kept);
    assert!(next().await.is_none(), "the client ends");
    assert!(server.asked().is_none());
}

#[tokio::test]
async fn a_server_that_does_not_know_the_key_is_asked_about_those_that_were_left() {
    let key = |n| NodePrivate::from_random([n; 32]);
    for answer in [
        json!({"AuthURL": "http://page/1"}),
        json!({"NodeKeyExpired": true}),
    ] {
        let mut server = TestServer::start(7).await;
        let mut client = Client::start(ControlOptions {
            node: Some(key(3)),
            left: vec![key(4), key(5), key(6), key(7)],
            auth_key: None,
            ..options(&server.url)
        });
        let answers = [
            answer,
            json!({"AuthURL": "http://page/2"}),
            json!({"Error": "no"}),
            accepted(),
        ];
        for (n, answer) in (3..).zip(answers) {
            let register = server.expect("/machine/register").await;
            assert_eq!(register.body["NodeKey"], first_key(&key(n)));
            register.json(answer);
        }
        let found = |event| match event {
            ControlEvent::NodeKey {
                node, old: None, ..
            } => Some(node),
            ControlEvent::Visit(url) => panic!("nobody has to visit {url}"),
            _ => None,
        };
        assert_eq!(client.until(found).await, key(6));
        assert_eq!(poll(&mut server).await.body["NodeKey"], first_key(&key(6)));
    }
}

#[tokio::test]
async fn a_server_that_does_not_say_whether_it_knows_a_left_key_still_has_its_page_shown() {
    for status in [
        StatusCode::TOO_MANY_REQUESTS,
        StatusCode::INTERNAL_SERVER_ERROR,
    ] {
        let mut server = TestServer::start(7).await;
        let mut client = Client::start(ControlOptions {
            node: Some(NodePrivate::from_random([3; 32])),
            left: vec![
                NodePrivate::from_random([4; 32]),
                NodePrivate::from_random([5; 32]),
            ],
            auth_key: None,
            ..options(&server.url)
        });
        let first = server.expect("/machine/register").await;
        let key = first.body["NodeKey"].clone();
        first.json(json!({"AuthURL": "http://page/1"}));
        let left = server.expect("/machine/register").await;
        left.answer(Reply::Status(status, "busy"));
        let url = client
            .until(|event| match event {
                ControlEvent::Visit(url) => Some(url),
                ControlEvent::Lost { why, .. } => panic!("{why}"),
                _ => None,
            })
            .await;
        assert_eq!(url, "http://page/1");
        let followup = server.expect("/machine/register").await;
        assert_eq!(followup.body["NodeKey"], key);
    }
}

#[tokio::test]
async fn a_connection_that_a_left_key_breaks_goes_on_to_the_next_and_then_to_the_page() {
    let key = |n| NodePrivate::from_random([n; 32]);
    let mut server = TestServer::start(7).await;
    let mut client = Client::start(ControlOptions {
        node: Some(key(3)),
        left: vec![key(4), key(5)],
        auth_key: None,
        ..options(&server.url)
    });
    for left in [4, 5] {
        let first = server.expect("/machine/register").await;
        assert_eq!(first.body["NodeKey"], first_key(&key(3)));
        first.json(json!({"AuthURL": "http://page/1"}));
        let tried = server.expect("/machine/register").await;
        assert_eq!(tried.body["NodeKey"], first_key(&key(left)));
        tried.answer(Reply::Broken);
        client.lost().await;
    }
    let first = server.expect("/machine/register").await;
    first.json(json!({"AuthURL": "http://page/1"}));
    let shown = |event| matches!(event, ControlEvent::Visit(_)).then_some(());
    client.until(shown).await;
}

fn first_key(key: &NodePrivate) -> Value {
    json!(key.public().to_string())
}

#[tokio::test]
async fn a_login_by_a_page_waits_with_the_same_key_until_somebody_has_visited_it() {
    let mut server = TestServer::start(7).await;
    let mut client = Client::start(ControlOptions {
        auth_key: None,
        ..options(&server.url)
    });
    let first = server.expect("/machine/register").await;
    let key: NodePublic = first.body["NodeKey"].as_str().unwrap().parse().unwrap();
    first.json(json!({"AuthURL": "http://page/1"}));
    let url = client
        .until(|event| {
            if let ControlEvent::Visit(url) = event {
                Some(url)
            } else {
                None
            }
        })
        .await;
    assert_eq!(url, "http://page/1");
    let second = server.expect("/machine/register").await;
    assert_eq!(second.body["Followup"], "http://page/1");
    assert_eq!(second.body["NodeKey"], key.to_string());
    second.json(accepted());
    client
        .until(|event| matches!(event, ControlEvent::Registered(_)).then_some(()))
        .await;
}

#[tokio::test]
async fn a_refused_auth_key_ends_the_client_with_the_servers_words() {
    let mut server = TestServer::start(7).await;
    let mut client = Client::start(options(&server.url));
    server
        .expect("/machine/register")
        .await
        .answer(Reply::Status(StatusCode::UNAUTHORIZED, "authkey expired"));
    let text = client.failed().await.to_string();
    assert!(
        text.contains("authkey expired") && text.contains("check --auth-key"),
        "{text}"
    );
    assert!(!text.contains("hskey-auth-test"));
}

#[tokio::test]
async fn a_server_that_forgets_the_node_is_asked_to_register_it_again() {
    let mut server = TestServer::start(7).await;
    let mut client = Client::start(options(&server.url));
    server.expect("/machine/register").await.json(accepted());
    loop {
        let call = server.call().await;
        match call.path.as_str() {
            "/machine/map" => call.answer(Reply::Status(StatusCode::NOT_FOUND, "node not found")),
            _ => break call.json(json!({"Error": "the node was deleted"})),
        }
    }
    assert!(
        matches!(client.failed().await, ControlError::Refused(text) if text.contains("deleted"))
    );
}

#[tokio::test]
async fn a_connection_that_breaks_is_made_again_without_registering() {
    let mut server = TestServer::start(7).await;
    let mut client = Client::start(options(&server.url));
    server.expect("/machine/register").await.json(accepted());
    let stream = poll(&mut server).await.stream();
    drop(stream);
    assert!(matches!(client.lost().await, ControlError::Closed));
    let stream = poll(&mut server).await.stream();
    stream
        .send(json!({"Node": self_node(&NodePrivate::from_random([3; 32]).public().to_string())}))
        .await
        .unwrap();
    client
        .until(|event| matches!(event, ControlEvent::Map { .. }).then_some(()))
        .await;
}

#[tokio::test]
async fn a_server_whose_key_has_changed_is_not_trusted() {
    let server = TestServer::start(7).await;
    let known = MachinePrivate::from_random([8; 32]).public();
    let mut client = Client::start(ControlOptions {
        known_server: Some(known),
        ..options(&server.url)
    });
    let why = client.lost().await;
    assert!(
        why.ends_up() && why.to_string().contains("--accept-server-key"),
        "{why}"
    );
}

#[tokio::test]
async fn an_unreachable_server_and_one_that_is_none_say_so() {
    let port = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let mut client = Client::start(options(&format!("http://127.0.0.1:{port}")));
    let text = client.lost().await.to_string();
    assert!(text.contains("connection refused"), "{text}");

    let web = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", web.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = web.accept().await {
            let _ = stream
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
                .await;
        }
    });
    let why = Client::start(options(&url)).lost().await;
    assert!(
        why.ends_up()
            && why
                .to_string()
                .contains("is not a tailnet coordination server"),
        "{why}"
    );

    let why = Client::start(options("http://no-such-host.invalid"))
        .lost()
        .await
        .to_string();
    assert!(why.contains("no-such-host.invalid"), "{why}");
}

#[tokio::test]
async fn pings_of_a_hostile_server_are_answered_a_few_at_a_time() {
    let mut server = TestServer::start(7).await;
    let mut client = Client::start(options(&server.url));
    server.expect("/machine/register").await.json(accepted());
    let stream = poll(&mut server).await.stream();
    for n in 0..20 {
        let ping = json!({"URL": format!("http://x/ping/{n}"), "URLIsNoise": true});
        stream
            .send(json!({"Node": self_node(&format!("nodekey:{:064x}", 1)), "PingRequest": ping}))
            .await
            .unwrap();
    }
    let mut maps = 0;
    client
        .until(|event| {
            maps += usize::from(matches!(event, ControlEvent::Map { .. }));
            (maps == 20).then_some(())
        })
        .await;
    let mut asked = Vec::new();
    while asked.len() < MAX_PINGS {
        let call = server.call().await;
        match call.path.starts_with("/ping/") {
            true => asked.push(call),
            false => call.json(json!({})),
        }
    }
    // Another report comes behind whatever else was asked for.
    client.control.report(Facts {
        generation: 9,
        ..Facts::default()
    });
    let call = server.expect("/machine/map").await;
    call.json(json!({}));
}
