//! `sshTests` come out as the nodes would judge that are sent the rules.

use std::collections::{BTreeMap, BTreeSet};

use lowroad_coordinator::policy::{CompiledTailnet, Policy, World, compile, recompile};
use lowroad_wire::control::NodeId;
use proptest::prelude::*;

use super::people::{node, user};

const USERS: [&str; 5] = ["ann@a.org", "root@a.org", "bob@b.org", "*@b.org", "eve"];
const WORDS: [&str; 3] = ["accept", "check", "deny"];
const NAMES: [&str; 5] = ["root", "ann", "bob", "x", "y"];

/// Users with two nodes or one, and tagged nodes, two of them alike.
fn world() -> World {
    let users: Vec<_> = (1..).zip(USERS).map(|(id, name)| user(id, name)).collect();
    let owners = [1, 1, 2, 3, 3, 4, 5].map(Some);
    let own = (1..).zip(owners).map(|(id, owner)| node(id, owner, &[]));
    let tags: [&[&str]; 4] = [
        &["tag:web"],
        &["tag:web"],
        &["tag:db"],
        &["tag:web", "tag:db"],
    ];
    let tagged = (8..).zip(tags).map(|(id, tags)| node(id, None, tags));
    World {
        nodes: own.chain(tagged).collect(),
        users,
        ..World::default()
    }
}

/// Nodes by what tests write for them.
fn meant() -> BTreeMap<&'static str, Vec<i64>> {
    BTreeMap::from([
        ("ann@a.org", vec![1, 2]),
        ("root@a.org", vec![3]),
        ("*@b.org", vec![6]),
        ("eve@", vec![7]),
        ("group:a", vec![1, 2, 4, 5]),
        ("group:b", vec![1, 2, 3, 6]),
        ("user:*@B.org", vec![4, 5, 6]),
        ("tag:web", vec![8, 9, 11]),
        ("tag:db", vec![10, 11]),
        ("autogroup:member", (1..8).collect()),
        ("autogroup:tagged", (8..12).collect()),
    ])
}

prop_compose! {
    fn rule()(
        src in prop::collection::vec(prop::sample::select(vec![
            "ann@a.org", "group:a", "group:b", "user:*@b.org", "autogroup:member", "tag:web", "autogroup:tagged",
        ]), 1..3),
        dst in prop::collection::vec(prop::sample::select(vec!["tag:web", "tag:db", "autogroup:self"]), 1..3),
        users in prop::collection::vec(prop::sample::select(vec![
            "root", "autogroup:nonroot", "x", "ann", "localpart:*@A.org", "localpart:*@b.org", "localpart:*@b.org",
        ]), 1..3),
        action in prop::sample::select(vec!["accept", "accept", "check"]),
    ) -> String {
        let is_tagged = src.iter().any(|src| src.starts_with("tag:") || *src == "autogroup:tagged");
        let dst = if is_tagged { vec!["tag:web"] } else { dst };
        format!(r#"{{"action": "{action}", "src": {src:?}, "dst": {dst:?}, "users": {users:?}}}"#)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn logins_are_judged_as_nodes_judge_them(
        rules in prop::collection::vec(rule(), 0..5),
        destinations in Just(meant().into_keys().collect::<Vec<_>>()).prop_shuffle(),
    ) {
        let rules = rules.join(",\n");
        let mut world = world();
        world.tailnet.domains = vec!["A.org".into(), "a.org".into(), "b.org".into()];
        let compiled = recompile(&policy(&rules, ""), &world);
        let nodes = meant();
        for (source, from) in &nodes {
            for (at, word) in WORDS.iter().enumerate() {
                let test = format!(r#"{{"src": "{source}", "dst": {destinations:?}, "{word}": {NAMES:?}}}"#);
                let failed = failed(&policy(&rules, &test), &world);
                let wanted = destinations.iter().flat_map(|to| {
                    let fails = |name: &&str| !expected(&compiled, &world, from, &nodes[to], name)[at];
                    NAMES.iter().filter(move |name| fails(name)).map(|name| ((*name).to_owned(), (*to).to_owned()))
                });
                let wanted: BTreeSet<_> = wanted.collect();
                prop_assert_eq!(failed, wanted, "{} from {}\n{}", word, source, rules);
            }
        }
    }
}

/// Who meets himself may log in otherwise than who meets somebody like him.
#[test]
fn ones_own_name_is_let_in_at_ones_own_devices_only() {
    let rules = r#"{"action": "accept", "src": ["group:a"], "dst": ["autogroup:self"], "users": ["localpart:*@a.org", "localpart:*@b.org"]}"#;
    let test = r#"{"src": "group:a", "dst": ["ann@a.org", "bob@b.org"], "deny": ["ann"]}"#;
    let mut world = world();
    world.tailnet.domains = vec!["a.org".into(), "b.org".into()];
    let failed = failed(&policy(rules, test), &world);
    let wanted = ("ann".to_owned(), "ann@a.org".to_owned());
    assert_eq!(failed, BTreeSet::from([wanted]));
}

fn policy(rules: &str, tests: &str) -> Policy {
    let text = format!(
        r#"{{"groups": {{"group:a": ["ann@a.org", "bob@b.org"], "group:b": ["ann@a.org", "root@a.org", "*@b.org"]}},
            "tagOwners": {{"tag:web": [], "tag:db": []}}, "ssh": [{rules}], "sshTests": [{tests}]}}"#
    );
    Policy::parse(&text).expect("a policy of ours")
}

/// The login names of assertions that failed, and where to.
fn failed(policy: &Policy, world: &World) -> BTreeSet<(String, String)> {
    let Err(errors) = compile(policy, world) else {
        return BTreeSet::new();
    };
    let of_error = |said: &str| {
        let name = NAMES
            .iter()
            .find(|name| said.contains(&format!(" \"{name}\" from")));
        let (_, to) = said.split_once(" to \"").expect(said);
        let (to, _) = to.split_once('"').expect(said);
        ((*name.expect(said)).to_owned(), to.to_owned())
    };
    errors
        .iter()
        .map(|error| of_error(&error.message))
        .collect()
}

/// Whether everybody may log in everywhere, has to be checked everywhere, and may nowhere, of what nodes are sent.
fn expected(
    compiled: &CompiledTailnet,
    world: &World,
    from: &[i64],
    to: &[i64],
    name: &str,
) -> [bool; 3] {
    let mut holds = [true; 3];
    for to in to {
        let sent = compiled.ssh_for(NodeId(*to));
        for from in from {
            let mut nodes = world.nodes.iter();
            let node = nodes.find(|node| node.id.0 == *from);
            let address = node.and_then(|node| node.v4).expect("all nodes have one");
            let address = address.to_string();
            let rules = sent.rules.iter().filter(|rule| {
                let mut principals = rule.principals.iter();
                let user = rule.ssh_users.get(name);
                let others = rule.ssh_users.get("*").filter(|_| name != "root");
                let is_allowed = user.or(others).is_some_and(|user| !user.is_empty());
                is_allowed && principals.any(|principal| principal.node_ip == address)
            });
            let checks: Vec<bool> = rules.map(|rule| !rule.action.accept).collect();
            holds[0] &= !checks.is_empty();
            holds[1] &= checks.contains(&true);
            holds[2] &= checks.is_empty();
        }
    }
    holds
}
