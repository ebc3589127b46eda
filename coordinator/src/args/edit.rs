//! The command lines of `policy fmt`, `policy add-rule` and `policy tag`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::{Map, Value};

use super::policy::Signature;
use crate::{
    policy::edit::{AclRule, GrantRule, NewRule},
    text::harmless,
};

/// Characters of the words that `policy log` shows of a change whose author gave none.
const LONGEST_WORDS: usize = 200;

#[derive(Debug, Args)]
pub struct Fmt {
    /// File to lay out in place; `-` or none: standard input, to standard output
    pub file: Option<PathBuf>,
    /// Change nothing; fail if the layout is another one
    #[arg(long)]
    pub check: bool,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  policy add-rule --src group:dev,alice@ --dst tag:web:80,443,tag:db:5432 --proto tcp\n  policy add-rule --file policy.hujson --grant --src group:dev --dst 10.0.0.0/8 --ip tcp:443,icmp:* --via tag:router"
)]
pub struct AddRule {
    #[command(flatten)]
    pub place: Where,
    /// Add a grant instead of an acl
    #[arg(long)]
    pub grant: bool,
    /// Sources, separated by commas: users, groups, tags, hosts, addresses, `*`
    #[arg(long, required = true, value_delimiter = ',')]
    pub src: Vec<String>,
    /// Destinations, separated by commas; in an acl with their ports, as in `tag:web:80,443,10.0.0.0/8:*`
    #[arg(long, required = true, value_delimiter = ',')]
    pub dst: Vec<String>,
    /// Protocol of an acl, by name or number
    #[arg(long, conflicts_with = "grant")]
    pub proto: Option<String>,
    /// What a grant opens, separated by commas: `*`, ports, or protocols with ports such as `tcp:443`
    #[arg(long, value_delimiter = ',', requires = "grant")]
    pub ip: Vec<String>,
    /// Capabilities of a grant, in JSON: {"NAME": [{…}]}
    #[arg(long, value_name = "JSON", requires = "grant", value_parser = parse_app)]
    pub app: Option<App>,
    /// Tags of the routers that a grant leads through, separated by commas
    #[arg(long, value_delimiter = ',', requires = "grant")]
    pub via: Vec<String>,
}

#[derive(Debug, Subcommand)]
pub enum Tag {
    /// Make a tag known, and let owners assign it
    Add(TagOwners),
    /// Take owners from a tag, or without --owner take the tag out of the policy
    Remove(TagOwners),
}

#[derive(Debug, Args)]
pub struct TagOwners {
    /// Name of the tag, with or without `tag:`
    #[arg(value_parser = parse_tag)]
    pub tag: String,
    /// Owners, separated by commas, as the policy writes them: users, groups, tags or autogroup:member
    #[arg(long, value_delimiter = ',')]
    pub owner: Vec<String>,
    #[command(flatten)]
    pub place: Where,
}

/// What is changed, and what the log of the policy says of it.
#[derive(Debug, Args)]
pub struct Where {
    /// Policy file to change [default: the policy in force on the server]
    #[arg(long, value_name = "FILE", conflicts_with = "message")]
    pub file: Option<PathBuf>,
    #[command(flatten)]
    pub signature: Signature,
}

/// A grant's capabilities.
#[derive(Debug, Clone)]
pub struct App(pub Map<String, Value>);

fn parse_app(text: &str) -> Result<App, String> {
    serde_json::from_str(text).map(App).map_err(|error| {
        format!("{error}; write an object such as {{\"example.com/cap/x\": [{{}}]}}")
    })
}

/// Whether it is a good name, the policy says.
fn parse_tag(text: &str) -> Result<String, std::convert::Infallible> {
    Ok(format!("tag:{}", text.strip_prefix("tag:").unwrap_or(text)))
}

impl AddRule {
    pub fn rule(&self) -> NewRule {
        if self.grant {
            return NewRule::Grant(GrantRule {
                sources: self.src.clone(),
                destinations: self.dst.clone(),
                ip: self.ip.clone(),
                app: self.app.clone().map(|app| app.0).unwrap_or_default(),
                via: self.via.clone(),
            });
        }
        NewRule::Acl(AclRule {
            protocol: self.proto.clone(),
            sources: self.src.clone(),
            destinations: join_ports(&self.dst),
        })
    }

    /// The change in few words, much as it is on the command line.
    pub fn words(&self) -> String {
        let mut words = "add-rule".to_owned();
        if self.grant {
            words.push_str(" --grant");
        }
        let app = self.app.iter().flat_map(|app| app.0.keys().cloned());
        for (flag, values) in [
            ("src", &self.src),
            ("dst", &self.dst),
            ("proto", &self.proto.iter().cloned().collect()),
            ("ip", &self.ip),
            ("app", &app.collect()),
            ("via", &self.via),
        ] {
            add_flag(&mut words, flag, values);
        }
        one_line(&words)
    }
}

