//! Errors and warnings of policies, by the built binary and through the real administration socket.

use std::{path::Path, process::Output};

use serde_json::{Value, json};

use crate::cli::{Daemon, complaint, failure, json as run_json, piped, run, serve};

const GOOD: &str = r#"{
  "groups": {"group:eng": ["alice@example.com"]},
  "acls": [{"action": "accept", "src": ["group:eng"], "dst": ["*:*"]}],
}
"#;

/// Wrong in itself.
const BAD: &str = r#"{
  "groups": {"group:eng": ["alice@example.com"]},
  "acls": [
    {"action": "accept", "src": ["group:egn"], "dst": ["*:*"]},
    {"action": "accept", "src": ["group:eng"], "dst": ["tag:web:80"], "proto": "tpc"},
  ],
}
"#;

/// Wrong about the users that there are, and about itself.
const BAD_HERE: &str = r#"{
  "groups": {"group:eng": ["alise@example.com"]},
  "acls": [{"action": "accept", "src": ["group:eng"], "dst": ["100.64.0.9:22"]}],
  "tests": [{"src": "group:eng", "accept": ["100.64.0.9:80"], "deny": ["100.64.0.9:22"]}],
}
"#;

/// Good, but odd.
const ODD: &str = r#"{
  "groups": {"group:eng": ["alice@example.com"], "group:ops": []},
  "hosts": {"db": "10.0.0.5"},
  "acls": [{"action": "accept", "src": ["group:eng"], "dst": ["*:*"]}],
}
"#;

struct Lab {
    dir: tempfile::TempDir,
    _daemon: Daemon,
}

impl Lab {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let daemon = Daemon::start(&dir.path().join("state"), &[]);
        let lab = Self {
            dir,
            _daemon: daemon,
        };
        run_json(&lab.state(), &["users", "create", "alice@example.com"]);
        lab
    }

    fn state(&self) -> std::path::PathBuf {
        self.dir.path().join("state")
    }

    /// Runs a `policy` command with a file of that text.
    fn policy(&self, command: &[&str], text: &str) -> Output {
        let file = self.dir.path().join("p.hujson");
        std::fs::write(&file, text).unwrap();
        let file = file.to_str().unwrap();
        run(&self.state(), &[&["policy"], command, &[file]].concat())
    }

    fn in_force(&self) -> Vec<u8> {
        run(&self.state(), &["policy", "get"]).stdout
    }
}

/// What was printed, with the file's directory left out.
fn shown(lab: &Lab, output: &[u8]) -> String {
    let directory = format!("{}/", lab.dir.path().display());
    String::from_utf8_lossy(output).replace(&directory, "")
}

#[test]
fn check_and_set_show_every_error_with_its_line_and_the_policy_in_force_stays() {
    let lab = Lab::new();
    assert!(lab.policy(&["set"], GOOD).status.success());
    let expected = r#"lowroad-coordinator: p.hujson is refused: 3 errors
p.hujson:4:34: error: src "group:egn": group not found; define it in groups
    4 |     {"action": "accept", "src": ["group:egn"], "dst": ["*:*"]},
      |                                  ^^^^^^^^^^^ did you mean "group:eng"?
p.hujson:5:56: error: dst "tag:web": tag not found; define it in tagOwners
    5 |     {"action": "accept", "src": ["group:eng"], "dst": ["tag:web:80"], "proto": "tpc"},
      |                                                        ^^^^^^^^^^^^
p.hujson:5:80: error: "tpc" is no protocol; write a number from 0 to 255 or one of icmp, igmp, ipv4, ip-in-ip, tcp, egp, igp, udp, gre, esp, ah, ipv6-icmp, sctp, fc
    5 |     {"action": "accept", "src": ["group:eng"], "dst": ["tag:web:80"], "proto": "tpc"},
      |                                                                                ^^^^^ did you mean "tcp"?
"#;
    for command in ["check", "set"] {
        let output = lab.policy(&[command], BAD);
        assert!(!output.status.success());
        assert_eq!(shown(&lab, &output.stderr), expected);
        assert!(output.stdout.is_empty());
    }
    assert_eq!(lab.in_force(), GOOD.as_bytes());
}

