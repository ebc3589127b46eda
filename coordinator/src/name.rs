//! Names of nodes: DNS labels made from what hosts call themselves.

/// Longest DNS label.
const LONGEST: usize = 63;

/// A label out of a host name: its first part, lower case, other characters as hyphens. `node` if nothing is left.
pub fn label(host: &str) -> String {
    let first = host.split('.').next().unwrap_or_default();
    let mut out = String::new();
    for c in first.chars() {
        match c {
            'a'..='z' | '0'..='9' => out.push(c),
            'A'..='Z' => out.push(c.to_ascii_lowercase()),
            // No two in a row: `xn--` and its like mean something else to resolvers.
            _ if !out.ends_with('-') => out.push('-'),
            _ => {}
        }
        if out.len() == LONGEST {
            break;
        }
    }
    let out = out.trim_matches('-');
    if out.is_empty() {
        "node".to_owned()
    } else {
        out.to_owned()
    }
}

/// `wanted`, or with the first number after a hyphen that makes it unique.
pub fn unique(wanted: &str, taken: impl Fn(&str) -> bool) -> String {
    if !taken(wanted) {
        return wanted.to_owned();
    }
    (1u32..)
        .map(|n| {
            let suffix = format!("-{n}");
            let end = wanted.len().min(LONGEST - suffix.len());
            format!("{}{suffix}", &wanted[..end])
        })
        .find(|name| !taken(name))
        .expect("there are more numbers than nodes")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn whatever_a_host_calls_itself_becomes_a_label(host in ".{0,100}") {
            let label = label(&host);
            prop_assert!((1..=LONGEST).contains(&label.len()));
            prop_assert!(label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-'));
            prop_assert!(!label.starts_with('-') && !label.ends_with('-'));
            prop_assert_eq!(super::label(&label), label);
        }
    }

    #[test]
    fn host_names_become_labels() {
        assert_eq!(label("Alice's MacBook"), "alice-s-macbook");
        assert_eq!(label("web1.example.com"), "web1");
        assert_eq!(label("--__--"), "node");
        assert_eq!(label(""), "node");
        assert_eq!(label("日本"), "node");
        assert_eq!(label(&"x".repeat(300)).len(), 63);
    }

    #[test]
    fn a_second_node_of_a_name_gets_a_number() {
        assert_eq!(unique("web", |_| false), "web");
        assert_eq!(
            unique("web", |name| ["web", "web-1"].contains(&name)),
            "web-2"
        );
        let long = "x".repeat(63);
        let second = unique(&long, |name| name == long);
        assert_eq!((second.len(), second.ends_with("-1")), (63, true));
    }
}
