//! The policy language from outside: places in errors, refusals, tests, foreign text, size.

#[path = "../support/devices.rs"]
mod devices;
mod foreign;
mod logins;
#[path = "../support/people.rs"]
mod people;
mod stand_ins;

use std::time::Instant;

use lowroad_coordinator::policy::{
    Policy, PolicyErrorKind, UnknownUsers, World, compile, compile_with, recompile,
};
use lowroad_wire::control::{NodeId, UserId};

use devices::alice_and_bob;
use people::{node, user};

/// Alice with nodes 1 and 2, Bob with node 3, and a server with node 4.
fn small_world() -> World {
    let mut world = alice_and_bob();
    world.nodes.push(node(4, Some(2), &["tag:server"]));
    world
}

fn refusal(policy: &str) -> (PolicyErrorKind, String) {
    let world = small_world();
    let errors = Policy::parse(policy)
        .and_then(|policy| compile(&policy, &world))
        .expect_err("the policy is refused");
    let first = errors.first();
    (first.kind, first.to_string())
}

#[track_caller]
fn refused(policy: &str, kind: PolicyErrorKind, beginning: &str) {
    let (found, text) = refusal(policy);
    assert!(
        found == kind && text.starts_with(beginning),
        "{found:?} {text:?} does not begin with {kind:?} {beginning:?}"
    );
}

#[test]
fn errors_say_line_and_column_and_what_to_do() {
    use PolicyErrorKind::{Invalid, Syntax, Test, Unsupported};
    for (policy, kind, beginning) in [
        ("", Syntax, "policy.hujson:1:1: the policy is empty; write"),
        ("// só\n{\"acls\": [}", Syntax, "policy.hujson:2:11: "),
        (
            "{\n  \"acl\": []}",
            Invalid,
            "policy.hujson:2:3: the policy has no field \"acl\"; it may have groups, ",
        ),
        (
            "{\n  \"ipsets\": {}}",
            Unsupported,
            "policy.hujson:2:3: \"ipsets\": not supported yet",
        ),
        (
            "{\"acls\": [], \"ACLs\": []}",
            Invalid,
            "policy.hujson:1:14: \"ACLs\" stands twice",
        ),
        (
            "{\"groups\": {\"group:a\": [\"group:b\"]}}",
            Invalid,
            "policy.hujson:1:25: \"group:b\" is a group inside",
        ),
        (
            "{\"groups\": {\"group:a\": [\"alice\"]}}",
            Invalid,
            "policy.hujson:1:25: \"alice\" is no user; write",
        ),
        (
            "{\"groups\": {\"grp\": []}}",
            Invalid,
            "policy.hujson:1:13: \"grp\" is no group",
        ),
        (
            "{\"tagOwners\": {\"tag:1\": []}}",
            Invalid,
            "policy.hujson:1:16: \"tag:1\" is no tag",
        ),
        (
            "{\"hosts\": {\"h\": \"10.0.0.1/8\"}}",
            Invalid,
            "policy.hujson:1:17: host \"10.0.0.1/8\" has host bits set; write 10.0.0.0/8",
        ),
        (
            "{\"acls\": [\n{\"action\": \"accept\", \"src\": [\"é\", \"tag:x\"], \"dst\": [\"*:*\"]}]}",
            Invalid,
            "policy.hujson:2:30: src \"é\": no such host",
        ),
        (
            "{\"acls\": [{\"action\": \"drop\", \"src\": [], \"dst\": []}]}",
            Invalid,
            "policy.hujson:1:22: action \"drop\" is not supported",
        ),
        (
            "{\"acls\": [{\"action\": \"accept\", \"src\": [\"*\"], \"dst\": [\"*:http\"]}]}",
            Invalid,
            "policy.hujson:1:54: \"http\" is no port range",
        ),
        (
            "{\"acls\": [{\"src\": [\"*\"], \"dst\": [\"*:1\"]}]}",
            Invalid,
            "policy.hujson:1:11: this acl has no \"action\"; add it",
        ),
        (
            "{\"grants\": [{\"src\": [\"*\"], \"dst\": [\"*\"], \"app\": {}}]}",
            Invalid,
            "policy.hujson:1:13: this grant grants nothing; add \"ip\"",
        ),
        (
            "{\"grants\": [{\"src\": [\"*\"], \"dst\": [\"*\"], \"ip\": [\"tcp\"]}]}",
            Invalid,
            "policy.hujson:1:49: ip \"tcp\": write",
        ),
        (
            "{\"acls\": [{\"action\": \"accept\", \"src\": [\"bob@\", \"eve@x.com\"], \"dst\": [\"*:*\"]}]}",
            Invalid,
            "policy.hujson:1:48: \"eve@x.com\": no such user; create it",
        ),
        (
            "{\"acls\": [],\n \"tests\": [{\"src\": \"bob@\", \"accept\": [\"100.64.0.1:22\"]}]}",
            Test,
            "policy.hujson:2:39: test failed: accept \"100.64.0.1:22\" from \"bob@\", but the policy refuses it",
        ),
        (
            "{\"tests\": [{\"src\": \"bob@\"}]}",
            Test,
            "policy.hujson:1:20: test that asserts nothing",
        ),
    ] {
        refused(policy, kind, beginning);
    }
}

