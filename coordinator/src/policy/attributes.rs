//! `nodeAttrs`: attributes of nodes, which tell clients how to behave.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net};
use jsonc_parser::ast::Value;
use jsonc_parser::common::Ranged;
use lowroad_wire::control::{CapMap, UserId};

use super::alias::{Alias, is_unknown_autogroup, parse_net};
use super::compile::{Node, Nodes};
use super::error::{At, Place, PolicyError};
use super::hujson::Text;
use super::people::People;
use super::routes::is_exit;
use super::suggest::nearest;
use super::syntax::Names;
use super::table::Table;
use super::world::{NodeFacts, TailnetFacts};

/// Nodes of the tailnet's owner have it, and tagged ones, which belong to the tailnet.
const IS_OWNER: &str = "https://tailscale.com/cap/is-owner";
/// Nodes of users who administer the tailnet have it, the owner among them.
const IS_ADMIN: &str = "https://tailscale.com/cap/is-admin";

const FIELDS: [&str; 4] = ["target", "attr", "ipPool", "app"];

/// How many of them lowroad has.
const SUPPORTED: usize = 3;

/// A node with it is offered to others as an exit node.
const SUGGEST_EXIT_NODE: &str = "suggest-exit-node";
/// A node with it is not to know that there is IPv4 in the tailnet, nor is anybody to know of its IPv4 address.
const DISABLE_IPV4: &str = "disable-ipv4";
const RANDOMIZE_CLIENT_PORT: &str = "randomize-client-port";

/// Attributes that the hosted service gives along with others.
const ALONG: [(&str, &str); 2] = [
    (
        "funnel",
        "https://tailscale.com/cap/funnel-ports?ports=443,8443,10000",
    ),
    ("funnel", "https://tailscale.com/cap/warn-funnel-no-https"),
];

/// Where nodes can have addresses, and what of it no pool may name, as at the service (protocol.md 9). This server gives fewer (`address`).
const ADDRESSES: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(100, 64, 0, 0), 10);
const RESERVED: [Ipv4Net; 2] = [
    Ipv4Net::new_assert(Ipv4Addr::new(100, 100, 100, 0), 24),
    Ipv4Net::new_assert(Ipv4Addr::new(100, 115, 92, 0), 23),
];

/// Those that can be targets.
const AUTOGROUPS: [&str; 4] = [
    "autogroup:member",
    "autogroup:tagged",
    "autogroup:owner",
    "autogroup:admin",
];

/// One entry of `nodeAttrs`.
#[derive(Clone, Debug)]
pub(crate) struct Attributes {
    pub(crate) place: Place,
    pub(crate) targets: Vec<At<Target>>,
    pub(crate) names: Vec<String>,
    /// Out of which prefixes nodes that join get their IPv4 addresses (`ipPool`); none: out of all.
    pub(crate) pools: Vec<At<Ipv4Net>>,
}

/// Which nodes get attributes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Target {
    Alias(Alias),
    /// `autogroup:owner`: devices of the user who owns the tailnet.
    Owner,
    /// `autogroup:admin`: devices of users who administer the tailnet, the owner among them.
    Admin,
}

impl Attributes {
    /// What `randomizeClientPort` stands for.
    pub(crate) fn randomized_ports(place: Place) -> Self {
        Self {
            place,
            targets: vec![At {
                place,
                value: Target::Alias(Alias::Any),
            }],
            names: vec![RANDOMIZE_CLIENT_PORT.to_owned()],
            pools: Vec::new(),
        }
    }

    /// Reads one entry of `nodeAttrs`.
    pub(crate) fn read(text: &Text, value: &Value, names: &Names) -> Result<Self, PolicyError> {
        let fields = text.fields_of(
            value,
            "an entry of nodeAttrs",
            &FIELDS,
            &FIELDS[..SUPPORTED],
        )?;
        if let Some(app) = fields.get("app") {
            let place = text.at(app.range());
            text.report(PolicyError::unsupported(
                place,
                "\"app\" in nodeAttrs",
                "take this entry out; app connectors don't run here",
            ));
        }
        let strings = |name: &str| text.strings_of(&fields, name).into_iter();
        let pools = strings("ipPool").filter_map(|pool| text.keep(read_pool(pool)));
        let pools = pools.collect();
        let targets = strings("target");
        let attributes = strings("attr");
        Ok(Self {
            place: fields.place,
            targets: targets
                .filter_map(|target| text.keep(read_target(target, names)))
                .collect(),
            names: attributes
                .map(|name| {
                    if name.value.is_empty() {
                        let message = "an attribute without a name; take it out of attr";
                        text.report(PolicyError::invalid(name.place, message));
                    }
                    name.value.to_owned()
                })
                .collect(),
            pools,
        })
    }
}

