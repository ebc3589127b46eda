//! Policies made to cost more than they say. The bounds are those of the fuzz target: 100 ms and 64 MB at most.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use lowroad_coordinator::policy::{
    MAX_POLICY, Policy, PolicyErrorKind, Report, UnknownUsers, World, compile_with, warnings,
};

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
            .map(|errors| errors.first().clone())
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
    let errors = Policy::parse(&text).expect_err("too large");
    assert!(errors.first().message.contains("longer than"), "{errors}");
}

/// What this thread has computed for so far, whatever else the machine does.
fn cpu_time() -> Duration {
    let statistics = std::fs::read_to_string("/proc/thread-self/schedstat").expect("proc");
    let nanoseconds = statistics
        .split(' ')
        .next()
        .and_then(|text| text.parse().ok());
    Duration::from_nanos(nanoseconds.expect("the first is a number"))
}

#[test]
fn what_is_said_about_a_hostile_policy_costs_little_and_is_short() {
    let list = |count: usize, entry: &dyn Fn(usize) -> String| {
        let entries: Vec<String> = (0..count).map(entry).collect();
        entries.join(",")
    };
    let acl = |src: &str| format!(r#"{{"action": "accept", "src": [{src}], "dst": ["*:0"]}}"#);
    let long = "x".repeat(150_000);
    // As many wrong names as good ones, all alike.
    let good = list(9000, &|n| format!(r#""tag:server-number-{n}": []"#));
    let wrong = acl(&list(9000, &|n| format!(r#""tag:servre-number-{n}""#)));
    let alike = format!(r#"{{"tagOwners": {{{good}}}, "acls": [{wrong}]}}"#);
    // A long name that each of many messages is about.
    let members = list(90_000, &|_| "1".to_owned());
    let long_group = format!(r#"{{"groups": {{"group:{long}": [{members}]}}}}"#);
    let assertions = list(5000, &|_| r#""100.64.0.1:1""#.to_owned());
    let long_source = format!(
        r#"{{"tagOwners": {{"tag:{long}": []}}, "acls": [],
            "tests": [{{"src": "tag:{long}", "accept": [{assertions}]}}]}}"#
    );
    // Good ones, with many rules that are much alike, and with many owners in a row.
    let rules = list(4000, &|n| {
        acl(&format!(r#""10.0.{}.{}""#, n / 256, n % 256))
    });
    let rules = format!(r#"{{"acls": [{rules}]}}"#);
    let owners = list(9000, &|n| {
        format!(r#""tag:t{n}": ["tag:t{}"]"#, (n + 1) % 9000)
    });
    let owners = format!(r#"{{"tagOwners": {{{owners}}}}}"#);
    for text in [alike, long_group, long_source, rules, owners] {
        let start = cpu_time();
        let checked = Policy::parse(&text).and_then(|policy| {
            let compiled = compile_with(&policy, &World::default(), UnknownUsers::Accept)?;
            Ok(warnings(&policy, &compiled, &HashMap::new()))
        });
        let report = match checked {
            Ok(warnings) => Report::default().with_warnings(&text, &warnings),
            Err(errors) => Report::of_errors(&text, &errors),
        };
        let shown = report.render("p", &text);
        let took = cpu_time() - start;
        println!("{took:?}, {} bytes about {}", shown.len(), text.len());
        let allowed = Duration::from_millis(100) * (text.len() >> 10) as u32;
        assert!(took < allowed, "{took:?}: {}", &text[..100]);
        assert_eq!(report.errors.len() + report.warnings.len(), 100, "{shown}");
        assert!(shown.len() < 200_000, "{}", shown.len());
    }
}
