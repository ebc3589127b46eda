//! What reaches a running poll, and how soon.

use std::time::{Duration, Instant};

use lowroad_coordinator::{admin::api::Ask, text::rfc3339};
use lowroad_wire::{
    control::{MapResponse, NetInfo, NodeId, RegionId},
    netmap::NetMap,
};
use time::OffsetDateTime;

use crate::{
    client::{Client, Poll, SOON, peer},
    lab::Lab,
};

/// The promise is 200 ms; loaded test machines get some more.
const PROMPT: Duration = Duration::from_millis(200);

/// Waits for `is` and says how long it took.
async fn prompt(poll: &mut Poll, what: &str, since: Instant, is: impl Fn(&NetMap) -> bool) {
    poll.until(what, is).await;
    let took = since.elapsed();
    println!("{what}: {took:?}");
    assert!(took < PROMPT, "{what} took {took:?}");
}

fn route(text: &str) -> ipnet::IpNet {
    text.parse().unwrap()
}

#[tokio::test]
async fn every_change_reaches_a_connected_node_promptly() {
    let lab = Lab::new().await;
    let key = lab.key().await;
    let mut a = Client::joined(lab.address(), "a", &key).await;
    let mut poll = a.poll().await;
    poll.until("a netmap", |_| true).await;

    let now = Instant::now();
    let mut b = Client::joined(lab.address(), "b", &key).await;
    prompt(&mut poll, "join", now, |netmap| peer(netmap, "b").is_some()).await;
    let id = poll.peer("b").unwrap().id;
    let b_is = move |netmap: &NetMap, is: &dyn Fn(&lowroad_wire::control::Node) -> bool| {
        netmap.peers.get(&id).is_some_and(|node| is(node))
    };

    let now = Instant::now();
    let _b_poll = b.poll().await;
    prompt(&mut poll, "online", now, |netmap| {
        b_is(netmap, &|b| b.online == Some(true))
    })
    .await;

    let now = Instant::now();
    b.update(&["192.0.2.7:41641", "10.0.0.7:41641"], Some(999))
        .await;
    prompt(&mut poll, "endpoints and home", now, |netmap| {
        b_is(netmap, &|b| b.endpoints.len() == 2 && b.home_derp.is_some())
    })
    .await;

    let now = Instant::now();
    b.update(&["192.0.2.8:1", "10.0.0.7:41641"], Some(999))
        .await;
    prompt(&mut poll, "a new STUN endpoint", now, |netmap| {
        b_is(netmap, &|b| b.endpoints[0].port() == 1)
    })
    .await;
    let last = poll.log.last().unwrap();
    assert!(
        last.peers_changed.is_empty() && last.peers_changed_patch.len() == 1,
        "a patch does: {last:?}"
    );

    let now = Instant::now();
    b.disco = lowroad_wire::key::DiscoPrivate::from_random([77; 32]);
    let disco = b.disco.public();
    b.update(&["192.0.2.8:1"], Some(999)).await;
    prompt(&mut poll, "disco key", now, |netmap| {
        b_is(netmap, &|b| b.disco_key == Some(disco))
    })
    .await;

    let now = Instant::now();
    b.new_node_key();
    let key = b.node.public();
    assert!(
        b.register(Some(&lab.key().await))
            .await
            .unwrap()
            .machine_authorized
    );
    prompt(&mut poll, "node key", now, |netmap| {
        b_is(netmap, &|b| b.key == key)
    })
    .await;

    let now = Instant::now();
    lab.set_policy(r#"{"acls": [{"action": "accept", "src": ["lab@"], "dst": ["lab@:22"]}]}"#)
        .await;
    prompt(&mut poll, "policy", now, |netmap| {
        netmap
            .filter_rules()
            .any(|rule| rule.dst_ports.iter().all(|port| port.ports.last == 22))
    })
    .await;

    let now = Instant::now();
    lab.set_policy(r#"{"acls": []}"#).await;
    prompt(&mut poll, "a policy that allows nothing", now, |netmap| {
        netmap.filter_rules().count() == 0 && netmap.peers.is_empty()
    })
    .await;

    let now = Instant::now();
    lab.set_policy(r#"{"acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}]}"#)
        .await;
    prompt(&mut poll, "a policy that allows all", now, |netmap| {
        netmap.filter_rules().count() > 0 && b_is(netmap, &|_| true)
    })
    .await;

    let now = Instant::now();
    lab.ask(Ask::NodesRename {
        node: "b".to_owned(),
        name: "bee".to_owned(),
    })
    .await
    .unwrap();
    prompt(&mut poll, "name", now, |netmap| {
        b_is(netmap, &|b| b.name == "bee.tail.test.")
    })
    .await;

    let now = Instant::now();
    lab.ask(Ask::NodesExpire {
        node: "bee".to_owned(),
    })
    .await
    .unwrap();
    prompt(&mut poll, "expiry", now, |netmap| {
        b_is(netmap, &|b| b.expired && b.key_expiry.is_some())
    })
    .await;

    let now = Instant::now();
    lab.ask(Ask::NodesDelete {
        node: "bee".to_owned(),
    })
    .await
    .unwrap();
    prompt(&mut poll, "deletion", now, |netmap| {
        !netmap.peers.contains_key(&id)
    })
    .await;
}

#[tokio::test]
async fn a_node_hears_of_its_own_expiry_and_sees_nobody_until_it_logs_in_again() {
    let lab = Lab::new().await;
    let (mut a, _b, mut poll) = a_sees_b(&lab).await;
    lab.ask(Ask::NodesExpire {
        node: "a".to_owned(),
    })
    .await
    .unwrap();
    poll.until("own expiry", |netmap| {
        netmap.self_node.as_ref().is_some_and(|node| node.expired)
            && netmap.peers.is_empty()
            && netmap.filter_rules().count() == 0
    })
    .await;
    let response = a.register(None).await.unwrap();
    assert!(response.node_key_expired && !response.machine_authorized);
    let old = a.node.public();
    a.new_node_key();
    let key = lab.key().await;
    let mut request = a.request(Some(&key));
    request.old_node_key = Some(old);
    assert!(a.send_register(&request).await.unwrap().machine_authorized);
    let mut poll = a.poll().await;
    poll.until("b again", |netmap| peer(netmap, "b").is_some())
        .await;
    assert_eq!(lab.nodes().await.len(), 2, "it is the same node");
}

#[tokio::test]
async fn a_key_ends_at_its_time_for_the_node_and_its_peers_and_may_be_good_again() {
    let lab = Lab::new().await;
    let key = lab.key().await;
    let mut a = Client::joined(lab.address(), "a", &key).await;
    let mut b = Client::joined(lab.address(), "b", &key).await;
    let mut own = a.poll().await;
    let mut other = b.poll().await;
    own.until("b", |netmap| peer(netmap, "b").is_some()).await;
    let set = |expiry: Option<String>| {
        lab.ask(Ask::NodesSetExpiry {
            node: "a".to_owned(),
            expiry,
        })
    };
    let far = OffsetDateTime::now_utc() + Duration::from_secs(3600);
    set(Some(rfc3339(far))).await.unwrap();
    other
        .until("that it ends some day", |netmap| {
            peer(netmap, "a").is_some_and(|a| !a.expired && a.key_expiry.is_some())
        })
        .await;
    // Soon, but not before the request for it has come through.
    let soon = Duration::from_secs(8);
    let end = OffsetDateTime::now_utc() + soon;
    set(Some(rfc3339(end))).await.unwrap();
    own.until_within(soon + SOON, "the end", |netmap| {
        let own = netmap.self_node.as_ref();
        own.is_some_and(|own| own.expired) && netmap.peers.is_empty()
    })
    .await;
    assert!(OffsetDateTime::now_utc() >= end);
    other
        .until("the end of the peer's", |netmap| {
            peer(netmap, "a").is_some_and(|a| a.expired)
        })
        .await;
    assert!(lab.node("a").await.expired);

    set(None).await.unwrap();
    own.until("b again", |netmap| {
        let own = netmap.self_node.as_ref();
        own.is_some_and(|own| !own.expired) && peer(netmap, "b").is_some()
    })
    .await;
    other
        .until("a again", |netmap| {
            peer(netmap, "a").is_some_and(|a| !a.expired && a.key_expiry.is_none())
        })
        .await;
    assert!(a.register(None).await.unwrap().machine_authorized);
    for (wrong, why) in [
        ("2020-01-01T00:00:00Z", "is over"),
        ("tomorrow", "is no time"),
    ] {
        let error = set(Some(wrong.to_owned())).await;
        let error = error.unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }
    assert_eq!(lab.node("a").await.expiry, None);
}

#[tokio::test]
async fn a_deleted_node_is_told_that_its_key_is_good_no_more_and_its_poll_ends() {
    let lab = Lab::new().await;
    let (mut a, _b, mut poll) = a_sees_b(&lab).await;
    lab.ask(Ask::NodesDelete {
        node: "a".to_owned(),
    })
    .await
    .unwrap();
    poll.until("that it has to log in", |netmap| {
        let own = netmap.self_node.as_ref();
        own.is_some_and(|own| own.expired && own.key_expiry.is_some())
            && netmap.peers.is_empty()
            && netmap.filter_rules().count() == 0
    })
    .await;
    poll.end().await;
    assert!(a.poll_with(Default::default()).await.is_err());
}

#[tokio::test]
async fn an_administrator_approves_routes_and_peers_hear_of_it() {
    let lab = Lab::new().await;
    let key = lab.key().await;
    let mut router = Client::new(lab.address(), "router").await;
    router.hostinfo.routable_ips = vec![route("10.7.0.0/24"), route("0.0.0.0/0"), route("::/0")];
    router.register(Some(&key)).await.unwrap();
    let mut router_poll = router.poll().await;
    let mut a = Client::joined(lab.address(), "a", &key).await;
    let mut poll = a.poll().await;
    poll.until("the router, without routes", |netmap| {
        peer(netmap, "router").is_some_and(|node| node.allowed_ips().len() == 2)
    })
    .await;

    let now = Instant::now();
    lab.ask(Ask::NodesApproveRoutes {
        node: "router".to_owned(),
        routes: vec![route("10.7.0.0/24")],
    })
    .await
    .unwrap();
    prompt(&mut poll, "approved route", now, |netmap| {
        peer(netmap, "router").is_some_and(|node| {
            node.primary_routes == [route("10.7.0.0/24")]
                && node.allowed_ips().contains(&route("10.7.0.0/24"))
        })
    })
    .await;
    router_poll
        .until("its own routes", |netmap| {
            netmap
                .self_node
                .as_ref()
                .is_some_and(|node| node.allowed_ips().contains(&route("10.7.0.0/24")))
        })
        .await;

    lab.ask(Ask::NodesApproveRoutes {
        node: "router".to_owned(),
        routes: vec![route("0.0.0.0/0")],
    })
    .await
    .unwrap();
    poll.until("an exit node of both families", |netmap| {
        peer(netmap, "router").is_some_and(|node| {
            node.primary_routes.is_empty()
                && node.allowed_ips().contains(&route("0.0.0.0/0"))
                && node.allowed_ips().contains(&route("::/0"))
        })
    })
    .await;
}

#[tokio::test]
async fn auto_approvers_approve_routes() {
    let lab = Lab::new().await;
    let key = lab.key().await;
    lab.set_policy(
        r#"{"acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}], "autoApprovers": {"routes": {"10.0.0.0/8": ["lab@"]}}}"#,
    )
    .await;
    let mut a = Client::joined(lab.address(), "a", &key).await;
    let mut poll = a.poll().await;
    let mut router = Client::new(lab.address(), "router").await;
    router.hostinfo.routable_ips = vec![route("10.7.0.0/24"), route("192.168.0.0/24")];
    router.register(Some(&key)).await.unwrap();
    poll.until("the approved route alone", |netmap| {
        peer(netmap, "router").is_some_and(|node| node.primary_routes == [route("10.7.0.0/24")])
    })
    .await;
    let node = lab.node("router").await;
    assert_eq!(node.approved_routes, [route("10.7.0.0/24")]);
    assert_eq!(node.available_routes.len(), 2);
}

#[tokio::test]
async fn a_standby_router_takes_over_when_the_primary_goes_offline() {
    let lab = Lab::new().await;
    let key = lab.key().await;
    lab.set_policy(r#"{"autoApprovers": {"routes": {"10.0.0.0/8": ["lab@"]}}}"#)
        .await;
    let mut polls = Vec::new();
    let mut routers = Vec::new();
    for name in ["r1", "r2"] {
        let mut router = Client::new(lab.address(), name).await;
        router.hostinfo.routable_ips = vec![route("10.7.0.0/24")];
        router.register(Some(&key)).await.unwrap();
        polls.push(router.poll().await);
        routers.push(router);
    }
    let mut a = Client::joined(lab.address(), "a", &key).await;
    let mut poll = a.poll().await;
    let primary = |netmap: &NetMap| {
        let mut with = netmap
            .peers
            .values()
            .filter(|node| !node.primary_routes.is_empty())
            .map(|node| node.id);
        (with.next(), with.next())
    };
    poll.until("r1 carries", |netmap| {
        primary(netmap) == (Some(NodeId(1)), None)
    })
    .await;
    drop(polls.remove(0));
    let told = poll.log.len();
    poll.until("r2 carries", |netmap| {
        primary(netmap) == (Some(NodeId(2)), None)
    })
    .await;
    let told = &poll.log[told..];
    assert!(
        told.iter().all(|message| message.peers.is_empty()),
        "{told:?}"
    );
    let net = route("10.7.0.0/24");
    let last = told.last().unwrap();
    let routers = last.peers_changed.iter().map(|node| {
        let carries = node.primary_routes == [net] && node.allowed_ips().contains(&net);
        (node.id, carries)
    });
    let routers: Vec<_> = routers.collect();
    assert_eq!(routers, [(NodeId(1), false), (NodeId(2), true)]);
    assert!(last.packet_filters.is_empty(), "{last:?}");
    // Who takes over is told that the other is gone, and sees nothing else otherwise.
    polls[0]
        .until("r1 is offline", |netmap| {
            peer(netmap, "r1").is_some_and(|node| node.online == Some(false))
        })
        .await;
}

/// Two nodes, and the first one's poll, which has told of the second.
async fn a_sees_b(lab: &Lab) -> (Client, Client, Poll) {
    let key = lab.key().await;
    let mut a = Client::joined(lab.address(), "a", &key).await;
    let b = Client::joined(lab.address(), "b", &key).await;
    let mut poll = a.poll().await;
    poll.until("b", |netmap| peer(netmap, "b").is_some()).await;
    (a, b, poll)
}

/// What is in the peer's host info then is what `whois` of a stock client shows.
#[tokio::test]
async fn a_peer_is_told_whole_when_it_has_first_measured_its_network_and_by_patches_after_that() {
    let lab = Lab::new().await;
    let (_a, mut b, mut poll) = a_sees_b(&lab).await;
    let home = |region| {
        move |netmap: &NetMap| {
            peer(netmap, "b").is_some_and(|b| b.home_derp == Some(RegionId(region)))
        }
    };
    let told = poll.log.len();
    b.update(&["192.0.2.1:1"], Some(999)).await;
    poll.until("the first home", home(999)).await;
    let wholes = |log: &[MapResponse]| -> Vec<_> {
        let nodes = log.iter().flat_map(|message| &message.peers_changed);
        nodes.map(|node| node.hostinfo.net_info.clone()).collect()
    };
    let measured = NetInfo {
        preferred_derp: Some(RegionId(999)),
        ..NetInfo::default()
    };
    assert_eq!(wholes(&poll.log[told..]), [Some(measured)]);

    let told = poll.log.len();
    b.update(&["192.0.2.1:1"], Some(7)).await;
    poll.until("another home", home(7)).await;
    let told = &poll.log[told..];
    assert!(wholes(told).is_empty(), "a patch does: {told:?}");
}

#[tokio::test]
async fn a_slow_reader_gets_the_difference_not_the_history() {
    let lab = Lab::new().await;
    let (_a, mut b, mut poll) = a_sees_b(&lab).await;
    for port in 1..=50 {
        b.update(&[&format!("192.0.2.1:{port}")], Some(999)).await;
    }
    poll.until("the last endpoint", |netmap| {
        peer(netmap, "b")
            .is_some_and(|b| b.endpoints.first().is_some_and(|first| first.port() == 50))
    })
    .await;
}
