//! What of the `ssh` rules a node is sent.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use lowroad_wire::control::{self as wire, NodeId, SshAction, SshPolicy, SshPrincipal, UserId};

use super::super::alias::Alias;
use super::super::bits::Bits;
use super::super::compile::{Named, Nodes};
use super::super::error::At;
use super::super::explain::CHECKED;
use super::super::origin::Origin;
use super::super::table::Table;
use super::super::view::CompiledTailnet;
use super::SshRule;

/// Where nodes ask what is to become of a connection that has to be checked. They ask through the control channel, whatever
/// host stands here; the hosted service writes the same.
const CHECK_URL: &str =
    "https://unused/machine/ssh/action/$SRC_NODE_ID/to/$DST_NODE_ID?local_user=$LOCAL_USER";

/// The `ssh` rules over nodes, and the policies that were asked for so far.
#[derive(Clone, Debug)]
pub(crate) struct SshAccess {
    /// In the order in which nodes are sent them.
    pub(super) rules: Vec<Arc<Access>>,
    /// Per node.
    pub(super) policies: Table<OnceLock<Arc<SshPolicy>>>,
    /// Policies of nodes that are sent rules whole and nothing of their own, by the positions of these rules.
    pub(super) shared: Arc<Mutex<HashMap<Vec<usize>, Arc<SshPolicy>>>>,
}

#[derive(Clone, Debug)]
pub(crate) struct Access {
    pub(super) origin: Origin,
    pub(super) sources: Bits,
    pub(super) destinations: Bits,
    /// Whether it is about the devices of the same user (`autogroup:self`), and whether about anything else.
    pub(super) to_own: bool,
    pub(super) to_others: bool,
    /// Login name to local user.
    users: BTreeMap<String, String>,
    pub(super) domains: Vec<String>,
    action: SshAction,
    accept_env: Vec<String>,
}

/// Rules in the order in which nodes are sent them.
pub(super) fn in_order(rules: &[SshRule]) -> impl Iterator<Item = &SshRule> {
    let (checks, accepts): (Vec<&SshRule>, Vec<_>) = rules.iter().partition(|rule| rule.check);
    checks.into_iter().chain(accepts)
}

impl SshAccess {
    pub(crate) fn new(rules: &[SshRule], named: &Named, nodes: &Nodes) -> Self {
        let mut known = HashMap::new();
        Self {
            rules: in_order(rules)
                .map(|rule| Arc::new(access(rule, named, &mut known)))
                .collect(),
            policies: nodes.iter().map(|_| OnceLock::new()).collect(),
            shared: Arc::default(),
        }
    }
}

/// `known` are the nodes of aliases that other rules have named.
fn access(rule: &SshRule, named: &Named, known: &mut HashMap<Alias, Bits>) -> Access {
    let mut named = |aliases: &[At<Alias>]| {
        let mut nodes = Bits::default();
        for alias in aliases {
            let of_alias = known.entry(alias.value.canonical());
            let of_alias = of_alias.or_insert_with(|| named.of(&alias.value).into_iter().collect());
            nodes.unite(of_alias);
        }
        nodes
    };
    let is_own = |alias: &At<Alias>| alias.value == Alias::OwnDevices;
    let logins = &rule.logins;
    let same = |name: &String| (name.clone(), name.clone());
    let mut users: BTreeMap<String, String> = logins.names.iter().map(same).collect();
    // Said of root in any case: `*` would include it.
    let root = if logins.root { "root" } else { "" };
    users.insert("root".to_owned(), root.to_owned());
    if logins.others {
        users.insert("*".to_owned(), "=".to_owned());
    }
    let domains = logins.domains.iter().map(|domain| domain.value.clone());
    Access {
        origin: rule.origin,
        sources: named(&rule.sources),
        destinations: named(&rule.destinations),
        to_own: rule.destinations.iter().any(is_own),
        to_others: !rule.destinations.iter().all(is_own),
        users,
        domains: domains.collect(),
        action: action(rule.check),
        accept_env: rule.accept_env.clone(),
    }
}

impl Access {
    /// The login names that it allows by name.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        let users = self.users.iter();
        let named = users.filter(|(name, local)| !local.is_empty() && *name != "*");
        named.map(|(name, _)| name.as_str())
    }

    /// Whether it allows all login names but root.
    pub(super) fn allows_others(&self) -> bool {
        self.users.contains_key("*")
    }

    pub(super) fn checks(&self) -> bool {
        !self.action.accept
    }

    /// What it allows a source, as people say it: `ssh as root`. `domain` is where the source's user has an address, of those of `localpart:`.
    pub(super) fn texts(&self, domain: Option<&str>) -> Vec<String> {
        let after = if self.action.accept { "" } else { CHECKED };
        let others = self.users.get("*").map(|_| "any name but root".to_owned());
        // Beside `*`, names say nothing more; but root.
        let named = self.users.iter().filter(|(name, local)| {
            !local.is_empty() && (others.is_none() || *name == "root") && *name != "*"
        });
        let named = named.map(|(name, _)| name.clone());
        let own = domain.map(|domain| format!("what stands before @{domain} in one's own name"));
        let all = named.chain(others.clone()).chain(own);
        all.map(|who| format!("ssh as {who}{after}")).collect()
    }
}