#[test]
fn what_only_the_server_knows_comes_through_its_socket_with_the_name_of_the_file() {
    let lab = Lab::new();
    let output = lab.policy(&["set"], BAD_HERE);
    let expected = r#"lowroad-coordinator: p.hujson is refused: 3 errors
p.hujson:2:28: error: "alise@example.com": no such user; create it first, or correct the name
    2 |   "groups": {"group:eng": ["alise@example.com"]},
      |                            ^^^^^^^^^^^^^^^^^^^ did you mean "alice@example.com"?
p.hujson:4:45: error: test failed: accept "100.64.0.9:80" from "group:eng", but the policy refuses it; correct the rules or the test
    4 |   "tests": [{"src": "group:eng", "accept": ["100.64.0.9:80"], "deny": ["100.64.0.9:22"]}],
      |                                             ^^^^^^^^^^^^^^^
p.hujson:4:72: error: test failed: deny "100.64.0.9:22" from "group:eng", but the policy accepts it; correct the rules or the test
    4 |   "tests": [{"src": "group:eng", "accept": ["100.64.0.9:80"], "deny": ["100.64.0.9:22"]}],
      |                                                                        ^^^^^^^^^^^^^^^
"#;
    assert_eq!(shown(&lab, &output.stderr), expected);
}

#[test]
fn json_has_the_same_shape_whether_a_policy_is_good_odd_or_refused() {
    let lab = Lab::new();
    let answer = |command: &[&str], text: &str| -> (bool, Value) {
        let output = lab.policy(&[&["--json"], command].concat(), text);
        let answer = serde_json::from_slice(&output.stdout).unwrap();
        (output.status.success(), answer)
    };
    let (ok, good) = answer(&["check"], GOOD);
    let expected = json!({"ok": true, "errors": [], "warnings": [], "withServer": true});
    assert!(ok);
    assert_eq!(good, expected);
    let (ok, odd) = answer(&["set"], ODD);
    assert!(ok && odd["ok"] == true);
    assert_eq!(odd["warnings"].as_array().unwrap().len(), 2, "{odd:#}");
    assert_eq!(odd["warnings"][0]["kind"], "empty");
    assert_eq!(odd["warnings"][1]["kind"], "unused");
    for text in [BAD, BAD_HERE] {
        let (ok, bad) = answer(&["check"], text);
        assert!(!ok && bad["ok"] == false && bad["warnings"] == json!([]));
        assert_eq!(bad["errors"].as_array().unwrap().len(), 3);
    }
    let (_, bad) = answer(&["set"], BAD);
    let first = json!({
        "line": 4,
        "column": 34,
        "endColumn": 45,
        "kind": "invalid",
        "message": "src \"group:egn\": group not found; define it in groups",
        "suggestion": "group:eng",
        "source": "    {\"action\": \"accept\", \"src\": [\"group:egn\"], \"dst\": [\"*:*\"]},",
    });
    assert_eq!(bad["errors"][0], first);
}

#[test]
fn warnings_refuse_only_if_that_is_asked_for() {
    let lab = Lab::new();
    let warnings = |sort: &str| {
        format!(
            r#"p.hujson:2:50: {sort}: "group:ops" has no members; where it stands, nobody is meant
    2 |   "groups": {{"group:eng": ["alice@example.com"], "group:ops": []}},
      |                                                  ^^^^^^^^^^^
p.hujson:3:13: {sort}: host "db" is defined, but nothing in the policy names it
    3 |   "hosts": {{"db": "10.0.0.5"}},
      |             ^^^^
"#
        )
    };
    for command in ["check", "set"] {
        let output = lab.policy(&[command], ODD);
        assert!(output.status.success());
        assert_eq!(shown(&lab, &output.stderr), warnings("warning"));
    }
    assert_eq!(lab.in_force(), ODD.as_bytes());
    let output = lab.policy(&["check", "--strict"], ODD);
    assert!(!output.status.success());
    let head = "lowroad-coordinator: p.hujson has warnings, and --strict refuses them: 2 errors\n";
    assert_eq!(
        shown(&lab, &output.stderr),
        head.to_owned() + &warnings("error")
    );
    assert!(lab.policy(&["check", "--strict"], GOOD).status.success());
}

