//! Whatever happens to a tailnet, and whichever snapshots a session misses: what it sends adds up to what a new poll would be told.

#![expect(clippy::unwrap_used, reason = "a failing helper fails its test")]

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use lowroad_coordinator::{
    delta::Sent,
    model::{Endpoint, Node, Owner, Role, User},
    policy::{
        CompiledTailnet, NodeChange, NodeFacts, Policy, TailnetFacts, UserFacts, Users, World,
        recompile,
    },
    state::Compile,
    view::{Common, Published, Snapshot},
};
use lowroad_wire::{
    control::{EndpointType, Hostinfo, NetInfo, NodeId, RegionId, UserId},
    key::{DiscoPublic, MachinePublic, NodePublic},
    netmap::NetMap,
};
use proptest::prelude::*;
use time::OffsetDateTime;

const NOW: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;
const WATCHER: NodeId = NodeId(1);
const POLICIES: [&str; 6] = [
    "{}",
    r#"{"acls": []}"#,
    r#"{"acls": [{"action": "accept", "src": ["ann@"], "dst": ["ann@:22"]}]}"#,
    r#"{"tagOwners": {"tag:a": []}, "acls": [{"action": "accept", "src": ["*"], "dst": ["tag:a:*", "10.0.0.0/8:80"]}],
        "autoApprovers": {"routes": {"10.0.0.0/8": ["ann@", "tag:a"]}, "exitNode": ["bob@"]}}"#,
    r#"{"groups": {"group:g": ["cid@", "dan@", "bob@"]}, "acls": [{"action": "accept", "src": ["group:g"], "dst": ["autogroup:member:22"]}],
        "ssh": [{"action": "accept", "src": ["dan@"], "dst": ["autogroup:self"], "users": ["root"]}]}"#,
    r#"{"tagOwners": {"tag:a": []}, "grants": [{"src": ["ann@", "dan@"], "dst": ["10.0.0.0/8"], "ip": ["*"], "via": ["tag:a"]},
        {"src": ["tag:a"], "dst": ["*"], "ip": ["*"]}], "autoApprovers": {"routes": {"10.0.0.0/8": ["ann@", "bob@", "tag:a"]}}}"#,
];
/// Names that users have; their numbers count from 1.
const NAMES: [&str; 5] = ["ann", "bob", "cid", "dan", "eve"];

#[derive(Debug, Clone)]
enum Step {
    Join(i64, u8),
    Leave(i64),
    Key(i64, u8),
    Disco(i64, u8),
    Endpoints(i64, Vec<u16>),
    Home(i64, u16),
    Online(i64, bool),
    Version(i64, u16),
    Expire(i64, bool),
    Host(i64, String),
    Routes(i64, u8),
    Owner(i64, u8),
    /// A user comes, or is called otherwise.
    User(i64, usize),
    UserLeaves(i64),
    Policy(usize),
    /// The session looks.
    Look,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let id = 1i64..6;
    let step = prop_oneof![
        2 => (id.clone(), 0u8..6).prop_map(|(id, owner)| Step::Join(id, owner)),
        1 => (2i64..6).prop_map(Step::Leave),
        1 => (id.clone(), any::<u8>()).prop_map(|(id, seed)| Step::Key(id, seed)),
        1 => (id.clone(), any::<u8>()).prop_map(|(id, seed)| Step::Disco(id, seed)),
        2 => (id.clone(), prop::collection::vec(1u16..9, 0..3)).prop_map(|(id, ports)| Step::Endpoints(id, ports)),
        1 => (id.clone(), 0u16..3).prop_map(|(id, region)| Step::Home(id, region)),
        3 => (id.clone(), any::<bool>()).prop_map(|(id, online)| Step::Online(id, online)),
        1 => (id.clone(), 0u16..3).prop_map(|(id, version)| Step::Version(id, version)),
        1 => (id.clone(), any::<bool>()).prop_map(|(id, expired)| Step::Expire(id, expired)),
        1 => (id.clone(), "[a-c]").prop_map(|(id, name)| Step::Host(id, name)),
        2 => (id.clone(), 0u8..4).prop_map(|(id, routes)| Step::Routes(id, routes)),
        1 => (id, 0u8..6).prop_map(|(id, owner)| Step::Owner(id, owner)),
        2 => (1i64..5, 0..NAMES.len()).prop_map(|(id, name)| Step::User(id, name)),
        1 => (1i64..5).prop_map(Step::UserLeaves),
        1 => (0..POLICIES.len()).prop_map(Step::Policy),
        3 => Just(Step::Look),
    ];
    prop::collection::vec(step, 1..40)
}

/// A tailnet without a server around it.
struct Tailnet {
    nodes: BTreeMap<NodeId, Published>,
    users: BTreeMap<UserId, Arc<User>>,
    policy: Policy,
    compiled: Arc<CompiledTailnet>,
    /// Nodes and users that the policy is compiled for.
    facts: Option<(Vec<NodeFacts>, Vec<UserFacts>)>,
    generation: u64,
}