fn action(check: bool) -> SshAction {
    if check {
        return SshAction {
            hold_and_delegate: CHECK_URL.to_owned(),
            ..SshAction::default()
        };
    }
    SshAction {
        accept: true,
        allow_agent_forwarding: true,
        allow_local_port_forwarding: true,
        allow_remote_port_forwarding: true,
        ..SshAction::default()
    }
}

impl CompiledTailnet {
    /// Who may log in to a node over SSH; nobody, on a node that isn't in the world.
    pub fn ssh_for(&self, node: NodeId) -> Arc<SshPolicy> {
        let Some(at) = self.position(node) else {
            return Arc::default();
        };
        self.parts().ssh.policies[at]
            .get_or_init(|| self.logins(at))
            .clone()
    }

    fn logins(&self, at: usize) -> Arc<SshPolicy> {
        let rules = self.parts().ssh.rules.iter().enumerate();
        let rules: Vec<_> = rules
            .filter_map(|(position, access)| {
                Some((position, access, self.sources_of_logins(access, at)?))
            })
            .collect();
        let sent = || {
            let rules = rules.iter();
            Arc::new(SshPolicy {
                rules: rules
                    .flat_map(|(_, access, from)| self.ssh_rules(access, from))
                    .collect(),
            })
        };
        if rules
            .iter()
            .any(|(_, _, from)| matches!(from, Cow::Owned(_)))
        {
            return sent();
        }
        let key = rules.iter().map(|(position, _, _)| *position).collect();
        let shared = self.parts().ssh.shared.lock();
        let mut shared = shared.unwrap_or_else(PoisonError::into_inner);
        shared.entry(key).or_insert_with(sent).clone()
    }

    /// From which nodes a rule lets users log in to a node: from all sources if it is a destination, else perhaps from some.
    pub(super) fn sources_of_logins<'a>(
        &self,
        access: &'a Access,
        at: usize,
    ) -> Option<Cow<'a, Bits>> {
        if access.destinations.contains(at) {
            return Some(Cow::Borrowed(&access.sources));
        }
        // The hosted service sends rules with `localpart:` to their sources as well, for logins among a user's own devices.
        let as_source =
            !access.domains.is_empty() && access.to_others && access.sources.contains(at);
        let mut from = match self.devices_with(at) {
            Some(own) if access.to_own || as_source => own.clone(),
            None if as_source => Bits::from_iter([at]),
            _ => return None,
        };
        from.intersect(&access.sources);
        Some(Cow::Owned(from))
    }

    /// A rule for some of its sources; with `localpart:`, rules for each user among them.
    fn ssh_rules(&self, access: &Access, from: &Bits) -> Vec<wire::SshRule> {
        let mut rules = Vec::new();
        let mut add = |users: BTreeMap<String, String>, from: &[usize]| {
            if !from.is_empty() {
                rules.push(wire::SshRule {
                    principals: self.principals(from),
                    ssh_users: users,
                    action: access.action.clone(),
                    accept_env: access.accept_env.clone(),
                    ..wire::SshRule::default()
                });
            }
        };
        if access.domains.is_empty() {
            add(access.users.clone(), &from.iter().collect::<Vec<_>>());
            return rules;
        }
        let parts = self.parts();
        let mut by_user: BTreeMap<UserId, Vec<usize>> = BTreeMap::new();
        let mut tagged = Vec::new();
        for at in from.iter() {
            match parts.nodes[at].facts.owner() {
                Some(user) => by_user.entry(user).or_default().push(at),
                None => tagged.push(at),
            }
        }
        for (user, devices) in by_user {
            add(access.users.clone(), &devices);
            let mut domains = access.domains.iter();
            let local = domains.find_map(|domain| parts.people.local_part(user, domain));
            if let Some(local) = local {
                let login = (local.to_owned(), local.to_owned());
                add(BTreeMap::from([login]), &devices);
            }
        }
        add(access.users.clone(), &tagged);
        rules
    }

    fn principals(&self, nodes: &[usize]) -> Vec<SshPrincipal> {
        let addresses = nodes
            .iter()
            .flat_map(|&at| &self.parts().nodes[at].addresses);
        let principals = addresses.map(|address| SshPrincipal {
            node_ip: address.to_string(),
            ..SshPrincipal::default()
        });
        principals.collect()
    }
}
