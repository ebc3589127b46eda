//! `policy diff`, `explain` and `why`, by the built binary, with nodes that joined.

use std::path::Path;

use serde_json::Value;

use crate::{
    cli::{Daemon, failure, json, run},
    client::Client,
};

const OLD: &str = r#"{
    "tagOwners": {"tag:db": []},
    "acls": [{"action": "accept", "proto": "tcp", "src": ["alice@"], "dst": ["tag:db:5432"]}],
}
"#;
const NEW: &str = r#"{
    "tagOwners": {"tag:db": []},
    "acls": [
        // Now for two ports.
        {"action": "accept", "proto": "tcp", "src": ["alice@"], "dst": ["tag:db:5432,22"]},
        {"action": "accept", "proto": "tcp", "src": ["tag:db"], "dst": ["tag:db:7000"]},
    ],
    "ssh": [{"action": "accept", "src": ["alice@"], "dst": ["tag:db"], "users": ["root", "postgres"]}],
}
"#;

async fn join(daemon: &Daemon, state: &Path, name: &str, user: &str, tags: &str) {
    let key = json(
        state,
        &["auth-keys", "create", "--user", user, "--tags", tags],
    );
    let mut client = Client::new(daemon.address, name).await;
    let key = key["key"].as_str();
    assert!(client.register(key).await.unwrap().machine_authorized);
}

fn text(state: &Path, args: &[&str]) -> String {
    let output = run(state, args);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

fn names(list: &Value) -> Vec<&str> {
    let names = list.as_array().unwrap().iter();
    names.map(|name| name.as_str().unwrap()).collect()
}

#[tokio::test]
async fn a_policy_is_seen_before_it_is_set_and_explained_after() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (old, new) = (file("old.hujson", OLD), file("new.hujson", NEW));
    let daemon = Daemon::start(&state, &[]);
    join(&daemon, &state, "laptop", "alice", "").await;
    join(&daemon, &state, "db1", "lab", "tag:db").await;
    join(&daemon, &state, "db2", "lab", "tag:db").await;
    json(&state, &["policy", "set", &old]);

    let diff = json(&state, &["policy", "diff", &new]);
    assert_eq!(
        (&diff["differs"], &diff["nodes"], &diff["against"]),
        (&true.into(), &3.into(), &1.into())
    );
    assert_eq!(
        (&diff["openedPairs"], &diff["closedPairs"]),
        (&4.into(), &0.into())
    );
    let changes = diff["changes"].as_array().unwrap();
    let [laptop, databases] = changes.as_slice() else {
        panic!("{changes:#?}");
    };
    assert_eq!(names(&laptop["from"]["nodes"]), ["laptop"]);
    assert_eq!(names(&laptop["to"]["nodes"]), ["db1", "db2"]);
    assert_eq!(laptop["to"]["label"], "tag:db");
    assert_eq!(names(&laptop["access"]), ["tcp:22"]);
    assert_eq!(names(&databases["access"]), ["tcp:7000"]);
    let shown = text(&state, &["policy", "diff", &new]);
    assert!(shown.contains("Opens:\n"), "{shown}");
    assert!(
        shown.contains("  laptop → tag:db (2 nodes): tcp:22\n"),
        "{shown}"
    );
    assert!(!shown.contains("Closes:"), "{shown}");
    let code = |args: &[&str]| run(&state, args).status.code();
    assert_eq!(code(&["policy", "diff", &new]), Some(0));
    assert_eq!(code(&["policy", "diff", "--exit-code", &new]), Some(1));
    assert_eq!(code(&["policy", "diff", "--exit-code", &old]), Some(0));
    assert_eq!(
        code(&["policy", "diff", "--exit-code", "/nonexistent"]),
        Some(2)
    );
    assert!(
        text(&state, &["policy", "diff", &old])
            .starts_with("Who reaches whom, and logs in where, stays the same for the 3 nodes")
    );
    let bad = file("bad.hujson", "{\n  \"acls\": 5}\n");
    let refused = run(&state, &["policy", "diff", &bad]);
    let shown = String::from_utf8_lossy(&refused.stderr);
    assert!(
        !refused.status.success() && shown.contains("bad.hujson:2:11"),
        "{shown}"
    );

    json(&state, &["policy", "set", &new]);
    let back = json(&state, &["policy", "diff", "--version", "1"]);
    assert_eq!(
        (&back["openedPairs"], &back["closedPairs"]),
        (&0.into(), &4.into())
    );

    let explained = json(&state, &["policy", "explain", "db1"]);
    let [from_laptop, from_databases] = explained["receives"].as_array().unwrap().as_slice() else {
        panic!("{explained:#}");
    };
    assert_eq!(names(&from_laptop["fromNodes"]), ["laptop"]);
    assert_eq!(from_laptop["rule"]["line"], 5);
    let rule = from_laptop["rule"]["text"].as_str().unwrap();
    assert!(rule.contains("tag:db:5432,22"), "{rule}");
    assert_eq!(names(&from_databases["fromNodes"]), ["db2"]);
    let shown = text(&state, &["policy", "explain", "db1"]);
    assert!(
        shown.contains("  line 5: {\"action\": \"accept\""),
        "{shown}"
    );
    let logins = &explained["loginsHere"][0];
    assert_eq!(names(&logins["fromNodes"]), ["laptop"]);
    assert_eq!(names(&logins["access"]), ["ssh as postgres", "ssh as root"]);
    assert!(
        shown.contains("    laptop: ssh as postgres, ssh as root\n"),
        "{shown}"
    );
    let shown = text(&state, &["policy", "explain", "laptop"]);
    let (_, elsewhere) = shown
        .split_once("Where laptop may log in over SSH:\n  line 8: ")
        .unwrap();
    assert!(
        elsewhere.contains("    → db1, db2: ssh as postgres, ssh as root\n"),
        "{shown}"
    );

    let why = json(&state, &["policy", "why", "laptop", "db1", "22"]);
    assert_eq!(
        (&why["allowed"], &why["outcomes"][0]["rules"][0]["line"]),
        (&true.into(), &5.into())
    );
    let shown = text(&state, &["policy", "why", "laptop", "tag:db", "80"]);
    assert!(shown.contains("allowed for 0 of 2 pairs"), "{shown}");
    assert!(shown.contains("refused: laptop → db2 tcp:80\n"), "{shown}");
    assert!(
        shown.contains("at other ports only: tcp:22,5432\n"),
        "{shown}"
    );
    assert!(shown.contains("  line 5: "), "{shown}");
    let shown = text(&state, &["policy", "why", "db1", "alice", "22/udp"]);
    assert!(shown.contains("none leads to the destination"), "{shown}");
    for (args, says) in [
        (["policy", "why", "nobody", "db1", "22"], "nobody"),
        (["policy", "why", "laptop", "db1", "http"], "53/udp"),
        (["policy", "why", "laptop", "*", "22"], "too much at once"),
    ] {
        let text = failure(&run(&state, &args));
        assert!(text.contains(says), "{text}");
    }
    daemon.stop();
}
