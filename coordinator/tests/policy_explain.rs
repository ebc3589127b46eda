//! `policy why` and `policy explain`: which rule allows what, and what comes nearest to allowing it.

#![expect(clippy::unwrap_used, reason = "a failing helper fails its test")]

#[path = "support/devices.rs"]
mod devices;
#[path = "support/people.rs"]
mod people;

use std::collections::BTreeSet;

use lowroad_coordinator::policy::{
    Clause, CompiledTailnet, NodeFacts, Policy, WhyEnd, WhyProbe, WhyVerdict, World, recompile,
};
use lowroad_wire::control::{NodeId, SshRule};

use devices::alice_and_bob;
use people::{node, user};

const POLICY: &str = r#"{
    "tagOwners": {"tag:db": [], "tag:router": [], "tag:other": []},
    "hosts": {"printer": "10.0.0.9"},
    "grants": [
        {"src": ["tag:db"], "dst": ["10.9.0.0/16"], "ip": ["443"], "via": ["tag:other"]},
        {"src": ["bob@"], "dst": ["tag:db"], "app": {"x.com/cap/a": [1]}},
    ],
    "acls": [
        {"action": "accept", "proto": "tcp", "src": ["alice@"], "dst": ["tag:db:5432"]},
        {   // The office.
            "action": "accept",
            "src": ["alice@"],
            "dst": ["10.0.0.0/8:80", "tag:db:53"],
        },
        {"action": "accept", "src": ["autogroup:member"], "dst": ["autogroup:self:22"]},
        {"action": "accept", "src": ["bob@"], "dst": ["autogroup:internet:*"]},
    ],
}"#;

const GRANT_VIA: u32 = 5;
const GRANT_APP: u32 = 6;
const DB: u32 = 9;
const OFFICE: u32 = 10;
const OWN: u32 = 15;
const INTERNET: u32 = 16;

fn router(id: i64, tags: &[&str], routes: &[&str]) -> NodeFacts {
    let routes: Vec<_> = routes.iter().map(|route| route.parse().unwrap()).collect();
    NodeFacts {
        admin_approved: routes.clone(),
        announced: routes,
        ..node(id, None, tags)
    }
}

/// Alice with 1 and 2, Bob with 3, database 4, router 5 to the office and the internet; 6 announces what nobody approved.
fn world() -> World {
    let exits = ["0.0.0.0/0", "::/0"];
    let mut waiting = router(6, &["tag:router"], &["10.8.0.0/16"]);
    waiting.admin_approved.clear();
    World {
        users: vec![user(1, "alice"), user(2, "bob")],
        nodes: vec![
            node(1, Some(1), &[]),
            node(2, Some(1), &[]),
            node(3, Some(2), &[]),
            node(4, None, &["tag:db"]),
            router(
                5,
                &["tag:router"],
                &["10.0.0.0/16", "10.9.0.0/16", exits[0], exits[1]],
            ),
            waiting,
        ],
        ..World::default()
    }
}

fn compiled() -> (Policy, CompiledTailnet) {
    let policy = Policy::parse(POLICY).unwrap();
    let compiled = recompile(&policy, &world());
    (policy, compiled)
}

fn lines(rules: &[lowroad_coordinator::policy::Origin]) -> Vec<u32> {
    rules
        .iter()
        .map(|origin| origin.rule(POLICY).line)
        .collect()
}

