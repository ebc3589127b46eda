//! Where in the policy file a rule comes from.

use super::error::Place;

/// The text of an ACL, a grant or an ssh rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Origin {
    pub(crate) place: Place,
    pub(crate) last_line: u32,
    /// In bytes.
    pub(crate) start: usize,
    pub(crate) end: usize,
}

/// A rule of the policy file, to show to people.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PolicyRule {
    /// Where it begins, counted from 1.
    pub line: u32,
    /// In characters, counted from 1.
    pub column: u32,
    /// Where it ends.
    pub last_line: u32,
    /// The rule in one line, without comments.
    pub text: String,
}

impl Origin {
    /// The rule, in the text that the policy was read from.
    pub fn rule(self, policy: &str) -> PolicyRule {
        let written = policy.get(self.start..self.end).unwrap_or_default();
        PolicyRule {
            line: self.place.line,
            column: self.place.column,
            last_line: self.last_line,
            text: in_one_line(written),
        }
    }
}

/// HuJSON without comments, its white space outside of strings reduced to single spaces.
fn in_one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    let mut rest = text.chars().peekable();
    while let Some(char) = rest.next() {
        match (char, rest.peek()) {
            ('"', _) => {
                line.push(char);
                let mut escaped = false;
                for char in rest.by_ref() {
                    line.push(char);
                    if char == '"' && !escaped {
                        break;
                    }
                    escaped = char == '\\' && !escaped;
                }
            }
            ('/', Some('/')) => {
                let _ = rest.by_ref().find(|&char| matches!(char, '\n' | '\r'));
                space(&mut line);
            }
            ('/', Some('*')) => {
                rest.next();
                let mut last = ' ';
                for char in rest.by_ref() {
                    if last == '*' && char == '/' {
                        break;
                    }
                    last = char;
                }
                space(&mut line);
            }
            (char, _) if char.is_whitespace() => space(&mut line),
            _ => line.push(char),
        }
    }
    line
}

fn space(line: &mut String) {
    if !line.ends_with(' ') {
        line.push(' ');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_over_many_lines_is_shown_in_one_without_its_comments() {
        for (text, shown) in [
            ("{\"a\": 1}", "{\"a\": 1}"),
            ("{\n  // why\n  \"a\":  [\n\t1,],\n}", "{ \"a\": [ 1,], }"),
            ("[/* a */1/**/, 2 /***/]", "[ 1 , 2 ]"),
            (
                r#"{"a": "https://x  \"//\" /*"}"#,
                r#"{"a": "https://x  \"//\" /*"}"#,
            ),
            ("\"\\\\\" // x", "\"\\\\\" "),
            ("\"open", "\"open"),
            ("/* open", " "),
            ("[1, // one\r2, // two\r\n3]", "[1, 2, 3]"),
        ] {
            assert_eq!(in_one_line(text), shown);
        }
    }
}
