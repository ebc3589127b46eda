//! Changes of peers that are there. With `WGPEER_F_UPDATE_ONLY`, which wireguard-control cannot say, a peer that root has removed meanwhile stays away until the
//! next plan adds it whole: else a new endpoint would make a peer that has nothing but that endpoint.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use lowroad_core::plan::{AllowedIps, Step};
use netlink_packet_generic::GenlMessage;
use netlink_packet_wireguard::constants::{
    AF_INET, AF_INET6, WGPEER_F_REPLACE_ALLOWEDIPS, WGPEER_F_UPDATE_ONLY,
};
use netlink_packet_wireguard::nlas::{
    WgAllowedIp, WgAllowedIpAttrs, WgDeviceAttrs, WgPeer, WgPeerAttrs,
};
use netlink_packet_wireguard::{Wireguard, WireguardCmd};
use netlink_request::netlink_request_genl;

use super::CHUNK;

/// What a peer's entry takes of a message, counted in prefixes: key, flags and endpoint.
const ENTRY: usize = 3;

/// Entries by message. A peer with many prefixes has several, in order.
pub(super) struct Updates(Vec<Vec<WgPeer>>);

impl Updates {
    /// Of the steps that update a peer.
    pub fn new(steps: &[Step]) -> Self {
        let mut messages: Vec<Vec<WgPeer>> = Vec::new();
        let mut room = 0;
        for (entry, weight) in steps.iter().flat_map(entries) {
            if weight > room || messages.is_empty() {
                messages.push(Vec::new());
                room = CHUNK + ENTRY;
            }
            room -= weight;
            messages.last_mut().expect("there is one").push(entry);
        }
        Self(messages)
    }

    pub fn apply(&self, device: &str) -> io::Result<()> {
        const FLAGS: u16 = (libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16;
        for peers in &self.0 {
            let message = GenlMessage::from_payload(Wireguard {
                cmd: WireguardCmd::SetDevice,
                nlas: vec![
                    WgDeviceAttrs::IfName(device.to_owned()),
                    WgDeviceAttrs::Peers(peers.clone()),
                ],
            });
            netlink_request_genl(message, Some(FLAGS))?;
        }
        Ok(())
    }
}

/// The entries of one step, with what each takes of a message.
fn entries(step: &Step) -> Vec<(WgPeer, usize)> {
    let Step::UpdatePeer {
        key,
        endpoint,
        allowed_ips,
    } = step
    else {
        return Vec::new();
    };
    let none = BTreeSet::new();
    let (replace, prefixes) = match allowed_ips {
        AllowedIps::Keep => (0, &none),
        AllowedIps::Append(prefixes) => (0, prefixes),
        AllowedIps::Replace(prefixes) => (WGPEER_F_REPLACE_ALLOWEDIPS, prefixes),
    };
    let prefixes: Vec<WgAllowedIp> = prefixes.iter().map(allowed_ip).collect();
    let mut chunks = prefixes.chunks(CHUNK);
    let first = chunks.next().unwrap_or_default();
    let mut out = vec![entry(*key.as_bytes(), replace, *endpoint, first)];
    out.extend(chunks.map(|chunk| entry(*key.as_bytes(), 0, None, chunk)));
    out
}

fn entry(
    key: [u8; 32],
    flags: u32,
    endpoint: Option<SocketAddr>,
    prefixes: &[WgAllowedIp],
) -> (WgPeer, usize) {
    let mut attributes = vec![
        WgPeerAttrs::PublicKey(key),
        WgPeerAttrs::Flags(flags | WGPEER_F_UPDATE_ONLY),
    ];
    attributes.extend(endpoint.map(WgPeerAttrs::Endpoint));
    if !prefixes.is_empty() {
        attributes.push(WgPeerAttrs::AllowedIps(prefixes.to_vec()));
    }
    (WgPeer(attributes), ENTRY + prefixes.len())
}

fn allowed_ip(prefix: &IpNet) -> WgAllowedIp {
    let address = prefix.network();
    WgAllowedIp(vec![
        WgAllowedIpAttrs::Family(match address {
            IpAddr::V4(_) => AF_INET,
            IpAddr::V6(_) => AF_INET6,
        }),
        WgAllowedIpAttrs::IpAddr(address),
        WgAllowedIpAttrs::Cidr(prefix.prefix_len()),
    ])
}

#[cfg(test)]
mod tests {
    use lowroad_wire::key::NodePublic;

    use super::*;

    fn update(n: u8, allowed_ips: AllowedIps) -> Step {
        Step::UpdatePeer {
            key: NodePublic::from_bytes([n; 32]),
            endpoint: Some("192.0.2.1:41641".parse().unwrap()),
            allowed_ips,
        }
    }

    fn flags(entry: &WgPeer) -> u32 {
        let of = |attribute: &WgPeerAttrs| match attribute {
            WgPeerAttrs::Flags(flags) => Some(*flags),
            _ => None,
        };
        entry.0.iter().find_map(of).unwrap()
    }

    fn prefixes(entry: &WgPeer) -> usize {
        let of = |attribute: &WgPeerAttrs| match attribute {
            WgPeerAttrs::AllowedIps(ips) => ips.len(),
            _ => 0,
        };
        entry.0.iter().map(of).sum()
    }

    #[test]
    fn no_update_makes_a_peer_and_only_the_first_entry_replaces() {
        let many = (0..450u32)
            .map(|n| IpNet::new(std::net::Ipv4Addr::from(0x0a00_0000 + n).into(), 32).unwrap())
            .collect();
        let updates = Updates::new(&[update(1, AllowedIps::Replace(many))]);
        let all: Vec<_> = updates.0.iter().flatten().collect();
        assert_eq!(
            all.iter().map(|e| prefixes(e)).collect::<Vec<_>>(),
            [200, 200, 50]
        );
        let replace = WGPEER_F_REPLACE_ALLOWEDIPS | WGPEER_F_UPDATE_ONLY;
        assert_eq!(
            all.iter().map(|e| flags(e)).collect::<Vec<_>>(),
            [replace, WGPEER_F_UPDATE_ONLY, WGPEER_F_UPDATE_ONLY]
        );
    }

    #[test]
    fn many_small_updates_share_messages_that_fit() {
        let steps: Vec<_> = (0..=255).map(|n| update(n, AllowedIps::Keep)).collect();
        let updates = Updates::new(&steps);
        assert_eq!(updates.0.iter().map(Vec::len).sum::<usize>(), 256);
        assert!(updates.0.len() <= 4, "{}", updates.0.len());
        for peers in &updates.0 {
            // 80 bytes each with an IPv6 endpoint, of some 8 kB.
            assert!(peers.len() <= (CHUNK + ENTRY) / ENTRY);
        }
    }
}
