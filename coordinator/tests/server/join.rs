//! Joining, polling, coming back.

use std::time::Duration;

use hyper::StatusCode;
use lowroad_coordinator::admin::api::Ask;
use lowroad_wire::{
    control::{MapRequest, RegionId},
    framing::Compression,
};

use crate::{
    client::{Client, get, peer},
    lab::Lab,
};

#[tokio::test]
async fn two_nodes_join_and_see_each_other() {
    let lab = Lab::new().await;
    let key = lab.key().await;
    let mut a = Client::joined(lab.address(), "a", &key).await;
    let mut first = a.poll().await;
    first
        .until("a netmap of its own", |netmap| netmap.self_node.is_some())
        .await;
    let mut b = Client::joined(lab.address(), "b", &key).await;
    let mut second = b.poll_with(Compression::None).await.unwrap();
    first
        .until("b online", |netmap| {
            peer(netmap, "b").is_some_and(|b| b.online == Some(true))
        })
        .await;
    second
        .until("a online", |netmap| {
            peer(netmap, "a").is_some_and(|a| a.online == Some(true))
        })
        .await;

    let own = first.netmap.self_node.as_ref().unwrap();
    assert_eq!(own.name, "a.tail.test.");
    assert_eq!(own.key, a.node.public());
    assert_eq!(own.allowed_ips(), own.addresses);
    let addresses: Vec<_> = own.addresses.iter().map(ToString::to_string).collect();
    assert_eq!(addresses, ["100.64.0.1/32", "fd7a:115c:a1e0::1/128"]);
    let b_seen = first.peer("b").unwrap();
    assert_eq!(b_seen.disco_key, Some(b.disco.public()));
    assert_eq!(b_seen.addresses[0].to_string(), "100.64.0.2/32");
    let profile = &first.netmap.users[&b_seen.user];
    assert_eq!(profile.login_name, "lab");
    assert!(
        first.netmap.filter_rules().count() > 0,
        "without a policy everything is allowed"
    );
    assert_eq!(first.netmap.domain, "tail.test");
    assert!(first.netmap.dns.proxied);
    assert_eq!(first.netmap.derp_map.regions.len(), 1);
}

#[tokio::test]
async fn a_poll_without_stream_gets_one_whole_message() {
    let lab = Lab::new().await;
    let mut a = Client::joined(lab.address(), "a", &lab.key().await).await;
    let (status, body) = a.post("/machine/map", &a.map_request()).await;
    assert_eq!(status, StatusCode::OK);
    let length = u32::from_le_bytes(body[..4].try_into().unwrap()) as usize;
    assert_eq!(length, body.len() - 4);
}

#[tokio::test]
async fn a_restarted_server_still_knows_its_nodes() {
    let mut lab = Lab::new().await;
    let key = lab.key().await;
    let mut a = Client::joined(lab.address(), "a", &key).await;
    let mut b = Client::joined(lab.address(), "b", &key).await;
    a.update(&["192.0.2.1:41641"], Some(999)).await;
    let poll = a.poll().await;
    let before = lab.nodes().await;
    lab.stop().await;
    poll.end().await;
    lab.start().await;
    let after = lab.nodes().await;
    assert_eq!(
        after
            .iter()
            .map(|node| (&node.id, &node.node_key, &node.endpoints))
            .collect::<Vec<_>>(),
        before
            .iter()
            .map(|node| (&node.id, &node.node_key, &node.endpoints))
            .collect::<Vec<_>>()
    );
    // Without registering again, and by the same server key.
    b.reconnect(lab.address()).await;
    let mut poll = b.poll().await;
    poll.until("a as it was", |netmap| {
        peer(netmap, "a").is_some_and(|a| a.endpoints.len() == 1 && a.home_derp.is_some())
    })
    .await;
    // And with it, the auth key is still good.
    a.reconnect(lab.address()).await;
    assert!(a.register(None).await.unwrap().machine_authorized);
    let c = Client::joined(lab.address(), "c", &key).await;
    poll.until("c", |netmap| {
        peer(netmap, "c").is_some_and(|node| node.key == c.node.public())
    })
    .await;
    assert_eq!(lab.nodes().await.len(), 3);
}

#[tokio::test]
async fn ids_and_addresses_of_deleted_nodes_are_not_given_at_once_again() {
    let mut lab = Lab::new().await;
    let key = lab.key().await;
    Client::joined(lab.address(), "a", &key).await;
    lab.ask(Ask::NodesDelete {
        node: "a".to_owned(),
    })
    .await
    .unwrap();
    lab.stop().await;
    lab.start().await;
    Client::joined(lab.address(), "a", &key).await;
    let node = lab.node("a").await;
    assert_eq!(
        (node.id.as_str(), node.ip_addresses[0].as_str()),
        ("2", "100.64.0.2")
    );
}

/// An older client (1.80) tells what it measured when that changes, and no more where it logs in anew.
#[tokio::test]
async fn a_machine_that_comes_as_another_node_is_at_home_where_it_was() {
    let lab = Lab::new().await;
    let key = lab.key().await;
    let mut a = Client::joined(lab.address(), "a", &key).await;
    let mut watcher = a.poll().await;
    let mut b = Client::joined(lab.address(), "b", &key).await;
    b.update(&["192.0.2.1:1"], Some(7)).await;
    let others = lab.key_with(|key| key.user = "other".to_owned()).await;
    let both = ["b", "b-1"].as_slice();
    // Another user's, its first user's again, and a new one; each time it has moved.
    for (home, key, delete) in [(7, &others, [].as_slice()), (8, &key, &[]), (9, &key, both)] {
        if home > 7 {
            b.update(&["192.0.2.1:1"], Some(home)).await;
        }
        for node in delete {
            let node = (*node).to_owned();
            lab.ask(Ask::NodesDelete { node }).await.unwrap();
        }
        b.new_node_key();
        b.hostinfo.net_info = None;
        b.register(Some(key)).await.unwrap();
        let own = b.node.public();
        watcher
            .until("the node, with its home", |netmap| {
                let mut peers = netmap.peers.values();
                peers.any(|node| node.key == own && node.home_derp == Some(RegionId(home)))
            })
            .await;
    }
}

