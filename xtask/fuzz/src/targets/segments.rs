//! Packets of peers, put together for the device as TCP's segments are.

use lowroad_core::offload::{Coalescer, Vnet, split};

use crate::script::Script;

/// Packets, most of them with checksums that are right: taken apart again all are there, each connection's in its order. Then a packet with any header of
/// the device before it.
pub fn segments(input: &[u8]) {
    let mut script = Script::new(input);
    let mut vnet = [0; Vnet::LEN];
    vnet.fill_with(|| script.byte());
    let mut packets = Vec::new();
    while !script.is_empty() && packets.len() < 64 {
        let right = script.byte() != 0;
        let mut packet = script.bytes(255).to_vec();
        if right {
            correct(&mut packet);
        }
        packets.push(packet);
    }
    assert_eq!(in_order(&again(&packets)), in_order(&packets));
    for mut packet in packets {
        let (mut count, whole) = (0, packet.len());
        let result = split(Vnet::from_bytes(vnet), &mut packet, |head, payload| {
            count += 1;
            assert!(head.len() + payload.len() <= whole);
        });
        assert!(count <= whole.max(1) && (count > 0 || result.is_err()));
    }
}

/// Into the device and out of it.
fn again(packets: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let mut batch = packets.to_vec();
    let mut coalescer = Coalescer::default();
    coalescer.coalesce(&mut batch);
    let mut out = Vec::new();
    for frame in coalescer.frames() {
        let mut whole = batch[frame.first].clone();
        for &member in coalescer.members(frame) {
            whole.extend(&batch[member][frame.head..]);
        }
        split(frame.vnet, &mut whole, |head, payload| {
            out.push([head, payload].concat());
        })
        .expect("what we put together can be taken apart");
    }
    out
}

/// By connection; IPv4's identification is the kernel's to choose.
fn in_order(packets: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let mut packets = packets.to_vec();
    for packet in &mut packets {
        if packet.len() >= 20 && packet[0] >> 4 == 4 {
            packet[4..6].fill(0);
            packet[10..12].fill(0);
        }
    }
    packets.sort_by_key(|packet| {
        let version = packet.first().map_or(0, |first| first >> 4);
        let (protocol, ends) = match version {
            6 => (6, 8..44),
            _ => (9, 12..24),
        };
        let ends = packet.get(ends).unwrap_or_default().to_vec();
        (version, packet.get(protocol).copied(), ends)
    });
    packets
}

/// Lengths and checksums of IPv4 without options, IPv6 without extensions, and the TCP inside.
fn correct(packet: &mut [u8]) {
    let length = packet.len();
    let ip = match packet.first().map_or(0, |first| first >> 4) {
        4 if length >= 20 => 20,
        6 if length >= 40 => 40,
        _ => return,
    };
    let addresses = if ip == 20 { 12..20 } else { 8..40 };
    if ip == 20 {
        packet[2..4].copy_from_slice(&(length as u16).to_be_bytes());
        packet[10..12].fill(0);
        let sum = !sum(&packet[..20], 0);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
    } else {
        packet[4..6].copy_from_slice(&((length - 40) as u16).to_be_bytes());
    }
    if length >= ip + 20 {
        packet[ip + 16..ip + 18].fill(0);
        let pseudo = sum(&packet[addresses], 6 + (length - ip) as u32);
        let sum = !sum(&packet[ip..], pseudo.into());
        packet[ip + 16..ip + 18].copy_from_slice(&sum.to_be_bytes());
    }
}

/// RFC 1071, one word after another.
fn sum(bytes: &[u8], start: u32) -> u16 {
    let words = bytes.chunks(2).map(|pair| {
        u32::from(u16::from_be_bytes([
            pair[0],
            pair.get(1).copied().unwrap_or(0),
        ]))
    });
    let mut sum: u32 = start + words.sum::<u32>();
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

pub fn segments_seeds() -> Vec<Vec<u8>> {
    let tcp = |v6: bool, sequence: u32, flags: u8, payload: &[u8]| {
        let mut packet = match v6 {
            true => [&[0x60, 0, 0, 0, 0, 0, 6, 64][..], &[0xfd; 32]].concat(),
            false => {
                let mut head = vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 6, 0, 0];
                head.extend([100, 64, 0, 1, 100, 64, 0, 2]);
                head
            }
        };
        packet.extend([0x10, 1, 0, 80]);
        packet.extend(sequence.to_be_bytes());
        packet.extend([0, 0, 0, 9, 0x50, flags, 1, 0, 0, 0, 0, 0]);
        packet.extend(payload);
        [&[1, packet.len() as u8][..], &packet].concat()
    };
    let stream = |v6| {
        let mut input = vec![1, if v6 { 4 } else { 1 }, 0, 0, 2, 0, 20, 0, 16, 0];
        for number in 0..4 {
            input.extend(tcp(v6, number * 4, 16, b"data"));
        }
        input.extend(tcp(v6, 16, 24, b"end"));
        input
    };
    vec![stream(false), stream(true)]
}
