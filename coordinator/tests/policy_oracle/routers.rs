//! Routers that come and go: what is followed, who is seen otherwise, and what is compiled anew.

use std::collections::BTreeSet;

use lowroad_coordinator::policy::{Followed, NodeFacts};
use lowroad_wire::control::{NodeId, UserId};

use super::people::node;
use super::versions::follow;

const ANN: Option<i64> = Some(1);
const NET: &str = "10.1.0.0/16";
const OTHER_NET: &str = "10.2.0.0/16";

/// Not all of it is said of everybody who sees a router.
const OPEN: &str = r#"{"tagOwners": {"tag:web": [], "tag:router": [], "tag:exit": []},
    "acls": [{"action": "accept", "src": ["ann@example.com"], "dst": ["*:*"]},
        {"action": "accept", "src": ["tag:web"], "dst": ["10.1.0.0/16:80"]}]}"#;

/// People are led through routers of one tag first, servers through those of the other.
const VIA: &str = r#"{"tagOwners": {"tag:web": [], "tag:router": [], "tag:exit": []},
    "grants": [{"src": ["ann@example.com"], "dst": ["10.1.0.0/16"], "ip": ["*"], "via": ["tag:router"]},
        {"src": ["tag:web"], "dst": ["10.0.0.0/8"], "ip": ["tcp:80"], "via": ["tag:exit", "tag:router"]},
        {"src": ["tag:web"], "dst": ["tag:router"], "ip": ["tcp:22"]}]}"#;

#[test]
fn a_router_goes_offline_and_only_those_of_its_route_are_seen_otherwise() {
    for (policy, others) in [(OPEN, &[2, 3][..]), ("{}", &[2, 3]), (VIA, &[2, 3, 4])] {
        let flip = (2, Some(offline(router(2, "router"))));
        let followed = follow(policy, tailnet(), &[flip]);
        is_followed(&followed, others);
        assert_eq!(
            followed.compiled.carried_routes(NodeId(3)),
            [NET.parse().unwrap()]
        );
    }
    // One that carries nothing is nobody's business, but where grants may lead through it or others.
    let spare = (3, Some(offline(router(3, "router"))));
    is_followed(&follow(OPEN, tailnet(), std::slice::from_ref(&spare)), &[]);
    is_followed(&follow(VIA, tailnet(), &[spare]), &[2, 3, 4]);
}

#[test]
fn a_router_joins_others_or_leaves_them() {
    for policy in [OPEN, VIA, "{}"] {
        let joins = (9, Some(router(9, "exit")));
        let leaves = (2, None);
        let is_less = (3, Some(node(3, None, &["tag:router"])));
        let is_anns = NodeFacts {
            user: ANN.map(UserId),
            tags: Vec::new(),
            ..router(4, "exit")
        };
        let is_anns = (4, Some(is_anns));
        for changes in [
            vec![joins.clone()],
            vec![leaves.clone()],
            vec![is_less.clone()],
            vec![is_anns.clone()],
            vec![joins, is_anns, leaves, is_less],
        ] {
            assert!(!follow(policy, tailnet(), &changes).is_whole, "{changes:?}");
        }
    }
}

#[test]
fn other_subnet_routes_are_compiled_anew() {
    let new = NodeFacts {
        announced: vec![OTHER_NET.parse().unwrap()],
        admin_approved: vec![OTHER_NET.parse().unwrap()],
        ..router(2, "router")
    };
    assert!(follow(OPEN, tailnet(), &[(2, Some(new.clone()))]).is_whole);
    let mut nodes = tailnet();
    nodes.push(NodeFacts {
        id: NodeId(9),
        ..new
    });
    nodes[7].v4 = None;
    nodes[7].v6 = None;
    assert!(follow(OPEN, nodes, &[(9, None)]).is_whole, "the last one");
}

#[test]
fn a_router_behind_another_goes_offline_but_is_not_anothers() {
    // All nodes are behind it, itself as well.
    let mut wide = router(4, "exit");
    wide.announced.push("100.64.0.0/24".parse().unwrap());
    wide.admin_approved.clone_from(&wide.announced);
    let mut nodes = tailnet();
    nodes[3] = wide.clone();
    let flips = [
        (4, Some(offline(wide))),
        (2, Some(offline(router(2, "router")))),
    ];
    for policy in [OPEN, VIA, "{}"] {
        assert!(!follow(policy, nodes.clone(), &flips).is_whole);
    }
    let others = (2, Some(router(2, "exit")));
    assert!(follow(OPEN, nodes, &[others]).is_whole);
}

fn is_followed(followed: &Followed, others: &[i64]) {
    assert!(!followed.is_whole);
    let others: BTreeSet<NodeId> = others.iter().map(|&id| NodeId(id)).collect();
    assert_eq!(followed.others, others);
}

fn router(id: i64, tag: &str) -> NodeFacts {
    let mut router = node(id, None, &[&format!("tag:{tag}")]);
    router.announced = vec![NET.parse().unwrap()];
    router.admin_approved.clone_from(&router.announced);
    router
}

fn offline(router: NodeFacts) -> NodeFacts {
    NodeFacts {
        online: false,
        ..router
    }
}

/// Ann's device, three routers of one network, and servers.
fn tailnet() -> Vec<NodeFacts> {
    let routers = [router(2, "router"), router(3, "router"), router(4, "exit")];
    let servers = (5..=7).map(|id| node(id, None, &["tag:web"]));
    let mut nodes = vec![node(1, ANN, &[])];
    nodes.extend(routers);
    nodes.extend(servers);
    nodes
}
