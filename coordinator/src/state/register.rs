//! Registration: who may join, and as whom (protocol.md 1.6).

mod login_page;

use std::{
    collections::HashSet,
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::Instant,
};

use ipnet::Ipv4Net;
use lowroad_wire::{
    control::{Hostinfo, NodeId, RegisterRequest, UserId},
    key::{MachinePublic, NodePublic},
};
use time::OffsetDateTime;

pub(super) use self::login_page::Pending;
pub use self::login_page::Waiting;
use super::State;
use crate::{
    Error, address,
    model::{KeyId, Node, Owner},
    policy::NodeFacts,
    store::Setting,
    text,
};

const FOREIGN_KEY: &str = "this node key belongs to another machine; log out, then log in again";

/// Who asks, and what only the outside knows.
pub struct Stranger<'a> {
    pub machine: MachinePublic,
    pub remote: IpAddr,
    pub random: [u8; 16],
    pub now: OffsetDateTime,
    pub instant: Instant,
    /// Whether the policy lets a user give a tag to a node.
    pub may_tag: &'a dyn Fn(UserId, &str) -> bool,
}

impl std::fmt::Debug for Stranger<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stranger")
            .field("machine", &self.machine)
            .field("remote", &self.remote)
            .finish_non_exhaustive()
    }
}

/// What comes of a request to register.
#[derive(Debug)]
pub enum Registered {
    Accepted(NodeId),
    /// The key is known but no longer good, or was just given up.
    Expired,
    /// A person has to approve: the ID of the login page.
    Visit(String),
}

/// What a node brings along when it joins.
#[derive(Debug, Clone)]
struct Join {
    machine: MachinePublic,
    key: NodePublic,
    old_key: Option<NodePublic>,
    hostinfo: Hostinfo,
    ephemeral: bool,
    cap: u16,
}

impl State {
    pub fn register(
        &mut self,
        request: RegisterRequest,
        who: &Stranger<'_>,
    ) -> Result<Registered, Error> {
        let key = request
            .node_key
            .ok_or_else(|| Error::bad_request("the request names no node key"))?;
        let known = self.node_by_key(key).cloned();
        if known
            .as_ref()
            .is_some_and(|node| node.machine != who.machine)
        {
            return Err(Error::unauthorized(FOREIGN_KEY));
        }
        if let Some(expiry) = request.expiry {
            return self.change_expiry(known, expiry, who.now);
        }
        let auth_key = request
            .auth
            .as_ref()
            .map(|auth| auth.auth_key.trim().to_owned())
            .filter(|key| !key.is_empty());
        let join = Join {
            machine: who.machine,
            key,
            old_key: request.old_node_key,
            hostinfo: request.hostinfo.unwrap_or_default(),
            ephemeral: request.ephemeral,
            cap: request.version,
        };
        match (known, auth_key) {
            (Some(node), _) if !node.is_expired(who.now) => self.refresh(&node, join, who),
            (_, Some(auth_key)) => self.join_by_auth_key(&auth_key, join, who),
            (Some(_), None) => Ok(Registered::Expired),
            (None, None) => self.rotate(join, who),
        }
    }

    /// An administrator lets the machine in that waits at login page `id`.
    pub fn approve(
        &mut self,
        id: &str,
        user: UserId,
        (now, instant): (OffsetDateTime, Instant),
        may_tag: &dyn Fn(UserId, &str) -> bool,
    ) -> Result<NodeId, Error> {
        let join = self.waiting(id)?.request.clone();
        let owner = requested_owner(&join.hostinfo, user, may_tag)?;
        let node = self.admit(join, owner, None, (now, instant))?;
        self.pending.remove(id);
        Ok(node)
    }

    /// A node that is in asks again, as clients do at every start. It may ask for tags then.
    fn refresh(
        &mut self,
        node: &Node,
        join: Join,
        who: &Stranger<'_>,
    ) -> Result<Registered, Error> {
        let mut node = node.clone();
        if let Owner::User(user) = node.owner {
            node.owner = requested_owner(&join.hostinfo, user, who.may_tag)?;
        }
        let id = node.id;
        self.take_hostinfo(&mut node, join.hostinfo)?;
        self.follow_hostname(&mut node);
        node.cap = join.cap;
        self.put_node(node, who.now);
        Ok(Registered::Accepted(id))
    }

