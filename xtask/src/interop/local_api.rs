//! Programs written for the stock daemon's local API, on lowroad's socket: the stock command line is the one that asks for most.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::{
    Lab,
    member::{Kind, Member},
    server::{self, KeyOptions, Server},
    stock::Stock,
    table::Table,
};
use crate::{
    lab::{ALLOW_ALL, secs},
    process::{self, Finished},
    tailnet::Client,
};

const LIMIT: Duration = secs(90);

const NO_SUCH: &str = "does not exist in this agent";

/// What lowroad has nothing for. Each has to be answered by an error that says so.
const NOT_THERE: &[&[&str]] = &[
    &["bugreport"],
    &["cert", "lowroad.tail.lab"],
    &["lock", "status"],
    &["drive", "list"],
    &["file", "get", "/tmp"],
    &["switch", "--list"],
    &["exit-node", "suggest"],
];

pub fn stock_command_line(lab: &Lab, table: &mut Table) -> Result<()> {
    table.area("the stock command line on lowroad's socket");
    let server = Server::start(lab, server::Kind::Headscale, ALLOW_ALL)?;
    let key = server.auth_key("ann", KeyOptions::default())?;
    let member = Member::public(lab, Kind::Lowroad, "lowroad", 30)?;
    let peer = Member::public(lab, Kind::Stock, "stock", 31)?;
    peer.up(&key)?;
    let Member::Lowroad(node) = &member else {
        bail!("a lowroad node that is none");
    };
    let socket = node.socket();
    let run = |arguments: &[&str]| -> Result<Finished> {
        let host = member.namespace();
        let mut command = Stock::command_line(lab.programs, host, &socket, arguments);
        process::run(&mut command, "", LIMIT)
    };
    let ok = |arguments: &[&str]| Ok(run(arguments)?.ok(&arguments.join(" "))?.stdout);
    joins(table, &server, &ok)?;
    member.wait_for_peer("stock", secs(20))?;
    tells(table, &peer, &member, &ok)?;
    exit_nodes(table, || run(&["exit-node", "list"]));
    for arguments in NOT_THERE {
        table.try_it(&arguments.join(" "), || {
            let finished = run(arguments)?;
            ensure!(finished.code() != 0, "no error: {}", finished.stdout);
            let all = format!("{}{}", finished.stderr, finished.stdout);
            let said = all.lines().find(|line| line.contains(NO_SUCH));
            let said = said.with_context(|| format!("it does not say why: {all}"))?;
            Ok(format!("refused: {said}"))
        });
    }
    ends(table, &ok)
}

type Run<'a> = &'a dyn Fn(&[&str]) -> Result<String>;

fn joins(table: &mut Table, server: &Server, ok: Run) -> Result<()> {
    let key = server.auth_key("ann", KeyOptions::default())?;
    table.try_it("up", || {
        let login = format!("--login-server={}", server::URL);
        let key = format!("--auth-key={key}");
        ok(&["up", &login, &key, "--hostname=lowroad", "--timeout=60s"])?;
        Ok(String::new())
    });
    Ok(())
}

fn tells(table: &mut Table, peer: &Member, member: &Member, ok: Run) -> Result<()> {
    let peers_ip = peer.ip(4)?.to_string();
    let own = member.ip(4)?.to_string();
    table.try_it("status", || {
        let text = ok(&["status"])?;
        ensure!(text.contains(&peers_ip) && text.contains(&own), "{text}");
        Ok(String::new())
    });
    table.try_it("status --json", || {
        let status: Value = serde_json::from_str(&ok(&["status", "--json"])?)?;
        ensure!(status["BackendState"] == "Running", "{status}");
        let stock = peer.status()?;
        same_fields(&stock, &status, "")?;
        same_fields(&stock["Self"], &status["Self"], "Self.")?;
        let any = |status: &Value| {
            let peers = status["Peer"].as_object();
            peers.and_then(|peers| peers.values().next().cloned())
        };
        let (theirs, ours) = any(&stock).zip(any(&status)).context("no peers")?;
        same_fields(&theirs, &ours, "Peer.")?;
        Ok("has all fields that the stock daemon's has".to_owned())
    });
    for arguments in [
        &["ip", "-4"][..],
        &["ip", "-6"],
        &["ip", "stock"],
        &["ping", "-c", "1", "--until-direct=false", "stock"],
        &["ping", "--tsmp", "-c", "1", "stock"],
        &["ping", "--icmp", "-c", "1", "stock"],
        &["whois", &peers_ip],
        &["netcheck"],
        &["metrics", "print"],
        &["debug", "watch-ipn", "--initial", "--count=1"],
        &["debug", "prefs"],
        &["debug", "derp-map"],
        &["set", "--hostname=lowroad-two"],
        &["set", "--hostname=lowroad"],
        &["set", "--accept-routes"],
        &["version", "--daemon"],
    ] {
        table.try_it(&arguments.join(" "), || {
            let text = ok(arguments)?;
            Ok(text
                .lines()
                .last()
                .unwrap_or_default()
                .trim()
                .chars()
                .take(120)
                .collect())
        });
    }
    Ok(())
}

/// As the stock daemon has it, too: that there is none is an error.
fn exit_nodes(table: &mut Table, run: impl FnOnce() -> Result<Finished>) {
    table.try_it("exit-node list", || {
        let finished = run()?;
        ensure!(
            finished.stderr.contains("no exit nodes found"),
            "{}",
            finished.stderr
        );
        Ok("no exit nodes found".to_owned())
    });
}

fn ends(table: &mut Table, ok: Run) -> Result<()> {
    for (arguments, state) in [
        (&["down"][..], "Stopped"),
        (
            &[
                "up",
                "--accept-routes",
                "--login-server=https://hs.lab",
                "--hostname=lowroad",
            ],
            "Running",
        ),
        (&["logout"], "NeedsLogin"),
    ] {
        table.try_it(arguments[0], || {
            ok(arguments)?;
            let status: Value = serde_json::from_str(&ok(&["status", "--json"])?)?;
            ensure!(
                status["BackendState"] == state,
                "{}",
                status["BackendState"]
            );
            Ok(format!("{state} after it"))
        });
    }
    Ok(())
}

/// Every field of the first is there in the second.
fn same_fields(theirs: &Value, ours: &Value, of: &str) -> Result<()> {
    let (theirs, ours) = theirs
        .as_object()
        .zip(ours.as_object())
        .context("no objects")?;
    let missing: Vec<_> = theirs
        .keys()
        .filter(|key| !ours.contains_key(*key))
        .collect();
    ensure!(missing.is_empty(), "{of}: {missing:?} are missing");
    Ok(())
}
