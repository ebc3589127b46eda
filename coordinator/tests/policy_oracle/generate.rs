//! Random policies, tailnets and packets.

use std::net::IpAddr;

use ipnet::IpNet;
use lowroad_coordinator::policy::{NodeFacts, TailnetFacts, World};
use lowroad_wire::control::UserId;
use rand::seq::IndexedRandom as _;
use rand::{Rng, rngs::StdRng};

use super::language::{
    ALL_PORTS, Acl, DISABLE_IPV4, DOMAIN, GROUPS, Grant, HOSTS, Login, Ports, Protocol, Ssh, TAGS,
    USERS, Who, Written,
};
use super::people::{node, user};

const NETS: [&str; 14] = [
    "100.64.0.2",
    "100.64.0.5",
    "fd7a:115c:a1e0::3",
    "100.64.0.0/30",
    "100.64.0.0/10",
    "fd7a:115c:a1e0::/48",
    "10.0.0.0/8",
    "10.0.0.0/16",
    "10.0.1.0/24",
    "192.168.5.0/24",
    "fd00::/16",
    "fd00:1::/64",
    "8.8.8.0/24",
    "0.0.0.0/0",
];
const ROUTES: [&str; 8] = [
    "10.0.0.0/16",
    "10.0.1.0/24",
    "192.168.5.0/24",
    "fd00:1::/64",
    "100.64.0.0/29",
    "8.8.8.0/24",
    "0.0.0.0/0",
    "::/0",
];
/// On either side of what policies and routes can tell apart.
const ELSEWHERE: [&str; 14] = [
    "10.0.0.9",
    "10.0.1.7",
    "10.0.2.1",
    "10.9.9.9",
    "192.168.5.1",
    "172.16.0.1",
    "fd00:1::9",
    "fd00:2::9",
    "8.8.8.8",
    "9.9.9.9",
    "2620:fe::9",
    "100.115.92.5",
    "100.127.0.1",
    "fd7a:115c:a1e0::ffff",
];
const WITH_PORTS: [Protocol; 3] = [("tcp", 6), ("udp", 17), ("sctp", 132)];
const WITHOUT_PORTS: [Protocol; 4] = [("icmp", 1), ("ipv6-icmp", 58), ("gre", 47), ("99", 99)];
const RANGES: [Ports; 7] = [
    ALL_PORTS,
    (22, 22),
    (20, 30),
    (80, 80),
    (80, 90),
    (443, 443),
    (1, 1023),
];
/// At every end of a range, and beside it.
const PROBED: [u16; 14] = [1, 19, 20, 22, 23, 30, 31, 79, 80, 90, 91, 443, 1023, 1024];
const CAPABILITIES: [&str; 3] = [
    "x.com/cap/a",
    "tailscale.com/cap/drive",
    "tailscale.com/cap/relay",
];
const ATTRIBUTES: [&str; 4] = ["custom:a", "custom:b", "suggest-exit-node", DISABLE_IPV4];
pub const LOGINS: [&str; 6] = ["root", "ubuntu", "git", "ann", "carol", "dave"];

fn one<T: Copy>(rng: &mut StdRng, from: &[T]) -> T {
    *from.choose(rng).expect("it is a constant with entries")
}

fn some<T: Copy>(rng: &mut StdRng, from: &[T], most: usize) -> Vec<T> {
    let count = rng.random_range(1..=most);
    (0..count).map(|_| one(rng, from)).collect()
}

/// Anybody whom rules can name on both sides.
fn anybody(rng: &mut StdRng) -> Who {
    match rng.random_range(0..12) {
        0 => Who::Any,
        1 => Who::Member,
        2 => Who::Tagged,
        3 | 4 => Who::User(one(rng, &USERS)),
        5 | 6 => Who::Group(one(rng, &GROUPS)),
        7 | 8 => Who::Tag(one(rng, &TAGS)),
        9 => Who::Host(one(rng, &HOSTS).0),
        _ => Who::Net(one(rng, &NETS)),
    }
}

/// Whom attributes can be for: they know roles.
fn target(rng: &mut StdRng) -> Who {
    match rng.random_range(0..8) {
        0 => Who::Owner,
        1 => Who::Admin,
        _ => anybody(rng),
    }
}

/// Whose devices autogroup:self can be about, beside `*` and domains.
fn person(rng: &mut StdRng) -> Who {
    match rng.random_range(0..3) {
        0 => Who::Member,
        1 => Who::User(one(rng, &USERS)),
        _ => Who::Group(one(rng, &GROUPS)),
    }
}

fn list(rng: &mut StdRng, of: impl Fn(&mut StdRng) -> Who) -> Vec<Who> {
    let count = rng.random_range(1..=3);
    (0..count).map(|_| of(rng)).collect()
}

