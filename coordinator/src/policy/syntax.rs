//! The policy file as checked data: everything that can be judged without knowing users and nodes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use ipnet::IpNet;
use jsonc_parser::ast::Value;
use jsonc_parser::common::Ranged;
use lowroad_wire::control::{CapMap, PortRange};

use super::alias::{Alias, parse_net, user_name};
use super::attributes::Attributes;
use super::error::{At, Place, PolicyError, PolicyErrors};
use super::hujson::{Fields, Text};
use super::origin::Origin;
use super::ssh::{self, SshRule};
use super::suggest::nearest;
use super::trials::{SshTest, Test};
use super::{acl, grant};

/// Top-level fields that lowroad can enforce.
const SUPPORTED: [&str; 11] = [
    "groups",
    "hosts",
    "tagOwners",
    "acls",
    "grants",
    "autoApprovers",
    "tests",
    "ssh",
    "sshTests",
    "nodeAttrs",
    "randomizeClientPort",
];

/// Top-level fields of the language that lowroad knows of but cannot enforce yet.
/// And what to do instead.
const UNSUPPORTED: [(&str, &str); 11] = [
    ("postures", NO_POSTURES),
    ("srcPosture", NO_POSTURES),
    ("defaultSrcPosture", NO_POSTURES),
    (
        "ipsets",
        "write their prefixes into the rules, or give them names in \"hosts\"",
    ),
    (
        "derpMap",
        "leave it out; relays are set by the server's own options",
    ),
    (
        "disableIPv4",
        "give all nodes the attribute \"disable-ipv4\" in nodeAttrs",
    ),
    (
        "OneCGNATRoute",
        "leave it out; it concerns clients on other systems than Linux",
    ),
    (
        "extraDNSRecords",
        "leave it out, and keep these records in a DNS server of your own",
    ),
    ("magicDNS", "leave it out; nodes' names are always resolved"),
    (
        "services",
        "leave it out; name the nodes that serve it by a tag, and their ports",
    ),
    ("tailnetDefaults", "leave it out"),
];
const NO_POSTURES: &str = "leave it out, and let rules name only devices that need no posture";

/// What aliases may refer to.
#[derive(Clone, Debug, Default)]
pub(crate) struct Names {
    pub(crate) tags: BTreeSet<String>,
    pub(crate) groups: BTreeSet<String>,
    pub(crate) hosts: BTreeMap<String, IpNet>,
}

impl Names {
    /// The defined name that is like one that isn't: `unknown` is a whole alias, its prefix included.
    pub(crate) fn nearest(&self, unknown: &str) -> Option<String> {
        let of = |names: &BTreeSet<String>| nearest(unknown, names.iter().map(String::as_str));
        if unknown.starts_with("tag:") {
            return of(&self.tags);
        }
        if unknown.starts_with("group:") {
            return of(&self.groups);
        }
        let without_prefix = |kind: &str, names: &BTreeSet<String>| {
            let name = format!("{kind}{unknown}");
            names.contains(&name).then_some(name)
        };
        without_prefix("group:", &self.groups)
            .or_else(|| without_prefix("tag:", &self.tags))
            .or_else(|| nearest(unknown, self.hosts.keys().map(String::as_str)))
            .or_else(|| of(&self.groups))
            .or_else(|| of(&self.tags))
    }
}

