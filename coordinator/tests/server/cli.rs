//! The built binary, by its command lines.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::SocketAddr,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Child, Command, Output, Stdio},
};

use serde_json::Value;

use crate::client::Client;

pub const BINARY: &str = env!("CARGO_BIN_EXE_lowroad-coordinator");

pub struct Daemon {
    child: Child,
    pub address: SocketAddr,
}

impl Daemon {
    pub fn start(state: &Path, more: &[&str]) -> Self {
        let mut child = serve(state, more).stderr(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut seen = Vec::new();
        for line in lines {
            let line = line.unwrap();
            if let Some(rest) = line.split("listen=").nth(1) {
                let address = rest.split(' ').next().unwrap().parse().unwrap();
                return Self { child, address };
            }
            seen.push(line);
        }
        panic!("the server ended: {seen:#?}");
    }

    pub fn stop(mut self) {
        let pid = libc::pid_t::try_from(self.child.id()).unwrap();
        // SAFETY: a signal to a child that has not been waited for.
        assert_eq!(unsafe { libc::kill(pid, libc::SIGTERM) }, 0);
        assert!(
            self.child.wait().unwrap().success(),
            "SIGTERM is a clean end"
        );
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn serve(state: &Path, more: &[&str]) -> Command {
    let mut command = Command::new(BINARY);
    command
        .args([
            "serve",
            "--listen",
            "127.0.0.1:0",
            "--url",
            "http://127.0.0.1:1",
            "--stun",
            "off",
            "--base-domain",
            "tail.test",
            "--state-dir",
        ])
        .arg(state)
        .args(more);
    command
}

pub fn run(state: &Path, args: &[&str]) -> Output {
    Command::new(BINARY)
        .arg("--state-dir")
        .arg(state)
        .args(args)
        .output()
        .unwrap()
}

pub fn json(state: &Path, args: &[&str]) -> Value {
    let output = run(state, &[&["--json"], args].concat());
    assert!(
        output.status.success(),
        "{args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).unwrap()
}

/// With this as its standard input.
pub fn piped(args: &[&str], input: impl AsRef<[u8]>) -> Output {
    let mut child = Command::new(BINARY)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(input.as_ref()).unwrap();
    drop(stdin);
    child.wait_with_output().unwrap()
}

/// What a command fails with that refuses a policy.
pub fn complaint(output: &Output) -> String {
    assert!(!output.status.success(), "{output:?}");
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// The one line that a command fails with.
pub fn failure(output: &Output) -> String {
    assert!(!output.status.success());
    let text = String::from_utf8_lossy(&output.stderr)
        .trim_end()
        .to_owned();
    assert!(
        text.starts_with("lowroad-coordinator: ") && !text.contains('\n'),
        "one line: {text}"
    );
    text
}

#[tokio::test]
async fn the_commands_of_the_interop_lab_work() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let daemon = Daemon::start(&state, &[]);
    let key = json(
        &state,
        &[
            "auth-keys",
            "create",
            "--user",
            "lab",
            "--reusable",
            "--expiry",
            "24h",
            "--tags",
            "tag:router",
        ],
    );
    let key = key["key"].as_str().unwrap();
    let mut router = Client::new(daemon.address, "b").await;
    router.hostinfo.routable_ips = vec![
        "10.77.0.0/24".parse().unwrap(),
        "0.0.0.0/0".parse().unwrap(),
        "::/0".parse().unwrap(),
    ];
    assert!(router.register(Some(key)).await.unwrap().machine_authorized);
    let node = json(
        &state,
        &[
            "nodes",
            "approve-routes",
            "b",
            "--routes",
            "0.0.0.0/0,::/0,10.77.0.0/24",
        ],
    );
    assert_eq!(node["approvedRoutes"].as_array().unwrap().len(), 3);
    let policy = dir.path().join("policy.hujson");
    std::fs::write(&policy, "{\n  // comment\n  \"tagOwners\": {\"tag:router\": []},\n  \"acls\": [{\"action\": \"accept\", \"src\": [\"*\"], \"dst\": [\"*:*\"]}],\n}\n").unwrap();
    json(&state, &["policy", "check", policy.to_str().unwrap()]);
    json(&state, &["policy", "set", policy.to_str().unwrap()]);
    let got = run(&state, &["policy", "get"]);
    assert_eq!(got.stdout, std::fs::read(&policy).unwrap());
    assert_eq!(
        json(&state, &["nodes", "list"]).as_array().unwrap().len(),
        1
    );
    assert_eq!(
        json(&state, &["nodes", "show", "100.64.0.1"])["givenName"],
        "b"
    );
    let expire = |more: &[&str]| json(&state, &[&["nodes", "expire", "b"], more].concat());
    let later = expire(&["--at", "2999-01-01T00:00:00+01:00"]);
    assert_eq!(later["expiry"], "2998-12-31T23:00:00Z");
    assert_eq!(expire(&["--never"])["expiry"], Value::Null);
    let shown = run(
        &state,
        &["nodes", "expire", "b", "--at", "2999-01-01T00:00:00Z"],
    );
    assert_eq!(
        String::from_utf8(shown.stdout).unwrap(),
        "the key of node b (1) ends at 2999-01-01T00:00:00Z\n"
    );
    assert_eq!(expire(&[])["expired"], true);
    json(&state, &["nodes", "delete", "1"]);
    json(
        &state,
        &[
            "users",
            "create",
            "alice@example.com",
            "--display-name",
            "Alice",
        ],
    );
    assert_eq!(
        json(&state, &["users", "list"]).as_array().unwrap().len(),
        2
    );
    let owner = json(&state, &["users", "role", "alice@example.com", "owner"]);
    assert_eq!(owner["role"], "owner");
    json(&state, &["auth-keys", "expire", "1"]);
    assert_eq!(json(&state, &["auth-keys", "list"])[0]["expired"], true);
    daemon.stop();
}

#[test]
fn what_the_server_keeps_is_closed_to_others() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("deep").join("x".repeat(120)).join("state");
    let daemon = Daemon::start(&state, &[]);
    json(&state, &["users", "create", "a"]);
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&state), 0o700);
    for entry in std::fs::read_dir(&state).unwrap() {
        let path = entry.unwrap().path();
        assert_eq!(mode(&path), 0o600, "{}", path.display());
    }
    daemon.stop();
}

#[test]
fn failures_are_one_line_that_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    assert!(failure(&run(&state, &["nodes", "list"])).contains("serve"));
    assert!(
        failure(
            &Command::new(BINARY)
                .args(["serve", "--state-dir"])
                .arg(&state)
                .output()
                .unwrap()
        )
        .contains("--url")
    );
    let daemon = Daemon::start(&state, &[]);
    for (args, says) in [
        (&["nodes", "show", "nobody"][..], "nodes list"),
        (&["nodes", "approve", "0", "--user", "a"], "login page"),
        (&["nodes", "expire", "nobody", "--never"], "nodes list"),
        (&["auth-keys", "expire", "7"], "auth-keys list"),
        (&["auth-keys", "create", "--user", "a b"], "letters"),
        (
            &["auth-keys", "create", "--user", "a", "--tags", "1"],
            "tag:name",
        ),
        (&["users", "delete", "nobody"], "users list"),
        (&["policy", "set", "/nonexistent"], "/nonexistent"),
    ] {
        let text = failure(&run(&state, args));
        assert!(text.contains(says), "{args:?}: {text}");
    }
    assert!(failure(&serve(&state, &[]).output().unwrap()).contains("another coordinator"));
    let taken = daemon.address.to_string();
    let other = dir.path().join("other");
    let output = Command::new(BINARY)
        .args([
            "serve",
            "--url",
            "http://h",
            "--stun",
            "off",
            "--listen",
            &taken,
            "--state-dir",
        ])
        .arg(&other)
        .output();
    assert!(
        String::from_utf8_lossy(&output.unwrap().stderr).contains(&format!("listen on {taken}"))
    );
    daemon.stop();
    std::fs::write(state.join("coordinator.sqlite"), "this is no database").unwrap();
    assert!(failure(&serve(&state, &[]).output().unwrap()).contains("coordinator.sqlite"));
}

