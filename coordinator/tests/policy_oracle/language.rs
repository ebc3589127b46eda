//! Policies as values, and how they are written. Shares nothing with the compiler.

use std::fmt::Write as _;

/// Ports from one to another, both included.
pub type Ports = (u16, u16);

pub const ALL_PORTS: Ports = (0, u16::MAX);

/// A protocol by the name that policies use, and its number.
pub type Protocol = (&'static str, u8);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    Any,
    /// Devices of the tailnet's owner.
    Owner,
    /// Devices of those who administer it.
    Admin,
    DangerAll,
    Member,
    Tagged,
    OwnDevices,
    Internet,
    User(&'static str),
    /// All users of [`DOMAIN`].
    Domain,
    Group(&'static str),
    Tag(&'static str),
    /// By its name in [`HOSTS`].
    Host(&'static str),
    Net(&'static str),
}

/// The domain of the tailnet's users.
pub const DOMAIN: &str = "example.com";
/// Users have numbers from 1 on, in this order.
pub const USERS: [&str; 4] = [
    "ann@example.com",
    "bob@",
    "carol@example.com",
    "dave@other.net",
];
pub const GROUPS: [&str; 3] = ["group:a", "group:b", "group:c"];
pub const TAGS: [&str; 4] = ["tag:web", "tag:db", "tag:router", "tag:exit"];
pub const HOSTS: [(&str, &str); 4] = [
    ("first", "100.64.0.1"),
    ("lan", "10.0.0.0/16"),
    ("printer", "10.0.1.7"),
    ("six", "fd00:1::/64"),
];

/// Whoever has it is not to know of IPv4 in the tailnet, nor is anybody to know of its IPv4 address.
pub const DISABLE_IPV4: &str = "disable-ipv4";

#[derive(Clone, Debug)]
pub struct Acl {
    pub src: Vec<Who>,
    pub protocol: Option<Protocol>,
    pub dst: Vec<(Who, Vec<Ports>)>,
}

#[derive(Clone, Debug)]
pub struct Grant {
    pub src: Vec<Who>,
    pub dst: Vec<Who>,
    pub ip: Vec<(Option<Protocol>, Ports)>,
    /// A capability and the number that is its only value.
    pub app: Option<(&'static str, u32)>,
    pub via: Vec<&'static str>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Login {
    Root,
    NonRoot,
    /// `localpart:*@example.com`
    LocalPart,
    Name(&'static str),
}

#[derive(Clone, Debug)]
pub struct Ssh {
    pub check: bool,
    pub src: Vec<Who>,
    pub dst: Vec<Who>,
    pub logins: Vec<Login>,
}

#[derive(Clone, Debug, Default)]
pub struct Written {
    /// The members of each of [`GROUPS`].
    pub groups: [Vec<&'static str>; 3],
    pub acls: Option<Vec<Acl>>,
    pub grants: Option<Vec<Grant>>,
    pub route_approvers: Vec<(&'static str, Vec<Who>)>,
    pub exit_approvers: Vec<Who>,
    pub ssh: Vec<Ssh>,
    /// Who has which attributes.
    pub attributes: Vec<(Vec<Who>, Vec<&'static str>)>,
}

impl Who {
    fn text(self) -> String {
        match self {
            Self::Any => "*".to_owned(),
            Self::DangerAll => "autogroup:danger-all".to_owned(),
            Self::Owner => "autogroup:owner".to_owned(),
            Self::Admin => "autogroup:admin".to_owned(),
            Self::Member => "autogroup:member".to_owned(),
            Self::Tagged => "autogroup:tagged".to_owned(),
            Self::OwnDevices => "autogroup:self".to_owned(),
            Self::Internet => "autogroup:internet".to_owned(),
            Self::Domain => format!("user:*@{DOMAIN}"),
            Self::User(name)
            | Self::Group(name)
            | Self::Tag(name)
            | Self::Host(name)
            | Self::Net(name) => name.to_owned(),
        }
    }
}

fn texts(list: &[Who]) -> Vec<String> {
    list.iter().map(|who| who.text()).collect()
}

fn range((first, last): Ports) -> String {
    match (first, last) {
        ALL_PORTS => "*".to_owned(),
        _ if first == last => first.to_string(),
        _ => format!("{first}-{last}"),
    }
}

impl Acl {
    fn text(&self) -> String {
        let protocol = self
            .protocol
            .map_or_else(String::new, |(name, _)| format!(r#""proto": "{name}", "#));
        let to = |(who, ports): &(Who, Vec<Ports>)| {
            let ports: Vec<String> = ports.iter().map(|ports| range(*ports)).collect();
            format!("{}:{}", who.text(), ports.join(","))
        };
        let dst: Vec<String> = self.dst.iter().map(to).collect();
        let src = texts(&self.src);
        format!(r#"{{"action": "accept", {protocol}"src": {src:?}, "dst": {dst:?}}}"#)
    }
}

impl Grant {
    fn text(&self) -> String {
        let entry = |(protocol, ports): &(Option<Protocol>, Ports)| match protocol {
            None => range(*ports),
            Some((name, _)) => format!("{name}:{}", range(*ports)),
        };
        let ip: Vec<String> = self.ip.iter().map(entry).collect();
        let (src, dst, via) = (texts(&self.src), texts(&self.dst), &self.via);
        let mut text = format!(r#"{{"src": {src:?}, "dst": {dst:?}, "ip": {ip:?}"#);
        if let Some((name, value)) = self.app {
            let _ = write!(text, r#", "app": {{"{name}": [{value}]}}"#);
        }
        if !via.is_empty() {
            let _ = write!(text, r#", "via": {via:?}"#);
        }
        text + "}"
    }
}

impl Ssh {
    fn text(&self) -> String {
        let action = if self.check { "check" } else { "accept" };
        let login = |login: &Login| match login {
            Login::Root => "root".to_owned(),
            Login::NonRoot => "autogroup:nonroot".to_owned(),
            Login::LocalPart => format!("localpart:*@{DOMAIN}"),
            Login::Name(name) => (*name).to_owned(),
        };
        let users: Vec<String> = self.logins.iter().map(login).collect();
        let (src, dst) = (texts(&self.src), texts(&self.dst));
        format!(r#"{{"action": "{action}", "src": {src:?}, "dst": {dst:?}, "users": {users:?}}}"#)
    }
}

impl Written {
    /// The policy file.
    pub fn text(&self) -> String {
        let groups = GROUPS.iter().zip(&self.groups);
        let groups: Vec<String> = groups
            .map(|(name, members)| format!("{name:?}: {members:?}"))
            .collect();
        let hosts = HOSTS.map(|(name, net)| format!("{name:?}: {net:?}"));
        let tags = TAGS.map(|tag| format!("{tag:?}: []"));
        let routes = self.route_approvers.iter();
        let routes: Vec<String> = routes
            .map(|(net, who)| format!("{net:?}: {:?}", texts(who)))
            .collect();
        let mut text = format!(
            "{{\"groups\": {{{}}},\n\"hosts\": {{{}}},\n\"tagOwners\": {{{}}},\n\"autoApprovers\": {{\"routes\": {{{}}}, \"exitNode\": {:?}}}",
            groups.join(", "),
            hosts.join(", "),
            tags.join(", "),
            routes.join(", "),
            texts(&self.exit_approvers)
        );
        let mut section = |name: &str, rules: Vec<String>| {
            let _ = write!(text, ",\n\"{name}\": [\n{}]", rules.join(",\n"));
        };
        if let Some(acls) = &self.acls {
            section("acls", acls.iter().map(Acl::text).collect());
        }
        if let Some(grants) = &self.grants {
            section("grants", grants.iter().map(Grant::text).collect());
        }
        section("ssh", self.ssh.iter().map(Ssh::text).collect());
        let given = |(to, names): &(Vec<Who>, Vec<&str>)| {
            format!(r#"{{"target": {:?}, "attr": {names:?}}}"#, texts(to))
        };
        section("nodeAttrs", self.attributes.iter().map(given).collect());
        text + "}\n"
    }
}
