//! Random policies and tailnets: what the compiler sends nodes is what a separate reading of the language says, packet by packet,
//! pair by pair, login by login. And what follows a change of some nodes is what comes out of compiling everything.

#![expect(clippy::unwrap_used, reason = "a failing helper fails its test")]

mod follow;
mod generate;
mod language;
mod reading;
mod routers;
mod users;
mod versions;

#[path = "../support/filters.rs"]
mod filters;
#[path = "../support/people.rs"]
mod people;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::str::FromStr;

use ipnet::IpNet;
use lowroad_coordinator::policy::{
    CompiledTailnet, Diff, DiffUsers, NodeFacts, Policy, World, diff, recompile,
};
use lowroad_wire::control::SshPolicy;
use rand::{SeedableRng as _, rngs::StdRng};

use language::Written;
use reading::Reading;

/// Policies, each with a tailnet of its own, and packets that arrive at each node. `LOWROAD_POLICY_CASES` and `LOWROAD_SEED` say
/// otherwise.
const CASES: u64 = 400;
const PACKETS: usize = 60;
const SEED: u64 = 0x10_2040;

fn from_env<T: FromStr>(name: &str, default: T) -> T {
    let set = std::env::var(name).ok();
    set.and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// A policy and a tailnet, compiled.
struct Case {
    seed: u64,
    rng: StdRng,
    policy: Written,
    world: World,
    compiled: CompiledTailnet,
}

impl Case {
    fn new(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let policy = generate::policy(&mut rng);
        let world = generate::world(&mut rng);
        let parsed = Policy::parse(&policy.text());
        let parsed = parsed.unwrap_or_else(|errors| {
            panic!("LOWROAD_SEED={seed}: {errors}\n{}", policy.text());
        });
        let compiled = recompile(&parsed, &world);
        Self {
            seed,
            rng,
            policy,
            world,
            compiled,
        }
    }

    fn reading(&self) -> Reading<'_> {
        Reading {
            policy: &self.policy,
            world: &self.world,
        }
    }

    /// What failed is made again by its seed alone.
    fn shown(&self) -> String {
        let mut text = format!("LOWROAD_SEED={} LOWROAD_POLICY_CASES=1\n", self.seed);
        text += &self.policy.text();
        for node in &self.world.nodes {
            let _ = writeln!(text, "{node:?}");
        }
        text
    }
}

fn cases() -> impl Iterator<Item = Case> {
    let first = from_env("LOWROAD_SEED", SEED);
    let count = from_env("LOWROAD_POLICY_CASES", CASES);
    (first..first.saturating_add(count)).map(Case::new)
}

/// That a test saw both answers, each often enough to mean something. A single case need not.
fn saw_both(counts: [usize; 2], what: &str) {
    saw_at_least(500, counts, what);
}

fn saw_at_least(least: usize, counts: [usize; 2], what: &str) {
    println!("{what}: {} yes, {} no", counts[1], counts[0]);
    let is_short = from_env("LOWROAD_POLICY_CASES", CASES) < CASES;
    assert!(
        is_short || counts.iter().all(|&count| count > least),
        "{counts:?}"
    );
}

#[test]
fn a_packet_passes_exactly_where_the_policy_says_so() {
    let mut passed = [0; 2];
    let mut granted = [0; 2];
    for mut case in cases() {
        let mut rng = case.rng.clone();
        for at in &case.world.nodes {
            let filter = case.compiled.filter_for(at.id);
            for _ in 0..PACKETS {
                let packet = generate::packet(&mut rng, &case.world, at);
                let probe = (packet.protocol, packet.port);
                let ours = filters::allows(&filter, packet.from, packet.to, probe);
                let said = case.reading().allows(at, &packet);
                assert_eq!(ours, said, "{packet:?} at {}:\n{}", at.id, case.shown());
                passed[usize::from(said)] += 1;
                let ours = filters::grants(&filter, packet.from, packet.to);
                let said = case.reading().capabilities(at, &packet);
                assert_eq!(ours, said, "{packet:?} at {}:\n{}", at.id, case.shown());
                granted[usize::from(!said.is_empty())] += 1;
            }
        }
        case.rng = rng;
    }
    saw_both(passed, "packets that pass");
    saw_both(granted, "packets of somebody with capabilities");
}

#[test]
fn two_nodes_see_each_other_exactly_where_a_rule_connects_them() {
    let mut seen = [0; 2];
    let mut routed = [0; 2];
    for case in cases() {
        let reading = case.reading();
        for viewer in &case.world.nodes {
            let approved: BTreeSet<IpNet> = case.compiled.approved(viewer.id).into_iter().collect();
            assert_eq!(approved, reading.approved(viewer), "{}", case.shown());
            let attributes = case.compiled.attributes_of(viewer.id);
            let said = reading.attributes(viewer);
            assert!(attributes.keys().eq(&said), "{said:?}: {}", case.shown());
            let peers = case.compiled.peers_of(viewer.id);
            for peer in &case.world.nodes {
                let pair = || format!("{} of {}:\n{}", viewer.id, peer.id, case.shown());
                let view = peers.get(&peer.id);
                let said = reading.see_each_other(viewer, peer);
                assert_eq!(view.is_some(), said, "{}", pair());
                assert_eq!(case.compiled.sees(viewer.id, peer.id), said, "{}", pair());
                seen[usize::from(said)] += 1;
                let Some(view) = view else { continue };
                let (allowed, primary) = reading.shown(viewer, peer);
                let set = |nets: &[IpNet]| nets.iter().copied().collect::<BTreeSet<IpNet>>();
                assert_eq!(set(&view.allowed_ips), allowed, "{}", pair());
                assert_eq!(set(&view.primary_routes), primary, "{}", pair());
                routed[usize::from(!primary.is_empty())] += 1;
            }
        }
    }
    saw_both(seen, "pairs that see each other");
    saw_both(routed, "peers with routes");
}