#[test]
fn a_policy_file_is_loaded_when_it_has_changed_and_a_bad_one_refuses_to_start() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let file = dir.path().join("p.hujson");
    let seed = ["--policy", file.to_str().unwrap()];
    let policy = || String::from_utf8(run(&state, &["policy", "get"]).stdout).unwrap();
    std::fs::write(&file, "{\"acls\": []}\n").unwrap();
    let daemon = Daemon::start(&state, &seed);
    assert_eq!(policy(), "{\"acls\": []}\n");
    let other = dir.path().join("other.hujson");
    std::fs::write(&other, "{\"grants\": []}\n").unwrap();
    assert!(
        run(&state, &["policy", "set", other.to_str().unwrap()])
            .status
            .success()
    );
    daemon.stop();
    let daemon = Daemon::start(&state, &seed);
    assert_eq!(
        policy(),
        "{\"grants\": []}\n",
        "the file has not changed since it was loaded"
    );
    daemon.stop();
    std::fs::write(
        &file,
        "{\n  \"acls\": [\n    {\"action\": \"deny\"}\n  ]\n}\n",
    )
    .unwrap();
    let output = serve(&state, &seed).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        !output.status.success() && text.contains("p.hujson:3:"),
        "{text}"
    );
    std::fs::write(&file, "{\"acls\": [],}\n").unwrap();
    let daemon = Daemon::start(&state, &seed);
    assert_eq!(policy(), "{\"acls\": [],}\n");
    daemon.stop();
}

#[test]
fn a_stored_policy_that_is_refused_is_replaced_by_a_policy_file_and_else_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let file = dir.path().join("p.hujson");
    let seed = ["--policy", file.to_str().unwrap()];
    std::fs::write(&file, "{\"acls\": []}\n").unwrap();
    Daemon::start(&state, &seed).stop();
    // As if an earlier version had taken it.
    let database = rusqlite::Connection::open(state.join("coordinator.sqlite")).unwrap();
    let changed = database.execute("UPDATE policies SET text = '{\"acls\": 5}'", []);
    assert_eq!(changed.unwrap(), 1);
    drop(database);
    let output = serve(&state, &[]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    let expected = r#"lowroad-coordinator: the stored policy is refused, start with --policy FILE to replace it: 1 error
(stored policy):1:10: error: acls must be a list: […]
    1 | {"acls": 5}
      |          ^
"#;
    assert!(
        !output.status.success() && text.ends_with(expected),
        "{text}"
    );
    // Although the file is the one that was loaded last.
    let daemon = Daemon::start(&state, &seed);
    let policy = run(&state, &["policy", "get"]).stdout;
    assert_eq!(String::from_utf8(policy).unwrap(), "{\"acls\": []}\n");
    daemon.stop();
}
