//! Many TCP segments in one read or write of the TUN device: what network cards call TSO and GRO.
//!
//! Each read and write then crosses the kernel's stack once for up to 64 KiB instead of once a packet. The format is that of
//! `struct virtio_net_hdr` (`include/uapi/linux/virtio_net.h`), which the device puts in front of each packet
//! (`Documentation/networking/tuntap.rst`). Pure functions of bytes: property tests take apart again what was put together.

mod coalesce;
mod split;
#[cfg(test)]
mod tests;

use lowroad_wire::checksum;

pub use self::coalesce::{Coalescer, Frame};
pub use self::split::split;

/// The largest packet: an IPv4 header counts its bytes in 16 bits.
pub const MAX_PACKET: usize = 65535;

/// `VIRTIO_NET_HDR_F_NEEDS_CSUM`: the field at `csum_start + csum_offset` holds the pseudo-header's sum only.
const NEEDS_CSUM: u8 = 1;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
/// `VIRTIO_NET_HDR_GSO_ECN`: the first segment has CWR set.
const GSO_ECN: u8 = 0x80;

const TCP: u8 = 6;
/// Of the checksum in a TCP header.
const TCP_CHECKSUM: usize = 16;
const FIN: u8 = 1;
const PSH: u8 = 8;
const ACK: u8 = 16;
const CWR: u8 = 128;

/// `struct virtio_net_hdr`, in the byte order of the machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Vnet {
    flags: u8,
    gso_type: u8,
    hdr_len: u16,
    gso_size: u16,
    csum_start: u16,
    csum_offset: u16,
}

impl Vnet {
    pub const LEN: usize = 10;

    pub fn from_bytes(bytes: [u8; Self::LEN]) -> Self {
        let number = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
        Self {
            flags: bytes[0],
            gso_type: bytes[1],
            hdr_len: number(2),
            gso_size: number(4),
            csum_start: number(6),
            csum_offset: number(8),
        }
    }

    pub fn to_bytes(self) -> [u8; Self::LEN] {
        let mut bytes = [self.flags, self.gso_type, 0, 0, 0, 0, 0, 0, 0, 0];
        for (at, number) in [
            (2, self.hdr_len),
            (4, self.gso_size),
            (6, self.csum_start),
            (8, self.csum_offset),
        ] {
            bytes[at..at + 2].copy_from_slice(&number.to_ne_bytes());
        }
        bytes
    }
}

/// Big-endian fields of headers, whose place the caller has checked.
fn get16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn get32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn put16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

fn put32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
}

/// Writes the length of the whole packet into the IP header, and that header's checksum.
fn set_length(head: &mut [u8], whole: usize) {
    let length = |bytes: usize| u16::try_from(bytes).expect("no packet is longer than MAX_PACKET");
    if head[0] >> 4 == 6 {
        put16(head, 4, length(whole - 40));
    } else {
        put16(head, 2, length(whole));
        put16(head, 10, 0);
        let header = usize::from(head[0] & 15) * 4;
        let sum = checksum::of(&[&head[..header]]);
        head[10..12].copy_from_slice(&sum);
    }
}
