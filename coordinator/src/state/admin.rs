//! What administrators do to users and nodes.

use std::{fmt, sync::Arc};

use ipnet::IpNet;
use lowroad_wire::control::{NodeId, UserId};
use time::OffsetDateTime;

use super::State;
use crate::{
    Error,
    model::{Node, Role, User},
    name,
    text::{parse_id, rfc3339},
};

/// How people name a node: its name (with or without the domain), ID, address, or node key.
#[derive(Debug, Clone)]
pub struct NodeRef(pub String);

impl fmt::Display for NodeRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

const LONGEST_USER_NAME: usize = 128;

impl State {
    pub fn find_node(&self, wanted: &NodeRef) -> Result<&Arc<Node>, Error> {
        let text = wanted.0.trim().trim_end_matches('.');
        let suffix = format!(".{}", self.settings.base_domain);
        let label = text
            .strip_suffix(&suffix)
            .unwrap_or(text)
            .to_ascii_lowercase();
        let by_name = self.nodes().find(|node| node.name == label);
        let by_id = || self.node(NodeId(parse_id(text)?));
        // Hosts choose what they are called, and none may stand in for another by calling itself "1".
        if let (Some(named), Some(numbered)) = (by_name, by_id())
            && named.id != numbered.id
        {
            return Err(Error::bad_request(format!(
                "`{wanted}` is the name of one node and the ID of another; write {}{suffix} or {}",
                named.name, numbered.v4
            )));
        }
        let by_address = || {
            self.nodes()
                .find(|node| node.v4.to_string() == text || Ok(node.v6) == text.parse())
        };
        let by_key = || self.node_by_key(text.parse().ok()?);
        by_name
            .or_else(by_id)
            .or_else(by_address)
            .or_else(by_key)
            .ok_or_else(|| {
                Error::not_found(format!(
                    "there is no node `{wanted}`; `nodes list` shows all"
                ))
            })
    }

    pub fn find_user(&self, wanted: &str) -> Option<&Arc<User>> {
        let wanted = wanted.trim();
        let by_name = |name: &str| {
            self.users
                .values()
                .find(|user| user.name.eq_ignore_ascii_case(name))
        };
        // `alice@` is how policies write a user without a domain.
        by_name(wanted)
            .or_else(|| by_name(wanted.strip_suffix('@')?))
            .or_else(|| self.users.get(&UserId(parse_id(wanted)?)))
    }

    pub fn existing_user(&self, wanted: &str) -> Result<&Arc<User>, Error> {
        self.find_user(wanted).ok_or_else(|| {
            Error::not_found(format!(
                "there is no user `{wanted}`; `users list` shows all"
            ))
        })
    }

    pub fn create_user(
        &mut self,
        name: &str,
        display_name: &str,
        now: OffsetDateTime,
    ) -> Result<Arc<User>, Error> {
        let name = name.trim();
        let name = name.strip_suffix('@').unwrap_or(name);
        // A name of digits only could not be told from an ID.
        let is_id = name.bytes().all(|b| b.is_ascii_digit());
        let is_plain = name
            .chars()
            .all(|c| c.is_alphanumeric() || "@._-+".contains(c));
        if name.is_empty()
            || name.len() > LONGEST_USER_NAME
            || is_id
            || !is_plain
            || name.matches('@').count() > 1
        {
            return Err(Error::bad_request(format!(
                "`{name}` cannot be a user's name; write a name such as alice or alice@example.com: letters, digits, `.`, `_`, `-`, `+`"
            )));
        }
        if let Some(user) = self.find_user(name) {
            return Err(Error::refused(
                hyper::StatusCode::CONFLICT,
                format!("there is a user `{}` already", user.name),
            ));
        }
        self.last_ids.user += 1;
        let id = UserId(self.last_ids.user);
        let user = Arc::new(User {
            id,
            name: name.to_owned(),
            display_name: display_name.trim().to_owned(),
            created: now,
            role: Role::Member,
        });
        self.users.insert(id, user.clone());
        self.touch_user(id);
        Ok(user)
    }

    /// The user of that name, made if need be.
    pub fn ensure_user(&mut self, name: &str, now: OffsetDateTime) -> Result<Arc<User>, Error> {
        match self.find_user(name) {
            Some(user) => Ok(user.clone()),
            None => self.create_user(name, "", now),
        }
    }