fn source(rng: &mut StdRng, is_grant: bool) -> Who {
    match rng.random_range(0..16) {
        0 => Who::DangerAll,
        1 if is_grant => Who::Domain,
        _ => anybody(rng),
    }
}

fn acl(rng: &mut StdRng) -> Acl {
    let about_own = rng.random_range(0..4) == 0;
    let src = match about_own {
        true if rng.random() => vec![Who::Any],
        true => list(rng, person),
        false => list(rng, |rng| source(rng, false)),
    };
    let protocol = match rng.random_range(0..4) {
        0 => Some(one(rng, &WITH_PORTS)),
        1 => Some(one(rng, &WITHOUT_PORTS)),
        _ => None,
    };
    let has_ports = protocol.is_none_or(|protocol| WITH_PORTS.contains(&protocol));
    let ports = |rng: &mut StdRng| match has_ports {
        true => {
            let ports = some(rng, &RANGES, 2);
            // `*` stands alone.
            match ports.contains(&ALL_PORTS) {
                true => vec![ALL_PORTS],
                false => ports,
            }
        }
        false => vec![ALL_PORTS],
    };
    let mut dst: Vec<(Who, Vec<Ports>)> = list(rng, destination)
        .into_iter()
        .map(|who| (who, ports(rng)))
        .collect();
    if about_own {
        dst[0].0 = Who::OwnDevices;
    }
    Acl { src, protocol, dst }
}

fn destination(rng: &mut StdRng) -> Who {
    match rng.random_range(0..12) {
        0 => Who::Internet,
        _ => anybody(rng),
    }
}

fn grant(rng: &mut StdRng) -> Grant {
    let about_own = rng.random_range(0..4) == 0;
    let app =
        (rng.random_range(0..3) == 0).then(|| (one(rng, &CAPABILITIES), rng.random_range(0..2)));
    let src = match about_own {
        true => list(rng, |rng| match rng.random_range(0..6) {
            0 => Who::Domain,
            _ => person(rng),
        }),
        false => list(rng, |rng| source(rng, true)),
    };
    let mut dst = list(rng, |rng| match destination(rng) {
        Who::Internet if app.is_some() => Who::Domain,
        Who::Net("0.0.0.0/0") => Who::Any,
        who => who,
    });
    if about_own {
        dst[0] = Who::OwnDevices;
    }
    let entry = |rng: &mut StdRng| match rng.random_range(0..4) {
        0 => (Some(one(rng, &WITHOUT_PORTS)), ALL_PORTS),
        1 => (None, one(rng, &RANGES)),
        _ => (Some(one(rng, &WITH_PORTS)), one(rng, &RANGES)),
    };
    let entries = rng.random_range(usize::from(app.is_none())..=3);
    let ip = (0..entries).map(|_| entry(rng)).collect();
    let via = match rng.random_range(0..4) {
        0 => some(rng, &["tag:router", "tag:exit", "tag:web"], 2),
        _ => Vec::new(),
    };
    Grant {
        src,
        dst,
        ip,
        app,
        via,
    }
}

fn ssh(rng: &mut StdRng) -> Ssh {
    let about_own = rng.random_range(0..3) == 0;
    let (src, dst) = if about_own {
        let src = list(rng, person);
        let tags = some(rng, &TAGS, 1).into_iter().map(Who::Tag);
        let others = tags.filter(|_| rng.random());
        (src, others.chain([Who::OwnDevices]).collect())
    } else if rng.random_range(0..6) == 0 {
        let user = Who::User(one(rng, &USERS));
        (vec![user], vec![user])
    } else {
        let src = list(rng, |rng| match rng.random_range(0..6) {
            0 => Who::Domain,
            1 => Who::Tagged,
            2 => Who::Tag(one(rng, &TAGS)),
            _ => person(rng),
        });
        let tags = some(rng, &TAGS, 2).into_iter().map(Who::Tag);
        (src, tags.collect())
    };
    let login = |rng: &mut StdRng| match rng.random_range(0..4) {
        0 => Login::Root,
        1 => Login::NonRoot,
        2 => Login::LocalPart,
        _ => Login::Name(one(rng, &["ubuntu", "git", "ann"])),
    };
    let count = rng.random_range(1..=2);
    Ssh {
        check: rng.random(),
        src,
        dst,
        logins: (0..count).map(|_| login(rng)).collect(),
    }
}

fn several<T>(rng: &mut StdRng, most: usize, of: impl Fn(&mut StdRng) -> T) -> Vec<T> {
    let count = rng.random_range(0..=most);
    (0..count).map(|_| of(rng)).collect()
}