impl Tag {
    /// As [`AddRule::words`].
    pub fn words(&self) -> String {
        let (verb, asked) = match self {
            Self::Add(asked) => ("add", asked),
            Self::Remove(asked) => ("remove", asked),
        };
        let mut words = format!("tag {verb} {}", asked.tag);
        add_flag(&mut words, "owner", &asked.owner);
        one_line(&words)
    }
}

fn add_flag(words: &mut String, flag: &str, values: &[String]) {
    if !values.is_empty() {
        words.push_str(&format!(" --{flag} {}", values.join(",")));
    }
}

fn one_line(words: &str) -> String {
    let mut line: String = words.chars().map(harmless).take(LONGEST_WORDS).collect();
    if words.chars().nth(LONGEST_WORDS).is_some() {
        line.push('…');
    }
    line
}

/// A comma stands between destinations, and between the ports of one: what looks like ports belongs to the one before.
fn join_ports(pieces: &[String]) -> Vec<String> {
    let mut destinations: Vec<String> = Vec::new();
    for piece in pieces {
        let is_ports = !piece.is_empty()
            && piece
                .chars()
                .all(|char| char.is_ascii_digit() || char == '-');
        match destinations.last_mut() {
            Some(last) if is_ports => {
                last.push(',');
                last.push_str(piece);
            }
            _ => destinations.push(piece.clone()),
        }
    }
    destinations
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::args::{Cli, Command, Policy};

    fn add_rule(line: &str) -> Result<AddRule, clap::Error> {
        let cli = Cli::try_parse_from(
            ["c", "policy", "add-rule"]
                .into_iter()
                .chain(line.split(' ')),
        )?;
        let Command::Policy(Policy::AddRule(asked)) = cli.command else {
            panic!("another command");
        };
        Ok(asked)
    }

    fn rule(line: &str) -> Result<NewRule, clap::Error> {
        add_rule(line).map(|asked| asked.rule())
    }

    #[test]
    fn a_change_says_in_one_line_what_it_is() {
        for line in [
            "--src a@,tag:b --dst tag:x:80,443,h:22 --proto tcp",
            "--grant --src a@ --dst tag:x --ip tcp:443,* --via tag:r",
        ] {
            let words = add_rule(line).unwrap().words();
            assert_eq!(words, format!("add-rule {line}"));
        }
        let app = r#"--grant --src a@ --dst tag:x --app {"e.com/c":[{}]}"#;
        let words = add_rule(app).unwrap().words();
        assert_eq!(words, "add-rule --grant --src a@ --dst tag:x --app e.com/c");
        let long = format!("--src a\nb --dst {}:22", "é".repeat(300));
        let words = add_rule(&long).unwrap().words();
        assert!(words.starts_with("add-rule --src a\u{fffd}b --dst éé") && words.ends_with("é…"));
        assert_eq!(words.chars().count(), LONGEST_WORDS + 1);
    }

    #[test]
    fn a_message_is_for_the_log_and_a_file_has_none() {
        let asked = add_rule("--src a@ --dst h:22 --author ann -m why").unwrap();
        let signature = asked.place.signature;
        assert_eq!(signature.author.as_deref(), Some("ann"));
        assert_eq!(signature.message.as_deref(), Some("why"));
        assert!(add_rule("--src a@ --dst h:22 --file p -m why").is_err());
    }

    #[test]
    fn lists_of_destinations_hold_lists_of_ports() {
        let NewRule::Acl(acl) =
            rule("--src a@,tag:b --dst tag:x:80,443,1000-2000,fd00::/64:*,h:22 --proto tcp")
                .unwrap()
        else {
            panic!("no acl");
        };
        assert_eq!(acl.sources, ["a@", "tag:b"]);
        assert_eq!(
            acl.destinations,
            ["tag:x:80,443,1000-2000", "fd00::/64:*", "h:22"]
        );
        assert_eq!(acl.protocol.as_deref(), Some("tcp"));
    }

    #[test]
    fn what_belongs_to_grants_is_refused_without_grant() {
        let NewRule::Grant(grant) = rule(
            r#"--grant --src a@ --dst tag:x --ip tcp:443,* --app {"e.com/c":[{}]} --via tag:r"#,
        )
        .unwrap() else {
            panic!("no grant");
        };
        assert_eq!(grant.ip, ["tcp:443", "*"]);
        assert!(grant.app["e.com/c"].is_array());
        for line in [
            "--src a@ --dst tag:x --ip *",
            "--src a@ --dst tag:x --via tag:r",
            "--grant --src a@ --dst tag:x --proto tcp",
            "--grant --src a@ --dst tag:x --app []",
            "--grant --dst tag:x",
        ] {
            assert!(rule(line).is_err(), "{line}");
        }
    }
}
