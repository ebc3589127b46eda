//! What a policy would change, and why a connection is allowed, compared by brute force with what the nodes would be sent.

#![expect(clippy::unwrap_used, reason = "a failing helper fails its test")]

mod brute;
#[path = "../support/filters.rs"]
mod filters;
#[path = "../support/people.rs"]
mod people;
mod random;

use std::collections::HashMap;
use std::time::Instant;

use lowroad_coordinator::policy::{
    CompiledTailnet, Diff, DiffEnds, DiffFamily, DiffUsers, Policy, UserFacts, WhyEnd, WhyVerdict,
    World, diff, recompile, warnings,
};
use lowroad_wire::control::{NodeId, UserId};
use proptest::prelude::*;

use people::{node, user};

const USERS: [&str; 3] = ["alice@example.com", "bob@example.com", "carol@example.com"];
const TAGS: [&str; 3] = ["tag:web", "tag:db", "tag:router"];

/// Alice with nodes 1 and 2, Bob with node 3, servers 4 and 5, and router 6 to 10.0.0.0/16 and the internet.
fn small_world() -> World {
    let mut router = node(6, None, &["tag:router"]);
    router.announced = ["10.0.0.0/16", "0.0.0.0/0", "::/0"]
        .map(|route| route.parse().unwrap())
        .to_vec();
    router.admin_approved = router.announced.clone();
    World {
        users: users(),
        nodes: vec![
            node(1, Some(1), &[]),
            node(2, Some(1), &[]),
            node(3, Some(2), &[]),
            node(4, None, &["tag:web"]),
            node(5, None, &["tag:db"]),
            router,
        ],
        ..World::default()
    }
}

fn users() -> Vec<UserFacts> {
    let users = USERS.iter().zip(1..);
    users.map(|(name, id)| user(id, name)).collect()
}

fn compiled(rules: &str, world: &World) -> CompiledTailnet {
    let text = format!(
        r#"{{"tagOwners": {{"tag:web": [], "tag:db": [], "tag:router": []}},
            "groups": {{"group:ops": ["alice@example.com", "bob@example.com"]}}, {rules}}}"#
    );
    recompile(&Policy::parse(&text).unwrap(), world)
}

