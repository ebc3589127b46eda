//! Counting before reading: in memory `{}`, `[]` and the entries of a map take ten to a hundred times what they take as text, so how many of them and how
//! many elements a message has is bounded, beside its length. So is each text of a netmap, which is kept for as long as that lasts.

use crate::Error;

/// A tailnet of 50,000 peers has about as many addresses, endpoints, tags and capabilities.
pub const MAX_ELEMENTS: usize = 1 << 20;
/// Members of all objects together. A peer that a stock client tells of has 41 to 56 of them in 1,185 to 1,432 bytes: so no message that is full of peers, 50,000
/// of them, has as many.
pub const MAX_MEMBERS: usize = 3 << 20;
/// No name, address or text for people is as long.
pub const MAX_STRING: usize = 64 << 10;
/// So deep is no message; the reader would refuse it as well, at a similar depth.
const MAX_DEPTH: usize = 128;
/// Most objects and lists of a client's request; stock clients send 20 to 60.
pub const MAX_REQUEST_PARTS: usize = 1 << 12;
/// Values that a request may have for each object or list that it may.
const VALUES: usize = 16;

/// What a message has. Mistakes in its JSON are left to the reader.
#[derive(Debug, Default)]
struct Census {
    /// Objects and lists.
    parts: usize,
    commas: usize,
    /// Elements of all lists together; an empty one counts as one.
    elements: usize,
    /// Members of all objects together; an empty one counts as one.
    members: usize,
    /// Bytes of the longest string, as it is written.
    longest: usize,
    deepest: usize,
}

/// Refuses a map response whose lists have more elements than [`MAX_ELEMENTS`] in all, whose objects have more members than [`MAX_MEMBERS`], or that has a
/// string longer than [`MAX_STRING`].
pub fn check(json: &[u8]) -> Result<(), Error> {
    let census = Census::take(json);
    if census.longest > MAX_STRING {
        return Err(Error::Long {
            what: "a text of a map response",
            limit: MAX_STRING,
            got: census.longest,
        });
    }
    if census.deepest > MAX_DEPTH {
        return Err(Error::Malformed {
            what: "map response",
            why: "its values are nested too deeply",
        });
    }
    at_most("a map response's lists", census.elements, MAX_ELEMENTS)?;
    at_most("a map response's objects", census.members, MAX_MEMBERS)
}

/// [`Error::Many`], if there are more than may be.
pub fn at_most(what: &'static str, got: usize, limit: usize) -> Result<(), Error> {
    match got > limit {
        true => Err(Error::Many { what, limit, got }),
        false => Ok(()),
    }
}

/// Refuses a client's request of more than [`MAX_REQUEST_PARTS`] objects and lists, or of more than 16 times as many values.
pub fn check_request(json: &[u8]) -> Result<(), Error> {
    let census = Census::take(json);
    if census.parts > MAX_REQUEST_PARTS || census.commas > MAX_REQUEST_PARTS * VALUES {
        return Err(Error::Malformed {
            what: "request",
            why: "it has more parts than any that is meant well",
        });
    }
    Ok(())
}

impl Census {
    /// Reads each byte once.
    fn take(json: &[u8]) -> Self {
        let mut census = Self::default();
        // In the lowest bit whether the innermost thing that is open is a list.
        let mut open: u128 = 0;
        let mut depth: usize = 0;
        let mut at = 0;
        while let Some(&byte) = json.get(at) {
            at += 1;
            match byte {
                b'"' => {
                    let end = string_end(json, at);
                    census.longest = census.longest.max(end - at);
                    at = end;
                }
                b'[' | b'{' => {
                    depth += 1;
                    census.deepest = census.deepest.max(depth);
                    let is_list = byte == b'[';
                    open = open << 1 | u128::from(is_list);
                    census.parts += 1;
                    census.elements += usize::from(is_list);
                    census.members += usize::from(!is_list);
                }
                b']' | b'}' => {
                    depth = depth.saturating_sub(1);
                    open >>= 1;
                }
                b',' => {
                    census.commas += 1;
                    let of_list = (open & 1) as usize;
                    census.elements += of_list;
                    census.members += 1 - of_list;
                }
                _ => {}
            }
        }
        census
    }
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
    fn as_many_members_as_may_be_pass_and_one_more_does_not() {
        let object = |members: usize| format!("[{{\"\":0{}}}]", ",\"\":0".repeat(members - 1));
        assert!(check(object(MAX_MEMBERS).as_bytes()).is_ok());
        let error = check(object(MAX_MEMBERS + 1).as_bytes()).unwrap_err();
        assert!(error.to_string().contains("of at most"), "{error}");
        let empty = "{},".repeat(MAX_ELEMENTS - 1);
        let full = format!("[{empty}{}]", object(MAX_MEMBERS - MAX_ELEMENTS + 2));
        assert!(check(full.as_bytes()).is_err(), "objects count together");
    }

    #[test]
    fn what_is_in_strings_does_not_count() {
        let text = format!("\"{}\\\"{}\",", ",".repeat(1000), "[{".repeat(1000));
        let text = format!("[{}]", text.repeat(2000));
        assert!(check(text.as_bytes()).is_ok());
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

    #[test]
    fn parts_of_a_request_are_counted_outside_of_strings() {
        let census = Census::take(br#"{"a{[\"{[,": [1, {"b": "[\\"}]}"#);
        assert_eq!((census.parts, census.commas), (3, 1));
        let lists = |count: usize| format!("{}{}", "[".repeat(count), "]".repeat(count));
        assert!(check_request(lists(MAX_REQUEST_PARTS).as_bytes()).is_ok());
        assert!(check_request(lists(MAX_REQUEST_PARTS + 1).as_bytes()).is_err());
        let values = |count: usize| format!("[{}0]", "0,".repeat(count));
        assert!(check_request(values(MAX_REQUEST_PARTS * VALUES).as_bytes()).is_ok());
        assert!(check_request(values(MAX_REQUEST_PARTS * VALUES + 1).as_bytes()).is_err());
        assert!(check_request(b"\"\\").is_ok());
    }
}
