//! What `ssh` and `nodeAttrs` come to at connected nodes.

use hyper::StatusCode;
use ipnet::IpNet;
use lowroad_coordinator::{
    admin::api::{Ask, Signature},
    model::Role,
};
use lowroad_wire::{
    control::{Node, SshAction, SshPolicy},
    netmap::NetMap,
};

use crate::{
    client::{Client, peer},
    lab::Lab,
};

fn ssh(netmap: &NetMap) -> Option<SshPolicy> {
    let policy = netmap.ssh_policy.clone()?;
    Some(serde_json::from_value(policy).unwrap())
}

fn has(netmap: &NetMap, name: &str) -> bool {
    let own = netmap.self_node.as_ref();
    own.is_some_and(|node| node.cap_map.contains_key(name))
}

fn logins(action: &str, attributes: &str) -> String {
    format!(
        r#"{{"ssh": [{{"action": "{action}", "src": ["autogroup:member"], "dst": ["autogroup:self"], "users": ["root"], "acceptEnv": ["LC_*"]}}],
            "sshTests": [{{"src": "lab@", "dst": ["autogroup:self"], "{action}": ["root"], "deny": ["x"]}}],
            "nodeAttrs": [{{"target": ["lab@"], "attr": [{attributes}]}}]}}"#
    )
}

