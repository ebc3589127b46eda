//! What the policy means and what another would change, by the names that people know: the answers to `policy diff`, `explain` and
//! `why`, which are also what `--json` prints.

use std::{collections::BTreeMap, net::IpAddr};

use lowroad_wire::control::NodeId;
use serde::{Deserialize, Serialize};

use crate::{
    Error,
    model::VersionNumber,
    policy::{
        self, Clause, CompiledTailnet, DiffEnds, DiffFamily, DiffRow, DiffUsers, Origin, Policy,
        PolicyRule, Why, WhyEnd, WhyProbe, WhyVerdict, World,
    },
    state::{NodeRef, State},
};

/// Pairs that `policy why` judges at once: beyond that, the question is too wide to have an answer that anybody reads.
const MAX_PAIRS: usize = 10_000;

/// What opens and what closes.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DiffInfo {
    pub differs: bool,
    /// The version in force, which it was compared with; null if there is no policy.
    pub against: Option<VersionNumber>,
    /// How many nodes were compared.
    pub nodes: usize,
    /// Pairs of nodes between which something opens, each direction by itself.
    pub opened_pairs: u64,
    pub closed_pairs: u64,
    pub changes: Vec<ChangeInfo>,
    /// The same of logins over SSH, which are not among the pairs.
    #[serde(default)]
    pub logins: Vec<ChangeInfo>,
}

/// Everything in `from` may or may no longer do `access` at everything in `to`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ChangeInfo {
    /// Else it closes.
    pub opens: bool,
    pub from: EndsInfo,
    pub to: EndsInfo,
    pub users: UsersInfo,
    /// `IPv4` or `IPv6`, if it is only that one of two.
    pub family: Option<String>,
    pub access: Vec<String>,
    pub pairs: u64,
}

/// Which pairs are meant: all; devices of the same user; those that aren't.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UsersInfo {
    Any,
    Same,
    Different,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndsInfo {
    pub nodes: Vec<String>,
    /// What the nodes have in common and no other has: `tag:web`, a user's name, or `all nodes`.
    pub label: Option<String>,
    pub subnets: Vec<SubnetInfo>,
    /// The internet behind these.
    pub exit_nodes: Vec<String>,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct SubnetInfo {
    pub ranges: Vec<String>,
    /// As a destination: through this node.
    pub router: Option<String>,
}

/// What the policy means for one node.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExplanationInfo {
    pub node: String,
    /// Whether the policy takes its IPv4 from it.
    pub without_ipv4: bool,
    /// What others may do at the node, and behind it.
    pub receives: Vec<ClauseInfo>,
    /// What the node may do elsewhere.
    pub reaches: Vec<ClauseInfo>,
    /// Who may log in at the node over SSH; of several rules that know a login, the first decides.
    pub logins_here: Vec<ClauseInfo>,
    /// Where the node's users may log in.
    pub logins_elsewhere: Vec<ClauseInfo>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClauseInfo {
    /// Null: there is no policy.
    pub rule: Option<RuleInfo>,
    /// It follows from the rule without being written there.
    pub follows: bool,
    pub from: Vec<String>,
    pub from_nodes: Vec<String>,
    pub to: Vec<String>,
    pub to_nodes: Vec<String>,
    pub access: Vec<String>,
}

/// A rule of the policy file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RuleInfo {
    pub line: u32,
    pub column: u32,
    pub last_line: u32,
    pub text: String,
}

/// Whether connections are allowed.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WhyInfo {
    /// All of them.
    pub allowed: bool,
    pub pairs: usize,
    pub allowed_pairs: usize,
    /// Pairs with the same answer together.
    pub outcomes: Vec<OutcomeInfo>,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct OutcomeInfo {
    pub allowed: bool,
    /// `allowed`, `no-source`, `no-destination`, `no-route`, `own-route`, `not-through`, `not-by-exit-node`, `protocol`, `port`, `no-family`,
    /// `without-ipv4` or `itself`.
    pub verdict: String,
    pub reason: String,
    /// Those that allow it, or that came nearest.
    pub rules: Vec<RuleInfo>,
    /// The router or exit node that leads there.
    pub through: Option<String>,
    /// From, to.
    pub pairs: Vec<(String, String)>,
}

