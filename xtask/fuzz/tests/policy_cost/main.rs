//! What the policy compiler may take, heap and processor time, for policies made to be as costly as they get: up to the largest that is
//! taken at all, where fuzzing stops at 16 KiB. One test alone, as nothing else may be counted as its doing.

mod layouts;
mod sections;
mod stand_ins;
mod trials;

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use lowroad_coordinator::policy::{
    MAX_POLICY, NodeFacts, Policy, PolicyErrors, TailnetFacts, UnknownUsers, UserFacts, World,
    compile_with, warnings,
};
use lowroad_fuzz::{Limits, Spent, Target, check};
use lowroad_wire::control::{NodeId, UserId};

/// 64 MB, and 100 ms for each KiB: whatever the policy, and without optimisation.
const TAKEN: Target = Target {
    name: "policy-cost",
    about: "",
    run: taken,
    seeds: Vec::new,
    limits: Limits {
        memory: 64 << 20,
        memory_per_byte: 0,
        time: Duration::from_millis(100),
        time_per_kib: Duration::from_millis(100),
    },
    max_len: MAX_POLICY,
    mutations: 0,
    needs_root: false,
};

const REFUSED: Target = Target {
    run: refused,
    ..TAKEN
};

fn taken(input: &[u8]) {
    if let Err(errors) = compile_and_tell(input) {
        panic!("refused: {}", errors.first());
    }
}

fn refused(input: &[u8]) {
    let refused = compile_and_tell(input);
    let errors = refused.expect_err("what is refused is measured as far as that only");
    let said = errors.first().to_string();
    let wanted = *SAID.lock().expect("nobody panics with it");
    assert!(said.contains(wanted), "{said}");
}

/// Of the policy that is refused next.
static SAID: Mutex<&str> = Mutex::new("");

/// Everything that happens to a policy on the server. What nodes make of their filters is measured by `filter_rules`.
fn compile_and_tell(input: &[u8]) -> Result<(), PolicyErrors> {
    let text = std::str::from_utf8(input).expect("it is text");
    let policy = Policy::parse(text)?;
    let world = world();
    let compiled = compile_with(&policy, &world, UnknownUsers::Accept)?;
    std::hint::black_box(warnings(&policy, &compiled, &HashMap::new()));
    for node in &world.nodes {
        std::hint::black_box(compiled.filter_for(node.id));
        std::hint::black_box(compiled.ssh_for(node.id));
        std::hint::black_box(compiled.peers_of(node.id));
    }
    Ok(())
}

/// Two devices of a user, two servers and a router.
fn world() -> World {
    let node = |id: u8, tags: &[&str], routes: &[&str]| NodeFacts {
        id: NodeId(id.into()),
        user: tags.is_empty().then_some(UserId(1)),
        tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
        v4: Some([100, 64, 0, id].into()),
        v6: format!("fd7a:115c:a1e0::{id}").parse().ok(),
        announced: routes
            .iter()
            .filter_map(|route| route.parse().ok())
            .collect(),
        admin_approved: routes
            .iter()
            .filter_map(|route| route.parse().ok())
            .collect(),
        created: id.into(),
        online: true,
    };
    World {
        users: vec![UserFacts {
            id: UserId(1),
            login_name: "ann@example.com".to_owned(),
        }],
        nodes: vec![
            node(1, &[], &[]),
            node(2, &[], &[]),
            node(3, &["tag:server"], &[]),
            node(4, &["tag:server"], &[]),
            node(5, &["tag:router"], &["10.0.0.0/8", "0.0.0.0/0", "::/0"]),
        ],
        tailnet: TailnetFacts::default(),
    }
}

const TOO_MUCH: &str = "would take more work than a policy of this length may; have fewer";

/// And what is said of them. All other shapes are taken.
const NOT_TAKEN: [(&str, &str); 11] = [
    (
        "a rule of one port over and over, to tags told apart",
        TOO_MUCH,
    ),
    ("grants from everybody and an address each", TOO_MUCH),
    ("tests of logins from many, to many tags", TOO_MUCH),
    ("tests of many addresses behind many destinations", TOO_MUCH),
    (
        "a test of logins by all own names, to own devices",
        "ssh test failed: accept",
    ),
    (
        "a test of logins with many names, to many users",
        "ssh test failed: accept",
    ),
    (
        "a test of users told apart",
        "is about more than 10000 users and tags",
    ),
    ("lists in lists", ""),
    ("objects in objects", ""),
    ("unknown names, much alike", ""),
    ("unknown fields", "the policy has no field"),
];

#[test]
fn the_costliest_policies_keep_the_limits() {
    let all = sections::shapes().into_iter().chain(trials::shapes());
    let policies = all.chain(stand_ins::shapes()).map(|(name, text)| {
        let not_taken = NOT_TAKEN.iter().find(|(not_taken, _)| *not_taken == name);
        (name, text, not_taken.map(|(_, said)| *said))
    });
    let mut most = Spent::default();
    let mut failures = Vec::new();
    let mut measure = |name, text: &str, target: &Target| {
        assert!(text.len() <= MAX_POLICY, "{name}: {} bytes", text.len());
        let spent = match check(target, text.as_bytes()) {
            Ok(spent) => spent,
            Err(failure) => {
                println!("{name}: {failure}");
                return failures.push(name);
            }
        };
        let kib = text.len().div_ceil(1024);
        println!(
            "{name}: {kib} KiB, {:.1} MB of heap, {:.1} ms for each KiB",
            spent.memory as f64 / 1e6,
            spent.time.as_secs_f64() * 1e3 / kib as f64
        );
        most.memory = most.memory.max(spent.memory);
        most.time = most.time.max(spent.time);
    };
    for (name, text, said) in policies {
        if let Some(said) = said {
            *SAID.lock().expect("nobody panics with it") = said;
        }
        measure(name, &text, if said.is_some() { &REFUSED } else { &TAKEN });
    }
    for (name, text) in layouts::shapes() {
        measure(name, &text, &layouts::LAID_OUT);
    }
    assert_eq!(failures, Vec::<&str>::new());
    println!(
        "REPORT: the costliest policies: {:.1} MB of heap and {:.1} s of processor time at most",
        most.memory as f64 / 1e6,
        most.time.as_secs_f64()
    );
}
