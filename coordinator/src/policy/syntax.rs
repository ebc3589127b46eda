//! The policy file as checked data: everything that can be judged without knowing users and nodes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ipnet::IpNet;
use jsonc_parser::ast::Value;
use jsonc_parser::common::Ranged;
use lowroad_wire::control::{CapMap, PortRange};

use super::alias::{Alias, parse_net, user_name};
use super::error::{At, PolicyError};
use super::hujson::{Fields, Text};
use super::origin::Origin;
use super::{acl, grant};

/// Top-level fields that lowroad can enforce.
const SUPPORTED: [&str; 7] = [
    "groups",
    "hosts",
    "tagOwners",
    "acls",
    "grants",
    "autoApprovers",
    "tests",
];

/// Top-level fields of the language that lowroad knows of but cannot enforce yet.
const UNSUPPORTED: [&str; 15] = [
    "ssh",
    "sshTests",
    "nodeAttrs",
    "randomizeClientPort",
    "postures",
    "srcPosture",
    "defaultSrcPosture",
    "ipsets",
    "derpMap",
    "disableIPv4",
    "OneCGNATRoute",
    "extraDNSRecords",
    "magicDNS",
    "services",
    "tailnetDefaults",
];

/// What aliases may refer to.
#[derive(Clone, Debug, Default)]
pub(crate) struct Names {
    pub(crate) tags: BTreeSet<String>,
    pub(crate) groups: BTreeSet<String>,
    pub(crate) hosts: BTreeMap<String, IpNet>,
}

/// A parsed policy.
#[derive(Clone, Debug, Default)]
pub(crate) struct Document {
    pub(crate) names: Names,
    pub(crate) groups: BTreeMap<String, Vec<At<String>>>,
    pub(crate) tag_owners: BTreeMap<String, Vec<At<Alias>>>,
    /// In the order in which rules are sent: grants, then acls. `None` without either section: all is allowed.
    pub(crate) rules: Option<Vec<Rule>>,
    pub(crate) route_approvers: Vec<(IpNet, Vec<At<Alias>>)>,
    pub(crate) exit_approvers: Vec<At<Alias>>,
    pub(crate) tests: Vec<Test>,
}

/// Sources may reach destinations at ports by some protocols: an ACL, or one protocol of a grant. Or, with `capabilities`,
/// what a grant lets applications at the destinations take the sources for.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rule {
    /// None: the rule that holds without any.
    pub(crate) origin: Option<Origin>,
    pub(crate) sources: Vec<At<Alias>>,
    /// Empty: the default ones (TCP, UDP, ICMP).
    pub(crate) protocols: Vec<u8>,
    pub(crate) destinations: Vec<(At<Alias>, Vec<PortRange>)>,
    /// Tags of which one is needed to be the router to the destinations; none: any router.
    pub(crate) via: Vec<String>,
    pub(crate) capabilities: Option<Arc<CapMap>>,
}

/// One entry of `tests`, as written: whatever is wrong with it makes it fail when it is run.
#[derive(Clone, Debug)]
pub(crate) struct Test {
    pub(crate) source: At<String>,
    pub(crate) protocol: Option<At<String>>,
    pub(crate) accept: Vec<At<String>>,
    pub(crate) deny: Vec<At<String>>,
}

/// A grant stands for each of its destinations at each of its ports: so many in all grants. Nodes take half a million in all.
const MAX_RULE_PARTS: usize = 1 << 18;

impl Document {
    pub(crate) fn parse(hujson: &str) -> Result<Self, PolicyError> {
        let text = Text::new(hujson);
        let root = text.parse()?;
        let known: Vec<&'static str> = SUPPORTED.iter().chain(&UNSUPPORTED).copied().collect();
        if let Some(object) = root.as_object() {
            refuse_unknown(&text, object)?;
        }
        let fields = text.fields(&root, "the policy", &known)?;
        for (name, property) in fields.names() {
            if UNSUPPORTED.contains(&name) {
                let place = text.at(property.range);
                return Err(PolicyError::unsupported(place, format!("{name:?}")));
            }
        }
        let mut document = Self::default();
        document.read_groups(&text, &fields)?;
        document.read_hosts(&text, &fields)?;
        document.read_tag_owners(&text, &fields)?;
        document.read_rules(&text, &fields)?;
        if let Some(approvers) = fields.get("autoApprovers") {
            document.read_approvers(&text, approvers)?;
        }
        if let Some(tests) = fields.get("tests") {
            for test in text.list(tests, "tests")? {
                document.tests.push(read_test(&text, test)?);
            }
        }
        Ok(document)
    }

