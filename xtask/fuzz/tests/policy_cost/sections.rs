//! Policies of which one section is costly, or two that multiply.

use super::MAX_POLICY;

pub(super) fn shapes() -> Vec<(&'static str, String)> {
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

/// A policy of one section that is as long as fits.
pub(super) fn filled(before: &str, after: &str, entry: impl Fn(usize) -> String) -> String {
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

pub(super) fn list(count: usize, entry: impl Fn(usize) -> String) -> String {
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
