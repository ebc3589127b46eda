//! Names to user ids.

use std::fs;

/// The id of a user of `/etc/passwd`, or a number as it is.
pub fn user_id(name: &str) -> Option<u32> {
    if let Ok(id) = name.parse() {
        return Some(id);
    }
    find(&fs::read_to_string("/etc/passwd").ok()?, name)
}

fn find(passwd: &str, name: &str) -> Option<u32> {
    let mut fields = passwd
        .lines()
        .map(|line| line.split(':'))
        .find(|fields| fields.clone().next() == Some(name))?;
    fields.nth(2)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_found_by_its_whole_name() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nanna:x:1000:1000::/home/anna:/bin/sh\n";
        assert_eq!(find(passwd, "anna"), Some(1000));
        assert_eq!(find(passwd, "ann"), None);
        assert_eq!(find("broken\n", "broken"), None);
        assert_eq!(user_id("1234"), Some(1234));
    }
}