    fn read_groups(&mut self, text: &Text, fields: &Fields) -> Result<(), PolicyError> {
        let Some(groups) = fields.get("groups") else {
            return Ok(());
        };
        for (name, members) in text.table(groups, "groups")? {
            check_name(name, "group:", "group")?;
            let mut users = Vec::new();
            for member in text.strings(members, name.value)? {
                if member.value.starts_with("group:") {
                    let message = format!(
                        "{:?} is a group inside a group; list its users instead",
                        member.value
                    );
                    return Err(PolicyError::invalid(member.place, message));
                }
                let place = member.place;
                users.push(At {
                    place,
                    value: user_name(member)?,
                });
            }
            self.groups.insert(name.value.to_owned(), users);
        }
        self.names.groups = self.groups.keys().cloned().collect();
        Ok(())
    }

    fn read_hosts(&mut self, text: &Text, fields: &Fields) -> Result<(), PolicyError> {
        let Some(hosts) = fields.get("hosts") else {
            return Ok(());
        };
        for (name, value) in text.table(hosts, "hosts")? {
            let clashes = name.value.is_empty()
                || name.value.contains(['*', ':', '/', '@', ' '])
                || name.value.parse::<std::net::IpAddr>().is_ok();
            if clashes {
                let message = format!(
                    "host name {:?} could be taken for something else; use letters, digits, - and .",
                    name.value
                );
                return Err(PolicyError::invalid(name.place, message));
            }
            let address = text.string(value, "a host's address")?;
            let place = address.place;
            let shown = address.value;
            let net = parse_net(address, "host")?.ok_or_else(|| {
                let message = format!("{shown:?} is neither an address nor a prefix");
                PolicyError::invalid(place, message)
            })?;
            self.names.hosts.insert(name.value.to_owned(), net);
        }
        Ok(())
    }

    fn read_tag_owners(&mut self, text: &Text, fields: &Fields) -> Result<(), PolicyError> {
        let Some(owners) = fields.get("tagOwners") else {
            return Ok(());
        };
        let table = text.table(owners, "tagOwners")?;
        for (name, _) in &table {
            check_name(*name, "tag:", "tag")?;
            self.names.tags.insert(name.value.to_owned());
        }
        for (name, value) in table {
            let mut list = Vec::new();
            for owner in text.strings(value, name.value)? {
                let place = owner.place;
                let alias = Alias::parse(owner, "tag owner", &self.names)?;
                if !matches!(
                    alias,
                    Alias::User(_) | Alias::Group(_) | Alias::Tag(_) | Alias::Member
                ) {
                    let message = "a tag is owned by users, groups, tags or autogroup:member";
                    return Err(PolicyError::invalid(place, message));
                }
                list.push(At {
                    place,
                    value: alias,
                });
            }
            self.tag_owners.insert(name.value.to_owned(), list);
        }
        Ok(())
    }

    fn read_rules(&mut self, text: &Text, fields: &Fields) -> Result<(), PolicyError> {
        let mut rules = None;
        let mut room = MAX_RULE_PARTS;
        if let Some(grants) = fields.written("grants") {
            let rules = rules.get_or_insert_with(Vec::new);
            for value in text.list(grants, "grants")? {
                let before = rules.len();
                grant::read(text, value, &self.names, rules, &mut room)?;
                for rule in &mut rules[before..] {
                    rule.origin = Some(text.origin(value.range()));
                }
            }
        }
        if let Some(acls) = fields.written("acls") {
            let rules = rules.get_or_insert_with(Vec::new);
            for value in text.list(acls, "acls")? {
                rules.push(Rule {
                    origin: Some(text.origin(value.range())),
                    ..acl::read(text, value, &self.names)?
                });
            }
        }
        self.rules = rules;
        Ok(())
    }

