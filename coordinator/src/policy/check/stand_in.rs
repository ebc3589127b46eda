//! Nodes that stand in for users and tags that have none, inside tests only.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr};

use lowroad_wire::control::{NodeId, UserId};

use super::super::alias::Alias;
use super::super::people::People;
use super::super::syntax::Document;
use super::super::world::{NodeFacts, UserFacts, World};

/// The world with a node for each of the users and tags that has none, if there are such.
pub(super) fn extend<'a>(
    document: &Document,
    world: &World,
    aliases: impl Iterator<Item = &'a Alias>,
) -> Option<World> {
    let mut extended = world.clone();
    let mut addresses = FreeAddresses::new(world);
    let mut people = People::new(document, &extended.users);
    for alias in aliases {
        let nodes = &extended.nodes;
        let is_there = nodes.iter().any(|node| people.names_node(alias, node));
        if is_there || matches!(alias, Alias::Net(_)) {
            continue;
        }
        for (user, tag) in stand_ins(document, alias, &mut extended.users) {
            extended.nodes.push(addresses.node(user, tag));
        }
        people = People::new(document, &extended.users);
    }
    (extended.nodes.len() > world.nodes.len()).then_some(extended)
}

/// Who has to stand in for an alias that nobody answers to. Users who don't exist are added.
fn stand_ins(
    document: &Document,
    alias: &Alias,
    users: &mut Vec<UserFacts>,
) -> Vec<(Option<UserId>, Option<String>)> {
    let mut user = |name: &str| {
        let people = People::new(document, users);
        let known = people.user(name);
        let id = known.unwrap_or_else(|| {
            let lowest = users.iter().map(|user| user.id.0).min().unwrap_or(0);
            let id = UserId(lowest.min(0) - 1);
            users.push(UserFacts {
                id,
                login_name: name.trim_end_matches('@').to_owned(),
            });
            id
        });
        (Some(id), None)
    };
    match alias {
        Alias::User(name) => vec![user(name)],
        Alias::Group(name) => {
            let members = document.groups.get(name).into_iter().flatten();
            members.map(|member| user(&member.value)).collect()
        }
        Alias::Member => vec![user("stand-in@")],
        Alias::Domain(domain) => vec![user(&format!("stand-in@{domain}"))],
        Alias::Tag(tag) => vec![(None, Some(tag.clone()))],
        Alias::Tagged => document
            .names
            .tags
            .first()
            .map(|tag| (None, Some(tag.clone())))
            .into_iter()
            .collect(),
        _ => Vec::new(),
    }
}

/// Tailnet addresses that no node has: reserved ones first.
struct FreeAddresses {
    v4: Box<dyn Iterator<Item = u32>>,
    given: u32,
}

impl FreeAddresses {
    fn new(world: &World) -> Self {
        let used: BTreeSet<u32> = world
            .nodes
            .iter()
            .filter_map(|node| node.v4.map(Ipv4Addr::to_bits))
            .collect();
        let range =
            |first: [u8; 4], last: [u8; 4]| u32::from_be_bytes(first)..=u32::from_be_bytes(last);
        let reserved = range([100, 100, 100, 1], [100, 100, 100, 254]);
        let others = range([100, 115, 94, 1], [100, 127, 255, 254]).rev();
        Self {
            v4: Box::new(reserved.chain(others).filter(move |v4| !used.contains(v4))),
            given: 0,
        }
    }

    fn node(&mut self, user: Option<UserId>, tag: Option<String>) -> NodeFacts {
        self.given += 1;
        let v6 = (0xfd7a_115c_a1e0_ffff_u128 << 64) | u128::from(self.given);
        NodeFacts {
            id: NodeId(-i64::from(self.given)),
            user,
            tags: tag.into_iter().collect(),
            v4: self.v4.next().map(Ipv4Addr::from_bits),
            v6: Some(Ipv6Addr::from_bits(v6)),
            announced: Vec::new(),
            admin_approved: Vec::new(),
            created: 0,
            online: true,
        }
    }
}
