//! `grants`: sources, destinations, what is granted (network access, capabilities), and through which routers.

use std::sync::Arc;

use jsonc_parser::ast::Value;
use jsonc_parser::common::Ranged;
use lowroad_wire::control::PortRange;

use super::acl::{check_own_devices, destination, sources};
use super::alias::{Alias, has_ports, parse_port_range, parse_protocol, split_destination};
use super::capability;
use super::error::{At, PolicyError, WITHOUT_POSTURE};
use super::hujson::{Fields, Text};
use super::syntax::{Names, Rule};

const FIELDS: [&str; 6] = ["src", "dst", "ip", "app", "via", "srcPosture"];

/// A destination in one more rule takes as much memory as so many more ports in one.
const PARTS_OF_REPEATED: usize = 3;

/// How many of them lowroad can enforce.
const SUPPORTED: usize = 5;

/// Reads one entry of `grants` and appends one rule per distinct protocol, in order of appearance. `room` is how many
/// sources, destinations and pairs of destination and port all grants may still stand for.
pub(crate) fn read(
    text: &Text,
    value: &Value,
    names: &Names,
    rules: &mut Vec<Rule>,
    room: &mut usize,
) -> Result<(), PolicyError> {
    let fields = text.fields_of(value, "a grant", &FIELDS, &FIELDS[..SUPPORTED])?;
    if let Some(value) = fields.get("srcPosture") {
        let place = text.at(value.range());
        text.report(PolicyError::unsupported(
            place,
            "\"srcPosture\" in grants",
            WITHOUT_POSTURE,
        ));
    }
    let list = |name: &str| text.strings_of(&fields, name);
    let sources = sources(text, list("src"), names);
    let destinations: Vec<At<Alias>> = list("dst")
        .into_iter()
        .filter_map(|written| text.keep(read_destination(written, names)))
        .collect();
    let access = list("ip");
    let app = fields.get("app").map(|value| capability::read(text, value));
    let capabilities = app.and_then(|read| text.keep(read)).flatten();
    let via = read_via(text, list("via"), names);
    if !["ip", "app"].iter().any(|name| writes_any(&fields, name)) {
        let message = "this grant grants nothing; add \"ip\", for example [\"*\"] or [\"tcp:443\"], or \"app\"";
        return Err(PolicyError::invalid(fields.place, message));
    }
    if capabilities.is_some() {
        text.keep(capability::check_destinations(&destinations));
    }
    let rights = usize::from(capabilities.is_some());
    let granted = access.len() + rights;
    let mut by_protocol: Vec<(Option<u8>, Vec<PortRange>)> = Vec::new();
    for entry in access {
        let Some((protocol, ports)) = text.keep(read_access(entry)) else {
            continue;
        };
        match by_protocol.iter_mut().find(|(known, _)| *known == protocol) {
            Some((_, list)) => list.push(ports),
            None => by_protocol.push((protocol, vec![ports])),
        }
    }
    let rules_made = by_protocol.len() + rights;
    let parts = destinations.len() * (granted + PARTS_OF_REPEATED * rules_made.saturating_sub(1))
        + sources.len() * rules_made;
    *room = room.checked_sub(parts).ok_or_else(|| {
        let message = format!(
            "too many: this grant stands for {} pairs of destination and port; use groups, prefixes or port ranges",
            destinations.len() * granted
        );
        PolicyError::invalid(fields.place, message)
    })?;
    let rule = |protocol: Option<u8>, ports: &[PortRange]| Rule {
        place: fields.place,
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

/// Whether a field is there with anything in it, right or wrong.
fn writes_any(fields: &Fields, name: &str) -> bool {
    match fields.get(name) {
        None => false,
        Some(Value::Array(array)) => !array.elements.is_empty(),
        Some(Value::Object(object)) => !object.properties.is_empty(),
        Some(_) => true,
    }
}

/// Sorted.
fn read_via(text: &Text, written: Vec<At<&str>>, names: &Names) -> Arc<[String]> {
    let mut via: Vec<String> = written
        .into_iter()
        .filter_map(|tag| text.keep(read_router(tag, names)))
        .collect();
    via.sort_unstable();
    via.dedup();
    via.into()
}

fn read_router(text: At<&str>, names: &Names) -> Result<String, PolicyError> {
    let (place, shown) = (text.place, text.value);
    match Alias::parse(text, "via", names)? {
        Alias::Tag(tag) => Ok(tag),
        _ => {
            let message = format!("via {shown:?}: write the tags of the routers, `tag:name`");
            Err(PolicyError::invalid(place, message))
        }
    }
}

fn read_destination(text: At<&str>, names: &Names) -> Result<At<Alias>, PolicyError> {
    let (place, shown) = (text.place, text.value);
    let alias = destination(text, names);
    let is_plain = match &alias {
        // Neither a user's name nor a domain is looked at closely, and no other alias takes a port for a part of itself.
        Ok(alias) => match &alias.value {
            Alias::User(name) | Alias::Domain(name) => !name.contains(':'),
            _ => true,
        },
        Err(_) => false,
    };
    if !is_plain && let Some((who, ports)) = with_ports(text, names) {
        let message = format!(
            "dst {shown:?}: ports of grants stand in \"ip\"; write {who:?} here, and {ports:?} into \"ip\""
        );
        return Err(PolicyError::invalid(place, message));
    }
    let alias = alias?;
    if matches!(&alias.value, Alias::Net(net) if net.prefix_len() == 0) {
        let message =
            format!("dst {shown:?}: to allow all addresses, write \"*\" or \"autogroup:internet\"");
        return Err(PolicyError::invalid(place, message));
    }
    Ok(alias)
}

/// A destination as acls write it.
fn with_ports<'a>(text: At<&'a str>, names: &Names) -> Option<(&'a str, &'a str)> {
    let (who, ports) = split_destination(text).ok()?;
    Alias::parse(who, "dst", names).ok()?;
    Some((who.value, ports))
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
