//! Random policies and tailnets.

use lowroad_coordinator::policy::World;
use proptest::prelude::*;

use super::{TAGS, node, users};

const SOURCES: [&str; 10] = [
    "*",
    "alice@example.com",
    "bob@example.com",
    "group:ops",
    "autogroup:member",
    "autogroup:tagged",
    "tag:web",
    "tag:router",
    "100.64.0.3",
    "10.0.1.0/24",
];
const DESTINATIONS: [&str; 11] = [
    "*",
    "alice@example.com",
    "group:ops",
    "autogroup:member",
    "tag:web",
    "tag:db",
    "100.64.0.4",
    "fd7a:115c:a1e0::/48",
    "10.0.0.0/15",
    "10.0.1.0/24",
    "autogroup:internet",
];
const ACCESS: [&str; 8] = [
    "*",
    "22",
    "tcp:22",
    "tcp:20-30",
    "udp:53",
    "icmp:*",
    "80",
    "tcp:80-90",
];

/// One rule, of which the last kind is about devices of the same user.
fn rule() -> impl Strategy<Value = String> {
    let some = |from: &'static [&'static str]| prop::sample::subsequence(from, 1..=2);
    let grant = (some(&SOURCES), some(&DESTINATIONS), some(&ACCESS))
        .prop_map(|(src, dst, ip)| format!(r#"{{"src": {src:?}, "dst": {dst:?}, "ip": {ip:?}}}"#));
    let via = (some(&SOURCES), some(&ACCESS)).prop_map(|(src, ip)| {
        format!(
            r#"{{"src": {src:?}, "dst": ["10.0.0.0/16"], "ip": {ip:?}, "via": ["tag:router"]}}"#
        )
    });
    let app = (some(&SOURCES), some(&DESTINATIONS[..10]), 0..2).prop_map(|(src, dst, value)| {
        format!(r#"{{"src": {src:?}, "dst": {dst:?}, "app": {{"x.com/cap/a": [{value}]}}}}"#)
    });
    let own = (some(&SOURCES[1..5]), some(&ACCESS)).prop_map(|(src, ip)| {
        format!(r#"{{"src": {src:?}, "dst": ["autogroup:self"], "ip": {ip:?}}}"#)
    });
    prop_oneof![6 => grant, 1 => via, 1 => app, 2 => own]
}

pub fn policy() -> impl Strategy<Value = String> {
    let approvers = prop::option::of(prop::sample::select(&TAGS[..]));
    let without_v4 = prop::option::of(prop::sample::select(&SOURCES[..9]));
    let any = (prop::collection::vec(rule(), 0..4), approvers, without_v4);
    any.prop_map(|(grants, approver, without_v4)| {
        let approvers = approver.map_or(String::new(), |tag| {
            format!(r#", "autoApprovers": {{"routes": {{"10.0.0.0/8": ["{tag}"]}}, "exitNode": ["{tag}"]}}"#)
        });
        let attributes = without_v4.map_or(String::new(), |target| {
            format!(r#", "nodeAttrs": [{{"target": ["{target}"], "attr": ["disable-ipv4"]}}]"#)
        });
        format!(r#""grants": [{}]{approvers}{attributes}"#, grants.join(","))
    })
}

pub fn world() -> impl Strategy<Value = World> {
    let owner = prop_oneof![
        (1..=3_i64).prop_map(|user| (Some(user), None)),
        prop::sample::select(&TAGS[..]).prop_map(|tag| (None, Some(tag))),
    ];
    let routes = prop::sample::subsequence(
        vec!["10.0.0.0/16", "10.0.1.0/24", "0.0.0.0/0", "::/0"],
        0..=4,
    );
    let any = (owner, routes, any::<bool>());
    prop::collection::vec(any, 1..7).prop_map(|nodes| {
        let made = nodes
            .into_iter()
            .zip(1..)
            .map(|((owner, routes, approved), id)| {
                let tags: Vec<&str> = owner.1.into_iter().collect();
                let mut node = node(id, owner.0, &tags);
                node.announced = routes.iter().map(|route| route.parse().unwrap()).collect();
                if approved {
                    node.admin_approved = node.announced.clone();
                }
                node
            });
        World {
            users: users(),
            nodes: made.collect(),
            ..World::default()
        }
    })
}