#[test]
fn why_names_the_rules_that_allow_or_that_came_nearest() {
    use WhyVerdict::{
        Allowed, Itself, NoDestination, NoFamily, NoRoute, NoSource, NotThrough, OwnRoute, Port,
        Protocol,
    };
    let (policy, compiled) = compiled();
    let texts = |texts: &[&str]| {
        texts
            .iter()
            .map(|&text| text.to_owned())
            .collect::<Vec<_>>()
    };
    for (from, to, probe, verdict, rules, through) in [
        ("1", "4", "5432", Allowed, &[DB][..], None),
        ("1", "4", "53/udp", Allowed, &[OFFICE], None),
        (
            "1",
            "4",
            "22",
            Port(texts(&["tcp:53,5432", "udp:53", "icmp,ipv6-icmp"])),
            &[DB, OFFICE],
            None,
        ),
        (
            "1",
            "4",
            "gre",
            Protocol(texts(&["tcp:53,5432", "udp:53", "icmp,ipv6-icmp"])),
            &[DB, OFFICE],
            None,
        ),
        ("1", "4", "icmp", Allowed, &[OFFICE], None),
        ("1", "2", "22", Allowed, &[OWN], None),
        (
            "1",
            "2",
            "23",
            Port(texts(&["tcp,udp:22", "icmp,ipv6-icmp"])),
            &[OWN],
            None,
        ),
        ("1", "3", "22", NoDestination, &[DB, OFFICE, OWN], None),
        ("5", "4", "22", NoSource, &[], None),
        ("3", "4", "80", NoDestination, &[OWN, INTERNET], None),
        ("1", "printer", "80", Allowed, &[OFFICE], Some(5)),
        (
            "1",
            "10.0.0.9",
            "81",
            Port(texts(&["tcp,udp:80", "icmp,ipv6-icmp"])),
            &[OFFICE],
            Some(5),
        ),
        ("3", "8.8.8.8", "53/udp", Allowed, &[INTERNET], Some(5)),
        (
            "1",
            "8.8.8.8",
            "53/udp",
            NoDestination,
            &[DB, OFFICE, OWN],
            Some(5),
        ),
        (
            "1",
            "10.8.0.1",
            "80",
            NoRoute(vec![NodeId(6)]),
            &[OFFICE],
            None,
        ),
        ("4", "10.9.0.1", "443", NotThrough, &[GRANT_VIA], Some(5)),
        ("4", "4", "443", Itself, &[], None),
        ("5", "10.0.0.9", "80", OwnRoute, &[], None),
        ("5", "8.8.8.8", "53/udp", OwnRoute, &[], None),
        ("5", "10.8.0.1", "80", NoRoute(vec![NodeId(6)]), &[], None),
        ("5", "100.64.0.77", "80", NoRoute(Vec::new()), &[], None),
        ("4", "100.64.0.4", "443", Itself, &[], None),
        ("10.0.0.9", "fd7a:115c:a1e0::4", "443", NoFamily, &[], None),
    ] {
        let end = |text: &str| match text.parse() {
            Ok(id) => WhyEnd::Node(NodeId(id)),
            Err(_) => policy.ends(&compiled, text).unwrap()[0],
        };
        let why = compiled.why(end(from), end(to), probe.parse().unwrap());
        assert_eq!(why.verdict, verdict, "{from} -> {to} {probe}");
        assert_eq!(lines(&why.rules), rules, "{from} -> {to} {probe}");
        assert_eq!(why.through, through.map(NodeId), "{from} -> {to} {probe}");
    }
    // Without an exit node, there are addresses to which nothing leads.
    let mut world = world();
    world.nodes[4].admin_approved.clear();
    let compiled = recompile(&policy, &world);
    let to = |address: &str| {
        let to = WhyEnd::Address(address.parse().unwrap());
        compiled.why(WhyEnd::Node(NodeId(1)), to, "80".parse().unwrap())
    };
    let waiting = to("10.8.0.1");
    assert_eq!(waiting.verdict, NoRoute(vec![NodeId(5), NodeId(6)]));
    assert_eq!(lines(&waiting.rules), [OFFICE], "the rules would allow it");
    assert!(to("192.168.0.1").rules.is_empty());
}

