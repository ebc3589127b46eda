//! Aliases (who), ports and protocols, as the policy file writes them.

use std::net::IpAddr;

use ipnet::IpNet;
use lowroad_wire::control::PortRange;

use super::error::{At, PolicyError};
use super::suggest::nearest;
use super::syntax::Names;

/// Who is meant: the source or the destination of a rule, an owner, an approver.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Alias {
    /// `*`
    Any,
    /// `autogroup:danger-all`, as a source: the whole internet.
    DangerAll,
    /// `autogroup:member`: nodes of users.
    Member,
    /// `autogroup:tagged`
    Tagged,
    /// `autogroup:self`, as a destination: the other devices of the same user.
    OwnDevices,
    /// `autogroup:internet`, as a destination: what lies behind exit nodes.
    Internet,
    /// `name@` or an e-mail address.
    User(String),
    /// `user:*@domain`: nodes of the users whose e-mail address is in the domain.
    Domain(String),
    /// `group:…`, with the prefix.
    Group(String),
    /// `tag:…`, with the prefix.
    Tag(String),
    /// An address, a prefix, or a host name that stands for one.
    Net(IpNet),
}

impl Alias {
    /// The same for all spellings of what is the same.
    pub(crate) fn canonical(&self) -> Self {
        match self {
            Self::User(name) => Self::User(name.to_ascii_lowercase()),
            Self::Domain(domain) => Self::Domain(domain.to_ascii_lowercase()),
            alias => alias.clone(),
        }
    }
}

/// Those that rules can name.
const AUTOGROUPS: [&str; 5] = [
    "autogroup:member",
    "autogroup:tagged",
    "autogroup:self",
    "autogroup:internet",
    "autogroup:danger-all",
];

/// And those that mean users of a role.
const ROLES: [&str; 6] = [
    "owner",
    "admin",
    "network-admin",
    "it-admin",
    "auditor",
    "billing-admin",
];

/// Whether it is called an autogroup, and the language has none of that name.
pub(crate) fn is_unknown_autogroup(name: &str) -> bool {
    let group = name.strip_prefix("autogroup:");
    group.is_some_and(|group| {
        group != "shared" && !ROLES.contains(&group) && !AUTOGROUPS.contains(&name)
    })
}

impl Alias {
    /// Reads an alias and checks that what it names is defined. `role` names the place in errors.
    pub(crate) fn parse(text: At<&str>, role: &str, names: &Names) -> Result<Self, PolicyError> {
        let At { place, value } = text;
        let unknown = |message: String| Err(PolicyError::unknown(text, message));
        if value == "*" {
            return Ok(Self::Any);
        }
        if let Some(group) = value.strip_prefix("autogroup:") {
            return match group {
                "member" => Ok(Self::Member),
                "tagged" => Ok(Self::Tagged),
                "self" => Ok(Self::OwnDevices),
                "internet" => Ok(Self::Internet),
                "danger-all" => Ok(Self::DangerAll),
                role_name if ROLES.contains(&role_name) => {
                    let instead = "only nodeAttrs know roles here (autogroup:owner and autogroup:admin): name users or a group";
                    let what = format!("{role} {value:?}");
                    Err(PolicyError::unsupported(place, what, instead))
                }
                "shared" => {
                    let instead = "take it out: nobody shares nodes with other tailnets here";
                    let what = format!("{role} {value:?}");
                    Err(PolicyError::unsupported(place, what, instead))
                }
                _ => {
                    let message = format!(
                        "{role} {value:?}: no such autogroup; there are member, tagged, self and internet"
                    );
                    let suggestion = nearest(value, AUTOGROUPS);
                    Err(PolicyError::invalid(place, message).suggesting(suggestion))
                }
            };
        }
        if value.starts_with("tag:") {
            return if names.tags.contains(value) {
                Ok(Self::Tag(value.to_owned()))
            } else {
                unknown(format!(
                    "{role} {value:?}: tag not found; define it in tagOwners"
                ))
            };
        }
        if value.starts_with("group:") {
            return if names.groups.contains(value) {
                Ok(Self::Group(value.to_owned()))
            } else {
                unknown(format!(
                    "{role} {value:?}: group not found; define it in groups"
                ))
            };
        }
        if let Some(domain) = value.strip_prefix("user:*@") {
            return Ok(Self::Domain(domain.to_owned()));
        }
        for (kind, instead) in [
            (
                "ipset:",
                "write its prefixes, or give them names in \"hosts\"",
            ),
            (
                "posture:",
                "name only devices that need no posture: by users, groups or tags",
            ),
            ("svc:", "name the nodes that serve it by a tag"),
        ] {
            if value.starts_with(kind) {
                let what = format!("{role} {value:?}");
                return Err(PolicyError::unsupported(place, what, instead));
            }
        }
        if value.contains('@') {
            return Ok(Self::User(user_name(At { place, value })?));
        }
        if let Some(net) = names.hosts.get(value) {
            return Ok(Self::Net(*net));
        }
        if let Some(net) = parse_net(At { place, value }, role)? {
            return Ok(Self::Net(net));
        }
        unknown(format!(
            "{role} {value:?}: no such host; define it in hosts (a user is written `name@`, a tag `tag:name`, a group `group:name`)"
        ))
    }
}