fn read_target(text: At<&str>, names: &Names) -> Result<At<Target>, PolicyError> {
    let place = text.place;
    let value = match text.value {
        "autogroup:owner" => Target::Owner,
        "autogroup:admin" => Target::Admin,
        unknown if is_unknown_autogroup(unknown) => {
            let message = format!(
                "target {unknown:?}: no such autogroup; nodeAttrs take member, tagged, owner and admin"
            );
            let error = PolicyError::invalid(place, message);
            return Err(error.suggesting(nearest(unknown, AUTOGROUPS)));
        }
        _ => Target::Alias(Alias::parse(text, "target", names)?),
    };
    let fits = !matches!(
        value,
        Target::Alias(Alias::DangerAll | Alias::OwnDevices | Alias::Internet | Alias::Domain(_))
    );
    if !fits {
        let message = "nodeAttrs take `*`, users, groups, tags, hosts, addresses, prefixes, autogroup:member, autogroup:tagged, autogroup:owner and autogroup:admin as target";
        return Err(PolicyError::invalid(place, message));
    }
    Ok(At { place, value })
}

fn read_pool(pool: At<&str>) -> Result<At<Ipv4Net>, PolicyError> {
    let (place, shown) = (pool.place, pool.value);
    if let Some(IpNet::V4(net)) = parse_net(pool, "ipPool")? {
        let meets = |other: &Ipv4Net| other.contains(&net) || net.contains(other);
        if ADDRESSES.contains(&net) && !RESERVED.iter().any(meets) {
            return Ok(At { place, value: net });
        }
    }
    let reserved = RESERVED.map(|net| net.to_string()).join(" and ");
    let message =
        format!("ipPool {shown:?}: write a prefix inside {ADDRESSES} that leaves {reserved} alone");
    Err(PolicyError::invalid(place, message))
}

/// Targets that name a role which nobody has.
pub(crate) fn unknown_roles<'a>(
    entries: &'a [Attributes],
    tailnet: &'a TailnetFacts,
) -> impl Iterator<Item = PolicyError> + 'a {
    let targets = entries.iter().flat_map(|entry| &entry.targets);
    targets.filter_map(|target| {
        let (what, which) = match target.value {
            Target::Owner if tailnet.owner.is_none() => ("autogroup:owner", "owner"),
            Target::Admin if admins(tailnet).next().is_none() => ("autogroup:admin", "admin"),
            _ => return None,
        };
        let message = format!(
            "target {what:?}: nobody is {which} here; give a user that role (`users role NAME {which}`), or name users or a group instead"
        );
        Some(PolicyError::invalid(target.place, message))
    })
}

/// Out of which prefixes a node that joins gets its IPv4 address: the first entry that has some decides.
pub(crate) fn pools_of(
    entries: &[Attributes],
    people: &People,
    tailnet: &TailnetFacts,
    node: &NodeFacts,
) -> Vec<Ipv4Net> {
    let is_meant = |entry: &&Attributes| is_meant(entry, people, tailnet, node);
    let mut entries = entries.iter().filter(|entry| !entry.pools.is_empty());
    let pools = entries.find(is_meant).map(|entry| entry.pools.iter());
    pools.into_iter().flatten().map(|pool| pool.value).collect()
}

/// The attributes of one node.
#[derive(Clone, Debug)]
pub(crate) struct NodeAttributes {
    /// Shared by nodes that have the same.
    pub(crate) all: Arc<CapMap>,
    pub(crate) without_v4: bool,
    /// Whether others are told of it as an exit node.
    pub(crate) suggested_exit: bool,
}

