//! The policy compiler against what the hosted service made of recorded policies
//! (`samples/vectors/policy`): rules by meaning, visibility, routes, refusals.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;
use lowroad_coordinator::policy::{
    CompiledTailnet, NodeFacts, Policy, PolicyError, PolicyErrorKind, UnknownUsers, UserFacts,
    World, compile_with,
};
use lowroad_wire::control::{FilterRule, NodeId, PortRange, UserId};
use serde::Deserialize;
use serde_json::value::RawValue;

/// Per category of the samples that come with the project: all cases, and those of them whose
/// policies use only what lowroad supports so far.
const SHARED: [(&str, usize, usize); 7] = [
    ("acl", 141, 141),
    ("policytest", 37, 37),
    ("routes", 92, 92),
    ("grant", 186, 186),
    ("ssh", 83, 1),
    ("sshtest", 23, 0),
    ("nodeattrs", 40, 2),
];

/// Top-level fields that are refused as not supported yet.
const LATER: [&str; 4] = ["ssh", "sshTests", "nodeAttrs", "randomizeClientPort"];

#[test]
fn every_recorded_policy_comes_out_as_the_service_made_it_or_is_refused_by_name() {
    let mut all = Totals::default();
    for (category, cases_expected, in_scope_expected) in SHARED {
        let Some(cases) = load(category) else { return };
        let mut totals = Totals::default();
        for case in &cases {
            if case.is_in_scope() {
                totals.judge(case);
            } else {
                totals.expect_refusal(case);
            }
        }
        totals.report(category);
        assert_eq!(totals.ran + totals.refused, cases.len());
        if std::env::var_os("LOWROAD_SAMPLES").is_none() {
            assert_eq!(cases.len(), cases_expected, "cases of {category}");
            assert_eq!(totals.ran, in_scope_expected, "of {category} in scope");
        }
        all.add(totals);
    }
    all.report("policies");
    assert_eq!(all.differ, Vec::<String>::new());
}

#[derive(Deserialize)]
struct Case {
    id: String,
    policy: Box<RawValue>,
    status: u16,
    users: Vec<CaseUser>,
    nodes: BTreeMap<String, CaseNode>,
    got: BTreeMap<String, Got>,
}

#[derive(Deserialize)]
struct CaseUser {
    id: i64,
    name: String,
    email: String,
}

#[derive(Deserialize)]
struct CaseNode {
    tags: Vec<String>,
    user: Option<String>,
    ipv4: Option<std::net::Ipv4Addr>,
    ipv6: Option<std::net::Ipv6Addr>,
    routable_ips: Option<Vec<IpNet>>,
    created: Option<String>,
}

#[derive(Deserialize)]
struct Got {
    #[serde(default)]
    rules: Option<Vec<FilterRule>>,
    #[serde(default)]
    allowed_ips: Option<Vec<IpNet>>,
    #[serde(default)]
    peers: Option<BTreeMap<String, GotPeer>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct GotPeer {
    #[serde(default, rename = "AllowedIPs")]
    allowed_ips: Vec<IpNet>,
    #[serde(default)]
    primary_routes: Vec<IpNet>,
}

impl Case {
    fn world(&self) -> World {
        let users = self.users.iter().map(|user| UserFacts {
            id: UserId(user.id),
            // Some recordings lost the e-mail address, not its use in the policy.
            login_name: if user.email.is_empty() {
                format!("{}@example.com", user.name)
            } else {
                user.email.clone()
            },
        });
        let nodes = self.nodes.values().enumerate().map(|(at, node)| NodeFacts {
            id: NodeId(at as i64 + 1),
            user: node.user.as_ref().map(|name| {
                let user = self.users.iter().find(|user| user.name == *name);
                UserId(user.expect("a node's user is listed").id)
            }),
            tags: node.tags.clone(),
            v4: node.ipv4,
            v6: node.ipv6,
            announced: node.routable_ips.clone().unwrap_or_default(),
            admin_approved: Vec::new(),
            created: node.created.as_deref().map_or(0, nanoseconds),
            online: true,
        });
        World {
            users: users.collect(),
            nodes: nodes.collect(),
        }
    }

