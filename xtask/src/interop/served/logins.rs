//! Logins of stock nodes on our coordinator, and how they end.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::LIMIT;
use crate::{
    interop::{
        Age, Lab, Login, hosts,
        member::{Kind, Member},
        server::{self, KeyOptions, Server},
        single_use::{self, ENDS_BY_ITSELF},
        table::Table,
    },
    lab::secs,
    tailnet::Client,
    wait,
};

/// Until a key ends, and how much later at most that is seen: whole seconds, the server's tick, and that both are told.
const KEY_LASTS: u64 = 15;
const SEEN_WITHIN: u64 = 5;

pub fn logins(
    lab: &Lab,
    table: &mut Table,
    server: &Server,
    one: &Member,
    two: &mut Member,
    age: Age,
) -> Result<()> {
    as_others(table, server, one, two);
    single_use::rows(table, server, two, one, age)?;
    tagged(table, server, one, two);
    expired(table, server, one, two)?;
    deleted(table, server, one, two);
    by_page(lab, table, server, two);
    Ok(())
}

/// What the server knows of a node, by the key that it has.
fn known(server: &Server, node: &Member) -> Result<Value> {
    let found = server.node_of_key(&node.node_key()?)?;
    found.context("the server does not know its key")
}

/// Logs in anew, and has to get another node key.
fn forced(node: &Member, key: &str, flags: &[&str]) -> Result<Duration> {
    renewed(node, &node.node_key()?, key, flags)
}

/// Another one than this.
fn renewed(node: &Member, before: &Value, key: &str, flags: &[&str]) -> Result<Duration> {
    let time = node.up_with(key, &[&["--force-reauth"][..], flags].concat())?;
    wait::wait_for("another node key", LIMIT, || {
        Ok((node.node_key()? != *before).then_some(()))
    })?;
    Ok(time)
}

fn needs_login(node: &Member) -> Result<Duration> {
    let what = format!("{} needs a login", node.name());
    let is_so = || Ok((node.status()?["BackendState"] == "NeedsLogin").then_some(()));
    wait::wait_for(&what, LIMIT, is_so).map(|(_, time)| time)
}

/// Waits until the peer shows the other node so.
fn shown(one: &Member, what: &str, is_so: impl Fn(&Value) -> bool) -> Result<Duration> {
    let what = format!("{what}, at the peer");
    let waited = wait::wait_for(&what, LIMIT, || {
        let peer = one.peer("two")?.context("no such peer")?;
        Ok(is_so(&peer).then_some(()))
    });
    waited.map(|(_, time)| time)
}

fn as_others(table: &mut Table, server: &Server, one: &Member, two: &Member) {
    let user = || -> Result<String> {
        let node = known(server, two)?;
        Ok(node["user"]["name"].as_str().unwrap_or("tags").to_owned())
    };
    table.try_it("logout, and back as another user", || {
        two.cli(&["logout"])?;
        needs_login(two)?;
        let key = server.auth_key("bob", KeyOptions::default())?;
        two.up(&key)?;
        // The other user's node is another one; the first has expired.
        server.leave_only("two", &two.node_key()?)?;
        ensure!(user()? == "bob", "of {}", user()?);
        one.wait_for_peer("two", LIMIT)?;
        Ok(String::new())
    });
    table.try_it("up --force-reauth", || {
        let key = server.auth_key("bob", KeyOptions::default())?;
        forced(two, &key, &[])?;
        Ok("with a new node key".to_owned())
    });
    table.try_it("up --force-reauth as another user", || {
        let key = server.auth_key("ann", KeyOptions::default())?;
        forced(two, &key, &[])?;
        ensure!(user()? == "ann", "of {}", user()?);
        let own = two.node_key()?;
        shown(one, "the new node key", |peer| peer["PublicKey"] == own)?;
        let status = one.status()?;
        let peer = one.peer("two")?.context("no such peer")?;
        let owner = &status["User"][peer["UserID"].to_string()]["LoginName"];
        ensure!(owner == "ann", "the peer shows it as {owner}'s");
        let time = one.answered_by(two)?;
        Ok(format!("answers after {:.2} s", time.as_secs_f64()))
    });
}

fn tagged(table: &mut Table, server: &Server, one: &Member, two: &Member) {
    table.try_it("up --advertise-tags", || {
        let has = |node: &Value, field: &str| node[field].to_string().contains("tag:web");
        let key = server.auth_key("ann", KeyOptions::default())?;
        forced(two, &key, &["--advertise-tags=tag:web"])?;
        let node = known(server, two)?;
        ensure!(has(&node, "tags"), "{node}");
        let own = two.status()?["Self"].clone();
        ensure!(has(&own, "Tags"), "{}", own["Tags"]);
        let time = shown(one, "the tag", |peer| has(peer, "Tags"))?;
        one.answered_by(two)?;
        Ok(format!("seen after {:.2} s", time.as_secs_f64()))
    });
}

