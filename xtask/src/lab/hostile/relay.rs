//! The home relay of a peer means harm: who wants to reach that peer has to connect to it. Natively beside the userspace device, and in the VM beside the kernel's WireGuard.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context, Result, ensure};

use serde_json::{Value, json};

use super::{
    ATTACK, EVIL, EVIL_ADDRESS, LIMIT, Memory, Siege, Standing, argument, at_least, direct,
    peer::Session,
};
use crate::{
    lab::{ALLOW_ALL, Lab, ms, secs},
    process::Daemon,
    tailnet::{Client as _, Coordinator, Node, PathKind, binaries},
    topology::{Namespace, Nat},
    traffic::{self, Pinger},
    wait,
};

const PORT: u16 = 8443;
const REGION: u16 = 66;
/// Each is a relay of its own, and the last a good one; with how many bytes it attacks at least.
const MODES: &[(&str, u64)] = &[
    ("close", 0),
    ("silent", 0),
    ("no-answer", 0),
    ("endless-head", 10_000),
    ("trickle", 1),
    ("garbage", 4096),
    ("huge-length", 4096),
    ("unknown-keys", 50_000),
    ("gone", 20_000),
    ("pings", 10_000),
    ("health", 100_000),
    ("large-frames", 1 << 20),
    ("good", 0),
];
/// The heaviest, by frames and by bytes.
const TWICE: &[&str] = &["unknown-keys", "large-frames"];
/// Carries packets, and changes some of WireGuard's.
const CHANGING: &str = "changing";
/// Over the changing relay; hundreds of packets.
const BYTES: usize = 300_000;
/// Connections that one victim may make during one attack, on an emulated CPU of 21 s: the pauses double from 50 ms on.
const MAX_CONNECTIONS: u64 = 10;

pub fn a_hostile_relay_harms_no_path_but_its_own(lab: &Lab) -> Result<()> {
    let evil = lab.net.public("evil", EVIL)?;
    let listen = argument("listen", format!("{EVIL_ADDRESS}:{PORT}"));
    let names: Vec<&str> = MODES.iter().map(|(mode, _)| *mode).collect();
    let modes = argument("modes", names.join(","));
    let mut relay = Standing::start(lab, &evil, "relay", &[listen, modes])?;
    let file = lab.net.folder().join("derp-map.json");
    fs::write(&file, regions(&relay.pin()?, &names).to_string())?;
    let file = file.to_str().context("a path that is not UTF-8")?;
    let coordinator = Coordinator::start_with(lab.net, ALLOW_ALL, &["--derp-map", file])?;
    let key = coordinator.auth_key("ann", "")?;
    // The kernel's session and endpoint are looked at there: with one path, nothing but an attack could move it.
    let node = |name: &str, last| match lab.emulated {
        true => lab.single_path_node(name, last),
        false => lab.public_node(name, last),
    };
    let alpha = node("alpha", 30)?;
    let bravo = node("bravo", 31)?;
    alpha.up(&key)?;
    bravo.up(&key)?;
    direct(&alpha, &bravo)?;
    let mut session = match lab.emulated {
        true => Some(Session::of(&alpha, &bravo)?),
        false => None,
    };
    let victims = [("alpha", alpha.agent_pid()), ("bravo", bravo.agent_pid())];
    let allowed = Memory {
        peak: 48,
        after: 32,
    };
    let pair = (&alpha.namespace, bravo.ip(4)?);
    let siege = Siege::begin(lab, pair, &victims, allowed)?;
    for (number, (mode, least)) in (0..).zip(MODES) {
        let name = format!("mallory{number}");
        let _mallory = mallory(&evil, &relay, &key, number)?;
        alpha.wait_for_peer(&name, patience(lab))?;
        let mallory = alpha.peer(&name)?.context("mallory has gone")?;
        ensure!(mallory["Relay"] == *mode, "{mallory}");
        let address = mallory["TailscaleIPs"][0].as_str().context("no address")?;
        let address: IpAddr = address.parse()?;
        let attack = || attacked(lab, &relay, (&alpha, address), (*mode, *least));
        match TWICE.contains(mode) {
            true => siege.under_twice(mode, attack)?,
            false => siege.under(mode, attack)?,
        }
        if let Some(session) = &mut session {
            session.goes_on().context(*mode)?;
        }
    }
    siege.end()
}

/// For what an emulated attacker takes seconds for.
fn patience(lab: &Lab) -> Duration {
    if lab.emulated { LIMIT } else { secs(20) }
}

/// Alpha wants to reach who is at this address, behind the relay in this mode, which attacks with so many bytes at least.
fn attacked(
    lab: &Lab,
    relay: &Standing,
    (alpha, address): (&Node, IpAddr),
    (mode, least): (&str, u64),
) -> Result<String> {
    let before = sent(relay, mode)?;
    // Nobody answers it.
    let _wanted = Pinger::start(&alpha.namespace, address, ms(100))?;
    let accepted =
        || -> Result<u64> { Ok(relay.read(&format!("accepted-{mode}"))?.trim().parse()?) };
    wait::wait_for("alpha at the relay", patience(lab), || {
        Ok((accepted()? > 0).then_some(()))
    })?;
    wait::pass(ATTACK)?;
    if lab.emulated {
        // It takes longer for as much; how much it was is judged below.
        let _ = wait::wait_for("the attack", secs(20), || {
            Ok((sent(relay, mode)? >= before + least).then_some(()))
        });
    }
    let connections = accepted()?;
    ensure!(
        connections <= MAX_CONNECTIONS,
        "{connections} connections: no pause between them"
    );
    let sent = format!("{} bytes", sent(relay, mode)? - before);
    let sent = at_least(least, &sent)?;
    Ok(format!("{connections} connections, {sent}"))
}