pub fn policy(rng: &mut StdRng) -> Written {
    let group = |rng: &mut StdRng| several(rng, 3, |rng| one(rng, &USERS));
    let approver = |rng: &mut StdRng| match rng.random_range(0..4) {
        0 => Who::Tagged,
        1 => person(rng),
        _ => Who::Tag(one(rng, &TAGS)),
    };
    let prefixes = [
        "10.0.0.0/8",
        "10.0.1.0/24",
        "192.168.5.0/24",
        "fd00::/16",
        "100.64.0.0/10",
        "0.0.0.0/0",
    ];
    let mut route_approvers: Vec<(&'static str, Vec<Who>)> =
        several(rng, 3, |rng| (one(rng, &prefixes), list(rng, approver)));
    route_approvers.sort_by_key(|(prefix, _)| *prefix);
    route_approvers.dedup_by_key(|(prefix, _)| *prefix);
    let has = |rng: &mut StdRng| rng.random_range(0..5) > 0;
    let has_acls = has(rng);
    let acls = has_acls.then(|| several(rng, 4, acl));
    let has_grants = has(rng);
    Written {
        groups: [group(rng), group(rng), group(rng)],
        acls,
        grants: has_grants.then(|| several(rng, 4, grant)),
        route_approvers,
        exit_approvers: several(rng, 2, approver),
        ssh: several(rng, 3, ssh),
        attributes: several(rng, 3, |rng| (list(rng, target), some(rng, &ATTRIBUTES, 2))),
    }
}

/// A node with a number, whoever's.
pub fn random_node(rng: &mut StdRng, id: i64) -> NodeFacts {
    let owner = (rng.random_range(0..3) > 0).then(|| rng.random_range(1..=4));
    let tags = match owner {
        Some(_) => Vec::new(),
        None => some(rng, &TAGS, 2),
    };
    let mut node = node(id, owner, &tags);
    if rng.random_range(0..3) == 0 {
        let net = |text: &str| text.parse::<IpNet>().expect("a constant");
        node.announced = some(rng, &ROUTES, 4).into_iter().map(net).collect();
        let approved = node.announced.iter().copied();
        node.admin_approved = approved.filter(|_| rng.random_range(0..3) > 0).collect();
    }
    match rng.random_range(0..20) {
        0 => node.v4 = None,
        1 => node.v6 = None,
        _ => {}
    }
    // Some were created at once.
    node.created = rng.random_range(0..6);
    node.online = rng.random_range(0..5) > 0;
    node
}

pub fn world(rng: &mut StdRng) -> World {
    let count = rng.random_range(2..=9);
    let user_id = |rng: &mut StdRng| UserId(rng.random_range(1..=4));
    World {
        users: USERS
            .iter()
            .zip(1..)
            .map(|(name, id)| user(id, name))
            .collect(),
        nodes: (1..=count).map(|id| random_node(rng, id)).collect(),
        tailnet: TailnetFacts {
            domains: vec![DOMAIN.to_owned()],
            owner: Some(user_id(rng)),
            admins: several(rng, 2, user_id),
        },
    }
}

/// What a filter is asked about.
#[derive(Clone, Copy, Debug)]
pub struct Packet {
    pub from: IpAddr,
    pub to: IpAddr,
    pub protocol: u8,
    pub port: u16,
}

fn elsewhere(rng: &mut StdRng) -> IpAddr {
    one(rng, &ELSEWHERE).parse().expect("a constant")
}

fn address_of(rng: &mut StdRng, node: &NodeFacts) -> IpAddr {
    let v4 = node.v4.map(IpAddr::from);
    let v6 = node.v6.map(IpAddr::from);
    match (v4, v6) {
        (Some(v4), Some(v6)) if rng.random() => one(rng, &[v4, v6]),
        (Some(one), _) | (None, Some(one)) => one,
        (None, None) => elsewhere(rng),
    }
}

/// A packet that could arrive at a node: of one family, mostly to the node itself.
pub fn packet(rng: &mut StdRng, world: &World, at: &NodeFacts) -> Packet {
    loop {
        let anyone = |rng: &mut StdRng| match world.nodes.choose(rng) {
            Some(node) if rng.random_range(0..4) > 0 => address_of(rng, node),
            _ => elsewhere(rng),
        };
        let from = anyone(rng);
        let to = match rng.random_range(0..3) {
            0 => anyone(rng),
            _ => address_of(rng, at),
        };
        let (_, protocol) = match rng.random() {
            true => one(rng, &WITH_PORTS),
            false => one(rng, &WITHOUT_PORTS),
        };
        if from.is_ipv4() == to.is_ipv4() {
            return Packet {
                from,
                to,
                protocol,
                port: one(rng, &PROBED),
            };
        }
    }
}
