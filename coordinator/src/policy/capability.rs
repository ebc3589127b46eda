//! Capabilities of grants: what applications may take a source for, beyond reaching them.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use jsonc_parser::ast::Value;
use lowroad_wire::control::CapMap;

use super::alias::Alias;
use super::bits::Bits;
use super::compile::{Companion, CompiledRule, Node, Target, TargetKind, addresses_of};
use super::error::{At, PolicyError};
use super::filter::NodeRule;
use super::hujson::Text;
use super::suggest::nearest;
use super::view::CompiledTailnet;

/// Capabilities that policies may grant in the domain of the clients' maker.
const OF_CLIENTS: [&str; 4] = ["drive", "relay", "kubernetes", "webui"];

/// A capability of which both ends need to know, and the one that the granted are told.
const COMPANIONS: [(&str, &str); 2] = [
    ("tailscale.com/cap/drive", "tailscale.com/cap/drive-sharer"),
    ("tailscale.com/cap/relay", "tailscale.com/cap/relay-target"),
];

/// Reads `app`: per capability a list of values, whose meaning is the application's. `None` if it is empty.
pub(crate) fn read(text: &Text, value: &Value) -> Result<Option<Arc<CapMap>>, PolicyError> {
    let mut capabilities = CapMap::new();
    for (name, values) in text.table(value, "app")? {
        text.keep(check_name(name));
        let values = text.keep(text.list(values, name.value)).unwrap_or_default();
        let values = values
            .iter()
            .filter_map(|value| text.keep(json(text, value)));
        capabilities.insert(name.value.to_owned(), values.collect());
    }
    Ok((!capabilities.is_empty()).then(|| Arc::new(capabilities)))
}

fn json(text: &Text, value: &Value) -> Result<serde_json::Value, PolicyError> {
    Ok(match value {
        Value::NullKeyword(_) => serde_json::Value::Null,
        Value::BooleanLit(flag) => flag.value.into(),
        Value::StringLit(string) => string.value.to_string().into(),
        Value::NumberLit(number) => serde_json::from_str(number.value)
            .map_err(|_| text.invalid(number, format!("{:?} is no number", number.value)))?,
        Value::Array(array) => {
            let elements = array.elements.iter().map(|element| json(text, element));
            elements.collect::<Result<_, _>>()?
        }
        Value::Object(object) => {
            let properties = object.properties.iter().map(|property| {
                let name = property.name.as_str().to_owned();
                Ok((name, json(text, &property.value)?))
            });
            serde_json::Value::Object(properties.collect::<Result<_, _>>()?)
        }
    })
}

fn check_name(name: At<&str>) -> Result<(), PolicyError> {
    let shown = name.value;
    let plain = !shown.contains("://") && !shown.contains(char::is_whitespace);
    let parts = shown
        .split_once('/')
        .filter(|(domain, path)| plain && !domain.is_empty() && !path.is_empty());
    let Some((domain, path)) = parts else {
        let message = format!(
            "capability {shown:?}: write a domain of yours and a name, like `example.com/cap/name`"
        );
        return Err(PolicyError::invalid(name.place, message));
    };
    let granted = path.strip_prefix("cap/");
    if domain.eq_ignore_ascii_case("tailscale.com")
        && !granted.is_some_and(|name| OF_CLIENTS.contains(&name))
    {
        let message = format!(
            "capability {shown:?} can't be granted; of tailscale.com/cap there are {}, others need a domain of yours",
            OF_CLIENTS.join(", ")
        );
        let known = OF_CLIENTS.map(|name| format!("tailscale.com/cap/{name}"));
        let suggestion = nearest(shown, known.iter().map(String::as_str));
        return Err(PolicyError::invalid(name.place, message).suggesting(suggestion));
    }
    Ok(())
}

/// Capabilities are held by applications on nodes: there are none behind exit nodes.
pub(crate) fn check_destinations(destinations: &[At<Alias>]) -> Result<(), PolicyError> {
    match destinations.iter().find(|to| to.value == Alias::Internet) {
        Some(internet) => {
            let message = "autogroup:internet has no applications of yours; take it out of dst, or \"app\" out of the grant";
            Err(PolicyError::invalid(internet.place, message))
        }
        None => Ok(()),
    }
}

/// What those who are granted these capabilities are told besides.
pub(crate) fn companions(granted: &CapMap) -> impl Iterator<Item = &'static str> + use<'_> {
    let both = COMPANIONS.iter();
    both.filter(|(name, _)| granted.contains_key(*name))
        .map(|(_, companion)| *companion)
}

/// The node's own addresses at which capabilities for a destination hold: none behind routers, or for those who only lead there.
pub(super) fn own_in(node: &Node, target: &Target) -> Vec<IpAddr> {
    if let TargetKind::Via { .. } = target.kind {
        return Vec::new();
    }
    let own = node.addresses.iter().copied();
    own.filter(|address| target.set.contains(*address))
        .collect()
}

impl CompiledTailnet {
    /// What a node is sent of a rule that grants capabilities.
    pub(super) fn capability_rules(
        &self,
        rule: &CompiledRule,
        capabilities: &Arc<CapMap>,
        at: usize,
    ) -> impl Iterator<Item = NodeRule> {
        let parts = self.parts();
        let node = &parts.nodes[at];
        let source = &parts.sources[rule.source];
        let targets = rule
            .entries
            .iter()
            .map(|(target, _)| &parts.targets[*target]);
        let mut own: Vec<IpAddr> = targets.flat_map(|target| own_in(node, target)).collect();
        own.sort_unstable();
        own.dedup();
        let granted = (source.texts().clone(), own);
        let among_own = self
            .own_sources(rule, at)
            .map(|from| addresses_of(&parts.nodes, &from).texts().into())
            .map(|from| (from, node.addresses.clone()));
        [Some(granted), among_own]
            .into_iter()
            .flatten()
            .filter(|(from, to)| !from.is_empty() && !to.is_empty())
            .map(|(sources, to)| NodeRule {
                sources,
                destinations: Vec::new(),
                protocols: Vec::new(),
                granted: Some((
                    to.into_iter().map(IpNet::from).collect(),
                    capabilities.clone(),
                )),
            })
    }

    /// The devices of the node's user that a rule to autogroup:self concerns at this node.
    pub(super) fn own_sources(&self, rule: &CompiledRule, at: usize) -> Option<Bits> {
        let members = &self.parts().sources[rule.source].members;
        let mut devices = self.devices_with(at)?.clone();
        if rule.companion == Some(Companion::OwnDevices) {
            return members.contains(at).then_some(devices);
        }
        if rule.own_devices.is_empty() {
            return None;
        }
        devices.intersect(members);
        Some(devices)
    }
}
