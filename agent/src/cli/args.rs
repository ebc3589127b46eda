//! The command line, in the stock client's names.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::status::PingKind;

pub const DEFAULT_SOCKET: &str = "/run/lowroad/lowroad.sock";
pub const DEFAULT_STATE_DIR: &str = "/var/lib/lowroad";

/// A node of a Tailscale-style mesh whose packets stay in the kernel.
#[derive(Debug, Parser)]
#[command(
    name = "lowroad",
    disable_version_flag = true,
    disable_help_subcommand = true,
    subcommand_required = true
)]
pub struct Cli {
    /// The agent's Unix socket.
    #[arg(long, global = true, default_value = DEFAULT_SOCKET, env = "LOWROAD_SOCKET")]
    pub socket: PathBuf,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the daemon.
    Agent(AgentArgs),
    /// Connect, logging in if needed; returns when connected.
    Up(UpArgs),
    /// Disconnect and remove everything lowroad made on this host.
    Down,
    /// Change some settings and leave the others alone.
    Set(SettingArgs),
    /// Log in to a tailnet.
    Login(UpArgs),
    /// Disconnect and log out: the node's key expires at the coordination server.
    Logout,
    /// Show this node and its peers.
    Status(StatusArgs),
    /// Show the addresses of this node or of a peer.
    Ip(IpArgs),
    /// Ping a peer and show the path it takes.
    Ping(PingArgs),
    /// Show the machine and user behind an address.
    Whois(WhoisArgs),
    /// Report on the networks this node is in.
    Netcheck(NetcheckArgs),
    /// Show the version.
    Version(VersionArgs),
    /// Show packets that the policy refused.
    Flows(FlowsArgs),
    /// Say which rule accepts or refuses a packet.
    #[command(hide = true)]
    Why(Rest),
    #[command(hide = true)]
    Doctor(Rest),
}

/// Arguments of a command that does not exist yet.
#[derive(Debug, Args)]
pub struct Rest {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub rest: Vec<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum DataplaneChoice {
    /// The kernel's WireGuard if it has one.
    #[default]
    Auto,
    Kernel,
    Userspace,
}

#[derive(Debug, Args)]
pub struct AgentArgs {
    /// Where identity and preferences are kept.
    #[arg(long, default_value = DEFAULT_STATE_DIR, env = "LOWROAD_STATE_DIR")]
    pub state_dir: PathBuf,
    /// UDP port of WireGuard and path discovery; the next one is used on the loopback device.
    #[arg(long, default_value_t = 41641, value_parser = clap::value_parser!(u16).range(1..65535))]
    pub port: u16,
    /// Name of the tunnel device.
    #[arg(long, default_value = "lowroad0", value_parser = device_name)]
    pub tun: String,
    #[arg(long, value_enum, default_value_t)]
    pub dataplane: DataplaneChoice,
    /// Mark of lowroad's own packets, which keeps them out of the tunnel.
    #[arg(long, default_value = "0x02000000", value_parser = mark)]
    pub fwmark: u32,
    /// Group whose members may operate lowroad without being root; empty: none.
    #[arg(long, default_value = "lowroad")]
    pub operator_group: String,
    /// Remove everything an agent left in the kernel, and exit.
    #[arg(long)]
    pub cleanup: bool,
    /// Log decisions too; twice: every packet handled in userspace.
    #[arg(long, short, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// Log as JSON lines.
    #[arg(long)]
    pub log_json: bool,
}

#[derive(Clone, Debug, Default, Args)]
pub struct SettingArgs {
    /// Install the subnet routes of other nodes.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub accept_routes: Option<bool>,
    /// Use the tailnet's DNS (stored; has no effect yet).
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub accept_dns: Option<bool>,
    /// Refuse all incoming connections.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub shields_up: Option<bool>,
    /// Name to use instead of the host's.
    #[arg(long)]
    pub hostname: Option<String>,
    /// User who may operate lowroad without being root.
    #[arg(long)]
    pub operator: Option<String>,
    /// Subnets to route for other nodes (refused until the gateway exists).
    #[arg(long, value_delimiter = ',')]
    pub advertise_routes: Option<Vec<String>>,
    /// Offer to be an exit node (refused until the gateway exists).
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub advertise_exit_node: Option<bool>,
    /// Exit node to use (refused until the gateway exists).
    #[arg(long)]
    pub exit_node: Option<String>,
}

#[derive(Clone, Debug, Default, Args)]
pub struct UpArgs {
    #[command(flatten)]
    pub settings: SettingArgs,
    /// URL of the coordination server.
    #[arg(long)]
    pub login_server: Option<String>,
    /// Auth key, or file:PATH. A key given here is hidden from the process list at once, but stays in the shell's history.
    #[arg(
        long,
        visible_alias = "authkey",
        env = "LOWROAD_AUTH_KEY",
        hide_env_values = true
    )]
    pub auth_key: Option<String>,
    /// Tags to ask for.
    #[arg(long, value_delimiter = ',')]
    pub advertise_tags: Option<Vec<String>>,
    /// Set everything that is not named to its default.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub reset: Option<bool>,
    /// Log in again with a new key even if the current one is valid.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub force_reauth: Option<bool>,
    /// Trust the server although its key is not the one seen before.
    #[arg(long)]
    pub accept_server_key: bool,
    /// Give up after this time; 0s waits as long as it takes.
    #[arg(long, default_value = "0s", value_parser = duration)]
    pub timeout: Duration,
}