impl Tailnet {
    fn new() -> Self {
        let policy = Policy::allow_all();
        let mut tailnet = Self {
            nodes: BTreeMap::new(),
            users: [(1, "ann"), (2, "bob")]
                .map(|(id, name)| (UserId(id), user(id, name)))
                .into(),
            compiled: Arc::new(recompile(&policy, &World::default())),
            policy,
            facts: None,
            generation: 1,
        };
        tailnet.put(node(WATCHER.0, 0));
        tailnet
    }

    fn put(&mut self, node: Node) {
        self.nodes
            .insert(node.id, Published::new(Arc::new(node), "tail.test", NOW));
    }

    fn edit(&mut self, id: i64, edit: impl FnOnce(&mut Node)) -> BTreeSet<NodeId> {
        let Some(published) = self.nodes.get(&NodeId(id)) else {
            return BTreeSet::new();
        };
        let mut node = Node::clone(&published.node);
        edit(&mut node);
        self.put(node);
        BTreeSet::from([NodeId(id)])
    }

    fn take(&mut self, step: Step) -> BTreeSet<NodeId> {
        match step {
            Step::Join(id, _) if self.nodes.contains_key(&NodeId(id)) => BTreeSet::new(),
            Step::Join(_, kind) | Step::Owner(_, kind) if !self.has_owner(kind) => BTreeSet::new(),
            Step::Join(id, owner) => {
                self.put(node(id, owner));
                BTreeSet::from([NodeId(id)])
            }
            Step::Leave(id) => {
                self.nodes.remove(&NodeId(id));
                BTreeSet::from([NodeId(id)])
            }
            Step::Key(id, seed) => {
                self.edit(id, |node| node.key = NodePublic::from_bytes([seed; 32]))
            }
            Step::Disco(id, seed) => {
                self.edit(id, |node| node.disco = DiscoPublic::from_bytes([seed; 32]))
            }
            Step::Endpoints(id, ports) => self.edit(id, |node| {
                let at = |port| Endpoint {
                    address: SocketAddr::from(([192, 0, 2, 1], port)),
                    kind: EndpointType::STUN,
                };
                node.endpoints = ports.into_iter().map(at).collect();
            }),
            Step::Home(id, region) => self.edit(id, |node| {
                node.hostinfo.net_info = Some(NetInfo {
                    preferred_derp: Some(RegionId(region)).filter(|region| region.0 != 0),
                    ..NetInfo::default()
                });
            }),
            Step::Online(id, online) => self.edit(id, |node| {
                node.online = online;
                node.last_seen = Some(NOW);
            }),
            Step::Version(id, version) => self.edit(id, |node| node.cap = version),
            Step::Expire(id, expired) => self.edit(id, |node| node.expiry = expired.then_some(NOW)),
            Step::Host(id, name) => self.edit(id, |node| {
                node.hostinfo.hostname.clone_from(&name);
                node.name = format!("{name}{id}");
            }),
            Step::Routes(id, routes) => self.edit(id, |node| {
                let all = ["10.1.0.0/16", "0.0.0.0/0", "::/0"].map(|route| route.parse().unwrap());
                node.hostinfo.routable_ips = all[..usize::from(routes)].to_vec();
            }),
            Step::Owner(id, kind) => self.edit(id, |node| node.owner = owner(kind)),
            Step::User(id, name) => {
                // Names are unique.
                if self.users.values().all(|user| user.name != NAMES[name]) {
                    self.users.insert(UserId(id), user(id, NAMES[name]));
                }
                BTreeSet::new()
            }
            Step::UserLeaves(id) => {
                let id = UserId(id);
                let mut nodes = self.nodes.values();
                // The server refuses to remove a user who has nodes.
                if nodes.all(|published| published.node.owner.user() != Some(id)) {
                    self.users.remove(&id);
                }
                BTreeSet::new()
            }
            Step::Policy(which) => {
                self.policy = Policy::parse(POLICIES[which]).unwrap();
                self.facts = None;
                BTreeSet::new()
            }
            Step::Look => BTreeSet::new(),
        }
    }

    fn has_owner(&self, kind: u8) -> bool {
        let owner = owner(kind).user();
        owner.is_none_or(|id| self.users.contains_key(&id))
    }

    /// As the server does: compiled anew only if what the policy depends on has changed.
    fn snapshot(&mut self, mut changed: BTreeSet<NodeId>) -> Snapshot {
        let nodes = self.nodes.values();
        let nodes: Vec<_> = nodes.map(|published| facts(&published.node)).collect();
        let user = |user: &Arc<User>| UserFacts {
            id: user.id,
            login_name: user.name.clone(),
        };
        let users: Vec<_> = self.users.values().map(user).collect();
        let mut compiled = self.stale(&nodes, &users).apply(&self.compiled);
        self.compiled = compiled.tailnet;
        changed.append(&mut compiled.others);
        self.facts = Some((nodes, users));
        let previous = self.generation;
        self.generation += 1;
        Snapshot {
            generation: self.generation,
            previous,
            changed,
            nodes: self.nodes.clone(),
            users: self.users.clone(),
            compiled: self.compiled.clone(),
            is_whole: compiled.is_whole,
            is_closed: false,
        }
    }

