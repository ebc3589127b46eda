//! Which nodes aliases name, found without looking at each node for each alias.

use std::collections::HashMap;

use lowroad_wire::control::UserId;

use super::super::alias::Alias;
use super::super::people::People;
use super::{Devices, Nodes};

/// Nodes by what names them.
pub(crate) struct Named<'a> {
    people: &'a People,
    devices: &'a Devices,
    by_tag: HashMap<&'a str, Vec<usize>>,
    by_domain: HashMap<&'a str, Vec<usize>>,
    tagged: Vec<usize>,
    untagged: Vec<usize>,
}

impl<'a> Named<'a> {
    pub(crate) fn new(people: &'a People, nodes: &'a Nodes, devices: &'a Devices) -> Self {
        let mut named = Self {
            people,
            devices,
            by_tag: HashMap::new(),
            by_domain: HashMap::new(),
            tagged: Vec::new(),
            untagged: Vec::new(),
        };
        for (at, node) in nodes.live() {
            for tag in &node.facts.tags {
                named.by_tag.entry(tag).or_default().push(at);
            }
            match node.facts.is_tagged() {
                true => named.tagged.push(at),
                false => named.untagged.push(at),
            }
            let owner = node.facts.owner();
            if let Some((_, domain)) = owner.and_then(|user| people.address(user)) {
                named.by_domain.entry(domain).or_default().push(at);
            }
        }
        named
    }

    /// Positions of the nodes that an alias names by their user or their tags.
    pub(crate) fn of(&self, alias: &Alias) -> Vec<usize> {
        let of_users = |users: &mut dyn Iterator<Item = UserId>| {
            let devices = users.filter_map(|user| self.devices.get(&user));
            devices.flat_map(|own| own.iter()).collect()
        };
        let known = |nodes: Option<&Vec<usize>>| nodes.cloned().unwrap_or_default();
        match alias {
            Alias::User(name) => of_users(&mut self.people.user(name).into_iter()),
            Alias::Group(name) => of_users(&mut self.people.members(name)),
            Alias::Domain(domain) => known(self.by_domain.get(&*domain.to_ascii_lowercase())),
            Alias::Tag(tag) => known(self.by_tag.get(&**tag)),
            Alias::Tagged => self.tagged.clone(),
            Alias::Member => self.untagged.clone(),
            Alias::Any | Alias::DangerAll | Alias::OwnDevices | Alias::Internet | Alias::Net(_) => {
                Vec::new()
            }
        }
    }
}
