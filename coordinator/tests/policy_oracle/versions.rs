//! Versions of a compiled policy share what a change leaves as it was: asking one of them makes no difference to another.

use std::collections::{BTreeMap, HashMap};

use lowroad_coordinator::policy::{
    CompiledTailnet, Diff, Followed, NodeChange, NodeFacts, Policy, WhyEnd, World, diff, recompile,
    warnings,
};
use lowroad_wire::control::NodeId;

use super::follow::assert_same;
use super::language::USERS;
use super::people::{node, user};

const ANN: Option<i64> = Some(1);
const BOB: Option<i64> = Some(2);

/// More than one piece of the tables that versions share.
const MANY: i64 = 70;

const SERVERS: &str = r#"{"tagOwners": {"tag:web": []},
    "acls": [{"action": "accept", "src": ["ann@example.com"], "dst": ["tag:web:22"]}],
    "ssh": [{"action": "accept", "src": ["ann@example.com"], "dst": ["tag:web"], "users": ["root"]}]}"#;

#[test]
fn who_joins_is_seen_in_the_new_version_whichever_is_asked_first() {
    follow(SERVERS, servers(), &[(MANY + 1, Some(server(MANY + 1)))]);
}

#[test]
fn who_leaves_or_is_anothers_is_not_seen_in_the_new_version_whichever_is_asked_first() {
    follow(SERVERS, servers(), &[(MANY, None)]);
    follow(SERVERS, servers(), &[(MANY, Some(node(MANY, BOB, &[])))]);
}

#[test]
fn what_is_looked_up_between_two_changes_is_not_for_the_version_before() {
    let joins = (MANY + 1, Some(server(MANY + 1)));
    let is_bobs = (1, Some(node(1, BOB, &[])));
    follow(SERVERS, servers(), &[joins.clone(), is_bobs.clone()]);
    // A subnet route that nobody offered makes everything be compiled anew, half way.
    let mut router = server(2);
    router.announced = vec!["10.0.0.0/8".parse().unwrap()];
    router.admin_approved.clone_from(&router.announced);
    follow(SERVERS, servers(), &[joins, is_bobs, (2, Some(router))]);
}

/// Groups of the same devices are sent as one rule until a device of bob's joins, or again once it left.
const OWN: &str = r#"{"groups": {"group:a": ["ann@example.com"], "group:b": ["ann@example.com", "bob@"]},
    "acls": [{"action": "accept", "src": ["group:a"], "dst": ["autogroup:self:22"]},
        {"action": "accept", "src": ["group:b"], "dst": ["autogroup:self:80"]}]}"#;

#[test]
fn rules_to_own_devices_split_and_join_as_their_sources_do() {
    let anns = vec![node(1, ANN, &[]), node(2, ANN, &[])];
    let bobs = node(3, BOB, &[]);
    let all = [anns.clone(), vec![bobs.clone()]].concat();
    follow(OWN, anns, &[(3, Some(bobs))]);
    follow(OWN, all, &[(3, None)]);
}

