//! How many parts JSON has, before memory is spent on them: `{}` takes two bytes as text, and some hundred once read.

use crate::Error;

/// Most objects and lists of a client's request; stock clients send 20 to 60.
pub const MAX_REQUEST_PARTS: usize = 1 << 12;
/// Values for each object or list that is allowed.
const VALUES: usize = 16;

/// Refuses JSON of more than `most` objects and lists, or of more than 16 times as many values. Reads each byte once; what is no JSON is somebody else's to say.
pub fn check_parts(what: &'static str, json: &[u8], most: usize) -> Result<(), Error> {
    let (mut containers, mut values) = (0usize, 0usize);
    let mut rest = json.iter();
    while let Some(byte) = rest.next() {
        match byte {
            b'{' | b'[' => containers += 1,
            b',' => values += 1,
            b'"' => skip_string(&mut rest),
            _ => {}
        }
    }
    if containers > most || values > most.saturating_mul(VALUES) {
        return Err(Error::Malformed {
            what,
            why: "it has more parts than any that is meant well",
        });
    }
    Ok(())
}

fn skip_string(rest: &mut std::slice::Iter<'_, u8>) {
    while let Some(byte) = rest.next() {
        match byte {
            b'"' => return,
            b'\\' => drop(rest.next()),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_counted_outside_of_strings() {
        let json = br#"{"a{[\"{[,": [1, {"b": "[\\"}]}"#;
        assert!(check_parts("x", json, 3).is_ok());
        assert!(check_parts("x", json, 2).is_err());
        assert!(check_parts("x", format!("[{}0]", "0,".repeat(16)).as_bytes(), 1).is_ok());
        assert!(check_parts("x", format!("[{}0]", "0,".repeat(17)).as_bytes(), 1).is_err());
        assert!(check_parts("x", b"\"\\", 1).is_ok());
    }
}
