//! Policies whose `tests` and `sshTests` are costly, most of all with nodes that stand in for users who have none.

use super::MAX_POLICY;
use super::sections::{filled, list};

/// So many users stand in, beside a tag.
const USERS: usize = 9_990;

pub(super) fn shapes() -> Vec<(&'static str, String)> {
    vec![
        ("logins as local parts", {
            let users = list(1000, |n| format!(r#""u@{}""#, domain(n)));
            let rules = list(110, |_| login(r#""group:a""#, r#""localpart:*@e""#));
            logins(&users, &rules, r#""src":"group:a","dst":["tag:t"]"#)
        }),
        ("logins as local parts and many names", {
            let names = list(4000, |n| format!(r#""n{n}""#));
            let rule = login(r#""group:a""#, &format!(r#"{names},"localpart:*@e""#));
            logins(&told_apart(), &rule, r#""src":"group:a","dst":["tag:t"]"#)
        }),
        ("a test of logins to many users", {
            let users = list(USERS, |n| format!(r#""u{n}@""#));
            let rules = list(500, |n| {
                login(&format!(r#""u{n}@""#), r#""x","localpart:*@e""#)
            });
            let rules = format!(
                "{rules},{}",
                login(r#""group:a""#, r#""autogroup:nonroot""#)
            );
            logins(
                &users,
                &rules,
                &format!(r#""src":"group:a","dst":["tag:t",{users}]"#),
            )
        }),
        ("a test of logins with many names, to many users", {
            let names = list(25_000, |n| format!(r#""n{n}""#));
            let users = list(USERS, |n| format!(r#""u{n}@""#));
            let rules = list(500, |n| login(&format!(r#""u{n}@""#), r#""localpart:*@e""#));
            logins(
                r#""u1@""#,
                &rules,
                &format!(r#""src":"group:a","accept":[{names}],"dst":["tag:t",{users}]"#),
            )
        }),
        ("tests of logins from many, to many tags", {
            let rules = list(12, |bit| {
                let tags = (0..2000).filter(|n| n >> bit & 1 == 1);
                let tags = tags.map(|n| format!(r#""tag:a{n}""#)).collect::<Vec<_>>();
                let tags = tags.join(",");
                format!(
                    r#"{{"action":"accept","src":["u0@"],"dst":["tag:t",{tags}],"users":["x"]}}"#
                )
            });
            let tags = list(2000, |n| format!(r#""tag:a{n}""#));
            let owners = list(2000, |n| format!(r#""tag:a{n}":[]"#));
            filled(
                &format!(
                    r#"{{"tagOwners":{{"tag:t":[],{owners}}},"ssh":[{rules}],"sshTests":[{{"src":"u0@","dst":[{tags}],"deny":["root"]}}"#
                ),
                "]}",
                |n| {
                    format!(
                        r#"{}{{"src":"u{n}@","dst":["autogroup:tagged"],"deny":["root"]}}"#,
                        if n == 0 { "," } else { "" }
                    )
                },
            )
        }),
        ("a test of logins to a domain in many spellings", {
            let spelt = |n: usize| {
                let letters = "abcdefghijklmno".chars().enumerate();
                let letters = letters.map(|(at, letter)| match n >> at & 1 {
                    1 => letter.to_ascii_uppercase(),
                    _ => letter,
                });
                format!(r#""user:*@{}""#, letters.collect::<String>())
            };
            let users = list(4000, |n| format!(r#""u{n}@abcdefghijklmno""#));
            let rules = list(500, |n| {
                login(
                    &format!(r#""u{n}@abcdefghijklmno""#),
                    r#""localpart:*@abcdefghijklmno""#,
                )
            });
            let spelt = list(8192, spelt);
            logins(
                &users,
                &rules,
                &format!(r#""src":"group:a","dst":["tag:t",{spelt}]"#),
            )
        }),
        ("a test of logins by all own names, to own devices", {
            let users = list(USERS, |n| format!(r#""u{n}@e""#));
            let names = list(USERS, |n| format!(r#""u{n}""#));
            let text = format!(
                r#"{{"groups":{{"group:a":[{users}]}},"ssh":[{{"action":"accept","src":["group:a"],"dst":["autogroup:self"],"users":["localpart:*@e"]}}],
                    "sshTests":[{{"src":"group:a","deny":["root"],"dst":["group:a","autogroup:member","user:*@e",{users}],"accept":[{names}]}}]}}"#
            );
            text
        }),
        ("a test of many ports behind many rules", {
            let prefixes = list(26, |n| {
                let bits = n as u32 + 7;
                let mask = u32::MAX << (32 - bits);
                let net = std::net::Ipv4Addr::from(0x6440_0003_u32 & mask);
                format!(r#""{net}/{bits}""#)
            });
            let protocols = list(250, |n| format!(r#""{}:*""#, n + 1));
            let grants = list(9, |n| {
                format!(r#"{{"src":["10.0.0.{n}"],"dst":[{prefixes}],"ip":[{protocols}]}}"#)
            });
            filled(
                &format!(
                    r#"{{"hosts":{{"h":"100.64.0.3"}},"grants":[{grants}],"tests":[{{"src":"10.1.0.1","deny":["#
                ),
                "]}]}",
                |n| format!(r#""h:{}""#, n % 65_535 + 1),
            )
        }),
        ("tests of many addresses behind many destinations", {
            let net = |n: usize| format!("1.{}.{}.{}", n >> 16 & 255, n >> 8 & 255, n & 255);
            let dst = list(12_000, |n| format!(r#""{}""#, net(n)));
            let deny = list(8_000, |n| format!(r#""{}:1""#, net(n * 7)));
            format!(
                r#"{{"grants":[{{"src":["10.0.0.1"],"dst":[{dst}],"ip":["1"]}}],"tests":[{{"src":"10.1.0.1","deny":[{deny}]}}]}}"#
            )
        }),
        (
            "a test of logins by everybody told apart, to tags told apart",
            {
                let pick = |count: usize, bit: usize, name: &dyn Fn(usize) -> String| {
                    let those = (0..count).filter(|n| n >> bit & 1 == 1);
                    those.map(name).collect::<Vec<_>>().join(",")
                };
                let user = |n: usize| format!(r#""u{n}@""#);
                let tag = |n: usize| format!(r#""tag:a{n}""#);
                let tags = list(400, tag);
                let from = list(12, |bit| {
                    let src = pick(4000, bit, &user);
                    format!(r#"{{"action":"accept","src":[{src}],"dst":[{tags}],"users":["x"]}}"#)
                });
                let to = list(9, |bit| {
                    let dst = pick(400, bit, &tag);
                    format!(r#"{{"action":"accept","src":["u0@"],"dst":[{dst}],"users":["x"]}}"#)
                });
                let owners = list(400, |n| format!(r#""tag:a{n}":[]"#));
                format!(
                    r#"{{"groups":{{"group:a":[{}]}},"tagOwners":{{{owners}}},"ssh":[{from},{to}],
                    "sshTests":[{{"src":"u0@","dst":[{tags}],"deny":["root"]}},{{"src":"group:a","dst":["autogroup:tagged"],"deny":["root"]}}]}}"#,
                    list(4000, user)
                )
            },
        ),
        ("ssh rules of many sources", {
            let rule = login(&list(35_000, |n| format!(r#""v{n}@""#)), r#""x""#);
            logins(&told_apart(), &rule, r#""src":"group:a","dst":["tag:t"]"#)
        }),
        ("a test of many ports", {
            let dst = list(512, |n| format!(r#""h{n}""#));
            let hosts = list(512, |n| format!(r#""h{n}":"10.0.{}.{}""#, n / 256, n % 256));
            let ip = list(511, |n| format!(r#""{}""#, n * 2 + 2));
            filled(
                &format!(
                    r#"{{"hosts":{{"h":"10.1.0.1",{hosts}}},"grants":[{{"src":["*"],"dst":[{dst}],"ip":[{ip}]}}],"tests":[{{"src":"ann@example.com","deny":["#
                ),
                "]}]}",
                |_| r#""h:1""#.to_owned(),
            )
        }),
        ("a test of many ports, all different", {
            let dst = list(512, |n| format!(r#""h{n}""#));
            let hosts = list(512, |n| format!(r#""h{n}":"10.0.{}.{}""#, n / 256, n % 256));
            let ip = list(511, |n| format!(r#""{}""#, n * 2 + 2));
            let deny = list(32_768, |n| format!(r#""h0:{}""#, n * 2 + 1));
            format!(
                r#"{{"hosts":{{{hosts}}},"grants":[{{"src":["*"],"dst":[{dst}],"ip":[{ip}]}}],"tests":[{{"src":"ann@example.com","deny":[{deny}]}}]}}"#
            )
        }),
        ("a test of everybody's own devices", {
            let users = told_apart();
            filled(
                &format!(
                    r#"{{"groups":{{"group:a":[{users}]}},"grants":[{{"src":["group:a"],"dst":["autogroup:self"],"ip":["*"]}}],"tests":[{{"src":"group:a","deny":["#
                ),
                "]}]}",
                |n| format!(r#""100.64.0.1:{}""#, n + 1),
            )
        }),
        ("a test of users with a grant each", {
            let users = list(9200, |n| format!(r#""u{n}@""#));
            filled(
                &format!(
                    r#"{{"groups":{{"group:a":[{users}]}},"tests":[{{"src":"group:a","deny":["1.1.1.1:1"]}}],"grants":["#
                ),
                "]}",
                |n| {
                    format!(
                        r#"{{"src":["u{n}@"],"dst":["u{n}@"],"ip":["1"]}}"#,
                        n = n % 9200
                    )
                },
            )
        }),
        ("a test of users with a few grants", {
            let users = list(USERS, |n| format!(r#""u{n}@""#));
            let grants = list(700, |n| {
                format!(r#"{{"src":["u{n}@"],"dst":["u{n}@"],"ip":["1"]}}"#)
            });
            // Told apart by all being named.
            format!(
                r#"{{"groups":{{"group:a":[{users}]}},"tagOwners":{{"tag:t":[{users}]}},"tests":[{{"src":"group:a","deny":["1.1.1.1:1"]}}],"grants":[{grants}]}}"#
            )
        }),
        ("a test of users, every other one with each", {
            let users = list(USERS, |n| format!(r#""u{n}@""#));
            let every_other = list(USERS / 2, |n| format!(r#""u{}@""#, n * 2));
            let before = format!(
                r#"{{"groups":{{"group:a":[{users}],"group:b":[{every_other}]}},"tagOwners":{{"tag:t":[{users}]}},"tests":[{{"src":"group:a","deny":["1.1.1.1:1"]}}],"grants":["#
            );
            filled(&before, "]}", |n| {
                format!(
                    r#"{{"src":["group:b","u{n}@"],"dst":["10.1.1.1"],"ip":["1"]}}"#,
                    n = n % USERS
                )
            })
        }),
    ]
}

/// Users whom nothing but the domains of their e-mail addresses tells apart.
pub(super) fn told_apart() -> String {
    list(USERS, |n| format!(r#""u@{}""#, domain(n)))
}

/// Three letters.
pub(super) fn domain(number: usize) -> String {
    let letter = |digit: usize| char::from(b'a' + (digit % 26) as u8);
    [number, number / 26, number / 676]
        .map(letter)
        .iter()
        .collect()
}

fn login(src: &str, users: &str) -> String {
    format!(r#"{{"action":"accept","src":[{src}],"dst":["tag:t"],"users":[{users}]}}"#)
}

/// Who is in a group, rules, and what a test is about in which nobody is root.
pub(super) fn logins(members: &str, rules: &str, test: &str) -> String {
    let text = format!(
        r#"{{"groups":{{"group:a":[{members}]}},"tagOwners":{{"tag:t":[]}},"ssh":[{rules}],"sshTests":[{{{test},"deny":["root"]}}]}}"#
    );
    assert!(text.len() <= MAX_POLICY);
    text
}
