//! The policy file: parsed, compiled for a small tailnet, and what each node is sent compiled again.

use std::{collections::HashMap, path::Path};

use lowroad_coordinator::policy::{
    MAX_ERRORS, MAX_WARNINGS, NodeFacts, Policy, PolicyErrors, Report, TailnetFacts, UnknownUsers,
    UserFacts, World, compile, compile_with, warnings,
};
use lowroad_coordinator::refused::RefusedPolicy;
use lowroad_coordinator::text::is_steering;
use lowroad_core::filter;
use lowroad_wire::control::{NodeId, UserId};

fn world() -> World {
    let users = [
        (1, "ann@example.com"),
        (2, "bob@"),
        (3, "carol@example.com"),
    ];
    let prefix = |text: &&str| text.parse().expect("a prefix");
    let node = |id: u8, user, tags: &[&str], announced: &[&str]| NodeFacts {
        id: NodeId(id.into()),
        user,
        tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
        v4: Some([100, 64, 0, id].into()),
        v6: format!("fd7a:115c:a1e0::{id}").parse().ok(),
        announced: announced.iter().map(prefix).collect(),
        admin_approved: announced.iter().take(1).map(prefix).collect(),
        created: id.into(),
        online: id.is_multiple_of(2),
    };
    World {
        users: users
            .map(|(id, name)| UserFacts {
                id: UserId(id),
                login_name: name.to_owned(),
            })
            .to_vec(),
        nodes: vec![
            node(1, Some(UserId(1)), &[], &[]),
            node(2, Some(UserId(2)), &[], &["10.0.0.0/8", "10.33.0.0/16"]),
            node(3, None, &["tag:server"], &["0.0.0.0/0", "::/0"]),
            node(
                4,
                None,
                &["tag:server", "tag:router"],
                &["192.168.0.0/24", "fd00::/64", "10.0.0.0/8"],
            ),
            node(5, Some(UserId(1)), &[], &[]),
        ],
        tailnet: TailnetFacts {
            domains: vec!["example.com".to_owned()],
            owner: Some(UserId(1)),
            admins: vec![UserId(3)],
        },
    }
}

/// Refused with a place in the text, or good for rules that every node's filter takes without leaving one out.
pub fn policy(input: &[u8]) {
    let text = match RefusedPolicy::decode(input.to_vec(), Path::new("policy")) {
        Ok(text) => text,
        Err(error) => return harmless(&error.to_string()),
    };
    let text = text.as_str();
    let world = world();
    let policy = match Policy::parse(text) {
        Ok(policy) => policy,
        Err(errors) => return refused(text, &errors),
    };
    // Whether its users are known or not: no panic, and tests of the policy run.
    if let Err(errors) = compile(&policy, &world) {
        refused(text, &errors);
    }
    let Ok(compiled) = compile_with(&policy, &world, UnknownUsers::Accept) else {
        return;
    };
    let warnings = warnings(&policy, &compiled, &names());
    assert!(warnings.iter().len() <= MAX_WARNINGS);
    shown(text, &Report::default().with_warnings(text, &warnings));
    for node in &world.nodes {
        let rules = compiled.filter_for(node.id);
        let own: Vec<_> = [node.v4.map(Into::into), node.v6.map(Into::into)]
            .into_iter()
            .flatten()
            .collect();
        let input = filter::Input {
            rules: rules.to_vec(),
            local: own
                .iter()
                .map(|address: &std::net::IpAddr| (*address).into())
                .collect(),
            own_addresses: own,
            ..filter::Input::default()
        };
        let notes = filter::compile(&input).notes;
        assert!(
            notes.is_empty(),
            "our own rules are not understood: {notes:?}"
        );
        for (peer, view) in compiled.peers_of(node.id) {
            assert_ne!(peer, node.id);
            assert!(compiled.sees(node.id, peer) && !view.allowed_ips.is_empty());
        }
        compiled.own_allowed_ips(node.id);
        compiled.attributes_of(node.id);
        for rule in &compiled.ssh_for(node.id).rules {
            assert!(!rule.principals.is_empty() && !rule.ssh_users.is_empty());
        }
    }
}

/// Hosts of some seeds are called as nodes are.
fn names() -> HashMap<String, NodeId> {
    let names = [("h", 1), ("n", 2), ("a", 3)];
    names.map(|(name, id)| (name.to_owned(), NodeId(id))).into()
}

/// There are errors, few and short enough to be shown, in the order of the text, and each in it.
fn refused(text: &str, errors: &PolicyErrors) {
    let lines = text.split('\n').count();
    assert!((1..=MAX_ERRORS).contains(&errors.iter().len()));
    assert!(
        errors
            .iter()
            .is_sorted_by_key(|error| (error.line, error.column))
    );
    for error in errors {
        assert!(
            (1..=lines).contains(&(error.line as usize)),
            "{error}: the text has {lines} lines"
        );
        assert!(error.message.len() <= 700, "the message is long: {error}");
    }
    shown(text, &Report::of_errors(text, errors));
}