#[tokio::test]
async fn a_restarted_server_knows_where_machines_are_at_home() {
    let mut lab = Lab::new().await;
    let key = lab.key().await;
    let mut b = Client::joined(lab.address(), "b", &key).await;
    b.update(&["192.0.2.1:1"], Some(7)).await;
    let others = lab.key_with(|key| key.user = "other".to_owned()).await;
    lab.stop().await;
    lab.start().await;
    b.reconnect(lab.address()).await;
    b.new_node_key();
    b.hostinfo.net_info = None;
    b.register(Some(&others)).await.unwrap();
    let own = b.node.public();
    let mut watcher = Client::joined(lab.address(), "a", &key).await;
    let mut poll = watcher.poll().await;
    poll.until("the node, with its home", |netmap| {
        let mut peers = netmap.peers.values();
        peers.any(|node| node.key == own && node.home_derp == Some(RegionId(7)))
    })
    .await;
}

#[tokio::test]
async fn a_newer_poll_supersedes_the_older() {
    let lab = Lab::new().await;
    let key = lab.key().await;
    let mut a = Client::joined(lab.address(), "a", &key).await;
    let mut b = Client::joined(lab.address(), "b", &key).await;
    let mut watcher = b.poll().await;
    let mut first = a.poll().await;
    first.until("a netmap", |_| true).await;
    let mut second = a.poll().await;
    first.end().await;
    second.until("a netmap", |_| true).await;
    // The end of the first must not count as the node's going away.
    tokio::time::sleep(Duration::from_millis(700)).await;
    watcher
        .until("a online", |netmap| {
            peer(netmap, "a").is_some_and(|a| a.online == Some(true))
        })
        .await;
    assert!(lab.node("a").await.online);
}

#[tokio::test]
async fn a_node_that_disconnects_goes_offline_after_a_while_and_a_quick_reconnect_does_not_show() {
    let lab = Lab::new().await;
    let key = lab.key().await;
    let mut a = Client::joined(lab.address(), "a", &key).await;
    let mut b = Client::joined(lab.address(), "b", &key).await;
    let mut watcher = b.poll().await;
    let poll = a.poll().await;
    watcher
        .until("a online", |netmap| {
            peer(netmap, "a").is_some_and(|a| a.online == Some(true))
        })
        .await;
    drop(poll);
    let poll = a.poll().await;
    let seen = watcher.log.len();
    drop(poll);
    watcher
        .until("a offline", |netmap| {
            peer(netmap, "a").is_some_and(|a| a.online == Some(false) && a.last_seen.is_some())
        })
        .await;
    let went = |message: &&lowroad_wire::control::MapResponse| {
        message
            .peers_changed_patch
            .iter()
            .any(|patch| patch.online.is_some())
    };
    assert_eq!(
        watcher.log[seen..].iter().filter(went).count(),
        1,
        "once, and by a patch"
    );
}

#[tokio::test]
async fn maps_of_unknown_nodes_other_machines_and_old_clients_are_refused() {
    let lab = Lab::new().await;
    let key = lab.key().await;
    let mut a = Client::joined(lab.address(), "a", &key).await;
    let mut stranger = Client::new(lab.address(), "b").await;
    assert_eq!(
        stranger.poll_with(Compression::Zstd).await.err(),
        Some(StatusCode::NOT_FOUND)
    );
    stranger.node = a.node.clone();
    assert_eq!(
        stranger.poll_with(Compression::Zstd).await.err(),
        Some(StatusCode::NOT_FOUND)
    );
    let old = MapRequest {
        version: 90,
        ..a.map_request()
    };
    assert_eq!(
        a.post("/machine/map", &old).await.0,
        StatusCode::BAD_REQUEST
    );
    let (status, _) = a.post("/machine/set-dns", &old).await;
    assert_eq!(status, StatusCode::NOT_IMPLEMENTED);
}

#[tokio::test]
async fn silence_is_broken_by_keep_alives() {
    let lab =
        Lab::with(|config| config.settings.timing.keep_alive = Duration::from_millis(50)).await;
    let mut a = Client::joined(lab.address(), "a", &lab.key().await).await;
    let mut poll = a.poll().await;
    while poll.log.iter().filter(|message| message.keep_alive).count() < 3 {
        assert!(poll.step().await);
    }
}

#[tokio::test]
async fn the_plain_paths_answer() {
    let lab = Lab::new().await;
    assert!(get(lab.address(), "/health").await.contains("pass"));
    assert!(
        get(lab.address(), "/derp/probe")
            .await
            .starts_with("HTTP/1.1 200")
    );
    assert!(
        get(lab.address(), "/generate_204")
            .await
            .starts_with("HTTP/1.1 204")
    );
    assert!(
        get(lab.address(), "/nothing")
            .await
            .starts_with("HTTP/1.1 404")
    );
    assert!(
        get(lab.address(), "/register/%3Cscript%3E")
            .await
            .starts_with("HTTP/1.1 404")
    );
}