    fn id_of(&self, name: &str) -> NodeId {
        let at = self.nodes.keys().position(|known| known == name);
        NodeId(at.expect("the node is listed") as i64 + 1)
    }

    /// Whether it uses nothing that comes later.
    fn is_in_scope(&self) -> bool {
        let policy: serde_json::Value =
            serde_json::from_str(self.policy.get()).expect("a policy is JSON");
        LATER.iter().all(|field| policy.get(field).is_none())
    }

    fn compile(&self) -> Result<CompiledTailnet, PolicyError> {
        // Where the e-mail addresses were lost, so were users: who else a policy names, the service knew.
        let unknown = match self.users.iter().any(|user| user.email.is_empty()) {
            true => UnknownUsers::Accept,
            false => UnknownUsers::Refuse,
        };
        let compile = |policy: Policy| compile_with(&policy, &self.world(), unknown);
        let compiled = Policy::parse(self.policy.get()).and_then(compile);
        compiled.map_err(|errors| {
            let unsupported = |error: &&PolicyError| error.kind == PolicyErrorKind::Unsupported;
            let telling = errors.iter().find(unsupported);
            telling.unwrap_or(errors.first()).clone()
        })
    }

    /// What differs, as text.
    fn compare(&self, tailnet: &CompiledTailnet) -> Vec<String> {
        let mut differences = Vec::new();
        for (name, got) in &self.got {
            let id = self.id_of(name);
            if let Some(rules) = &got.rules
                && let Some(difference) = difference(&tailnet.filter_for(id), rules)
            {
                differences.push(format!("{name}: filter: {difference}"));
            }
            if let Some(rules) = &got.rules {
                let (ours, expected) = (capabilities(&tailnet.filter_for(id)), capabilities(rules));
                if ours != expected {
                    differences.push(format!("{name}: granted: {ours:x?}, not {expected:x?}"));
                }
            }
            if let Some(expected) = &got.allowed_ips {
                let ours = tailnet.own_allowed_ips(id);
                if nets(&ours) != nets(expected) {
                    differences.push(format!("{name}: own: {ours:?}, not {expected:?}"));
                }
            }
            if let Some(expected) = &got.peers {
                let ours: BTreeMap<NodeId, _> = tailnet
                    .peers_of(id)
                    .into_iter()
                    .map(|(peer, view)| {
                        (peer, (nets(&view.allowed_ips), nets(&view.primary_routes)))
                    })
                    .collect();
                let expected: BTreeMap<NodeId, _> = expected
                    .iter()
                    .map(|(peer, got)| {
                        (
                            self.id_of(peer),
                            (nets(&got.allowed_ips), nets(&got.primary_routes)),
                        )
                    })
                    .collect();
                if ours != expected {
                    differences.push(format!("{name}: peers: {ours:?}, not {expected:?}"));
                }
            }
        }
        differences
    }
}

fn nanoseconds(time: &str) -> i64 {
    let format = &time::format_description::well_known::Rfc3339;
    let time = time::OffsetDateTime::parse(time, format).expect("a time of creation");
    i64::try_from(time.unix_timestamp_nanos()).expect("a time of this century")
}

fn nets(nets: &[IpNet]) -> BTreeSet<IpNet> {
    nets.iter().copied().collect()
}

#[derive(Default)]
struct Totals {
    ran: usize,
    refused: usize,
    differ: Vec<String>,
}

impl Totals {
    fn judge(&mut self, case: &Case) {
        let difference = match (case.status, case.compile()) {
            (_, Err(error)) if error.kind == PolicyErrorKind::Unsupported => {
                Some(format!("refused as not supported: {error}"))
            }
            (200, Ok(tailnet)) => {
                let differences = case.compare(&tailnet);
                (!differences.is_empty()).then(|| differences.join("\n    "))
            }
            (200, Err(error)) => Some(format!("refused: {error}")),
            (_, Ok(_)) => Some("taken, but the service refused it".to_owned()),
            (_, Err(_)) => None,
        };
        self.ran += 1;
        if let Some(difference) = difference {
            println!("{}: {difference}", case.id);
            self.differ.push(case.id.clone());
        }
    }