#[tokio::test]
async fn ssh_rules_and_attributes_reach_a_connected_node_and_follow_the_policy() {
    let lab = Lab::new().await;
    let key = lab.key().await;
    let mut node = Client::joined(lab.address(), "node", &key).await;
    let mut poll = node.poll().await;
    poll.until("that nobody may log in", |netmap| {
        ssh(netmap) == Some(SshPolicy::default()) && has(netmap, "https://tailscale.com/cap/ssh")
    })
    .await;

    lab.set_policy(&logins("accept", r#""magicdns-aaaa""#))
        .await;
    poll.until("who may log in, and the attribute", |netmap| {
        let rules = ssh(netmap).unwrap_or_default().rules;
        rules.len() == 1 && rules[0].action.accept && has(netmap, "magicdns-aaaa")
    })
    .await;
    let last = poll.log.last().unwrap();
    assert!(
        last.derp_map.is_none() && last.dns_config.is_none() && last.packet_filters.is_empty(),
        "only what changed is sent: {last:?}"
    );
    let rule = ssh(&poll.netmap).unwrap().rules.remove(0);
    let own: Vec<String> = poll
        .netmap
        .self_node
        .as_ref()
        .unwrap()
        .ips()
        .map(|ip| ip.to_string())
        .collect();
    let from: Vec<String> = rule
        .principals
        .into_iter()
        .map(|from| from.node_ip)
        .collect();
    assert_eq!(from, own);
    assert_eq!(
        (rule.ssh_users["root"].as_str(), &*rule.accept_env),
        ("root", &["LC_*".to_owned()][..])
    );

    lab.set_policy("{}").await;
    poll.until("that it is over", |netmap| {
        ssh(netmap) == Some(SshPolicy::default()) && !has(netmap, "magicdns-aaaa")
    })
    .await;
}

#[tokio::test]
async fn a_login_that_is_to_be_checked_is_refused_with_the_reason() {
    let lab = Lab::new().await;
    let key = lab.key().await;
    let mut node = Client::joined(lab.address(), "node", &key).await;
    lab.set_policy(&logins("check", "")).await;
    let mut poll = node.poll().await;
    poll.until("the rule", |netmap| {
        !ssh(netmap).unwrap_or_default().rules.is_empty()
    })
    .await;
    let action = ssh(&poll.netmap).unwrap().rules.remove(0).action;
    assert!(!action.accept);
    let url = action.hold_and_delegate;
    let url = url
        .replace("$SRC_NODE_ID", "1")
        .replace("$DST_NODE_ID", "2");
    let path = url.strip_prefix("https://unused").unwrap();
    let (status, answer) = node.get(path).await;
    assert_eq!(status, StatusCode::OK);
    let answer: SshAction = serde_json::from_slice(&answer).unwrap();
    assert!(answer.reject && !answer.accept && answer.hold_and_delegate.is_empty());
    assert!(answer.message.contains("checked"), "{answer:?}");
}

#[tokio::test]
async fn nodes_without_ipv4_neither_show_theirs_nor_see_others() {
    let lab = Lab::new().await;
    let key = lab.key().await;
    let policy = |attributes: &str| {
        format!(
            r#"{{"tagOwners": {{"tag:six": []}}, "nodeAttrs": [{{"target": ["tag:six"], "attr": [{attributes}]}}]}}"#
        )
    };
    lab.set_policy(&policy("")).await;
    let tagged = lab
        .key_with(|key| key.tags = vec!["tag:six".to_owned()])
        .await;
    let mut six = Client::joined(lab.address(), "six", &tagged).await;
    let mut other = Client::joined(lab.address(), "other", &key).await;
    let (mut six, mut other) = (six.poll().await, other.poll().await);
    let v4 = |node: &Node| {
        let nets = node.addresses.iter().chain(node.allowed_ips());
        nets.filter(|net| matches!(net, IpNet::V4(_))).count()
    };
    let sees = |name: &'static str, expected: usize| {
        move |netmap: &NetMap| peer(netmap, name).is_some_and(|node| v4(node) == expected)
    };
    for (attributes, expected) in [("", 2), (r#""disable-ipv4""#, 0), ("", 2)] {
        lab.set_policy(&policy(attributes)).await;
        six.until("the other's addresses", sees("other", expected))
            .await;
        six.until("its own", |netmap| {
            netmap
                .self_node
                .as_ref()
                .is_some_and(|own| v4(own) == expected)
        })
        .await;
        other
            .until("the node's addresses", sees("six", expected))
            .await;
    }
}

#[tokio::test]
async fn an_exit_node_is_suggested_to_its_peers_when_it_is_approved() {
    let lab = Lab::new().await;
    let key = lab.key().await;
    let policy = |approvers: &str| {
        format!(
            r#"{{"autoApprovers": {{"exitNode": [{approvers}]}}, "nodeAttrs": [{{"target": ["*"], "attr": ["suggest-exit-node"]}}]}}"#
        )
    };
    lab.set_policy(&policy("")).await;
    let mut exit = Client::new(lab.address(), "exit").await;
    exit.hostinfo.routable_ips = ["0.0.0.0/0", "::/0"]
        .map(|net| net.parse().unwrap())
        .to_vec();
    exit.register(Some(&key)).await.unwrap();
    let _exit = exit.poll().await;
    let mut viewer = Client::joined(lab.address(), "viewer", &key).await;
    let mut poll = viewer.poll().await;
    let suggested = |netmap: &NetMap| {
        let shown = &peer(netmap, "exit")?.cap_map;
        assert!(shown.keys().all(|name| name == "suggest-exit-node"));
        Some(!shown.is_empty())
    };
    poll.until("a node like others", |netmap| {
        suggested(netmap) == Some(false)
    })
    .await;
    lab.set_policy(&policy(r#""lab@""#)).await;
    poll.until("the suggestion", |netmap| suggested(netmap) == Some(true))
        .await;
    lab.set_policy(&policy("")).await;
    poll.until("that it is taken back", |netmap| {
        suggested(netmap) == Some(false)
    })
    .await;
}

#[tokio::test]
async fn what_the_coordinator_cannot_do_is_refused_by_name() {
    let lab = Lab::new().await;
    lab.key().await;
    for (policy, expected) in [
        (
            r#"{"nodeAttrs": [{"target": ["autogroup:admin"], "attr": ["funnel"]}]}"#,
            "nobody is admin here",
        ),
        (
            r#"{"grants": [{"src": ["user:*@example.com"], "dst": ["*"], "ip": ["*"]}]}"#,
            "no domain of this tailnet",
        ),
    ] {
        let set = Ask::PolicySet {
            text: policy.to_owned(),
            signature: Signature::default(),
            based_on: None,
        };
        let error = lab.ask(set).await.unwrap_err();
        assert!(error.to_string().contains(expected), "{policy}: {error}");
    }
}

#[tokio::test]
async fn roles_are_given_by_administrators_and_nodes_of_those_who_have_them_get_attributes() {
    let mut lab = Lab::new().await;
    let policy = r#"{"nodeAttrs": [{"target": ["autogroup:owner"], "attr": ["owned"]}, {"target": ["autogroup:admin"], "attr": ["ruled"]}]}"#;
    let mut polls = Vec::new();
    for user in ["ann", "bob"] {
        let key = lab.key_with(|key| key.user = user.to_owned()).await;
        let mut node = Client::joined(lab.address(), user, &key).await;
        polls.push(node.poll().await);
    }
    let give = |user: &str, role| {
        let user = user.to_owned();
        lab.ask(Ask::UsersRole { user, role })
    };
    give("nobody", Role::Owner).await.unwrap_err();
    assert_eq!(give("ann", Role::Owner).await.unwrap()["role"], "owner");
    let in_netmap = |netmap: &NetMap| {
        ["is-owner", "is-admin"]
            .map(|role| has(netmap, &format!("https://tailscale.com/cap/{role}")))
    };
    for (poll, expected) in polls.iter_mut().zip([[true; 2], [false; 2]]) {
        poll.until("roles without a policy", |netmap| {
            in_netmap(netmap) == expected
        })
        .await;
    }
    lab.set_policy(policy).await;
    for (change, expected) in [
        (None, [(true, true), (false, false)]),
        (Some(("bob", Role::Admin)), [(true, true), (false, true)]),
        (Some(("bob", Role::Owner)), [(false, true), (true, true)]),
        (Some(("ann", Role::Member)), [(false, false), (true, true)]),
    ] {
        if let Some((user, role)) = change {
            give(user, role).await.unwrap();
        }
        for (poll, expected) in polls.iter_mut().zip(expected) {
            let what = format!("{expected:?} after {change:?}");
            poll.until(&what, |netmap| {
                (has(netmap, "owned"), has(netmap, "ruled")) == expected
                    && in_netmap(netmap) == <[bool; 2]>::from(expected)
            })
            .await;
        }
    }
    lab.stop().await;
    lab.start().await;
    let users = lab.ask(Ask::UsersList).await.unwrap();
    let users = users.as_array().unwrap();
    let roles: Vec<_> = users.iter().map(|user| &user["role"]).collect();
    assert_eq!(roles, ["member", "owner"]);
}

#[tokio::test]
async fn nodes_that_join_get_addresses_out_of_the_pool_that_the_policy_has_for_them() {
    let mut lab = Lab::new().await;
    let key = lab.key().await;
    let _first = Client::joined(lab.address(), "first", &key).await;
    lab.set_policy(
        r#"{"tagOwners": {"tag:a": []}, "nodeAttrs": [
            {"target": ["tag:a"], "ipPool": ["100.64.0.2/31", "100.82.0.8/30"]},
            {"target": ["autogroup:tagged"], "ipPool": ["100.90.0.0/16"]}]}"#,
    )
    .await;
    let tagged = lab
        .key_with(|key| key.tags = vec!["tag:a".to_owned()])
        .await;
    for (name, key, expected) in [
        ("one", &tagged, "100.64.0.2"),
        // The pool is not for it.
        ("other", &key, "100.64.0.4"),
        ("two", &tagged, "100.64.0.3"),
        ("three", &tagged, "100.82.0.8"),
    ] {
        let _node = Client::joined(lab.address(), name, key).await;
        assert_eq!(lab.node(name).await.ip_addresses[0], expected, "{name}");
    }
    assert_eq!(lab.node("first").await.ip_addresses[0], "100.64.0.1");

    // What is given back comes last, after a restart, too.
    for (gone, name, expected) in [
        ("three", "four", "100.82.0.9"),
        ("four", "five", "100.82.0.10"),
    ] {
        let node = gone.to_owned();
        lab.ask(Ask::NodesDelete { node }).await.unwrap();
        lab.stop().await;
        lab.start().await;
        let _node = Client::joined(lab.address(), name, &tagged).await;
        assert_eq!(lab.node(name).await.ip_addresses[0], expected, "{name}");
    }
    for name in ["six", "seven", "eight"] {
        let _node = Client::joined(lab.address(), name, &tagged).await;
    }
    let mut last = Client::new(lab.address(), "last").await;
    let refused = last.register(Some(&tagged)).await.unwrap_err();
    let refused = format!("{refused:?}");
    assert!(
        refused.contains("100.82.0.8/30 (ipPool in the policy) is free"),
        "{refused}"
    );
}
