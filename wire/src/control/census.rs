//! Counting before reading: in memory a list takes up to a hundred times what it takes as text, so how many elements all lists of a
//! message have together is bounded, beside its length. So is each text, because netmaps keep texts for as long as they last.

use crate::Error;

/// A tailnet of 50,000 peers has about as many addresses, endpoints, tags and capabilities.
pub const MAX_ELEMENTS: usize = 1 << 20;
/// No name, address or text for people is as long.
pub const MAX_STRING: usize = 64 << 10;
/// So deep is no message; the reader would refuse it as well, at a similar depth.
const MAX_DEPTH: usize = 128;

/// Refuses a message whose lists have more elements than [`MAX_ELEMENTS`] in all, or a string longer than [`MAX_STRING`]. Other mistakes
/// are left to the reader.
pub fn check(json: &[u8]) -> Result<(), Error> {
    // In the lowest bit whether the innermost thing that is open is a list.
    let mut open: u128 = 0;
    let mut depth = 0;
    let mut elements = 0;
    let mut at = 0;
    while let Some(&byte) = json.get(at) {
        at += 1;
        match byte {
            b'"' => {
                let end = string_end(json, at);
                if end - at > MAX_STRING {
                    return Err(Error::Long {
                        what: "a text of a map response",
                        limit: MAX_STRING,
                        got: end - at,
                    });
                }
                at = end;
            }
            b'[' | b'{' => {
                depth += 1;
                if depth > MAX_DEPTH {
                    return Err(Error::Malformed {
                        what: "map response",
                        why: "its values are nested too deeply",
                    });
                }
                let is_list = byte == b'[';
                open = open << 1 | u128::from(is_list);
                elements += usize::from(is_list);
            }
            b']' | b'}' => {
                depth = depth.saturating_sub(1);
                open >>= 1;
            }
            b',' => elements += (open & 1) as usize,
            _ => {}
        }
    }
    if elements > MAX_ELEMENTS {
        return Err(Error::Many {
            what: "a map response",
            limit: MAX_ELEMENTS,
            got: elements,
        });
    }
    Ok(())
}

/// Behind the closing quote of a string whose text begins at `at`.
fn string_end(json: &[u8], mut at: usize) -> usize {
    while let Some(&byte) = json.get(at) {
        at += 1;
        match byte {
            b'"' => break,
            b'\\' => at += 1,
            _ => {}
        }
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(elements: usize) -> Vec<u8> {
        format!("{{\"a\":[0{}]}}", ",0".repeat(elements - 1)).into_bytes()
    }

    #[test]
    fn as_many_elements_as_may_be_pass_and_one_more_does_not() {
        assert!(check(&list(MAX_ELEMENTS)).is_ok());
        assert!(check(&list(MAX_ELEMENTS + 1)).is_err());
        let two = [list(MAX_ELEMENTS / 2), list(MAX_ELEMENTS / 2 + 2)].concat();
        assert!(check(&two).is_err(), "lists count together");
    }

    #[test]
    fn what_is_in_strings_and_objects_does_not_count() {
        let text = format!("\"{}\\\"{}\",", ",".repeat(1000), "[".repeat(1000));
        let text = format!("[{}]", text.repeat(1000));
        assert!(check(text.as_bytes()).is_ok());
        let members = format!("{{{}}}", "\"a\":1,".repeat(1 << 21));
        assert!(check(members.as_bytes()).is_ok());
    }

    #[test]
    fn a_text_longer_than_any_is_refused() {
        let text = |length: usize| format!("{{\"a\":\"{}\"}}", "x".repeat(length));
        assert!(check(text(MAX_STRING - 1).as_bytes()).is_ok());
        assert!(check(text(MAX_STRING + 1).as_bytes()).is_err());
    }

    #[test]
    fn depth_is_bounded_and_what_is_cut_off_anywhere_is_no_panic() {
        assert!(check(&[b'['; 129]).is_err());
        assert!(check(&[b'['; 128]).is_ok());
        let text = br#"{"a":[1,"\"\\",{"b":[]}]}]]]"#;
        for end in 0..=text.len() {
            assert!(check(&text[..end]).is_ok());
        }
    }
}
