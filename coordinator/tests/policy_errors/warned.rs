//! Warnings: rules that can never match, or that other rules cover, and names that nobody has.

use super::*;

#[test]
fn what_is_probably_not_meant_is_warned_of() {
    warned(
        r##"{
  "groups": {"group:empty": [], "group:unused": ["alice@example.com"], "group:eng": ["alice@example.com"]},
  "hosts": {"db": "10.1.0.9", "DB": "10.1.0.8", "gone": "10.9.0.1", "six": "fd00::1"},
  "tagOwners": {"tag:server": ["autogroup:member"], "tag:router": [], "tag:nobody": ["tag:ghost"], "tag:ghost": ["group:empty"]},
  "acls": [
    {"action": "accept", "src": ["group:empty"], "dst": ["*:*"]},
    {"action": "accept", "src": ["alice@example.com", "tag:ghost"], "dst": ["db:22", "gone:22", "10.2.0.1:22", "tag:nobody:*"]},
    {"action": "accept", "src": ["10.1.0.1"], "dst": ["six:*"]},
    {"action": "accept", "src": ["*"], "dst": ["tag:server:0", "DB:0"]},
    {"action": "accept", "src": [], "dst": ["*:*"]},
    {"action": "accept", "src": ["*"], "dst": ["autogroup:internet:*"]},
    {"action": "accept", "src": ["autogroup:member"], "dst": ["tag:server:80-90", "10.1.0.0/16:*"]},
    {"action": "accept", "src": ["group:eng", "bob@"], "dst": ["tag:server:80,85", "10.1.2.3:443"], "proto": "tcp"},
  ],
}
"##,
        r##"p.hujson:2:14: warning: "group:empty" has no members; where it stands, nobody is meant
    2 |   "groups": {"group:empty": [], "group:unused": ["alice@example.com"], "group:eng": ["alice@example.…
      |              ^^^^^^^^^^^^^
p.hujson:2:33: warning: "group:unused" is defined, but nothing in the policy names it
    2 |   "groups": {"group:empty": [], "group:unused": ["alice@example.com"], "group:eng": ["alice@example.…
      |                                 ^^^^^^^^^^^^^^
p.hujson:3:13: warning: host "db" is 10.1.0.9, but a node has that name, too, and other addresses; rules mean the host
    3 |   "hosts": {"db": "10.1.0.9", "DB": "10.1.0.8", "gone": "10.9.0.1", "six": "fd00::1"},
      |             ^^^^
p.hujson:3:31: warning: host "DB" is 10.1.0.8, but a node has that name, too, and other addresses; rules mean the host
    3 |   "hosts": {"db": "10.1.0.9", "DB": "10.1.0.8", "gone": "10.9.0.1", "six": "fd00::1"},
      |                               ^^^^
p.hujson:4:71: warning: nobody may give "tag:nobody" to a node: its owners are empty groups, or tags that nobody may give either; it takes an auth key with that tag
    4 | …["autogroup:member"], "tag:router": [], "tag:nobody": ["tag:ghost"], "tag:ghost": ["group:empty"]},
      |                                          ^^^^^^^^^^^^
p.hujson:4:100: warning: nobody may give "tag:ghost" to a node: its owners are empty groups, or tags that nobody may give either; it takes an auth key with that tag
    4 | …uter": [], "tag:nobody": ["tag:ghost"], "tag:ghost": ["group:empty"]},
      |                                          ^^^^^^^^^^^
p.hujson:6:34: warning: this rule never matches: "group:empty" has no members
    6 |     {"action": "accept", "src": ["group:empty"], "dst": ["*:*"]},
      |                                  ^^^^^^^^^^^^^
p.hujson:7:55: warning: this entry never matches: no node has "tag:ghost", and nobody may give it to one but by an auth key
    7 | … "accept", "src": ["alice@example.com", "tag:ghost"], "dst": ["db:22", "gone:22", "10.2.0.1:22", "ta…
      |                                          ^^^^^^^^^^^
p.hujson:7:86: warning: this entry never matches: no node has that address, and no route leads there
    7 | …le.com", "tag:ghost"], "dst": ["db:22", "gone:22", "10.2.0.1:22", "tag:nobody:*"]},
      |                                          ^^^^^^^^^
p.hujson:7:97: warning: this entry never matches: no node has that address, and the routes that are announced there are not approved
    7 | …ag:ghost"], "dst": ["db:22", "gone:22", "10.2.0.1:22", "tag:nobody:*"]},
      |                                          ^^^^^^^^^^^^^
p.hujson:7:112: warning: this entry never matches: no node has "tag:nobody", and nobody may give it to one but by an auth key
    7 | …t": ["db:22", "gone:22", "10.2.0.1:22", "tag:nobody:*"]},
      |                                          ^^^^^^^^^^^^^^
p.hujson:8:55: warning: this rule never matches: it is an IPv6 address, and the sources have IPv4 only
    8 |     {"action": "accept", "src": ["10.1.0.1"], "dst": ["six:*"]},
      |                                                       ^^^^^^^
p.hujson:9:48: warning: this rule never matches: nothing can be reached at port 0
    9 |     {"action": "accept", "src": ["*"], "dst": ["tag:server:0", "DB:0"]},
      |                                                ^^^^^^^^^^^^^^
p.hujson:10:5: warning: this rule never matches: src is empty
   10 |     {"action": "accept", "src": [], "dst": ["*:*"]},
      |     ^
p.hujson:11:48: warning: this rule never matches: no exit node is approved
   11 |     {"action": "accept", "src": ["*"], "dst": ["autogroup:internet:*"]},
      |                                                ^^^^^^^^^^^^^^^^^^^^^^
p.hujson:13:5: warning: this rule adds nothing: the one in line 12 allows all of it
   13 |     {"action": "accept", "src": ["group:eng", "bob@"], "dst": ["tag:server:80,85", "10.1.2.3:443"], …
      |     ^
"##,
    );
}

#[test]
fn routers_without_a_route_and_grants_within_grants_are_warned_of() {
    warned(
        r##"{
  "tagOwners": {"tag:router": ["autogroup:member"], "tag:edge": ["autogroup:member"]},
  "grants": [
    {"src": ["*"], "dst": ["10.1.0.0/16"], "ip": ["*"], "via": ["tag:edge"]},
    {"src": ["*"], "dst": ["10.1.0.0/16"], "ip": ["tcp:80", "udp:53"], "via": ["tag:router"]},
    {"src": ["autogroup:member"], "dst": ["10.1.0.0/16"], "ip": ["tcp:80"], "via": ["tag:router"]},
    {"src": ["*"], "dst": ["fd7a:115c:a1e0::1"], "ip": ["icmp:*"]},
  ],
}
"##,
        r##"p.hujson:4:28: warning: this rule never matches: no node with a tag of `via` has an approved route there
    4 |     {"src": ["*"], "dst": ["10.1.0.0/16"], "ip": ["*"], "via": ["tag:edge"]},
      |                            ^^^^^^^^^^^^^
p.hujson:6:5: warning: this rule adds nothing: the one in line 5 allows all of it
    6 |     {"src": ["autogroup:member"], "dst": ["10.1.0.0/16"], "ip": ["tcp:80"], "via": ["tag:router"]},
      |     ^
p.hujson:7:28: warning: this rule never matches: the protocol doesn't exist in IPv6, and this is an IPv6 address
    7 |     {"src": ["*"], "dst": ["fd7a:115c:a1e0::1"], "ip": ["icmp:*"]},
      |                            ^^^^^^^^^^^^^^^^^^^
"##,
    );
}

#[test]
fn logins_of_nobody_and_at_nobody_and_those_that_are_refused_are_warned_of() {
    warned(
        r##"{
  "groups": {"group:empty": []},
  "tagOwners": {"tag:server": ["autogroup:member"], "tag:ghost": []},
  "ssh": [
    {"action": "check", "src": ["group:empty"], "dst": ["tag:server"], "users": ["root"]},
    {"action": "accept", "src": ["autogroup:member"], "dst": ["tag:server", "tag:ghost"], "users": ["root"]},
    {"action": "accept", "src": [], "dst": ["tag:server"], "users": ["root"]},
  ],
}
"##,
        r##"p.hujson:2:14: warning: "group:empty" has no members; where it stands, nobody is meant
    2 |   "groups": {"group:empty": []},
      |              ^^^^^^^^^^^^^
p.hujson:3:53: warning: nobody may give "tag:ghost" to a node: it has no owners; it takes an auth key with that tag
    3 |   "tagOwners": {"tag:server": ["autogroup:member"], "tag:ghost": []},
      |                                                     ^^^^^^^^^^^
p.hujson:5:5: warning: checks are not done by this server: such logins are refused, also where another rule accepts them; take the rule out, or write "accept"
    5 |     {"action": "check", "src": ["group:empty"], "dst": ["tag:server"], "users": ["root"]},
      |     ^
p.hujson:5:33: warning: this rule never matches: "group:empty" has no members
    5 |     {"action": "check", "src": ["group:empty"], "dst": ["tag:server"], "users": ["root"]},
      |                                 ^^^^^^^^^^^^^
p.hujson:6:77: warning: this entry never matches: no node has "tag:ghost", and nobody may give it to one but by an auth key
    6 | …togroup:member"], "dst": ["tag:server", "tag:ghost"], "users": ["root"]},
      |                                          ^^^^^^^^^^^
p.hujson:7:5: warning: this rule never matches: src is empty
    7 |     {"action": "accept", "src": [], "dst": ["tag:server"], "users": ["root"]},
      |     ^
"##,
    );
}

#[test]
fn attributes_of_nobody_and_pools_that_nobody_gets_are_warned_of() {
    warned(
        r##"{
  "groups": {"group:empty": [], "group:a": ["alice@example.com"]},
  "tagOwners": {"tag:key": []},
  "nodeAttrs": [
    {"target": ["group:empty", "tag:key", "*"], "attr": ["a"]},
    {"target": [], "attr": ["b"]},
    {"target": ["group:a", "tag:key"], "ipPool": ["100.100.0.0/25", "100.100.0.0/23", "100.100.1.0/24"]},
    {"target": ["10.1.0.9", "100.64.0.1", "group:empty"], "ipPool": ["100.80.0.0/16"]},
    {"target": ["tag:key", "alice@example.com", "10.1.0.9"], "ipPool": ["100.81.0.0/16", "100.82.0.0/16"]},
    {"target": ["autogroup:tagged"], "ipPool": ["100.83.0.0/16"]},
    {"target": ["*"], "ipPool": ["100.84.0.0/16"]},
    {"target": ["autogroup:member"], "ipPool": ["100.85.0.0/16"]},
  ],
}
"##,
        r##"p.hujson:2:14: warning: "group:empty" has no members; where it stands, nobody is meant
    2 |   "groups": {"group:empty": [], "group:a": ["alice@example.com"]},
      |              ^^^^^^^^^^^^^
p.hujson:3:17: warning: nobody may give "tag:key" to a node: it has no owners; it takes an auth key with that tag
    3 |   "tagOwners": {"tag:key": []},
      |                 ^^^^^^^^^
p.hujson:5:17: warning: this target is nobody: "group:empty" has no members
    5 |     {"target": ["group:empty", "tag:key", "*"], "attr": ["a"]},
      |                 ^^^^^^^^^^^^^
p.hujson:6:5: warning: this entry never matches: target is empty
    6 |     {"target": [], "attr": ["b"]},
      |     ^
p.hujson:7:51: warning: nobody gets an address out of 100.100.0.0/25: all of its addresses are reserved
    7 | …et": ["group:a", "tag:key"], "ipPool": ["100.100.0.0/25", "100.100.0.0/23", "100.100.1.0/24"]},
      |                                          ^^^^^^^^^^^^^^^^
p.hujson:7:87: warning: nobody gets an address out of 100.100.1.0/24: all of it is in 100.100.0.0/23, which stands before it
    7 | …": ["100.100.0.0/25", "100.100.0.0/23", "100.100.1.0/24"]},
      |                                          ^^^^^^^^^^^^^^^^
p.hujson:8:43: warning: this target is nobody: "group:empty" has no members
    8 |     {"target": ["10.1.0.9", "100.64.0.1", "group:empty"], "ipPool": ["100.80.0.0/16"]},
      |                                           ^^^^^^^^^^^^^
p.hujson:8:70: warning: nobody gets an address out of 100.80.0.0/16: a node that joins has no address yet, and target names no users or tags
    8 |     {"target": ["10.1.0.9", "100.64.0.1", "group:empty"], "ipPool": ["100.80.0.0/16"]},
      |                                                                      ^^^^^^^^^^^^^^^
p.hujson:9:73: warning: nobody gets an address out of 100.81.0.0/16: the entry in line 7, which comes first, is for all of these nodes
    9 | …e@example.com", "10.1.0.9"], "ipPool": ["100.81.0.0/16", "100.82.0.0/16"]},
      |                                          ^^^^^^^^^^^^^^^
p.hujson:9:90: warning: nobody gets an address out of 100.82.0.0/16: the entry in line 7, which comes first, is for all of these nodes
    9 | …10.1.0.9"], "ipPool": ["100.81.0.0/16", "100.82.0.0/16"]},
      |                                          ^^^^^^^^^^^^^^^
p.hujson:12:49: warning: nobody gets an address out of 100.85.0.0/16: the entry in line 11, which comes first, is for all of these nodes
   12 |     {"target": ["autogroup:member"], "ipPool": ["100.85.0.0/16"]},
      |                                                 ^^^^^^^^^^^^^^^
"##,
    );
}

#[test]
fn a_pool_behind_several_entries_that_decide_together_is_warned_of() {
    warned(
        r##"{
  "tagOwners": {"tag:key": ["autogroup:member"]},
  "nodeAttrs": [
    {"target": ["autogroup:member"], "ipPool": ["100.80.0.0/16"]},
    {"target": ["tag:key"], "ipPool": ["100.81.0.0/16"]},
    {"target": ["alice@example.com", "tag:key"], "ipPool": ["100.82.0.0/16"]},
  ],
}
"##,
        r##"p.hujson:6:61: warning: nobody gets an address out of 100.82.0.0/16: the entries in lines 4 and 5, which come first, are for all of these nodes
    6 |     {"target": ["alice@example.com", "tag:key"], "ipPool": ["100.82.0.0/16"]},
      |                                                             ^^^^^^^^^^^^^^^
"##,
    );
}

