//! The control server means harm. What it has said before goes on working, and it can make us neither grow nor end.

use std::fs;

use anyhow::{Result, ensure};

use super::{ATTACK, EVIL, EVIL_ADDRESS, Memory, Siege, Standing, argument, direct};
use crate::{
    lab::{Lab, secs},
    tailnet::{Client as _, Node},
    wait,
};

/// What the user is told of a map of too many peers, however many there are.
const TOO_MANY: &str = "of at most";

const RELAY_PORT: u16 = 8443;
/// What it says in the map stream, on a connection that works.
const IN_THE_STREAM: &[&str] = &[
    "stream-garbage",
    "length-garbage",
    "longest-message",
    "trickle",
    "not-json",
    "deep",
    "bomb",
    "wide",
    "wide-objects",
    "huge-strings",
    "contradictions",
    "ping-requests",
    "login-pages",
];
/// What it does with a connection.
const WITH_CONNECTIONS: &[&str] = &[
    "close",
    "silent",
    "http-garbage",
    "endless-headers",
    "trickle-head",
    "endless-key",
    "handshake-garbage",
    "record-garbage",
    "http2-garbage",
];

pub fn a_hostile_control_server_stops_nothing_that_works(lab: &Lab) -> Result<()> {
    let evil = lab.net.public("evil", EVIL)?;
    let listen = argument("listen", format!("{EVIL_ADDRESS}:{RELAY_PORT}"));
    let mut relay = Standing::start(lab, &evil, "relay", &[listen, argument("modes", "good")])?;
    let pin = relay.pin()?;
    let server = Standing::start(
        lab,
        &evil,
        "control",
        &[
            argument("listen", format!("{EVIL_ADDRESS}:8080")),
            argument("relay", format!("{EVIL_ADDRESS}:{RELAY_PORT}")),
        ],
    )?;
    fs::write(server.folder.join("pin"), pin)?;
    let alpha = lab.public_node("alpha", 30)?;
    let bravo = lab.public_node("bravo", 31)?;
    for node in [&alpha, &bravo] {
        up(node)?;
    }
    alpha.wait_for_peer("bravo", secs(20))?;
    direct(&alpha, &bravo)?;
    let victims = [("alpha", alpha.agent_pid()), ("bravo", bravo.agent_pid())];
    // A message may be 48 MiB long, and 64 MiB when it is unpacked.
    let allowed = Memory {
        peak: 200,
        after: 48,
    };
    let pair = (&alpha.namespace, bravo.ip(4)?);
    let siege = Siege::begin(lab, pair, &victims, allowed)?;
    for mode in IN_THE_STREAM {
        siege.under(mode, || {
            server.set(mode)?;
            met(&server, mode)?;
            wait::pass(ATTACK)?;
            server.set("good")?;
            connected(&alpha, &bravo)?;
            Ok("said to both".to_owned())
        })?;
    }
    for mode in ["many-peers", "million-peers"] {
        siege.under(mode, || {
            server.set(mode)?;
            let told = refused_as_a_whole(&alpha)?;
            server.set("good")?;
            connected(&alpha, &bravo)?;
            Ok(told)
        })?;
    }
    for mode in WITH_CONNECTIONS {
        siege.under(mode, || {
            server.set(mode)?;
            met(&server, mode)?;
            wait::pass(ATTACK)?;
            // Or pauses between attempts would grow, and the next mode meet nobody.
            server.set("good")?;
            connected(&alpha, &bravo)?;
            Ok("done to both".to_owned())
        })?;
    }
    siege.end()
}

/// Waits until both victims have met it.
fn met(server: &Standing, mode: &str) -> Result<()> {
    let what = format!("two who meet {mode}");
    wait::wait_for(&what, secs(30), || {
        let lines = server.read(&format!("met-{mode}"))?;
        let mut whom: Vec<&str> = lines.lines().collect();
        whom.sort_unstable();
        whom.dedup();
        Ok((whom.len() >= 2).then_some(()))
    })
    .map(drop)
}

fn up(node: &Node) -> Result<()> {
    let server = format!("--login-server=http://{EVIL_ADDRESS}:8080");
    let hostname = format!("--hostname={}", node.name);
    node.cli(&["up", &server, "--auth-key=x", &hostname, "--timeout=60s"])
        .map(drop)
}

/// A map of so many peers is no map: the peers are those of before, and the user is told.
fn refused_as_a_whole(node: &Node) -> Result<String> {
    let mut most = 0;
    let (told, _) = wait::wait_for("a health warning about the map", secs(20), || {
        let status = node.status()?;
        let warnings = status["Health"].as_array().cloned().unwrap_or_default();
        let told = warnings.iter().filter_map(|warning| warning.as_str());
        let told = told.map(str::to_owned).find(|told| told.contains(TOO_MANY));
        most = most.max(status["Peer"].as_object().map_or(0, serde_json::Map::len));
        Ok(told)
    })?;
    ensure!(most <= 1, "{most} peers were taken of it");
    Ok(format!("told: {told}"))
}

/// Both follow the server again.
fn connected(alpha: &Node, bravo: &Node) -> Result<()> {
    for node in [alpha, bravo] {
        wait::wait_for("a connection to the control server", secs(60), || {
            let status = node.status()?;
            let health = status["Health"].to_string();
            let is_well = status["BackendState"] == "Running" && !health.contains("login server");
            Ok(is_well.then_some(()))
        })?;
    }
    Ok(())
}
