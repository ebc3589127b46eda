//! `policy fmt`, by example.

use lowroad_coordinator::policy::{MAX_POLICY, PolicyErrorKind, edit};

fn formatted(text: &str) -> String {
    let once = edit::format(text).expect("it is HuJSON");
    assert_eq!(edit::format(&once).as_ref(), Ok(&once), "formatted twice");
    once
}

#[test]
fn a_file_as_people_have_it_stays_as_it_is() {
    let text = r#"// Who may reach whom.
{
	// Groups. "group:example": ["a@"],
	"groups": {"group:dev": ["alice@", "bob@"]},

	"tagOwners": {
		"tag:web":      ["group:dev"], // the web servers
		"tag:database": ["group:dev"],

		/*
		 * Routers are set up by hand.
		 */
		"tag:router": [],
	},
	"acls": [
		// Allow all connections.
		{"action": "accept", "src": ["*"], "dst": ["*:*"]},
		{
			"action": "accept",
			"src":    ["group:dev"],
			"dst":    ["tag:web:80,443", "tag:database:5432"],
		},
		// {"action": "accept", "src": ["group:dev"], "dst": ["*:22"]},
	],
	"grants": [{
		"src": ["*"],
		"dst": ["tag:web"],
		"ip":  ["*"],
	}],
}
// The end.
"#;
    assert_eq!(formatted(text), text);
}

#[test]
fn files_are_laid_out_with_tabs_commas_and_aligned_values() {
    for (before, after) in [
        ("{}", "{}\n"),
        (" [ 1 ,2, ] ", "[1, 2]\n"),
        ("// x\n\n\n\n{}", "// x\n\n{}\n"),
        (
            "{\"a\":1,\r\n  \"long\" : [true,null],\r\n}\r\n",
            "{\n\t\"a\":    1,\n\t\"long\": [true, null],\n}\n",
        ),
        // Plain JSON stays plain JSON.
        ("{\n\"a\":[\n1]}", "{\n\t\"a\": [\n\t\t1\n\t]\n}\n"),
        ("[\n1\n,2 // two\n]", "[\n\t1,\n\t2, // two\n]\n"),
        ("[\n\n\n1,\n\n\n\n2,\n\n]", "[\n\t1,\n\n\t2,\n]\n"),
        (
            "[1 /* one */, /* two */ 2 /* end */]",
            "[1 /* one */, /* two */ 2 /* end */]\n",
        ),
        (
            "[\n1 /* one */, /* two */ 2 /* end */]",
            "[\n\t1 /* one */,\n\t/* two */ 2 /* end */,\n]\n",
        ),
        (
            "[ // first\n\n 1\n/* x */, 2]",
            "[ // first\n\n\t1,\n\t/* x */ 2,\n]\n",
        ),
        (
            "{\"a\" /* x */ : // y\n{\n\"b\": 1}}",
            "{\n\t\"a\": /* x */ // y\n\t\t{\n\t\t\t\"b\": 1,\n\t\t},\n}\n",
        ),
        ("[/* nothing */]", "[/* nothing */]\n"),
        ("[ // nothing\n]", "[ // nothing\n]\n"),
        (
            "{\n\"a\": {\"b\": [{\n\"c\":{\n}}, 1,]}}",
            "{\n\t\"a\": {\"b\": [{\n\t\t\"c\": {},\n\t}, 1]},\n}\n",
        ),
    ] {
        assert_eq!(formatted(before), after, "{before:?}");
    }
}

#[test]
fn what_is_wider_than_a_line_is_broken() {
    let entry = |length: usize| format!("\"{}\"", "é".repeat(length - 2));
    let list = |length| format!("[{}, {}]", entry(20), entry(length));
    let fits = list(80 - 26);
    assert_eq!(formatted(&fits), format!("{fits}\n"));
    let broken = formatted(&list(80 - 25));
    assert_eq!(broken, format!("[\n\t{},\n\t{}\n]\n", entry(20), entry(55)));
}

#[test]
fn what_is_no_hujson_is_refused_with_its_place() {
    let error = edit::format("{\n  \"a\": [1, 2\n}").expect_err("a bracket is missing");
    assert_eq!((error.kind, error.line), (PolicyErrorKind::Syntax, 3));
    assert!(edit::format("// nothing").is_err());
}

/// Its lines are indented, so that what is written is longer than the text, and known to be only by writing it.
#[test]
fn a_layout_may_be_as_long_as_a_policy_to_the_byte() {
    let text = |padding: usize| {
        format!(
            "{}/*\n{}{}*/\n1{}",
            "[\n".repeat(50),
            "x\n".repeat(9_000),
            "y".repeat(padding),
            "]".repeat(50)
        )
    };
    let without = edit::format(&text(1)).unwrap().len() - 1;
    let padding = MAX_POLICY - without;
    assert_eq!(edit::format(&text(padding)).unwrap().len(), MAX_POLICY);
    let error = edit::format(&text(padding + 1)).expect_err("a byte too long");
    assert!(error.message.contains("longer than"), "{error}");
}

#[test]
fn a_layout_that_outgrows_a_policy_is_refused() {
    let deep = format!(
        "{}{}{}",
        "[\n".repeat(400),
        "1,\n".repeat(10_000),
        "]".repeat(400)
    );
    let key = format!(
        "{{\n\"{}\": 1,\n{}}}",
        "k".repeat(MAX_POLICY / 4),
        "\"a\": 1,\n".repeat(10_000)
    );
    for text in [deep, key] {
        assert!(text.len() < MAX_POLICY);
        let error = edit::format(&text).expect_err("too long");
        assert!(error.message.contains("longer than"), "{error}");
    }
}
