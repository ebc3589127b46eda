//! What stock nodes show of what our coordinator has told them.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::LIMIT;
use crate::{
    interop::{Age, hosts, member::Member, server::Server, table::Table},
    lab::secs,
    process,
    tailnet::Client,
    wait,
};

/// Of a key that nobody has set.
const ZEROS: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// What their debugging commands show.
pub fn debugging(table: &mut Table, server: &Server, nodes: [&Member; 2]) {
    table.try_it("debug derp-map: the regions that are served", || {
        let served = json!({"999": {
            "RegionID": 999, "RegionCode": "lowroad", "RegionName": "lowroad coordinator",
            "Nodes": [{
                "Name": "999a", "RegionID": 999, "HostName": hosts::SERVER,
                "DERPPort": 443, "STUNPort": 3478,
            }],
        }});
        for node in nodes {
            let map = json_of(node, &["debug", "derp-map"])?;
            let shown = &map["Regions"];
            ensure!(*shown == served, "{}: {shown}", node.name());
        }
        Ok("region 999, whole".to_owned())
    });
    table.try_it("debug netmap: the peers that the server has", || {
        for node in nodes {
            let same = || shows_the_peers_of(server, node).map(Some);
            wait::wait_for("the same peers", LIMIT, same)
                .with_context(|| node.name().to_owned())?;
        }
        Ok("names, keys, addresses, AllowedIPs and endpoints".to_owned())
    });
    for (arguments, wanted) in [
        (&["netcheck"][..], "Nearest DERP: lowroad coordinator"),
        (&["dns", "status"], "tail.lab"),
    ] {
        table.try_it(&arguments.join(" "), || {
            for node in nodes {
                let text = node.cli(arguments)?;
                ensure!(
                    text.contains(wanted),
                    "{}: no {wanted} in {text}",
                    node.name()
                );
            }
            Ok(format!("has {wanted}"))
        });
    }
}

fn json_of(node: &Member, arguments: &[&str]) -> Result<Value> {
    let text = node.cli(arguments)?;
    serde_json::from_str(&text).with_context(|| format!("{}: {text}", arguments.join(" ")))
}

fn shows_the_peers_of(server: &Server, node: &Member) -> Result<()> {
    let own = node.node_key()?;
    let netmap = json_of(node, &["debug", "netmap"])?;
    ensure!(netmap["NodeKey"] == own, "{}", netmap["NodeKey"]);
    let mut all = server.nodes()?;
    all.retain(|known| known["nodeKey"] != own);
    let mut told: Vec<_> = all.iter().map(as_told).collect();
    let peers = netmap["Peers"].as_array().context("no list of peers")?;
    let mut shown: Vec<_> = peers.iter().map(as_shown).collect();
    for list in [&mut told, &mut shown] {
        list.sort_by_key(Value::to_string);
    }
    ensure!(
        shown == told,
        "{} shown, {} at the server",
        Value::from(shown),
        Value::from(told)
    );
    for peer in &shown {
        let text = peer.to_string();
        ensure!(!text.contains(ZEROS), "a zero key: {text}");
        let endpoints = peer["Endpoints"].as_array();
        ensure!(
            endpoints.is_some_and(|all| !all.is_empty()),
            "no endpoints: {text}"
        );
    }
    Ok(())
}

fn as_shown(peer: &Value) -> Value {
    json!({
        "Name": peer["Name"], "Key": peer["Key"], "Machine": peer["Machine"], "DiscoKey": peer["DiscoKey"],
        "Addresses": sorted(&peer["Addresses"], str::to_owned),
        "AllowedIPs": sorted(&peer["AllowedIPs"], str::to_owned),
        "Endpoints": sorted(&peer["Endpoints"], str::to_owned),
    })
}

/// What the administration says of a node that routes nothing.
fn as_told(node: &Value) -> Value {
    let host = |address: &str| match address.contains(':') {
        true => format!("{address}/128"),
        false => format!("{address}/32"),
    };
    let addresses = sorted(&node["ipAddresses"], host);
    json!({
        "Name": format!("{}.", node["fqdn"].as_str().unwrap_or_default()),
        "Key": node["nodeKey"], "Machine": node["machineKey"], "DiscoKey": node["discoKey"],
        "Addresses": addresses, "AllowedIPs": addresses,
        "Endpoints": sorted(&node["endpoints"], str::to_owned),
    })
}

fn sorted(list: &Value, text: impl Fn(&str) -> String) -> Vec<String> {
    let items = list.as_array().into_iter().flatten();
    let mut texts: Vec<_> = items.filter_map(Value::as_str).map(text).collect();
    texts.sort();
    texts
}

/// The check of a relay, which tries IPv6 as well: this host has none.
pub fn derp(table: &mut Table, node: &Member) {
    table.try_it("debug derp 999", || {
        let said = json_of(node, &["debug", "derp", "999"])?;
        let info = said["Info"].to_string();
        for wanted in ["established a DERP connection", "STUN response"] {
            ensure!(info.contains(wanted), "{info}");
        }
        let errors = said["Errors"].as_array().cloned().unwrap_or_default();
        let other = errors
            .iter()
            .find(|text| !text.to_string().contains("over IPv6"));
        ensure!(other.is_none(), "{errors:?}");
        Ok("connection and STUN".to_owned())
    });
}

/// As programs look names up.
pub fn names(table: &mut Table, one: &Member, two: &Member, age: Age) -> Result<()> {
    let getent = |database: &str, name: &str| -> Result<String> {
        let mut command = one.namespace().command("getent");
        let found = process::run(command.args([database, name]), "", secs(10))?;
        Ok(found.ok("getent")?.stdout)
    };
    for (family, database, of_family) in [(4, "ahostsv4", ""), (6, "ahostsv6", ", IPv6")] {
        if family == 6 && age == Age::Old {
            let why = "is not resolved by clients of this version for a node that has an IPv4 address (tailscale issue 1152)";
            table.skip("MagicDNS, IPv6", why);
            continue;
        }
        let address = two.ip(family)?.to_string();
        for name in ["two.tail.lab", "two"] {
            table.try_it(&format!("MagicDNS: {name}{of_family}"), || {
                let (text, _) = wait::wait_for("the name", secs(10), || {
                    let found = getent(database, name).ok();
                    Ok(found.filter(|text| text.contains(&address)))
                })?;
                Ok(text.lines().next().unwrap_or_default().to_owned())
            });
        }
    }
    Ok(())
}
