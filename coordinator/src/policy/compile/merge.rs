//! Rules of equal sources and protocols are one. Which sources are equal depends on who is there.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;

use super::super::addresses::AddressSet;
use super::{CompiledRule, Origins, Source};

/// For each source the first that is the same set; `None` for sources of nobody.
pub(crate) type Classes = Vec<Option<usize>>;

pub(crate) fn classes(sources: &[Arc<Source>]) -> Classes {
    let mut by_print: HashMap<u64, Vec<usize>> = HashMap::new();
    let mut class = |(at, source): (usize, &Arc<Source>)| {
        if source.set.is_empty() {
            return None;
        }
        let alike = by_print.entry(source.print).or_default();
        let equal = alike
            .iter()
            .find(|&&other| sources[other].set == source.set);
        let first = equal.copied().unwrap_or(at);
        if first == at {
            alike.push(at);
        }
        Some(first)
    };
    sources.iter().enumerate().map(&mut class).collect()
}

pub(super) fn print(set: &AddressSet) -> u64 {
    let mut hasher = DefaultHasher::new();
    set.hash(&mut hasher);
    hasher.finish()
}

/// The rules as they are sent: those of nobody left out, those with the same sources and protocols added to the first.
pub(crate) fn merge(
    written: &[Arc<CompiledRule>],
    classes: &[Option<usize>],
) -> Vec<Arc<CompiledRule>> {
    let mut rules: Vec<Arc<CompiledRule>> = Vec::new();
    let mut known: HashMap<(usize, &[u8]), usize> = HashMap::new();
    for rule in written {
        let Some(source) = classes[rule.source] else {
            continue;
        };
        let rule_of_class = || {
            let mut rule = rule.clone();
            if rule.source != source {
                Arc::make_mut(&mut rule).source = source;
            }
            rule
        };
        if rule.capabilities.is_some() {
            rules.push(rule_of_class());
            continue;
        }
        let at = *known
            .entry((source, &rule.protocols))
            .or_insert(rules.len());
        let Some(earlier) = rules.get_mut(at) else {
            rules.push(rule_of_class());
            continue;
        };
        let earlier = Arc::make_mut(earlier);
        earlier.entries.extend_from_slice(&rule.entries);
        earlier.own_devices.extend_from_slice(&rule.own_devices);
        let Origins {
            entries,
            own_devices,
            ..
        } = &rule.origins;
        earlier.origins.entries.extend_from_slice(entries);
        earlier.origins.own_devices.extend_from_slice(own_devices);
    }
    rules
}
