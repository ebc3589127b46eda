//! The commands besides the daemon: each talks to the agent's socket and prints as the stock client does.

pub mod args;
pub mod client;
mod conceal;
mod ping;
pub mod render;

use std::{
    fs,
    io::Write,
    path::Path,
    process::ExitCode,
    time::{SystemTime, UNIX_EPOCH},
};

use clap::{CommandFactory, Parser, error::ErrorKind};
use hyper::{Method, StatusCode};
use lowroad_wire::control::CAPABILITY_VERSION;
use serde_json::{Value, json};

use self::{
    args::{
        Cli, Command, FlowsArgs, IpArgs, NetcheckArgs, SettingArgs, StatusArgs, UpArgs, WhoisArgs,
    },
    client::{Client, ClientError},
};
use crate::{
    daemon,
    localapi::UpRequest,
    prefs::{AuthKey, Change, PrefsError},
    process::keep_memory_private,
    status::{self, Flow, Progress, Status, WhoIs},
};

/// A command that failed: its line for standard error, and the exit status.
#[derive(Debug)]
pub struct Failure {
    pub message: String,
    pub code: u8,
}

impl Failure {
    fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            code: 1,
        }
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        Self::new(error.to_string())
    }
}

impl From<PrefsError> for Failure {
    fn from(error: PrefsError) -> Self {
        Self::new(error.to_string())
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        match error.kind() {
            // Whoever read the output has seen enough (`lowroad flows | head`).
            std::io::ErrorKind::BrokenPipe => Self {
                message: String::new(),
                code: 0,
            },
            _ => Self::new(format!("cannot write the output: {error}")),
        }
    }
}

type Outcome = Result<(), Failure>;

/// Runs the command line and returns the process's exit status.
pub fn run() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    let outcome = keep_key_private(&cli.command).and_then(|()| run_command(cli));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if !failure.message.is_empty() {
                let _ = writeln!(std::io::stderr(), "{}", render::printable(&failure.message));
            }
            ExitCode::from(failure.code)
        }
    }
}

/// A command with an auth key holds it for as long as it waits.
fn keep_key_private(command: &Command) -> Outcome {
    if let Command::Up(args) | Command::Login(args) = command
        && let Some(key) = &args.auth_key
    {
        // The process that it may become below comes by here, too, before it reads the key.
        keep_memory_private().map_err(|error| Failure::new(format!("{error:#}")))?;
        conceal::from_the_process_list(key);
    }
    Ok(())
}

fn run_command(cli: Cli) -> Outcome {
    match cli.command {
        Command::Agent(args) => {
            daemon::run(args, &cli.socket).map_err(|error| Failure::new(format!("{error:#}")))
        }
        command => match tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
        {
            Ok(runtime) => runtime.block_on(client_command(command, &cli.socket)),
            Err(error) => Err(Failure::new(format!("cannot start: {error}"))),
        },
    }
}

/// Help goes to standard output with status 0; a mistake is one line and status 2.
fn usage(error: &clap::Error) -> ExitCode {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            let _ = error.print();
            ExitCode::SUCCESS
        }
        ErrorKind::MissingSubcommand | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let _ = writeln!(std::io::stderr(), "{}", Cli::command().render_help());
            ExitCode::from(2)
        }
        _ => {
            let text = error.to_string();
            let line = text
                .lines()
                .map(str::trim)
                .find(|line| !line.is_empty())
                .unwrap_or("bad command line");
            let _ = writeln!(
                std::io::stderr(),
                "lowroad: {} (see `lowroad COMMAND --help`)",
                line.trim_start_matches("error: ")
            );
            ExitCode::from(2)
        }
    }
}

async fn client_command(command: Command, socket: &Path) -> Outcome {
    let client = Client::new(socket);
    match command {
        Command::Agent(_) => unreachable!("handled by run"),
        Command::Up(args) | Command::Login(args) => up(&client, args).await,
        Command::Down => client
            .post::<Value>("/lowroad/v0/down", &json!({}))
            .await
            .map(drop)
            .map_err(Failure::from),
        Command::Set(args) => set(&client, args).await,
        Command::Logout => client
            .post::<Value>("/localapi/v0/logout", &json!({}))
            .await
            .map(drop)
            .map_err(Failure::from),
        Command::Status(args) => status(&client, &args).await,
        Command::Ip(args) => ip(&client, &args).await,
        Command::Ping(args) => ping::run(&client, &args).await,
        Command::Whois(args) => whois(&client, &args).await,
        Command::Netcheck(args) => netcheck(&client, &args).await,
        Command::Version(args) => version(args.json.unwrap_or(false)),
        Command::Flows(args) => flows(&client, &args).await,
        Command::Why(_) => Err(Failure::new("`lowroad why` does not exist yet")),
        Command::Doctor(_) => Err(Failure::new("`lowroad doctor` does not exist yet")),
    }
}

