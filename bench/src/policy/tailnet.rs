//! The tailnet that the policy compiler is measured with.

use lowroad_coordinator::policy::{NodeFacts, TailnetFacts, UserFacts, World};
use lowroad_wire::control::{NodeId, UserId};

/// Of ten nodes, so many are devices of users.
const DEVICES: usize = 7;
/// Devices of one user.
const EACH: usize = 2;
/// Rules for each group and for each tag.
const PER_GROUP: usize = 10;
/// Behind each of the two routers.
const SUBNET: &str = "10.1.0.0/16";

/// Rules from groups to tags but for two, which are about subnet routers and about devices of the same user.
pub fn policy_text(nodes: usize, rules: usize) -> String {
    let groups = groups(rules);
    let mut members = vec![Vec::new(); groups];
    for user in 0..users(nodes) {
        let second = (user * 7 + 1) % groups;
        for group in [user % groups, second] {
            members[group].push(format!("u{user}@"));
        }
    }
    for list in &mut members {
        list.dedup();
    }
    let members = members.iter().enumerate();
    let members: Vec<String> = members
        .map(|(group, list)| format!(r#""group:g{group}": {list:?}"#))
        .collect();
    let tags = (0..groups).map(|tag| format!(r#""tag:t{tag}": []"#));
    let tags: Vec<String> = tags.collect();
    let accept = |from: &str, to: &str| {
        format!(r#"{{"action": "accept", "src": ["{from}"], "dst": ["{to}"]}}"#)
    };
    let rule = |at: usize| {
        let (group, tag, port) = (at % groups, (at * 3 + at / groups) % groups, 1000 + at);
        accept(&format!("group:g{group}"), &format!("tag:t{tag}:{port}"))
    };
    let mut written: Vec<String> = (2..rules).map(rule).collect();
    written.push(accept("autogroup:member", &format!("{SUBNET}:*")));
    written.push(accept("autogroup:member", "autogroup:self:*"));
    format!(
        "{{\"groups\": {{{}}}, \"tagOwners\": {{\"tag:router\": [], {}}}, \"acls\": [{}]}}",
        members.join(","),
        tags.join(","),
        written.join(",\n")
    )
}

/// So many nodes; the last two are routers of one subnet, of which the first serves it.
pub fn world(nodes: usize, rules: usize) -> World {
    let mut device_count = 0;
    let nodes_of = (0..nodes).map(|at| {
        if at + 2 >= nodes {
            return router(at);
        }
        let is_device = at % 10 < DEVICES;
        device_count += usize::from(is_device);
        match is_device {
            true => device(at, (device_count - 1) / EACH),
            false => server(at, format!("tag:t{}", at % groups(rules))),
        }
    });
    World {
        nodes: nodes_of.collect(),
        users: (0..users(nodes)).map(person).collect(),
        tailnet: TailnetFacts::default(),
    }
}

fn groups(rules: usize) -> usize {
    rules.div_ceil(PER_GROUP)
}

fn users(nodes: usize) -> usize {
    (nodes * DEVICES / 10).div_ceil(EACH).max(1)
}

pub fn person(at: usize) -> UserFacts {
    UserFacts {
        id: UserId(at as i64 + 1),
        login_name: format!("u{at}"),
    }
}

pub fn device(at: usize, user: usize) -> NodeFacts {
    let number = at as u32 + 1;
    NodeFacts {
        id: NodeId(number.into()),
        user: Some(person(user).id),
        tags: Vec::new(),
        v4: Some((0x6440_0000 + number).into()),
        v6: Some(((0xfd7a_115c_a1e0_u128 << 80) + u128::from(number)).into()),
        announced: Vec::new(),
        admin_approved: Vec::new(),
        created: number.into(),
        online: true,
    }
}

fn server(at: usize, tag: String) -> NodeFacts {
    NodeFacts {
        user: None,
        tags: vec![tag],
        ..device(at, 0)
    }
}

fn router(at: usize) -> NodeFacts {
    let routes: Vec<_> = SUBNET.parse().into_iter().collect();
    NodeFacts {
        announced: routes.clone(),
        admin_approved: routes,
        ..server(at, "tag:router".to_owned())
    }
}
