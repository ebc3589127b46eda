//! IP packets for tests of the filter, right and wrong ones.

use std::net::IpAddr;

/// What an IP packet is made of.
#[derive(Clone, Debug)]
pub struct Ip {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub protocol: u8,
    pub payload: Vec<u8>,
    /// Words of IPv4 options.
    pub options: u8,
    /// Fragment offset in blocks of 8 bytes, and whether more follow; in IPv6 a fragment header.
    pub fragment: Option<(u16, bool)>,
    /// Added to the length that the header claims.
    pub lie: i32,
    /// Bytes behind the packet.
    pub trailing: usize,
}

impl Ip {
    pub fn new(source: &str, destination: &str, protocol: u8, payload: &[u8]) -> Self {
        Self::between(
            source.parse().expect("source"),
            destination.parse().expect("destination"),
            protocol,
            payload,
        )
    }

    pub fn between(source: IpAddr, destination: IpAddr, protocol: u8, payload: &[u8]) -> Self {
        Self {
            source,
            destination,
            protocol,
            payload: payload.to_vec(),
            options: 0,
            fragment: None,
            lie: 0,
            trailing: 0,
        }
    }

    pub fn fragment(mut self, blocks: u16, more: bool) -> Self {
        self.fragment = Some((blocks, more));
        self
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut out = match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let header = 20 + 4 * usize::from(self.options);
                let (blocks, more) = self.fragment.unwrap_or_default();
                let mut out = vec![0x40 | (header / 4) as u8, 0];
                out.extend(self.claimed(header + self.payload.len()).to_be_bytes());
                out.extend([0, 0]);
                out.extend((blocks | if more { 0x2000 } else { 0 }).to_be_bytes());
                out.extend([64, self.protocol, 0, 0]);
                out.extend(source.octets());
                out.extend(destination.octets());
                out.resize(header, 1);
                let sum = checksum(&out);
                out[10..12].copy_from_slice(&sum.to_be_bytes());
                out
            }
            (source, destination) => {
                let octets = |a: IpAddr| match a {
                    IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
                    IpAddr::V6(v6) => v6.octets(),
                };
                let extra = if self.fragment.is_some() { 8 } else { 0 };
                let mut out = vec![0x60, 0, 0, 0];
                out.extend(self.claimed(extra + self.payload.len()).to_be_bytes());
                out.extend([if extra > 0 { 44 } else { self.protocol }, 64]);
                out.extend(octets(source));
                out.extend(octets(destination));
                if let Some((blocks, more)) = self.fragment {
                    out.extend([self.protocol, 0]);
                    out.extend((blocks << 3 | u16::from(more)).to_be_bytes());
                    out.extend([1, 2, 3, 4]);
                }
                out
            }
        };
        out.extend(&self.payload);
        out.resize(out.len() + self.trailing, 0xee);
        out
    }

    fn claimed(&self, length: usize) -> u16 {
        (length as i32 + self.lie).clamp(0, 65535) as u16
    }
}

fn checksum(header: &[u8]) -> u16 {
    let words = header
        .chunks_exact(2)
        .map(|c| u32::from(u16::from_be_bytes([c[0], c[1]])));
    let sum: u32 = words.sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    !((sum & 0xffff) + (sum >> 16)) as u16
}

pub const SYN: u8 = 2;
pub const SYN_ACK: u8 = 0x12;
pub const ACK: u8 = 0x10;

pub fn tcp(source_port: u16, destination_port: u16, flags: u8) -> Vec<u8> {
    let mut out = ports(source_port, destination_port);
    out.extend([0; 8]);
    out.extend([0x50, flags, 0, 0, 0, 0, 0, 0]);
    out
}

pub fn udp(source_port: u16, destination_port: u16, payload: &[u8]) -> Vec<u8> {
    let mut out = ports(source_port, destination_port);
    out.extend((8 + payload.len() as u16).to_be_bytes());
    out.extend([0, 0]);
    out.extend(payload);
    out
}

pub fn sctp(source_port: u16, destination_port: u16) -> Vec<u8> {
    let mut out = ports(source_port, destination_port);
    out.extend([0; 8]);
    out
}

pub fn icmp(kind: u8, code: u8) -> Vec<u8> {
    vec![kind, code, 0, 0, 0, 1, 0, 1]
}

/// A disco message's first bytes, from this sender.
pub fn disco(sender: [u8; 32]) -> Vec<u8> {
    let mut out = b"TS\xf0\x9f\x92\xac".to_vec();
    out.extend(sender);
    out.extend([9; 40]);
    out
}

fn ports(source: u16, destination: u16) -> Vec<u8> {
    [source.to_be_bytes(), destination.to_be_bytes()].concat()
}