/// What the rules that a node is sent make of a login, the first that knows the name deciding: whether it is checked.
fn judged(rules: &SshPolicy, from: &NodeFacts, name: &str) -> Option<bool> {
    let from: Vec<String> = reading::addresses(from)
        .iter()
        .map(ToString::to_string)
        .collect();
    let mut rules = rules.rules.iter().filter(|rule| {
        let mut principals = rule.principals.iter();
        let local = rule.ssh_users.get(name).or_else(|| rule.ssh_users.get("*"));
        principals.any(|principal| from.contains(&principal.node_ip))
            && local.is_some_and(|local| !local.is_empty())
    });
    rules.next().map(|rule| !rule.action.accept)
}

#[test]
fn a_login_is_open_exactly_where_an_ssh_rule_says_so() {
    let mut outcomes: BTreeMap<Option<bool>, usize> = BTreeMap::new();
    for case in cases() {
        for to in &case.world.nodes {
            let rules = case.compiled.ssh_for(to.id);
            for from in &case.world.nodes {
                for name in generate::LOGINS {
                    let said = case.reading().login(from, to, name);
                    let ours = judged(&rules, from, name);
                    let which =
                        || format!("{name} from {} at {}:\n{}", from.id, to.id, case.shown());
                    assert_eq!(ours, said, "{}", which());
                    *outcomes.entry(said).or_default() += 1;
                }
            }
        }
    }
    println!("logins, by whether they are checked: {outcomes:?}");
    let is_short = from_env("LOWROAD_POLICY_CASES", CASES) < CASES;
    assert!(
        is_short || outcomes.values().filter(|&&count| count > 500).count() == 3,
        "{outcomes:?}"
    );
}

/// What a difference says that opens, or closes, from one node to another.
fn told(diff: &Diff, from: &NodeFacts, to: &NodeFacts, opens: bool) -> Vec<String> {
    let owner = |node: &NodeFacts| node.user.filter(|_| node.tags.is_empty());
    let same = owner(from).is_some() && owner(from) == owner(to);
    let rows = diff.logins.iter().filter(|row| {
        row.opens == opens
            && row.from.nodes.contains(&from.id)
            && row.to.nodes.contains(&to.id)
            && (row.users == DiffUsers::Any || same)
    });
    rows.flat_map(|row| row.access.clone()).collect()
}

#[test]
fn a_difference_tells_the_logins_that_open_and_close() {
    const UNKNOWN: &str = "nobody-knows";
    const CHECKED: &str = " (refused: checks are not done by this server)";
    const NAMES: [&str; 7] = [
        "root",
        "ubuntu",
        "git",
        "ann",
        "carol",
        "dave",
        "nobody-knows",
    ];
    let mut changed = [0; 2];
    for case in cases() {
        let mut other = generate::policy(&mut case.rng.clone());
        other.groups = case.policy.groups.clone();
        let parsed = Policy::parse(&other.text()).unwrap();
        let new = recompile(&parsed, &case.world);
        let diff = diff(&case.compiled, &new);
        for to in &case.world.nodes {
            let sides = [case.compiled.ssh_for(to.id), new.ssh_for(to.id)];
            for from in case.world.nodes.iter().filter(|from| from.id != to.id) {
                let rows = [true, false].map(|opens| told(&diff, from, to, opens));
                for name in NAMES {
                    let [was, is] = sides.each_ref().map(|side| judged(side, from, name));
                    // Who is to be checked is refused.
                    let [could, can] = [was, is].map(|judged| judged == Some(false));
                    let after = if is == Some(true) { CHECKED } else { "" };
                    let known = rows.iter().flatten().any(|row| {
                        row.strip_suffix(CHECKED).unwrap_or(row) == format!("ssh as {name}")
                    });
                    let texts = match known || name == "root" {
                        true => vec![name],
                        false => vec!["any name but root", "any other name but root"],
                    };
                    let texts = texts
                        .into_iter()
                        .map(|name| format!("ssh as {name}{after}"))
                        .collect::<Vec<_>>();
                    for (row, now, before) in [(&rows[0], can, could), (&rows[1], could, can)] {
                        let says = texts.iter().any(|text| row.contains(text));
                        let is_exception = name != UNKNOWN
                            && now == before
                            && row.iter().any(|row| row.contains("any other"));
                        let which = || {
                            format!(
                                "{name} from {} at {}: {rows:?}\n{}\n{}",
                                from.id,
                                to.id,
                                case.shown(),
                                other.text()
                            )
                        };
                        assert!(says == (now && !before) || is_exception, "{}", which());
                        changed[usize::from(says)] += 1;
                    }
                }
            }
        }
    }
    saw_both(changed, "logins that open or close");
}
