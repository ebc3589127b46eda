//! Nodes that stand in for users and tags that have none: tests of a policy come out as if everybody had joined.

use std::fmt::Write as _;

use lowroad_coordinator::policy::{Policy, PolicyErrorKind, UnknownUsers, World, compile_with};
use proptest::prelude::*;

use super::people::{node, user};

const USERS: [&str; 6] = [
    "ann@example.com",
    "Bob@example.com",
    "cid@other.org",
    "dan@other.org",
    "eve@",
    "fay@",
];
const GROUPS: [&str; 3] = ["group:a", "group:b", "group:c"];
const TAGS: [&str; 2] = ["tag:web", "tag:db"];

/// Whom rules and tests can be about.
fn who() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => prop::sample::select(&GROUPS[..]),
        2 => prop::sample::select(&USERS[..]),
        2 => prop::sample::select(&TAGS[..]),
    ]
    .prop_map(str::to_owned)
}

fn list(of: impl Strategy<Value = String>) -> impl Strategy<Value = Vec<String>> {
    prop::collection::vec(of, 1..3)
}

fn rules() -> impl Strategy<Value = String> {
    let others = prop::sample::select(vec!["user:*@example.com", "*", "autogroup:member"]);
    let src = prop_oneof![4 => who(), 1 => others.prop_map(str::to_owned)];
    let dst = prop_oneof![4 => who(), 1 => Just("autogroup:self".to_owned())];
    let grant = (list(src), dst, 80u16..82).prop_map(|(src, dst, port)| {
        let src = match dst == "autogroup:self" {
            true => vec!["group:a".to_owned(), "group:c".to_owned()],
            false => src,
        };
        format!(r#"{{"src": {src:?}, "dst": ["{dst}"], "ip": ["{port}"]}}"#)
    });
    prop::collection::vec(grant, 0..5).prop_map(|grants| grants.join(",\n"))
}

fn logins() -> impl Strategy<Value = String> {
    let login = prop::sample::select(vec!["root", "localpart:*@example.com", "ann"]);
    let dst = prop::sample::select([&TAGS[..], &["autogroup:self"]].concat());
    let rule = (list(who()), dst, login);
    let rule = rule.prop_map(|(mut src, dst, login)| {
        if dst == "autogroup:self" {
            src.retain(|src| !src.starts_with("tag:"));
            src.push("group:b".to_owned());
        }
        format!(r#"{{"action": "accept", "src": {src:?}, "dst": ["{dst}"], "users": ["{login}"]}}"#)
    });
    prop::collection::vec(rule, 0..4).prop_map(|rules| rules.join(",\n"))
}

fn tests() -> impl Strategy<Value = (String, String)> {
    let verdict = prop::sample::select(vec!["accept", "deny"]);
    let tag = prop::sample::select(&TAGS[..]);
    let test = (who(), tag.clone(), 80u16..82, verdict.clone());
    let test = test.prop_map(|(src, dst, port, verdict)| {
        format!(r#"{{"src": "{src}", "{verdict}": ["{dst}:{port}"]}}"#)
    });
    let name = prop::sample::select(vec!["root", "ann", "bob", "cid"]);
    let dst = prop_oneof![3 => who(), 1 => Just("autogroup:self".to_owned())];
    let login = (who(), dst, name, verdict);
    let login = login.prop_map(|(src, dst, name, verdict)| {
        format!(r#"{{"src": "{src}", "dst": ["{dst}"], "{verdict}": ["{name}"]}}"#)
    });
    let lines = |tests: Vec<String>| tests.join(",\n");
    (
        prop::collection::vec(test, 0..5).prop_map(lines),
        prop::collection::vec(login, 0..5).prop_map(lines),
    )
}

prop_compose! {
    fn policies()(
        members in prop::collection::vec(prop::sample::subsequence(USERS.to_vec(), 1..=6), 3),
        rules in rules(),
        logins in logins(),
        (tests, ssh_tests) in tests(),
    ) -> String {
        let mut text = "{\"groups\": {".to_owned();
        for (group, members) in GROUPS.iter().zip(members) {
            let _ = write!(text, "{group:?}: {members:?}, ");
        }
        text + &format!("}},\n\"tagOwners\": {{\"tag:web\": [], \"tag:db\": []}},\n\"grants\": [{rules}],\n\"ssh\": [{logins}],\n\"tests\": [{tests}],\n\"sshTests\": [{ssh_tests}]}}")
    }
}

/// All users with a node each, and two nodes with each tag.
fn everybody() -> World {
    let users: Vec<_> = (1..)
        .zip(USERS)
        .map(|(id, name)| user(id, name.trim_end_matches('@')))
        .collect();
    let own = users
        .iter()
        .map(|user| node(user.id.0, Some(user.id.0), &[]));
    let tagged = (7..).zip(TAGS.into_iter().chain(TAGS));
    let tagged = tagged.map(|(id, tag)| node(id, None, &[tag]));
    World {
        nodes: own.chain(tagged).collect(),
        users,
        ..World::default()
    }
}

fn errors(policy: &Policy, world: &World) -> Vec<String> {
    match compile_with(policy, world, UnknownUsers::Accept) {
        Ok(_) => Vec::new(),
        Err(errors) => errors.iter().map(ToString::to_string).collect(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn tests_come_out_as_if_everybody_had_joined(text in policies()) {
        let policy = Policy::parse(&text).map_err(|why| TestCaseError::fail(format!("{why}\n{text}")))?;
        let before = errors(&policy, &World::default());
        prop_assert_eq!(before, errors(&policy, &everybody()), "{}", text);
    }
}

/// Nothing tells the two apart, but neither may log in at the other's.
#[test]
fn those_who_are_alike_are_not_taken_for_one() {
    let own = r#""ssh": [{"action": "accept", "src": ["group:a"], "dst": ["autogroup:self"], "users": ["root"]}],
        "sshTests": [{"src": "group:a", "dst": ["group:a"], "accept": ["root"]}]"#;
    let users = |members: &str| format!(r#"{{"groups": {{"group:a": [{members}]}}, {own}}}"#);
    let tagged = r#"{"tagOwners": {"tag:a": [], "tag:b": []},
        "ssh": [{"action": "accept", "src": ["tag:a"], "dst": ["tag:b"], "users": ["root", "localpart:*@example.com"]}],
        "sshTests": [{"src": "tag:a", "dst": ["tag:a"], "accept": ["root"]}]}"#;
    for text in [
        users(r#""bob@", "fay@""#),
        users(r#""bob@", "Bob@", "BOB@", "fay@""#),
        tagged.to_owned(),
    ] {
        let policy = Policy::parse(&text).unwrap();
        let failed = errors(&policy, &World::default());
        assert_eq!(failed.len(), 1, "{text}: {failed:?}");
        assert!(failed[0].contains("ssh test failed: accept"), "{failed:?}");
    }
}

/// Nobody of the group has a node: that another test is about one of them makes no difference.
#[test]
fn all_members_of_a_group_are_tried_whatever_other_tests_are_about() {
    let text = r#"{"groups": {"group:a": ["bob@", "fay@"], "group:b": ["bob@"], "group:c": ["fay@"]}, "tagOwners": {"tag:db": []},
        "grants": [{"src": ["group:c"], "dst": ["tag:db"], "ip": ["80"]}],
        "tests": [{"src": "group:b", "deny": ["tag:db:80"]}, {"src": "group:a", "deny": ["tag:db:80"]}]}"#;
    let policy = Policy::parse(text).unwrap();
    let [error] = &errors(&policy, &World::default())[..] else {
        panic!("one test fails");
    };
    assert!(
        error.contains("deny \"tag:db:80\" from \"group:a\""),
        "{error}"
    );
}

#[test]
fn a_test_about_more_users_than_can_be_told_apart_is_refused_with_its_place() {
    let groups: String = (0..10_001)
        .map(|n| format!(r#""group:g{n}": ["u{n}@"], "#))
        .collect();
    let all: String = (0..10_001).map(|n| format!(r#""u{n}@", "#)).collect();
    let text = format!(
        "{{\"groups\": {{{groups}\"group:all\": [{all}]}},\n\"tests\": [{{\"src\": \"group:all\", \"deny\": [\"100.64.0.1:22\"]}}]}}"
    );
    let policy = Policy::parse(&text).unwrap();
    let refused = compile_with(&policy, &World::default(), UnknownUsers::Accept).unwrap_err();
    let error = refused.first();
    assert_eq!(
        (error.line, error.column, error.kind),
        (2, 19, PolicyErrorKind::Test)
    );
    assert!(
        error
            .message
            .contains("more than 10000 users and tags that have no node yet"),
        "{error}"
    );
}

/// Beside a node that stands in: by name both of her addresses are sources, as an address only the one that is written.
#[test]
fn who_has_a_node_is_a_source_by_name_and_by_address() {
    let text = r#"{"tagOwners": {"tag:db": []},
        "grants": [{"src": ["ann@example.com"], "dst": ["tag:db"], "ip": ["80"]}, {"src": ["100.64.0.1", "fay@"], "dst": ["tag:db"], "ip": ["81"]}],
        "tests": [{"src": "100.64.0.1", "accept": ["tag:db:80", "tag:db:81"]}, {"src": "fd7a:115c:a1e0::1", "accept": ["tag:db:80"], "deny": ["tag:db:81"]},
            {"src": "ann@example.com", "accept": ["tag:db:80", "tag:db:81"]}, {"src": "fay@", "accept": ["tag:db:81"], "deny": ["tag:db:80"]}]}"#;
    let policy = Policy::parse(text).unwrap();
    let ann = World {
        users: vec![user(1, "ann@example.com")],
        nodes: vec![node(1, Some(1), &[])],
        ..World::default()
    };
    assert_eq!(errors(&policy, &ann), Vec::<String>::new());
}