/// Bytes that the relay has sent in this mode.
fn sent(relay: &Standing, mode: &str) -> Result<u64> {
    let sent = relay.read("sent")?;
    let count = sent
        .lines()
        .find_map(|line| line.strip_prefix(mode)?.strip_prefix(' '));
    Ok(count.map_or(Ok(0), str::parse)?)
}

pub fn a_relay_that_changes_packets_has_none_of_them_delivered(lab: &Lab) -> Result<()> {
    let evil = lab.net.public("evil", EVIL)?;
    let listen = argument("listen", format!("{EVIL_ADDRESS}:{PORT}"));
    let mut relay = Standing::start(lab, &evil, "relay", &[listen, argument("modes", CHANGING)])?;
    let file = lab.net.folder().join("derp-map.json");
    let mut map = regions(&relay.pin()?, &[CHANGING]);
    let region = &mut map["Regions"][REGION.to_string()];
    region["NoMeasureNoHome"] = false.into();
    region["Nodes"][0]["STUNPort"] = 3478.into();
    fs::write(&file, map.to_string())?;
    let file = file.to_str().context("a path that is not UTF-8")?;
    let coordinator = Coordinator::start_with(lab.net, ALLOW_ALL, &["--derp-map", file])?;
    // So that nobody takes the other relay for nearer.
    coordinator.namespace.deaf_to_stun()?;
    let key = coordinator.auth_key("ann", "")?;
    let alpha = lab.node_behind("alpha", 21, Nat::Hard)?;
    let bravo = lab.node_behind("bravo", 22, Nat::Hard)?;
    alpha.up(&key)?;
    bravo.up(&key)?;
    let ping = Pinger::start(&alpha.namespace, bravo.ip(4)?, ms(20))?;
    ping.first_answer(secs(20))?;
    for (from, to) in [(&alpha, &bravo), (&bravo, &alpha)] {
        let by = PathKind::Relay(CHANGING.to_owned());
        let what = format!("{} by the hostile relay", to.name);
        wait::wait_for(&what, secs(20), || {
            Ok((from.path_to(&to.name)? == by).then_some(()))
        })?;
    }
    let changed = || -> Result<u64> { Ok(relay.read("changed")?.trim().parse()?) };
    ensure!(changed()? == 0, "it changed packets already");
    let _server = traffic::Server::start(&bravo.namespace, 80)?;
    let server = SocketAddr::new(bravo.ip(4)?, 80);
    let get = |bytes, limit| traffic::get(&alpha.namespace, server, bytes, limit);
    get(BYTES, secs(20))?;
    relay.set("8")?;
    get(BYTES, secs(60)).context("with every 8th packet changed")?;
    let of_stream = changed()?;
    ensure!(of_stream > 10, "only {of_stream} packets were changed");
    relay.set("1")?;
    wait::wait_for("packets changed", secs(20), || {
        Ok((changed()? > of_stream + 20).then_some(()))
    })?;
    let answered = ping.answered();
    wait::wait_for("more of them", secs(20), || {
        Ok((changed()? > of_stream + 120).then_some(()))
    })?;
    let let_through = ping.answered() - answered;
    ensure!(let_through == 0, "{let_through} pings were answered");
    lab.note(&format!(
        "{of_stream} packets of a stream changed, then all {}",
        changed()? - of_stream
    ));
    relay.set("good")?;
    let answered = ping.answered();
    wait::wait_for("answers again", secs(30), || {
        Ok((ping.answered() > answered + 20).then_some(()))
    })?;
    super::no_errors(lab.net.folder())
}

/// One region for each mode, named after it.
fn regions(pin: &str, modes: &[&str]) -> Value {
    let regions: serde_json::Map<_, _> = (0..)
        .zip(modes)
        .map(|(number, mode)| {
            let region = REGION + number;
            let node = json!({
                "Name": format!("{region}a"), "RegionID": region, "HostName": EVIL_ADDRESS, "CertName": pin,
                "IPv4": EVIL_ADDRESS, "IPv6": "none", "STUNPort": -1, "DERPPort": PORT + number,
            });
            let region_json = json!({
                "RegionID": region, "RegionCode": mode, "RegionName": mode,
                // Nobody else is to choose it.
                "NoMeasureNoHome": true, "Nodes": [node],
            });
            (region.to_string(), region_json)
        })
        .collect();
    json!({ "Regions": regions })
}

/// A member that can be reached by the relay of this number only.
fn mallory(evil: &Namespace, relay: &Standing, key: &str, number: u16) -> Result<Daemon> {
    let mut program = evil.command(binaries().join(super::PROGRAM));
    program.arg("peer").args([
        argument("server", "203.0.113.10:8080"),
        argument("key", key),
        argument("name", format!("mallory{number}")),
        argument("seed", 0x60 + number),
        argument("own", EVIL_ADDRESS),
        argument("home", REGION + number),
        argument("victim", "alpha"),
        argument("attack", "nothing"),
        argument("prepared", 0),
        argument("ms", 120_000),
    ]);
    Daemon::spawn(&mut program, &relay.folder.join("member"))
}