    fn stale(&self, nodes: &[NodeFacts], users: &[UserFacts]) -> Compile {
        let tailnet = TailnetFacts::default();
        let Some((known, known_users)) = &self.facts else {
            let world = World {
                users: users.to_vec(),
                nodes: nodes.to_vec(),
                tailnet,
            };
            return Compile::All(Arc::new(self.policy.clone()), world);
        };
        let left = known
            .iter()
            .filter(|node| !nodes.iter().any(|now| now.id == node.id));
        let left = left.map(|node| (node.id, None));
        let others = nodes.iter().filter(|node| !known.contains(node));
        let others = others.map(|node| (node.id, Some(node.clone())));
        let changes: Vec<NodeChange> = left.chain(others).collect();
        let users = (users != known_users).then(|| Users {
            users: users.to_vec(),
            tailnet,
        });
        match users.is_none() && changes.is_empty() {
            true => Compile::Nothing,
            false => Compile::Changes(users, changes),
        }
    }
}

fn user(id: i64, name: &str) -> Arc<User> {
    Arc::new(User {
        id: UserId(id),
        name: name.to_owned(),
        display_name: String::new(),
        created: NOW,
        role: Role::Member,
    })
}

fn owner(kind: u8) -> Owner {
    match kind {
        0 | 1 => Owner::User(UserId(1)),
        2..5 => Owner::User(UserId(kind.into())),
        _ => Owner::Tags(vec!["tag:a".to_owned()]),
    }
}

fn node(id: i64, kind: u8) -> Node {
    let last = u8::try_from(id).unwrap();
    Node {
        id: NodeId(id),
        machine: MachinePublic::from_bytes([last; 32]),
        key: NodePublic::from_bytes([last; 32]),
        disco: DiscoPublic::ZERO,
        owner: owner(kind),
        name: format!("n{id}"),
        name_chosen: false,
        hostinfo: Hostinfo::default(),
        endpoints: Vec::new(),
        v4: Ipv4Addr::new(100, 64, 0, last),
        v6: Ipv6Addr::new(0xfd7a, 0x115c, 0xa1e0, 0, 0, 0, 0, u16::from(last)),
        approved_routes: Vec::new(),
        expiry: None,
        ephemeral: false,
        created: NOW,
        last_seen: None,
        online: false,
        cap: 130,
        auth_key: None,
    }
}

fn facts(node: &Node) -> NodeFacts {
    NodeFacts {
        id: node.id,
        user: node.owner.user(),
        tags: node.owner.tags().to_vec(),
        v4: Some(node.v4),
        v6: Some(node.v6),
        announced: node.announced().to_vec(),
        admin_approved: Vec::new(),
        created: node.id.0,
        online: node.online || node.announced().is_empty(),
    }
}

/// Without what clients know better themselves, and what no patch can say and nobody reads.
fn comparable(netmap: &NetMap) -> NetMap {
    let mut netmap = netmap.clone();
    for peer in netmap.peers.values_mut().map(Arc::make_mut) {
        peer.hostinfo.net_info = None;
        if peer.online == Some(true) {
            peer.last_seen = None;
        }
    }
    if let Some(own) = &mut netmap.self_node {
        own.hostinfo = Hostinfo::default();
        own.endpoints.clear();
        own.cap = 0;
    }
    // Clients keep profiles that they have heard once.
    let owners: BTreeSet<_> = netmap
        .peers
        .values()
        .map(|node| &**node)
        .chain(&netmap.self_node)
        .map(|node| node.user)
        .collect();
    netmap.users.retain(|id, _| owners.contains(id));
    netmap
}

proptest! {
    #[test]
    fn differences_add_up_to_the_whole(steps in steps()) {
        let common = Common::default();
        let mut tailnet = Tailnet::new();
        let first = tailnet.snapshot(BTreeSet::new());
        let (mut sent, message) = Sent::first(WATCHER, &first, &common, NOW).unwrap();
        let mut netmap = NetMap::default();
        netmap.apply(message, NOW);
        for step in steps.into_iter().chain([Step::Look]) {
            let looks = matches!(step, Step::Look);
            let changed = tailnet.take(step);
            let snapshot = tailnet.snapshot(changed);
            // Not every snapshot is looked at, as with a client that reads slowly.
            if !looks && snapshot.generation.is_multiple_of(3) {
                continue;
            }
            if let Some(message) = sent.difference(&snapshot, NOW).unwrap() {
                netmap.apply(message, NOW);
            }
            let (_, whole) = Sent::first(WATCHER, &snapshot, &common, NOW).unwrap();
            let mut expected = NetMap::default();
            expected.apply(whole, NOW);
            prop_assert_eq!(comparable(&netmap), comparable(&expected));
            prop_assert!(sent.difference(&snapshot, NOW).unwrap().is_none(), "a second look says nothing");
        }
    }
}
