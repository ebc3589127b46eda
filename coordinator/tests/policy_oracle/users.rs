//! Users that come, go and are renamed: those without nodes are followed, others are compiled anew.

use std::collections::BTreeMap;

use lowroad_coordinator::policy::{
    CompiledTailnet, NodeChange, NodeFacts, Policy, TailnetFacts, UserFacts, Users, World,
    recompile,
};
use lowroad_wire::control::{NodeId, UserId};

use super::follow::assert_same;
use super::people::{node, user};

/// Names carol in every way.
const POLICY: &str = r#"{"groups": {"group:a": ["ann@example.com", "carol@new.net"]}, "tagOwners": {"tag:web": ["carol@new.net"]},
    "acls": [{"action": "accept", "src": ["carol@new.net"], "dst": ["tag:web:22"]},
        {"action": "accept", "src": ["group:a"], "dst": ["autogroup:self:*", "bob@:80"]}],
    "grants": [{"src": ["user:*@new.net"], "dst": ["autogroup:member"], "ip": ["443"]}],
    "ssh": [{"action": "accept", "src": ["carol@new.net", "ann@example.com"], "dst": ["tag:web"],
        "users": ["localpart:*@new.net", "root"]}],
    "autoApprovers": {"routes": {"10.0.0.0/8": ["carol@new.net", "ann@example.com"]}},
    "nodeAttrs": [{"target": ["group:a"], "attr": ["custom:a"]}]}"#;

const CAROL: &str = "carol@new.net";

#[test]
fn a_user_who_comes_with_a_first_node_is_followed_and_so_is_one_who_goes() {
    let mut router = node(4, Some(3), &[]);
    router.announced = vec!["10.1.0.0/16".parse().unwrap()];
    for joining in [node(4, Some(3), &[]), router] {
        let comes = [(NodeId(4), Some(joining))];
        assert!(!is_whole(
            &known(),
            &users(&["ann@example.com", "bob", CAROL]),
            &comes
        ));
    }
    assert!(!is_whole(
        &known(),
        &users(&["ann@example.com", "bob", CAROL]),
        &[]
    ));
    assert!(!is_whole(
        &users(&["ann@example.com", "bob", CAROL]),
        &known(),
        &[]
    ));
}

#[test]
fn a_user_who_is_renamed_is_followed_without_nodes_only() {
    let other = ["ann@example.com", "bob", "dave"];
    assert!(!is_whole(
        &users(&other),
        &users(&["ann@example.com", "bob", CAROL]),
        &[]
    ));
    assert!(is_whole(&known(), &users(&["ann@example.com", CAROL]), &[]));
    assert!(is_whole(&known(), &users(&["ann@example.com"]), &[]));
}

#[test]
fn a_second_user_of_one_name_is_not_followed() {
    let twice = users(&["ann@example.com", "bob", "BOB@"]);
    assert!(is_whole(&known(), &twice, &[]));
    assert!(is_whole(&twice, &known(), &[]));
    let mut one_number = known();
    one_number.push(user(1, "eve"));
    assert!(is_whole(&known(), &one_number, &[]));
}

fn known() -> Vec<UserFacts> {
    users(&["ann@example.com", "bob"])
}

fn users(names: &[&str]) -> Vec<UserFacts> {
    let names = names.iter().zip(1..);
    names.map(|(name, id)| user(id, name)).collect()
}

/// Whether users and nodes are compiled anew. What comes out is what compiling them makes of them, and the version before says what it
/// said.
fn is_whole(before: &[UserFacts], after: &[UserFacts], changes: &[NodeChange]) -> bool {
    let policy = Policy::parse(POLICY).unwrap();
    let mut nodes: BTreeMap<NodeId, NodeFacts> = BTreeMap::new();
    let mut router = node(1, Some(1), &[]);
    router.announced = vec!["10.1.0.0/16".parse().unwrap()];
    for known in [router, node(2, Some(2), &[]), node(3, None, &["tag:web"])] {
        nodes.insert(known.id, known);
    }
    let world = |users: &[UserFacts], nodes: &BTreeMap<NodeId, NodeFacts>| World {
        users: users.to_vec(),
        nodes: nodes.values().cloned().collect(),
        tailnet: TailnetFacts::default(),
    };
    let old_world = world(before, &nodes);
    let old = recompile(&policy, &old_world);
    let users = Users {
        users: after.to_vec(),
        tailnet: TailnetFacts::default(),
    };
    let followed = old.follow_all(Some(&users), changes);
    for (id, facts) in changes {
        nodes.insert(*id, facts.clone().unwrap());
    }
    let new_world = world(after, &nodes);
    for (asked, world) in [(&old, &old_world), (&followed.compiled, &new_world)] {
        let fresh = recompile(&policy, world);
        for node in &world.nodes {
            assert_same(asked, &fresh, node.id, &|| {
                format!("{} of {after:?}", node.id)
            });
        }
        for user in [1, 2, 3].map(UserId) {
            let may = |compiled: &CompiledTailnet| compiled.may_tag(user, "tag:web");
            assert_eq!(may(asked), may(&fresh), "{user:?} of {after:?}");
        }
    }
    followed.is_whole
}
