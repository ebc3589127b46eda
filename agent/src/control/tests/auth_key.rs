//! An auth key that may be good for one login only, and a node that may need none.

use super::*;
use crate::localapi::UpRequest;

/// A client with a node key that the server has accepted before.
fn known(server: &TestServer) -> (NodePrivate, Client) {
    let node = NodePrivate::from_random([3; 32]);
    let client = Client::start(ControlOptions {
        node: Some(node.clone()),
        accepted: true,
        ..options(&server.url)
    });
    (node, client)
}

#[tokio::test]
async fn a_server_that_still_accepts_the_node_key_is_sent_no_auth_key() {
    let mut server = TestServer::start(7).await;
    let (node, _client) = known(&server);
    let register = server.expect("/machine/register").await;
    assert_eq!(register.body["NodeKey"], first_key(&node));
    assert!(register.body["Auth"].is_null(), "{}", register.body);
    register.json(accepted());
    assert_eq!(poll(&mut server).await.body["NodeKey"], first_key(&node));
}

#[tokio::test]
async fn a_server_that_wants_a_login_is_sent_the_auth_key_with_a_new_node_key() {
    for answer in [
        json!({"AuthURL": "http://page/1"}),
        json!({"NodeKeyExpired": true}),
    ] {
        let mut server = TestServer::start(7).await;
        let (node, mut client) = known(&server);
        server.expect("/machine/register").await.json(answer);
        let login = server.expect("/machine/register").await;
        assert_eq!(login.body["Auth"]["AuthKey"], "hskey-auth-test");
        assert_eq!(login.body["OldNodeKey"], first_key(&node));
        assert_ne!(login.body["NodeKey"], first_key(&node));
        login.json(accepted());
        let done = |event| match event {
            ControlEvent::Visit(url) => panic!("nobody has to visit {url}"),
            ControlEvent::Registered(_) => Some(()),
            _ => None,
        };
        client.until(done).await;
    }
}

#[tokio::test]
async fn with_an_empty_auth_key_the_page_is_shown_and_the_node_key_stays() {
    let mut server = TestServer::start(7).await;
    let up: UpRequest = serde_json::from_value(json!({"auth_key": ""})).unwrap();
    let node = NodePrivate::from_random([3; 32]);
    let mut client = Client::start(ControlOptions {
        node: Some(node.clone()),
        accepted: true,
        auth_key: up.auth_key,
        ..options(&server.url)
    });
    let first = server.expect("/machine/register").await;
    assert!(first.body["Auth"].is_null(), "{}", first.body);
    first.json(json!({"AuthURL": "http://page/1"}));
    let shown = |event| match event {
        ControlEvent::NodeKey { .. } => panic!("a new node key"),
        ControlEvent::Visit(url) => Some(url),
        _ => None,
    };
    assert_eq!(client.until(shown).await, "http://page/1");
    let followup = server.expect("/machine/register").await;
    assert_eq!(followup.body["NodeKey"], first_key(&node));
    assert_eq!(followup.body["Followup"], "http://page/1");
}