/// A parsed policy.
#[derive(Clone, Debug, Default)]
pub(crate) struct Document {
    /// Of the text, in bytes.
    pub(crate) length: usize,
    pub(crate) names: Names,
    /// Where groups, tags (both with their prefix) and hosts are defined.
    pub(crate) defined: BTreeMap<String, Definition>,
    pub(crate) groups: BTreeMap<String, Vec<At<String>>>,
    pub(crate) tag_owners: BTreeMap<String, Vec<At<Alias>>>,
    /// In the order in which rules are sent: grants, then acls. `None` without either section: all is allowed.
    pub(crate) rules: Option<Vec<Rule>>,
    pub(crate) route_approvers: Vec<(IpNet, Vec<At<Alias>>)>,
    pub(crate) exit_approvers: Vec<At<Alias>>,
    pub(crate) tests: Vec<Test>,
    pub(crate) ssh: Vec<SshRule>,
    pub(crate) ssh_tests: Vec<SshTest>,
    pub(crate) attributes: Vec<Attributes>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Definition {
    pub(crate) place: Place,
    /// Whether any other text in the file names it.
    pub(crate) is_named: bool,
}

/// Sources may reach destinations at ports by some protocols: an ACL, or one protocol of a grant. Or, with `capabilities`,
/// what a grant lets applications at the destinations take the sources for.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rule {
    /// None: the rule that holds without any.
    pub(crate) origin: Option<Origin>,
    /// Where the ACL or grant begins.
    pub(crate) place: Place,
    pub(crate) sources: Vec<At<Alias>>,
    /// Empty: the default ones (TCP, UDP, ICMP).
    pub(crate) protocols: Vec<u8>,
    pub(crate) destinations: Vec<(At<Alias>, Vec<PortRange>)>,
    /// Tags of which one is needed to be the router to the destinations; none: any router.
    pub(crate) via: Arc<[String]>,
    pub(crate) capabilities: Option<Arc<CapMap>>,
}

/// A grant stands for each of its destinations at each of its ports: so many in all grants. Nodes take half a million in all.
const MAX_RULE_PARTS: usize = 1 << 18;

/// Nodes are sent ssh rules whole, once for each user even: so many rules, login names and variables there may be in all.
const MAX_SSH_PARTS: usize = 1 << 12;

impl Document {
    /// Reads everything, whatever is wrong on the way, so that all errors are found at once.
    pub(crate) fn parse(hujson: &str) -> Result<Self, PolicyErrors> {
        let text = Text::new(hujson);
        let root = text.parse()?;
        let mut document = Self {
            length: hujson.len(),
            ..Self::default()
        };
        let known: Vec<&'static str> = SUPPORTED
            .into_iter()
            .chain(UNSUPPORTED.map(|(name, _)| name))
            .collect();
        let fields = text.fields_of(&root, "the policy", &known, &SUPPORTED);
        if let Some(fields) = text.keep(fields) {
            document.read(&text, &fields);
        }
        document.note_names(&root);
        text.finish(|unknown| document.names.nearest(unknown))?;
        Ok(document)
    }

    fn read(&mut self, text: &Text, fields: &Fields) {
        for (name, property) in fields.names() {
            let known = UNSUPPORTED.iter().find(|(known, _)| *known == name);
            if let Some((_, instead)) = known {
                let place = text.at(property.range);
                text.report(PolicyError::unsupported(
                    place,
                    format!("{name:?}"),
                    instead,
                ));
            }
        }
        text.keep(self.read_groups(text, fields));
        text.keep(self.read_hosts(text, fields));
        text.keep(self.read_tag_owners(text, fields));
        text.keep(self.read_rules(text, fields));
        text.keep(self.read_ssh(text, fields));
        text.keep(self.read_attributes(text, fields));
        if let Some(approvers) = fields.get("autoApprovers") {
            text.keep(self.read_approvers(text, approvers));
        }
        if let Some(tests) = fields.get("tests") {
            for test in text.keep(text.list(tests, "tests")).unwrap_or_default() {
                self.tests.extend(text.keep(Test::read(text, test)));
            }
        }
    }

    fn define(&mut self, name: At<&str>) {
        let definition = Definition {
            place: name.place,
            is_named: false,
        };
        self.defined.insert(name.value.to_owned(), definition);
    }

    /// Takes note of the names in all strings below a value: alone, or before a port.
    fn note_names(&mut self, value: &Value) {
        match value {
            Value::StringLit(string) => {
                let whole = string.value.as_ref();
                let host = whole.rsplit_once(':').map(|(host, _)| host);
                for name in std::iter::once(whole).chain(host) {
                    if let Some(definition) = self.defined.get_mut(name) {
                        definition.is_named = true;
                    }
                }
            }
            Value::Array(array) => {
                let elements = array.elements.iter();
                elements.for_each(|element| self.note_names(element));
            }
            Value::Object(object) => {
                let properties = object.properties.iter();
                properties.for_each(|property| self.note_names(&property.value));
            }
            _ => {}
        }
    }

