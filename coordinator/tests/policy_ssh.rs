//! `ssh`, `sshTests` and `nodeAttrs` from outside: what is refused where, and what no recorded case shows.

#[path = "support/people.rs"]
mod people;

use ipnet::IpNet;
use lowroad_coordinator::policy::{
    CompiledTailnet, NodeFacts, Policy, PolicyErrorKind, PolicyErrors, TailnetFacts, UnknownUsers,
    World, compile_with,
};
use lowroad_wire::control::NodeId;

use people::{node, user};

/// Alice with node 1, Bob with node 2, and a server with node 3 that leads to a subnet.
fn world() -> World {
    let routes: Vec<IpNet> = vec!["10.0.0.0/8".parse().expect("a prefix")];
    let server = NodeFacts {
        announced: routes.clone(),
        admin_approved: routes,
        ..node(3, None, &["tag:server"])
    };
    World {
        users: vec![user(1, "alice@example.com"), user(2, "bob")],
        nodes: vec![node(1, Some(1), &[]), node(2, Some(2), &[]), server],
        tailnet: TailnetFacts {
            domains: vec!["example.com".to_owned()],
            ..TailnetFacts::default()
        },
    }
}

fn taken_with(text: &str, unknown: UnknownUsers) -> Result<CompiledTailnet, PolicyErrors> {
    let text = format!(r#"{{"tagOwners": {{"tag:server": [], "tag:none": []}},{text}}}"#);
    compile_with(&Policy::parse(&text)?, &world(), unknown)
}

fn taken(text: &str) -> Result<CompiledTailnet, PolicyErrors> {
    taken_with(text, UnknownUsers::Refuse)
}

#[track_caller]
fn refused(text: &str, kind: PolicyErrorKind, part: &str) {
    let errors = taken(text).expect_err(text);
    assert!(
        errors
            .iter()
            .any(|error| error.kind == kind && error.message.contains(part)),
        "{text}: {errors:?} is not {kind:?} {part:?}"
    );
}

fn rule(src: &str, dst: &str, users: &str) -> String {
    format!(
        r#""ssh": [{{"action": "accept", "src": [{src}], "dst": [{dst}], "users": [{users}]}}]"#
    )
}

#[test]
fn ssh_rules_that_mean_nothing_are_refused_with_what_to_write() {
    use PolicyErrorKind::{Invalid, Unsupported};
    let root = r#""root""#;
    for (src, dst, users, part) in [
        (r#""*""#, r#""tag:server""#, root, "ssh src takes users"),
        (r#""100.64.0.1""#, r#""tag:server""#, root, "ssh src takes"),
        (r#""bob@""#, r#""autogroup:member""#, root, "ssh dst takes"),
        (r#""bob@""#, r#""group:x""#, root, "group not found"),
        (
            r#""bob@""#,
            r#""alice@example.com""#,
            root,
            "only the same user",
        ),
        (
            r#""bob@", "autogroup:tagged""#,
            r#""autogroup:self""#,
            root,
            "have no user",
        ),
        (r#""bob@""#, r#""tag:server""#, r#""*""#, "no login name"),
        (
            r#""bob@""#,
            r#""tag:server""#,
            r#""localpart:*@gmail.com""#,
            "no domain of this",
        ),
        (
            r#""user:*@gmail.com""#,
            r#""tag:server""#,
            root,
            "no domain of this",
        ),
        (r#""eve@""#, r#""tag:server""#, root, "no such user"),
    ] {
        refused(&rule(src, dst, users), Invalid, part);
    }
    refused(
        r#""ssh": [{"action": "accept", "src": [], "dst": [], "users": ["x"], "enforceRecorder": true}]"#,
        Unsupported,
        "enforceRecorder",
    );
    let many = r#"{"action": "accept", "users": ["a", "b", "c"]},"#.repeat(1025);
    refused(&format!(r#""ssh": [{many}]"#), Invalid, "too many");
    let domain = |section: &str| {
        format!(
            r#""{section}": [{{"action": "accept", "src": ["user:*@example.com"], "dst": ["tag:server:22"]}}]"#
        )
    };
    refused(&domain("acls"), Invalid, "write the rule as a grant");
}

#[test]
fn a_place_is_that_of_the_word_that_is_wrong() {
    let policy =
        "{\n  \"ssh\": [\n    {\"action\": \"accept\", \"users\": [\"root\", \"*\"]},\n  ],\n}";
    let errors = Policy::parse(policy).expect_err("`*` is no login name");
    let first = errors.first();
    assert_eq!((first.line, first.column), (3, 44));
}

#[test]
fn the_users_of_a_domain_are_sources_and_destinations_of_grants() {
    let tailnet = taken(
        r#""grants": [{"src": ["user:*@example.com"], "dst": ["tag:server"], "ip": ["22"]}, {"src": ["tag:server"], "dst": ["user:*@example.com"], "ip": ["80"]}]"#,
    )
    .expect("grants take domains");
    assert!(tailnet.sees(NodeId(1), NodeId(3)) && !tailnet.sees(NodeId(2), NodeId(3)));
    let ports = |node| {
        let filter = tailnet.filter_for(NodeId(node));
        let entries = filter.iter().flat_map(|rule| &rule.dst_ports);
        entries.map(|entry| entry.ports.first).collect::<Vec<_>>()
    };
    assert_eq!(
        (ports(1), ports(2), ports(3)),
        (vec![80, 80], vec![], vec![22, 22])
    );
}

#[test]
fn ssh_tests_fail_with_what_was_expected_and_where() {
    use PolicyErrorKind::Test;
    let with = |test: &str| {
        let rules = rule(
            r#""bob@""#,
            r#""tag:server""#,
            r#""autogroup:nonroot", "localpart:*@example.com""#,
        );
        format!(r#"{rules}, "sshTests": [{{{test}}}]"#)
    };
    let bob = r#""src": "bob@", "dst": ["tag:server"]"#;
    taken(&with(&format!(
        r#"{bob}, "accept": ["x", "bob"], "deny": ["root"]"#
    )))
    .expect("holds");
    taken(&with(
        r#""src": "100.64.0.2", "dst": ["100.64.0.3"], "accept": ["x"]"#,
    ))
    .expect("holds");
    for (test, part) in [
        (
            format!(r#"{bob}, "accept": ["root"]"#),
            "accept \"root\" from \"bob@\" to \"tag:server\"",
        ),
        (
            format!(r#"{bob}, "deny": ["x"]"#),
            "but the policy allows it",
        ),
        (
            format!(r#"{bob}, "check": ["x"]"#),
            "but the policy doesn't check it",
        ),
        (
            format!(r#"{bob}, "accept": ["x"], "deny": ["x"]"#),
            "allowed and denied",
        ),
        (format!(r#"{bob}, "accept": [""]"#), "can't be empty"),
        (bob.to_owned(), "asserts nothing"),
        (
            r#""src": "bob@", "dst": [], "accept": ["x"]"#.to_owned(),
            "asserts nothing",
        ),
        (
            r#""src": "tag:none", "dst": ["tag:server"], "deny": ["x"]"#.to_owned(),
            "src \"tag:none\" is no node",
        ),
        (
            r#""src": "bob@", "dst": ["tag:none"], "deny": ["x"]"#.to_owned(),
            "dst \"tag:none\" is no node",
        ),
        (
            r#""src": "autogroup:self", "dst": ["tag:server"], "deny": ["x"]"#.to_owned(),
            "is nobody",
        ),
        (
            r#""src": "tag:server", "dst": ["autogroup:self"], "deny": ["x"]"#.to_owned(),
            "is no node",
        ),
        (
            r#""src": "bob@", "dst": ["10.0.0.0/8"], "deny": ["x"]"#.to_owned(),
            "single address",
        ),
    ] {
        refused(&with(&test), Test, part);
    }
}

#[test]
fn before_anybody_has_joined_ssh_tests_are_tried_with_nodes_that_stand_in() {
    let policy = |expected: &str| {
        let rules = rule(r#""carol@example.org""#, r#""tag:none""#, r#""root""#);
        format!(
            r#"{rules}, "sshTests": [{{"src": "carol@example.org", "dst": ["tag:none"], "{expected}": ["root"]}}]"#
        )
    };
    taken_with(&policy("accept"), UnknownUsers::Accept).expect("it will hold");
    taken_with(&policy("deny"), UnknownUsers::Accept).expect_err("it will not hold");
    taken(&policy("accept")).expect_err("there is no such user");
}

#[test]
fn attributes_that_nobody_could_be_given_are_refused() {
    use PolicyErrorKind::{Invalid, Unsupported};
    let entry =
        |target: &str, more: &str| format!(r#""nodeAttrs": [{{"target": ["{target}"], {more}}}]"#);
    let attr = r#""attr": ["x"]"#;
    for (target, more, kind, part) in [
        ("autogroup:internet", attr, Invalid, "as target"),
        ("user:*@example.com", attr, Invalid, "as target"),
        ("autogroup:owner", attr, Invalid, "nobody is owner here"),
        ("eve@", attr, Invalid, "no such user"),
        (
            "autogroup:onwer",
            attr,
            Invalid,
            "nodeAttrs take member, tagged, owner and admin",
        ),
        ("autogroup:it-admin", attr, Unsupported, "autogroup:owner"),
        ("*", r#""attr": [""]"#, Invalid, "without a name"),
        ("*", r#""app": {}"#, Unsupported, "\"app\" in nodeAttrs"),
        (
            "*",
            r#""ipPool": ["100.100.0.0/16"]"#,
            Invalid,
            "leaves 100.100.100.0/24",
        ),
        ("*", r#""ipPool": ["100.115.93.0/24"]"#, Invalid, "ipPool"),
        (
            "*",
            r#""ipPool": ["10.0.0.0/8"]"#,
            Invalid,
            "inside 100.64.0.0/10",
        ),
        (
            "*",
            r#""ipPool": ["fd7a:115c:a1e0::/64"]"#,
            Invalid,
            "ipPool",
        ),
    ] {
        refused(&entry(target, more), kind, part);
    }
    refused(r#""randomizeClientPort": "yes""#, Invalid, "true or false");
}

#[test]
fn ports_in_destinations_of_grants_are_sent_to_where_they_belong() {
    for (who, ports) in [
        ("tag:server", "80"),
        ("tag:server", "http"),
        ("*", "*"),
        ("10.0.0.0/8", "80,443"),
        ("fd00::/64", "80"),
        ("[fd00::1]", "22"),
        ("autogroup:member", "*"),
        ("bob@", "22"),
        ("user:*@example.com", "22-23"),
    ] {
        let grant =
            format!(r#""grants": [{{"src": ["*"], "dst": ["{who}:{ports}"], "ip": ["*"]}}]"#);
        let part = format!(r#"stand in "ip"; write "{who}" here, and "{ports}" into "ip""#);
        refused(&grant, PolicyErrorKind::Invalid, &part);
    }
    for (dst, part) in [
        ("tag:sever", "tag not found"),
        ("tag:sever:80", "tag not found"),
        ("web:80", "no such host"),
    ] {
        let grant = format!(r#""grants": [{{"src": ["*"], "dst": ["{dst}"], "ip": ["*"]}}]"#);
        refused(&grant, PolicyErrorKind::Invalid, part);
    }
}

#[test]
fn fields_that_are_offered_are_taken_and_others_of_the_service_are_refused_with_what_to_do() {
    use PolicyErrorKind::{Invalid, Unsupported};
    let unknown = |section: &str| section.replace("HERE", r#""xyz": []"#);
    let ssh = r#""ssh": [{"action": "accept", "src": [], "dst": [], "users": ["x"], HERE}]"#;
    let attributes = r#""nodeAttrs": [{"target": [], "attr": [], HERE}]"#;
    let approvers = r#""autoApprovers": {HERE}"#;
    let test = r#""tests": [{"src": "bob@", "deny": ["tag:server:1"], HERE}]"#;
    let ssh_test = r#""sshTests": [{"src": "bob@", "dst": ["tag:server"], "deny": ["x"], HERE}]"#;
    for (section, offered) in [
        (ssh, "action, src, dst, users, checkPeriod, acceptEnv"),
        (attributes, "target, attr, ipPool"),
        (approvers, "routes, exitNode"),
        (test, "src, proto, accept, deny"),
        (ssh_test, "src, dst, accept, deny, check"),
    ] {
        let errors = taken(&unknown(section)).expect_err(section);
        let offer = format!(r#"has no field "xyz"; it may have {offered}"#);
        assert!(errors.first().message.ends_with(&offer), "{errors}");
        assert_eq!(errors.first().kind, Invalid);
    }
    for (section, field, part) in [
        (
            ssh,
            r#""srcPosture": ["posture:x"]"#,
            "let \"src\" name only",
        ),
        (ssh, r#""recorder": ["tag:none"]"#, "go on unrecorded"),
        (ssh, r#""enforceRecorder": true"#, "go on unrecorded"),
        (attributes, r#""app": {}"#, "take this entry out"),
        (approvers, r#""services": {}"#, "leave it out"),
        (test, r#""srcPostureAttrs": {}"#, "leave it out"),
        (ssh_test, r#""srcPostureAttrs": {}"#, "leave it out"),
    ] {
        refused(&section.replace("HERE", field), Unsupported, part);
    }
}

#[test]
fn a_node_without_ipv4_keeps_its_routes_and_sees_those_of_others() {
    let route: IpNet = "10.0.0.0/8".parse().expect("a prefix");
    let v4 = |nets: &[IpNet]| {
        let v4 = nets.iter().filter(|net| matches!(net, IpNet::V4(_)));
        v4.copied().collect::<Vec<_>>()
    };
    for target in ["tag:server", "100.64.0.1"] {
        let tailnet = taken(&format!(
            r#""nodeAttrs": [{{"target": ["{target}"], "attr": ["disable-ipv4"]}}]"#
        ))
        .expect("a good policy");
        let seen = tailnet.peer_view(NodeId(1), NodeId(3)).expect("a peer");
        assert_eq!(v4(&seen.allowed_ips), [route], "{target}");
        assert_eq!(*seen.primary_routes, [route]);
        let is_server = target == "tag:server";
        let own = tailnet.own_allowed_ips(NodeId(3));
        assert_eq!(v4(&own).len(), if is_server { 1 } else { 2 });
        let other = tailnet.peer_view(NodeId(2), NodeId(3)).expect("a peer");
        assert_eq!(v4(&other.allowed_ips).len(), if is_server { 1 } else { 2 });
    }
}
