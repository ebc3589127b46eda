//! What the hostile control server says inside the map stream.

use std::{io::Write as _, net::SocketAddr};

use anyhow::{Result, bail};
use bytes::Bytes;
use serde_json::{Value, json};

use super::{Known, encode};

/// The only region.
const REGION: u16 = 66;

/// What a node of number `number` has to know, all of it true.
pub fn netmap(nodes: &[Known], number: usize, relay: SocketAddr, pin: &str) -> Value {
    let all: Vec<Value> = nodes
        .iter()
        .enumerate()
        .map(|(at, known)| node(at, known))
        .collect();
    let others = all.iter().enumerate().filter(|(at, _)| *at != number);
    let others: Vec<_> = others.map(|(_, node)| node.clone()).collect();
    let relay = json!({
        "Name": "66a", "RegionID": REGION, "HostName": relay.ip(), "CertName": pin,
        "IPv4": relay.ip(), "IPv6": "none", "STUNPort": -1, "DERPPort": relay.port(),
    });
    json!({
        "Node": all[number],
        "Peers": others,
        "Domain": "tail.lab",
        "DERPMap": {"Regions": {"66": {
            "RegionID": REGION, "RegionCode": "x", "RegionName": "x", "Nodes": [relay],
        }}},
        "PacketFilter": [{"SrcIPs": ["*"], "DstPorts": [{"IP": "*", "Ports": {"First": 0, "Last": 65535}}]}],
        "UserProfiles": [{"ID": 1, "LoginName": "ann", "DisplayName": "Ann"}],
    })
}

fn node(number: usize, known: &Known) -> Value {
    let last = number + 1;
    let addresses = json!([
        format!("100.64.0.{last}/32"),
        format!("fd7a:115c:a1e0::{last}/128")
    ]);
    let request = &known.request;
    let name = request["Hostinfo"]["Hostname"].as_str().unwrap_or("x");
    json!({
        "ID": last, "StableID": format!("n{last}"), "Name": format!("{name}.tail.lab."), "User": 1,
        "Key": request["NodeKey"], "DiscoKey": request["DiscoKey"], "Machine": known.machine,
        "Addresses": addresses, "AllowedIPs": addresses, "Endpoints": request["Endpoints"],
        "HomeDERP": REGION, "Hostinfo": {"Hostname": name, "OS": "linux"}, "Cap": 130,
        "Online": true, "MachineAuthorized": true,
    })
}

pub fn hostile(how: &str, number: usize) -> Result<Vec<Bytes>> {
    Ok(match how {
        "not-json" => vec![compressed(b"{\"Peers\": [", 1)?],
        "bomb" => vec![compressed(&[b' '; 1 << 20], 2048)?],
        "wide" => vec![list("PeersRemoved", 30_000_000, |_| "1".to_owned())?],
        "wide-objects" => vec![list("UserProfiles", 15_000_000, |_| "{}".to_owned())?],
        "deep" => vec![compressed(&[b'['; 1 << 20], 40)?],
        "million-peers" => vec![list("Peers", 1_000_000, minimal)?],
        "many-peers" => vec![list("Peers", 500_000, minimal)?],
        "huge-strings" => huge(),
        "contradictions" => contradictions(number)?,
        "ping-requests" => (0..2000)
            .map(|number| {
                let url = format!("http://203.0.113.66:9/{number}");
                encode(&json!({"PingRequest": {"URL": url, "Log": true, "Types": "TSMP", "IP": "100.64.0.1"}}))
            })
            .collect::<Result<_>>()?,
        "login-pages" => (0..500)
            .map(|number| encode(&json!({"PopBrowserURL": format!("https://x.example/{number}\u{1b}[2J")})))
            .collect::<Result<_>>()?,
        "good" => Vec::new(),
        other => bail!("`{other}` is no mode of a poll"),
    })
}

/// A message of `times` times `piece`.
fn compressed(piece: &[u8], times: usize) -> Result<Bytes> {
    let mut encoder = zstd::Encoder::new(vec![0; 4], 1)?;
    for _ in 0..times {
        encoder.write_all(piece)?;
    }
    finish(encoder)
}