#[test]
fn who_left_is_named_by_nobody_and_makes_no_difference() {
    let policy = |ports: &str| {
        let text = format!(
            r#"{{"tagOwners": {{"tag:web": []}},
                "acls": [{{"action": "accept", "src": ["autogroup:member"], "dst": ["tag:web:{ports}"]}}],
                "ssh": [{{"action": "accept", "src": ["autogroup:member"], "dst": ["tag:web"], "users": ["root"]}}]}}"#
        );
        Policy::parse(&text).unwrap()
    };
    let (old, new) = (policy("22"), policy("23"));
    let nodes = [servers(), vec![node(MANY + 1, BOB, &[])]].concat();
    let world = |nodes: &[NodeFacts]| World {
        users: (1..).zip(USERS).map(|(id, name)| user(id, name)).collect(),
        nodes: nodes.to_vec(),
        ..World::default()
    };
    // Ann's only device, and a server.
    let followed = recompile(&old, &world(&nodes)).follow(&[(NodeId(1), None), (NodeId(2), None)]);
    assert!(!followed.is_whole);
    let followed = followed.compiled;
    let (fresh, other) = (
        recompile(&old, &world(&nodes[2..])),
        recompile(&new, &world(&nodes[2..])),
    );
    let members = old.ends(&followed, "autogroup:member");
    assert_eq!(members, Ok(vec![WhyEnd::Node(NodeId(MANY + 1))]));
    assert_eq!(
        old.ends(&followed, "tag:web").unwrap().len(),
        servers().len() - 2
    );
    assert_eq!(diff(&followed, &fresh), Diff::default());
    assert_eq!(diff(&followed, &other), diff(&fresh, &other));
    assert_eq!(diff(&other, &followed), diff(&other, &fresh));
    let names = HashMap::new();
    assert_eq!(
        warnings(&old, &followed, &names),
        warnings(&old, &fresh, &names)
    );
}

#[test]
fn many_changes_at_once_are_followed_only_where_many_rules_would_have_to_be_compiled() {
    let rule = r#"{"action": "accept", "src": ["ann@example.com"], "dst": ["tag:web:22"]}"#;
    let is_whole = |rules: usize, changes: i64| {
        let rules = vec![rule; rules].join(",");
        let text = format!(r#"{{"tagOwners": {{"tag:web": []}}, "acls": [{rules}]}}"#);
        let compiled = recompile(&Policy::parse(&text).unwrap(), &World::default());
        let joins = (1..=changes).map(|id| (NodeId(id), Some(server(id))));
        compiled.follow(&joins.collect::<Vec<_>>()).is_whole
    };
    assert_eq!([is_whole(1, 8), is_whole(1, 20)], [false, true]);
    assert_eq!([is_whole(500, 50), is_whole(500, 100)], [false, true]);
}

fn server(id: i64) -> NodeFacts {
    node(id, None, &["tag:web"])
}

/// Ann's device, and servers.
fn servers() -> Vec<NodeFacts> {
    let servers = (2..=MANY).map(server);
    std::iter::once(node(1, ANN, &[])).chain(servers).collect()
}

/// Follows changes of a version that knows nothing yet, and of one that was asked everything; asks that one again, then the new one:
/// each says what compiling its nodes makes of them.
pub fn follow(
    policy: &str,
    nodes: Vec<NodeFacts>,
    changes: &[(i64, Option<NodeFacts>)],
) -> Followed {
    let policy = Policy::parse(policy).unwrap();
    let before: BTreeMap<NodeId, NodeFacts> =
        nodes.into_iter().map(|node| (node.id, node)).collect();
    let mut after = before.clone();
    let changes: Vec<NodeChange> = changes
        .iter()
        .map(|(id, facts)| (NodeId(*id), facts.clone()))
        .collect();
    for (id, facts) in &changes {
        match facts {
            Some(facts) => after.insert(*id, facts.clone()),
            None => after.remove(id),
        };
    }
    let fresh = |nodes: &BTreeMap<NodeId, NodeFacts>| {
        let users = USERS.iter().zip(1..);
        let world = World {
            users: users.map(|(name, id)| user(id, name)).collect(),
            nodes: nodes.values().cloned().collect(),
            ..World::default()
        };
        recompile(&policy, &world)
    };
    let follow = |is_known: bool| {
        let same = |asked: &CompiledTailnet, nodes: &BTreeMap<NodeId, NodeFacts>| {
            let fresh = fresh(nodes);
            for id in nodes.keys() {
                let which = || format!("{id} with {changes:?}, asked before: {is_known}");
                assert_same(asked, &fresh, *id, &which);
            }
        };
        let old = fresh(&before);
        if is_known {
            same(&old, &before);
        }
        let new = old.follow(&changes);
        same(&old, &before);
        same(&new.compiled, &after);
        new
    };
    follow(false);
    follow(true)
}
