//! The relay map that clients get: the relay in this server, and further ones from a file.

use lowroad_wire::control::{DerpMap, DerpNode, DerpRegion, RegionId};

use crate::{
    Error,
    config::{Config, Host},
};

/// Of the range for those who run their own (protocol.md 2.4).
const REGION: RegionId = RegionId(999);

/// In place of an address: there is none, and clients need not ask for one.
pub const NO_ADDRESS: &str = "none";

/// `pin` names the certificate if it is the server's own; `stun_port` is where STUN came to listen.
pub fn build(
    config: &Config,
    pin: Option<String>,
    stun_port: Option<u16>,
) -> Result<DerpMap, Error> {
    let mut map = config.derp_map.clone();
    if map.regions.contains_key(&REGION) {
        return Err(Error::Setting(format!(
            "the relay map has a region {REGION}, which is the relay in this server; give it another number"
        )));
    }
    for (id, region) in &mut map.regions {
        if region.region_id != *id || region.nodes.is_empty() {
            return Err(Error::Setting(format!(
                "the relay map's region {id} needs RegionID {id} and at least one of Nodes"
            )));
        }
        for node in &mut region.nodes {
            node.region_id = *id;
        }
    }
    let (host_name, ipv4, ipv6) = match &config.url.host {
        Host::Name(name) => (name.clone(), String::new(), String::new()),
        Host::Address(address) if address.is_ipv4() => (
            address.to_string(),
            address.to_string(),
            NO_ADDRESS.to_owned(),
        ),
        Host::Address(address) => (
            address.to_string(),
            NO_ADDRESS.to_owned(),
            address.to_string(),
        ),
    };
    let node = DerpNode {
        name: format!("{REGION}a"),
        region_id: REGION,
        host_name,
        cert_name: pin.unwrap_or_default(),
        ipv4: config.relay_ipv4.clone().unwrap_or(ipv4),
        ipv6: config.relay_ipv6.clone().unwrap_or(ipv6),
        stun_port: stun_port.map_or(-1, i32::from),
        derp_port: config.url.port,
        ..DerpNode::default()
    };
    let region = DerpRegion {
        region_id: REGION,
        region_code: "lowroad".to_owned(),
        region_name: "lowroad coordinator".to_owned(),
        nodes: vec![node],
        ..DerpRegion::default()
    };
    map.regions.insert(REGION, region);
    Ok(map)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Serve;

    fn config(url: &str) -> Config {
        let flags = Serve {
            url: Some(url.to_owned()),
            ..Serve::default()
        };
        Config::load(std::path::Path::new("/nonexistent"), &flags).unwrap()
    }

    #[test]
    fn an_address_in_the_url_spares_clients_the_name_server() {
        let map = build(
            &config("http://192.0.2.1:8080"),
            Some("sha256-raw:00".to_owned()),
            Some(3478),
        )
        .unwrap();
        let node = &map.regions[&REGION].nodes[0];
        assert_eq!(
            (node.ipv4.as_str(), node.ipv6.as_str(), node.derp_port),
            ("192.0.2.1", "none", 8080)
        );
        assert_eq!(
            (node.stun_port, node.cert_name.as_str()),
            (3478, "sha256-raw:00")
        );
    }

    #[test]
    fn a_name_is_left_to_the_name_server_and_no_stun_is_said() {
        let map = build(&config("https://hs.lab"), None, None).unwrap();
        let node = &map.regions[&REGION].nodes[0];
        assert_eq!(
            (
                node.host_name.as_str(),
                node.ipv4.as_str(),
                node.derp_port,
                node.stun_port
            ),
            ("hs.lab", "", 443, -1)
        );
    }

    #[test]
    fn a_second_region_999_is_refused() {
        let mut config = config("https://hs.lab");
        config
            .derp_map
            .regions
            .insert(REGION, DerpRegion::default());
        assert!(build(&config, None, None).is_err());
    }
}
