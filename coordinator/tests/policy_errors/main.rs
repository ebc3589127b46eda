//! What people see of a policy that is refused or odd: all errors and warnings, each with its line, the place underlined.

#[path = "../support/people.rs"]
mod people;
mod warned;

use std::collections::HashMap;

use lowroad_coordinator::policy::{
    MAX_ERRORS, MAX_WARNINGS, Policy, PolicyErrors, Report, UnknownUsers, World, compile,
    compile_with, warnings,
};
use lowroad_wire::control::NodeId;

use people::{node, user};

/// Alice with node 1, called `laptop`; node 2, called `db`, with tag:server; node 3, a router that announces 10.1.0.0/16, which is
/// approved, and 10.2.0.0/16, which isn't.
fn world() -> World {
    let mut router = node(3, None, &["tag:router"]);
    router.announced = ["10.1.0.0/16", "10.2.0.0/16"]
        .map(|net| net.parse().expect("a prefix"))
        .to_vec();
    router.admin_approved = router.announced[..1].to_vec();
    World {
        users: vec![user(1, "alice@example.com"), user(2, "bob")],
        nodes: vec![
            node(1, Some(1), &[]),
            node(2, None, &["tag:server"]),
            router,
        ],
        ..World::default()
    }
}

fn errors(text: &str) -> PolicyErrors {
    Policy::parse(text)
        .and_then(|policy| compile(&policy, &world()))
        .expect_err("the policy is refused")
}

#[track_caller]
fn refused(text: &str, expected: &str) {
    let shown = Report::of_errors(text, &errors(text)).render("p.hujson", text);
    assert!(shown == expected, "\n{shown}\n  is not\n{expected}");
}

fn report_of_warnings(text: &str, world: &World) -> Report {
    let names = [("laptop", 1), ("db", 2), ("router", 3)];
    let names: HashMap<String, NodeId> =
        names.map(|(name, id)| (name.to_owned(), NodeId(id))).into();
    let policy = Policy::parse(text).expect("a good policy");
    let compiled = compile_with(&policy, world, UnknownUsers::Accept).expect("its tests pass");
    Report::default().with_warnings(text, &warnings(&policy, &compiled, &names))
}

#[track_caller]
fn warned(text: &str, expected: &str) {
    let shown = report_of_warnings(text, &world()).render("p.hujson", text);
    assert!(shown == expected, "\n{shown}\n  is not\n{expected}");
}

#[test]
fn a_mistyped_name_is_shown_in_its_line_with_the_one_that_was_meant() {
    refused(
        r##"{
  // A name that is mistyped.
  "groups": {"group:eng": ["alice@example.com"]},
  "acls": [
    {"action": "accept", "src": ["group:egn"], "dst": ["*:*"]},
  ],
}
"##,
        r##"p.hujson:5:34: error: src "group:egn": group not found; define it in groups
    5 |     {"action": "accept", "src": ["group:egn"], "dst": ["*:*"]},
      |                                  ^^^^^^^^^^^ did you mean "group:eng"?
"##,
    );
}