#[derive(Clone, Debug, Args)]
pub struct StatusArgs {
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false")]
    pub json: Option<bool>,
    /// Show peers.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "true")]
    pub peers: Option<bool>,
    /// Show this node.
    #[arg(long = "self", num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "true")]
    pub self_node: Option<bool>,
    /// Show active peers only.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false")]
    pub active: Option<bool>,
}

#[derive(Debug, Args)]
pub struct IpArgs {
    /// IPv4 only.
    #[arg(short = '4', long = "4")]
    pub v4: bool,
    /// IPv6 only.
    #[arg(short = '6', long = "6", conflicts_with = "v4")]
    pub v6: bool,
    /// One address only.
    #[arg(short = '1', long = "1")]
    pub one: bool,
    pub peer: Option<String>,
}

#[derive(Debug, Args)]
pub struct PingArgs {
    /// How many pings; 0 does not stop.
    #[arg(short, default_value_t = 10)]
    pub c: u32,
    /// Stop once a direct path is found.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "true")]
    pub until_direct: Option<bool>,
    /// How long to wait for each answer.
    #[arg(long, default_value = "5s", value_parser = duration)]
    pub timeout: Duration,
    /// Ping through the tunnel; the peer's node answers, whatever its policy. Ends with the first answer.
    #[arg(long)]
    pub tsmp: bool,
    /// Ping through the tunnel by ICMP; the peer's operating system answers, if its policy lets it. Ends with the first answer.
    #[arg(long, conflicts_with = "tsmp")]
    pub icmp: bool,
    pub peer: String,
}

impl PingArgs {
    pub fn kind(&self) -> PingKind {
        match (self.tsmp, self.icmp) {
            (true, _) => PingKind::Tsmp,
            (_, true) => PingKind::Icmp,
            _ => PingKind::Disco,
        }
    }
}

#[derive(Debug, Args)]
pub struct WhoisArgs {
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false")]
    pub json: Option<bool>,
    /// An address or address:port.
    pub address: String,
}

#[derive(Debug, Args)]
pub struct NetcheckArgs {
    /// `json` or `json-line` instead of text.
    #[arg(long)]
    pub format: Option<String>,
}

#[derive(Debug, Args)]
pub struct VersionArgs {
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false")]
    pub json: Option<bool>,
}

#[derive(Debug, Args)]
pub struct FlowsArgs {
    /// Go on with events as they happen.
    #[arg(long, short)]
    pub follow: bool,
    /// One JSON object a line.
    #[arg(long)]
    pub json: bool,
    /// Only packets from or to this address.
    #[arg(long)]
    pub host: Option<std::net::IpAddr>,
    /// Only packets of this protocol: tcp, udp, icmp or a number.
    #[arg(long)]
    pub proto: Option<String>,
    /// Only packets from or to this port.
    #[arg(long)]
    pub port: Option<u16>,
    /// Only drops with this reason.
    #[arg(long)]
    pub reason: Option<String>,
}

