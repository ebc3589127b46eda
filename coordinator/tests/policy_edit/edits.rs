//! `policy add-rule` and `policy tag`, by example.

use lowroad_coordinator::policy::edit::{self, AclRule, Edited, GrantRule, NewRule, NotEdited};

pub fn strings(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

pub fn acl(src: &[&str], dst: &[&str]) -> NewRule {
    NewRule::Acl(AclRule {
        protocol: None,
        sources: strings(src),
        destinations: strings(dst),
    })
}

fn add(text: &str) -> String {
    edit::add_rule(text, &acl(&["a@", "b@"], &["*:22"]))
        .unwrap()
        .text
}

fn own(text: &str, owners: &[&str]) -> String {
    let edited = edit::add_tag_owners(text, "tag:x", &strings(owners)).unwrap();
    assert_eq!(edited.changed, edited.text != text);
    edited.text
}

fn disown(text: &str, owners: &[&str]) -> String {
    let edited = edit::remove_tag_owners(text, "tag:x", &strings(owners));
    edited.unwrap().text
}

fn untag(text: &str) -> Result<Edited, NotEdited> {
    edit::remove_tag(text, "tag:x")
}

const RULE: &str = r#"{"action": "accept", "src": ["a@", "b@"], "dst": ["*:22"]}"#;

#[test]
fn a_rule_is_added_behind_the_others_and_all_else_stays() {
    for (before, after) in [
        ("{}", "{\n\t\"acls\": [\n\t\tRULE,\n\t],\n}"),
        ("{\"acls\": []}\n", "{\"acls\": [RULE]}\n"),
        ("{\"acls\": null}\n", "{\"acls\": [\n\tRULE\n]}\n"),
        (
            "{ /* a */ }",
            "{ /* a */\n\t\"acls\": [\n\t\tRULE,\n\t],\n}",
        ),
        (
            "{\n  // a\n}",
            "{\n  // a\n  \"acls\": [\n    RULE,\n  ],\n}",
        ),
        (
            "{\r\n  \"hosts\": {}\r\n}\r\n",
            "{\r\n  \"hosts\": {},\r\n  \"acls\": [\r\n    RULE\r\n  ]\r\n}\r\n",
        ),
        (
            "{\n\t\"acls\": [],\n}\n",
            "{\n\t\"acls\": [\n\t\tRULE,\n\t],\n}\n",
        ),
        (
            "{\n\t\"ACLs\": [ // what is open\n\t\t// nothing yet\n\t], \"hosts\": {},\n}\n",
            "{\n\t\"ACLs\": [ // what is open\n\t\t// nothing yet\n\t\tRULE,\n\t], \"hosts\": {},\n}\n",
        ),
        (
            "{\"acls\": [\n   {\"action\":\"accept\",\"src\":[\"*\"],\"dst\":[\"*:1\"]} // one\n   // two\n]}",
            "{\"acls\": [\n   {\"action\":\"accept\",\"src\":[\"*\"],\"dst\":[\"*:1\"]}, // one\n   // two\n   RULE\n]}",
        ),
    ] {
        assert_eq!(add(before), after.replace("RULE", RULE), "{before:?}");
    }
}

#[test]
fn a_rule_looks_like_the_one_before_it() {
    let before = r#"{
    "acls": [{
        "action": "accept",
        "src": ["*"],
        "dst": ["*:1"]
    }]
}
"#;
    let after = r#"{
    "acls": [{
        "action": "accept",
        "src": ["*"],
        "dst": ["*:1"]
    }, {
        "action": "accept",
        "src":    ["a@", "b@"],
        "dst":    ["*:22"]
    }]
}
"#;
    assert_eq!(add(before), after);
}

#[test]
fn a_rule_that_is_there_is_not_added_again() {
    let text = "{\n// x\n\"acls\": [\n{\"dst\": [\"*:22\",], \"src\": [\"a@\", /**/ \"b@\"], \"action\": \"accept\"}]}";
    let edited = edit::add_rule(text, &acl(&["a@", "b@"], &["*:22"])).unwrap();
    let there = (edited.text.as_str(), edited.changed, edited.line);
    assert_eq!(there, (text, false, Some(4)));
}

#[test]
fn the_first_rule_says_that_it_ends_what_holds_without_rules() {
    let first = |text| {
        let edited = edit::add_rule(text, &acl(&["a@"], &["*:22"])).unwrap();
        (edited.ends_allow_all, edited.line)
    };
    assert_eq!(first("{}"), (true, Some(3)));
    assert_eq!(first("{\"grants\": []}"), (false, Some(2)));
    assert_eq!(first("{\n\n\"acls\": []}"), (false, Some(4)));
}

#[test]
fn grants_are_added_with_capabilities_and_routers() {
    let app = serde_json::json!({"example.com/cap/x": [{"role": "admin"}]});
    let grant = NewRule::Grant(GrantRule {
        sources: strings(&["a@"]),
        destinations: strings(&["tag:x"]),
        ip: strings(&["tcp:443"]),
        app: app.as_object().unwrap().clone(),
        via: strings(&["tag:x"]),
    });
    let before = "{\n\t\"tagOwners\": {\"tag:x\": []}, // x\n}\n";
    let after = r#"{
	"tagOwners": {"tag:x": []}, // x
	"grants": [
		{
			"src": ["a@"],
			"dst": ["tag:x"],
			"ip":  ["tcp:443"],
			"via": ["tag:x"],
			"app": {"example.com/cap/x": [{"role": "admin"}]},
		},
	],
}
"#;
    assert_eq!(edit::add_rule(before, &grant).unwrap().text, after);
}

