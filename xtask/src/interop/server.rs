//! A coordination server: Headscale or ours, with one way to administer either.

use std::{
    fs,
    net::{SocketAddr, TcpStream},
    path::PathBuf,
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::{
    Lab,
    hosts::{self, SERVER},
    relay,
};
use crate::{
    process::{self, Daemon},
    tailnet::{COORDINATOR, binaries},
    topology::Namespace,
    wait,
};

pub const URL: &str = "https://hs.lab";
/// Behind the names of nodes.
const BASE_DOMAIN: &str = "tail.lab";
const PORT: u16 = 443;
/// Headscale's.
const CONFIG: &str = "headscale.yaml";
const START_LIMIT: Duration = Duration::from_secs(30);
const CLI_LIMIT: Duration = Duration::from_secs(30);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Headscale,
    Ours,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Headscale => "Headscale",
            Self::Ours => "lowroad-coordinator",
        }
    }
}

/// How an auth key lets machines join.
#[derive(Debug, Clone, Copy, Default)]
pub struct KeyOptions {
    pub tags: &'static str,
    pub ephemeral: bool,
}

#[derive(Debug)]
pub struct Server {
    pub kind: Kind,
    pub namespace: Namespace,
    pub programs: PathBuf,
    folder: PathBuf,
    daemon: Option<Daemon>,
}

impl Server {
    pub fn start(lab: &Lab, kind: Kind, policy: &str) -> Result<Self> {
        Self::launch(lab, kind, policy, false)
    }

    /// Whose relay map has a second region, which is the stock relay's.
    pub fn with_second_relay(lab: &Lab, kind: Kind, policy: &str) -> Result<Self> {
        Self::launch(lab, kind, policy, true)
    }

    fn launch(lab: &Lab, kind: Kind, policy: &str, second_relay: bool) -> Result<Self> {
        let folder = lab.net.folder().to_owned();
        let namespace = lab.net.public("ctl", COORDINATOR)?;
        let namespace = hosts::with_etc(&namespace, &folder)?;
        fs::write(folder.join("policy.hujson"), policy)?;
        fs::write(
            folder.join(CONFIG),
            headscale_config(&folder.display().to_string(), second_relay),
        )?;
        if second_relay {
            relay::write_maps(&folder)?;
        }
        let mut server = Self {
            kind,
            namespace,
            programs: lab.programs.to_owned(),
            folder,
            daemon: None,
        };
        server.start_again()?;
        if kind == Kind::Headscale {
            server.set_policy(policy)?;
        }
        Ok(server)
    }

    /// Starts it, on the state that is there.
    pub fn start_again(&mut self) -> Result<()> {
        self.stop();
        let log = self.folder.join("server.log");
        let mut command = match self.kind {
            Kind::Headscale => {
                let mut command = self.namespace.command(self.programs.join("headscale"));
                command.arg("-c").arg(self.folder.join(CONFIG));
                command.arg("serve");
                command
            }
            Kind::Ours => self.our_command(),
        };
        let daemon = self.daemon.insert(Daemon::spawn(&mut command, &log)?);
        let address = SocketAddr::from(([203, 0, 113, COORDINATOR], PORT));
        let connect = || TcpStream::connect_timeout(&address, CLI_LIMIT).is_ok();
        let (ended, _) = wait::wait_for("the server's port", START_LIMIT, || {
            let ended = daemon.ended();
            let there = ended.is_some() || self.namespace.enter(connect)?;
            Ok(there.then_some(ended))
        })?;
        if let Some(status) = ended {
            bail!(
                "{} ended with {status}: {}",
                self.kind.name(),
                process::tail(&log, 5)
            );
        }
        Ok(())
    }