/// Bytes of the longest e-mail address (RFC 5321, 4.5.3.1). Users have no longer names.
const LONGEST_USER_NAME: usize = 320;

/// Checks a user's name: an e-mail address, or `name@` for users without one.
pub(crate) fn user_name(text: At<&str>) -> Result<String, PolicyError> {
    let plain = !text
        .value
        .contains(|c: char| c.is_whitespace() || c.is_control());
    match text.value.split_once('@') {
        Some((local, domain))
            if !local.is_empty()
                && plain
                && !domain.contains('@')
                && text.value.len() <= LONGEST_USER_NAME =>
        {
            Ok(text.value.to_owned())
        }
        _ => {
            let message = format!(
                "{:?} is no user; write an e-mail address or `name@`",
                text.value
            );
            let bare = plain && !text.value.is_empty() && !text.value.contains(['@', ':']);
            let suggestion = bare.then(|| format!("{}@", text.value));
            Err(PolicyError::invalid(text.place, message).suggesting(suggestion))
        }
    }
}

/// An address or a prefix; `None` if the text looks like neither.
pub(crate) fn parse_net(text: At<&str>, role: &str) -> Result<Option<IpNet>, PolicyError> {
    let unbracketed = text
        .value
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .unwrap_or(text.value);
    if let Ok(address) = unbracketed.parse::<IpAddr>() {
        return Ok(Some(IpNet::from(address)));
    }
    let Ok(net) = unbracketed.parse::<IpNet>() else {
        return Ok(None);
    };
    if net.trunc() != net {
        let message = format!(
            "{role} {:?} has host bits set; write {}",
            text.value,
            net.trunc()
        );
        return Err(PolicyError::invalid(text.place, message));
    }
    Ok(Some(net))
}

/// Splits an ACL destination at its last colon into who and ports.
pub(crate) fn split_destination(text: At<&str>) -> Result<(At<&str>, &str), PolicyError> {
    match text.value.rsplit_once(':') {
        Some((who, ports)) if !who.is_empty() && !ports.is_empty() => Ok((
            At {
                place: text.place,
                value: who,
            },
            ports,
        )),
        _ => {
            let message = format!(
                "destination {:?} has no port; write `{}:*` or `{}:443`",
                text.value, text.value, text.value
            );
            Err(PolicyError::invalid(text.place, message))
        }
    }
}

/// `*`, or ports and ranges separated by commas.
pub(crate) fn parse_ports(text: At<&str>) -> Result<Vec<PortRange>, PolicyError> {
    if text.value == "*" {
        return Ok(vec![PortRange::ANY]);
    }
    text.value
        .split(',')
        .map(|part| {
            parse_port_range(part.trim()).ok_or_else(|| {
                let message = format!(
                    "{:?} is no port range; write `*`, `443`, `80,443` or `8000-8100` (0 to 65535)",
                    text.value
                );
                PolicyError::invalid(text.place, message)
            })
        })
        .collect()
}

/// `n` or `a-b`.
pub(crate) fn parse_port_range(text: &str) -> Option<PortRange> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (decimal(first)?, decimal(last)?);
    (first <= last).then_some(PortRange { first, last })
}

