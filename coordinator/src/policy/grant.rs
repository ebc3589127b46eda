//! `grants`: sources, destinations, what is granted (network access, capabilities), and through which routers.

use jsonc_parser::ast::Value;
use jsonc_parser::common::Ranged;
use lowroad_wire::control::PortRange;

use super::acl::{check_own_devices, destination, sources};
use super::alias::{Alias, has_ports, parse_port_range, parse_protocol};
use super::capability;
use super::error::{At, PolicyError};
use super::hujson::Text;
use super::syntax::{Names, Rule};

const FIELDS: [&str; 6] = ["src", "dst", "ip", "app", "via", "srcPosture"];

/// Reads one entry of `grants` and appends one rule per distinct protocol, in order of appearance. `room` is how many
/// sources and pairs of destination and port all grants may still stand for.
pub(crate) fn read(
    text: &Text,
    value: &Value,
    names: &Names,
    rules: &mut Vec<Rule>,
    room: &mut usize,
) -> Result<(), PolicyError> {
    let fields = text.fields(value, "a grant", &FIELDS)?;
    if let Some(value) = fields.get("srcPosture") {
        let place = text.at(value.range());
        return Err(PolicyError::unsupported(place, "\"srcPosture\" in grants"));
    }
    let sources = match fields.get("src") {
        Some(value) => sources(text.strings(value, "src")?, names)?,
        None => Vec::new(),
    };
    let mut destinations = Vec::new();
    if let Some(value) = fields.get("dst") {
        for written in text.strings(value, "dst")? {
            destinations.push(read_destination(written, names)?);
        }
    }
    let access = match fields.get("ip") {
        Some(value) => text.strings(value, "ip")?,
        None => Vec::new(),
    };
    let capabilities = match fields.get("app") {
        Some(value) => capability::read(text, value)?,
        None => None,
    };
    let via = match fields.get("via") {
        Some(value) => read_via(text.strings(value, "via")?, names)?,
        None => Vec::new(),
    };
    if access.is_empty() && capabilities.is_none() {
        let message = "this grant grants nothing; add \"ip\", for example [\"*\"] or [\"tcp:443\"], or \"app\"";
        return Err(PolicyError::invalid(fields.place, message));
    }
    if capabilities.is_some() {
        capability::check_destinations(&destinations)?;
    }
    let rights = usize::from(capabilities.is_some());
    let granted = access.len() + rights;
    let mut by_protocol: Vec<(Option<u8>, Vec<PortRange>)> = Vec::new();
    for entry in access {
        let (protocol, ports) = read_access(entry)?;
        match by_protocol.iter_mut().find(|(known, _)| *known == protocol) {
            Some((_, list)) => list.push(ports),
            None => by_protocol.push((protocol, vec![ports])),
        }
    }
    let parts = destinations.len() * granted + sources.len() * (by_protocol.len() + rights);
    *room = room.checked_sub(parts).ok_or_else(|| {
        let message = format!(
            "too many: this grant stands for {} pairs of destination and port; use groups, prefixes or port ranges",
            destinations.len() * granted
        );
        PolicyError::invalid(fields.place, message)
    })?;
    let rule = |protocol: Option<u8>, ports: &[PortRange]| Rule {
        sources: sources.clone(),
        protocols: protocol.into_iter().collect(),
        destinations: destinations
            .iter()
            .map(|alias| (alias.clone(), ports.to_vec()))
            .collect(),
        via: via.clone(),
        ..Rule::default()
    };
    let access = by_protocol
        .iter()
        .map(|(protocol, ports)| rule(*protocol, ports));
    let rights = capabilities.map(|capabilities| Rule {
        capabilities: Some(capabilities),
        ..rule(None, &[PortRange::ANY])
    });
    for rule in access.chain(rights) {
        check_own_devices(&rule, false)?;
        rules.push(rule);
    }
    Ok(())
}

fn read_via(written: Vec<At<&str>>, names: &Names) -> Result<Vec<String>, PolicyError> {
    let mut via = Vec::with_capacity(written.len());
    for text in written {
        let (place, shown) = (text.place, text.value);
        let Alias::Tag(tag) = Alias::parse(text, "via", names)? else {
            let message = format!("via {shown:?}: write the tags of the routers, `tag:name`");
            return Err(PolicyError::invalid(place, message));
        };
        via.push(tag);
    }
    via.sort_unstable();
    via.dedup();
    Ok(via)
}

fn read_destination(text: At<&str>, names: &Names) -> Result<At<Alias>, PolicyError> {
    let (place, shown) = (text.place, text.value);
    let alias = destination(text, names)?;
    if matches!(&alias.value, Alias::Net(net) if net.prefix_len() == 0) {
        let message =
            format!("dst {shown:?}: to allow all addresses, write \"*\" or \"autogroup:internet\"");
        return Err(PolicyError::invalid(place, message));
    }
    Ok(alias)
}

/// `*`, PORTS or PROTOCOL:PORTS. A bare number is a port, never a protocol.
fn read_access(text: At<&str>) -> Result<(Option<u8>, PortRange), PolicyError> {
    let (protocol, ports) = match text.value.split_once(':') {
        Some((protocol, ports)) => {
            let protocol = At {
                place: text.place,
                value: protocol,
            };
            (Some(parse_protocol(protocol)?), ports)
        }
        None => (None, text.value),
    };
    if ports == "*" {
        return Ok((protocol, PortRange::ANY));
    }
    let Some(range) = parse_port_range(ports).filter(|range| range.first > 0) else {
        let message = format!(
            "ip {:?}: write `*`, a port, a range like `8000-8100`, or a protocol with them like `tcp:443` or `icmp:*`",
            text.value
        );
        return Err(PolicyError::invalid(text.place, message));
    };
    if protocol.is_some_and(|protocol| !has_ports(protocol)) {
        let message = format!("ip {:?}: this protocol has no ports; write `*`", text.value);
        return Err(PolicyError::invalid(text.place, message));
    }
    Ok((protocol, range))
}