    fn our_command(&self) -> Command {
        let file = |name: String| self.folder.join(name);
        let program = binaries().join("lowroad-coordinator");
        let mut command = self.namespace.command(program);
        command
            .args(["serve", "--url", URL, "--base-domain", BASE_DOMAIN])
            .args(["--listen", "[::]:443", "--stun", "[::]:3478"])
            .arg("--state-dir")
            .arg(self.folder.join("coordinator"))
            .arg("--tls-cert")
            .arg(file(format!("{SERVER}.crt")))
            .arg("--tls-key")
            .arg(file(format!("{SERVER}.key")))
            .arg("--policy")
            .arg(file("policy.hujson".to_owned()));
        let relays = file(relay::OUR_MAP.to_owned());
        if relays.exists() {
            command.arg("--derp-map").arg(relays);
        }
        command
    }

    pub fn stop(&mut self) {
        self.daemon = None;
    }

    /// Its administration, with an answer in JSON.
    pub fn cli(&self, arguments: &[&str]) -> Result<Value> {
        let mut command = match self.kind {
            Kind::Headscale => {
                let mut command = self.namespace.command(self.programs.join("headscale"));
                command.arg("-c").arg(self.folder.join(CONFIG));
                command.args(["-o", "json"]);
                command
            }
            Kind::Ours => {
                let program = binaries().join("lowroad-coordinator");
                let mut command = self.namespace.command(program);
                let state = self.folder.join("coordinator");
                command.arg("--state-dir").arg(state).arg("--json");
                command
            }
        };
        let what = format!("{} {}", self.kind.name(), arguments.join(" "));
        let finished = process::run(command.args(arguments), "", CLI_LIMIT)?.ok(&what)?;
        // Headscale says some things in words whatever it is asked for.
        Ok(serde_json::from_str(&finished.stdout).unwrap_or(Value::String(finished.stdout)))
    }

    /// A key that any number of machines may use.
    pub fn auth_key(&self, user: &str, options: KeyOptions) -> Result<String> {
        self.make_key(user, options, &["--reusable"])
    }

    /// A key that is good for one login, as both servers make it if nothing else is said.
    pub fn single_use_key(&self, user: &str) -> Result<String> {
        self.make_key(user, KeyOptions::default(), &[])
    }

    fn make_key(&self, user: &str, options: KeyOptions, flags: &[&str]) -> Result<String> {
        let user_id;
        let mut arguments = match self.kind {
            Kind::Headscale => {
                user_id = self.headscale_user(user)?;
                let create = ["preauthkeys", "create", "-e", "24h", "-u"];
                [&create[..], &[&user_id]].concat()
            }
            Kind::Ours => vec!["auth-keys", "create", "--user", user],
        };
        arguments.extend(flags);
        if !options.tags.is_empty() {
            arguments.extend(["--tags", options.tags]);
        }
        if options.ephemeral {
            arguments.push("--ephemeral");
        }
        let answer = self.cli(&arguments)?;
        let key = answer["key"].as_str().or(answer.as_str());
        Ok(key.context("no key in the answer")?.to_owned())
    }

    fn headscale_user(&self, user: &str) -> Result<String> {
        let find = || {
            let users = self.cli(&["users", "list"])?;
            let users = users.as_array().cloned().unwrap_or_default();
            let found = users.into_iter().find(|known| known["name"] == user);
            Ok::<_, anyhow::Error>(found.map(|found| text(&found["id"])))
        };
        if let Some(id) = find()? {
            return Ok(id);
        }
        self.cli(&["users", "create", user])?;
        find()?.context("a user that was just made")
    }

    /// What it says of the nodes.
    pub fn nodes(&self) -> Result<Vec<Value>> {
        let list = self.cli(&["nodes", "list"])?;
        Ok(list.as_array().cloned().unwrap_or_default())
    }

    /// What it says of the node that calls itself so.
    pub fn node(&self, name: &str) -> Result<Option<Value>> {
        let mut nodes = self.nodes()?.into_iter();
        Ok(nodes.find(|node| node["name"] == name))
    }

    /// Its identifier, as the administration wants it.
    fn id(&self, name: &str) -> Result<String> {
        let node = self.node(name)?;
        let node = node.with_context(|| format!("the server knows no {name}"))?;
        Ok(text(&node["id"]))
    }

    /// Does something to a node: `delete`, `expire`.
    pub fn to_node(&self, what: &str, name: &str) -> Result<()> {
        self.to_id(what, &self.id(name)?)
    }

