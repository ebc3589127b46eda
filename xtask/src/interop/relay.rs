//! The stock relay, as a second region of the relay map.

use std::{
    fs,
    net::{SocketAddr, TcpStream},
    path::Path,
    time::Duration,
};

use anyhow::{Context, Result};
use serde_json::json;

use super::{
    Lab,
    hosts::{self, RELAY, RELAY_HOST},
    server,
};
use crate::{lab::secs, process::Daemon, wait};

pub const REGION: u16 = 900;
pub const CODE: &str = "two";
/// Files with the map's second region.
pub const OUR_MAP: &str = "relays.json";
pub const HEADSCALES_MAP: &str = "relays.yaml";
const LIMIT: Duration = secs(20);

pub fn write_maps(folder: &Path) -> Result<()> {
    let (v4, v6) = (
        format!("203.0.113.{RELAY_HOST}"),
        format!("2001:db8::{RELAY_HOST}"),
    );
    let ours = json!({"Regions": {REGION.to_string(): {
        "RegionID": REGION, "RegionCode": CODE, "RegionName": "Two",
        "Nodes": [{
            "Name": "900a", "RegionID": REGION, "HostName": RELAY, "IPv4": v4, "IPv6": v6,
            "DERPPort": 443, "STUNPort": 3478,
        }],
    }}});
    fs::write(folder.join(OUR_MAP), ours.to_string())?;
    // YAML, of which JSON is a part.
    let headscales = json!({"regions": {REGION.to_string(): {
        "regionid": REGION, "regioncode": CODE, "regionname": "Two",
        "nodes": [{
            "name": "900a", "regionid": REGION, "hostname": RELAY, "ipv4": v4, "ipv6": v6,
            "derpport": 443, "stunport": 3478,
        }],
    }}});
    let text = headscales
        .to_string()
        .replace(&format!("\"{REGION}\":"), &format!("{REGION}: "));
    Ok(fs::write(folder.join(HEADSCALES_MAP), text)?)
}

/// Runs until dropped, for everybody.
pub fn start(lab: &Lab) -> Result<Daemon> {
    start_with(lab, &[])
}

/// The same, for those only whom the server calls nodes of its tailnet.
pub fn start_verifying(lab: &Lab) -> Result<Daemon> {
    let ask = format!("-verify-client-url={}/verify", server::URL);
    start_with(lab, &[&ask, "-verify-client-url-fail-open=false"])
}

/// For those only whom the daemon at this socket knows.
pub fn start_asking(lab: &Lab, socket: &Path) -> Result<Daemon> {
    let socket = socket.to_str().context("a path that is not UTF-8")?;
    start_with(lab, &["-verify-clients", "-socket", socket])
}

fn start_with(lab: &Lab, flags: &[&str]) -> Result<Daemon> {
    let folder = lab.net.folder();
    let host = hosts::with_etc(&lab.net.public("relay2", RELAY_HOST)?, folder)?;
    let mut command = host.command(lab.programs.join("derper"));
    command
        .args(["-a", ":443", "-http-port", "-1", "-stun-port", "3478"])
        .args(["-hostname", RELAY, "-certmode", "manual", "-certdir"])
        .arg(folder)
        .arg("-c")
        .arg(folder.join("derper.json"))
        .args(flags);
    let daemon = Daemon::spawn(&mut command, &folder.join("derper.log"))?;
    let address = SocketAddr::from(([203, 0, 113, RELAY_HOST], 443));
    wait::wait_for("the stock relay's port", LIMIT, || {
        let connect = || TcpStream::connect_timeout(&address, secs(1)).is_ok();
        Ok(host.enter(connect)?.then_some(()))
    })?;
    Ok(daemon)
}