#[test]
fn comments_and_trailing_commas_are_part_of_the_language_and_other_liberties_are_not() {
    let policy = "// who\n{ /* all */ \"acls\": [{\"action\": \"accept\", \"src\": [\"*\",], \"dst\": [\"*:*\",],},], }";
    assert!(Policy::parse(policy).is_ok());
    for loose in [
        "{acls: []}",
        "{'acls': []}",
        "{\"acls\": [] \"tests\": []}",
        "{\"acls\": []} {}",
        "[]",
        "null",
    ] {
        assert!(Policy::parse(loose).is_err(), "{loose}");
    }
    for (loose, beginning) in [
        (
            "{\"hosts\": {\"a\tb\": \"1.2.3.4\"}}",
            "1:14: a tab inside a string",
        ),
        (
            "{\"hosts\": {// \"\n \"é\0\": \"1.2.3.4\"}}",
            "2:4: a control character inside a string; write \\u0000",
        ),
        (
            "{\"acls\": [{\"src\": [\"*\\\"\n]}], \"tests\": []}",
            "1:24: a string ends in the line",
        ),
        ("{\"hosts\": {\"a\r\": 1}}", "1:14: a string ends in the"),
        (
            "{\"acls\":\u{a0}[]}",
            "1:9: U+00A0 is no white space of HuJSON",
        ),
        ("{\"acls\": {] \"\t\"}", "1:11: "),
        (
            "\u{feff}{}",
            "1:1: the file begins with a byte order mark (U+FEFF)",
        ),
        ("{}\u{feff}", "1:3: Unexpected token"),
        ("{\"acls\": \"\\é\t\"}", "1:11: Invalid escape"),
        (
            "{\"hosts\": {\"a\\tb\": \"1.2.3.4\"}}",
            "1:12: host name \"a\\tb\" could be taken for",
        ),
    ] {
        let shown = Policy::parse(loose).expect_err(loose).to_string();
        assert!(
            shown.starts_with(&format!("policy.hujson:{beginning}")),
            "{shown}"
        );
    }
    let commented =
        "{/* \"\t\n\u{a0} */ \"acls\": [], // \"\t\u{a0}\n\"hosts\": {\"a\": \"1.2.3.4\"}}";
    assert!(Policy::parse(commented).is_ok());
}

#[test]
fn deep_nesting_is_refused_and_does_not_overflow_the_stack() {
    for open in ["[", "{\"a\":"] {
        let text = open.repeat(1_000_000);
        let errors = Policy::parse(&text).expect_err("nested too deeply");
        assert_eq!(errors.first().kind, PolicyErrorKind::Syntax);
    }
}

#[test]
fn without_a_policy_everybody_reaches_everybody_and_with_an_empty_one_nobody() {
    let open = recompile(&Policy::allow_all(), &small_world());
    assert_eq!(open.peers_of(NodeId(1)).len(), 3);
    assert_eq!(open.filter_for(NodeId(4))[0].dst_ports[0].ip, "*");
    for empty in ["{\"acls\": []}", "{\"acls\": null}", "{\"grants\": []}"] {
        let closed = compile(&Policy::parse(empty).unwrap(), &small_world()).unwrap();
        assert!(closed.peers_of(NodeId(1)).is_empty());
        assert!(closed.filter_for(NodeId(4)).is_empty());
    }
}

