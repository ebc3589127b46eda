//! What a WG_CMD_SET_DEVICE message tells the kernel's WireGuard: of the device, and peer by peer.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// `struct nlmsghdr` and `struct genlmsghdr`.
const HEADERS: usize = 20;
const ATTRIBUTE: usize = 4;
/// Without the bits that say that it is nested, or in network order.
const TYPE: u16 = 0x3fff;

// Of `enum wgdevice_attribute`, `wgpeer_attribute` and `wgpeer_flag` in <linux/wireguard.h>.
const DEVICE_INDEX: u16 = 1;
const DEVICE_NAME: u16 = 2;
const DEVICE_PEERS: u16 = 8;
const PEER_KEY: u16 = 1;
const PEER_FLAGS: u16 = 3;
const PEER_ENDPOINT: u16 = 4;
const PEER_PREFIXES: u16 = 9;
const REMOVE: u32 = 1;
const REPLACE: u32 = 2;
const UPDATE_ONLY: u32 = 4;

/// What one message says of one peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerSet {
    /// As `wg` prints it.
    pub key: String,
    /// The peer goes.
    pub remove: bool,
    /// The prefixes that it had go.
    pub replace: bool,
    /// It is not made if it isn't there.
    pub update_only: bool,
    pub endpoint: Option<SocketAddr>,
    pub prefixes: usize,
}

/// What one message says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeviceSet {
    /// Numbers of the attributes that are about the device itself (key, port, mark), whose values are nobody's business.
    pub device: Vec<u16>,
    pub peers: Vec<PeerSet>,
}

impl DeviceSet {
    /// From the message, headers included; `None` if it ends too early.
    pub fn parse(message: &[u8]) -> Option<Self> {
        let mut out = Self::default();
        for (kind, value) in attributes(message.get(HEADERS..)?)? {
            match kind {
                DEVICE_INDEX | DEVICE_NAME => {}
                DEVICE_PEERS => {
                    let peers: Option<Vec<PeerSet>> = attributes(value)?
                        .into_iter()
                        .map(|(_, entry)| PeerSet::parse(entry))
                        .collect();
                    out.peers.extend(peers?);
                }
                other => out.device.push(other),
            }
        }
        Some(out)
    }
}

impl DeviceSet {
    /// Peers that are there get another endpoint; everything else stays as it is.
    pub fn moves_endpoints_only(&self) -> bool {
        let only = |peer: &PeerSet| {
            peer.update_only && !peer.remove && !peer.replace && peer.prefixes == 0
        };
        self.device.is_empty() && self.peers.iter().all(only)
    }
}

impl PeerSet {
    /// A peer that is there gets others, and stays where it is.
    pub fn moves_prefixes_only(&self) -> bool {
        self.update_only && !self.remove && self.endpoint.is_none() && self.prefixes > 0
    }

    fn parse(entry: &[u8]) -> Option<Self> {
        let all = attributes(entry)?;
        let find = |wanted| {
            let found = all.iter().find(|(kind, _)| *kind == wanted);
            found.map(|(_, value)| *value)
        };
        let flags = match find(PEER_FLAGS) {
            Some(value) => u32::from_ne_bytes(value.try_into().ok()?),
            None => 0,
        };
        Some(Self {
            key: base64(find(PEER_KEY)?.try_into().ok()?),
            remove: flags & REMOVE != 0,
            replace: flags & REPLACE != 0,
            update_only: flags & UPDATE_ONLY != 0,
            endpoint: match find(PEER_ENDPOINT) {
                Some(value) => Some(address(value)?),
                None => None,
            },
            prefixes: match find(PEER_PREFIXES) {
                Some(value) => attributes(value)?.len(),
                None => 0,
            },
        })
    }
}

/// RFC 4648, section 4, of a key.
fn base64(key: &[u8; 32]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::new();
    for three in key.chunks(3) {
        let at = |index: usize| u32::from(three.get(index).copied().unwrap_or(0));
        let bits = at(0) << 16 | at(1) << 8 | at(2);
        for digit in 0..=three.len() {
            out.push(DIGITS[(bits >> (18 - 6 * digit)) as usize & 63] as char);
        }
    }
    out.push('=');
    out
}

/// Type and value of each.
fn attributes(mut bytes: &[u8]) -> Option<Vec<(u16, &[u8])>> {
    let mut out = Vec::new();
    while let Some(head) = bytes.first_chunk::<ATTRIBUTE>() {
        let length = usize::from(u16::from_ne_bytes([head[0], head[1]]));
        let kind = u16::from_ne_bytes([head[2], head[3]]) & TYPE;
        out.push((kind, bytes.get(ATTRIBUTE..length)?));
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Some(out)
}

/// A `struct sockaddr_in` or `sockaddr_in6`.
fn address(bytes: &[u8]) -> Option<SocketAddr> {
    let family = u16::from_ne_bytes(*bytes.first_chunk()?);
    let port = u16::from_be_bytes(*bytes.get(2..)?.first_chunk()?);
    let ip: IpAddr = match i32::from(family) {
        libc::AF_INET => Ipv4Addr::from(*bytes.get(4..)?.first_chunk::<4>()?).into(),
        libc::AF_INET6 => Ipv6Addr::from(*bytes.get(8..)?.first_chunk::<16>()?).into(),
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut out = ((ATTRIBUTE + value.len()) as u16).to_ne_bytes().to_vec();
        out.extend(kind.to_ne_bytes());
        out.extend(value);
        out.resize(out.len().next_multiple_of(4), 0);
        out
    }

    #[test]
    fn a_message_says_what_becomes_of_which_peer() {
        const NESTED: u16 = 0x8000;
        let mut endpoint = (libc::AF_INET as u16).to_ne_bytes().to_vec();
        endpoint.extend([0xa2, 0xa9, 192, 0, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0]);
        let prefix = attribute(NESTED, &attribute(1, &[2, 0]));
        let update = [
            attribute(PEER_KEY, &[1; 32]),
            attribute(PEER_FLAGS, &6u32.to_ne_bytes()),
            attribute(PEER_ENDPOINT, &endpoint),
            attribute(PEER_PREFIXES | NESTED, &[prefix.clone(), prefix].concat()),
        ];
        let removal = [
            attribute(PEER_KEY, &[2; 32]),
            attribute(PEER_FLAGS, &1u32.to_ne_bytes()),
        ];
        let peers = [
            attribute(NESTED, &update.concat()),
            attribute(NESTED, &removal.concat()),
        ];
        let mut message = vec![0; HEADERS];
        message.extend(attribute(DEVICE_NAME, b"lowroad0\0"));
        message.extend(attribute(6, &[1, 2]));
        message.extend(attribute(DEVICE_PEERS | NESTED, &peers.concat()));
        let expected = PeerSet {
            key: "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=".to_owned(),
            remove: false,
            replace: true,
            update_only: true,
            endpoint: Some("192.0.2.1:41641".parse().unwrap()),
            prefixes: 2,
        };
        let parsed = DeviceSet::parse(&message).unwrap();
        assert_eq!(parsed.device, [6]);
        assert_eq!(parsed.peers[0], expected);
        assert!(parsed.peers[1].remove && parsed.peers[1].endpoint.is_none());
        assert_eq!(DeviceSet::parse(&message[..message.len() - 9]), None);
    }
}
