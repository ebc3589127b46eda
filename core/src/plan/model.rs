//! A kernel that does exactly what steps say: for tests, and for the fake kernel.

use std::{
    collections::{BTreeSet, HashMap},
    net::SocketAddr,
};

use ipnet::IpNet;
use lowroad_wire::key::NodePublic;

use super::{AllowedIps, Step};
use crate::desired::{Observed, ObservedDevice, Route, RouteKind};

/// What such a kernel holds. A step costs what it changes.
#[derive(Clone, Debug, Default)]
pub struct Model {
    observed: Observed,
    owners: HashMap<IpNet, NodePublic>,
}

impl From<Observed> for Model {
    fn from(observed: Observed) -> Self {
        let peers = observed.device.iter().flat_map(|device| &device.peers);
        let owners =
            peers.flat_map(|(key, peer)| peer.allowed_ips.iter().map(|prefix| (*prefix, *key)));
        Self {
            owners: owners.collect(),
            observed,
        }
    }
}

impl Model {
    pub fn observed(&self) -> &Observed {
        &self.observed
    }

    pub fn into_observed(self) -> Observed {
        self.observed
    }

    /// A peer is heard from somewhere else, and WireGuard answers there.
    pub fn roam(&mut self, key: &NodePublic, to: SocketAddr) {
        let device = self.observed.device.as_mut();
        if let Some(peer) = device.and_then(|device| device.peers.get_mut(key)) {
            peer.endpoint = Some(to);
        }
    }

    pub fn apply(&mut self, step: &Step) {
        match step {
            Step::CreateDevice { mtu } => {
                self.observed.device.get_or_insert_with(|| ObservedDevice {
                    mtu: *mtu,
                    ..ObservedDevice::default()
                });
            }
            Step::AddRoute(route) => {
                for kind in [RouteKind::Device, RouteKind::Throw, RouteKind::Blackhole] {
                    self.observed.routes.remove(&Route { kind, ..*route });
                }
                self.observed.routes.insert(*route);
            }
            Step::RemoveRoute(route) => drop(self.observed.routes.remove(route)),
            Step::AddRule(rule) => drop(self.observed.rules.insert(*rule)),
            Step::RemoveRule(rule) => drop(self.observed.rules.remove(rule)),
            on_device => {
                if let Some(device) = &mut self.observed.device {
                    apply_to_device(device, &mut self.owners, on_device);
                }
            }
        }
    }
}

/// What a step does to such a kernel.
pub fn apply_to_model(model: &mut Observed, step: &Step) {
    let mut whole = Model::from(std::mem::take(model));
    whole.apply(step);
    *model = whole.into_observed();
}

fn apply_to_device(
    device: &mut ObservedDevice,
    owners: &mut HashMap<IpNet, NodePublic>,
    step: &Step,
) {
    match step {
        Step::AttachFilter => device.filter_attached = true,
        Step::SetPrivateKey(key) => device.public_key = Some(key.public()),
        Step::SetListenPort(port) => device.listen_port = *port,
        Step::SetFwmark(mark) => device.fwmark = *mark,
        Step::AddPeer { key, peer } => {
            give(device, owners, key, &peer.allowed_ips);
            device.peers.insert(*key, peer.clone());
        }
        Step::UpdatePeer {
            key,
            endpoint,
            allowed_ips,
        } => {
            if let AllowedIps::Append(prefixes) | AllowedIps::Replace(prefixes) = allowed_ips {
                give(device, owners, key, prefixes);
            }
            let Some(peer) = device.peers.get_mut(key) else {
                return;
            };
            peer.endpoint = endpoint.or(peer.endpoint);
            match allowed_ips {
                AllowedIps::Keep => {}
                AllowedIps::Append(prefixes) => peer.allowed_ips.extend(prefixes),
                AllowedIps::Replace(prefixes) => peer.allowed_ips.clone_from(prefixes),
            }
        }
        Step::RemovePeer(key) => drop(device.peers.remove(key)),
        Step::AddAddress(address) => drop(device.addresses.insert(*address)),
        Step::RemoveAddress(address) => drop(device.addresses.remove(address)),
        Step::SetMtu(mtu) => device.mtu = *mtu,
        Step::LinkUp => device.up = true,
        Step::CreateDevice { .. }
        | Step::AddRoute(_)
        | Step::RemoveRoute(_)
        | Step::AddRule(_)
        | Step::RemoveRule(_) => {}
    }
}

/// A prefix leaves the peer that has it. Owners that have given it up since are remembered until then.
fn give(
    device: &mut ObservedDevice,
    owners: &mut HashMap<IpNet, NodePublic>,
    to: &NodePublic,
    prefixes: &BTreeSet<IpNet>,
) {
    for prefix in prefixes {
        let before = owners.insert(*prefix, *to);
        if let Some(peer) = before.and_then(|key| device.peers.get_mut(&key)) {
            peer.allowed_ips.remove(prefix);
        }
    }
}
