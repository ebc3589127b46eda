//! Random HuJSON and random policies, in random layouts with random comments.

use lowroad_coordinator::policy::edit;
use proptest::prelude::*;

use crate::{
    edits::{acl, strings},
    scan::scan,
};

/// Choices, each below a number; the first once all are used up, so that texts end.
pub struct Choices<'a>(std::slice::Iter<'a, u8>);

impl<'a> Choices<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes.iter())
    }

    pub fn below(&mut self, number: usize) -> usize {
        self.0.next().map_or(0, |&byte| usize::from(byte) % number)
    }

    pub fn of<T: Copy>(&mut self, list: &[T]) -> T {
        list[self.below(list.len())]
    }

    /// White space and comments.
    pub fn gap(&mut self) -> String {
        const PIECES: [&str; 14] = [
            "",
            "",
            " ",
            "\n",
            "\n\n\n",
            "\t",
            "\r\n",
            "\r",
            " // a, \"b\n",
            "//\t/*\r\n",
            "/* , */",
            "/* a\n\t  b\r\n   */",
            "/**\n   * é \n*\n */ ",
            "\n  // }\n",
        ];
        (0..self.below(3)).map(|_| self.of(&PIECES)).collect()
    }

    /// Entries between brackets.
    pub fn entries(&mut self, brackets: [&str; 2], entries: &[String]) -> String {
        let mut out = brackets[0].to_owned() + &self.gap();
        for (index, entry) in entries.iter().enumerate() {
            out.push_str(entry);
            out.push_str(&self.gap());
            if index + 1 < entries.len() || self.below(2) == 1 {
                out.push(',');
                out.push_str(&self.gap());
            }
        }
        out + brackets[1]
    }

    pub fn property(&mut self, name: &str, value: &str) -> String {
        format!("\"{name}\"{}:{}{value}", self.gap(), self.gap())
    }

    fn value(&mut self, depth: usize) -> String {
        const SCALARS: [&str; 8] = [
            "1",
            "-1.5e3",
            "true",
            "null",
            "\"\"",
            "\"a // b\"",
            "\"\\\" /* \\u00e9 é, \\\\\"",
            "\"a string so long that a few of it make more than what fits\"",
        ];
        match self.below(if depth > 3 { 1 } else { 3 }) {
            0 => self.of(&SCALARS).to_owned(),
            1 => {
                let entries: Vec<_> = (0..self.below(4)).map(|_| self.value(depth + 1)).collect();
                self.entries(["[", "]"], &entries)
            }
            _ => {
                let mut entries = Vec::new();
                for _ in 0..self.below(5) {
                    let name = self.of(&["a", "long name", "\\u0061", "é//", ""]);
                    let value = self.value(depth + 1);
                    entries.push(self.property(name, &value));
                }
                self.entries(["{", "}"], &entries)
            }
        }
    }
}

fn json(text: &str) -> serde_json::Value {
    jsonc_parser::parse_to_serde_value(text, &Default::default()).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn a_layout_keeps_all_that_is_said_and_all_comments_and_is_its_own(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let mut choices = Choices::new(&bytes);
        let text = format!("{}{}{}", choices.gap(), choices.value(0), choices.gap());
        let formatted = edit::format(&text).unwrap();
        prop_assert_eq!(scan(&formatted), scan(&text));
        prop_assert_eq!(json(&formatted), json(&text));
        prop_assert_eq!(&edit::format(&formatted).unwrap(), &formatted);
        let is_tidy = |line: &str| line.trim_end_matches([' ', '\t', '\r']) == line;
        prop_assert!(formatted.split('\n').all(is_tidy), "{formatted:?}");
        prop_assert!(!formatted.starts_with('\n') && !formatted.ends_with("\n\n"));
    }
}

/// A policy in a random layout.
fn policy(choices: &mut Choices) -> String {
    let mut sections = Vec::new();
    let tags = ["tag:x", "tag:another", "tag:z"];
    let mut table = Vec::new();
    for tag in &tags[..choices.below(4)] {
        let owners: Vec<_> = (0..choices.below(4))
            .map(|_| {
                choices
                    .of(&["\"a@\"", "\"b@\"", "\"autogroup:member\""])
                    .to_owned()
            })
            .collect();
        let list = choices.entries(["[", "]"], &owners);
        table.push(choices.property(tag, &list));
    }
    let table = choices.entries(["{", "}"], &table);
    if choices.below(4) > 0 {
        sections.push(choices.property("tagOwners", &table));
    }
    for (name, rule) in [
        (
            "acls",
            [
                r#""action": "accept""#,
                r#""src": ["*"]"#,
                r#""dst": ["*:443", "a@:*"]"#,
            ],
        ),
        (
            "grants",
            [
                r#""src": ["a@", "b@"]"#,
                r#""dst": ["*"]"#,
                r#""ip": ["*"]"#,
            ],
        ),
    ] {
        let count = choices.below(4);
        let mut rules = Vec::new();
        for _ in 0..count {
            rules.push(choices.entries(["{", "}"], &rule.map(str::to_owned)));
        }
        let list = choices.entries(["[", "]"], &rules);
        if choices.below(4) > 0 {
            sections.push(choices.property(name, &list));
        }
    }
    let root = choices.entries(["{", "}"], &sections);
    format!("{}{root}{}", choices.gap(), choices.gap())
}

