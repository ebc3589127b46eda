//! Auth keys that are good for one login: what a node of either kind does with one on either server, and with one that is spent.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{
    Age,
    member::{Kind, Member},
    server::{self, KeyOptions, Server},
    table::Table,
};
use crate::{lab::secs, process::Finished, tailnet::Client, wait};

const LIMIT: Duration = secs(30);
/// A command that is told why it is refused; one that is not waits for its limit.
pub const ENDS_BY_ITSELF: Duration = secs(10);
/// Both servers' word for a key that was good for one login, and is used.
const SPENT: &str = "already used";

/// Runs the command line by which a node is told to log in.
type Run<'a> = &'a dyn Fn(&[&str]) -> Result<Finished>;

/// From a logout on, by the node's own command line. Leaves it logged in as ann.
pub fn rows(
    table: &mut Table,
    server: &Server,
    node: &mut Member,
    peer: &Member,
    age: Age,
) -> Result<()> {
    let first = server.single_use_key("ann")?;
    table.try_it("logout, and up by a single-use key", || {
        node.cli(&["logout"])?;
        wait::wait_for("the end of the login", LIMIT, || {
            Ok((node.status()?["BackendState"] == "NeedsLogin").then_some(()))
        })?;
        // A logout leaves an older one with --accept-routes, which it wants to be named then.
        let flags: &[&str] = match age {
            Age::New => &[],
            Age::Old => &["--reset"],
        };
        let time = node.up_with(&first, flags)?;
        leave_only(server, node)?;
        peer.answered_by(node)?;
        Ok(format!("{:.2} s", time.as_secs_f64()))
    });
    table.try_it("its agent restarts, and needs no login", || {
        let before = node.node_key()?;
        node.restart()?;
        let time = node.wait_until_running(LIMIT)?;
        ensure!(node.node_key()? == before, "another node key");
        peer.answered_by(node)?;
        Ok(format!("{:.2} s", time.as_secs_f64()))
    });
    let spent = forced(table, server, node, peer, &|arguments| {
        node.try_cli(arguments)
    })?;
    table.try_it(
        "by a key that is spent: refused, and the old login is in force",
        || {
            let before = node.node_key()?;
            let said = refused(server, node, &spent, &|arguments| node.try_cli(arguments))?;
            // A stock one goes on trying until it is restarted.
            if node.kind() == Kind::Stock {
                node.restart()?;
            }
            in_force(server, node, peer, &before)?;
            Ok(said)
        },
    );
    // Whatever came of it: what follows is about something else.
    let key = server.auth_key("ann", KeyOptions::default())?;
    node.up_with(&key, &["--force-reauth"])?;
    leave_only(server, node)
}

/// Logins of a node that has one already. Returns the last key, which is spent then.
pub fn forced(
    table: &mut Table,
    server: &Server,
    node: &Member,
    peer: &Member,
    run: Run,
) -> Result<String> {
    let [first, second] = [server.single_use_key("ann")?, server.single_use_key("ann")?];
    table.try_it("up --force-reauth by a single-use key", || {
        renewed(node, peer, &node.node_key()?, up(node, &first, run))
    });
    table.try_it(
        "the same of a node that is stopped, by another single-use key",
        || {
            let before = node.node_key()?;
            run(&["down"])?.ok("down")?;
            let state = node.status()?["BackendState"].clone();
            ensure!(state == "Stopped", "{state}");
            renewed(node, peer, &before, up(node, &second, run))
        },
    );
    Ok(second)
}

fn up(node: &Member, key: &str, run: Run) -> Result<Finished> {
    let server = format!("--login-server={}", node.server());
    let hostname = format!("--hostname={}", node.name());
    let key = format!("--auth-key={key}");
    let flags = ["--force-reauth", "--timeout=30s"];
    run(&[&["up", &server, &hostname, &key][..], &flags].concat())
}

/// This login has to end with another node key than before, and one that the other end of a ping knows.
fn renewed(node: &Member, peer: &Member, before: &Value, up: Result<Finished>) -> Result<String> {
    up?.ok("up")?;
    let limit = match node.kind() {
        Kind::Lowroad => Duration::ZERO,
        // It knows its key by its netmap, which comes later.
        Kind::Stock => LIMIT,
    };
    wait::wait_for("another node key", limit, || {
        Ok((node.node_key()? != *before).then_some(()))
    })?;
    let time = peer.answered_by(node)?;
    Ok(format!("answers after {:.2} s", time.as_secs_f64()))
}

/// Logs in by a spent key, which has to fail, and to be told why. Says how.
pub fn refused(server: &Server, node: &Member, key: &str, run: Run) -> Result<String> {
    let start = Instant::now();
    let finished = up(node, key, run)?;
    let time = start.elapsed();
    let said = format!("{} {}", finished.stderr.trim(), finished.stdout.trim());
    ensure!(finished.code() != 0, "it was let in: {said}");
    // This Headscale refuses by an HTTP status, of which a stock client tells nobody.
    if (server.kind, node.kind()) == (server::Kind::Headscale, Kind::Stock) {
        return Ok(said);
    }
    ensure!(time < ENDS_BY_ITSELF, "only after {time:.1?}: {said}");
    let at = said.find(SPENT);
    let at = at.with_context(|| format!("it does not say why: {said}"))?;
    Ok(said[at..].chars().take(120).collect())
}

/// The login by which a node had this key.
pub fn in_force(server: &Server, node: &Member, peer: &Member, key: &Value) -> Result<()> {
    node.wait_until_running(LIMIT)?;
    ensure!(node.node_key()? == *key, "another node key");
    let known = server.node_of_key(key)?;
    let known = known.context("the server has another")?;
    // Headscale has no such field.
    let is_good = server.kind == server::Kind::Headscale || known["expired"] == false;
    ensure!(is_good, "it has expired");
    peer.answered_by(node).map(drop)
}

/// A login on Headscale may make a node of its own, and leave an older one.
fn leave_only(server: &Server, node: &Member) -> Result<()> {
    match server.kind {
        server::Kind::Headscale => server.leave_only(node.name(), &node.node_key()?),
        server::Kind::Ours => Ok(()),
    }
}
