//! `acls`: one action, sources, destinations with ports.

use jsonc_parser::ast::Value;
use jsonc_parser::common::Ranged;
use lowroad_wire::control::PortRange;

use super::alias::{Alias, has_ports, parse_ports, parse_protocol, split_destination};
use super::error::{At, PolicyError, WITHOUT_POSTURE};
use super::hujson::{Fields, Text};
use super::syntax::{Names, Rule};

const FIELDS: [&str; 7] = [
    "action",
    "proto",
    "src",
    "dst",
    "srcPosture",
    "users",
    "ports",
];

/// How many of them an acl may have; of the others errors say what to do about them.
const OF_TODAY: usize = 4;

/// Reads one entry of `acls`.
pub(crate) fn read(text: &Text, value: &Value, names: &Names) -> Result<Rule, PolicyError> {
    let fields = text.fields_of(value, "an acl", &FIELDS, &FIELDS[..OF_TODAY])?;
    if let Some(posture) = fields.get("srcPosture") {
        let place = text.at(posture.range());
        text.report(PolicyError::unsupported(
            place,
            "srcPosture",
            WITHOUT_POSTURE,
        ));
    }
    for (old, new) in [("users", "src"), ("ports", "dst")] {
        if let Some(value) = fields.get(old) {
            let message = format!("{old:?} is the old name of {new:?}; rename it");
            text.report(text.invalid(value, message));
        }
    }
    text.keep(check_action(text, &fields));
    let protocol = fields.get("proto").map(|value| text.string(value, "proto"));
    let protocols = protocol.and_then(|value| text.keep(value.and_then(protocols)));
    let protocols = protocols.unwrap_or_default();
    let list = |name: &str, old: &str| {
        let value = fields.get(name).or_else(|| fields.get(old));
        let value = value.ok_or_else(|| missing(&fields, name));
        text.keep(value.and_then(|value| text.strings(value, name)))
            .unwrap_or_default()
    };
    let sources = sources(text, list("src", "users"), names);
    for source in &sources {
        text.keep(refuse_domain(source));
    }
    let destinations = list("dst", "ports")
        .into_iter()
        .filter_map(|destination| text.keep(read_destination(destination, &protocols, names)))
        .collect();
    let rule = Rule {
        place: fields.place,
        sources,
        protocols,
        destinations,
        ..Rule::default()
    };
    check_own_devices(&rule, true)?;
    Ok(rule)
}

fn check_action(text: &Text, fields: &Fields) -> Result<(), PolicyError> {
    let Some(action) = fields.get("action") else {
        return Err(missing(fields, "action"));
    };
    let action = text.string(action, "action")?;
    if action.value != "accept" {
        let message = format!(
            "action {:?} is not supported; write \"accept\" (what no rule accepts is refused)",
            action.value
        );
        return Err(PolicyError::invalid(action.place, message));
    }
    Ok(())
}

fn missing(fields: &Fields, name: &str) -> PolicyError {
    PolicyError::invalid(fields.place, format!("this acl has no {name:?}; add it"))
}

/// An empty name is what other editors write for the default protocols.
fn protocols(text: At<&str>) -> Result<Vec<u8>, PolicyError> {
    if text.value.is_empty() {
        return Ok(Vec::new());
    }
    Ok(vec![parse_protocol(text)?])
}

fn read_destination(
    text: At<&str>,
    protocols: &[u8],
    names: &Names,
) -> Result<(At<Alias>, Vec<PortRange>), PolicyError> {
    let place = text.place;
    let (who, ports) = split_destination(text)?;
    let alias = destination(who, names)?;
    refuse_domain(&alias)?;
    let ports = parse_ports(At {
        place,
        value: ports,
    })?;
    if protocols.iter().any(|&protocol| !has_ports(protocol)) && ports != [PortRange::ANY] {
        let message = "this protocol has no ports; write `*` for the port";
        return Err(PolicyError::invalid(place, message));
    }
    Ok((alias, ports))
}

/// Only grants and ssh rules know the users of a domain.
fn refuse_domain(alias: &At<Alias>) -> Result<(), PolicyError> {
    if let Alias::Domain(domain) = &alias.value {
        let message = format!("\"user:*@{domain}\" can't stand in acls; write the rule as a grant");
        return Err(PolicyError::invalid(alias.place, message));
    }
    Ok(())
}

/// Reads a list of sources.
pub(crate) fn sources(text: &Text, written: Vec<At<&str>>, names: &Names) -> Vec<At<Alias>> {
    written
        .into_iter()
        .filter_map(|written| text.keep(source(written, names)))
        .collect()
}

fn source(text: At<&str>, names: &Names) -> Result<At<Alias>, PolicyError> {
    let (place, shown) = (text.place, text.value);
    let value = Alias::parse(text, "src", names)?;
    if matches!(value, Alias::OwnDevices | Alias::Internet) {
        let message = format!("{shown:?} can only be a destination; take it out of src");
        return Err(PolicyError::invalid(place, message));
    }
    Ok(At { place, value })
}

/// Reads one destination, its ports taken off.
pub(crate) fn destination(text: At<&str>, names: &Names) -> Result<At<Alias>, PolicyError> {
    let place = text.place;
    let value = Alias::parse(text, "dst", names)?;
    if value == Alias::DangerAll {
        let message = "autogroup:danger-all can only be a source; write `*` as the destination";
        return Err(PolicyError::invalid(place, message));
    }
    Ok(At { place, value })
}

/// autogroup:self only makes sense for sources that are users' devices.
pub(crate) fn check_own_devices(rule: &Rule, any_allowed: bool) -> Result<(), PolicyError> {
    let mut own = rule
        .destinations
        .iter()
        .filter(|(alias, _)| alias.value == Alias::OwnDevices);
    if own.next().is_none() {
        return Ok(());
    }
    for source in &rule.sources {
        let fits = match source.value {
            Alias::User(_) | Alias::Domain(_) | Alias::Group(_) | Alias::Member => true,
            Alias::Any => any_allowed,
            _ => false,
        };
        if !fits {
            let message = "autogroup:self can only be reached by users, groups or autogroup:member; put this source into a rule of its own";
            return Err(PolicyError::invalid(source.place, message));
        }
    }
    Ok(())
}