#[test]
fn without_a_server_the_text_alone_is_checked_and_warned_of() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("p.hujson");
    let check = |text: &str| {
        std::fs::write(&file, text).unwrap();
        let file = file.to_str().unwrap();
        run(dir.path(), &["policy", "check", "--json", file])
    };
    let answer = |output: &Output| -> Value { serde_json::from_slice(&output.stdout).unwrap() };
    let odd = answer(&check(ODD));
    assert_eq!(odd["withServer"], false);
    assert_eq!(odd["warnings"].as_array().unwrap().len(), 2);
    let bad = check(BAD);
    assert!(!bad.status.success());
    assert_eq!(answer(&bad)["errors"].as_array().unwrap().len(), 3);
}

/// Wrong in what is judged on the compiled policy, whoever is there.
const BAD_ALONE: &str = r#"{
  "groups": {"group:eng": ["alice@example.com"]},
  "acls": [{"action": "accept", "src": ["group:eng"], "dst": ["10.0.0.1:443"]}],
  "tests": [
    {"src": "group:eng", "accept": ["10.0.0.1:22"]},
    {"src": "group:eng", "accept": ["http"]},
    {"src": "group:egn", "deny": ["10.0.0.1:22"]},
  ],
  "sshTests": [{"src": "alice@example.com", "dst": ["autogroup:self"], "accept": ["root"]}],
  "nodeAttrs": [{"target": ["autogroup:owner"], "attr": ["funnel"]}],
}
"#;

#[test]
fn without_a_server_tests_run_and_all_is_found_that_any_server_would_refuse() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("p.hujson");
    std::fs::write(&file, BAD_ALONE).unwrap();
    let shown = file.to_str().unwrap();
    let refused = |command: &[&str]| {
        let output = run(dir.path(), &[&["policy"], command].concat());
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    let check = refused(&["check", shown]);
    assert!(check.contains("is refused: 4 errors\n"), "{check}");
    let edit = "add-rule --src group:eng --dst 10.0.0.2:443 --file";
    let edit: Vec<&str> = edit.split(' ').chain([shown]).collect();
    let edit = refused(&edit);
    assert!(edit.contains("nothing is changed: 4 errors\n"), "{edit}");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), BAD_ALONE);
    for said in [
        "5:37: error: test failed: accept \"10.0.0.1:22\" from \"group:eng\"",
        "6:37: error: destination \"http\" has no port",
        "7:13: error: test src \"group:egn\": group not found",
        "9:83: error: ssh test failed: accept \"root\" from \"alice@example.com\"",
    ] {
        assert!(check.contains(said), "{check}\nlacks {said}");
    }
}

#[test]
fn without_a_server_a_test_is_not_failed_for_nodes_that_nobody_knows_of() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("p.hujson");
    let shown = file.to_str().unwrap();
    let check = |tests: &str| {
        let text = format!(
            r#"{{
                "hosts": {{"db": "100.64.0.2"}},
                "tagOwners": {{"tag:db": ["bob@"]}},
                "acls": [{{"action": "accept", "src": ["bob@"], "dst": ["tag:db:22", "autogroup:internet:*"]}}],
                "ssh": [{{"action": "accept", "src": ["user:*@example.com"], "dst": ["tag:db"], "users": ["dev"]}}],
                {tests}
            }}"#
        );
        std::fs::write(&file, text).unwrap();
        let output = run(dir.path(), &["policy", "check", shown]);
        (output.status.success(), output)
    };
    for good in [
        r#""tests": [{"src": "bob@", "accept": ["tag:db:22", "db:22", "8.8.8.8:443"], "deny": ["db:23"]}]"#,
        r#""tests": [{"src": "100.64.0.1", "accept": ["tag:db:22"]}]"#,
        r#""sshTests": [{"src": "user:*@example.com", "dst": ["tag:db"], "accept": ["dev"], "deny": ["root"]}]"#,
        r#""sshTests": [{"src": "alice@example.com", "dst": ["db"], "accept": ["dev"]}]"#,
    ] {
        let (is_good, output) = check(good);
        assert!(is_good, "{good}: {output:?}");
    }
    for bad in [
        r#""tests": [{"src": "bob@", "accept": ["10.0.0.1:22"]}]"#,
        r#""tests": [{"src": "bob@", "accept": ["tag:db:23"]}]"#,
        r#""tests": [{"src": "bob@", "deny": ["tag:db:22"]}]"#,
        r#""sshTests": [{"src": "user:*@example.com", "dst": ["tag:db"], "accept": ["root"]}]"#,
    ] {
        assert!(!check(bad).0, "{bad}");
    }
}

