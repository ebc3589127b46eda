//! What rules cost where thousands of nodes stand in that rules or groups tell apart.

use std::net::Ipv6Addr;

use super::sections::{filled, list};
use super::trials::{domain, logins, told_apart};

/// A test about everybody in `group:a`.
fn about_all(sections: &str) -> String {
    format!(
        r#"{{"groups":{{"group:a":[{}]}},"tests":[{{"src":"group:a","deny":["1.1.1.1:1"]}}],"acls":[],{sections}"#,
        told_apart()
    )
}

/// Pairs of tags, each once.
fn pair(number: usize, tags: usize) -> String {
    format!(r#""tag:t{}","tag:t{}""#, number / tags, number % tags)
}

pub(super) fn shapes() -> Vec<(&'static str, String)> {
    let tags = list(81, |n| format!(r#""tag:t{n}":[]"#));
    vec![
        ("attributes of everybody", {
            let users = list(300, |n| format!(r#""u{n}@""#));
            let named = list(300, |n| format!(r#""u{n}@""#));
            filled(
                &format!(
                    r#"{{"groups":{{"group:a":[{users}]}},"tests":[{{"src":"group:a","deny":["1.1.1.1:1"]}}],"acls":[{{"action":"accept","src":[{named}],"dst":["1.1.1.2:1"]}}],"nodeAttrs":[{{"target":["*"],"attr":["#
                ),
                "]}]}",
                |n| format!(r#""{n:x}""#),
            )
        }),
        (
            "attributes of many targets",
            filled(
                &about_all(r#""nodeAttrs":[{"attr":["a"],"target":["#),
                "]}]}",
                |n| format!(r#""{n}@""#),
            ),
        ),
        ("grants to everybody, through pairs of routers", {
            let grant = |n: usize| {
                let via = pair(n, 81);
                format!(r#"{{"src":["*"],"dst":["group:a"],"ip":["1"],"via":[{via}]}}"#)
            };
            filled(
                &about_all(&format!(r#""tagOwners":{{{tags}}},"grants":["#)),
                "]}",
                grant,
            )
        }),
        (
            "grants to prefixes of everybody, through pairs of routers",
            {
                let hosts = list(60, |n| {
                    let around = 0xfd7a_115c_a1e0_ffff_u128 << 64;
                    let net = Ipv6Addr::from_bits(around >> (127 - n) << (127 - n));
                    format!(r#""h{n}":"{net}/{}""#, n + 1)
                });
                let names = list(60, |n| format!(r#""h{n}""#));
                let grants = list(1000, |n| {
                    let via = pair(n, 81);
                    format!(r#"{{"src":["*"],"dst":[{names}],"ip":["1"],"via":[{via}]}}"#)
                });
                about_all(&format!(
                    r#""hosts":{{{hosts}}},"tagOwners":{{{tags}}},"grants":[{grants}]}}"#
                ))
            },
        ),
        (
            "a grant to many addresses through a router, and everybody",
            filled(
                &about_all(
                    r#""tagOwners":{"tag:t":[]},"grants":[{"src":["*"],"ip":["1"],"via":["tag:t"],"dst":["#,
                ),
                "]}]}",
                |n| format!(r#""::{n:x}""#),
            ),
        ),
        (
            "a grant to many users, and everybody",
            filled(
                &about_all(r#""grants":[{"src":["*"],"ip":["1"],"dst":["#),
                "]}]}",
                |n| format!(r#""{}{}@""#, domain(n), n / 17_576),
            ),
        ),
        ("a domain of thousands in many spellings", {
            let users = list(5000, |n| format!(r#""u{n}@abcdefghijklmno""#));
            let spelt = |n: usize| {
                let letters = (0..15).map(|bit| {
                    let letter = b'a' + bit;
                    match n >> bit & 1 {
                        0 => char::from(letter),
                        _ => char::from(letter).to_ascii_uppercase(),
                    }
                });
                letters.collect::<String>()
            };
            filled(
                &format!(
                    r#"{{"groups":{{"group:a":[{users}]}},"tagOwners":{{"tag:t":[{users}]}},"tests":[{{"src":"group:a","deny":["1.1.1.1:1"]}}],"grants":[{{"src":["*"],"ip":["1"],"dst":["#
                ),
                "]}]}",
                |n| format!(r#""user:*@{}""#, spelt(n)),
            )
        }),
        (
            "grants from everybody and an address each",
            about_all(&format!(
                r#""grants":[{}]}}"#,
                list(2500, |n| format!(
                    r#"{{"src":["group:a","::{n:x}"],"dst":["*"],"ip":["1"]}}"#
                ))
            )),
        ),
        ("a rule of one port over and over, to tags told apart", {
            let ports = "1,".repeat(50_000);
            let owners = list(2000, |n| format!(r#""tag:t{n}":[]"#));
            let told_apart = list(2000, |n| format!(r#""tag:t{n}:2""#));
            let accept = list(10_000, |n| format!(r#""tag:t{}:1""#, n % 2000));
            format!(
                r#"{{"tagOwners":{{{owners}}},"acls":[{{"action":"accept","src":["u0@"],"dst":["*:{ports}1",{told_apart}]}}],"tests":[{{"src":"u0@","accept":[{accept}]}}]}}"#
            )
        }),
        ("an ssh test of as many tags as may be", {
            let owners = list(10_000, |n| format!(r#""tag:t{n}":[]"#));
            let tags = list(10_000, |n| format!(r#""tag:t{n}""#));
            format!(
                r#"{{"tagOwners":{{{owners}}},"ssh":[{{"action":"accept","src":["autogroup:tagged"],"dst":[{tags}],"users":["x"]}}],"sshTests":[{{"src":"tag:t0","dst":[{tags}],"accept":["x"]}}]}}"#
            )
        }),
        ("ssh rules of everybody", {
            let rule = r#"{"action":"accept","src":["group:a"],"dst":["tag:t"],"users":["x"]}"#;
            logins(
                &told_apart(),
                &list(1000, |_| rule.to_owned()),
                r#""src":"group:a","dst":["tag:t"]"#,
            )
        }),
    ]
}
