//! Nodes that stand in for users and tags that have none, inside tests only.

mod alike;

use std::collections::{BTreeSet, HashSet};
use std::net::{Ipv4Addr, Ipv6Addr};

use lowroad_wire::control::{NodeId, UserId};

use super::super::alias::Alias;
use super::super::error::{At, PolicyError};
use super::super::people::People;
use super::super::syntax::Document;
use super::super::world::{NodeFacts, UserFacts, World};

use alike::Alike;

/// One alone meets only itself, and tells nothing of what rules say of others.
const TWO: [&str; 2] = ["stand-in", "another-stand-in"];

/// More would take more memory than a policy may.
const MOST: usize = 10_000;

/// The world with a node for each of the users and tags that has none, if there are such. Of users who don't exist and whom nothing in the
/// policy tells apart, two have a node. Tags have `of_a_tag`: only logins know themselves from others by more than addresses.
///
/// # Errors
/// They are more than [`MOST`].
pub(super) fn extend<'a>(
    document: &Document,
    world: &World,
    aliases: impl Iterator<Item = At<&'a Alias>>,
    of_a_tag: usize,
) -> Result<Option<World>, PolicyError> {
    let mut cast = Cast::new(document, world, of_a_tag);
    // In the order of the file, each once.
    let mut seen = HashSet::new();
    for At { place, value } in aliases.filter(|alias| seen.insert(alias.value)) {
        if !matches!(value, Alias::Net(_)) && !cast.has(value) {
            cast.stand_in_for(value);
        }
        if cast.is_full() {
            let message = format!(
                "this test, with those before it, is about more than {MOST} users and tags that have no node yet; name fewer, or add it when they have joined"
            );
            return Err(PolicyError::test(place, message));
        }
    }
    let Cast { users, nodes, .. } = cast;
    Ok((!nodes.is_empty()).then(|| World {
        users: [&world.users[..], &users].concat(),
        nodes: [&world.nodes[..], &nodes].concat(),
        tailnet: world.tailnet.clone(),
    }))
}

/// Who has a node, and who gets one. Whether somebody answers to a name doesn't depend on whom other tests are about.
struct Cast<'a> {
    document: &'a Document,
    people: People,
    /// Users who have nodes, and tags that nodes have.
    owners: HashSet<UserId>,
    has_untagged: bool,
    worn: HashSet<String>,
    /// And those for whom nodes stand in.
    played: HashSet<UserId>,
    worn_in_play: HashSet<String>,
    addresses: FreeAddresses,
    /// Those who are added.
    users: Vec<UserFacts>,
    nodes: Vec<NodeFacts>,
    lowest: i64,
    alike: Option<Alike<'a>>,
    of_a_tag: usize,
}

impl<'a> Cast<'a> {
    fn new(document: &'a Document, world: &World, of_a_tag: usize) -> Self {
        let tags = world.nodes.iter().flat_map(|node| &node.tags);
        let users = world.users.iter().map(|user| user.id.0);
        Self {
            document,
            people: People::new(document, &world.users),
            owners: world.nodes.iter().filter_map(NodeFacts::owner).collect(),
            has_untagged: world.nodes.iter().any(|node| !node.is_tagged()),
            worn: tags.cloned().collect(),
            played: HashSet::new(),
            worn_in_play: HashSet::new(),
            addresses: FreeAddresses::new(world),
            users: Vec::new(),
            nodes: Vec::new(),
            lowest: users.min().unwrap_or(0).min(0),
            alike: None,
            of_a_tag,
        }
    }

    fn is_full(&self) -> bool {
        self.played.len() + self.worn_in_play.len() > MOST
    }

    /// Whether a node of the tailnet answers to the alias.
    fn has(&self, alias: &Alias) -> bool {
        let owns = |name: &str| {
            let user = self.people.user(name);
            user.is_some_and(|user| self.owners.contains(&user))
        };
        match alias {
            Alias::Member => self.has_untagged,
            Alias::Tagged => !self.worn.is_empty(),
            Alias::Tag(tag) => self.worn.contains(tag),
            Alias::User(name) => owns(name),
            Alias::Group(name) => {
                let mut members = self.document.groups.get(name).into_iter().flatten();
                members.any(|member| owns(&member.value))
            }
            Alias::Domain(_) => {
                let mut owners = self.owners.iter();
                owners.any(|owner| self.people.names_user(alias, *owner))
            }
            _ => false,
        }
    }

    /// Whoever has to stand in for an alias that nobody answers to gets a node. Users who don't exist are added.
    fn stand_in_for(&mut self, alias: &Alias) {
        match alias {
            Alias::User(name) => self.user(name),
            Alias::Group(name) => {
                for member in self.document.groups.get(name).into_iter().flatten() {
                    self.member(&member.value);
                }
            }
            Alias::Member => TWO.iter().for_each(|name| self.user(&format!("{name}@"))),
            Alias::Domain(domain) => {
                for name in TWO {
                    self.user(&format!("{name}@{domain}"));
                }
            }
            Alias::Tag(tag) => self.tagged(tag),
            Alias::Tagged => {
                if let Some(tag) = self.document.names.tags.first() {
                    self.tagged(tag);
                }
            }
            _ => {}
        }
    }

    /// A user who is in a group.
    fn member(&mut self, name: &str) {
        if self.is_full() {
            return;
        }
        let alike = self.alike.get_or_insert_with(|| Alike::new(self.document));
        if self.people.user(name).is_some() || alike.is_needed(name) {
            self.user(name);
        }
    }

    fn user(&mut self, name: &str) {
        let id = self.people.user(name).unwrap_or_else(|| {
            self.lowest -= 1;
            let user = UserFacts {
                id: UserId(self.lowest),
                login_name: name.trim_end_matches('@').to_owned(),
            };
            self.people.add(&user);
            self.users.push(user);
            UserId(self.lowest)
        });
        if self.played.insert(id) {
            let node = self.addresses.node(Some(id), None);
            self.nodes.push(node);
        }
    }

    fn tagged(&mut self, tag: &str) {
        if self.worn_in_play.insert(tag.to_owned()) {
            for _ in 0..self.of_a_tag {
                let node = self.addresses.node(None, Some(tag.to_owned()));
                self.nodes.push(node);
            }
        }
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
