//! Sources and destinations, when one node is another.

use std::net::IpAddr;
use std::sync::Arc;

use super::super::addresses::AddressSet;
use super::super::alias::Alias;
use super::super::compile::{Node, Source, Target, TargetKind};
use super::super::people::People;
use super::super::routes::is_exit;
use super::{Change, addresses_if, is_named};

/// Whether the set is another.
pub(super) fn follow_source(
    source: &mut Arc<Source>,
    people: &People,
    tailnet: &AddressSet,
    change: &Change,
) -> bool {
    let named = |node: Option<&Node>| {
        let mut aliases = source.aliases.iter();
        aliases.any(|alias| is_named(node, people, alias))
    };
    let (old, new) = (change.old.as_deref(), change.new.as_deref());
    let had = addresses_if(named(old), old);
    let has = addresses_if(named(new), new);
    let is_named_itself = |address: &IpAddr| {
        source.aliases.iter().any(|alias| match alias {
            Alias::Any => tailnet.contains(*address),
            Alias::DangerAll => true,
            Alias::Net(net) => net.contains(address),
            _ => false,
        })
    };
    let lost: Vec<IpAddr> = had
        .iter()
        .filter(|address| !has.contains(address) && !is_named_itself(address))
        .copied()
        .collect();
    let won: Vec<IpAddr> = has
        .iter()
        .filter(|address| !source.set.contains(**address))
        .copied()
        .collect();
    let is_other = !lost.is_empty() || !won.is_empty();
    let stays = |address: &IpAddr| source.set.contains(*address) && !lost.contains(address);
    let mut addresses = change.addresses().iter();
    let is_member = addresses.any(|address| has.contains(address) || stays(address));
    // Addresses that come and go are inside no route: what is behind a router meets what it met.
    let is_met = is_member || new.is_some_and(|node| node.behind.overlaps(&source.set));
    let had_place = source.members.contains(change.at) == is_member
        && source.nodes.contains(change.at) == is_met;
    if !is_other && had_place {
        return false;
    }
    let source = Arc::make_mut(source);
    if is_other {
        lost.into_iter()
            .for_each(|address| source.set.remove(address));
        won.into_iter()
            .for_each(|address| source.set.insert(address));
        source.set_changed();
    }
    source.members.put(change.at, is_member);
    source.nodes.put(change.at, is_met);
    is_other
}

/// Whether what is sent of it through routers is another.
pub(super) fn follow_target(target: &mut Arc<Target>, people: &People, change: &Change) -> bool {
    let (old, new) = (change.old.as_deref(), change.new.as_deref());
    let (was, is) = [old, new]
        .map(|node| is_named(node, people, &target.alias))
        .into();
    let (had, has) = (addresses_if(was, old), addresses_if(is, new));
    let is_one = |tag: &String| target.via.binary_search(tag).is_ok();
    let leads = new.is_some_and(|node| node.facts.tags.iter().any(is_one));
    let is_met = new.is_some_and(|node| match &target.kind {
        TargetKind::Any => !node.extent.is_empty(),
        TargetKind::Net(net) => node.extent.overlaps_net(net),
        TargetKind::Internet(_) => node.approved.iter().any(is_exit),
        TargetKind::Members(_) => is || node.behind.overlaps(&target.set),
        TargetKind::Via { .. } => leads && node.behind.overlaps(&target.set),
    });
    let had_place = match &target.kind {
        TargetKind::Members(members) => members.contains(change.at) == is,
        TargetKind::Via { tagged, .. } => tagged.contains(change.at) == leads,
        _ => true,
    };
    if had == has && had_place && target.nodes.contains(change.at) == is_met {
        return false;
    }
    let target = Arc::make_mut(target);
    had.iter().for_each(|&address| target.set.remove(address));
    has.iter().for_each(|&address| target.set.insert(address));
    target.nodes.put(change.at, is_met);
    match &mut target.kind {
        TargetKind::Members(members) => members.put(change.at, is),
        TargetKind::Via { tagged, texts } => {
            tagged.put(change.at, leads);
            if had != has {
                *texts = target.set.texts();
            }
        }
        TargetKind::Any | TargetKind::Net(_) | TargetKind::Internet(_) => {}
    }
    had != has
}
