//! Policies made to cost more than they say. The bounds are those of the fuzz target: 100 ms and 64 MB at most.

use std::time::{Duration, Instant};

use lowroad_coordinator::policy::{MAX_POLICY, Policy, PolicyErrorKind};

#[test]
fn a_grant_that_stands_for_millions_of_pairs_is_refused() {
    let list = |entry: fn(usize) -> String| (1..2000).map(entry).collect::<Vec<_>>().join(",");
    let grant = |src: &str, dst: &str, ip: &str| {
        format!(r#"{{"src": [{src}], "dst": [{dst}], "ip": [{ip}]}}"#)
    };
    let pairs = grant(
        r#""*""#,
        &list(|_| r#""*""#.into()),
        &list(|port| format!("\"tcp:{port}\"")),
    );
    let copies = grant(
        &list(|_| r#""*""#.into()),
        r#""*""#,
        &list(|n| format!("\"{}:*\"", n % 256)),
    );
    let few = grant(r#""*""#, r#""*", "10.0.0.1""#, r#""tcp:22", "udp:53""#);
    for (refused, grants) in [
        (true, pairs),
        (true, copies),
        (false, vec![few.clone(); 200].join(",")),
    ] {
        let parsed = Policy::parse(&format!("{{\"grants\": [{grants}]}}"));
        let error = parsed
            .err()
            .map(|error| (error.kind, error.line, error.column));
        let place = (PolicyErrorKind::Invalid, 1, 13);
        assert_eq!(error, refused.then_some(place));
    }
}

#[test]
fn a_policy_in_one_line_costs_no_more_than_one_in_many() {
    let fastest = |separator: &str| {
        let sources = vec!["\"*\""; 80_000].join(separator);
        let text =
            format!(r#"{{"acls": [{{"action": "accept", "src": [{sources}], "dst": ["*:*"]}}]}}"#);
        let time = || {
            let start = Instant::now();
            Policy::parse(&text).expect("it is a good policy");
            start.elapsed()
        };
        (0..3).map(|_| time()).min().expect("three")
    };
    let (one, many) = (fastest(", "), fastest(",\n"));
    assert!(
        one < 4 * many + Duration::from_millis(20),
        "{one:?} against {many:?}"
    );
}

#[test]
fn a_large_file_is_refused_unread() {
    let text = format!("{{{}}}", " ".repeat(MAX_POLICY));
    let error = Policy::parse(&text).expect_err("too large");
    assert!(error.message.contains("longer than"), "{error}");
}
