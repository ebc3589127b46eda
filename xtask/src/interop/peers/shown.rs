//! What a stock client shows of a lowroad peer.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::UPGRADE;
use crate::{
    interop::{healthy, member::Member, server, shape, table::Table},
    tailnet::Client,
    wait,
};

/// Of a peer that tells no port of a PeerAPI.
const NO_PEER_API: &str = "no PeerAPI base found";

/// A lowroad peer looks to a stock client's commands like any other.
pub fn by_commands(
    table: &mut Table,
    server: server::Kind,
    stock: &Member,
    lowroad: &Member,
) -> Result<()> {
    let address = lowroad.ip(4)?.to_string();
    for (what, flags) in [
        ("disco", &["ping", "-c", "3", "--until-direct=false"][..]),
        ("TSMP", &["ping", "--tsmp", "-c", "3"]),
        ("ICMP", &["ping", "--icmp", "-c", "3"]),
    ] {
        table.try_it(&format!("stock: ping, {what}"), || {
            let text = stock.cli(&[flags, &[&address]].concat())?;
            last(&text).context("it says nothing")
        });
    }
    table.try_it("stock: whois", || {
        let text = stock.cli(&["whois", "--json", &address])?;
        let who: Value = serde_json::from_str(&text)?;
        ensure!(who["Node"]["ComputedName"] == "lowroad", "{text}");
        Ok(format!(
            "{} of {}",
            who["Node"]["Name"], who["UserProfile"]["LoginName"]
        ))
    });
    table.try_it("stock: status", || {
        let peer = stock.peer("lowroad")?.context("no such peer")?;
        for field in ["Online", "InNetworkMap", "InMagicSock", "InEngine"] {
            ensure!(peer[field] == true, "{field}: {peer}");
        }
        ensure!(peer["OS"] == "linux", "{peer}");
        Ok("Online, InNetworkMap, InMagicSock, InEngine".to_owned())
    });
    table.try_it("stock: netcheck", || nearest_relay(server, stock));
    table.try_it("stock: no health warning", || {
        healthy(stock).map(|()| String::new())
    });
    Ok(())
}

/// The server's own, which is the only one.
fn nearest_relay(server: server::Kind, stock: &Member) -> Result<String> {
    let name = match server {
        server::Kind::Headscale => "Lab",
        server::Kind::Ours => "lowroad coordinator",
    };
    let text = stock.cli(&["netcheck"])?;
    let line = text.lines().find(|line| line.contains("Nearest DERP"));
    let line = line.context("no nearest relay")?.trim();
    // Of relays that do not answer it says so in this place.
    ensure!(line == format!("* Nearest DERP: {name}"), "{text}");
    Ok(line.to_owned())
}

/// Beside a stock peer, as programs read of both.
pub fn as_a_stock_peer(table: &mut Table, stock: &Member, lowroad: &Member, other: &Member) {
    table.try_it(
        "stock: status --json and whois --json, as of a stock peer",
        || {
            // What a node tells of itself comes to the others by and by.
            wait::wait_for("the same fields of both", UPGRADE, || {
                let found = shape::differences(stock, lowroad, other)?;
                ensure!(found.is_empty(), "{}", found.join("; "));
                Ok(Some(()))
            })?;
            Ok("the same fields, of the same types".to_owned())
        },
    );
    table.try_it("stock: ping --peerapi, which lowroad has not", || {
        let ping = |peer: &Member| -> Result<_> {
            let address = peer.ip(4)?.to_string();
            stock.try_cli(&["ping", "--peerapi", &address])
        };
        let found = ping(other)?.ok("of a stock peer")?.stdout;
        ensure!(found.contains("hit peerapi of"), "{found}");
        let none = ping(lowroad)?;
        let said = format!("{}{}", none.stderr, none.stdout);
        ensure!(none.code() != 0, "no error: {said}");
        ensure!(
            said.contains(NO_PEER_API),
            "it does not say that there is none: {said}"
        );
        Ok(said.trim().to_owned())
    });
}

fn last(text: &str) -> Option<String> {
    text.lines().last().map(|line| line.trim().to_owned())
}
