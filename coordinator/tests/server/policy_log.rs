//! Versions of the policy, by the built binary.

use std::path::{Path, PathBuf};

use hyper::StatusCode;
use lowroad_coordinator::{
    Error,
    admin::api::{Ask, Signature},
    model::{Basis, VersionNumber},
};
use serde_json::Value;

use crate::{
    cli::{Daemon, failure, json, run},
    lab::Lab as Server,
};

const CLOSED: &str = "{\"acls\": []}\n";
const OPEN: &str = "{\"acls\": [{\"action\": \"accept\", \"src\": [\"*\"], \"dst\": [\"*:*\"]}]}\n";

struct Lab {
    dir: tempfile::TempDir,
}

impl Lab {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
        }
    }

    fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    fn file(&self, text: &str) -> String {
        let file = self.dir.path().join("p.hujson");
        std::fs::write(&file, text).unwrap();
        file.to_str().unwrap().to_owned()
    }

    fn set(&self, text: &str, more: &[&str]) -> Value {
        let file = self.file(text);
        json(&self.state(), &[&["policy", "set", &file], more].concat())
    }

    fn log(&self) -> Vec<Value> {
        let log = json(&self.state(), &["policy", "log"]);
        log.as_array().unwrap().clone()
    }

    fn get(&self, more: &[&str]) -> String {
        let output = run(&self.state(), &[&["policy", "get"], more].concat());
        String::from_utf8(output.stdout).unwrap()
    }
}

/// What the host calls the account that runs this.
fn own_account() -> String {
    let output = std::process::Command::new("id")
        .arg("-un")
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[test]
fn every_version_is_kept_with_author_and_time_over_a_restart() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab.state(), &[]);
    assert!(lab.log().is_empty());
    assert_eq!(lab.set(CLOSED, &[])["version"], 1);
    let second = lab.set(OPEN, &["--author", "alice", "-m", "let them in"]);
    assert_eq!(
        (&second["version"], &second["changed"]),
        (&2.into(), &true.into())
    );
    let again = lab.set(OPEN, &["-m", "again"]);
    assert_eq!(
        (&again["version"], &again["changed"]),
        (&2.into(), &false.into())
    );
    let log = lab.log();
    daemon.stop();
    let daemon = Daemon::start(&lab.state(), &[]);
    assert_eq!(lab.log(), log, "as before the restart");
    let [newest, oldest] = log.as_slice() else {
        panic!("{log:?}");
    };
    assert_eq!(newest["author"], "alice");
    assert_eq!(newest["message"], "let them in");
    assert_eq!(newest["size"], OPEN.len());
    assert_eq!(newest["account"], own_account());
    assert_eq!(
        (&newest["inForce"], &oldest["inForce"]),
        (&true.into(), &false.into())
    );
    assert_eq!(oldest["author"], own_account());
    assert!(newest["createdAt"].as_str() > oldest["createdAt"].as_str());
    assert_eq!(lab.get(&["--version", "1"]), CLOSED);
    assert_eq!(lab.get(&[]), OPEN);
    let text = run(&lab.state(), &["policy", "log"]).stdout;
    let text = String::from_utf8(text).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[0].starts_with("VERSION  SINCE"), "{text}");
    let account = own_account();
    assert!(lines[1].contains(&format!("alice ({account})")), "{text}");
    assert!(lines[1].ends_with("let them in"), "{text}");
    daemon.stop();
}

