//! Answers as text for people.

mod policy;

use std::fmt::Write as _;

pub use policy::{Extent, diff, explanation, why};

use super::api::{AuthKeyInfo, NodeInfo, UserInfo, VersionInfo};
use crate::text::harmless;

/// Columns as wide as their widest cell, two spaces apart.
fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([head[column].len()]).max().unwrap_or_default()
    };
    let widths: Vec<_> = (0..head.len()).map(width).collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let padded: Vec<_> = cells
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        format!("{}\n", padded.join("  ").trim_end())
    };
    let mut out = line(&mut head.iter().copied());
    for row in rows {
        out += &line(&mut row.iter().map(String::as_str));
    }
    out
}

/// Also for what hosts say about themselves: none of it may command the terminal of an administrator.
fn or_dash(text: &str) -> String {
    if text.is_empty() {
        "-".to_owned()
    } else {
        text.chars().map(harmless).collect()
    }
}

fn yes(flag: bool) -> String {
    if flag { "yes" } else { "no" }.to_owned()
}

/// `2026-11-23T05:10:00.123456Z` without its fraction.
fn short_time(time: &str) -> String {
    match time.split_once('.') {
        Some((seconds, _)) => format!("{seconds}Z"),
        None => time.to_owned(),
    }
}

pub fn users(users: &[UserInfo]) -> String {
    let row = |user: &UserInfo| {
        vec![
            user.id.clone(),
            user.name.clone(),
            or_dash(&user.display_name),
            user.role.to_string(),
            short_time(&user.created_at),
        ]
    };
    table(
        &["ID", "NAME", "DISPLAY NAME", "ROLE", "CREATED"],
        &users.iter().map(row).collect::<Vec<_>>(),
    )
}

pub fn auth_keys(keys: &[AuthKeyInfo]) -> String {
    let state = |key: &AuthKeyInfo| match (key.expired, key.used && !key.reusable) {
        (true, _) => "expired",
        (_, true) => "used up",
        _ => "usable",
    };
    let row = |key: &AuthKeyInfo| {
        vec![
            key.id.clone(),
            key.key.clone(),
            key.user
                .as_ref()
                .map_or_else(|| "-".to_owned(), |user| user.name.clone()),
            or_dash(&key.acl_tags.join(",")),
            yes(key.reusable),
            yes(key.ephemeral),
            state(key).to_owned(),
            short_time(&key.expiration),
        ]
    };
    let head = [
        "ID",
        "KEY",
        "USER",
        "TAGS",
        "REUSABLE",
        "EPHEMERAL",
        "STATE",
        "EXPIRES",
    ];
    table(&head, &keys.iter().map(row).collect::<Vec<_>>())
}

fn owner(node: &NodeInfo) -> String {
    match &node.user {
        Some(user) => user.name.clone(),
        None => or_dash(&node.tags.join(",")),
    }
}

fn status(node: &NodeInfo) -> String {
    match (node.expired, node.online, &node.last_seen) {
        (true, ..) => "expired".to_owned(),
        (_, true, _) => "online".to_owned(),
        (_, _, Some(seen)) => format!("offline since {}", short_time(seen)),
        _ => "never seen".to_owned(),
    }
}

fn list(items: &[impl ToString]) -> String {
    or_dash(
        &items
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(", "),
    )
}

pub fn nodes(nodes: &[NodeInfo]) -> String {
    let row = |node: &NodeInfo| {
        let waiting = node
            .available_routes
            .iter()
            .filter(|route| !node.approved_routes.contains(route))
            .count();
        let routes = match (node.approved_routes.len(), waiting) {
            (0, 0) => "-".to_owned(),
            (approved, 0) => format!("{approved} approved"),
            (approved, waiting) => format!("{approved} approved, {waiting} waiting"),
        };
        vec![
            node.id.clone(),
            node.given_name.clone(),
            owner(node),
            node.ip_addresses.join(", "),
            routes,
            status(node),
        ]
    };
    table(
        &["ID", "NAME", "OWNER", "ADDRESSES", "ROUTES", "STATUS"],
        &nodes.iter().map(row).collect::<Vec<_>>(),
    )
}

pub fn node(node: &NodeInfo) -> String {
    let lines = [
        ("ID", node.id.clone()),
        ("Name", node.fqdn.clone()),
        ("Host name", or_dash(&node.name)),
        ("Owner", owner(node)),
        ("Status", status(node)),
        ("Addresses", list(&node.ip_addresses)),
        ("Announced routes", list(&node.available_routes)),
        ("Approved routes", list(&node.approved_routes)),
        ("Primary for", list(&node.subnet_routes)),
        ("Endpoints", list(&node.endpoints)),
        (
            "Home relay",
            node.home_region
                .map_or_else(|| "-".to_owned(), |region| region.to_string()),
        ),
        ("System", or_dash(&node.os)),
        (
            "Client",
            format!(
                "{} (capability version {})",
                or_dash(&node.client_version),
                node.capability_version
            ),
        ),
        ("Joined", short_time(&node.created_at)),
        (
            "Key expires",
            node.expiry
                .as_deref()
                .map_or_else(|| "never".to_owned(), short_time),
        ),
        ("Ephemeral", yes(node.ephemeral)),
        ("Node key", node.node_key.clone()),
        ("Machine key", node.machine_key.clone()),
    ];
    let mut out = String::new();
    for (name, value) in lines {
        let _ = writeln!(out, "{name:17} {value}");
    }
    out
}

pub fn policy_log(versions: &[VersionInfo]) -> String {
    let author = |version: &VersionInfo| {
        let (author, account) = (&version.author, &version.account);
        if account.is_empty() || account == author {
            or_dash(author)
        } else {
            format!("{} ({})", or_dash(author), or_dash(account))
        }
    };
    let row = |version: &VersionInfo| {
        vec![
            version.version.to_string(),
            short_time(&version.created_at),
            author(version),
            version.size.to_string(),
            or_dash(&version.message),
        ]
    };
    table(
        &["VERSION", "SINCE", "AUTHOR", "BYTES", "MESSAGE"],
        &versions.iter().map(row).collect::<Vec<_>>(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_hosts_say_cannot_command_the_terminal() {
        assert_eq!(
            or_dash("a\u{1b}]0;x\u{7}\nb\u{9b}"),
            "a\u{fffd}]0;x\u{fffd}\u{fffd}b\u{fffd}"
        );
    }

    #[test]
    fn columns_line_up() {
        let rows = vec![
            vec!["1".to_owned(), "längst".to_owned(), "x".to_owned()],
            vec!["22".to_owned(), "a".to_owned(), "y".to_owned()],
        ];
        assert_eq!(
            table(&["ID", "NAME", "END"], &rows),
            "ID  NAME    END\n1   längst  x\n22  a       y\n"
        );
    }
}