    fn read_approvers(&mut self, text: &Text, value: &Value) -> Result<(), PolicyError> {
        let fields = text.fields(value, "autoApprovers", &["routes", "exitNode", "services"])?;
        if let Some(services) = fields.get("services") {
            let place = text.at(services.range());
            return Err(PolicyError::unsupported(place, "autoApprovers.services"));
        }
        if let Some(routes) = fields.get("routes") {
            for (name, approvers) in text.table(routes, "autoApprovers.routes")? {
                let (place, shown) = (name.place, name.value);
                let net = parse_net(name, "route")?.ok_or_else(|| {
                    let message = format!("{shown:?} is no prefix; write one like 10.0.0.0/8");
                    PolicyError::invalid(place, message)
                })?;
                let approvers = self.approvers(text, approvers)?;
                self.route_approvers.push((net, approvers));
            }
        }
        if let Some(exit) = fields.get("exitNode") {
            self.exit_approvers = self.approvers(text, exit)?;
        }
        Ok(())
    }

    fn approvers(&self, text: &Text, value: &Value) -> Result<Vec<At<Alias>>, PolicyError> {
        let mut approvers = Vec::new();
        for approver in text.strings(value, "approvers")? {
            let place = approver.place;
            let alias = Alias::parse(approver, "approver", &self.names)?;
            let fits = matches!(
                alias,
                Alias::User(_) | Alias::Group(_) | Alias::Tag(_) | Alias::Member | Alias::Tagged
            );
            if !fits {
                let message = "routes are approved for nodes of users, groups, tags, autogroup:member or autogroup:tagged";
                return Err(PolicyError::invalid(place, message));
            }
            approvers.push(At {
                place,
                value: alias,
            });
        }
        Ok(approvers)
    }
}

/// The error for an unknown top-level field names the supported ones only.
fn refuse_unknown(text: &Text, object: &jsonc_parser::ast::Object) -> Result<(), PolicyError> {
    for property in &object.properties {
        let name = property.name.as_str();
        let known = SUPPORTED
            .iter()
            .chain(&UNSUPPORTED)
            .any(|known| known.eq_ignore_ascii_case(name));
        if !known {
            let message = format!(
                "the policy has no field {name:?}; it may have {}",
                SUPPORTED.join(", ")
            );
            return Err(text.invalid(property, message));
        }
    }
    Ok(())
}

/// `tag:` and `group:` names: the rest holds no separators, and a tag's begins with a letter.
fn check_name(name: At<&str>, prefix: &str, what: &str) -> Result<(), PolicyError> {
    let good = name.value.strip_prefix(prefix).is_some_and(|rest| {
        rest.starts_with(|c: char| {
            c.is_ascii_alphabetic() || what == "group" && c.is_alphanumeric()
        }) && !rest.contains(|c: char| c.is_whitespace() || c.is_control() || ":,/*@".contains(c))
    });
    if good {
        return Ok(());
    }
    let message = format!(
        "{:?} is no {what}; write `{prefix}name`, the name beginning with a letter",
        name.value
    );
    Err(PolicyError::invalid(name.place, message))
}

fn read_test(text: &Text, value: &Value) -> Result<Test, PolicyError> {
    let known = ["src", "proto", "accept", "deny", "srcPostureAttrs"];
    let fields = text.fields(value, "a test", &known)?;
    if let Some(attributes) = fields.get("srcPostureAttrs") {
        let place = text.at(attributes.range());
        return Err(PolicyError::unsupported(place, "srcPostureAttrs"));
    }
    let owned = |value: At<&str>| value.map(str::to_owned);
    let list = |name: &str| match fields.get(name) {
        Some(value) => Ok(text.strings(value, name)?.into_iter().map(owned).collect()),
        None => Ok(Vec::new()),
    };
    Ok(Test {
        source: match fields.get("src") {
            Some(source) => owned(text.string(source, "src")?),
            None => At {
                place: fields.place,
                value: String::new(),
            },
        },
        protocol: match fields.get("proto") {
            Some(protocol) => Some(owned(text.string(protocol, "proto")?)),
            None => None,
        },
        accept: list("accept")?,
        deny: list("deny")?,
    })
}