    fn read_ssh(&mut self, text: &Text, fields: &Fields) -> Result<(), PolicyError> {
        if let Some(rules) = fields.get("ssh") {
            let mut room = MAX_SSH_PARTS;
            for rule in text.list(rules, "ssh")? {
                let rule = text.keep(ssh::read(text, rule, &self.names, &mut room));
                self.ssh.extend(rule);
            }
        }
        if let Some(tests) = fields.get("sshTests") {
            for test in text.list(tests, "sshTests")? {
                self.ssh_tests.extend(text.keep(SshTest::read(text, test)));
            }
        }
        Ok(())
    }

    fn read_attributes(&mut self, text: &Text, fields: &Fields) -> Result<(), PolicyError> {
        if let Some(entries) = fields.get("nodeAttrs") {
            for entry in text.list(entries, "nodeAttrs")? {
                let entry = text.keep(Attributes::read(text, entry, &self.names));
                self.attributes.extend(entry);
            }
        }
        if let Some(value) = fields.get("randomizeClientPort")
            && text.flag(value, "randomizeClientPort")?
        {
            let place = text.at(value.range());
            self.attributes.push(Attributes::randomized_ports(place));
        }
        Ok(())
    }

    /// A group with something wrong in it is defined all the same: its name isn't wrong where it is used. So are hosts and tags.
    fn read_groups(&mut self, text: &Text, fields: &Fields) -> Result<(), PolicyError> {
        let Some(groups) = fields.get("groups") else {
            return Ok(());
        };
        for (name, members) in text.table(groups, "groups")? {
            text.keep(check_name(name, "group:", "group"));
            self.define(name);
            let members = text.keep(text.strings(members, name.value));
            let members = members.into_iter().flatten();
            let users = members.filter_map(|member| text.keep(read_member(member)));
            self.groups.insert(name.value.to_owned(), users.collect());
        }
        self.names.groups = self.groups.keys().cloned().collect();
        Ok(())
    }

    fn read_hosts(&mut self, text: &Text, fields: &Fields) -> Result<(), PolicyError> {
        let Some(hosts) = fields.get("hosts") else {
            return Ok(());
        };
        for (name, value) in text.table(hosts, "hosts")? {
            text.keep(check_host_name(name));
            self.define(name);
            let net = text.keep(read_host_address(text, value));
            let net = net.unwrap_or_else(|| IpAddr::from(Ipv4Addr::UNSPECIFIED).into());
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
            text.keep(check_name(*name, "tag:", "tag"));
            self.define(*name);
            self.names.tags.insert(name.value.to_owned());
        }
        for (name, value) in table {
            let owners = text.keep(text.strings(value, name.value));
            let owners = owners.into_iter().flatten();
            let owners = owners.filter_map(|owner| text.keep(self.read_owner(owner)));
            let owners = owners.collect();
            self.tag_owners.insert(name.value.to_owned(), owners);
        }
        Ok(())
    }

    fn read_owner(&self, owner: At<&str>) -> Result<At<Alias>, PolicyError> {
        let place = owner.place;
        let value = Alias::parse(owner, "tag owner", &self.names)?;
        if !matches!(
            value,
            Alias::User(_) | Alias::Group(_) | Alias::Tag(_) | Alias::Member
        ) {
            let message = "a tag is owned by users, groups, tags or autogroup:member";
            return Err(PolicyError::invalid(place, message));
        }
        Ok(At { place, value })
    }

