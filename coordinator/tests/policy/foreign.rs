//! Text that anybody may have written: it never makes the parser or the compiler panic.

use lowroad_coordinator::policy::{Policy, compile, recompile};
use lowroad_wire::control::NodeId;
use proptest::prelude::*;

use super::small_world;

const SEED_POLICY: &str = r#"{
    // A bit of everything.
    "groups": {"group:ops": ["alice@example.com", "bob@"]},
    "hosts": {"db": "100.64.0.4", "lan": "10.0.0.0/8", "six": "fd00:1::/64"},
    "tagOwners": {"tag:server": ["group:ops"]},
    "acls": [
        {"action": "accept", "proto": "tcp", "src": ["group:ops", "10.0.0.1"], "dst": ["tag:server:22,80-90", "lan:*"]},
        {"action": "accept", "src": ["*"], "dst": ["autogroup:self:*", "fd00:1::/64:443", "autogroup:internet:*"]},
    ],
    "grants": [{"src": ["autogroup:member"], "dst": ["db", "tag:server"], "ip": ["udp:53", "443", "icmp:*"]}],
    "autoApprovers": {"routes": {"10.0.0.0/8": ["tag:server"]}, "exitNode": ["tag:server"]},
    "tests": [{"src": "bob@", "accept": ["tag:server:22"], "deny": ["100.64.0.1:9"]}],
}"#;

/// Parses and, if it goes so far, compiles; what comes out must hang together.
fn try_policy(text: &str) {
    let Ok(policy) = Policy::parse(text) else {
        return;
    };
    let world = small_world();
    let _ = compile(&policy, &world);
    let compiled = recompile(&policy, &world);
    for one in 1..=4 {
        for rule in compiled.filter_for(NodeId(one)).iter() {
            assert!(!rule.src_ips.is_empty() && !rule.dst_ports.is_empty());
        }
        for other in 1..=4 {
            let (one, other) = (NodeId(one), NodeId(other));
            assert_eq!(compiled.sees(one, other), compiled.sees(other, one));
            assert!(one != other || !compiled.sees(one, other));
        }
    }
}

#[test]
fn the_seed_of_the_mutations_is_itself_a_good_policy() {
    let policy = Policy::parse(SEED_POLICY).unwrap();
    compile(&policy, &small_world()).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_text_never_panics(text in "\\PC{0,200}") {
        try_policy(&text);
    }

    #[test]
    fn text_of_policy_pieces_never_panics(pieces in prop::collection::vec(piece(), 0..60)) {
        try_policy(&pieces.concat());
    }

    #[test]
    fn mutated_policies_never_panic(
        edits in prop::collection::vec((any::<prop::sample::Index>(), 0..12_usize, piece()), 1..4),
    ) {
        let mut text: Vec<char> = SEED_POLICY.chars().collect();
        for (at, removed, inserted) in edits {
            let at = at.index(text.len() + 1);
            let end = (at + removed).min(text.len());
            text.splice(at..end, inserted.chars());
        }
        try_policy(&text.into_iter().collect::<String>());
    }
}

fn piece() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec![
        "",
        "{",
        "}",
        "[",
        "]",
        ",",
        ":",
        "\"",
        "null",
        "true",
        "-1",
        "1e999",
        "/*",
        "*/",
        "//",
        "\n",
        "\\u0000",
        "\\ud800",
        "é",
        "\u{feff}",
        "\"acls\":",
        "\"src\":",
        "\"*\"",
        "*:*",
        "tag:server",
        "tag:",
        "group:",
        "group:ops",
        "autogroup:self",
        "autogroup:internet",
        "autogroup:danger-all",
        "autogroup:tagged",
        "@",
        "0.0.0.0/0",
        "::/0",
        "[::1]",
        "/33",
        ":65535",
        ":0-0",
        "-",
        "255.255.255.255",
        "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
        "99999999999999999999",
        "tcp:",
        "\"tests\":",
        "bob@",
        "db",
    ])
}
