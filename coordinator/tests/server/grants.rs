//! What grants of capabilities and through routers come to at connected nodes.

use std::slice;

use ipnet::IpNet;
use lowroad_wire::{
    control::{FilterRule, Node},
    netmap::NetMap,
};

use crate::{
    client::{Client, peer},
    lab::Lab,
};

const BEGINNING: &str = r#""tagOwners": {"tag:one": [], "tag:two": []},
    "autoApprovers": {"routes": {"10.7.0.0/24": ["tag:one", "tag:two"]}}"#;

fn through(router: &str) -> String {
    format!(
        r#"{{{BEGINNING}, "grants": [{{"src": ["lab@"], "dst": ["10.7.0.0/24"], "ip": ["*"], "via": ["tag:{router}"]}}]}}"#
    )
}

fn shows(netmap: &NetMap, router: &str, other: &str, route: IpNet) -> bool {
    let leads = |node: &Node| {
        node.primary_routes == slice::from_ref(&route) && node.allowed_ips().contains(&route)
    };
    let holds = |name| peer(netmap, name).is_some_and(leads);
    holds(router) && !holds(other)
}

#[tokio::test]
async fn a_change_of_router_or_capability_in_the_policy_reaches_connected_nodes() {
    let lab = Lab::new().await;
    let key = lab.key().await;
    lab.set_policy(&through("one")).await;
    let route: IpNet = "10.7.0.0/24".parse().unwrap();
    let mut routers = Vec::new();
    for name in ["one", "two"] {
        let key = lab
            .key_with(|key| key.tags = vec![format!("tag:{name}")])
            .await;
        let mut router = Client::new(lab.address(), name).await;
        router.hostinfo.routable_ips = vec![route];
        router.register(Some(&key)).await.unwrap();
        let poll = router.poll().await;
        routers.push((router, poll));
    }
    let mut viewer = Client::joined(lab.address(), "viewer", &key).await;
    let mut poll = viewer.poll().await;
    poll.until("the route at its first router", |netmap| {
        shows(netmap, "one", "two", route)
    })
    .await;
    lab.set_policy(&through("two")).await;
    poll.until("the route at the other", |netmap| {
        shows(netmap, "two", "one", route)
    })
    .await;

    lab.set_policy(&format!(
        r#"{{{BEGINNING}, "grants": [{{"src": ["tag:two"], "dst": ["lab@"], "app": {{"tailscale.com/cap/drive": [{{"access": "ro"}}]}}}}]}}"#
    ))
    .await;
    let granted = |netmap: &NetMap, name: &str| {
        let grants = |rule: &FilterRule| {
            let mut grants = rule.cap_grant.iter();
            rule.dst_ports.is_empty() && grants.any(|grant| grant.cap_map.contains_key(name))
        };
        netmap.filter_rules().any(grants)
    };
    poll.until("what the other may do here", |netmap| {
        granted(netmap, "tailscale.com/cap/drive") && peer(netmap, "one").is_none()
    })
    .await;
    let (_, two) = &mut routers[1];
    two.until("who serves it", |netmap| {
        granted(netmap, "tailscale.com/cap/drive-sharer")
            && !granted(netmap, "tailscale.com/cap/drive")
    })
    .await;
}
