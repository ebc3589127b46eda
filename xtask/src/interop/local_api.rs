//! Programs written for the stock daemon's local API, on lowroad's socket: the stock command line is the one that asks for most.

mod derper;
mod refused;
mod settings;
mod shows;

use std::{fs, time::Duration};

use anyhow::{Result, bail, ensure};
use serde_json::Value;

pub use self::derper::asks_lowroad;
use super::{
    Lab,
    member::{Kind, Member},
    server::{self, KeyOptions, Server},
    single_use,
    stock::Stock,
    table::Table,
};
use crate::{
    lab::{ALLOW_ALL, secs},
    process::{self, Daemon, Finished},
    tailnet::Client,
    wait,
};

const LIMIT: Duration = secs(90);
/// Headscale's words for an auth key that it has not made.
const UNKNOWN_KEY: &str = "failed to parse auth-key";
const LOGIN_SERVER: &str = "--login-server=https://hs.lab";

type Run<'a> = &'a dyn Fn(&[&str]) -> Result<String>;
type Try<'a> = &'a dyn Fn(&[&str]) -> Result<Finished>;
/// Goes on until it is dropped, and writes what it says to its log.
type Spawn<'a> = &'a dyn Fn(&[&str]) -> Result<Daemon>;

/// The lowroad node whose socket is asked, and two stock nodes, each with a socket of its own.
struct Nodes<'a> {
    own: &'a Member,
    stock: &'a Member,
    other: &'a Member,
}

pub fn stock_command_line(lab: &Lab, table: &mut Table) -> Result<()> {
    table.area("the stock command line on lowroad's socket");
    let server = Server::start(lab, server::Kind::Headscale, ALLOW_ALL)?;
    let key = server.auth_key("ann", KeyOptions::default())?;
    let member = Member::public(lab, Kind::Lowroad, "lowroad", 30)?;
    let peer = Member::public(lab, Kind::Stock, "stock", 31)?;
    let other = Member::public(lab, Kind::Stock, "other", 32)?;
    for node in [&peer, &other] {
        node.up(&key)?;
    }
    let Member::Lowroad(node) = &member else {
        bail!("a lowroad node that is none");
    };
    let socket = node.socket();
    let command = |arguments: &[&str]| {
        let host = member.namespace();
        let mut command = Stock::command_line(lab.programs, host, &socket, arguments);
        // Without it some commands do not come to ask.
        command.env("TAILSCALE_USE_WIP_CODE", "1");
        command
    };
    let run = |arguments: &[&str]| process::run(&mut command(arguments), "", LIMIT);
    let ok = |arguments: &[&str]| Ok(run(arguments)?.ok(&arguments.join(" "))?.stdout);
    let spawn = |arguments: &[&str]| {
        let log = lab.net.folder().join(format!("{}.log", arguments[0]));
        Daemon::spawn(&mut command(arguments), &log)
    };
    joins(table, &server, &member, &spawn)?;
    for name in ["stock", "other"] {
        member.wait_for_peer(name, secs(20))?;
    }
    logs_in_anew(table, &server, &member, &peer, &run)?;
    let nodes = Nodes {
        own: &member,
        stock: &peer,
        other: &other,
    };
    shows::rows(table, &nodes, &ok)?;
    settings::rows(table, &nodes, &ok)?;
    watches(table, &spawn, &ok);
    settings::exit_nodes(table, &server, &nodes, &run, &ok)?;
    refused::rows(table, &run, &ok);
    ends(table, &run, &ok);
    let key = format!(
        "--auth-key={}",
        server.auth_key("ann", KeyOptions::default())?
    );
    table.try_it("up by auth key, after logout", || {
        ok(&["up", LOGIN_SERVER, "--hostname=lowroad", "--reset", &key])?;
        member.wait_until_running(secs(1)).map(|_| String::new())
    });
    Ok(())
}

fn joins(table: &mut Table, server: &Server, member: &Member, spawn: Spawn) -> Result<()> {
    let joined = table.try_it("up, at the page that it shows", || {
        let mut up = spawn(&["up", LOGIN_SERVER, "--hostname=lowroad", "--timeout=60s"])?;
        let (page, _) = wait::wait_for("the page", secs(20), || {
            let said = fs::read_to_string(&up.log)?;
            let words = said.split_whitespace();
            let page = words
                .map(str::to_owned)
                .find(|word| word.starts_with(server::URL));
            Ok(page)
        })?;
        server.approve_login(&page, "ann")?;
        let (status, time) = wait::wait_for("the end of `up`", secs(30), || Ok(up.ended()))?;
        ensure!(
            status.success(),
            "{status}: {}",
            fs::read_to_string(&up.log)?
        );
        member.wait_until_running(secs(1))?;
        Ok(format!("{:.2} s after the approval", time.as_secs_f64()))
    });
    ensure!(joined, "without this there is nothing more to try");
    Ok(())
}