impl From<PolicyRule> for RuleInfo {
    fn from(rule: PolicyRule) -> Self {
        Self {
            line: rule.line,
            column: rule.column,
            last_line: rule.last_line,
            text: rule.text,
        }
    }
}

/// The policy in force, its text, and what it is applied to, of one moment.
#[derive(Debug)]
pub struct Moment {
    policy: std::sync::Arc<Policy>,
    text: String,
    version: Option<VersionNumber>,
    world: World,
    names: BTreeMap<NodeId, String>,
    user_names: BTreeMap<lowroad_wire::control::UserId, String>,
}

impl Moment {
    pub fn of(state: &State) -> Self {
        let version = state.policy_history().in_force();
        let names = state.nodes().map(|node| (node.id, node.name.clone()));
        let users = state.users().values();
        Self {
            policy: state.policy().clone(),
            text: version.map_or_else(String::new, |version| version.text.clone()),
            version: version.map(|version| version.number),
            world: state.world(),
            names: names.collect(),
            user_names: users.map(|user| (user.id, user.name.clone())).collect(),
        }
    }

    pub fn world(&self) -> &World {
        &self.world
    }

    fn compiled(&self) -> CompiledTailnet {
        policy::recompile(&self.policy, &self.world)
    }

    fn name(&self, id: NodeId) -> String {
        let name = self.names.get(&id).cloned();
        name.unwrap_or_else(|| id.to_string())
    }

    fn named(&self, ids: &[NodeId]) -> Vec<String> {
        ids.iter().map(|id| self.name(*id)).collect()
    }

    fn rule(&self, origin: Origin) -> RuleInfo {
        origin.rule(&self.text).into()
    }

    /// What another policy would change.
    pub fn diff(&self, new: &CompiledTailnet) -> DiffInfo {
        let diff = policy::diff(&self.compiled(), new);
        let labels = self.labels();
        let changes = |rows: &[DiffRow]| {
            let rows = rows.iter();
            rows.map(|row| self.change(row, &labels)).collect()
        };
        DiffInfo {
            differs: !diff.rows.is_empty() || !diff.logins.is_empty(),
            against: self.version,
            nodes: self.world.nodes.len(),
            opened_pairs: diff.opened,
            closed_pairs: diff.closed,
            changes: changes(&diff.rows),
            logins: changes(&diff.logins),
        }
    }

    fn change(&self, row: &DiffRow, labels: &Labels) -> ChangeInfo {
        let family = row.family.map(|family| match family {
            DiffFamily::V4 => "IPv4",
            DiffFamily::V6 => "IPv6",
        });
        ChangeInfo {
            opens: row.opens,
            from: self.ends(&row.from, labels),
            to: self.ends(&row.to, labels),
            users: match row.users {
                DiffUsers::Any => UsersInfo::Any,
                DiffUsers::Same => UsersInfo::Same,
                DiffUsers::Different => UsersInfo::Different,
            },
            family: family.map(str::to_owned),
            access: row.access.clone(),
            pairs: row.pairs,
        }
    }

    fn ends(&self, ends: &DiffEnds, labels: &Labels) -> EndsInfo {
        let subnet = |(router, ranges): &(Option<NodeId>, Vec<String>)| SubnetInfo {
            ranges: ranges.clone(),
            router: router.map(|id| self.name(id)),
        };
        EndsInfo {
            label: labels.get(&ends.nodes).cloned(),
            nodes: self.named(&ends.nodes),
            subnets: ends.subnets.iter().map(subnet).collect(),
            exit_nodes: self.named(&ends.exits),
        }
    }

