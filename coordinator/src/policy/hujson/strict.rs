//! Liberties that the parser takes with JSON and other tools for HuJSON don't: they would refuse the file. And what is no text.

use super::super::error::{Place, PolicyError, PolicyErrors};

/// What some editors put before the text.
const BYTE_ORDER_MARK: char = '\u{feff}';

/// The text of a file; else with U+FFFD for what is no UTF-8, and where the first of it is.
pub(crate) fn decode(bytes: Vec<u8>) -> Result<String, (String, PolicyErrors)> {
    String::from_utf8(bytes).map_err(|error| {
        let (good, bad) = error.as_bytes().split_at(error.utf8_error().valid_up_to());
        let good = String::from_utf8_lossy(good);
        let line = good.rsplit('\n').next().unwrap_or_default();
        let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        let place = Place {
            line: count(good.matches('\n').count() + 1),
            column: count(line.chars().count() + 1),
        };
        let message = format!(
            "the byte 0x{:02x} is no UTF-8; save the file as UTF-8",
            bad.first().copied().unwrap_or_default()
        );
        let whole = String::from_utf8_lossy(error.as_bytes()).into_owned();
        (whole, PolicyError::syntax(place, message).into())
    })
}

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
            BYTE_ORDER_MARK if at == 0 => {
                let message = "the file begins with a byte order mark (U+FEFF), which HuJSON hasn't; remove it, or save the file as UTF-8 without one";
                return Some((at, message.to_owned()));
            }
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