    fn read_rules(&mut self, text: &Text, fields: &Fields) -> Result<(), PolicyError> {
        let mut rules = None;
        let mut room = MAX_RULE_PARTS;
        if let Some(grants) = fields.written("grants") {
            let rules = rules.get_or_insert_with(Vec::new);
            for value in text.keep(text.list(grants, "grants")).unwrap_or_default() {
                let before = rules.len();
                text.keep(grant::read(text, value, &self.names, rules, &mut room));
                for rule in &mut rules[before..] {
                    rule.origin = Some(text.origin(value.range()));
                }
            }
        }
        if let Some(acls) = fields.written("acls") {
            let rules = rules.get_or_insert_with(Vec::new);
            for value in text.list(acls, "acls")? {
                let rule = text.keep(acl::read(text, value, &self.names));
                rules.extend(rule.map(|rule| Rule {
                    origin: Some(text.origin(value.range())),
                    ..rule
                }));
            }
        }
        self.rules = rules;
        Ok(())
    }

    fn read_approvers(&mut self, text: &Text, value: &Value) -> Result<(), PolicyError> {
        const FIELDS: [&str; 3] = ["routes", "exitNode", "services"];
        let fields = text.fields_of(value, "autoApprovers", &FIELDS, &FIELDS[..2])?;
        if let Some(services) = fields.get("services") {
            let place = text.at(services.range());
            text.report(PolicyError::unsupported(
                place,
                "autoApprovers.services",
                "leave it out; name the nodes that serve by a tag",
            ));
        }
        if let Some(routes) = fields.get("routes") {
            let table = text.keep(text.table(routes, "autoApprovers.routes"));
            for (name, approvers) in table.into_iter().flatten() {
                let net = text.keep(read_route(name));
                let approvers = self.approvers(text, approvers);
                self.route_approvers.extend(net.map(|net| (net, approvers)));
            }
        }
        if let Some(exit) = fields.get("exitNode") {
            self.exit_approvers = self.approvers(text, exit);
        }
        Ok(())
    }

    fn approvers(&self, text: &Text, value: &Value) -> Vec<At<Alias>> {
        let approvers = text.keep(text.strings(value, "approvers"));
        let approvers = approvers.into_iter().flatten();
        approvers
            .filter_map(|approver| text.keep(self.read_approver(approver)))
            .collect()
    }

    fn read_approver(&self, approver: At<&str>) -> Result<At<Alias>, PolicyError> {
        let place = approver.place;
        let value = Alias::parse(approver, "approver", &self.names)?;
        let fits = matches!(
            value,
            Alias::User(_) | Alias::Group(_) | Alias::Tag(_) | Alias::Member | Alias::Tagged
        );
        if !fits {
            let message = "routes are approved for nodes of users, groups, tags, autogroup:member or autogroup:tagged";
            return Err(PolicyError::invalid(place, message));
        }
        Ok(At { place, value })
    }
}

fn read_member(member: At<&str>) -> Result<At<String>, PolicyError> {
    let place = member.place;
    if member.value.starts_with("group:") {
        let message = format!(
            "{:?} is a group inside a group; list its users instead",
            member.value
        );
        return Err(PolicyError::invalid(place, message));
    }
    let value = user_name(member)?;
    Ok(At { place, value })
}

fn check_host_name(name: At<&str>) -> Result<(), PolicyError> {
    let clashes = name.value.is_empty()
        || name.value.contains(['*', ':', '/', '@'])
        || name
            .value
            .contains(|c: char| c.is_whitespace() || c.is_control())
        || name.value.parse::<IpAddr>().is_ok();
    if clashes {
        let message = format!(
            "host name {:?} could be taken for something else; use letters, digits, - and .",
            name.value
        );
        return Err(PolicyError::invalid(name.place, message));
    }
    Ok(())
}

fn read_host_address(text: &Text, value: &Value) -> Result<IpNet, PolicyError> {
    let address = text.string(value, "a host's address")?;
    let (place, shown) = (address.place, address.value);
    parse_net(address, "host")?.ok_or_else(|| {
        let message = format!("{shown:?} is neither an address nor a prefix");
        PolicyError::invalid(place, message)
    })
}

fn read_route(name: At<&str>) -> Result<IpNet, PolicyError> {
    let (place, shown) = (name.place, name.value);
    parse_net(name, "route")?.ok_or_else(|| {
        let message = format!("{shown:?} is no prefix; write one like 10.0.0.0/8");
        PolicyError::invalid(place, message)
    })
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