    /// What all nodes, those of a tag, and those of a user are called: sets of more than one node.
    fn labels(&self) -> Labels {
        let mut sets: BTreeMap<String, Vec<NodeId>> = BTreeMap::new();
        for node in &self.world.nodes {
            let user = node.user.filter(|_| node.tags.is_empty());
            let user = user.and_then(|id| self.user_names.get(&id)).cloned();
            for label in node.tags.iter().cloned().chain(user) {
                sets.entry(label).or_default().push(node.id);
            }
            sets.entry("all nodes".to_owned())
                .or_default()
                .push(node.id);
        }
        let sets = sets.into_iter().filter(|(_, nodes)| nodes.len() > 1);
        sets.map(|(label, mut nodes)| {
            nodes.sort_unstable();
            (nodes, label)
        })
        .collect()
    }

    /// What the policy means for a node.
    pub fn explain(&self, node: NodeId) -> Result<ExplanationInfo, Error> {
        let explained = self.compiled().explain(node);
        let explained =
            explained.ok_or_else(|| Error::not_found("the node has just been deleted"))?;
        let clauses = |clauses: Vec<Clause>| {
            let clauses = clauses.into_iter();
            clauses.map(|clause| self.clause(clause)).collect()
        };
        Ok(ExplanationInfo {
            node: self.name(node),
            without_ipv4: explained.without_v4,
            receives: clauses(explained.receives),
            reaches: clauses(explained.reaches),
            logins_here: clauses(explained.logins_here),
            logins_elsewhere: clauses(explained.logins_elsewhere),
        })
    }

    fn clause(&self, clause: Clause) -> ClauseInfo {
        ClauseInfo {
            rule: clause.origin.map(|origin| self.rule(origin)),
            follows: clause.follows,
            from: clause.from,
            from_nodes: self.named(&clause.from_nodes),
            to: clause.to,
            to_nodes: self.named(&clause.to_nodes),
            access: clause.access,
        }
    }

    /// Whether ends may reach each other.
    pub fn why(&self, from: &Named, to: &Named, probe: WhyProbe) -> Result<WhyInfo, Error> {
        let compiled = self.compiled();
        let (from, to) = (self.resolve(from, &compiled)?, self.resolve(to, &compiled)?);
        let pairs = from.len() * to.len();
        if pairs > MAX_PAIRS {
            return Err(Error::bad_request(format!(
                "these are {pairs} pairs of nodes; name fewer than {MAX_PAIRS} at once"
            )));
        }
        let mut outcomes: BTreeMap<Why, Vec<(String, String)>> = BTreeMap::new();
        for &source in &from {
            for &destination in &to {
                // Between two groups that share a node, that one says nothing.
                if source == destination && pairs > 1 {
                    continue;
                }
                let why = compiled.why(source, destination, probe);
                let pair = (self.end(source), self.end(destination));
                outcomes.entry(why).or_default().push(pair);
            }
        }
        let count = |allowed_only: bool| {
            let counted = outcomes
                .iter()
                .filter(|(why, _)| !allowed_only || why.verdict == WhyVerdict::Allowed);
            counted.map(|(_, pairs)| pairs.len()).sum()
        };
        let (pairs, allowed_pairs) = (count(false), count(true));
        Ok(WhyInfo {
            allowed: pairs == allowed_pairs,
            pairs,
            allowed_pairs,
            outcomes: outcomes
                .into_iter()
                .rev()
                .map(|(why, pairs)| self.outcome(why, pairs))
                .collect(),
        })
    }

    fn resolve(&self, named: &Named, compiled: &CompiledTailnet) -> Result<Vec<WhyEnd>, Error> {
        match named {
            Named::Node(id) => Ok(vec![WhyEnd::Node(*id)]),
            Named::Alias(text) => {
                let ends = self.policy.ends(compiled, text);
                ends.map_err(Error::bad_request)
            }
        }
    }

    fn end(&self, end: WhyEnd) -> String {
        match end {
            WhyEnd::Node(id) => self.name(id),
            WhyEnd::Address(address) => address.to_string(),
        }
    }

    fn outcome(&self, why: Why, pairs: Vec<(String, String)>) -> OutcomeInfo {
        let (verdict, reason) = self.reason(&why);
        OutcomeInfo {
            allowed: why.verdict == WhyVerdict::Allowed,
            verdict: verdict.to_owned(),
            reason,
            rules: why.rules.iter().map(|origin| self.rule(*origin)).collect(),
            through: why.through.map(|id| self.name(id)),
            pairs,
        }
    }

