//! The command lines (design.md, Command lines). Names are fixed: scripts and the interop lab call them.

mod edit;
mod policy;

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand};
use ipnet::IpNet;
use time::OffsetDateTime;

pub use edit::{AddRule, Fmt, Tag, TagOwners, Where};
pub use policy::{Policy, Signature};

use crate::{model::Role, text};

pub const DEFAULT_STATE_DIR: &str = "/var/lib/lowroad-coordinator";

/// Coordination server of a lowroad tailnet, with relay and STUN.
///
/// `serve` runs the server. The other commands administer a running server through the socket in its state directory.
#[derive(Debug, Parser)]
#[command(name = "lowroad-coordinator", version, max_term_width = 110)]
pub struct Cli {
    /// Directory that holds the database, the server's keys and the administration socket
    #[arg(long, global = true, value_name = "DIR", env = "LOWROAD_COORDINATOR_STATE_DIR", default_value = DEFAULT_STATE_DIR)]
    pub state_dir: PathBuf,

    /// Print JSON instead of text
    #[arg(long, global = true)]
    pub json: bool,

    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the server
    Serve(Box<Serve>),
    /// Users who own nodes
    #[command(subcommand)]
    Users(Users),
    /// Keys that let machines join without a visit to the login page
    #[command(subcommand)]
    AuthKeys(AuthKeys),
    /// Machines of the tailnet
    #[command(subcommand)]
    Nodes(Nodes),
    /// The policy file: who may reach what
    #[command(subcommand)]
    Policy(Policy),
}

#[derive(Debug, Args, Default)]
pub struct Serve {
    /// File of further settings (JSON with comments); flags win over it
    ///
    /// Beside the flags of this command (listen, url, tls_cert, tls_key, policy, stun, base_domain, derp_map):
    /// relay_ipv4 and relay_ipv6 (addresses of this server, if clients cannot look up its name), nameservers
    /// (a list), override_local_dns, extra_records (a list of {Name, Type, Value}), ephemeral_timeout (`30m`).
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Address to listen on, for control, relay and the login page [default: 0.0.0.0:8080]
    #[arg(long, value_name = "ADDR")]
    pub listen: Option<SocketAddr>,

    /// URL under which clients reach this server, as in `up --login-server=`
    #[arg(long, value_name = "URL")]
    pub url: Option<String>,

    /// Certificate chain (PEM). Without it the relay uses a certificate of its own, pinned in the relay map
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,

    /// Private key of the certificate (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,

    /// Policy file to load into the database when it has changed since it was last loaded from here
    #[arg(long, value_name = "FILE")]
    pub policy: Option<PathBuf>,

    /// Address of the STUN server, or `off` [default: port 3478 of the listen address]
    #[arg(long, value_name = "ADDR")]
    pub stun: Option<StunAddr>,

    /// Suffix of the names of nodes [default: tail.internal]
    #[arg(long, value_name = "NAME")]
    pub base_domain: Option<String>,

    /// Further relay regions: a relay map in JSON, `{"Regions": {"900": {…}}}`
    #[arg(long, value_name = "FILE")]
    pub derp_map: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StunAddr {
    Off,
    At(SocketAddr),
}

impl std::str::FromStr for StunAddr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "off" | "none" => Ok(Self::Off),
            _ => text
                .parse()
                .map(Self::At)
                .map_err(|_| "expected ADDRESS:PORT, such as 0.0.0.0:3478, or `off`".to_owned()),
        }
    }
}

#[derive(Debug, Subcommand)]
pub enum Users {
    /// List all users
    List,
    /// Create a user
    Create {
        /// Login name, such as `alice` or `alice@example.com`
        name: String,
        /// Name to show to people
        #[arg(long)]
        display_name: Option<String>,
    },
    /// Say what a user is to the tailnet: policies name `autogroup:owner`, and `autogroup:admin` for both
    ///
    /// There is one owner; who was it before becomes an administrator. A role gives no right on this server: who may change it is who may open its socket.
    Role {
        /// Login name or ID
        user: String,
        #[arg(value_enum)]
        role: Role,
    },
    /// Delete a user who owns no nodes
    Delete {
        /// Login name or ID
        user: String,
    },
}

#[derive(Debug, Subcommand)]
pub enum AuthKeys {
    /// Create a key. It is shown once and cannot be shown again
    Create {
        /// Owner of the nodes that join with the key; created if there is no such user
        #[arg(long)]
        user: String,
        /// Let any number of nodes join with the key, not just one
        #[arg(long)]
        reusable: bool,
        /// Nodes that join with the key are deleted some time after they disconnect
        #[arg(long)]
        ephemeral: bool,
        /// How long the key can be used, such as 90m, 24h or 30d
        #[arg(long, default_value = "24h", value_parser = text::parse_duration)]
        expiry: Duration,
        /// Tags of the nodes that join with the key; they belong to their tags instead of the user
        #[arg(long, value_delimiter = ',')]
        tags: Vec<String>,
    },
    /// List keys (never their secrets)
    List {
        /// Only keys of this user
        #[arg(long)]
        user: Option<String>,
    },
    /// Expire a key at once. Nodes that joined with it stay
    Expire {
        /// ID of the key, or the key itself
        key: String,
    },
}