/// Other logins than the first: with a key that nobody knows, with a good one, and of a node that has expired.
fn logs_in_anew(
    table: &mut Table,
    server: &Server,
    member: &Member,
    peer: &Member,
    run: Try,
) -> Result<()> {
    let key = format!(
        "--auth-key={}",
        server.auth_key("ann", KeyOptions::default())?
    );
    let up = |key: &str, more: &[&str]| up_by(run, key, more);
    let own_key = || member.node_key();
    let pings = || peer.answered_by(member);
    table.try_it("up --force-reauth, with a wrong key", || {
        let before = own_key()?;
        let finished = up("--auth-key=hskey-auth-nobody-knows-it", &["--force-reauth"])?;
        let said = format!("{}{}", finished.stderr, finished.stdout);
        ensure!(finished.code() != 0, "no error: {said}");
        ensure!(said.contains(UNKNOWN_KEY), "it does not say why: {said}");
        member.wait_until_running(secs(30))?;
        ensure!(own_key()? == before, "another node key");
        pings()?;
        Ok(format!("{}; the old login is in force", said.trim()))
    });
    table.try_it("up --force-reauth, by auth key", || {
        let before = own_key()?;
        up(&key, &["--force-reauth"])?.ok("up")?;
        ensure!(own_key()? != before, "the same node key");
        pings()?;
        Ok("with a new node key".to_owned())
    });
    table.try_it("up by auth key, of a node that has expired", || {
        server.to_node("expire", "lowroad")?;
        wait::wait_for("the end of the login", secs(30), || {
            Ok((member.status()?["BackendState"] == "NeedsLogin").then_some(()))
        })?;
        up(&key, &[])?.ok("up")?;
        member.wait_until_running(secs(1))?;
        pings()?;
        Ok(String::new())
    });
    table.try_it("up, as it is already", || {
        let before = own_key()?;
        up(&key, &[])?.ok("up")?;
        ensure!(own_key()? == before, "another node key");
        Ok(String::new())
    });
    by_single_use_keys(table, server, member, peer, run)
}

fn up_by(run: Try, key: &str, more: &[&str]) -> Result<Finished> {
    let fixed = [
        "up",
        LOGIN_SERVER,
        "--hostname=lowroad",
        "--timeout=30s",
        key,
    ];
    run(&[&fixed[..], more].concat())
}

/// The stock command line asks twice, to begin a login and to go on with it: neither may spend a key that the other needs.
fn by_single_use_keys(
    table: &mut Table,
    server: &Server,
    member: &Member,
    peer: &Member,
    run: Try,
) -> Result<()> {
    let spent = single_use::forced(table, server, member, peer, run)?;
    table.try_it("up --force-reauth, by a key that is spent", || {
        let before = member.node_key()?;
        let said = single_use::refused(server, member, &spent, run)?;
        single_use::in_force(server, member, peer, &before)?;
        Ok(format!("{said}; the old login is in force"))
    });
    Ok(())
}

/// What a watcher that began before it is told of a change.
fn watches(table: &mut Table, spawn: Spawn, ok: Run) {
    table.try_it("debug watch-ipn, while things change", || {
        let watch = spawn(&["debug", "watch-ipn", "--initial", "--initial-health"])?;
        let told = |what: &'static str| {
            let is = move |log: &std::path::Path| -> Result<Option<()>> {
                Ok(fs::read_to_string(log)?.contains(what).then_some(()))
            };
            wait::wait_for(what, secs(20), || is(&watch.log)).map(drop)
        };
        // A null is printed of what was not told.
        told("\"State\": 6")?;
        told("\"Warnings\"")?;
        ok(&["set", "--hostname=lowroad-watched"])?;
        told("\"lowroad-watched\"")?;
        // From the server, which makes a name of it.
        told("lowroad-watched.tail.lab.")?;
        ok(&["set", "--hostname=lowroad"])?;
        Ok("state and health first; a new name, as preference and from the server".to_owned())
    });
}

fn ends(table: &mut Table, run: Try, ok: Run) {
    let after = |table: &mut Table, arguments: &[&str], state: &str| {
        table.try_it(arguments[0], || {
            ok(arguments)?;
            let status: Value = serde_json::from_str(&ok(&["status", "--json"])?)?;
            let now = &status["BackendState"];
            ensure!(now == state, "{now}");
            Ok(format!("{state} after it"))
        });
    };
    after(table, &["down"], "Stopped");
    table.try_it("wait, for a node that is down", || {
        let finished = run(&["wait", "--timeout=2s"])?;
        ensure!(finished.code() != 0, "it is told that it is up");
        Ok("in vain".to_owned())
    });
    let up = ["up", "--accept-routes", LOGIN_SERVER, "--hostname=lowroad"];
    after(table, &up, "Running");
    after(table, &["logout"], "NeedsLogin");
}