    fn reason(&self, why: &Why) -> (&'static str, String) {
        match &why.verdict {
            WhyVerdict::Allowed if why.rules.is_empty() => (
                "allowed",
                "there is no policy: everything inside the tailnet is allowed".to_owned(),
            ),
            WhyVerdict::Allowed => ("allowed", "the policy allows it".to_owned()),
            WhyVerdict::Itself => (
                "itself",
                "both are the same node, whose packets to itself no policy sees".to_owned(),
            ),
            WhyVerdict::NoFamily => (
                "no-family",
                "one has IPv4 addresses only, the other IPv6 addresses only".to_owned(),
            ),
            WhyVerdict::WithoutV4(hiding) => (
                "without-ipv4",
                format!(
                    "the attribute \"disable-ipv4\" (nodeAttrs) takes IPv4 from {}, and there is no IPv6 between the two",
                    self.named(hiding).join(" and ")
                ),
            ),
            WhyVerdict::NoSource => ("no-source", "no rule has the source as a source".to_owned()),
            WhyVerdict::NoDestination => (
                "no-destination",
                "rules have the source, but none leads to the destination".to_owned(),
            ),
            WhyVerdict::OwnRoute => (
                "own-route",
                "the source leads there itself: what it sends there stays outside the tailnet, and no policy sees it".to_owned(),
            ),
            WhyVerdict::NotByExitNode => (
                "not-by-exit-node",
                "rules name the address, but only `*` and autogroup:internet lead through exit nodes".to_owned(),
            ),
            WhyVerdict::NotThrough => (
                "not-through",
                "rules lead there only through routers with another tag".to_owned(),
            ),
            WhyVerdict::Protocol(given) => (
                "protocol",
                format!(
                    "rules lead there, but by other protocols only: {}",
                    given.join(" ")
                ),
            ),
            WhyVerdict::Port(given) => (
                "port",
                format!(
                    "rules lead there, but at other ports only: {}",
                    given.join(" ")
                ),
            ),
            WhyVerdict::NoRoute(announcing) => ("no-route", self.no_route(announcing, why)),
        }
    }

    fn no_route(&self, announcing: &[NodeId], why: &Why) -> String {
        let mut reason = "no node has that address, and no approved route leads there".to_owned();
        if !announcing.is_empty() {
            let routers = self.named(announcing).join(", ");
            reason += &format!(
                ": {routers} announces one that isn't approved (`nodes approve-routes`, or autoApprovers)"
            );
        }
        if !why.rules.is_empty() {
            reason += "; the rules would allow it";
        }
        reason
    }
}

/// What sets of nodes are called.
type Labels = BTreeMap<Vec<NodeId>, String>;

/// How an administrator names an end.
#[derive(Debug)]
pub enum Named {
    Node(NodeId),
    /// As policies do.
    Alias(String),
}

impl Named {
    /// A node by name, ID or address, a user by name, or whatever a policy may name.
    ///
    /// # Errors
    /// The text is the name of one node and the ID of another.
    pub fn find(state: &State, text: &str) -> Result<Self, Error> {
        let is_policys = ["tag:", "group:", "autogroup:", "user:"]
            .iter()
            .any(|prefix| text.starts_with(prefix));
        if !is_policys {
            // An address stands for its own family, whoever has it.
            if text.parse::<IpAddr>().is_ok() {
                return Ok(Self::Alias(text.to_owned()));
            }
            match state.find_node(&NodeRef(text.to_owned())) {
                Ok(node) => return Ok(Self::Node(node.id)),
                Err(Error::Refused { status, .. }) if status == hyper::StatusCode::NOT_FOUND => {}
                Err(error) => return Err(error),
            }
        }
        let user = state.find_user(text).filter(|_| !is_policys);
        Ok(Self::Alias(match user {
            Some(user) if user.name.contains('@') => user.name.clone(),
            Some(user) => format!("{}@", user.name),
            None => text.to_owned(),
        }))
    }
}