#[test]
fn a_node_whose_ipv4_is_disabled_has_none_for_anybody() {
    let with_attribute = POLICY.replacen(
        '{',
        r#"{"nodeAttrs": [{"target": ["tag:db"], "attr": ["disable-ipv4"]}],"#,
        1,
    );
    let policy = Policy::parse(&with_attribute).unwrap();
    let mut world = world();
    world.nodes[2].v6 = None;
    let compiled = recompile(&policy, &world);
    let why = |from: &str, to: &str| {
        let end = |text: &str| match text.parse() {
            Ok(id) => WhyEnd::Node(NodeId(id)),
            Err(_) => WhyEnd::Address(text.parse().unwrap()),
        };
        let why = compiled.why(end(from), end(to), "5432".parse().unwrap());
        why.verdict
    };
    let without = WhyVerdict::WithoutV4(vec![NodeId(4)]);
    assert_eq!(why("1", "4"), WhyVerdict::Allowed, "by IPv6");
    assert_eq!(why("1", "fd7a:115c:a1e0::4"), WhyVerdict::Allowed);
    assert_eq!(why("1", "100.64.0.4"), without);
    assert_eq!(why("3", "4"), without, "3 has no IPv6");
    assert_eq!(why("4", "10.9.0.1"), without);
    assert_eq!(why("10.0.0.9", "4"), without);
    assert_eq!(why("3", "fd7a:115c:a1e0::4"), WhyVerdict::NoFamily);
    for id in 1..=6 {
        let explained = compiled.explain(NodeId(id)).unwrap();
        assert_eq!(explained.without_v4, id == 4);
    }
}

#[test]
fn without_a_policy_everything_is_allowed_by_no_rule() {
    let open = recompile(&Policy::allow_all(), &world());
    let why = open.why(
        WhyEnd::Node(NodeId(1)),
        WhyEnd::Node(NodeId(4)),
        "1".parse().unwrap(),
    );
    assert_eq!((why.verdict, why.rules), (WhyVerdict::Allowed, Vec::new()));
}

#[test]
fn ends_are_named_as_policies_name_them() {
    let (policy, compiled) = compiled();
    let ends = |text: &str| policy.ends(&compiled, text);
    let nodes = |ids: &[i64]| {
        ids.iter()
            .map(|&id| WhyEnd::Node(NodeId(id)))
            .collect::<Vec<_>>()
    };
    assert_eq!(ends("alice@").unwrap(), nodes(&[1, 2]));
    assert_eq!(ends("tag:router").unwrap(), nodes(&[5, 6]));
    assert_eq!(ends("autogroup:tagged").unwrap(), nodes(&[4, 5, 6]));
    assert_eq!(
        ends("printer").unwrap(),
        [WhyEnd::Address("10.0.0.9".parse().unwrap())]
    );
    for (wrong, says) in [
        ("tag:other", "names no node"),
        ("*", "too much at once"),
        ("10.0.0.0/8", "too much at once"),
        ("tag:unknown", "tag not found"),
    ] {
        let error = ends(wrong).unwrap_err();
        assert!(error.contains(says), "{error}");
    }
}

#[test]
fn probes_are_a_port_with_or_without_a_protocol() {
    for (text, protocol, port) in [
        ("443", 6, 443),
        ("53/udp", 17, 53),
        ("53/17", 17, 53),
        ("icmp", 1, 0),
        ("*/gre", 47, 0),
    ] {
        assert_eq!(text.parse(), Ok(WhyProbe { protocol, port }));
    }
    for wrong in [
        "",
        "tcp",
        "65536",
        "80/",
        "80/icmp",
        "http",
        "22/tcp/udp",
        "-1",
    ] {
        assert!(wrong.parse::<WhyProbe>().is_err(), "{wrong}");
    }
}

/// `line from-nodes -> to access`.
fn short(clauses: &[Clause]) -> Vec<String> {
    short_of(POLICY, clauses)
}

fn short_of(policy: &str, clauses: &[Clause]) -> Vec<String> {
    let ids = |ids: &[NodeId]| {
        let ids: Vec<String> = ids.iter().map(|id| id.0.to_string()).collect();
        ids.join(",")
    };
    let one = |clause: &Clause| {
        let line = clause.origin.map_or(0, |origin| origin.rule(policy).line);
        let (from, to) = (ids(&clause.from_nodes), clause.to.join(","));
        let to_nodes = ids(&clause.to_nodes);
        format!(
            "{line}: {from} -> {to} [{to_nodes}] {}",
            clause.access.join(" ")
        )
    };
    clauses.iter().map(one).collect()
}