    /// A case that must be refused as not supported; one that the service refuses may be refused as wrong.
    fn expect_refusal(&mut self, case: &Case) {
        self.refused += 1;
        let difference = match case.compile() {
            Ok(_) => "taken".to_owned(),
            Err(error) if error.kind == PolicyErrorKind::Unsupported => {
                if error.message.contains("not supported yet") {
                    return;
                }
                format!("unclear: {error}")
            }
            Err(_) if case.status != 200 => return,
            Err(error) => format!("refused as wrong: {error}"),
        };
        println!("{}: {difference}", case.id);
        self.differ.push(case.id.clone());
    }

    fn add(&mut self, other: Self) {
        self.ran += other.ran;
        self.refused += other.refused;
        self.differ.extend(other.differ);
    }

    fn report(&self, what: &str) {
        println!(
            "{what}: {} cases ran, {} differ, {} refused as not supported yet",
            self.ran,
            self.differ.len(),
            self.refused
        );
    }
}

fn samples() -> PathBuf {
    let default = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/samples");
    std::env::var_os("LOWROAD_SAMPLES").map_or_else(|| default.into(), PathBuf::from)
}

fn load(category: &str) -> Option<Vec<Case>> {
    let path = samples().join(format!("vectors/policy/{category}.jsonl"));
    let Ok(text) = std::fs::read_to_string(&path) else {
        println!(
            "SKIPPED: no samples at {}; set LOWROAD_SAMPLES",
            path.display()
        );
        println!("skipped 1");
        return None;
    };
    let cases = text
        .lines()
        .map(|line| serde_json::from_str(line).expect("a case parses"));
    Some(cases.collect())
}

// ---- comparing filters by meaning ----

type Span<T> = (T, T);
/// Family and number, so that one order holds both families.
type Point = (u8, u128);

/// A rule as ranges.
struct Meaning {
    sources: Vec<Span<Point>>,
    destinations: Vec<(Span<Point>, PortRange)>,
    protocols: Vec<i64>,
}

/// The first connection that one of the two allows and the other doesn't, described.
///
/// Everything that a filter can tell apart lies between the ends of its ranges, so it is enough
/// to compare the sources allowed at each such end of destinations and ports, per protocol.
fn difference(ours: &[FilterRule], theirs: &[FilterRule]) -> Option<String> {
    let (ours, theirs) = (meanings(ours), meanings(theirs));
    let all = || ours.iter().chain(&theirs);
    let protocols: BTreeSet<i64> = all()
        .flat_map(|rule| rule.protocols.iter().copied())
        .collect();
    let destinations = || all().flat_map(|rule| &rule.destinations);
    let places: BTreeSet<Point> = destinations()
        .flat_map(|&((first, last), _)| [Some(first), after(last)])
        .flatten()
        .collect();
    let ports: BTreeSet<u16> = destinations()
        .flat_map(|&(_, ports)| [Some(ports.first), ports.last.checked_add(1)])
        .flatten()
        .collect();
    for &protocol in &protocols {
        for &place in &places {
            for &port in &ports {
                let ours = allowed(&ours, protocol, place, port);
                let theirs = allowed(&theirs, protocol, place, port);
                if ours != theirs {
                    return Some(format!(
                        "to {place:x?} port {port} protocol {protocol}: from {ours:x?}, not {theirs:x?}"
                    ));
                }
            }
        }
    }
    None
}

fn after((family, number): Point) -> Option<Point> {
    let end = if family == 4 {
        u128::from(u32::MAX)
    } else {
        u128::MAX
    };
    (number < end).then(|| (family, number + 1))
}

/// Who holds which value of which capability at which address; capabilities without values have an empty one.
fn capabilities(rules: &[FilterRule]) -> BTreeMap<(IpNet, String, String), Vec<Span<Point>>> {
    let mut held: BTreeMap<_, Vec<Span<Point>>> = BTreeMap::new();
    for rule in rules.iter().filter(|rule| !rule.src_ips.is_empty()) {
        for grant in &rule.cap_grant {
            assert!(grant.caps.is_empty(), "the old form is not recorded");
            for (name, values) in &grant.cap_map {
                let mut values: Vec<String> = values.iter().map(ToString::to_string).collect();
                values.push(String::new());
                for (dst, value) in grant
                    .dsts
                    .iter()
                    .flat_map(|dst| values.iter().map(move |value| (dst, value)))
                {
                    held.entry((*dst, name.clone(), value.clone()))
                        .or_default()
                        .extend(rule.src_ips.iter().flat_map(|text| spans(text)));
                }
            }
        }
    }
    held.into_iter()
        .map(|(what, sources)| (what, merged(sources)))
        .collect()
}

/// The merged sources that may connect.
fn allowed(rules: &[Meaning], protocol: i64, place: Point, port: u16) -> Vec<Span<Point>> {
    let sources = rules
        .iter()
        .filter(|rule| rule.protocols.contains(&protocol))
        .filter(|rule| {
            rule.destinations.iter().any(|&((first, last), ports)| {
                (first..=last).contains(&place) && ports.contains(port)
            })
        })
        .flat_map(|rule| rule.sources.iter().copied());
    merged(sources.collect())
}

fn merged(mut sources: Vec<Span<Point>>) -> Vec<Span<Point>> {
    sources.sort_unstable();
    let mut merged: Vec<Span<Point>> = Vec::new();
    for (first, last) in sources {
        match merged.last_mut() {
            Some(previous) if first <= previous.1 || after(previous.1) == Some(first) => {
                previous.1 = previous.1.max(last);
            }
            _ => merged.push((first, last)),
        }
    }
    merged
}

fn meanings(rules: &[FilterRule]) -> Vec<Meaning> {
    let meaning = |rule: &FilterRule| Meaning {
        sources: rule.src_ips.iter().flat_map(|text| spans(text)).collect(),
        destinations: rule
            .dst_ports
            .iter()
            .flat_map(|entry| spans(&entry.ip).into_iter().map(|span| (span, entry.ports)))
            .collect(),
        protocols: if rule.ip_proto.is_empty() {
            vec![6, 17, 1, 58]
        } else {
            rule.ip_proto.clone()
        },
    };
    rules.iter().map(meaning).collect()
}

fn spans(text: &str) -> Vec<Span<Point>> {
    let point = |address: IpAddr| match address {
        IpAddr::V4(v4) => (4, u128::from(v4.to_bits())),
        IpAddr::V6(v6) => (6, v6.to_bits()),
    };
    if text == "*" {
        return vec![
            ((4, 0), (4, u128::from(u32::MAX))),
            ((6, 0), (6, u128::MAX)),
        ];
    }
    if let Some((first, last)) = text.split_once('-') {
        let end = |text: &str| point(text.parse().expect("a range ends in addresses"));
        return vec![(end(first), end(last))];
    }
    let net: IpNet = text
        .parse()
        .or_else(|_| text.parse::<IpAddr>().map(IpNet::from))
        .unwrap_or_else(|_| panic!("{text:?} in a filter"));
    assert_eq!(net, net.trunc(), "host bits in a filter");
    vec![(point(net.network()), point(net.broadcast()))]
}