#[derive(Debug, Subcommand)]
pub enum Nodes {
    /// List all nodes
    List {
        /// Only nodes of this user
        #[arg(long)]
        user: Option<String>,
    },
    /// Show one node
    Show {
        /// Name, ID or address of the node
        node: String,
    },
    /// Set which of the routes that a node announces may be used; replaces what was approved before
    ApproveRoutes {
        /// Name, ID or address of the node
        node: String,
        /// Prefixes, separated by commas; 0.0.0.0/0 or ::/0 approves an exit node; empty withdraws all
        #[arg(long, required = true, value_delimiter = ',', value_parser = parse_route)]
        routes: Vec<MaybeRoute>,
    },
    /// Let a machine join that waits at a login page
    Approve {
        /// The page's URL, or the last part of it
        registration: String,
        /// Owner of the node; created if there is no such user
        #[arg(long)]
        user: String,
    },
    /// Expire a node's key, at once or when you say: it must log in again then
    ///
    /// A login has no end by itself. One that you set holds until the next login, and may be changed, also after it has come: `--at` and
    /// `--never` make a key good again, also one that the node itself has ended (`logout`).
    Expire {
        /// Name, ID or address of the node
        node: String,
        /// When, such as 2027-01-31T18:00:00Z, instead of at once
        #[arg(long, value_name = "TIME", value_parser = text::parse_time)]
        at: Option<OffsetDateTime>,
        /// Not by itself, whatever was said before
        #[arg(long, conflicts_with = "at")]
        never: bool,
    },
    /// Delete a node
    Delete {
        /// Name, ID or address of the node
        node: String,
    },
    /// Give a node a name of your choice instead of the one it reports
    Rename {
        /// Name, ID or address of the node
        node: String,
        /// New name: letters, digits and hyphens
        name: String,
    },
}

/// A route, or the empty text that stands for none.
#[derive(Debug, Clone)]
pub struct MaybeRoute(pub Option<IpNet>);

fn parse_route(text: &str) -> Result<MaybeRoute, String> {
    let text = text.trim();
    if text.is_empty() {
        return Ok(MaybeRoute(None));
    }
    text::parse_prefix(text).map(|prefix| MaybeRoute(Some(prefix)))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn flags_may_stand_before_and_after_the_command() {
        let before =
            Cli::try_parse_from(["c", "--state-dir", "/x", "--json", "nodes", "list"]).unwrap();
        let after =
            Cli::try_parse_from(["c", "nodes", "list", "--json", "--state-dir=/x"]).unwrap();
        for cli in [before, after] {
            assert!(cli.json);
            assert_eq!(cli.state_dir, PathBuf::from("/x"));
        }
    }

    #[test]
    fn the_interop_lab_is_understood() {
        for line in [
            "c serve --state-dir d --listen 0.0.0.0:443 --url https://hs.lab --tls-cert a --tls-key b --stun 0.0.0.0:3478 --base-domain tail.lab --policy p",
            "c --state-dir d --json auth-keys create --user lab --reusable --expiry 24h --tags tag:a,tag:b",
            "c --state-dir d --json nodes approve-routes b --routes 0.0.0.0/0,::/0,10.0.0.0/24",
            "c --state-dir d --json policy set p",
        ] {
            Cli::try_parse_from(line.split(' ')).unwrap();
        }
    }

    #[test]
    fn a_key_ends_at_once_at_a_time_or_never() {
        let parse = |more: &[&str]| {
            let line = ["c", "nodes", "expire", "b"];
            Cli::try_parse_from(line.iter().chain(more))
        };
        for line in [
            &["--at", "2027-01-31T18:00:00Z"][..],
            &["--at=2027-01-31T18:00:00+01:00"],
            &["--never"],
            &[],
        ] {
            assert!(parse(line).is_ok(), "{line:?}");
        }
        for line in [
            &["--at", "tomorrow"][..],
            &["--at"],
            &["--never", "--at", "2027-01-31T18:00:00Z"],
        ] {
            assert!(parse(line).is_err(), "{line:?}");
        }
    }

    #[test]
    fn routes_are_withdrawn_only_if_that_is_said() {
        let parse = |more: &[&str]| {
            Cli::try_parse_from(["c", "nodes", "approve-routes", "b"].iter().chain(more))
        };
        assert!(parse(&[]).is_err());
        for none in [&["--routes", ""][..], &["--routes="]] {
            let Command::Nodes(Nodes::ApproveRoutes { routes, .. }) = parse(none).unwrap().command
            else {
                panic!("another command");
            };
            assert!(routes.iter().all(|route| route.0.is_none()));
        }
    }
}
