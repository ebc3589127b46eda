//! What Headscale tells all nodes of itself: relays and DNS records of its files, users, attributes by the policy; and its pings.

use std::{fs, net::SocketAddr, path::PathBuf, time::Duration};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{EMBEDDED, LIMIT, POLICY, Watchers, seen::Seen};
use crate::{
    interop::{self, Lab, member::Member, relay, server::Server, stock::Stock, table::Table},
    lab::secs,
    process,
    tailnet::Client,
    traffic, wait,
};

const ATTRIBUTE: &str = "lab.example/cap/attribute";
/// For how long no health warning may come.
const WELL: u64 = 5;

fn records_file(lab: &Lab) -> PathBuf {
    lab.net.folder().join("records.json")
}

/// Before anybody joins: Headscale reads its files again, and everybody chooses the stock relay.
pub(super) fn prepare(lab: &Lab, server: &mut Server) -> Result<()> {
    let records = records_file(lab);
    fs::write(&records, "[]")?;
    let dns = "  override_local_dns: false\n";
    let with_records = format!("{dns}  extra_records_path: {}\n", records.display());
    server.reconfigure(&[
        (
            "auto_update_enabled: false\n",
            "auto_update_enabled: true\n",
        ),
        ("update_frequency: 24h\n", "update_frequency: 5s\n"),
        (dns, with_records.as_str()),
    ])?;
    server.namespace.deaf_to_stun()
}

/// A region goes, with everybody at home in it, and comes back.
pub(super) fn relays(table: &mut Table, lab: &Lab, watchers: &Watchers, server: &Server) {
    table.try_it("a relay that is everybody's home leaves the map", || {
        at_home(watchers, relay::CODE).context("before")?;
        let file = lab.net.folder().join(relay::HEADSCALES_MAP);
        fs::write(file, "regions: {}\n")?;
        let told = the_same_map(lab, watchers, |map| second_region(map).is_null())?;
        server.namespace.hear_stun()?;
        let moved = at_home(watchers, EMBEDDED.1)?;
        Ok(format!(
            "the same map at both after {:.2} s, all at home on {} {:.2} s later",
            told.as_secs_f64(),
            EMBEDDED.1,
            moved.as_secs_f64()
        ))
    });
    table.try_it("and comes back", || {
        // Also where it failed to go.
        server.namespace.hear_stun()?;
        relay::write_maps(lab.net.folder())?;
        let told = the_same_map(lab, watchers, |map| !second_region(map).is_null())?;
        Ok(format!(
            "the same map at both after {:.2} s",
            told.as_secs_f64()
        ))
    });
}

/// The watchers as they say themselves, and the peer as they see it.
fn at_home(watchers: &Watchers, code: &str) -> Result<Duration> {
    let (_, time) = wait::wait_for(&format!("all at home on {code}"), LIMIT, || {
        for watcher in watchers.both() {
            let home = watcher.status()?["Self"]["Relay"].clone();
            let peers = Seen::by(watcher)?.peer()["Relay"].clone();
            ensure!(
                home == code && peers == code,
                "{} is on {home}, and sees the peer on {peers}",
                watcher.name()
            );
        }
        Ok(Some(()))
    })?;
    Ok(time)
}

fn the_same_map(
    lab: &Lab,
    watchers: &Watchers,
    wanted: impl Fn(&Value) -> bool,
) -> Result<Duration> {
    let (_, time) = wait::wait_for("the same relay map at both", LIMIT, || {
        let [lowroad, stock] = watchers.both().map(|watcher| relay_map(lab, watcher));
        let (lowroad, stock) = (lowroad?, stock?);
        ensure!(
            lowroad == stock && wanted(&stock),
            "lowroad {lowroad}, stock {stock}"
        );
        Ok(Some(()))
    })?;
    Ok(time)
}

/// As the stock command line shows it, on either's socket.
fn relay_map(lab: &Lab, watcher: &Member) -> Result<Value> {
    let arguments = ["debug", "derp-map"];
    let mut command = match watcher {
        Member::Lowroad(node) => {
            let host = watcher.namespace();
            Stock::command_line(lab.programs, host, &node.socket(), &arguments)
        }
        Member::Stock(stock) => stock.command(&arguments),
    };
    let finished = process::run(&mut command, "", LIMIT)?;
    let text = finished.ok(&arguments.join(" "))?.stdout;
    serde_json::from_str(&text).with_context(|| format!("the relay map {text}"))
}