#[test]
fn all_that_is_wrong_is_shown_at_once_in_the_order_of_the_file() {
    refused(
        r##"{
  "groups": {
    "group:eng": ["alice@example.com", "bob"],
    "group:ops": ["group:eng"],
  },
  "hosts": {"web": "10.0.0.1/8", "db-1": "10.1.0.5"},
  "tagOwners": {"tag:server": ["group:engg"], "tag:1": []},
  "acl": [],
  "acls": [
    {"action": "deny", "src": ["eng", "host"], "dst": ["tag:sever:22", "db1:5432", "web:http"]},
    {"acton": "accept", "src": ["autogroup:members"], "dst": ["*:*"], "proto": "tpc"},
  ],
  "grants": [
    {"src": ["*"], "dst": ["autogroup:self"], "ip": ["tcp"], "app": {"tailscale.com/cap/drives": []}},
  ],
  "autoApprovers": {"routes": {"10.0.0.0": ["tag:routr"]}, "exitNode": "tag:router"},
  "ipsets": {},
  "ssh": [{"action": "acept", "src": ["group:egn", "tag:wbe"], "dst": ["tag:wbe"], "users": ["", "*"], "checkPeriod": "abc"}],
  "nodeAttrs": [{"target": ["tag:wbe", "autogroup:self"], "attr": ["", 1], "ipPool": ["10.0.0.0/8"], "app": {}}],
}
"##,
        r##"p.hujson:3:40: error: "bob" is no user; write an e-mail address or `name@`
    3 |     "group:eng": ["alice@example.com", "bob"],
      |                                        ^^^^^ did you mean "bob@"?
p.hujson:4:19: error: "group:eng" is a group inside a group; list its users instead
    4 |     "group:ops": ["group:eng"],
      |                   ^^^^^^^^^^^
p.hujson:6:20: error: host "10.0.0.1/8" has host bits set; write 10.0.0.0/8
    6 |   "hosts": {"web": "10.0.0.1/8", "db-1": "10.1.0.5"},
      |                    ^^^^^^^^^^^^
p.hujson:7:32: error: tag owner "group:engg": group not found; define it in groups
    7 |   "tagOwners": {"tag:server": ["group:engg"], "tag:1": []},
      |                                ^^^^^^^^^^^^ did you mean "group:eng"?
p.hujson:7:47: error: "tag:1" is no tag; write `tag:name`, the name beginning with a letter
    7 |   "tagOwners": {"tag:server": ["group:engg"], "tag:1": []},
      |                                               ^^^^^^^
p.hujson:8:3: error: the policy has no field "acl"; it may have groups, hosts, tagOwners, acls, grants, autoApprovers, tests, ssh, sshTests, nodeAttrs, randomizeClientPort
    8 |   "acl": [],
      |   ^^^^^ did you mean "acls"?
p.hujson:10:16: error: action "deny" is not supported; write "accept" (what no rule accepts is refused)
   10 |     {"action": "deny", "src": ["eng", "host"], "dst": ["tag:sever:22", "db1:5432", "web:http"]},
      |                ^^^^^^
p.hujson:10:32: error: src "eng": no such host; define it in hosts (a user is written `name@`, a tag `tag:name`, a group `group:name`)
   10 |     {"action": "deny", "src": ["eng", "host"], "dst": ["tag:sever:22", "db1:5432", "web:http"]},
      |                                ^^^^^ did you mean "group:eng"?
p.hujson:10:39: error: src "host": no such host; define it in hosts (a user is written `name@`, a tag `tag:name`, a group `group:name`)
   10 |     {"action": "deny", "src": ["eng", "host"], "dst": ["tag:sever:22", "db1:5432", "web:http"]},
      |                                       ^^^^^^
p.hujson:10:56: error: dst "tag:sever": tag not found; define it in tagOwners
   10 |     {"action": "deny", "src": ["eng", "host"], "dst": ["tag:sever:22", "db1:5432", "web:http"]},
      |                                                        ^^^^^^^^^^^^^^ did you mean "tag:server"?
p.hujson:10:72: error: dst "db1": no such host; define it in hosts (a user is written `name@`, a tag `tag:name`, a group `group:name`)
   10 |     {"action": "deny", "src": ["eng", "host"], "dst": ["tag:sever:22", "db1:5432", "web:http"]},
      |                                                                        ^^^^^^^^^^ did you mean "db-1"?
p.hujson:10:84: error: "http" is no port range; write `*`, `443`, `80,443` or `8000-8100` (0 to 65535)
   10 |     {"action": "deny", "src": ["eng", "host"], "dst": ["tag:sever:22", "db1:5432", "web:http"]},
      |                                                                                    ^^^^^^^^^^
p.hujson:11:5: error: this acl has no "action"; add it
   11 |     {"acton": "accept", "src": ["autogroup:members"], "dst": ["*:*"], "proto": "tpc"},
      |     ^
p.hujson:11:6: error: an acl has no field "acton"; it may have action, proto, src, dst
   11 |     {"acton": "accept", "src": ["autogroup:members"], "dst": ["*:*"], "proto": "tpc"},
      |      ^^^^^^^ did you mean "action"?
p.hujson:11:33: error: src "autogroup:members": no such autogroup; there are member, tagged, self and internet
   11 |     {"acton": "accept", "src": ["autogroup:members"], "dst": ["*:*"], "proto": "tpc"},
      |                                 ^^^^^^^^^^^^^^^^^^^ did you mean "autogroup:member"?
p.hujson:11:80: error: "tpc" is no protocol; write a number from 0 to 255 or one of icmp, igmp, ipv4, ip-in-ip, tcp, egp, igp, udp, gre, esp, ah, ipv6-icmp, sctp, fc
   11 |     {"acton": "accept", "src": ["autogroup:members"], "dst": ["*:*"], "proto": "tpc"},
      |                                                                                ^^^^^ did you mean "tcp"?
p.hujson:14:14: error: autogroup:self can only be reached by users, groups or autogroup:member; put this source into a rule of its own
   14 |     {"src": ["*"], "dst": ["autogroup:self"], "ip": ["tcp"], "app": {"tailscale.com/cap/drives": []}…
      |              ^^^
p.hujson:14:54: error: ip "tcp": write `*`, a port, a range like `8000-8100`, or a protocol with them like `tcp:443` or `icmp:*`
   14 | …"*"], "dst": ["autogroup:self"], "ip": ["tcp"], "app": {"tailscale.com/cap/drives": []}},
      |                                          ^^^^^