#[test]
fn a_node_that_is_not_in_the_world_gets_nothing() {
    let open = recompile(&Policy::allow_all(), &small_world());
    assert!(open.filter_for(NodeId(99)).is_empty());
    assert!(open.peers_of(NodeId(99)).is_empty());
    assert!(!open.sees(NodeId(1), NodeId(99)) && open.sees(NodeId(1), NodeId(2)));
}

#[test]
fn tests_pass_for_users_and_tags_that_have_no_node_yet() {
    let policy = Policy::parse(
        r#"{
            "groups": {"group:ops": ["carol@example.com"]},
            "tagOwners": {"tag:db": ["group:ops"]},
            "acls": [{"action": "accept", "src": ["group:ops"], "dst": ["tag:db:5432"]}],
            "tests": [{"src": "carol@example.com", "accept": ["tag:db:5432"], "deny": ["tag:db:22"]}],
        }"#,
    )
    .unwrap();
    let world = World::default();
    assert_eq!(
        compile(&policy, &world).unwrap_err().first().kind,
        PolicyErrorKind::Invalid,
        "carol is unknown"
    );
    assert_eq!(policy.unknown_users(&world).len(), 1);
    let compiled = compile_with(&policy, &world, UnknownUsers::Accept).unwrap();
    assert!(
        compiled.peers_of(NodeId(-1)).is_empty(),
        "stand-ins stay inside the tests"
    );
}

#[test]
fn tests_know_whose_devices_are_whose() {
    let with_test = |test: &str| {
        let text = format!(
            r#"{{
                "acls": [{{"action": "accept", "src": ["autogroup:member"], "dst": ["autogroup:self:22"]}}],
                "tests": [{test}],
            }}"#
        );
        compile(&Policy::parse(&text).unwrap(), &small_world()).map(|_| ())
    };
    let alice = r#"{"src": "alice@example.com", "accept": ["100.64.0.2:22"], "deny": ["100.64.0.2:23", "100.64.0.3:22"]}"#;
    assert_eq!(with_test(alice), Ok(()));
    let bob = r#"{"src": "bob@", "accept": ["100.64.0.2:22"]}"#;
    assert_eq!(
        with_test(bob).unwrap_err().first().kind,
        PolicyErrorKind::Test
    );
}

#[test]
fn tags_are_given_by_their_owners_only() {
    let policy = Policy::parse(
        r#"{
            "groups": {"group:ops": ["alice@example.com"]},
            "tagOwners": {"tag:server": ["group:ops"], "tag:bob": ["bob@"], "tag:inner": ["tag:server"]},
        }"#,
    )
    .unwrap();
    let compiled = compile(&policy, &small_world()).unwrap();
    let (alice, bob) = (UserId(1), UserId(2));
    assert!(compiled.may_tag(alice, "tag:server") && !compiled.may_tag(bob, "tag:server"));
    assert!(compiled.may_tag(bob, "tag:bob") && !compiled.may_tag(bob, "tag:unknown"));
    assert!(compiled.tag_may_tag(&["tag:server".to_owned()], "tag:inner"));
    assert!(!compiled.tag_may_tag(&["tag:bob".to_owned()], "tag:inner"));
}

#[test]
fn a_route_moves_to_the_next_announcer_while_its_first_is_offline() {
    let mut world = small_world();
    let route = "10.1.0.0/16".parse().unwrap();
    for at in [2, 3] {
        world.nodes[at].announced = vec![route];
        world.nodes[at].admin_approved = vec![route];
    }
    let open = Policy::allow_all();
    let carrier = |world: &World| {
        let compiled = recompile(&open, world);
        let peers = compiled.peers_of(NodeId(1));
        let carriers = peers
            .iter()
            .filter(|(_, peer)| peer.allowed_ips.contains(&route))
            .map(|(id, _)| id.0);
        carriers.collect::<Vec<_>>()
    };
    assert_eq!(carrier(&world), [3]);
    world.nodes[2].online = false;
    assert_eq!(carrier(&world), [4]);
    world.nodes[3].online = false;
    assert_eq!(carrier(&world), [3]);
}