#[test]
fn explain_tells_what_each_rule_means_for_a_node() {
    let (_, compiled) = compiled();
    let database = compiled.explain(NodeId(4)).unwrap();
    let own = "100.64.0.4,fd7a:115c:a1e0::4";
    assert_eq!(
        short(&database.receives),
        [
            format!("{GRANT_APP}: 3 -> {own} [4] x.com/cap/a [1]"),
            format!("{DB}: 1,2 -> {own} [4] tcp:5432"),
            format!("{OFFICE}: 1,2 -> {own} [4] tcp,udp:53 icmp,ipv6-icmp"),
        ]
    );
    assert_eq!(
        short(&database.reaches),
        [format!(
            "{GRANT_VIA}: 4 -> 10.9.0.0/16 [] tcp,udp:443 icmp,ipv6-icmp"
        )]
    );
    let alice = compiled.explain(NodeId(1)).unwrap();
    assert_eq!(
        short(&alice.receives),
        [format!(
            "{OWN}: 2 -> 100.64.0.1,fd7a:115c:a1e0::1 [1] tcp,udp:22 icmp,ipv6-icmp"
        )]
    );
    assert_eq!(
        short(&alice.reaches),
        [
            format!("{DB}: 1 ->  [4] tcp:5432"),
            format!("{OFFICE}: 1 ->  [4] tcp,udp:53 icmp,ipv6-icmp"),
            format!("{OFFICE}: 1 -> 10.0.0.0/8 [5] tcp,udp:80 icmp,ipv6-icmp"),
            format!("{OWN}: 1 ->  [2] tcp,udp:22 icmp,ipv6-icmp"),
        ]
    );
    assert!(compiled.explain(NodeId(99)).is_none());
}

const SSH: &str = r#"{
    "tagOwners": {"tag:db": [], "tag:router": []},
    "ssh": [
        {"action": "accept", "src": ["autogroup:member"], "dst": ["autogroup:self"], "users": ["root", "autogroup:nonroot", "x"]},
        {"action": "accept", "src": ["alice@example.com"], "dst": ["tag:db"], "users": ["b", "a"]},
        {"action": "check", "src": ["autogroup:member", "tag:router"], "dst": ["tag:db"], "users": ["root", "localpart:*@example.com"]},
        {"action": "accept", "src": ["autogroup:member", "tag:router"], "dst": ["tag:db"], "users": ["localpart:*@example.com"]},
    ],
}"#;

/// Alice, who has an address at example.com, with 1 and 2, Bob with 3, database 4, router 5.
fn world_of_logins() -> World {
    let mut world = alice_and_bob();
    world.nodes.push(node(4, None, &["tag:db"]));
    world.nodes.push(node(5, None, &["tag:router"]));
    world.tailnet.domains = vec!["example.com".to_owned()];
    world
}

#[test]
fn explain_tells_who_may_log_in_where_and_by_which_rule() {
    let [own_line, names, check, local_line] = [4, 5, 6, 7];
    let policy = Policy::parse(SSH).unwrap();
    let compiled = recompile(&policy, &world_of_logins());
    let of = |id| compiled.explain(NodeId(id)).unwrap();
    let short = |clauses: &[Clause]| short_of(SSH, clauses);
    let local = "ssh as what stands before @example.com in one's own name";
    let after = "(refused: checks are not done by this server)";
    assert_eq!(
        short(&of(4).logins_here),
        [
            // Who has no address there logs in by none; rules that check come first.
            format!("{check}: 3,5 ->  [4] ssh as root {after}"),
            format!("{check}: 1,2 ->  [4] ssh as root {after} {local} {after}"),
            format!("{names}: 1,2 ->  [4] ssh as a ssh as b"),
            format!("{local_line}: 1,2 ->  [4] {local}"),
        ]
    );
    assert_eq!(of(4).logins_elsewhere, []);
    let own = "ssh as root ssh as any name but root";
    assert_eq!(
        short(&of(1).logins_elsewhere),
        [
            format!("{check}: 1 ->  [2,4] ssh as root {after} {local} {after}"),
            format!("{own_line}: 1 ->  [2] {own}"),
            format!("{names}: 1 ->  [4] ssh as a ssh as b"),
            format!("{local_line}: 1 ->  [2,4] {local}"),
        ],
        "the hosted service sends rules with `localpart:` to their sources as well"
    );
    assert_eq!(
        short(&of(5).logins_elsewhere),
        [format!("{check}: 5 ->  [4] ssh as root {after}")]
    );
    // One device alone is nobody's other device.
    assert_eq!(of(3).logins_here, []);
}