async fn up(client: &Client, args: UpArgs) -> Outcome {
    let mut change = change_of(args.settings);
    change.control_url = args.login_server;
    change.advertise_tags = args.advertise_tags.map(without_empty);
    change.validate()?;
    let request = UpRequest {
        change,
        reset: args.reset.unwrap_or(false),
        auth_key: args.auth_key.map(read_auth_key).transpose()?,
        force_reauth: args.force_reauth.unwrap_or(false),
        accept_server_key: args.accept_server_key,
        timeout_ms: u64::try_from(args.timeout.as_millis()).unwrap_or(0),
    };
    let mut progress = client
        .stream(Method::POST, "/lowroad/v0/up", &request)
        .await?;
    let mut stderr = std::io::stderr();
    while let Some(step) = progress.next::<Progress>().await? {
        match step {
            Progress::Waiting(what) => {
                writeln!(stderr, "waiting for {}", render::printable(&what))?;
            }
            Progress::AuthUrl(url) => {
                let url = render::printable(&url);
                writeln!(stderr, "\nTo authenticate, visit:\n\n\t{url}\n")?;
            }
            Progress::Done => return Ok(()),
            Progress::Failed(why) => return Err(Failure::new(why)),
        }
    }
    Err(Failure::new(
        "the agent ended before the node was connected: see its log",
    ))
}

fn change_of(args: SettingArgs) -> Change {
    Change {
        route_all: args.accept_routes,
        corp_dns: args.accept_dns,
        shields_up: args.shields_up,
        hostname: args.hostname,
        operator_user: args.operator,
        advertise_routes: args.advertise_routes.map(without_empty),
        advertise_exit_node: args.advertise_exit_node,
        exit_node: args.exit_node,
        ..Change::default()
    }
}

/// `--advertise-tags=` is a list of nothing.
fn without_empty(mut list: Vec<String>) -> Vec<String> {
    list.retain(|item| !item.is_empty());
    list
}

fn read_auth_key(text: String) -> Result<AuthKey, Failure> {
    let key = match text.strip_prefix("file:") {
        None => AuthKey::new(text),
        Some(path) => {
            let content = fs::read_to_string(path).map_err(|error| {
                Failure::new(format!("cannot read the auth key from {path}: {error}"))
            })?;
            AuthKey::new(content.trim().to_owned())
        }
    };
    if key.is_empty() {
        return Err(Failure::new(
            "the auth key is empty: without --auth-key and LOWROAD_AUTH_KEY, `lowroad up` shows a page to log in at",
        ));
    }
    Ok(key)
}

async fn set(client: &Client, args: SettingArgs) -> Outcome {
    let mut change = change_of(args);
    if change.is_empty() {
        return Err(Failure {
            message: "lowroad set: name at least one setting to change (see `lowroad set --help`)"
                .into(),
            code: 2,
        });
    }
    change.validate()?;
    client.post::<Value>("/lowroad/v0/set", &change).await?;
    Ok(())
}

async fn status(client: &Client, args: &StatusArgs) -> Outcome {
    let peers = args.peers.unwrap_or(true);
    let path = if peers {
        "/localapi/v0/status"
    } else {
        "/localapi/v0/status?peers=false"
    };
    let mut status: Status = client.get(path).await?;
    let mut out = std::io::stdout();
    if args.json.unwrap_or(false) {
        if args.active.unwrap_or(false) {
            status
                .peer
                .iter_mut()
                .for_each(|peers| peers.retain(|_, peer| peer.active));
        }
        if !args.self_node.unwrap_or(true) {
            status.self_node = None;
        }
        return Ok(writeln!(out, "{}", pretty(&status, b"  "))?);
    }
    if let Some(why) = render::not_running(&status) {
        writeln!(out, "{}", render::printable(&why))?;
        return Err(Failure::new(""));
    }
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs() as i64);
    let view = render::StatusView {
        peers,
        self_node: args.self_node.unwrap_or(true),
        active: args.active.unwrap_or(false),
    };
    Ok(write!(out, "{}", render::status(&status, view, now))?)
}

async fn ip(client: &Client, args: &IpArgs) -> Outcome {
    let status: Status = client.get("/localapi/v0/status").await?;
    let addresses = match &args.peer {
        None => status.tailscale_ips.clone().unwrap_or_default(),
        Some(name) => {
            let found = status
                .self_node
                .iter()
                .chain(status.peer.iter().flatten().map(|(_, peer)| peer))
                .find(|node| node.is_called(name));
            let Some(node) = found else {
                return Err(Failure::new(format!(
                    "no peer found with name or IP {name:?}"
                )));
            };
            node.tailscale_ips.clone().unwrap_or_default()
        }
    };
    if addresses.is_empty() {
        return Err(Failure::new(format!(
            "no current addresses; state: {:?}",
            status.backend_state
        )));
    }
    let wanted = addresses.into_iter().filter(|ip| {
        if args.v4 {
            ip.is_ipv4()
        } else {
            !args.v6 || ip.is_ipv6()
        }
    });
    let shown: Vec<_> = wanted.take(if args.one { 1 } else { usize::MAX }).collect();
    if shown.is_empty() {
        return Err(Failure::new(if args.v4 {
            "no IPv4 address"
        } else {
            "no IPv6 address"
        }));
    }
    let mut out = std::io::stdout();
    shown
        .iter()
        .try_for_each(|ip| writeln!(out, "{ip}"))
        .map_err(Failure::from)
}