#[test]
fn an_exit_node_is_shown_to_those_who_may_use_the_internet_only() {
    let mut world = small_world();
    let exits = vec!["0.0.0.0/0".parse().unwrap(), "::/0".parse().unwrap()];
    world.nodes[3].announced = exits.clone();
    world.nodes[3].admin_approved = vec![exits[0]];
    let policy = Policy::parse(
        r#"{"acls": [
            {"action": "accept", "src": ["alice@example.com"], "dst": ["autogroup:internet:*"]},
            {"action": "accept", "src": ["bob@"], "dst": ["100.64.0.4:22"]},
        ]}"#,
    )
    .unwrap();
    let compiled = compile(&policy, &world).unwrap();
    assert_eq!(compiled.approved(NodeId(4)), exits, "approved as a pair");
    let seen_by = |viewer| compiled.peer_view(NodeId(viewer), NodeId(4)).unwrap();
    assert_eq!(seen_by(1).allowed_ips.len(), 4);
    assert!(seen_by(1).primary_routes.is_empty());
    assert_eq!(seen_by(3).allowed_ips.len(), 2);
    let filter = compiled.filter_for(NodeId(4));
    assert!(filter.iter().any(|rule| {
        rule.dst_ports
            .iter()
            .any(|to| to.ip == "1.0.0.0-9.255.255.255")
    }));
    assert!(compiled.filter_for(NodeId(3)).is_empty());
}

#[test]
fn thousands_of_nodes_compile_quickly() {
    let (world, policy) = (large_world(), Policy::parse(&large_policy()).unwrap());
    let ids = || (1..=5_000).map(NodeId);
    let started = Instant::now();
    let compiled = compile(&policy, &world).unwrap();
    let compiling = started.elapsed();
    let rules: usize = ids().map(|id| compiled.filter_for(id).len()).sum();
    let filtering = started.elapsed() - compiling;
    let peers: usize = ids().map(|id| compiled.peers_of(id).len()).sum();
    let viewing = started.elapsed() - compiling - filtering;
    println!(
        "5000 nodes, 200 rules: compiled in {compiling:?}, all filters ({rules} rules) in {filtering:?}, all views ({peers} peers) in {viewing:?}"
    );
    // Generous, because this is an unoptimised build on a shared machine.
    assert!(compiling.as_secs() < 10, "{compiling:?}");
}

/// 5,000 nodes, half of them tagged, of 500 users; 200 subnet routers.
fn large_world() -> World {
    let nodes = (1..=5_000).map(|id| {
        let tag = format!("tag:t{}", id % 50);
        let tags: &[&str] = if id % 2 == 0 { &[] } else { &[&tag] };
        let mut node = node(id, Some(id % 500), tags);
        if id % 25 == 1 {
            let route = format!("10.{}.{}.0/24", id % 200, id / 200);
            node.announced = vec![route.parse().expect("a route")];
            node.admin_approved = node.announced.clone();
        }
        node
    });
    World {
        users: (0..500)
            .map(|id| user(id, &format!("u{id}@example.com")))
            .collect(),
        nodes: nodes.collect(),
        ..World::default()
    }
}

/// 50 tags, 100 groups, 200 rules.
fn large_policy() -> String {
    let list = |count: usize, entry: &dyn Fn(usize) -> String| {
        (0..count).map(entry).collect::<Vec<_>>().join(",")
    };
    let tags = list(50, &|at| format!(r#""tag:t{at}": []"#));
    let groups = list(100, &|at| {
        let other = at + 100;
        format!(r#""group:g{at}": ["u{at}@example.com", "u{other}@example.com"]"#)
    });
    let rules = list(200, &|at| {
        let (group, from, to) = (at % 100, at % 49 + 1, at % 50);
        format!(
            r#"{{"action": "accept", "src": ["group:g{group}", "tag:t{from}"], "dst": ["tag:t{to}:22,443", "10.{at}.0.0/16:80"]}}"#
        )
    });
    let tests = r#"{"src": "autogroup:member", "deny": ["tag:t1:23"]}"#;
    format!(
        r#"{{"tagOwners": {{{tags}}}, "groups": {{{groups}}}, "acls": [{rules}], "tests": [{tests}]}}"#
    )
}