/// Whether a clause tells of a login with this name, of a user whose own name there is `alice`.
fn tells(clause: &Clause, login: &str) -> bool {
    clause.access.iter().any(|text| {
        let text = text.trim_end_matches(" (refused: checks are not done by this server)");
        text == format!("ssh as {login}")
            || (text == "ssh as any name but root" && login != "root")
            || (text.contains("one's own name") && login == "alice")
    })
}

#[test]
fn what_explain_tells_of_logins_is_what_nodes_are_sent() {
    let policy = Policy::parse(SSH).unwrap();
    let compiled = recompile(&policy, &world_of_logins());
    let mut allowed = 0;
    for (to, from) in (1..=5).flat_map(|to| (1..=5).map(move |from| (to, from))) {
        if to == from {
            continue;
        }
        let here = compiled.explain(NodeId(to)).unwrap().logins_here;
        let elsewhere = compiled.explain(NodeId(from)).unwrap().logins_elsewhere;
        let sent = compiled.ssh_for(NodeId(to));
        for login in ["root", "a", "b", "x", "alice", "example"] {
            let is_from = |rule: &&SshRule| {
                let address = format!("100.64.0.{from}");
                rule.principals.iter().any(|one| one.node_ip == address)
            };
            let is_sent = sent.rules.iter().filter(is_from).any(|rule| {
                let users = &rule.ssh_users;
                let local = users.get(login).or_else(|| users.get("*"));
                local.is_some_and(|local| !local.is_empty())
            });
            let told = |clauses: &[Clause], from: i64, to: i64| {
                clauses.iter().any(|clause| {
                    clause.from_nodes.contains(&NodeId(from))
                        && clause.to_nodes.contains(&NodeId(to))
                        && tells(clause, login)
                })
            };
            let what = format!("{login}@{to} from {from}");
            assert_eq!(told(&here, from, to), is_sent, "{what}");
            assert_eq!(told(&elsewhere, from, to), is_sent, "{what}");
            allowed += usize::from(is_sent);
        }
    }
    assert!((10..100).contains(&allowed), "{allowed}");
}

#[test]
fn the_rule_is_shown_as_it_is_written() {
    let (_, compiled) = compiled();
    let router = compiled.explain(NodeId(5)).unwrap();
    let rule = router.receives[0].origin.unwrap().rule(POLICY);
    assert_eq!((rule.line, rule.column, rule.last_line), (OFFICE, 9, 14));
    assert_eq!(
        rule.text,
        r#"{ "action": "accept", "src": ["alice@"], "dst": ["10.0.0.0/8:80", "tag:db:53"], }"#
    );
}

#[test]
fn what_a_node_is_told_to_receive_is_its_packet_filter() {
    let (_, compiled) = compiled();
    for id in 1..=6 {
        let explained = compiled.explain(NodeId(id)).unwrap();
        let told: BTreeSet<(Vec<String>, String)> = explained
            .receives
            .iter()
            .flat_map(|clause| clause.to.iter().map(|to| (clause.from.clone(), to.clone())))
            .collect();
        let filter = compiled.filter_for(NodeId(id));
        let sent: BTreeSet<(Vec<String>, String)> = filter
            .iter()
            .flat_map(|rule| {
                let ports = rule.dst_ports.iter().map(|to| to.ip.clone());
                let grants = rule.cap_grant.iter().flat_map(|grant| &grant.dsts);
                let all = ports.chain(grants.map(|net| net.addr().to_string()));
                all.map(|to| (rule.src_ips.clone(), to)).collect::<Vec<_>>()
            })
            .collect();
        assert_eq!(told, sent, "node {id}");
    }
}