#[test]
fn a_policy_may_come_from_standard_input_and_is_text() {
    let lab = Lab::new();
    let state = lab.state();
    let ask = |command: &str, input: &[u8]| {
        let state = state.to_str().unwrap();
        let output = piped(&["--state-dir", state, "policy", command, "-"], input);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.success(), error)
    };
    for command in ["check", "set", "diff"] {
        let (ok, error) = ask(command, GOOD.as_bytes());
        assert!(ok, "{command}: {error}");
        let (ok, error) = ask(command, BAD.as_bytes());
        let names_it = error.contains("standard input:5:80: error: \"tpc\"");
        assert!(!ok && names_it, "{command}: {error}");
        let (ok, error) = ask(command, b"{\n  // \xc3\xa9\n  \"\xc3\xa9\xe9\": 1}");
        let names_it = error.contains("standard input:3:5: error: the byte 0xe9 is no UTF-8");
        assert!(!ok && names_it, "{command}: {error}");
    }
    let file = lab.dir.path().join("latin-1.hujson");
    std::fs::write(&file, b"{\"acls\": []} // \xe9").unwrap();
    let file = file.to_str().unwrap();
    for command in [
        &["policy", "check", file][..],
        &["policy", "fmt", file],
        &["policy", "tag", "add", "tag:web", "--file", file],
    ] {
        let error = complaint(&run(&state, command));
        let place = "latin-1.hujson:1:17: error: the byte 0xe9";
        assert!(error.contains(place), "{command:?}: {error}");
    }
    let start = serve(&lab.dir.path().join("other"), &["--policy", file]).output();
    let error = complaint(&start.unwrap());
    assert!(
        error.contains("latin-1.hujson:1:17: error: the byte"),
        "{error}"
    );
    // Nothing but `fmt` writes there.
    let add = ["policy", "tag", "add", "tag:web", "--file", "-"];
    assert!(failure(&run(&state, &add)).contains("read -"));
}

#[test]
fn help_describes_the_files_and_what_may_stand_instead() {
    let dir = tempfile::tempdir().unwrap();
    for command in ["check", "set", "diff"] {
        let help = run(dir.path(), &["policy", command, "--help"]).stdout;
        let help = String::from_utf8(help).unwrap();
        let (_, arguments) = help.split_once("\nArguments:\n").unwrap();
        let described = arguments.contains("Policy file; `-`: standard input");
        assert!(described, "{help}");
    }
    let none = run(dir.path(), &["policy", "diff"]);
    let error = String::from_utf8_lossy(&none.stderr);
    assert!(
        !none.status.success() && error.contains("--version <N>"),
        "{error}"
    );
    let both = run(dir.path(), &["policy", "diff", "x", "--version", "1"]);
    let error = String::from_utf8_lossy(&both.stderr);
    assert!(
        !both.status.success() && error.contains("cannot be used with"),
        "{error}"
    );
}

#[test]
fn a_server_does_not_start_with_a_bad_policy_file_and_shows_all_that_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let (state, file) = (dir.path().join("state"), dir.path().join("p.hujson"));
    let start = |file: &Path| {
        let output = serve(&state, &["--policy", file.to_str().unwrap()]).output();
        output.unwrap()
    };
    std::fs::write(&file, BAD).unwrap();
    let output = start(&file);
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert!(text.contains("p.hujson is refused: 3 errors\n"), "{text}");
    assert!(text.contains("p.hujson:5:80: error: \"tpc\""), "{text}");
    assert!(text.ends_with("^^^^^ did you mean \"tcp\"?\n"), "{text}");
}

#[test]
fn a_policy_file_does_not_steer_the_terminal_through_its_errors() {
    let lab = Lab::new();
    let steering =
        "{\"acls\": [\"\u{9b}2J\u{202e}\"], /* \u{1b}]0;title\u{7} */ \"group\u{9b}s\": {}}";
    let output = lab.policy(&["check"], steering);
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.matches("error: ").count() >= 2, "{text}");
    let steers = |c: char| c != '\n' && lowroad_coordinator::text::is_steering(c);
    assert!(!text.contains(steers), "{text:?}");
}