/// A number of digits only: `str::parse` would also take `+1`.
pub(crate) fn decimal<T: std::str::FromStr>(text: &str) -> Option<T> {
    (!text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()))
        .then(|| text.parse().ok())
        .flatten()
}

const PROTOCOLS: [(&str, u8); 14] = [
    ("icmp", 1),
    ("igmp", 2),
    ("ipv4", 4),
    ("ip-in-ip", 4),
    ("tcp", 6),
    ("egp", 8),
    ("igp", 9),
    ("udp", 17),
    ("gre", 47),
    ("esp", 50),
    ("ah", 51),
    ("ipv6-icmp", 58),
    ("sctp", 132),
    ("fc", 133),
];

/// A protocol's name or number.
pub(crate) fn parse_protocol(text: At<&str>) -> Result<u8, PolicyError> {
    let named = PROTOCOLS
        .iter()
        .find(|(name, _)| *name == text.value)
        .map(|(_, number)| *number);
    named.or_else(|| decimal(text.value)).ok_or_else(|| {
        let message = format!(
            "{:?} is no protocol; write a number from 0 to 255 or one of {}",
            text.value,
            PROTOCOLS.map(|(name, _)| name).join(", ")
        );
        let suggestion = nearest(text.value, PROTOCOLS.map(|(name, _)| name));
        PolicyError::invalid(text.place, message).suggesting(suggestion)
    })
}

/// A protocol as policies write it.
pub(crate) fn protocol_name(protocol: u8) -> String {
    let named = PROTOCOLS.iter().find(|(_, number)| *number == protocol);
    named.map_or_else(|| protocol.to_string(), |(name, _)| (*name).to_owned())
}

/// Whether a protocol has ports; the others can only be allowed with `*`.
pub(crate) fn has_ports(protocol: u8) -> bool {
    matches!(protocol, 6 | 17 | 132)
}

#[cfg(test)]
mod tests {
    use super::super::error::Place;
    use super::*;

    fn at(value: &str) -> At<&str> {
        At {
            place: Place { line: 1, column: 1 },
            value,
        }
    }

    #[test]
    fn a_destination_splits_at_its_last_colon() {
        let (who, ports) = split_destination(at("fd00:1::/64:443")).unwrap();
        assert_eq!((who.value, ports), ("fd00:1::/64", "443"));
        let (who, ports) = split_destination(at("[fd00:1::1]:*")).unwrap();
        assert_eq!((who.value, ports), ("[fd00:1::1]", "*"));
        for bad in ["", ":", "a", "a:", ":1"] {
            assert!(split_destination(at(bad)).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn users_are_named_as_mail_is_addressed() {
        let long = |length: usize| "x".repeat(length - 1) + "@";
        for good in ["bob@", "ann@example.com", "a+b@x", "日@本", &long(320)] {
            assert_eq!(user_name(at(good)).unwrap(), good);
        }
        for bad in [
            "",
            "@",
            "@x",
            "bob",
            "a b@",
            "a@b@c",
            "a\u{1b}@",
            &long(321),
        ] {
            assert!(user_name(at(bad)).is_err(), "{bad:?}");
        }
        assert_eq!(
            user_name(at("bob")).unwrap_err().suggestion.as_deref(),
            Some("bob@")
        );
    }

    #[test]
    fn ports_are_numbers_and_ranges_that_go_up() {
        let ports = parse_ports(at("80,443, 8000-8100")).unwrap();
        assert_eq!(ports.len(), 3);
        assert_eq!((ports[2].first, ports[2].last), (8000, 8100));
        for bad in [
            "", "http", "1-", "-1", "9-8", "65536", "+1", "1,,2", "*,1", "1 2",
        ] {
            assert!(parse_ports(at(bad)).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn protocols_go_by_name_or_number() {
        assert_eq!(parse_protocol(at("ipv6-icmp")).unwrap(), 58);
        assert_eq!(parse_protocol(at("255")).unwrap(), 255);
        for bad in ["256", "-1", "TCPP", "", "+6"] {
            assert!(parse_protocol(at(bad)).is_err(), "{bad:?}");
        }
    }
}
