//! What strangers may send, and what must not come of it.

use std::time::Instant;

use hyper::StatusCode;
use lowroad_coordinator::admin::api::Ask;
use lowroad_wire::{framing::Compression, noise::RESPONSE_LEN};
use serde_json::json;
use tokio::io::AsyncReadExt as _;

use crate::{
    client::{Client, SOON, get, raw, upgraded},
    lab::Lab,
};

#[tokio::test]
async fn malformed_bodies_are_refused_and_the_channel_goes_on() {
    let lab = Lab::new().await;
    let mut a = Client::joined(lab.address(), "a", &lab.key().await).await;
    for body in [
        &b""[..],
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"{\"Version\":\"x\"}",
        b"{\"Version\":130,\"NodeKey\":\"nodekey:zz\"}",
    ] {
        for path in ["/machine/register", "/machine/map"] {
            let (status, _) = a.post_bytes(path, body.to_vec()).await;
            assert!(status.is_client_error(), "{path} {body:?}: {status}");
        }
    }
    let (status, _) = a
        .post("/machine/register", &json!({ "Version": 130 }))
        .await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    a.poll().await.until("a netmap", |_| true).await;
}

#[tokio::test]
async fn a_body_of_too_many_parts_is_refused_before_it_is_read() {
    let lab = Lab::new().await;
    let mut a = Client::new(lab.address(), "a").await;
    let parts = vec!["{\"\":0}"; 6_000].join(",");
    for path in ["/machine/register", "/machine/map"] {
        let body = format!(r#"{{"Version":130,"Hostinfo":{{"TPM":[{parts}]}}}}"#);
        let (status, answer) = a.post_bytes(path, body.into_bytes()).await;
        assert_eq!(status, StatusCode::BAD_REQUEST);
        assert!(String::from_utf8_lossy(&answer).contains("more parts"));
    }
}

#[tokio::test]
async fn a_body_beyond_the_limit_is_refused() {
    let lab = Lab::new().await;
    let mut a = Client::new(lab.address(), "a").await;
    let (status, _) = a
        .post_bytes("/machine/register", vec![b' '; (1 << 20) + 1])
        .await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
}

#[tokio::test]
async fn host_info_is_bounded_because_every_peer_gets_it() {
    let lab = Lab::new().await;
    let key = lab.key().await;
    let mut a = Client::new(lab.address(), "a").await;
    a.hostinfo.details.get_or_insert_default().distro = "x".repeat(40_000);
    assert_eq!(
        a.register(Some(&key)).await.unwrap_err().0,
        StatusCode::BAD_REQUEST
    );
    assert_eq!(
        a.register(None).await.unwrap_err().0,
        StatusCode::BAD_REQUEST
    );
    a.hostinfo.details.get_or_insert_default().distro.clear();
    assert!(a.register(Some(&key)).await.unwrap().machine_authorized);
}

#[tokio::test]
async fn what_waits_at_a_login_page_is_bounded() {
    let lab = Lab::new().await;
    let mut a = Client::new(lab.address(), "a").await;
    let url = a.register(None).await.unwrap().auth_url;
    let mut waiting = Vec::new();
    let mut followup = a.request(None);
    followup.followup = url;
    for _ in 0..9 {
        waiting.push(tokio::spawn(
            a.post_later("/machine/register", &followup).await,
        ));
    }
    let first = futures_util::future::select_all(waiting);
    let (answer, _, others) = tokio::time::timeout(SOON, first).await.unwrap();
    assert_eq!(answer.unwrap().0, StatusCode::TOO_MANY_REQUESTS);
    // Not even in place of what is there already.
    a.hostinfo.details.get_or_insert_default().distro = "x".repeat(40_000);
    assert_eq!(
        a.register(None).await.unwrap_err().0,
        StatusCode::BAD_REQUEST
    );
    assert!(others.iter().all(|waiting| !waiting.is_finished()));
}

#[tokio::test]
async fn no_expiry_keeps_the_server_from_starting_again() {
    let mut lab = Lab::new().await;
    let key = lab.key().await;
    let mut a = Client::joined(lab.address(), "a", &key).await;
    let mut request = serde_json::to_value(a.request(None)).unwrap();
    for (expiry, status) in [
        ("9999-12-31T23:59:59-23:59", StatusCode::BAD_REQUEST),
        ("9999-12-31T23:59:59.999999999Z", StatusCode::OK),
    ] {
        request["Expiry"] = expiry.into();
        let (got, _) = a.post("/machine/register", &request).await;
        assert_eq!(got, status, "{expiry}");
    }
    lab.stop().await;
    lab.start().await;
    assert!(!lab.node("a").await.expired);
}

#[tokio::test]
async fn bad_upgrades_get_an_answer() {
    let lab = Lab::new().await;
    let upgrade = |handshake: &str| {
        format!(
            "POST /ts2021 HTTP/1.1\r\nHost: x\r\nUpgrade: tailscale-control-protocol\r\nConnection: upgrade\r\n\
             X-Tailscale-Handshake: {handshake}\r\nContent-Length: 0\r\n\r\n"
        )
    };
    for handshake in ["", "!!!", "AAAA", &"A".repeat(136)] {
        let request =
            upgrade(handshake).replace("Connection: upgrade", "Connection: upgrade, close");
        let answer = raw(lab.address(), &request).await;
        assert!(answer.starts_with("HTTP/1.1 400"), "{handshake}: {answer}");
    }
    let answer = raw(
        lab.address(),
        "POST /ts2021 HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
    )
    .await;
    assert!(answer.starts_with("HTTP/1.1 426"), "{answer}");
}

#[tokio::test]
async fn too_many_channels_of_one_machine_end_the_oldest() {
    let lab = Lab::new().await;
    let mut a = Client::joined(lab.address(), "a", &lab.key().await).await;
    let mut poll = a.poll().await;
    poll.until("a netmap", |_| true).await;
    let mut others = Vec::new();
    for _ in 0..8 {
        others.push(a.another_channel().await);
    }
    poll.end().await;
    a.reconnect(lab.address()).await;
    a.poll().await.until("a netmap", |_| true).await;
}

#[tokio::test]
async fn an_initiation_that_somebody_repeats_ends_no_channel_of_its_machine() {
    let lab = Lab::new().await;
    let key = lab.key().await;
    let mut a = Client::joined(lab.address(), "a", &key).await;
    let mut poll = a.poll().await;
    poll.until("a netmap", |_| true).await;
    let mut repeated = Vec::new();
    for _ in 0..20 {
        let mut stream = upgraded(lab.address(), &a.initiation).await;
        // The handshake's answer, and something after it.
        let mut answer = [0; RESPONSE_LEN + 1];
        stream.read_exact(&mut answer).await.unwrap();
        repeated.push(stream);
    }
    let _b = Client::joined(lab.address(), "b", &key).await;
    poll.until("b", |netmap| !netmap.peers.is_empty()).await;
    a.update(&["192.0.2.1:1"], None).await;
}

#[tokio::test]
async fn a_poll_that_nobody_reads_ends() {
    let lab = Lab::new().await;
    let key = lab.key().await;
    let mut a = Client::joined(lab.address(), "a", &key).await;
    let mut b = Client::joined(lab.address(), "b", &key).await;
    // Without compression, which would make nothing of what follows.
    let mut poll = a.poll_with(Compression::None).await.unwrap();
    poll.until("b", |netmap| !netmap.peers.is_empty()).await;
    assert!(lab.node("a").await.online);
    let began = Instant::now();
    let mut number = 0;
    while lab.node("a").await.online {
        assert!(began.elapsed() < 2 * SOON, "the poll should have ended");
        number += 1;
        b.hostinfo.details.get_or_insert_default().distro = format!("{number:030000}");
        b.update(&[], None).await;
    }
    let closed = async { while a.is_open().await {} };
    tokio::time::timeout(SOON, closed)
        .await
        .expect("its channel ends as well");
    drop(poll);
}

#[tokio::test]
async fn a_machine_is_sent_one_whole_netmap_at_a_time() {
    let lab = Lab::new().await;
    let key = lab.key().await;
    let mut a = Client::joined(lab.address(), "a", &key).await;
    // More than the window of a stream takes.
    large_nodes(&lab, &key, 4).await;
    let request = a.map_request();
    let unread = a.post_unread("/machine/map", &request).await;
    assert_eq!(unread.status(), StatusCode::OK);
    let (status, _) = a.post("/machine/map", &request).await;
    assert_eq!(status, StatusCode::TOO_MANY_REQUESTS);
    // What matters goes on.
    a.update(&["192.0.2.1:1"], None).await;
    drop(unread);
    let (status, _) = a.post("/machine/map", &request).await;
    assert_eq!(status, StatusCode::OK, "its turn is over");
}

#[tokio::test]
async fn what_a_node_has_not_read_goes_with_it_when_it_is_deleted() {
    let lab = Lab::new().await;
    let key = lab.key().await;
    let mut a = Client::joined(lab.address(), "a", &key).await;
    large_nodes(&lab, &key, 10).await;
    let mut poll = a.poll_with(Compression::None).await.unwrap();
    let node = "a".to_owned();
    lab.ask(Ask::NodesDelete { node }).await.unwrap();
    let whole = tokio::time::timeout(SOON, poll.step()).await;
    assert!(
        !whole.expect("the poll ends"),
        "all of it was kept for a node that is none any more"
    );
}

#[tokio::test]
async fn strangers_bodies_keep_no_relay_from_asking() {
    let lab = Lab::new().await;
    let mut unfinished = Vec::new();
    for _ in 0..70 {
        let client = Client::new(lab.address(), "x").await;
        unfinished.push(client.begin("/machine/register").await);
    }
    let key = lowroad_wire::key::NodePublic::from_bytes([9; 32]);
    let body = format!(r#"{{"NodePublic": "{key}"}}"#);
    let ask = format!(
        "POST /verify HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let began = Instant::now();
    let answer = raw(lab.address(), &ask).await;
    assert!(answer.ends_with(r#"{"Allow":false}"#), "{answer}");
    let mut late = Client::joined(lab.address(), "late", &lab.key().await).await;
    late.poll().await.until("a netmap", |_| true).await;
    assert!(began.elapsed() < SOON / 2, "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_login_page_says_who_asks() {
    let lab = Lab::new().await;
    let mut a = Client::new(lab.address(), "<b>laptop").await;
    let url = a.register(None).await.unwrap().auth_url;
    let id = url.rsplit('/').next().unwrap();
    let page = get(lab.address(), &format!("/register/{id}")).await;
    for part in ["&lt;b&gt;laptop", "linux", "127.0.0.1"] {
        assert!(page.contains(part), "{part}: {page}");
    }
    assert!(!page.contains("<b>laptop"));
}

/// Nodes that each take 30 kB of everybody's netmap, and one more.
async fn large_nodes(lab: &Lab, key: &str, count: usize) {
    let mut b = Client::joined(lab.address(), "b", key).await;
    for number in 0..count {
        b.hostinfo.details.get_or_insert_default().distro = format!("{number:030000}");
        b.update(&[], None).await;
        b = Client::joined(lab.address(), &format!("b{number}"), key).await;
    }
}