async fn whois(client: &Client, args: &WhoisArgs) -> Outcome {
    let address: String = args
        .address
        .chars()
        .filter(|c| !c.is_whitespace() && *c != '&' && *c != '#')
        .collect();
    let answer = client
        .get::<WhoIs>(&format!("/localapi/v0/whois?addr={address}"))
        .await;
    let who = match answer {
        Err(ClientError::Refused {
            status: StatusCode::NOT_FOUND,
            ..
        }) => return Err(Failure::new("peer not found")),
        other => other?,
    };
    let mut out = std::io::stdout();
    if args.json.unwrap_or(false) {
        return Ok(writeln!(out, "{}", pretty(&who, b"  "))?);
    }
    Ok(write!(out, "{}", render::printable(&render::whois(&who)))?)
}

async fn netcheck(client: &Client, args: &NetcheckArgs) -> Outcome {
    let report: Value = client.get("/lowroad/v0/netcheck").await?;
    let mut out = std::io::stdout();
    match args.format.as_deref() {
        Some("json-line") => writeln!(out, "{report}")?,
        Some("json") => writeln!(out, "{}", pretty(&report, b"\t"))?,
        Some(other) => {
            return Err(Failure {
                message: format!("unknown format {other:?}: write json or json-line"),
                code: 2,
            });
        }
        None => write!(out, "{}", render::netcheck(&report))?,
    }
    Ok(())
}

fn version(as_json: bool) -> Outcome {
    let mut out = std::io::stdout();
    if as_json {
        /// In the stock client's order.
        #[derive(serde::Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Version {
            major_minor_patch: &'static str,
            short: &'static str,
            long: &'static str,
            cap: u16,
        }
        let value = Version {
            major_minor_patch: status::version(),
            short: status::version(),
            long: status::version(),
            cap: CAPABILITY_VERSION,
        };
        return Ok(writeln!(out, "{}", pretty(&value, b"\t"))?);
    }
    Ok(writeln!(out, "{}", status::version())?)
}

async fn flows(client: &Client, args: &FlowsArgs) -> Outcome {
    let path = if args.follow {
        "/lowroad/v0/flows?follow=true"
    } else {
        "/lowroad/v0/flows"
    };
    let mut events = client.stream(Method::GET, path, &Value::Null).await?;
    let mut out = std::io::stdout();
    while let Some(event) = events.next::<Flow>().await? {
        if !wanted(&event, args) {
            continue;
        }
        if args.json {
            writeln!(
                out,
                "{}",
                serde_json::to_string(&event).map_err(ClientError::from)?
            )?;
        } else {
            writeln!(out, "{}", render::flow(&event))?;
        }
        out.flush()?;
    }
    Ok(())
}

fn wanted(flow: &Flow, args: &FlowsArgs) -> bool {
    args.host
        .is_none_or(|host| flow.src == host || flow.dst == host)
        && args
            .port
            .is_none_or(|port| flow.src_port == port || flow.dst_port == port)
        && args
            .proto
            .as_ref()
            .is_none_or(|proto| flow.proto.eq_ignore_ascii_case(proto))
        && args
            .reason
            .as_ref()
            .is_none_or(|reason| flow.reason.eq_ignore_ascii_case(reason))
}

/// JSON indented as the stock client indents it: two spaces for some commands, a tab for others.
fn pretty(value: &impl serde::Serialize, indent: &[u8]) -> String {
    let mut text = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(indent);
    let mut serializer = serde_json::Serializer::with_formatter(&mut text, formatter);
    serde::Serialize::serialize(value, &mut serializer)
        .expect("the shapes of status.rs always serialise");
    String::from_utf8(text).expect("serde_json writes UTF-8")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_auth_key_is_refused_wherever_it_comes_from() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let file = format!("file:{}", path.display());
        for empty in ["", " ", "\n"] {
            fs::write(&path, empty).unwrap();
            for text in [empty, file.as_str()] {
                let failure = read_auth_key(text.to_owned()).unwrap_err();
                assert!(failure.message.contains("is empty"), "{failure:?}");
            }
        }
        fs::write(&path, "k\n").unwrap();
        for text in ["k", file.as_str()] {
            assert_eq!(read_auth_key(text.to_owned()).unwrap().reveal(), "k");
        }
    }
}
