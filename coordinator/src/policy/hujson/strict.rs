//! Liberties that the parser takes with JSON and other tools for HuJSON don't: they would refuse the file.

/// The first of them, and what to do about it. After what the parser refuses there may be ones that are none.
pub(super) fn first_liberty(text: &str) -> Option<(usize, String)> {
    let mut at = 0;
    while let Some(char) = text.get(at..)?.chars().next() {
        at += match char {
            '"' => match string_length(&text.as_bytes()[at..]) {
                Ok(length) => length,
                Err((inside, control)) => return Some((at + inside, in_string(control))),
            },
            '/' => comment_length(&text[at..]),
            ' ' | '\t' | '\n' | '\r' => 1,
            char if char.is_whitespace() => {
                let code = u32::from(char);
                let message = format!("U+{code:04X} is no white space of HuJSON; write a space");
                return Some((at, message));
            }
            char => char.len_utf8(),
        };
    }
    None
}

/// Bytes of the string that begins here, quotes included; or the place of a control character inside it.
fn string_length(bytes: &[u8]) -> Result<usize, (usize, u8)> {
    let mut at = 1;
    while let Some(&byte) = bytes.get(at) {
        match byte {
            b'"' => return Ok(at + 1),
            b'\\' => at += 2,
            ..b' ' => return Err((at, byte)),
            _ => at += 1,
        }
    }
    Ok(bytes.len())
}

fn in_string(control: u8) -> String {
    match control {
        b'\n' | b'\r' => "a string ends in the line where it begins; close it with a double quote, or write its line break as \\n".to_owned(),
        b'\t' => "a tab inside a string; write \\t, or take it out".to_owned(),
        control => format!("a control character inside a string; write \\u{control:04x}, or take it out"),
    }
}

/// Bytes of the comment that begins here.
pub(crate) fn comment_length(text: &str) -> usize {
    let end = match text.strip_prefix("/*") {
        Some(rest) => rest.find("*/").map(|at| at + 4),
        None => text.find(['\n', '\r']),
    };
    end.unwrap_or(text.len())
}
