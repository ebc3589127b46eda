//! A second reading of HuJSON, for tests: what is a comment, and what is said.

/// The comments, each line without the white space around it, and the rest, without white space and last commas.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Scanned {
    pub comments: Vec<String>,
    pub tokens: Vec<String>,
}

pub fn scan(text: &str) -> Scanned {
    let mut scanned = Scanned::default();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let length = match first {
            '"' => string_length(rest),
            '/' if rest.starts_with("//") => rest.find(['\n', '\r']).unwrap_or(rest.len()),
            '/' => rest[2..].find("*/").unwrap() + 4,
            '[' | ']' | '{' | '}' | ',' | ':' => 1,
            space if space.is_whitespace() => space.len_utf8(),
            _ => rest
                .find(|c: char| c.is_whitespace() || "[]{},:/\"".contains(c))
                .unwrap_or(rest.len()),
        };
        let token = &rest[..length];
        rest = &rest[length..];
        match first {
            '/' => {
                let lines = token.split(['\n', '\r']).map(str::trim);
                let lines: Vec<&str> = lines.filter(|line| !line.is_empty()).collect();
                scanned.comments.push(lines.join("\n"));
            }
            _ if first.is_whitespace() => {}
            _ => {
                let ends = "]}".contains(first);
                if ends && scanned.tokens.last().is_some_and(|last| last == ",") {
                    scanned.tokens.pop();
                }
                scanned.tokens.push(token.to_owned());
            }
        }
    }
    scanned
}

fn string_length(text: &str) -> usize {
    let mut escaped = false;
    for (at, char) in text.char_indices().skip(1) {
        match char {
            '"' if !escaped => return at + 1,
            '\\' => escaped = !escaped,
            _ => escaped = false,
        }
    }
    panic!("a string without an end: {text}");
}
