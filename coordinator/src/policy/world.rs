//! What a policy is compiled against: the users and nodes of the tailnet.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use lowroad_wire::control::{NodeId, UserId};

/// A user, as far as a policy can tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserFacts {
    /// The user's number.
    pub id: UserId,
    /// An e-mail address, or a plain name, which policies write as `name@`.
    pub login_name: String,
}

/// A node, as far as a policy can tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeFacts {
    /// The node's number, never used twice.
    pub id: NodeId,
    /// The owner. Ignored on tagged nodes: they belong to nobody.
    pub user: Option<UserId>,
    /// Tags with their `tag:` prefix.
    pub tags: Vec<String>,
    /// The node's IPv4 address.
    pub v4: Option<Ipv4Addr>,
    /// The node's IPv6 address.
    pub v6: Option<Ipv6Addr>,
    /// Routes that the node offers (`Hostinfo.RoutableIPs`), exit routes included.
    pub announced: Vec<IpNet>,
    /// Routes that an administrator approved. One of the two exit routes approves both.
    pub admin_approved: Vec<IpNet>,
    /// When the node was created, as any number that grows with time. Of several nodes that
    /// offer the same route, the one created first carries it.
    pub created: i64,
    /// Whether the node has a live poll. Nodes that are offline carry a route only if nobody
    /// else offers it.
    pub online: bool,
}

impl NodeFacts {
    /// Of a node that has nothing but its number.
    pub fn bare(id: NodeId) -> Self {
        Self {
            id,
            user: None,
            tags: Vec::new(),
            v4: None,
            v6: None,
            announced: Vec::new(),
            admin_approved: Vec::new(),
            created: 0,
            online: false,
        }
    }

    pub(crate) fn addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        let v4 = self.v4.map(IpAddr::from);
        v4.into_iter().chain(self.v6.map(IpAddr::from))
    }

    pub(crate) fn is_tagged(&self) -> bool {
        !self.tags.is_empty()
    }

    /// The user whose device this is; tagged nodes have none.
    pub(crate) fn owner(&self) -> Option<UserId> {
        self.user.filter(|_| !self.is_tagged())
    }
}

/// All users and nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct World {
    /// All users, in any order.
    pub users: Vec<UserFacts>,
    /// All nodes, in any order.
    pub nodes: Vec<NodeFacts>,
    /// What holds for the tailnet as a whole.
    pub tailnet: TailnetFacts,
}

/// What a policy can tell of a tailnet beside its users and nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TailnetFacts {
    /// Domains of e-mail addresses that are the tailnet's own, in the case that policies write them: `user:*@domain`
    /// means their users.
    pub domains: Vec<String>,
    /// Who owns the tailnet (`autogroup:owner`). `None`: nobody, and a policy that names the owner is refused.
    pub owner: Option<UserId>,
    /// Who administers it beside the owner (`autogroup:admin` is both).
    pub admins: Vec<UserId>,
}