    /// There is one owner: who was it before becomes an administrator.
    pub fn set_role(&mut self, wanted: &str, role: Role) -> Result<Arc<User>, Error> {
        let id = self.existing_user(wanted)?.id;
        let before = self.users.values().find(|user| user.role == Role::Owner);
        if let Some(before) = before.map(|user| user.id)
            && role == Role::Owner
        {
            self.give_role(before, Role::Admin);
        }
        self.give_role(id, role);
        Ok(self.existing_user(wanted)?.clone())
    }

    fn give_role(&mut self, id: UserId, role: Role) {
        if let Some(user) = self.users.get_mut(&id)
            && user.role != role
        {
            Arc::make_mut(user).role = role;
            self.touch_user(id);
        }
    }

    pub fn delete_user(&mut self, wanted: &str) -> Result<Arc<User>, Error> {
        let user = self.existing_user(wanted)?.clone();
        let owned: Vec<_> = self
            .nodes()
            .filter(|node| node.owner.user() == Some(user.id))
            .map(|node| node.name.as_str())
            .collect();
        if !owned.is_empty() {
            let message = format!(
                "user `{}` owns nodes: {}; delete them first",
                user.name,
                owned.join(", ")
            );
            return Err(Error::refused(hyper::StatusCode::CONFLICT, message));
        }
        let keys: Vec<_> = self
            .auth_keys
            .values()
            .filter(|key| key.user == user.id)
            .map(|key| key.id)
            .collect();
        self.auth_keys.retain(|_, key| key.user != user.id);
        self.mark(|dirty| dirty.auth_keys.extend(keys));
        self.users.remove(&user.id);
        self.touch_user(user.id);
        Ok(user)
    }

    /// Replaces what is approved. One exit route stands for both.
    pub fn approve_routes(&mut self, id: NodeId, mut routes: Vec<IpNet>, now: OffsetDateTime) {
        if routes.iter().any(|route| route.prefix_len() == 0) {
            routes.extend(exit_routes());
        }
        routes.sort();
        routes.dedup();
        self.change_node(id, now, |node| node.approved_routes = routes);
    }

    pub fn rename_node(
        &mut self,
        id: NodeId,
        wanted: &str,
        now: OffsetDateTime,
    ) -> Result<(), Error> {
        if name::label(wanted) != wanted {
            return Err(Error::bad_request(format!(
                "`{wanted}` cannot be a node's name; would `{}` do?",
                name::label(wanted)
            )));
        }
        if self
            .nodes()
            .any(|node| node.id != id && node.name == wanted)
        {
            return Err(Error::refused(
                hyper::StatusCode::CONFLICT,
                format!("there is a node `{wanted}` already"),
            ));
        }
        self.change_node(id, now, |node| {
            node.name = wanted.to_owned();
            node.name_chosen = true;
        });
        Ok(())
    }

    pub fn expire_node(&mut self, id: NodeId, now: OffsetDateTime) {
        self.change_node(id, now, |node| {
            node.expiry = Some(node.expiry.map_or(now, |expiry| expiry.min(now)))
        });
    }

    /// `None`: it does not end by itself. A key that has expired is good again.
    pub fn set_expiry(
        &mut self,
        id: NodeId,
        expiry: Option<OffsetDateTime>,
        now: OffsetDateTime,
    ) -> Result<(), Error> {
        if let Some(past) = expiry.filter(|expiry| *expiry <= now) {
            return Err(Error::bad_request(format!(
                "{} is over; leave out --at to expire the key at once",
                rfc3339(past)
            )));
        }
        self.change_node(id, now, |node| node.expiry = expiry);
        Ok(())
    }

    pub fn delete_node(&mut self, id: NodeId) {
        self.remove_node(id);
    }

    fn touch_user(&mut self, id: UserId) {
        self.stale.users = true;
        self.generation += 1;
        self.mark(|dirty| {
            dirty.users.insert(id);
        });
    }
}

fn exit_routes() -> [IpNet; 2] {
    [
        IpNet::V4(ipnet::Ipv4Net::default()),
        IpNet::V6(ipnet::Ipv6Net::default()),
    ]
}