/// Durations as Go writes them: `1m30s`, `500ms`, `1.5s`, `0`.
pub fn duration(text: &str) -> Result<Duration, String> {
    let bad = || format!("{text:?} is not a duration; write 500ms, 40s or 1m30s");
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let mut rest = text;
    let mut total = 0f64;
    while !rest.is_empty() {
        let digits = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .ok_or_else(bad)?;
        let number: f64 = rest[..digits].parse().map_err(|_| bad())?;
        rest = &rest[digits..];
        let end = rest
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(rest.len());
        total += number
            * match &rest[..end] {
                "ns" => 1e-9,
                "us" | "µs" => 1e-6,
                "ms" => 1e-3,
                "s" => 1.0,
                "m" => 60.0,
                "h" => 3600.0,
                _ => return Err(bad()),
            };
        rest = &rest[end..];
    }
    if text.is_empty() {
        return Err(bad());
    }
    Duration::try_from_secs_f64(total).map_err(|_| bad())
}

fn mark(text: &str) -> Result<u32, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16),
        None => text.parse(),
    };
    match parsed {
        Ok(mark) if mark.count_ones() == 1 => Ok(mark),
        _ => Err(format!(
            "{text:?} is not a mark of one bit, such as 0x02000000"
        )),
    }
}

/// The kernel's rules for device names.
fn device_name(text: &str) -> Result<String, String> {
    let valid = (1..=15).contains(&text.len())
        && text != "."
        && text != ".."
        && !text.contains(|c: char| c == '/' || c == ':' || c.is_whitespace());
    if valid {
        Ok(text.to_owned())
    } else {
        Err(format!(
            "{text:?} is not a device name: 1 to 15 characters without / : and spaces"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_may_follow_a_flag_with_an_equals_sign_or_as_the_next_word() {
        for line in [
            &[
                "lowroad",
                "up",
                "--login-server=http://c",
                "--auth-key=k",
                "--timeout=40s",
                "--accept-routes",
            ][..],
            &[
                "lowroad",
                "up",
                "--login-server",
                "http://c",
                "--auth-key",
                "k",
                "--timeout",
                "40s",
                "--accept-routes=true",
            ],
        ] {
            let Command::Up(up) = Cli::try_parse_from(line).unwrap().command else {
                panic!("not up")
            };
            assert_eq!(up.login_server.as_deref(), Some("http://c"));
            assert_eq!(up.auth_key.as_deref(), Some("k"));
            assert_eq!(up.timeout, Duration::from_secs(40));
            assert_eq!(up.settings.accept_routes, Some(true));
        }
    }

    #[test]
    fn the_command_lines_of_the_design_parse() {
        for line in [
            "lowroad agent --state-dir /x --socket /y --port 41641 --tun lowroad0 --dataplane userspace",
            "lowroad --socket /y status --json",
            "lowroad --socket=/y status --peers=false",
            "lowroad status --active --self=false",
            "lowroad ip -4 d",
            "lowroad ip -6",
            "lowroad ip -1",
            "lowroad ip --1",
            "lowroad ping -c 2 --until-direct=false --timeout=1s c",
            "lowroad whois --json 100.64.0.4",
            "lowroad version --json",
            "lowroad flows --json --follow --host 100.64.0.1",
            "lowroad set --accept-routes=false --hostname=x",
            "lowroad up --advertise-routes=10.0.0.0/8 --advertise-exit-node --exit-node=b --advertise-tags=tag:a,b --accept-dns=false",
            "lowroad netcheck --format=json",
            "lowroad agent --cleanup",
        ] {
            Cli::try_parse_from(line.split(' ')).unwrap_or_else(|error| panic!("{line}: {error}"));
        }
    }

    #[test]
    fn durations_are_written_as_go_writes_them() {
        assert_eq!(duration("1m30s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("0s"), Ok(Duration::ZERO));
        for bad in ["", "5", "s", "1d", "1s2", "-1s", "..s", "1e9999h"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn bad_device_names_and_marks_are_refused() {
        assert!(device_name("lowroad0").is_ok());
        for bad in ["", "a/b", "sixteen-chars-xx", ".."] {
            assert!(device_name(bad).is_err(), "{bad}");
        }
        assert_eq!(mark("0x02000000"), Ok(0x0200_0000));
        assert!(mark("3").is_err() && mark("x").is_err());
    }
}
