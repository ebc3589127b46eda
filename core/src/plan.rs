//! The plan: the set difference between [`Desired`] and [`Observed`], as [`Step`]s in an order that is safe to stop at any point.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::SocketAddr;

use ipnet::IpNet;
use lowroad_wire::key::{NodePrivate, NodePublic};

use crate::desired::{Desired, Observed, ObservedDevice, Peer, Route, Rule};

mod model;
#[cfg(test)]
mod tests;

pub use self::model::{Model, apply_to_model};

/// One change of kernel state. Applying a step that is already in force is not an error.
#[derive(Clone, Debug)]
pub enum Step {
    /// The device, down, without key, peers or addresses.
    CreateDevice {
        mtu: u32,
    },
    /// The filter drops everything until a policy is installed.
    AttachFilter,
    SetPrivateKey(NodePrivate),
    SetListenPort(u16),
    SetFwmark(u32),
    /// A peer that is not there. Its prefixes leave the peers that held them.
    AddPeer {
        key: NodePublic,
        peer: Peer,
    },
    /// A peer that is there, and keeps its session.
    UpdatePeer {
        key: NodePublic,
        endpoint: Option<SocketAddr>,
        allowed_ips: AllowedIps,
    },
    RemovePeer(NodePublic),
    AddAddress(IpNet),
    RemoveAddress(IpNet),
    SetMtu(u32),
    LinkUp,
    /// Replaces a route of another kind to the same prefix.
    AddRoute(Route),
    RemoveRoute(Route),
    AddRule(Rule),
    RemoveRule(Rule),
}

/// What [`Step::UpdatePeer`] does with the prefixes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AllowedIps {
    Keep,
    /// Added to what is there: no packet of the others is lost.
    Append(BTreeSet<IpNet>),
    /// The new whole. WireGuard can't take a single prefix away from a peer.
    Replace(BTreeSet<IpNet>),
}

/// Steps from `observed` to `desired`. Applying them (or any part of them, and planning anew) leads there;
/// `plan(d, o)` is empty exactly if `o` holds what `d` wants. Pure and deterministic.
///
/// Order: device and filter, then what WireGuard needs, peers, addresses, and only then link up, routes and rules.
/// What is added comes before what is removed, so that an address moving from one peer to another is never nobody's.
pub fn plan(desired: &Desired, observed: &Observed) -> Vec<Step> {
    let mut steps = Vec::new();
    let fresh = ObservedDevice {
        mtu: desired.mtu,
        ..ObservedDevice::default()
    };
    if observed.device.is_none() {
        steps.push(Step::CreateDevice { mtu: desired.mtu });
    }
    let device = observed.device.as_ref().unwrap_or(&fresh);
    if !device.filter_attached {
        steps.push(Step::AttachFilter);
    }
    plan_wireguard(desired, device, &mut steps);
    steps.extend(
        desired
            .addresses
            .difference(&device.addresses)
            .copied()
            .map(Step::AddAddress),
    );
    steps.extend(
        device
            .addresses
            .difference(&desired.addresses)
            .copied()
            .map(Step::RemoveAddress),
    );
    if device.mtu != desired.mtu {
        steps.push(Step::SetMtu(desired.mtu));
    }
    if !device.up {
        steps.push(Step::LinkUp);
    }
    plan_routes(desired, observed, &mut steps);
    steps
}

/// Steps that take from peers what `desired` does not leave to them, and do nothing else; `observed` is then what they make of it, so
/// that [`plan`] goes on from there.
///
/// For a change of policy: what the new one grants an address must not be had by the peer that has to give the address up. Such an address is nobody's for as long as
/// the policy takes to be installed.
pub fn narrow(desired: &Desired, observed: &mut Observed) -> Vec<Step> {
    let Some(device) = &mut observed.device else {
        return Vec::new();
    };
    let wanted = without_double_owners(&desired.wireguard.peers);
    let mut steps = Vec::new();
    device.peers.retain(|key, now| {
        let Some(peer) = wanted.get(key) else {
            steps.push(Step::RemovePeer(*key));
            return false;
        };
        if !now.allowed_ips.is_subset(&peer.allowed_ips) {
            now.allowed_ips
                .retain(|prefix| peer.allowed_ips.contains(prefix));
            steps.push(Step::UpdatePeer {
                key: *key,
                endpoint: None,
                allowed_ips: AllowedIps::Replace(now.allowed_ips.clone()),
            });
        }
        true
    });
    steps
}

