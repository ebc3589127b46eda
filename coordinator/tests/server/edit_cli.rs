//! `policy fmt`, `policy add-rule` and `policy tag` of the built binary.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    process::Output,
};

use serde_json::json as value;

use crate::cli::{Daemon, complaint, failure, json, piped, run};

const UGLY: &str = "{ // x\n\"acls\":[ ]}";
const TIDY: &str = "{ // x\n\t\"acls\": [],\n}\n";

fn text(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[test]
fn a_file_is_formatted_in_place_and_standard_input_to_standard_output() {
    let dir = tempfile::tempdir().unwrap();
    let (file, link) = (dir.path().join("p.hujson"), dir.path().join("link"));
    fs::write(&file, UGLY).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o604)).unwrap();
    symlink("p.hujson", &link).unwrap();
    let shown = link.to_str().unwrap();
    let fmt = |more: &[&str]| run(dir.path(), &[&["policy", "fmt", shown], more].concat());

    let unformatted = fmt(&["--check"]);
    assert_eq!(unformatted.status.code(), Some(1));
    assert!(failure(&unformatted).contains(&format!("{shown} is not formatted")));
    assert_eq!(fs::read_to_string(&file).unwrap(), UGLY);

    assert_eq!(text(&fmt(&[])), format!("{shown} formatted\n"));
    assert_eq!(fs::read_to_string(&file).unwrap(), TIDY);
    assert!(link.is_symlink());
    let mode = fs::metadata(&file).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o604);
    assert_eq!(text(&fmt(&["--check"])) + &text(&fmt(&[])), "");
    let answer = json(dir.path(), &["policy", "fmt", shown]);
    assert_eq!(answer, value!({"ok": true, "changed": false}));

    for args in [&["policy", "fmt"][..], &["policy", "fmt", "-"]] {
        assert_eq!(text(&piped(args, UGLY)), TIDY);
    }
    let unformatted = failure(&piped(&["policy", "fmt", "--check", "-"], UGLY));
    assert!(unformatted.contains("standard input is not formatted"));
    fs::write(&file, "{\n\"acls\": [}").unwrap();
    let why = complaint(&fmt(&[]));
    assert!(why.contains(&format!("\n{shown}:2:")) && why.contains("\n    2 | \"acls\""));
    assert_eq!(fs::read_to_string(&file).unwrap(), "{\n\"acls\": [}");
}