    fn to_id(&self, what: &str, id: &str) -> Result<()> {
        match self.kind {
            Kind::Headscale => self.cli(&["nodes", what, "-i", id, "--force"]),
            Kind::Ours => self.cli(&["nodes", what, id]),
        }
        .map(drop)
    }

    /// Deletes the nodes of this name that another login made: the one that is left has this key.
    pub fn leave_only(&self, name: &str, node_key: &Value) -> Result<()> {
        for node in self.nodes()? {
            if node["name"] == name && node_key_of(&node) != node_key {
                self.to_id("delete", &text(&node["id"]))?;
            }
        }
        Ok(())
    }

    /// What it says of the node that has this key.
    pub fn node_of_key(&self, node_key: &Value) -> Result<Option<Value>> {
        let mut nodes = self.nodes()?.into_iter();
        Ok(nodes.find(|node| node_key_of(node) == node_key))
    }

    pub fn rename(&self, name: &str, new: &str) -> Result<()> {
        let id = self.id(name)?;
        match self.kind {
            Kind::Headscale => self.cli(&["nodes", "rename", new, "-i", &id]),
            Kind::Ours => self.cli(&["nodes", "rename", &id, new]),
        }
        .map(drop)
    }

    /// Gives a node these tags, and takes it from its user.
    pub fn tag(&self, name: &str, tags: &str) -> Result<()> {
        self.only_headscale("tags a node: its key does, or what it asks for")?;
        let id = self.id(name)?;
        self.cli(&["nodes", "tag", "-i", &id, "-t", tags]).map(drop)
    }

    /// Sets when a node's key ends: at a time as RFC 3339 writes it, or never.
    pub fn set_expiry(&self, name: &str, time: Option<&str>) -> Result<()> {
        let id = self.id(name)?;
        let mut arguments = match self.kind {
            Kind::Headscale => vec!["nodes", "expire", "-i", &id],
            Kind::Ours => vec!["nodes", "expire", &id],
        };
        match (self.kind, time) {
            (Kind::Headscale, Some(time)) => arguments.extend(["-e", time]),
            (Kind::Headscale, None) => arguments.push("--disable"),
            (Kind::Ours, Some(time)) => arguments.extend(["--at", time]),
            (Kind::Ours, None) => arguments.push("--never"),
        }
        self.cli(&arguments).map(drop)
    }

    /// Gives a user another name.
    pub fn rename_user(&self, user: &str, new: &str) -> Result<()> {
        self.only_headscale("renames a user")?;
        let id = self.headscale_user(user)?;
        // By its identifier: this Headscale finds no user to rename by a name.
        self.cli(&["users", "rename", "-i", &id, "-r", new])
            .map(drop)
    }

    /// Has a node's key end so soon. The end has whole seconds: it may come up to one earlier.
    pub fn expire_in(&self, name: &str, seconds: u64) -> Result<()> {
        let mut date = Command::new("date");
        date.args(["-u", "+%Y-%m-%dT%H:%M:%SZ"])
            .arg(format!("--date={seconds} seconds"));
        let end = process::run(&mut date, "", CLI_LIMIT)?.ok("date")?.stdout;
        self.set_expiry(name, Some(end.trim()))
    }

    /// Starts it again with another name behind those of all nodes.
    pub fn change_base_domain(&mut self, domain: &str) -> Result<()> {
        let [old, new] = [BASE_DOMAIN, domain].map(|domain| format!("base_domain: {domain}\n"));
        self.reconfigure(&[(old.as_str(), new.as_str())])
    }

    /// Starts it again with other lines in its configuration.
    pub fn reconfigure(&mut self, lines: &[(&str, &str)]) -> Result<()> {
        self.only_headscale("changes its configuration")?;
        let file = self.folder.join(CONFIG);
        let mut config = fs::read_to_string(&file)?;
        for &(line, other) in lines {
            ensure!(config.contains(line), "{CONFIG} has no {line:?}");
            config = config.replace(line, other);
        }
        fs::write(&file, config)?;
        self.start_again()
    }

