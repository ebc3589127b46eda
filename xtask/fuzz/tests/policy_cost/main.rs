//! What the policy compiler may take, heap and processor time, for policies made to be as costly as they get: up to the largest that is
//! taken at all, where fuzzing stops at 16 KiB. One test alone, as nothing else may be counted as its doing.

mod layouts;
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

/// A policy of one section that is as long as fits.
fn filled(before: &str, after: &str, entry: impl Fn(usize) -> String) -> String {
    let mut text = before.to_owned();
    for number in 0.. {
        let next = entry(number);
        if text.len() + next.len() + 1 + after.len() > MAX_POLICY {
            break;
        }
        text += &next;
        text.push(',');
    }
    text + after
}

fn list(count: usize, entry: impl Fn(usize) -> String) -> String {
    (0..count).map(entry).collect::<Vec<_>>().join(",")
}

fn address(number: usize) -> String {
    format!(
        "10.{}.{}.{}",
        number >> 16 & 255,
        number >> 8 & 255,
        number & 255
    )
}

fn acl(src: &str, dst: &str) -> String {
    format!(r#"{{"action":"accept","src":[{src}],"dst":[{dst}]}}"#)
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

fn shapes() -> Vec<(&'static str, String)> {
    let all = r#""*:*""#;
    let nested = |open: &str, close: &str| {
        let depth = MAX_POLICY / 2 / open.len().max(close.len());
        open.repeat(depth) + &close.repeat(depth)
    };
    let groups = |members: usize| {
        filled(r#"{"groups":{"#, "}}", move |number| {
            format!(
                r#""group:g{number}":[{}]"#,
                list(members, |at| format!(r#""u{at}@""#))
            )
        })
    };
    let tests = list(2000, |at| {
        format!(
            r#"{{"src":"ann@example.com","accept":["100.64.0.3:{}"]}}"#,
            at + 1
        )
    });
    let logins = list(2000, |_| {
        r#"{"src":"ann@example.com","dst":["tag:server"],"accept":["root"]}"#.to_owned()
    });
    // Root by the last of them, so that all are looked at.
    let ssh = list(900, |at| {
        let user = match at {
            899 => "root".to_owned(),
            at => format!("u{at}"),
        };
        format!(
            r#"{{"action":"accept","src":["ann@example.com"],"dst":["tag:server"],"users":["{user}"]}}"#
        )
    });
    let tagged = r#"{"tagOwners":{"tag:server":[],"tag:router":[]},"#;
    vec![
        ("lists in lists", nested("[", "]")),
        ("objects in objects", nested(r#"{"a":"#, "}")),
        ("a comment", format!("{{}}//{}", "x".repeat(MAX_POLICY - 8))),
        ("groups of one", groups(1)),
        ("groups of a thousand", groups(1000)),
        (
            "one group",
            filled(r#"{"groups":{"group:a":["#, "]}}", |n| {
                format!(r#""u{n}@""#)
            }),
        ),
        (
            "hosts",
            filled(r#"{"hosts":{"#, "}}", |n| {
                format!(r#""h{n}":"{}""#, address(n))
            }),
        ),
        (
            "tags in a row",
            filled(r#"{"tagOwners":{"#, "}}", |n| {
                format!(r#""tag:t{n}":["tag:t{}"]"#, n.saturating_sub(1))
            }),
        ),
        ("tags of each other", {
            let owners = list(200, |n| format!(r#""tag:t{n}""#));
            format!(
                r#"{{"tagOwners":{{{}}}}}"#,
                list(200, |n| format!(r#""tag:t{n}":[{owners}]"#))
            )
        }),
        (
            "sources, all *",
            filled(
                r#"{"acls":[{"action":"accept","dst":["*:*"],"src":["#,
                "]}]}",
                |_| r#""*""#.into(),
            ),
        ),
        (
            "sources, all different",
            filled(
                r#"{"acls":[{"action":"accept","dst":["*:*"],"src":["#,
                "]}]}",
                |n| format!(r#""{}""#, address(n * 2)),
            ),
        ),
        (
            "destinations, all different",
            filled(
                r#"{"acls":[{"action":"accept","src":["*"],"dst":["#,
                "]}]}",
                |n| format!(r#""{}:{}""#, address(n * 2), n % 60_000 + 1),
            ),
        ),
        (
            "ports of one destination",
            filled(
                r#"{"acls":[{"action":"accept","src":["*"],"dst":["*:"#,
                r#"1"]}]}"#,
                |n| format!("{}", n * 2 % 65_536),
            ),
        ),
        (
            "rules, all different",
            filled(r#"{"acls":["#, "]}", |n| {
                acl(&format!(r#""{}""#, address(n)), all)
            }),
        ),
        (
            "rules that cover each other",
            filled(r#"{"acls":["#, "]}", |n| {
                acl(
                    r#""*""#,
                    &format!(r#""*:{}-{}""#, 30_000 - n % 30_000, 30_000 + n % 30_000),
                )
            }),
        ),
        (
            "rules of everybody",
            filled(r#"{"acls":["#, "]}", |n| {
                acl(
                    r#""autogroup:member""#,
                    &format!(r#""autogroup:self:{}""#, n % 60_000),
                )
            }),
        ),
        ("grants of many pairs", {
            let dst = list(500, |n| format!(r#""{}""#, address(n)));
            let ip = list(500, |n| format!(r#""{}""#, n * 2 + 1));
            format!(r#"{{"grants":[{{"src":["*"],"dst":[{dst}],"ip":[{ip}]}}]}}"#)
        }),
        ("grants of many protocols", {
            let src = list(900, |n| format!(r#""{}""#, address(n * 2)));
            let ip = list(250, |n| format!(r#""{n}:*""#));
            format!(r#"{{"grants":[{{"src":[{src}],"dst":["*"],"ip":[{ip}]}}]}}"#)
        }),
        (
            "a capability of many values",
            filled(
                r#"{"grants":[{"src":["*"],"dst":["*"],"app":{"x.com/cap/a":["#,
                "1]}}]}",
                |n| format!("[{n}]"),
            ),
        ),
        (
            "capabilities",
            filled(
                r#"{"grants":[{"src":["*"],"dst":["*"],"app":{"#,
                r#""x.com/z":[]}}]}"#,
                |n| format!(r#""x.com/c{n}":[]"#),
            ),
        ),
        (
            "grants of capabilities",
            filled(r#"{"grants":["#, "]}", |n| {
                format!(r#"{{"src":["*"],"dst":["*"],"app":{{"tailscale.com/cap/drive":[{n}]}}}}"#)
            }),
        ),
        ("a grant to many through many", {
            let tags = list(8_000, |n| format!(r#""tag:r{n}""#));
            let owners = list(8_000, |n| format!(r#""tag:r{n}":[]"#));
            filled(
                &format!(
                    r#"{{"tagOwners":{{{owners}}},"grants":[{{"src":["*"],"ip":["*"],"via":[{tags}],"dst":["#
                ),
                "]}]}",
                |n| format!(r#""{}""#, address(n)),
            )
        }),
        ("grants of all protocols through many", {
            let tags = list(4_000, |n| format!(r#""tag:r{n}""#));
            let owners = list(4_000, |n| format!(r#""tag:r{n}":[]"#));
            let protocols = list(256, |n| format!(r#""{n}:*""#));
            filled(
                &format!(r#"{{"tagOwners":{{{owners}}},"grants":["#),
                "]}",
                |n| {
                    format!(
                        r#"{{"src":["10.0.0.{n}"],"dst":["10.1.0.0/16"],"ip":[{protocols}],"via":[{tags}]}}"#
                    )
                },
            )
        }),
        (
            "grants through routers",
            filled(&format!(r#"{tagged}"grants":["#), "]}", |n| {
                format!(
                    r#"{{"src":["*"],"dst":["{}"],"ip":["*"],"via":["tag:router"]}}"#,
                    address(n)
                )
            }),
        ),
        (
            "approvers",
            filled(r#"{"autoApprovers":{"routes":{"#, "}}}", |n| {
                format!(r#""{}/32":["ann@example.com"]"#, address(n))
            }),
        ),
        (
            "attributes",
            filled(r#"{"nodeAttrs":["#, "]}", |n| {
                format!(r#"{{"target":["*"],"attr":["a{n}"]}}"#)
            }),
        ),
        (
            "pools",
            filled(r#"{"nodeAttrs":[{"target":["*"],"ipPool":["#, "]}]}", |n| {
                format!(r#""100.96.{}.{}""#, n / 256 % 256, n % 256)
            }),
        ),
        ("pools of groups and their members", {
            let members = list(20_000, |n| format!(r#""u{n}@""#));
            let groups = list(500, |_| r#""group:a""#.to_owned());
            filled(
                &format!(
                    r#"{{"groups":{{"group:a":[{members}]}},"nodeAttrs":[{{"target":[{groups}],"ipPool":["100.96.0.0/16"]}},"#
                ),
                "]}",
                |n| format!(r#"{{"target":["v{n}@","group:a"],"ipPool":["100.97.0.0/16"]}}"#),
            )
        }),
        (
            "tests of many rules",
            filled(&format!(r#"{{"tests":[{tests}],"acls":["#), "]}", |n| {
                acl(r#""*""#, &format!(r#""100.64.0.3:{}""#, n % 60_000 + 1))
            }),
        ),
        (
            "logins of many rules",
            format!(r#"{tagged}"ssh":[{ssh}],"sshTests":[{logins}]}}"#),
        ),
        (
            "a test of a group",
            filled(
                r#"{"tests":[{"src":"group:a","accept":["100.64.0.3:22"]}],"sshTests":[{"src":"group:a","dst":["100.64.0.3"],"deny":["root"]}],"groups":{"group:a":["#,
                "]}}",
                |n| format!(r#""u{n}@""#),
            ),
        ),
        ("tests of a group", {
            let each = |tests: &str| {
                format!(
                    r#"{{"tagOwners":{{"tag:server":[]}},"acls":[{{"action":"accept","src":["*"],"dst":["*:*"]}}],"ssh":[{{"action":"accept","src":["group:a"],"dst":["tag:server"],"users":["root"]}}],{tests},"groups":{{"group:a":["#
                )
            };
            let tests = list(1500, |n| {
                format!(r#"{{"src":"group:a","accept":["100.64.0.3:{}"]}}"#, n + 1)
            });
            let logins = list(1500, |_| {
                r#"{"src":"group:a","dst":["tag:server"],"accept":["root"]}"#.to_owned()
            });
            filled(
                &each(&format!(r#""tests":[{tests}],"sshTests":[{logins}]"#)),
                "]}}",
                |n| format!(r#""u{n}@""#),
            )
        }),
        ("a test of users told apart", {
            let all = list(15_000, |n| format!(r#""u{n}@""#));
            filled(
                &format!(
                    r#"{{"tests":[{{"src":"group:all","deny":["100.64.0.3:22"]}}],"groups":{{"group:all":[{all}],"#
                ),
                "}}",
                |n| format!(r#""group:g{n}":["u{n}@"]"#),
            )
        }),
        ("tests of groups", {
            let groups = list(1000, |n| format!(r#""group:g{n}":["u{n}@"]"#));
            let tests = list(2000, |n| {
                format!(
                    r#"{{"src":"group:g{}","deny":["100.64.0.3:{}"]}}"#,
                    n % 1000,
                    n + 1
                )
            });
            let all = list(1000, |n| format!(r#""u{n}@""#));
            filled(
                &format!(
                    r#"{{"groups":{{{groups},"group:all":[{all}]}},"tests":[{tests}],"sshTests":[{{"src":"group:all","dst":["100.64.0.3"],"deny":["root"]}}],"acls":["#
                ),
                "]}",
                |n| {
                    acl(
                        &format!(r#""group:g{}""#, n % 1000),
                        &format!(r#""10.0.0.1:{}""#, n % 60_000 + 1),
                    )
                },
            )
        }),
        ("ssh rules", format!(r#"{tagged}"ssh":[{ssh}]}}"#)),
        (
            "unknown names, much alike",
            filled(
                r#"{"groups":{"group:server-number-1":[]},"acls":[{"action":"accept","dst":["*:*"],"src":["#,
                "]}]}",
                |n| format!(r#""group:servre-number-{n}""#),
            ),
        ),
        (
            "unknown fields",
            filled("{", "}", |n| format!(r#""acl{n}":1"#)),
        ),
    ]
}

#[test]
fn the_costliest_policies_keep_the_limits() {
    let all = shapes().into_iter().chain(trials::shapes());
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