/// What is shown of a policy does nothing to a terminal, and doesn't fill it.
fn shown(text: &str, report: &Report) {
    harmless(&report.render("policy", text));
}

fn harmless(shown: &str) {
    assert!(
        !shown.contains(|c: char| c != '\n' && is_steering(c)),
        "{shown:?}"
    );
    assert!(
        shown.len() <= 4000 * (MAX_ERRORS + MAX_WARNINGS),
        "it is long"
    );
}

pub fn policy_seeds() -> Vec<Vec<u8>> {
    let texts = [
        "{}",
        "// nothing\n{ /* at all */ }",
        r#"{"acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}],}"#,
        r#"{"groups": {"group:a": ["ann@example.com", "bob@"], "group:b": []}, "hosts": {"h": "10.0.0.1", "n": "10.33.0.0/16"},
            "tagOwners": {"tag:server": ["group:a"], "tag:router": ["tag:server", "autogroup:member"]},
            "acls": [{"action": "accept", "proto": "tcp", "src": ["group:a", "h", "autogroup:member"], "dst": ["tag:server:22,80-443", "n:*", "autogroup:self:*", "autogroup:internet:*"]},
                     {"action": "accept", "proto": "icmp", "src": ["tag:server"], "dst": ["100.64.0.1:*", "fd7a:115c:a1e0::2:*", "[fd7a:115c:a1e0::1]:80"]}]}"#,
        r#"{"grants": [{"src": ["*"], "dst": ["10.0.0.0/8"], "ip": ["tcp:80", "udp:*", "icmp:*", "53", "*"]},
                       {"src": ["autogroup:tagged"], "dst": ["autogroup:self"], "ip": ["*"]}]}"#,
        r#"{"tagOwners": {"tag:router": []}, "autoApprovers": {"routes": {"10.0.0.0/8": ["tag:router"], "0.0.0.0/0": ["ann@example.com"]}, "exitNode": ["tag:server", "group:x"]}}"#,
        r#"{"hosts": {"a": "1.2.3.4"}, "acls": [{"action": "accept", "src": ["ann@example.com"], "dst": ["a:443"]}],
            "tests": [{"src": "ann@example.com", "accept": ["a:443", "100.64.0.3:22"], "deny": ["a:80"], "proto": "tcp"}]}"#,
        r#"{"groups": {"group:a": ["alice", "x@y"], "group:e": []}, "tagOwners": {"tag:t": ["group:e"]}, "hosts": {"N": "10.33.0.1", "n": "fd00::/64", "x": "10.0.0.1/8"},
            "acls": [{"action": "accept", "src": ["grp:a", "10.9.9.9"], "dst": ["tag:tt:0", "n:http"], "proto": "tpc"}, {"acton": 1}], "acl": []}"#,
        r#"{"groups": {"group:e": []}, "tagOwners": {"tag:t": ["group:e"]}, "hosts": {"N": "10.33.0.1", "n": "fd00::/64"},
            "acls": [{"action": "accept", "src": ["group:e", "10.9.9.9"], "dst": ["tag:t:0", "n:*"]}, {"action": "accept", "src": ["10.9.9.9"], "dst": ["n:22"]}],
            "grants": [{"src": ["*"], "dst": ["10.0.0.0/8"], "ip": ["*"], "via": ["tag:t"]}]}"#,
        r#"{"ssh": [], "nodeAttrs": [{"target": ["*"], "attr": ["funnel"]}]}"#,
        r#"{"tagOwners": {"tag:server": []}, "ssh": [{"action": "check", "src": ["autogroup:member", "user:*@example.com"], "dst": ["tag:server", "autogroup:self"],
            "users": ["localpart:*@example.com", "root", "autogroup:nonroot", "x"], "checkPeriod": "1h30m", "acceptEnv": ["LC_*"]}],
            "sshTests": [{"src": "ann@example.com", "dst": ["tag:server", "100.64.0.3"], "check": ["root"], "accept": ["x"], "deny": ["y"]}],
            "nodeAttrs": [{"target": ["autogroup:admin", "100.64.0.0/28"], "attr": ["disable-ipv4", "suggest-exit-node"], "ipPool": ["100.81.0.0/16"]}], "randomizeClientPort": true}"#,
        r#"{"acls": [{"action": "accept", "src": ["\u0061nn@example.com", "\ud83d\ude00"], "dst": ["*:1e3"]}]}"#,
    ];
    let mut seeds: Vec<Vec<u8>> = texts.map(|text| text.as_bytes().to_vec()).to_vec();
    seeds.push(b"[".repeat(2000));
    seeds.push(br#"{"a":"#.repeat(1000));
    seeds.push(
        format!(
            "{{\"acls\":[{}]}}",
            r#"{"action":"accept","src":["*"],"dst":["*:1,2,3,4-9,1000-2000"]},"#.repeat(60)
        )
        .into_bytes(),
    );
    seeds.push(b"{\n  // \xff\xc3\x1b[2J\n}".to_vec());
    seeds
}