/// The attributes of every node.
pub(crate) fn attributes(
    entries: &[Attributes],
    people: &People,
    tailnet: &TailnetFacts,
    nodes: &Nodes,
) -> Table<NodeAttributes> {
    let mut shared: HashMap<Given, Arc<CapMap>> = HashMap::new();
    let of_node = |node: &Arc<Node>| {
        let given = Given::to(entries, people, tailnet, &node.facts);
        let all = match shared.get(&given) {
            Some(known) => known.clone(),
            None => {
                let all = Arc::new(given.capabilities(entries));
                shared.insert(given, all.clone());
                all
            }
        };
        NodeAttributes::new(node, all)
    };
    nodes.iter().map(of_node).collect()
}

/// The attributes of one node. `like` are another's: what is the same is shared.
pub(crate) fn attributes_of(
    entries: &[Attributes],
    people: &People,
    tailnet: &TailnetFacts,
    node: &Node,
    like: Option<&NodeAttributes>,
) -> NodeAttributes {
    let all = Given::to(entries, people, tailnet, &node.facts).capabilities(entries);
    let known = like.filter(|like| *like.all == all);
    let all = known.map_or_else(|| Arc::new(all), |like| like.all.clone());
    NodeAttributes::new(node, all)
}

impl NodeAttributes {
    fn new(node: &Node, all: Arc<CapMap>) -> Self {
        let exits = node.approved.iter().any(is_exit);
        Self {
            without_v4: all.contains_key(DISABLE_IPV4),
            suggested_exit: exits && all.contains_key(SUGGEST_EXIT_NODE),
            all,
        }
    }
}

/// What a node has its attributes from.
#[derive(PartialEq, Eq, Hash)]
struct Given {
    /// The entries that mean it.
    entries: Vec<usize>,
    /// What its user's role gives it.
    by_role: &'static [&'static str],
}

impl Given {
    fn to(
        entries: &[Attributes],
        people: &People,
        tailnet: &TailnetFacts,
        node: &NodeFacts,
    ) -> Self {
        let all = entries.iter().enumerate();
        let meant = all.filter(|(_, entry)| is_meant(entry, people, tailnet, node));
        Self {
            entries: meant.map(|(at, _)| at).collect(),
            by_role: by_role(tailnet, node),
        }
    }

    fn capabilities(&self, entries: &[Attributes]) -> CapMap {
        let written = self.entries.iter().flat_map(|&at| &entries[at].names);
        let written = written.flat_map(|name| {
            let along = ALONG.iter().filter(move |(other, _)| other == name);
            along.map(|(_, also)| *also).chain([name.as_str()])
        });
        let all = written.chain(self.by_role.iter().copied());
        all.map(|name| (name.to_owned(), Vec::new())).collect()
    }
}

fn by_role(tailnet: &TailnetFacts, node: &NodeFacts) -> &'static [&'static str] {
    if node.is_tagged() {
        return &[IS_OWNER];
    }
    match node.owner() {
        Some(user) if tailnet.owner == Some(user) => &[IS_OWNER, IS_ADMIN],
        Some(user) if tailnet.admins.contains(&user) => &[IS_ADMIN],
        _ => &[],
    }
}

fn is_meant(entry: &Attributes, people: &People, tailnet: &TailnetFacts, node: &NodeFacts) -> bool {
    let mut targets = entry.targets.iter();
    targets.any(|target| means(&target.value, people, tailnet, node))
}

fn means(target: &Target, people: &People, tailnet: &TailnetFacts, node: &NodeFacts) -> bool {
    let belongs_to = |user| node.owner() == Some(user);
    match target {
        Target::Alias(Alias::Any) => true,
        Target::Alias(Alias::Net(net)) => has_address_in(node, net),
        Target::Alias(alias) => people.names_node(alias, node),
        Target::Owner => tailnet.owner.is_some_and(belongs_to),
        Target::Admin => admins(tailnet).any(belongs_to),
    }
}

/// The owner among them.
fn admins(tailnet: &TailnetFacts) -> impl Iterator<Item = UserId> + '_ {
    tailnet.admins.iter().chain(&tailnet.owner).copied()
}

fn has_address_in(node: &NodeFacts, net: &IpNet) -> bool {
    node.addresses().any(|address| net.contains(&address))
}

/// What a peer's CapMap shows of it to others.
pub(crate) fn shown_to_peers(suggested_exit: bool) -> CapMap {
    let shown = suggested_exit.then(|| (SUGGEST_EXIT_NODE.to_owned(), Vec::new()));
    shown.into_iter().collect()
}
