//! The list of endpoints to announce.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv6Addr, SocketAddr},
    time::{Duration, Instant},
};

use lowroad_wire::control::EndpointType;

use super::Report;

/// A mapping that STUN saw is announced this long although it is not seen any more.
const REMEMBERED: Duration = Duration::from_secs(310);
const MAX_REMEMBERED: usize = 8;
const MAX_LOST: usize = 32;
const MAX_ENDPOINTS: usize = 40;
const MAX_PER_V6_SUBNET: usize = 2;

/// An address of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalAddress {
    pub address: IpAddr,
    /// Length of the network's prefix.
    pub prefix: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint {
    pub address: SocketAddr,
    pub kind: EndpointType,
}

/// Mappings seen lately.
#[derive(Debug, Default)]
pub(super) struct Memory(BTreeMap<SocketAddr, Instant>);

impl Memory {
    pub fn note(&mut self, now: Instant, mappings: Vec<SocketAddr>) {
        self.0
            .extend(mappings.into_iter().map(|mapping| (mapping, now)));
        while self.0.len() > MAX_REMEMBERED {
            let oldest = self
                .0
                .iter()
                .min_by_key(|(_, at)| **at)
                .map(|(mapping, _)| *mapping);
            oldest.and_then(|mapping| self.0.remove(&mapping));
        }
    }

    /// Newest first.
    pub fn recent(&mut self, now: Instant) -> Vec<SocketAddr> {
        self.0
            .retain(|_, at| now.saturating_duration_since(*at) < REMEMBERED);
        let mut recent: Vec<_> = self.0.iter().map(|(mapping, at)| (*at, *mapping)).collect();
        recent.sort_by_key(|(at, _)| std::cmp::Reverse(*at));
        recent.into_iter().map(|(_, mapping)| mapping).collect()
    }
}

/// Which addresses this host had a while ago. Where no router translates, STUN sees the host's own address, and what was seen of one that is gone
/// leads nowhere: peers that were told of it would go on sending there.
#[derive(Debug, Default)]
pub(super) struct Own {
    present: BTreeSet<IpAddr>,
    lost: BTreeMap<IpAddr, Instant>,
}

impl Own {
    pub fn follow(&mut self, now: Instant, local: &[LocalAddress]) {
        let present: BTreeSet<_> = local.iter().map(|one| one.address.to_canonical()).collect();
        let gone = self.present.difference(&present);
        self.lost.extend(gone.map(|address| (*address, now)));
        self.lost.retain(|address, at| {
            !present.contains(address) && now.saturating_duration_since(*at) < REMEMBERED
        });
        while self.lost.len() > MAX_LOST {
            let oldest = self.lost.iter().min_by_key(|(_, at)| **at);
            let oldest = oldest.map(|(address, _)| *address);
            oldest.and_then(|address| self.lost.remove(&address));
        }
        self.present = present;
    }

    fn has_lost(&self, mapping: &SocketAddr) -> bool {
        self.lost.contains_key(&mapping.ip().to_canonical())
    }
}

pub(super) fn compose(
    report: &Report,
    recent: Vec<SocketAddr>,
    own: &Own,
    local: &[LocalAddress],
    port: u16,
) -> Vec<Endpoint> {
    let mut list = Vec::new();
    let mut add = |address: SocketAddr, kind: EndpointType| {
        if own.has_lost(&address) {
            return;
        }
        let known = list
            .iter()
            .any(|endpoint: &Endpoint| endpoint.address == address);
        if !known && list.len() < MAX_ENDPOINTS {
            list.push(Endpoint { address, kind });
        }
    };
    for mapping in [report.global_v4, report.global_v6].into_iter().flatten() {
        add(mapping, EndpointType::STUN);
    }
    if let (Some(true), Some(mapping)) = (report.mapping_varies, report.global_v4) {
        // A hard NAT with a static mapping of our port is guessed right by this.
        add(
            SocketAddr::new(mapping.ip(), port),
            EndpointType::STUN_LOCAL_PORT,
        );
    }
    for mapping in recent {
        add(mapping, EndpointType::STUN);
    }
    for address in local_choice(local) {
        add(SocketAddr::new(address, port), EndpointType::LOCAL);
    }
    list
}

/// Interface addresses worth announcing. Link-local IPv4 and unique-local IPv6 ones only where their family has
/// nothing better, loopback only where there is nothing at all.
fn local_choice(local: &[LocalAddress]) -> Vec<IpAddr> {
    let mut v4 = Vec::new();
    let mut v4_link = Vec::new();
    let mut v6: Vec<Ipv6Addr> = Vec::new();
    let mut v6_unique = Vec::new();
    let mut loopback = Vec::new();
    let mut per_subnet: BTreeMap<u128, usize> = BTreeMap::new();
    for LocalAddress { address, prefix } in local {
        match address.to_canonical() {
            address
                if is_overlay(&address) || address.is_unspecified() || address.is_multicast() => {}
            address if address.is_loopback() => loopback.push(address),
            IpAddr::V4(address) if address.is_link_local() => v4_link.push(address.into()),
            IpAddr::V4(address) => v4.push(address.into()),
            IpAddr::V6(address) if address.is_unicast_link_local() => {}
            IpAddr::V6(address) if address.is_unique_local() => v6_unique.push(address.into()),
            IpAddr::V6(address) => {
                let shift = 128 - u32::from((*prefix).min(128));
                let subnet = u128::from(address).checked_shr(shift).unwrap_or(0);
                let count = per_subnet.entry(subnet).or_default();
                *count += 1;
                if *count <= MAX_PER_V6_SUBNET {
                    v6.push(address);
                }
            }
        }
    }
    let mut chosen: Vec<IpAddr> = if v4.is_empty() { v4_link } else { v4 };
    if v6.is_empty() {
        chosen.append(&mut v6_unique);
    }
    chosen.extend(v6.into_iter().map(IpAddr::V6));
    if chosen.is_empty() { loopback } else { chosen }
}

/// Addresses of nodes inside a tailnet: 100.64.0.0/10 and fd7a:115c:a1e0::/48.
fn is_overlay(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            let [a, b, ..] = address.octets();
            a == 100 && b & 0xc0 == 0x40
        }
        IpAddr::V6(address) => address.segments()[..3] == [0xfd7a, 0x115c, 0xa1e0],
    }
}