fn acl(src: &str, dst: &str) -> String {
    format!(r#"{{"action": "accept", "src": ["{src}"], "dst": ["{dst}"]}}"#)
}

/// The rows of a difference in short: `+ 1,2 -> 4 tcp:22`.
fn short(diff: &Diff) -> Vec<String> {
    let ends = |ends: &DiffEnds| {
        let nodes = ends.nodes.iter().map(|id| id.0.to_string());
        let subnets = ends.subnets.iter().map(|(router, ranges)| {
            let through = router.map_or(String::new(), |id| format!("@{id}"));
            format!("{}{through}", ranges.join("|"))
        });
        let exits = ends.exits.iter().map(|id| format!("internet@{id}"));
        nodes
            .chain(subnets)
            .chain(exits)
            .collect::<Vec<_>>()
            .join(",")
    };
    let row = |row: &lowroad_coordinator::policy::DiffRow| {
        let sign = if row.opens { '+' } else { '-' };
        let users = match row.users {
            DiffUsers::Any => "",
            DiffUsers::Same => " same",
            DiffUsers::Different => " others",
        };
        let family = match row.family {
            None => "",
            Some(DiffFamily::V4) => " v4",
            Some(DiffFamily::V6) => " v6",
        };
        let (from, to) = (ends(&row.from), ends(&row.to));
        let access = row.access.join(" ");
        format!("{sign} {from} -> {to} {access}{users}{family}")
    };
    diff.rows.iter().map(row).collect()
}

#[track_caller]
fn changes(old: &str, new: &str, expected: &[&str]) {
    let world = small_world();
    let (old, new) = (compiled(old, &world), compiled(new, &world));
    assert_eq!(short(&diff(&old, &new)), expected);
    let back = diff(&new, &old);
    let turned = back.rows.iter().map(|row| !row.opens).collect::<Vec<_>>();
    assert_eq!(
        turned.iter().filter(|opens| **opens).count(),
        expected.iter().filter(|row| row.starts_with('+')).count(),
        "the way back: {:#?}",
        short(&back)
    );
}

#[test]
fn a_difference_is_in_meaning_not_in_text() {
    let one = format!(
        r#""acls": [{}, {}]"#,
        acl("group:ops", "tag:db:22"),
        acl("tag:web", "tag:db:5432")
    );
    let other = format!(
        r#""acls": [{}, {}, {}, {}]"#,
        acl("tag:web", "tag:db:5432"),
        acl("bob@example.com", "tag:db:22"),
        acl("alice@example.com", "tag:db:22"),
        acl("carol@example.com", "*:*"),
    );
    changes(&one, &other, &[]);
    let split = r#""grants": [{"src": ["*"], "dst": ["tag:db"], "ip": ["1-100", "101-65535"]}]"#;
    let whole = r#""acls": [{"action": "accept", "src": ["*"], "dst": ["tag:db:1-65535"]}]"#;
    changes(split, whole, &[]);
}

#[test]
fn what_opens_and_what_closes_is_told_by_ends_and_ports() {
    let rules = |rules: &[String]| format!(r#""acls": [{}]"#, rules.join(","));
    let tcp = |src: &str, dst: &str| {
        format!(r#"{{"action": "accept", "proto": "tcp", "src": ["{src}"], "dst": ["{dst}"]}}"#)
    };
    for (old, new, expected) in [
        (
            rules(&[]),
            rules(&[tcp("group:ops", "tag:db:22")]),
            &["+ 1,2,3 -> 5 tcp:22"][..],
        ),
        (
            rules(&[tcp("group:ops", "tag:db:20-30")]),
            rules(&[
                tcp("group:ops", "tag:db:25-40"),
                tcp("tag:web", "tag:db:5432"),
            ]),
            &[
                "+ 1,2,3 -> 5 tcp:31-40",
                "+ 4 -> 5 tcp:5432",
                "- 1,2,3 -> 5 tcp:20-24",
            ],
        ),
        (
            rules(&[]),
            rules(&[tcp("group:ops", "100.64.0.5:22")]),
            &["+ 1,2,3 -> 5 tcp:22 v4"],
        ),
        (
            rules(&[]),
            rules(&[tcp("alice@example.com", "10.0.1.0/24:80")]),
            &["+ 1,2 -> 10.0.1.0/24@6 tcp:80"],
        ),
        (
            rules(&[tcp("10.0.0.0/16", "tag:db:80")]),
            rules(&[tcp("10.0.1.0/24", "tag:db:80")]),
            &["- 10.0.0.0/24|10.0.2.0-10.0.255.255 -> 5 tcp:80"],
        ),
        (
            rules(&[]),
            rules(&[tcp("bob@example.com", "autogroup:internet:443")]),
            &["+ 3 -> internet@6 tcp:443"],
        ),
        (
            rules(&[]),
            rules(&[tcp("autogroup:member", "autogroup:self:22")]),
            &["+ 1,2 -> 1,2 tcp:22 same"],
        ),
        (
            rules(&[tcp("autogroup:member", "autogroup:member:22")]),
            rules(&[tcp("autogroup:member", "autogroup:self:22")]),
            &["- 1,2,3 -> 1,2,3 tcp:22 others"],
        ),
    ] {
        changes(&old, &new, expected);
    }
}

#[test]
fn a_node_whose_ipv4_is_disabled_is_reached_by_ipv6_only_and_reaches_others_so() {
    let with = |rules: &str, target: &str| {
        format!(r#"{rules}, "nodeAttrs": [{{"target": ["{target}"], "attr": ["disable-ipv4"]}}]"#)
    };
    let both = r#""grants": [
        {"src": ["bob@example.com"], "dst": ["tag:db"], "ip": ["tcp:22"]},
        {"src": ["bob@example.com"], "dst": ["tag:web"], "ip": ["tcp:80"]},
        {"src": ["bob@example.com"], "dst": ["10.0.0.0/16"], "ip": ["tcp:53"]},
        {"src": ["bob@example.com"], "dst": ["autogroup:internet"], "ip": ["tcp:443"]}
    ]"#;
    changes(both, &with(both, "tag:db"), &["- 3 -> 5 tcp:22 v4"]);
    changes(
        both,
        &with(both, "bob@example.com"),
        &[
            "- 3 -> 5 tcp:22 v4",
            "- 3 -> internet@6 tcp:443 v4",
            "- 3 -> 10.0.0.0/16@6 tcp:53",
            "- 3 -> 4 tcp:80 v4",
        ],
    );
    let own =
        r#""grants": [{"src": ["autogroup:member"], "dst": ["autogroup:self"], "ip": ["tcp:22"]}]"#;
    changes(
        own,
        &with(own, "alice@example.com"),
        &["- 1,2 -> 1,2 tcp:22 same v4"],
    );
    // Where neither policy shows the family, nothing else is told of the other one.
    let without = with(r#""acls": []"#, "tag:db");
    changes(
        &without,
        &with(both, "tag:db"),
        &[
            "+ 3 -> 5 tcp:22",
            "+ 3 -> internet@6 tcp:443",
            "+ 3 -> 10.0.0.0/16@6 tcp:53",
            "+ 3 -> 4 tcp:80",
        ],
    );
}

#[test]
fn an_approver_opens_a_subnet_and_capabilities_count_with_their_values() {
    let mut world = small_world();
    world.nodes[5].admin_approved.clear();
    let open = format!(r#""acls": [{}]"#, acl("bob@example.com", "10.0.0.0/8:80"));
    let approved =
        format!(r#"{open}, "autoApprovers": {{"routes": {{"10.0.0.0/8": ["tag:router"]}}}}"#);
    let (old, new) = (compiled(&open, &world), compiled(&approved, &world));
    assert_eq!(
        short(&diff(&old, &new)),
        ["+ 3 -> 10.0.0.0/16@6 tcp,udp:80 icmp,ipv6-icmp"]
    );
    let grant = |value: u32| {
        format!(
            r#""grants": [{{"src": ["tag:web"], "dst": ["tag:db"], "app": {{"x.com/cap/a": [{value}]}}}}]"#
        )
    };
    changes(
        &grant(1),
        &grant(2),
        &["+ 4 -> 5 x.com/cap/a [2]", "- 4 -> 5 x.com/cap/a [1]"],
    );
}

#[test]
fn pairs_of_nodes_are_counted_and_a_node_is_no_peer_of_its_own() {
    let world = small_world();
    let (none, all) = (compiled(r#""acls": []"#, &world), compiled("", &world));
    let opened = diff(&none, &all);
    assert_eq!((opened.opened, opened.closed), (6 * 5, 0));
    assert!(opened.rows.iter().all(|row| row.opens));
    let single = World {
        nodes: world.nodes[..1].to_vec(),
        ..world
    };
    let (none, all) = (compiled(r#""acls": []"#, &single), compiled("", &single));
    assert_eq!(diff(&none, &all), Diff::default());
}

/// A thousand nodes, each told apart by the rules, and two policies of a thousand rules that have nothing in common.
#[test]
fn a_thousand_nodes_and_a_thousand_rules_take_seconds() {
    let nodes = (1..=1_000).map(|id| node(id, Some(id), &[]));
    let world = World {
        users: (1..=1_000)
            .map(|id| UserFacts {
                id: UserId(id),
                login_name: format!("u{id}"),
            })
            .collect(),
        nodes: nodes.collect(),
        ..World::default()
    };
    let policy = |shift: i64| {
        let rule = |at: i64| {
            let user = |add: i64| format!("u{}@", (at * 7 + add * 13 + shift) % 1_000 + 1);
            let (src, dst) = (0..10)
                .map(|at| (user(at), user(at + 50)))
                .unzip::<_, _, Vec<_>, Vec<_>>();
            let dst: Vec<String> = dst
                .iter()
                .map(|user| format!("{user}:{}", at + 1))
                .collect();
            format!(
                r#"{{"action": "accept", "src": ["{}"], "dst": ["{}"]}}"#,
                src.join("\",\""),
                dst.join("\",\"")
            )
        };
        (0..1_000).map(rule).collect::<Vec<_>>().join(",")
    };
    let [old, new] =
        [0, 1].map(|shift| compiled(&format!(r#""acls": [{}]"#, policy(shift)), &world));
    let began = Instant::now();
    let found = diff(&old, &new);
    let took = began.elapsed();
    println!(
        "1000 nodes, 1000 rules: {} rows in {took:?}",
        found.rows.len()
    );
    assert!(
        found.opened > 10_000 && found.closed > 10_000,
        "{} {}",
        found.opened,
        found.closed
    );
    // Generous, because this is an unoptimised build on a shared machine.
    assert!(took.as_secs() < 60, "{took:?}");
}

#[test]
fn logins_that_very_many_nodes_share_are_compared_once() {
    let nodes = (1..=3_000).map(|id| match id % 2 {
        0 => node(id, Some(id % 3 + 1), &[]),
        _ => node(id, None, &["tag:web"]),
    });
    let world = World {
        users: users(),
        nodes: nodes.collect(),
        ..World::default()
    };
    let policy = || {
        compiled(
            r#""acls": [], "ssh": [{"action": "accept", "src": ["autogroup:member"], "dst": ["tag:web"], "users": ["root"]}]"#,
            &world,
        )
    };
    let (old, new) = (policy(), policy());
    for side in [&old, &new] {
        world
            .nodes
            .iter()
            .for_each(|node| drop(side.ssh_for(node.id)));
    }
    let began = Instant::now();
    assert_eq!(diff(&old, &new).logins, []);
    let took = began.elapsed();
    println!("3000 nodes: {took:?}");
    // Compared for every node it takes some seconds.
    assert!(took.as_secs() < 1, "{took:?}");
}

#[test]
fn an_address_on_the_internet_is_reached_by_rules_for_the_internet_only() {
    let policy = |dst: &str| {
        Policy::parse(&format!(
            r#"{{"acls": [{{"action": "accept", "src": ["*"], "dst": ["{dst}:53"]}}]}}"#
        ))
        .unwrap()
    };
    let to = WhyEnd::Address("9.9.9.9".parse().unwrap());
    for (dst, verdict, warned) in [
        ("9.9.9.9", WhyVerdict::NotByExitNode, true),
        ("9.0.0.0/8", WhyVerdict::NotByExitNode, true),
        ("0.0.0.0/1", WhyVerdict::NotByExitNode, false),
        ("10.8.0.0/16", WhyVerdict::NoDestination, false),
        ("*", WhyVerdict::Allowed, false),
        ("autogroup:internet", WhyVerdict::Allowed, false),
    ] {
        let policy = policy(dst);
        let compiled = recompile(&policy, &small_world());
        let why = compiled.why(WhyEnd::Node(NodeId(1)), to, "53".parse().unwrap());
        assert_eq!(
            (why.verdict, why.through),
            (verdict, Some(NodeId(6))),
            "{dst}"
        );
        let told = warnings(&policy, &compiled, &HashMap::new());
        let told = told.iter().map(ToString::to_string);
        let told = told.filter(|text| text.contains("lead through exit nodes"));
        assert_eq!(told.count(), usize::from(warned), "{dst}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_difference_is_what_the_filters_of_all_nodes_say(
            world in random::world(),
            old in random::policy(),
            new in random::policy(),
        ) {
        brute::agrees(&world, &old, &new)?;
    }

    #[test]
    fn why_allows_what_a_node_is_shown_a_way_to_and_the_filter_there_lets_in(
            world in random::world(),
            policy in random::policy(),
        ) {
        brute::is_why(&world, &policy)?;
    }
}