    /// An error for our coordinator, which has no command that does this.
    fn only_headscale(&self, does: &str) -> Result<()> {
        ensure!(
            self.kind == Kind::Headscale,
            "{} has no command that {does}",
            self.kind.name()
        );
        Ok(())
    }

    /// Waits until it knows that a node offers this route.
    pub fn wait_for_offer(&self, name: &str, route: &str, limit: Duration) -> Result<()> {
        let what = format!("{name}'s offer of {route}");
        wait::wait_for(&what, limit, || {
            let node = self.node(name)?.context("no such node")?;
            Ok(node.to_string().contains(route).then_some(()))
        })
        .map(drop)
    }

    pub fn approve_routes(&self, name: &str, routes: &str) -> Result<()> {
        let id = self.id(name)?;
        match self.kind {
            Kind::Headscale => self.cli(&["nodes", "approve-routes", "-i", &id, "-r", routes]),
            Kind::Ours => self.cli(&["nodes", "approve-routes", &id, "--routes", routes]),
        }
        .map(drop)
    }

    /// Lets a machine in that waits at this page.
    pub fn approve_login(&self, page: &str, user: &str) -> Result<()> {
        match self.kind {
            Kind::Headscale => {
                self.headscale_user(user)?;
                let id = page.rsplit('/').next().unwrap_or_default();
                self.cli(&["auth", "register", "--auth-id", id, "--user", user])
            }
            Kind::Ours => self.cli(&["nodes", "approve", page, "--user", user]),
        }
        .map(drop)
    }

    pub fn set_policy(&self, policy: &str) -> Result<()> {
        let file = self.folder.join("new-policy.hujson");
        fs::write(&file, policy)?;
        let file = file.to_str().context("a path that is not UTF-8")?;
        match self.kind {
            Kind::Headscale => self.cli(&["policy", "set", "--file", file]),
            Kind::Ours => self.cli(&["policy", "set", file]),
        }
        .map(drop)
    }
}

/// Headscale and ours spell it each in their own way.
fn node_key_of(node: &Value) -> &Value {
    match &node["node_key"] {
        Value::Null => &node["nodeKey"],
        key => key,
    }
}

/// A number or a string.
fn text(value: &Value) -> String {
    value
        .as_str()
        .map_or_else(|| value.to_string(), str::to_owned)
}

fn headscale_config(folder: &str, second_relay: bool) -> String {
    let paths = match second_relay {
        true => format!("[{folder}/{}]", relay::HEADSCALES_MAP),
        false => "[]".to_owned(),
    };
    format!(
        r#"
server_url: {URL}
listen_addr: "[::]:443"
metrics_listen_addr: 127.0.0.1:9090
grpc_listen_addr: 127.0.0.1:50443
noise: {{ private_key_path: {folder}/noise.key }}
prefixes: {{ v4: 100.64.0.0/10, v6: "fd7a:115c:a1e0::/48", allocation: sequential }}
derp:
  server:
    enabled: true
    region_id: 999
    region_code: lab
    region_name: Lab
    verify_clients: true
    stun_listen_addr: "[::]:3478"
    private_key_path: {folder}/derp.key
    automatically_add_embedded_derp_region: true
    ipv4: 203.0.113.{COORDINATOR}
    ipv6: "2001:db8::{COORDINATOR}"
  urls: []
  paths: {paths}
  auto_update_enabled: false
  update_frequency: 24h
disable_check_updates: true
node: {{ ephemeral: {{ inactivity_timeout: 70s }} }}
database: {{ type: sqlite, sqlite: {{ path: {folder}/db.sqlite, write_ahead_log: true }} }}
tls_cert_path: {folder}/{SERVER}.crt
tls_key_path: {folder}/{SERVER}.key
log: {{ level: info, format: text }}
policy: {{ mode: database }}
dns:
  magic_dns: true
  base_domain: {BASE_DOMAIN}
  override_local_dns: false
  nameservers: {{ global: [] }}
unix_socket: {folder}/headscale.sock
logtail: {{ enabled: false }}
"#
    )
}