p.hujson:14:70: error: capability "tailscale.com/cap/drives" can't be granted; of tailscale.com/cap there are drive, relay, kubernetes, webui, others need a domain of yours
   14 | …utogroup:self"], "ip": ["tcp"], "app": {"tailscale.com/cap/drives": []}},
      |                                          ^^^^^^^^^^^^^^^^^^^^^^^^^^ did you mean "tailscale.com/cap/drive"?
p.hujson:16:45: error: approver "tag:routr": tag not found; define it in tagOwners
   16 |   "autoApprovers": {"routes": {"10.0.0.0": ["tag:routr"]}, "exitNode": "tag:router"},
      |                                             ^^^^^^^^^^^
p.hujson:16:72: error: approvers must be a list: […]
   16 |   "autoApprovers": {"routes": {"10.0.0.0": ["tag:routr"]}, "exitNode": "tag:router"},
      |                                                                        ^^^^^^^^^^^^
p.hujson:17:3: error: "ipsets": not supported yet; write their prefixes into the rules, or give them names in "hosts"
   17 |   "ipsets": {},
      |   ^^^^^^^^
p.hujson:18:22: error: "acept" is no action of ssh rules; write "accept" or "check"
   18 |   "ssh": [{"action": "acept", "src": ["group:egn", "tag:wbe"], "dst": ["tag:wbe"], "users": ["", "*"…
      |                      ^^^^^^^
p.hujson:18:39: error: ssh src "group:egn": group not found; define it in groups
   18 |   "ssh": [{"action": "acept", "src": ["group:egn", "tag:wbe"], "dst": ["tag:wbe"], "users": ["", "*"…
      |                                       ^^^^^^^^^^^ did you mean "group:eng"?
p.hujson:18:52: error: ssh src "tag:wbe": tag not found; define it in tagOwners
   18 | …"action": "acept", "src": ["group:egn", "tag:wbe"], "dst": ["tag:wbe"], "users": ["", "*"], "checkPe…
      |                                          ^^^^^^^^^
p.hujson:18:72: error: ssh dst "tag:wbe": tag not found; define it in tagOwners
   18 | …src": ["group:egn", "tag:wbe"], "dst": ["tag:wbe"], "users": ["", "*"], "checkPeriod": "abc"}],
      |                                          ^^^^^^^^^
p.hujson:18:94: error: "" is no login name; write login names, "root", "autogroup:nonroot" or "localpart:*@domain"
   18 | …ag:wbe"], "dst": ["tag:wbe"], "users": ["", "*"], "checkPeriod": "abc"}],
      |                                          ^^
p.hujson:18:98: error: "*" is no login name; write login names, "root", "autogroup:nonroot" or "localpart:*@domain"
   18 | …be"], "dst": ["tag:wbe"], "users": ["", "*"], "checkPeriod": "abc"}],
      |                                          ^^^
p.hujson:18:119: error: checkPeriod "abc" is no duration; write "always", or like "1h30m", up to "168h"
   18 | …e"], "users": ["", "*"], "checkPeriod": "abc"}],
      |                                          ^^^^^
p.hujson:19:29: error: target "tag:wbe": tag not found; define it in tagOwners
   19 |   "nodeAttrs": [{"target": ["tag:wbe", "autogroup:self"], "attr": ["", 1], "ipPool": ["10.0.0.0/8"],…
      |                             ^^^^^^^^^
p.hujson:19:40: error: nodeAttrs take `*`, users, groups, tags, hosts, addresses, prefixes, autogroup:member, autogroup:tagged, autogroup:owner and autogroup:admin as target
   19 |   "nodeAttrs": [{"target": ["tag:wbe", "autogroup:self"], "attr": ["", 1], "ipPool": ["10.0.0.0/8"],…
      |                                        ^^^^^^^^^^^^^^^^
p.hujson:19:68: error: an attribute without a name; take it out of attr
   19 | …["tag:wbe", "autogroup:self"], "attr": ["", 1], "ipPool": ["10.0.0.0/8"], "app": {}}],
      |                                          ^^
p.hujson:19:72: error: each entry of attr must be a string in double quotes
   19 | …g:wbe", "autogroup:self"], "attr": ["", 1], "ipPool": ["10.0.0.0/8"], "app": {}}],
      |                                          ^
p.hujson:19:87: error: ipPool "10.0.0.0/8": write a prefix inside 100.64.0.0/10 that leaves 100.100.100.0/24 and 100.115.92.0/23 alone
   19 | …oup:self"], "attr": ["", 1], "ipPool": ["10.0.0.0/8"], "app": {}}],
      |                                          ^^^^^^^^^^^^
p.hujson:19:109: error: "app" in nodeAttrs: not supported yet; take this entry out; app connectors don't run here
   19 | …", 1], "ipPool": ["10.0.0.0/8"], "app": {}}],
      |                                          ^
"##,
    );
}

#[test]
fn what_is_no_hujson_is_shown_where_it_ceases_to_be() {
    refused(
        r##"{
  "acls": [
    {"action": "accept" "src": ["*"], "dst": ["*:*"]},
  ],
}
"##,
        r##"p.hujson:3:24: error: Expected comma; correct the HuJSON here
    3 |     {"action": "accept" "src": ["*"], "dst": ["*:*"]},
      |                        ^
"##,
    );
    refused(
        r##"{"acls": [
  {"action": "accept", "src": ["*"], "dst": ["*:*"]}
"##,
        r##"p.hujson:1:10: error: Unterminated array; correct the HuJSON here
    1 | {"acls": [
      |          ^
"##,
    );
}

#[test]
fn unknown_users_and_all_failing_tests_are_shown_together() {
    refused(
        r##"{
  "acls": [{"action": "accept", "src": ["alce@example.com", "bop@", "alice@"], "dst": ["tag:server:22"]}],
  "tagOwners": {"tag:server": ["autogroup:member"]},
  "tests": [
    {"src": "bob@", "accept": ["tag:server:22", "tag:servr:22"], "deny": ["100.64.0.2:80"]},
    {"src": "alice@example.com", "accept": ["tag:server:0"], "proto": "upd"},
    {"src": "alice@example.com", "deny": ["tag:server:23"], "accept": ["tag:server:24"]},
  ],
}
"##,
        r##"p.hujson:2:41: error: "alce@example.com": no such user; create it first, or correct the name
    2 |   "acls": [{"action": "accept", "src": ["alce@example.com", "bop@", "alice@"], "dst": ["tag:server:2…
      |                                         ^^^^^^^^^^^^^^^^^^ did you mean "alice@example.com"?
p.hujson:2:61: error: "bop@": no such user; create it first, or correct the name
    2 | …: "accept", "src": ["alce@example.com", "bop@", "alice@"], "dst": ["tag:server:22"]}],
      |                                          ^^^^^^ did you mean "bob@"?
p.hujson:2:69: error: "alice@": no such user; create it first, or correct the name
    2 | …t", "src": ["alce@example.com", "bop@", "alice@"], "dst": ["tag:server:22"]}],
      |                                          ^^^^^^^^ did you mean "alice@example.com"?
p.hujson:5:32: error: test failed: accept "tag:server:22" from "bob@", but the policy refuses it; correct the rules or the test
    5 |     {"src": "bob@", "accept": ["tag:server:22", "tag:servr:22"], "deny": ["100.64.0.2:80"]},
      |                                ^^^^^^^^^^^^^^^
p.hujson:5:49: error: test destination "tag:servr": tag not found; define it in tagOwners
    5 |     {"src": "bob@", "accept": ["tag:server:22", "tag:servr:22"], "deny": ["100.64.0.2:80"]},
      |                                                 ^^^^^^^^^^^^^^ did you mean "tag:server"?
p.hujson:6:45: error: test destination "tag:server:0": write one port, 1 to 65535
    6 |     {"src": "alice@example.com", "accept": ["tag:server:0"], "proto": "upd"},
      |                                             ^^^^^^^^^^^^^^
p.hujson:6:71: error: test proto "upd": write "tcp", "udp" or a number
    6 |     {"src": "alice@example.com", "accept": ["tag:server:0"], "proto": "upd"},
      |                                                                       ^^^^^
p.hujson:7:72: error: test failed: accept "tag:server:24" from "alice@example.com", but the policy refuses it; correct the rules or the test
    7 |     {"src": "alice@example.com", "deny": ["tag:server:23"], "accept": ["tag:server:24"]},
      |                                                                        ^^^^^^^^^^^^^^^
"##,
    );
}

#[test]
fn unknown_domains_and_roles_and_all_failing_ssh_tests_are_shown_together() {
    refused(
        r##"{
  "tagOwners": {"tag:server": []},
  "grants": [{"src": ["user:*@a.example", "user:*@b.example"], "dst": ["tag:server"], "ip": ["80", "udp:53"]}],
  "nodeAttrs": [{"target": ["autogroup:owner", "autogroup:admin"], "attr": ["x"]}, {"target": ["*"], "ipPool": ["100.70.0.0/16"]}],
  "sshTests": [
    {"src": "bob@", "dst": ["tag:server"], "deny": ["root"]},
    {"src": "alice@example.com", "dst": ["tag:server", "tag:sever"], "accept": ["dev", "", "x"], "deny": ["x"], "check": ["root"]},
    {"src": "alice@example.com", "dst": ["tag:server"], "accept": ["root"]},
  ],
}
"##,
        r##"p.hujson:3:23: error: "a.example" is no domain of this tailnet's users; correct it, or create a user with an e-mail address there
    3 |   "grants": [{"src": ["user:*@a.example", "user:*@b.example"], "dst": ["tag:server"], "ip": ["80", "…
      |                       ^^^^^^^^^^^^^^^^^^
p.hujson:3:43: error: "b.example" is no domain of this tailnet's users; correct it, or create a user with an e-mail address there
    3 | …"grants": [{"src": ["user:*@a.example", "user:*@b.example"], "dst": ["tag:server"], "ip": ["80", "ud…
      |                                          ^^^^^^^^^^^^^^^^^^
p.hujson:4:29: error: target "autogroup:owner": nobody is owner here; give a user that role (`users role NAME owner`), or name users or a group instead
    4 |   "nodeAttrs": [{"target": ["autogroup:owner", "autogroup:admin"], "attr": ["x"]}, {"target": ["*"],…
      |                             ^^^^^^^^^^^^^^^^^
p.hujson:4:48: error: target "autogroup:admin": nobody is admin here; give a user that role (`users role NAME admin`), or name users or a group instead
    4 | …Attrs": [{"target": ["autogroup:owner", "autogroup:admin"], "attr": ["x"]}, {"target": ["*"], "ipPoo…
      |                                          ^^^^^^^^^^^^^^^^^
p.hujson:6:13: error: ssh test src "bob@" is no node of the tailnet; name one that is, or take the test out
    6 |     {"src": "bob@", "dst": ["tag:server"], "deny": ["root"]},
      |             ^^^^^^
p.hujson:7:56: error: ssh test dst "tag:sever": tag not found; define it in tagOwners
    7 | …ice@example.com", "dst": ["tag:server", "tag:sever"], "accept": ["dev", "", "x"], "deny": ["x"], "ch…
      |                                          ^^^^^^^^^^^ did you mean "tag:server"?
p.hujson:7:81: error: ssh test failed: accept "dev" from "alice@example.com" to "tag:server", but the policy refuses it; correct the ssh rules or the test
    7 | …["tag:server", "tag:sever"], "accept": ["dev", "", "x"], "deny": ["x"], "check": ["root"]},
      |                                          ^^^^^
p.hujson:7:88: error: ssh test: a login name can't be empty; take it out
    7 | …erver", "tag:sever"], "accept": ["dev", "", "x"], "deny": ["x"], "check": ["root"]},
      |                                          ^^
p.hujson:7:92: error: ssh test: "x" can't be allowed and denied; take it out of one of them
    7 | …r", "tag:sever"], "accept": ["dev", "", "x"], "deny": ["x"], "check": ["root"]},
      |                                          ^^^
p.hujson:7:123: error: ssh test failed: check "root" from "alice@example.com" to "tag:server", but the policy doesn't check it; correct the ssh rules or the test
    7 | …ev", "", "x"], "deny": ["x"], "check": ["root"]},
      |                                          ^^^^^^
p.hujson:8:68: error: ssh test failed: accept "root" from "alice@example.com" to "tag:server", but the policy refuses it; correct the ssh rules or the test
    8 |     {"src": "alice@example.com", "dst": ["tag:server"], "accept": ["root"]},
      |                                                                    ^^^^^^
"##,
    );
}

#[test]
fn of_very_many_errors_and_warnings_a_hundred_are_shown_and_the_others_counted() {
    let many = |entry: &str| vec![entry; 250].join(",\n");
    let text = format!(
        r#"{{"acls": [{{"action": "accept", "src": ["*"], "dst": [{}]}}]}}"#,
        many(r#""x:1""#)
    );
    let found = errors(&text);
    assert_eq!(
        (found.iter().len(), found.more()),
        (MAX_ERRORS, 250 - MAX_ERRORS)
    );
    let shown = Report::of_errors(&text, &found).render("p", &text);
    assert!(shown.ends_with("\nand 150 more errors\n"), "{shown}");
    let text = format!(
        r#"{{"acls": [{{"action": "accept", "src": ["*"], "dst": ["*:*", {}]}}]}}"#,
        many(r#""10.9.9.9:1""#)
    );
    let report = report_of_warnings(&text, &world());
    assert_eq!(report.warnings.len(), MAX_WARNINGS);
    assert_eq!(report.more_warnings, 250 - MAX_WARNINGS);
    assert_eq!(report.summary(), "250 warnings");
    let strict = report.strict();
    assert!(strict.warnings.is_empty() && strict.summary() == "250 errors");
}