#[test]
fn a_file_is_edited_without_a_server_and_a_refused_edit_leaves_it_alone() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("p.hujson");
    let shown = file.to_str().unwrap();
    fs::write(&file, TIDY).unwrap();
    let policy = |line: &str| {
        let args: Vec<&str> = ["policy"].into_iter().chain(line.split(' ')).collect();
        run(dir.path(), &[&args[..], &["--file", shown]].concat())
    };
    let said = text(&policy("tag add web --owner alice@,bob@"));
    assert_eq!(said, format!("{shown}:4: tag:web is changed\n"));
    text(&policy("tag remove tag:web --owner bob@"));
    let said = text(&policy(
        "add-rule --src alice@ --dst tag:web:80,443 --proto tcp",
    ));
    assert_eq!(said, format!("{shown}:3: the rule is added\n"));
    text(&policy(
        "add-rule --grant --src alice@ --dst tag:web --ip icmp:*",
    ));
    let after = r#"{ // x
	"acls": [
		{
			"action": "accept",
			"proto":  "tcp",
			"src":    ["alice@"],
			"dst":    ["tag:web:80,443"],
		},
	],
	"tagOwners": {
		"tag:web": ["alice@"],
	},
	"grants": [
		{"src": ["alice@"], "dst": ["tag:web"], "ip": ["icmp:*"]},
	],
}
"#;
    assert_eq!(fs::read_to_string(&file).unwrap(), after);
    let again = text(&policy("tag add web --owner alice@"));
    assert!(again.contains("nothing to change"), "{again}");
    for (line, says) in [
        ("add-rule --src tag:db --dst *:22", "tag:db"),
        (
            "add-rule --grant --src alice@ --dst tag:web:80 --ip 80",
            "ports of grants stand in \"ip\"",
        ),
        ("tag remove web", "tag:web"),
        ("tag add db --owner group:nobody", "group:nobody"),
    ] {
        let why = complaint(&policy(line));
        let named = why.contains(&format!("\n{shown}:")) && why.contains("nothing is changed: ");
        assert!(named && why.contains(says), "{line}: {why}");
        assert_eq!(fs::read_to_string(&file).unwrap(), after, "{line}");
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn without_a_file_the_policy_in_force_is_edited() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let daemon = Daemon::start(&state, &[]);
    json(&state, &["users", "create", "alice@example.com"]);
    let in_force = || text(&run(&state, &["policy", "get"]));
    let add = ["policy", "add-rule", "--src", "alice@example.com", "--dst"];
    let said = text(&run(&state, &[&add[..], &["100.64.0.1:22"]].concat()));
    assert!(said.contains("until now everything was allowed"), "{said}");
    let first = in_force();
    assert!(
        first.contains("\n\t\t\t\"dst\":    [\"100.64.0.1:22\"],\n\t\t},\n"),
        "{first}"
    );
    assert!(said.contains("in force, as version 1\n"), "{said}");
    let signed = ["100.64.0.1:80", "--author", "ann", "-m", "the web"];
    let answer = json(&state, &[&add[..], &signed].concat());
    let expected = value!({
        "ok": true, "changed": true, "line": 8, "endsAllowAll": false, "version": 2,
        "errors": [], "warnings": [],
    });
    assert_eq!(answer, expected);
    let log = json(&state, &["policy", "log"]);
    assert_eq!(log[0]["author"], "ann");
    assert_eq!(log[0]["message"], "the web");
    assert_eq!(
        log[1]["message"],
        "add-rule --src alice@example.com --dst 100.64.0.1:22"
    );
    let second = in_force();
    // What only the server can know is refused by it.
    let unknown = run(&state, &["policy", "tag", "add", "x", "--owner", "nobody@"]);
    let why = complaint(&unknown);
    let head = "lowroad-coordinator: policy would be refused with this change; nothing is changed: 1 error\n";
    let error = why.strip_prefix(head).unwrap_or_else(|| panic!("{why}"));
    assert!(
        error.starts_with("policy:15:13: error: \"nobody@\""),
        "{why}"
    );
    let excerpt = error.lines().nth(1).unwrap();
    assert!(excerpt.ends_with("\"tag:x\": [\"nobody@\"],"), "{why}");
    assert_eq!(in_force(), second);
    daemon.stop();
}

#[test]
fn an_edit_warns_as_set_does() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let file = dir.path().join("p.hujson");
    fs::write(&file, TIDY).unwrap();
    let daemon = Daemon::start(&state, &[]);
    let edit = ["policy", "tag", "add", "tag:lonely"];
    let in_file = ["--file", file.to_str().unwrap()];
    for (more, shown) in [(&[][..], "policy:"), (&in_file[..], in_file[1])] {
        let output = run(&state, &[&edit[..], more].concat());
        let warned = String::from_utf8(output.stderr.clone()).unwrap();
        text(&output);
        assert!(warned.starts_with(shown), "{warned}");
        assert!(
            warned.contains(": warning: ") && warned.contains("tag:lonely"),
            "{warned}"
        );
    }
    let answer = json(&state, &["policy", "tag", "add", "tag:other"]);
    let warnings = answer["warnings"].to_string();
    assert!(warnings.contains("tag:other"), "{answer}");
    daemon.stop();
}

#[test]
fn edits_at_the_same_time_all_come_through() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let daemon = Daemon::start(&state, &[]);
    let add = |tag: &str| {
        let state = state.clone();
        let tag = tag.to_owned();
        std::thread::spawn(move || text(&run(&state, &["policy", "tag", "add", &tag])))
    };
    let tags = ["a", "b", "c", "d"];
    for edit in tags.map(add) {
        edit.join().unwrap();
    }
    let policy = text(&run(&state, &["policy", "get"]));
    for tag in tags {
        assert!(policy.contains(&format!("\"tag:{tag}\": []")), "{policy}");
    }
    daemon.stop();
}