#[test]
fn a_change_that_makes_a_bad_policy_is_refused_and_so_is_a_bad_policy() {
    let refused = |text: &str, rule: &NewRule| edit::add_rule(text, rule).unwrap_err();
    let why = refused("{\n\t// nothing\n}\n", &acl(&["tag:y", "tag:z"], &["*:22"]));
    let lines: Vec<u32> = why.errors.iter().map(|error| error.line).collect();
    assert_eq!(lines, [4, 4], "both tags: {}", why.errors);
    let changed = why.changed.unwrap();
    assert!(
        changed.lines().nth(3).unwrap().contains("tag:z"),
        "{changed}"
    );
    let why = refused("{\n\"acls\": 5}\n", &acl(&["*"], &["*:22"]));
    assert_eq!((why.errors.first().line, why.changed), (2, None));
    assert!(edit::add_tag_owners("{}", "tag:", &[]).is_err());
    assert!(edit::add_tag_owners("{}", "tag:x", &strings(&["group:y"])).is_err());
    assert!(edit::remove_tag("[]", "tag:x").is_err());
    let used = "{\"tagOwners\": {\"tag:x\": []}, \"acls\": [{\"action\": \"accept\", \"src\": [\"tag:x\"], \"dst\": [\"*:*\"]}]}";
    assert!(untag(used).is_err());
}

#[test]
fn owners_are_added_to_a_tag() {
    for (before, after) in [
        (
            "{}",
            "{\n\t\"tagOwners\": {\n\t\t\"tag:x\": [\"a@\", \"b@\"],\n\t},\n}",
        ),
        (
            "{\"tagOwners\": null}",
            "{\"tagOwners\": {\n\t\"tag:x\": [\"a@\", \"b@\"]\n}}",
        ),
        (
            "{\"tagOwners\": {\"tag:x\": null}}",
            "{\"tagOwners\": {\"tag:x\": [\"a@\", \"b@\"]}}",
        ),
        (
            "{\n\t\"tagOwners\": {\n\t\t\"tag:long\": [\"b@\"], // long\n\t},\n}\n",
            "{\n\t\"tagOwners\": {\n\t\t\"tag:long\": [\"b@\"], // long\n\t\t\"tag:x\":    [\"a@\", \"b@\"],\n\t},\n}\n",
        ),
        (
            "{\"tagOwners\": {\n\t\"tag:x\": [\"b@\"], // x\n}}",
            "{\"tagOwners\": {\n\t\"tag:x\": [\"b@\", \"a@\"], // x\n}}",
        ),
        (
            "{\"tagOwners\": {\"tag:x\": [\n\t\"c@\", // Carol\n\t// Bob\n\t\"b@\" // Bob\n]}}",
            "{\"tagOwners\": {\"tag:x\": [\n\t\"c@\", // Carol\n\t// Bob\n\t\"b@\", // Bob\n\t\"a@\"\n]}}",
        ),
        (
            "{\"tagOwners\": {\"tag:x\": [\"b@\", \"a@\",]}}",
            "{\"tagOwners\": {\"tag:x\": [\"b@\", \"a@\",]}}",
        ),
        (
            "{\"tagOwners\": {\"tag:x\": [\"a@\", ]}}",
            "{\"tagOwners\": {\"tag:x\": [\"a@\", \"b@\", ]}}",
        ),
    ] {
        assert_eq!(own(before, &["a@", "b@"]), after, "{before:?}");
    }
    assert_eq!(
        own("{}", &[]),
        "{\n\t\"tagOwners\": {\n\t\t\"tag:x\": [],\n\t},\n}"
    );
}

#[test]
fn owners_are_removed_from_a_tag() {
    let table = |list: &str| format!("{{\n\t\"tagOwners\": {{\"tag:x\": {list}}}, // x\n}}\n");
    for (before, after) in [
        ("[\"a@\"]", "[]"),
        ("[\"b@\", \"a@\"]", "[\"b@\"]"),
        ("[\"a@\", \"b@\"]", "[\"b@\"]"),
        ("[\"b@\", \"a@\", \"c@\"]", "[\"b@\", \"c@\"]"),
        ("[ \"b@\", \"a@\", ]", "[ \"b@\", ]"),
        ("[\n\"b@\", // Bob\n\"a@\" // Ann\n]", "[\n\"b@\" // Bob\n]"),
        (
            "[\n\"a@\", // Ann\r\n\"b@\", /* Bob */\n]",
            "[\n\"b@\", /* Bob */\n]",
        ),
        ("[\n\"a@\", /* Ann\n*/ \"b@\"\n]", "[\n/* Ann\n*/ \"b@\"\n]"),
        ("[\n\"a@\", // Ann\r\"b@\"\n]", "[\n// Ann\r\"b@\"\n]"),
        ("[\"a@\", \"c@\", \"a@\"]", "[\"c@\"]"),
        ("[\n\"c@\", \"a@\",\n\"b@\"]", "[\n\"c@\",\n\"b@\"]"),
        ("[\"c@\"]", "[\"c@\"]"),
    ] {
        let (before, after) = (table(before), table(after));
        assert_eq!(disown(&before, &["a@"]), after, "{before:?}");
    }
}

#[test]
fn a_tag_is_removed_with_its_line() {
    let before = "{\n\t\"tagOwners\": {\n\t\t// y\n\t\t\"tag:y\": [],\n\t\t\"tag:x\": [\n\t\t\t\"a@\",\n\t\t] // x\n\t}\n}\n";
    let after = "{\n\t\"tagOwners\": {\n\t\t// y\n\t\t\"tag:y\": []\n\t}\n}\n";
    let edited = untag(before).unwrap();
    assert_eq!((edited.text.as_str(), edited.line), (after, None));
    let again = untag(after).unwrap();
    assert!(!again.changed && again.text == after);
}