#[test]
fn a_rollback_becomes_a_new_version_and_is_checked_like_any_other() {
    let lab = Lab::new();
    let state = lab.state();
    let daemon = Daemon::start(&state, &[]);
    json(&state, &["users", "create", "bob"]);
    let of_bob = "{\"groups\": {\"group:a\": [\"bob@\"]}, \"acls\": []}\n";
    lab.set(of_bob, &[]);
    lab.set(CLOSED, &[]);
    let back = json(&state, &["policy", "rollback", "1", "-m", "bob is back"]);
    assert_eq!(
        (&back["version"], &back["changed"]),
        (&3.into(), &true.into())
    );
    assert_eq!(lab.get(&[]), of_bob);
    assert_eq!(
        lab.log()[0]["message"],
        "rollback to version 1: bob is back"
    );
    let same = json(&state, &["policy", "rollback", "1"]);
    assert_eq!(
        (&same["version"], &same["changed"]),
        (&3.into(), &false.into())
    );
    json(&state, &["policy", "rollback", "2"]);
    json(&state, &["users", "delete", "bob"]);
    let refused = run(&state, &["policy", "rollback", "1"]);
    let text = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && text.contains("version 1 is refused: 1 error\n"));
    assert!(
        text.contains("version 1:1:") && text.contains("no such user"),
        "{text}"
    );
    // The server keeps the line that is shown.
    assert!(
        text.contains("\n    1 | {") && text.trim_end().ends_with("^^^^^^"),
        "{text}"
    );
    assert_eq!(lab.get(&[]), CLOSED, "the refused one changed nothing");
    for args in [
        &["policy", "rollback", "9"][..],
        &["policy", "get", "--version", "9"],
    ] {
        let text = failure(&run(&state, args));
        assert!(
            text.contains("no version 9") && text.contains("policy log"),
            "{text}"
        );
    }
    daemon.stop();
}

#[tokio::test]
async fn a_policy_made_from_one_that_is_gone_is_refused() {
    let server = Server::new().await;
    let set = async |text: &str, based_on: Option<Basis>| {
        let set = Ask::PolicySet {
            text: text.to_owned(),
            signature: Signature::default(),
            based_on,
        };
        match server.ask(set).await {
            Ok(answer) => Ok(answer["version"].as_i64().unwrap()),
            Err(Error::Refused { status, .. }) => Err(status),
            Err(other) => panic!("{other}"),
        }
    };
    let of = |version| Some(Basis::Version(VersionNumber(version)));
    let gone = Err(StatusCode::CONFLICT);
    assert_eq!(set(CLOSED, of(1)).await, gone);
    assert_eq!(set(CLOSED, Some(Basis::NoPolicy)).await, Ok(1));
    assert_eq!(set(OPEN, Some(Basis::NoPolicy)).await, gone);
    assert_eq!(set(OPEN, of(1)).await, Ok(2));
    assert_eq!(set(CLOSED, of(1)).await, gone);
    assert_eq!(set(OPEN, of(1)).await, gone, "whatever its text");
    assert_eq!(set(CLOSED, None).await, Ok(3));
    assert_eq!(set(OPEN, of(2)).await, gone);
}

#[test]
fn the_author_of_a_seed_is_its_file() {
    let lab = Lab::new();
    let file = lab.file(CLOSED);
    let seed = ["--policy", &*file];
    Daemon::start(&lab.state(), &seed).stop();
    let daemon = Daemon::start(&lab.state(), &seed);
    let log = lab.log();
    assert_eq!(log.len(), 1, "loaded once");
    assert_eq!(log[0]["author"], format!("--policy {file}"));
    daemon.stop();
}

#[test]
fn a_database_from_before_there_were_versions_keeps_its_policy_as_version_1() {
    let lab = Lab::new();
    std::fs::create_dir(lab.state()).unwrap();
    first_schema(&lab.state().join("coordinator.sqlite"), CLOSED);
    let daemon = Daemon::start(&lab.state(), &[]);
    assert_eq!(lab.get(&[]), CLOSED);
    let log = lab.log();
    assert_eq!((log.len(), &log[0]["version"]), (1, &1.into()));
    let users = json(&lab.state(), &["users", "list"]);
    assert_eq!(users[0]["name"], "alice");
    assert_eq!(users[0]["role"], "member");
    assert_eq!(lab.set(OPEN, &[])["version"], 2);
    daemon.stop();
}

/// As version 0.1 of 2026-11 left it.
fn first_schema(path: &Path, policy: &str) {
    let database = rusqlite::Connection::open(path).unwrap();
    database
        .execute_batch(include_str!("first_schema.sql"))
        .unwrap();
    let inserted = database.execute("INSERT INTO settings VALUES ('policy', ?1)", [policy]);
    assert_eq!(inserted.unwrap(), 1);
}
