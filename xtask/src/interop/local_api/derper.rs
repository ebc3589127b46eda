//! The stock relay, which asks a local daemon's socket whom to let in: lowroad's, here.

use std::{
    fs,
    net::{SocketAddr, TcpStream},
    path::Path,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    interop::{
        Lab,
        hosts::{self, RELAY, RELAY_HOST},
        member::{Kind, Member},
        relay,
        server::{self, KeyOptions, Server},
        table::Table,
    },
    lab::{ALLOW_ALL, secs},
    process::{self, Daemon},
    tailnet::{Client, PathKind},
    topology::Nat,
    traffic::Pinger,
    wait,
};

const LIMIT: Duration = secs(20);
/// A node may hear no STUN server in time, and choose by HTTPS, until it measures again.
const MEASURED_AGAIN: Duration = secs(90);
const PACE: Duration = Duration::from_millis(20);
/// The relay's words for a key that the daemon's `whois` doesn't know.
const REJECTED: &str = "not authorized (not found in local tailscaled)";

/// Two nodes that reach each other by that relay only are let in if lowroad knows them, and a key of no node is not.
pub fn asks_lowroad(lab: &Lab, table: &mut Table) -> Result<()> {
    table.area("the stock relay asks lowroad's socket whom to let in");
    let server = Server::with_second_relay(lab, server::Kind::Headscale, ALLOW_ALL)?;
    let key = server.auth_key("ann", KeyOptions::default())?;
    let gate = Member::public(lab, Kind::Lowroad, "gate", 24)?;
    gate.up(&key)?;
    let Member::Lowroad(node) = &gate else {
        bail!("a lowroad node that is none");
    };
    let derper = start(lab, &node.socket())?;
    // Whose STUN server is not heard is nobody's home who comes now.
    server.namespace.nft(
        "table inet deaf { chain in { type filter hook input priority 0; udp dport 3478 drop; }; }",
    )?;
    let lowroad = Member::behind(lab, Kind::Lowroad, "lowroad", 22, Nat::Hard)?;
    let stock = Member::behind(lab, Kind::Stock, "stock", 23, Nat::Hard)?;
    for node in [&lowroad, &stock] {
        node.up(&key)?;
        let home = || Ok((node.status()?["Self"]["Relay"] == relay::CODE).then_some(()));
        wait::wait_for("the stock relay as home", MEASURED_AGAIN, home)
            .with_context(|| node.name().to_owned())?;
    }
    for (from, to) in [(&lowroad, &stock), (&stock, &lowroad)] {
        table.try_it(&format!("{} to {}", from.name(), to.name()), || {
            from.wait_for_peer(to.name(), LIMIT)?;
            let ping = Pinger::start(from.namespace(), to.ip(4)?, PACE)?;
            let first = ping.first_answer(LIMIT)?;
            let path = from.path_to(to.name())?;
            let by_it = matches!(&path, PathKind::Relay(code) if code == relay::CODE);
            ensure!(by_it, "by {path:?}");
            Ok(format!(
                "{path:?}, first after {:.2} s",
                first.as_secs_f64()
            ))
        });
    }
    table.try_it("a key that lowroad doesn't know: refused", || {
        let rejected = || -> Result<usize> {
            let log = fs::read_to_string(&derper.log)?;
            Ok(log.lines().filter(|line| line.contains(REJECTED)).count())
        };
        let before = rejected()?;
        // It connects with a key of its own making.
        stock.cli(&["debug", "derp", &relay::REGION.to_string()])?;
        wait::wait_for("the relay's words", LIMIT, || {
            Ok((rejected()? > before).then_some(()))
        })
        .with_context(|| process::tail(&derper.log, 10))?;
        Ok(REJECTED.to_owned())
    });
    Ok(())
}

/// Runs until dropped.
fn start(lab: &Lab, socket: &Path) -> Result<Daemon> {
    let folder = lab.net.folder();
    let host = hosts::with_etc(&lab.net.public("relay2", RELAY_HOST)?, folder)?;
    let mut command = host.command(lab.programs.join("derper"));
    command
        .args(["-a", ":443", "-http-port", "-1", "-stun-port", "3478"])
        .args(["-hostname", RELAY, "-certmode", "manual", "-certdir"])
        .arg(folder)
        .arg("-c")
        .arg(folder.join("derper.json"))
        .args(["-verify-clients", "-socket"])
        .arg(socket);
    let daemon = Daemon::spawn(&mut command, &folder.join("derper.log"))?;
    let address = SocketAddr::from(([203, 0, 113, RELAY_HOST], 443));
    wait::wait_for("the stock relay's port", LIMIT, || {
        let connect = || TcpStream::connect_timeout(&address, secs(1)).is_ok();
        Ok(host.enter(connect)?.then_some(()))
    })?;
    Ok(daemon)
}