    fn join_by_auth_key(
        &mut self,
        text: &str,
        mut join: Join,
        who: &Stranger<'_>,
    ) -> Result<Registered, Error> {
        let key = self.usable_auth_key(text, who.now)?;
        let owner = if key.tags.is_empty() {
            requested_owner(&join.hostinfo, key.user, who.may_tag)?
        } else if join
            .hostinfo
            .request_tags
            .iter()
            .all(|tag| key.tags.contains(tag))
        {
            Owner::Tags(key.tags.clone())
        } else {
            return Err(Error::forbidden(format!(
                "requested tags {} are not those of the auth key, {}; leave out --advertise-tags",
                join.hostinfo.request_tags.join(","),
                key.tags.join(","),
            )));
        };
        join.ephemeral |= key.ephemeral;
        let node = self.admit(join, owner, Some(key.id), (who.now, who.instant))?;
        self.note_use(&key);
        Ok(Registered::Accepted(node))
    }

    /// A new key without credentials: in exchange for an old one that is still good, or by a person's approval.
    fn rotate(&mut self, join: Join, who: &Stranger<'_>) -> Result<Registered, Error> {
        let old = join
            .old_key
            .and_then(|key| self.node_by_key(key))
            .filter(|old| old.machine == who.machine);
        // A key that ends some day is renewed by logging in, which is what its end is for. One that never ends gains nothing by
        // being replaced: the channel proves the machine, whose key lies beside the node's, and an administrator ends both alike.
        if let Some(old) = old.filter(|old| old.expiry.is_none()) {
            let owner = match old.owner {
                Owner::User(user) => requested_owner(&join.hostinfo, user, who.may_tag)?,
                Owner::Tags(_) => old.owner.clone(),
            };
            let ephemeral = old.ephemeral;
            let auth_key = old.auth_key;
            return self
                .admit(
                    Join { ephemeral, ..join },
                    owner,
                    auth_key,
                    (who.now, who.instant),
                )
                .map(Registered::Accepted);
        }
        self.open_login_page(join, who).map(Registered::Visit)
    }

    /// A past time logs out; a future one may bring the end nearer, not push it away.
    fn change_expiry(
        &mut self,
        known: Option<Arc<Node>>,
        expiry: OffsetDateTime,
        now: OffsetDateTime,
    ) -> Result<Registered, Error> {
        let Some(node) = known else {
            return Ok(Registered::Expired);
        };
        if expiry > now && node.expiry.is_some_and(|old| old < expiry) {
            return Err(Error::bad_request(
                "a key's expiry cannot be extended by the client; log in again instead",
            ));
        }
        if expiry > now {
            self.change_node(node.id, now, |node| node.expiry = Some(expiry));
            return Ok(Registered::Accepted(node.id));
        }
        tracing::info!(node = %node.name, "logged out");
        if node.ephemeral {
            self.remove_node(node.id);
        } else {
            self.expire_node(node.id, now);
        }
        Ok(Registered::Expired)
    }

    /// Makes a node, or gives the one that this machine already has its new key.
    fn admit(
        &mut self,
        join: Join,
        owner: Owner,
        auth_key: Option<KeyId>,
        (now, instant): (OffsetDateTime, Instant),
    ) -> Result<NodeId, Error> {
        let Join {
            machine,
            key,
            old_key,
            hostinfo,
            ephemeral,
            cap,
        } = join;
        // Since its login page was opened, another machine may have come with the key.
        if self
            .node_by_key(key)
            .is_some_and(|node| node.machine != machine)
        {
            return Err(Error::unauthorized(FOREIGN_KEY));
        }
        let (mut node, address) = match self.earlier(machine, key, old_key, &owner) {
            Some(node) => (node, None),
            None => {
                let address = self.next_address(&owner)?;
                let node = self.blank(machine, key, &owner, &address, now);
                (node, Some(address))
            }
        };
        self.take_hostinfo(&mut node, hostinfo)?;
        self.follow_hostname(&mut node);
        if node.key != key {
            self.end_session(node.id);
        }
        let node = Node {
            key,
            owner,
            ephemeral,
            cap,
            auth_key,
            expiry: None,
            ..node
        };
        tracing::info!(node = %node.name, id = %node.id, v4 = %node.v4, new = address.is_some(), "registered");
        let id = node.id;
        if let Some(address) = address {
            self.last_ids.node = id.0;
            self.remember(&address);
        }
        // An ephemeral node that registers and never polls is to be deleted as well.
        if !self.sessions.contains_key(&id) && ephemeral {
            self.departed.insert(id, instant);
        }
        self.put_node(node, now);
        Ok(id)
    }

    /// The node that this machine has been so far: by its key, the key before it, or an owner of the same kind.
    fn earlier(
        &self,
        machine: MachinePublic,
        key: NodePublic,
        old_key: Option<NodePublic>,
        owner: &Owner,
    ) -> Option<Node> {
        let by_key = |key| self.node_by_key(key).filter(|node| node.machine == machine);
        let same_owner =
            |node: &&Arc<Node>| node.machine == machine && node.owner.user() == owner.user();
        let found = by_key(key)
            .or_else(|| by_key(old_key?))
            .or_else(|| self.nodes().find(same_owner));
        found.map(|node| Node::clone(node))
    }

