//! The policy file: parsed, compiled for a small tailnet, and what each node is sent compiled again.

use lowroad_coordinator::policy::{
    NodeFacts, Policy, UnknownUsers, UserFacts, World, compile, compile_with,
};
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
    }
}

/// Refused with a place in the text, or good for rules that every node's filter takes without leaving one out.
pub fn policy(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    let world = world();
    let policy = match Policy::parse(text) {
        Ok(policy) => policy,
        Err(error) => {
            let lines = text.split('\n').count();
            assert!(
                (1..=lines.max(1)).contains(&(error.line as usize)),
                "{error}: the text has {lines} lines"
            );
            assert!(
                error.message.len() <= 4 * text.len() + 1000,
                "the message is far longer than the text"
            );
            return;
        }
    };
    // Whether its users are known or not: no panic, and tests of the policy run.
    let _ = compile(&policy, &world);
    let Ok(compiled) = compile_with(&policy, &world, UnknownUsers::Accept) else {
        return;
    };
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
    }
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
        r#"{"ssh": [], "nodeAttrs": [{"target": ["*"], "attr": ["funnel"]}]}"#,
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
    seeds
}