/// How many lines of the one text are missing in the other.
fn lost(before: &str, after: &str) -> usize {
    let (before, after): (Vec<&str>, Vec<&str>) =
        (before.split('\n').collect(), after.split('\n').collect());
    let mut kept = vec![0; after.len() + 1];
    for line in &before {
        let mut diagonal = 0;
        for (index, other) in after.iter().enumerate() {
            let above = kept[index + 1];
            kept[index + 1] = if line == other {
                diagonal + 1
            } else {
                above.max(kept[index])
            };
            diagonal = above;
        }
    }
    before.len() - kept[after.len()]
}

fn is_subsequence(short: &str, long: &str) -> bool {
    let mut long = long.chars();
    short.chars().all(|char| long.any(|other| other == char))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn additions_keep_every_byte_of_what_was_there(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let mut choices = Choices::new(&bytes);
        let text = policy(&mut choices);
        let was = json(&text);
        let (edited, expected) = match choices.below(2) {
            0 => {
                let rule = serde_json::json!({"action": "accept", "src": ["b@"], "dst": ["*:22"]});
                let mut expected = was.clone();
                match &mut expected["acls"] {
                    serde_json::Value::Array(rules) => rules.push(rule),
                    none => *none = serde_json::json!([rule]),
                }
                (edit::add_rule(&text, &acl(&["b@"], &["*:22"])), expected)
            }
            _ => {
                let owners = ["c@", "a@"];
                let mut expected = was.clone();
                if !expected["tagOwners"].is_object() {
                    expected["tagOwners"] = serde_json::json!({});
                }
                if !expected["tagOwners"]["tag:x"].is_array() {
                    expected["tagOwners"]["tag:x"] = serde_json::json!([]);
                }
                let list = expected["tagOwners"]["tag:x"].as_array_mut().unwrap();
                for owner in owners {
                    if !list.iter().any(|known| known == owner) {
                        list.push(owner.into());
                    }
                }
                (edit::add_tag_owners(&text, "tag:x", &strings(&owners)), expected)
            }
        };
        let edited = edited.unwrap();
        prop_assert_eq!(json(&edited.text), expected, "{}", edited.text);
        prop_assert_eq!(scan(&edited.text).comments, scan(&text).comments);
        prop_assert!(edited.changed);
        let spaceless = |text: &str| text.replace([' ', '\t', '\n', '\r'], "");
        prop_assert!(is_subsequence(&spaceless(&text), &spaceless(&edited.text)));
        // The line that the last entry ends in, or the brackets if there was none.
        prop_assert!(lost(&text, &edited.text) <= 2, "{text}\n--\n{}", edited.text);
    }

    #[test]
    fn removals_change_no_other_line(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let mut choices = Choices::new(&bytes);
        let text = policy(&mut choices);
        let mut expected = json(&text);
        let mut removed = 1;
        let edited = match choices.below(2) {
            0 => {
                let table = expected.get_mut("tagOwners");
                let list = table.and_then(|table| table.get_mut("tag:x")?.as_array_mut());
                if let Some(list) = list {
                    removed = list.iter().filter(|owner| *owner == "a@").count();
                    list.retain(|owner| owner != "a@");
                }
                edit::remove_tag_owners(&text, "tag:x", &strings(&["a@"]))
            }
            _ => {
                let table = expected.get_mut("tagOwners");
                if let Some(table) = table.and_then(serde_json::Value::as_object_mut) {
                    table.remove("tag:x");
                }
                edit::remove_tag(&text, "tag:x")
            }
        };
        let edited = edited.unwrap();
        let is = json(&edited.text);
        prop_assert_eq!(is == json(&text), !edited.changed);
        prop_assert_eq!(is, expected, "{}", edited.text);
        prop_assert!(is_subsequence(&edited.text, &text));
        // What is left of its own line, and the one that loses its comma.
        prop_assert!(lost(&edited.text, &text) <= 2 * removed, "{text}\n--\n{}", edited.text);
    }
}