fn second_region(map: &Value) -> &Value {
    &map["Regions"][relay::REGION.to_string()]
}

pub(super) fn records(table: &mut Table, lab: &Lab, watchers: &Watchers) {
    let file = records_file(lab);
    let write = |records: &Value| -> Result<()> { Ok(fs::write(&file, records.to_string())?) };
    let records = json!([{"Name": "wiki.lab", "Type": "A", "Value": "100.64.0.77"}]);
    watchers.row(
        table,
        "an extra DNS record",
        || write(&records),
        |seen| seen.tailnet["ExtraRecords"] == records,
    );
    table.try_it("no health warning comes with it", || {
        for _ in 0..WELL {
            for watcher in watchers.both() {
                let state = watcher.status()?["BackendState"].clone();
                ensure!(state == "Running", "{} is {state}", watcher.name());
                interop::healthy(watcher).with_context(|| watcher.name().to_owned())?;
            }
            wait::pass(secs(1))?;
        }
        Ok(format!("within {WELL} s, and both run"))
    });
    watchers.row(
        table,
        "and none",
        || write(&json!([])),
        |seen| seen.tailnet["ExtraRecords"].is_null(),
    );
}

/// What a node's control client answers, by a request of its own.
pub(super) fn pings(table: &mut Table, watchers: &Watchers, server: &Server) {
    table.try_it("a ping by Headscale, and another", || {
        let first = answers(watchers, server)?;
        let then = answers(watchers, server)?;
        Ok(format!("{first}; {then}"))
    });
}

/// Headscale's page for it says what came of it.
fn answers(watchers: &Watchers, server: &Server) -> Result<String> {
    let page = SocketAddr::from(([127, 0, 0, 1], 9090));
    let mut said = Vec::new();
    for watcher in watchers.both() {
        let path = format!("/debug/ping?node={}", watcher.ip(4)?);
        let answer = traffic::page(&server.namespace, page, &path);
        let answer = answer.with_context(|| format!("{}: no answer", watcher.name()))?;
        let mut texts = answer.split(['<', '>']);
        let result = texts.find(|text| text.starts_with("Node "));
        let result = result.with_context(|| format!("{}: {answer}", watcher.name()))?;
        ensure!(
            result.contains("responded in"),
            "{}: {result}",
            watcher.name()
        );
        said.push(format!("{}: {result}", watcher.name()));
    }
    Ok(said.join("; "))
}

/// SSH changes nothing that a status shows; both have to take it.
pub(super) fn attributes(table: &mut Table, watchers: &Watchers, server: &Server) {
    let with = POLICY.replacen(
        '{',
        &format!(
            r#"{{"nodeAttrs": [{{"target": ["*"], "attr": ["{ATTRIBUTE}"]}}],
            "ssh": [{{"action": "accept", "src": ["autogroup:member"], "dst": ["autogroup:self"], "users": ["root"]}}],"#
        ),
        1,
    );
    let has = |seen: &Seen| seen.own["CapMap"].get(ATTRIBUTE).is_some();
    watchers.row(
        table,
        "node attributes and SSH by a policy",
        || server.set_policy(&with),
        has,
    );
    watchers.row(
        table,
        "and none by the next",
        || server.set_policy(POLICY),
        |seen| seen.own["CapMap"].is_object() && !has(seen),
    );
}

/// Upon a user that goes Headscale sends everything, though nothing else is.
pub(super) fn everything(table: &mut Table, watchers: &Watchers, server: &Server) {
    table.try_it(
        "a user made and deleted: all is sent, and stays as it is",
        || {
            let [lowroad, stock] = watchers.both().map(Seen::by);
            let before = [lowroad?, stock?];
            server.cli(&["users", "create", "carol"])?;
            server.cli(&["users", "destroy", "--name", "carol", "--force"])?;
            // Comes after it.
            let said = answers(watchers, server)?;
            wait::pass(secs(1))?;
            for (watcher, before) in watchers.both().into_iter().zip(before) {
                let what = format!("what {} saw before", watcher.name());
                wait::wait_for(&what, LIMIT, || {
                    let seen = Seen::by(watcher)?;
                    ensure!(seen == before, "{before:?} became {seen:?}");
                    Ok(Some(()))
                })?;
            }
            Ok(said)
        },
    );
}