fn finish(encoder: zstd::Encoder<Vec<u8>>) -> Result<Bytes> {
    let mut message = encoder.finish()?;
    let length = u32::try_from(message.len() - 4)?;
    message[..4].copy_from_slice(&length.to_le_bytes());
    Ok(message.into())
}

fn list(field: &str, count: usize, element: impl Fn(usize) -> String) -> Result<Bytes> {
    let mut encoder = zstd::Encoder::new(vec![0; 4], 1)?;
    write!(encoder, "{{\"{field}\":[")?;
    let mut text = String::new();
    for number in 0..count {
        if number > 0 {
            text.push(',');
        }
        text.push_str(&element(number));
        if text.len() > 1 << 20 {
            encoder.write_all(text.as_bytes())?;
            text.clear();
        }
    }
    encoder.write_all(text.as_bytes())?;
    write!(encoder, "]}}")?;
    finish(encoder)
}

/// The shortest that is taken for a node.
fn minimal(number: usize) -> String {
    format!(
        "{{\"ID\":{},\"Key\":\"nodekey:{:064x}\"}}",
        number + 1000,
        number + 1
    )
}

fn huge() -> Vec<Bytes> {
    let long = "x".repeat(8 << 20);
    let key = format!("nodekey:{:064x}", 7);
    let disco = format!("discokey:{:064x}", 8);
    let addresses = json!(["100.64.7.7/32"]);
    let node = json!({
        "ID": 7, "StableID": long, "Name": format!("{long}.tail.lab."), "User": 7, "Key": key, "DiscoKey": disco,
        "Addresses": addresses, "AllowedIPs": addresses, "HomeDERP": 66, "Hostinfo": {"Hostname": long, "OS": "linux"},
    });
    [
        json!({"PeersChanged": [node]}),
        json!({"Domain": long, "Health": [long, long]}),
        json!({"UserProfiles": [{"ID": 7, "LoginName": long, "DisplayName": long}]}),
        json!({"DNSConfig": {"Domains": [long], "ExtraRecords": [{"Name": long, "Value": long}]}}),
    ]
    .iter()
    .filter_map(|message| encode(message).ok())
    .collect()
}

/// Deltas that cannot all be true, about everybody but the pair: whom it removes, it may remove.
fn contradictions(number: usize) -> Result<Vec<Bytes>> {
    let own = number + 1;
    let key = |number: usize| format!("nodekey:{number:064x}");
    let addresses = json!(["100.64.9.9/32"]);
    let twin = |id: usize, name: usize| json!({"ID": id, "Key": key(name), "Addresses": addresses, "AllowedIPs": addresses});
    // Claims the victim's own address, and all others.
    let thief = json!({
        "ID": 50, "Key": key(50), "Addresses": [format!("100.64.0.{own}/32")],
        "AllowedIPs": [format!("100.64.0.{own}/32"), "0.0.0.0/0", "::/0", "127.0.0.0/8"],
    });
    let backwards =
        json!([{"SrcIPs": ["*"], "DstPorts": [{"IP": "*", "Ports": {"First": 9, "Last": 1}}]}]);
    let mut messages = vec![
        json!({"PeersRemoved": [5000, own, 0, -1]}),
        json!({"PeersChanged": [twin(40, 40), twin(40, 41), twin(41, 41)], "PeersRemoved": [40]}),
        json!({"PeersChangedPatch": [
            {"NodeID": 6000, "DERPRegion": 999},
            {"NodeID": 41, "DERPRegion": -5, "Endpoints": ["0.0.0.0:0", "255.255.255.255:1", "[ff02::1]:1"]},
        ]}),
        json!({"PeersChanged": [thief]}),
        json!({"PeerSeenChange": {"6000": true, "x": 1}, "OnlineChange": {"41": 7}}),
        json!({"PacketFilters": {"x": backwards}}),
        json!({"DERPMap": {"Regions": {"67": null, "0": {}, "70000": {}}}}),
        json!({"PeersRemoved": [40, 41, 50]}),
    ];
    for round in 0..200 {
        let id = 100 + round % 7;
        messages.push(json!({"PeersChanged": [twin(id, round + 1)]}));
        messages.push(json!({"PeersRemoved": [id]}));
    }
    messages.iter().map(encode).collect()
}
