//! The stock relay, which asks a local daemon's socket whom to let in: lowroad's, here.

use std::{fs, time::Duration};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    interop::{
        Lab,
        member::{Kind, Member},
        relay,
        server::{self, KeyOptions, Server},
        table::Table,
    },
    lab::{ALLOW_ALL, secs},
    process,
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
    let derper = relay::start_asking(lab, &node.socket())?;
    // Whose STUN server is not heard is nobody's home who comes now.
    server.namespace.deaf_to_stun()?;
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
