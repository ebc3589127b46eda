//! Users and nodes of a tailnet, for tests of policies.

use std::net::{Ipv4Addr, Ipv6Addr};

use lowroad_coordinator::policy::{NodeFacts, UserFacts};
use lowroad_wire::control::{NodeId, UserId};

pub fn user(id: i64, login_name: &str) -> UserFacts {
    UserFacts {
        id: UserId(id),
        login_name: login_name.to_owned(),
    }
}

/// With addresses that end in its number: 100.64.0.1 and fd7a:115c:a1e0::1. It announces nothing.
pub fn node(id: i64, user: Option<i64>, tags: &[&str]) -> NodeFacts {
    NodeFacts {
        id: NodeId(id),
        user: user.map(UserId),
        tags: tags.iter().map(|&tag| tag.to_owned()).collect(),
        v4: Some(Ipv4Addr::from_bits(0x6440_0000 + id as u32)),
        v6: Some(Ipv6Addr::from_bits(
            (0xfd7a_115c_a1e0_u128 << 80) + id as u128,
        )),
        announced: Vec::new(),
        admin_approved: Vec::new(),
        created: id,
        online: true,
    }
}