    fn blank(
        &self,
        machine: MachinePublic,
        key: NodePublic,
        owner: &Owner,
        Address { number, .. }: &Address,
        now: OffsetDateTime,
    ) -> Node {
        Node {
            id: NodeId(self.last_ids.node + 1),
            machine,
            key,
            disco: Default::default(),
            owner: owner.clone(),
            name: String::new(),
            name_chosen: false,
            hostinfo: Hostinfo::default(),
            endpoints: Vec::new(),
            v4: number.v4(),
            v6: number.v6(),
            approved_routes: Vec::new(),
            expiry: None,
            ephemeral: false,
            created: now,
            last_seen: None,
            online: false,
            cap: 0,
            auth_key: None,
        }
    }
}

/// An address for a new node.
struct Address {
    number: address::Number,
    /// The pool that it is out of.
    pool: Option<Ipv4Net>,
}

impl State {
    fn next_address(&self, owner: &Owner) -> Result<Address, Error> {
        let pools = self.pools(owner);
        let nodes: HashSet<Ipv4Addr> = self.nodes().map(|node| node.v4).collect();
        let taken = |number: address::Number| nodes.contains(&number.v4());
        let number = match pools.is_empty() {
            true => self.next_outside_pools(taken),
            false => address::next_of(&pools, |pool| self.last_of(pool), taken),
        };
        let pool = |number: &address::Number| {
            let mut pools = pools.iter();
            pools.find(|pool| pool.contains(&number.v4())).copied()
        };
        let address = number.map(|number| Address {
            pool: pool(&number),
            number,
        });
        address.ok_or_else(|| {
            let all: Vec<String> = pools.iter().map(ToString::to_string).collect();
            let message = match all.is_empty() {
                true => "no address of 100.64.0.0/10 is free; delete nodes that are gone".to_owned(),
                false => format!(
                    "no address of {} (ipPool in the policy) is free; widen the pool, or delete nodes that are gone",
                    all.join(" and ")
                ),
            };
            Error::refused(hyper::StatusCode::INSUFFICIENT_STORAGE, message)
        })
    }

    /// Pools are for those that they are for, as long as there is room elsewhere.
    fn next_outside_pools(
        &self,
        taken: impl Fn(address::Number) -> bool,
    ) -> Option<address::Number> {
        let pools = self.policy.all_address_pools();
        let outside = address::next_outside(&pools, self.last_address, &taken);
        outside.or_else(|| address::next_outside(&[], self.last_address, taken))
    }

    /// Out of which the policy has a new node's address be.
    fn pools(&self, owner: &Owner) -> Vec<Ipv4Net> {
        if self.policy.all_address_pools().is_empty() {
            return Vec::new();
        }
        let node = NodeFacts {
            user: owner.user(),
            tags: owner.tags().to_vec(),
            ..NodeFacts::bare(NodeId(0))
        };
        let (users, tailnet) = (self.user_facts(), self.tailnet());
        self.policy.address_pools(&users, &tailnet, &node)
    }

    fn last_of(&self, pool: &Ipv4Net) -> Option<address::Number> {
        address::Number::of(*self.pool_turns.get(pool)?)
    }

    /// Whose turn is next, in a pool or outside: an address that was given back is not at once somebody else's.
    fn remember(&mut self, address: &Address) {
        let setting = match address.pool {
            Some(pool) => {
                self.pool_turns.insert(pool, address.number.v4());
                Setting::PoolTurns
            }
            None => {
                self.last_address = Some(address.number);
                Setting::LastAddress
            }
        };
        self.mark(|dirty| {
            dirty.settings.insert(setting);
        });
    }
}

/// A user's node, or a tagged one if it asks for tags that the user may give.
fn requested_owner(
    hostinfo: &Hostinfo,
    user: UserId,
    may_tag: &dyn Fn(UserId, &str) -> bool,
) -> Result<Owner, Error> {
    let mut tags = hostinfo.request_tags.clone();
    tags.sort();
    tags.dedup();
    if tags.is_empty() {
        return Ok(Owner::User(user));
    }
    match tags
        .iter()
        .find(|tag| text::parse_tag(tag).as_ref() != Ok(tag) || !may_tag(user, tag))
    {
        None => Ok(Owner::Tags(tags)),
        Some(tag) => Err(Error::forbidden(format!(
            "requested tag {tag:?} is not permitted; the policy's tagOwners say who may use which, or use an auth key with tags"
        ))),
    }
}