/// Waits until both know that the key has ended.
fn ended(one: &Member, two: &Member) -> Result<String> {
    let own = needs_login(two)?;
    let others = shown(one, "the end", |peer| peer["Expired"] == true)?;
    Ok(format!(
        "needs a login after {:.2} s, expired for its peer {:.2} s later",
        own.as_secs_f64(),
        others.as_secs_f64()
    ))
}

fn expired(table: &mut Table, server: &Server, one: &Member, two: &Member) -> Result<()> {
    table.try_it("key expiry, and a new login", || {
        let before = two.node_key()?;
        server.to_node("expire", "two")?;
        let note = ended(one, two)?;
        let key = server.auth_key("ann", KeyOptions::default())?;
        renewed(two, &before, &key, &["--advertise-tags="])?;
        one.answered_by(two)?;
        Ok(note)
    });
    let own = two.node_key()?;
    table.try_it(
        &format!("a key that ends in {KEY_LASTS} s, by itself"),
        || {
            let start = Instant::now();
            server.expire_in("two", KEY_LASTS)?;
            let note = ended(one, two)?;
            let time = start.elapsed();
            ensure!(time >= secs(KEY_LASTS - 2), "already after {time:.1?}");
            ensure!(
                time <= secs(KEY_LASTS + SEEN_WITHIN),
                "only after {time:.1?}"
            );
            Ok(note)
        },
    );
    table.try_it("and is good again, as the administrator says", || {
        server.set_expiry("two", None)?;
        let time = two.wait_until_running(secs(60))?;
        ensure!(two.node_key()? == own, "another node key");
        shown(one, "no end", |peer| peer["Expired"] != true)?;
        one.answered_by(two)?;
        Ok(format!("runs after {:.2} s", time.as_secs_f64()))
    });
    Ok(())
}

fn deleted(table: &mut Table, server: &Server, one: &Member, two: &Member) {
    table.try_it("deleted, and a new login", || {
        server.to_node("delete", "two")?;
        wait::wait_for("gone from the peer", LIMIT, || {
            Ok(one.peer("two")?.is_none().then_some(()))
        })?;
        let told = needs_login(two)?;
        let key = server.auth_key("ann", KeyOptions::default())?;
        two.up_with(&key, &["--force-reauth", "--reset"])?;
        one.wait_for_peer("two", LIMIT)?;
        one.answered_by(two)?;
        Ok(format!("told after {:.2} s", told.as_secs_f64()))
    });
}

/// Signs in at the login page, which an administrator approves.
fn by_page(lab: &Lab, table: &mut Table, server: &Server, node: &Member) {
    table.try_it("up by login page", || {
        node.cli(&["logout"])?;
        let login = Login::begin(lab, node, &[])?;
        ensure!(login.page.starts_with(server::URL), "{}", login.page);
        server.approve_login(&login.page, "eve")?;
        node.wait_until_running(LIMIT)?;
        Ok(format!("at https://{}/…", hosts::SERVER))
    });
}

/// An `up` that has to fail, and to say why soon. Returns what it says from there.
fn refused(node: &Member, key: &str, flags: &[&str], why: &str) -> Result<String> {
    let start = Instant::now();
    let Err(error) = node.up_with(key, flags) else {
        bail!("it was let in: {}", node.status()?["Self"]["Tags"]);
    };
    let time = start.elapsed();
    ensure!(time < ENDS_BY_ITSELF, "only after {time:.1?}: {error:#}");
    let said = format!("{error:#}");
    let at = said.find(why).with_context(|| said.clone())?;
    Ok(said[at..].chars().take(120).collect())
}

/// A key that nobody has made, and a tag asked for with the key of a user whom the policy does not name among its owners.
pub fn refusals(lab: &Lab, table: &mut Table, server: &Server) -> Result<()> {
    let node = Member::public(lab, Kind::Stock, "greedy", 40)?;
    let key = server.auth_key("bob", KeyOptions::default())?;
    let wrong = "lrkey-auth-000000000000-0";
    let tag = "--advertise-tags=tag:web";
    for (what, key, flag, why) in [
        (
            "up by a key that is not known",
            wrong,
            "--reset",
            "not known",
        ),
        (
            "up with another owner's tag",
            key.as_str(),
            tag,
            "requested tag",
        ),
    ] {
        table.try_it(&format!("{what}: refused, and told why"), || {
            let said = refused(&node, key, &[flag], why)?;
            ensure!(
                server.node("greedy")?.is_none(),
                "the server has a node of it"
            );
            Ok(said)
        });
    }
    table.try_it("and up with neither", || {
        let time = node.up_with(&key, &["--reset"])?;
        Ok(format!("{:.2} s", time.as_secs_f64()))
    });
    Ok(())
}