fn plan_wireguard(desired: &Desired, device: &ObservedDevice, steps: &mut Vec<Step>) {
    let wanted = &desired.wireguard;
    if device.public_key != Some(wanted.private_key.public()) {
        steps.push(Step::SetPrivateKey(wanted.private_key.clone()));
    }
    if device.listen_port != wanted.listen_port {
        steps.push(Step::SetListenPort(wanted.listen_port));
    }
    if device.fwmark != wanted.fwmark {
        steps.push(Step::SetFwmark(wanted.fwmark));
    }
    plan_peers(&without_double_owners(&wanted.peers), &device.peers, steps);
}

fn plan_peers(
    wanted: &BTreeMap<NodePublic, Peer>,
    current: &BTreeMap<NodePublic, Peer>,
    steps: &mut Vec<Step>,
) {
    let empty = Peer::default();
    // Prefixes that a step of this plan gives to a peer leave their former owner by that.
    let gained: BTreeSet<IpNet> = wanted
        .iter()
        .flat_map(|(key, peer)| {
            peer.allowed_ips
                .difference(&current.get(key).unwrap_or(&empty).allowed_ips)
        })
        .copied()
        .collect();
    steps.extend(
        wanted
            .iter()
            .filter(|(key, _)| !current.contains_key(*key))
            .map(|(key, peer)| Step::AddPeer {
                key: *key,
                peer: peer.clone(),
            }),
    );
    for (key, peer) in wanted {
        let Some(now) = current.get(key) else {
            continue;
        };
        let added: BTreeSet<IpNet> = peer
            .allowed_ips
            .difference(&now.allowed_ips)
            .copied()
            .collect();
        let superfluous = now
            .allowed_ips
            .difference(&peer.allowed_ips)
            .any(|prefix| !gained.contains(prefix));
        let allowed_ips = match (superfluous, added.is_empty()) {
            (true, _) => AllowedIps::Replace(peer.allowed_ips.clone()),
            (false, false) => AllowedIps::Append(added),
            (false, true) => AllowedIps::Keep,
        };
        let endpoint = peer
            .endpoint
            .filter(|endpoint| now.endpoint != Some(*endpoint));
        if endpoint.is_some() || allowed_ips != AllowedIps::Keep {
            steps.push(Step::UpdatePeer {
                key: *key,
                endpoint,
                allowed_ips,
            });
        }
    }
    steps.extend(
        current
            .keys()
            .filter(|key| !wanted.contains_key(*key))
            .copied()
            .map(Step::RemovePeer),
    );
}

fn plan_routes(desired: &Desired, observed: &Observed, steps: &mut Vec<Step>) {
    let wanted = one_route_a_prefix(&desired.routes);
    steps.extend(
        wanted
            .difference(&observed.routes)
            .copied()
            .map(Step::AddRoute),
    );
    let prefixes: BTreeSet<IpNet> = wanted.iter().map(|route| route.prefix).collect();
    steps.extend(
        observed
            .routes
            .iter()
            .filter(|route| !prefixes.contains(&route.prefix))
            .copied()
            .map(Step::RemoveRoute),
    );
    steps.extend(
        desired
            .rules
            .difference(&observed.rules)
            .copied()
            .map(Step::AddRule),
    );
    steps.extend(
        observed
            .rules
            .difference(&desired.rules)
            .copied()
            .map(Step::RemoveRule),
    );
}

/// As a kernel table has it: the kind that drops or keeps out wins over the tunnel.
fn one_route_a_prefix(routes: &BTreeSet<Route>) -> BTreeSet<Route> {
    let by_prefix: BTreeMap<IpNet, Route> = routes
        .iter()
        .map(|route| Route {
            prefix: route.prefix.trunc(),
            kind: route.kind,
        })
        .map(|route| (route.prefix, route))
        .collect();
    by_prefix.into_values().collect()
}

/// WireGuard gives a prefix to one peer only; so do we, or two peers would take it from each other in every plan.
fn without_double_owners(
    peers: &BTreeMap<NodePublic, Peer>,
) -> Cow<'_, BTreeMap<NodePublic, Peer>> {
    let mut seen = HashSet::new();
    let mut prefixes = peers.values().flat_map(|peer| &peer.allowed_ips);
    if prefixes.all(|prefix| prefix.trunc() == *prefix && seen.insert(*prefix)) {
        return Cow::Borrowed(peers);
    }
    let mut taken = BTreeSet::new();
    let owned = peers.iter().map(|(key, peer)| {
        let prefixes = peer.allowed_ips.iter().map(IpNet::trunc);
        let allowed_ips = prefixes.filter(|prefix| taken.insert(*prefix)).collect();
        let peer = Peer {
            endpoint: peer.endpoint,
            allowed_ips,
        };
        (*key, peer)
    });
    Cow::Owned(owned.collect())
}