#[test]
fn what_depends_on_nodes_is_not_warned_of_before_there_are_any() {
    let text = r#"{
        "hosts": {"db": "10.1.0.9"},
        "tagOwners": {"tag:server": ["autogroup:member"]},
        "acls": [{"action": "accept", "src": ["tag:server"], "dst": ["db:22", "autogroup:internet:*"]}],
    }"#;
    let kinds = |world: &World| -> Vec<String> {
        let report = report_of_warnings(text, world);
        report
            .warnings
            .into_iter()
            .map(|warning| warning.kind)
            .collect()
    };
    assert_eq!(kinds(&World::default()), Vec::<String>::new());
    assert_eq!(kinds(&world()), ["shadowed", "never-matches"]);
}

#[test]
fn rules_are_covered_by_what_the_policy_says_and_not_by_who_is_there() {
    let covered = |first: &str, second: &str| -> Vec<u32> {
        let text = format!(
            r#"{{
                "groups": {{"group:a": ["alice@example.com", "bob@"], "group:b": ["Bob@"]}},
                "tagOwners": {{"tag:a": ["autogroup:member"], "tag:b": ["autogroup:member"]}},
                "acls": [{{"action": "accept", {first}}},
                    {{"action": "accept", {second}}}],
            }}"#
        );
        let warnings = report_of_warnings(&text, &World::default()).warnings;
        let covered = warnings.iter().filter(|warning| warning.kind == "covered");
        covered.map(|warning| warning.line).collect()
    };
    const FIRST: u32 = 4;
    const SECOND: u32 = 5;
    let rule = |src: &str, dst: &str| format!(r#""src": ["{src}"], "dst": ["{dst}"]"#);
    for (wide, narrow, expected) in [
        (("*", "*:*"), ("group:a", "tag:a:22"), true),
        (("*", "*:*"), ("100.64.0.7", "10.0.0.1:22"), true),
        (("*", "*:*"), ("10.0.0.1", "*:22"), false),
        (("autogroup:danger-all", "*:*"), ("10.0.0.1", "*:22"), true),
        (("*", "*:*"), ("autogroup:danger-all", "*:22"), false),
        (("group:a", "tag:a:1-100"), ("bob@", "tag:a:22,80"), true),
        (
            ("group:a", "tag:a:1-100"),
            ("group:b", "tag:a:22,180"),
            false,
        ),
        (("group:a", "tag:a:*"), ("group:b", "tag:a:*"), true),
        (("group:b", "tag:a:*"), ("group:a", "tag:a:*"), false),
        (
            ("autogroup:member", "autogroup:tagged:*"),
            ("bob@", "tag:b:*"),
            true,
        ),
        (("autogroup:tagged", "*:*"), ("bob@", "*:*"), false),
        (
            ("tag:a", "10.0.0.0/8:443"),
            ("tag:a", "10.1.0.0/16:443"),
            true,
        ),
        (
            ("tag:a", "10.1.0.0/16:443"),
            ("tag:a", "10.0.0.0/8:443"),
            false,
        ),
        (("tag:a", "tag:a:443"), ("tag:b", "tag:a:443"), false),
    ] {
        let which = format!("{narrow:?} by {wide:?}");
        let (wide, narrow) = (rule(wide.0, wide.1), rule(narrow.0, narrow.1));
        let behind = covered(&wide, &narrow).contains(&SECOND);
        let before = covered(&narrow, &wide).contains(&FIRST);
        assert_eq!([behind, before], [expected; 2], "{which}");
    }
    let with = |proto: &str| rule("*", "*:*") + &format!(r#", "proto": "{proto}""#);
    let all = rule("*", "*:*");
    for (wide, narrow, expected) in [
        (&all, &with("udp"), true),
        (&all, &with("gre"), false),
        (&with("tcp"), &all, false),
    ] {
        let behind = covered(wide, narrow).contains(&SECOND);
        let before = covered(narrow, wide).contains(&FIRST);
        assert_eq!([behind, before], [expected; 2], "{narrow} by {wide}");
    }
    let same = covered(&with("tcp"), &with("6"));
    assert_eq!(same, [SECOND], "the first of two equals stays");
}

#[test]
fn a_grant_is_covered_if_all_that_it_says_is() {
    let grant =
        |dst: &str, ip: &str| format!(r#"{{"src": ["*"], "dst": ["{dst}"], "ip": [{ip}]}}"#);
    let warned_of = |grants: &[String]| -> Vec<String> {
        let text = format!("{{\"grants\": [\n{}]}}", grants.join(",\n"));
        let warnings = report_of_warnings(&text, &World::default()).warnings;
        let covered = warnings
            .into_iter()
            .filter(|warning| warning.kind == "covered");
        covered
            .map(|warning| format!("{} {}", warning.line, warning.message))
            .collect()
    };
    let both = grant("10.0.0.1", r#""tcp:22", "udp:53""#);
    let (tcp, udp) = (grant("*", r#""tcp:*""#), grant("*", r#""udp:*""#));
    assert_eq!(warned_of(&[both.clone(), tcp.clone()]), [""; 0]);
    assert_eq!(warned_of(&[tcp.clone(), both.clone()]), [""; 0]);
    assert_eq!(
        warned_of(&[tcp, both, udp]),
        ["3 this rule adds nothing: the ones in lines 2, 4 allow all of it"]
    );
}
