//! One packet out of the device, as WireGuard wants it: segments with all their checksums.

use lowroad_wire::checksum;

use super::{
    CWR, FIN, GSO_ECN, GSO_NONE, GSO_TCPV4, GSO_TCPV6, MAX_PACKET, NEEDS_CSUM, PSH, TCP,
    TCP_CHECKSUM, Vnet, get16, get32, put16, put32, set_length,
};

/// IPv4 with all options, TCP with all of its own; IPv6 with some extension headers.
const MAX_HEAD: usize = 240;

/// Calls `emit` with head and payload of each packet that is in `packet`. What the kernel should not have given is an error, and dropped.
pub fn split(
    vnet: Vnet,
    packet: &mut [u8],
    mut emit: impl FnMut(&[u8], &[u8]),
) -> Result<(), &'static str> {
    match vnet.gso_type & !GSO_ECN {
        GSO_NONE => {
            if vnet.flags & NEEDS_CSUM != 0 {
                complete(vnet, packet)?;
            }
            emit(packet, &[]);
            Ok(())
        }
        GSO_TCPV4 | GSO_TCPV6 => segments(vnet, packet, emit),
        _ => Err("segments of a protocol that was not asked for"),
    }
}

/// The pseudo-header's sum is in the checksum's place already.
fn complete(vnet: Vnet, packet: &mut [u8]) -> Result<(), &'static str> {
    let start = usize::from(vnet.csum_start);
    let field = start + usize::from(vnet.csum_offset);
    if field + 2 > packet.len() {
        return Err("a checksum beyond the packet's end");
    }
    let sum = match checksum::of(&[&packet[start..]]) {
        // Of UDP a zero says that there is none; for TCP it is the same number.
        [0, 0] => [0xff, 0xff],
        sum => sum,
    };
    packet[field..field + 2].copy_from_slice(&sum);
    Ok(())
}

fn segments(
    vnet: Vnet,
    packet: &[u8],
    mut emit: impl FnMut(&[u8], &[u8]),
) -> Result<(), &'static str> {
    let transport = usize::from(vnet.csum_start);
    let size = usize::from(vnet.gso_size);
    let head_len = head_length(packet, transport).ok_or("segments without a whole TCP header")?;
    if size == 0 || packet.len() > MAX_PACKET {
        return Err("segments of no size, or too many");
    }
    let (head, payload) = packet.split_at(head_len);
    let v4 = head[0] >> 4 == 4;
    let (sequence, flags) = (get32(head, transport + 4), head[transport + 13]);
    let id = get16(head, 4);
    let mut buffer = [0; MAX_HEAD];
    let own = &mut buffer[..head_len];
    own.copy_from_slice(head);
    let last = payload.len().div_ceil(size).max(1) - 1;
    for number in 0..=last {
        let from = number * size;
        let chunk = &payload[from..payload.len().min(from + size)];
        if v4 {
            put16(own, 4, id.wrapping_add(number as u16));
        }
        set_length(own, head_len + chunk.len());
        put32(own, transport + 4, sequence.wrapping_add(from as u32));
        let not_here = if number < last { FIN | PSH } else { 0 } | if number > 0 { CWR } else { 0 };
        own[transport + 13] = flags & !not_here;
        put16(own, transport + TCP_CHECKSUM, 0);
        let tail = checksum::pseudo_tail(TCP, head_len - transport + chunk.len());
        let sum = checksum::of(&[checksum::addresses(own), &tail, &own[transport..], chunk]);
        own[transport + TCP_CHECKSUM..][..2].copy_from_slice(&sum);
        emit(own, chunk);
    }
    Ok(())
}

/// Of IP and TCP header together.
fn head_length(packet: &[u8], transport: usize) -> Option<usize> {
    let first = *packet.first()?;
    let fits = match first >> 4 {
        4 => transport == usize::from(first & 15) * 4 && transport >= 20 && *packet.get(9)? == TCP,
        6 => transport >= 40,
        _ => false,
    };
    let tcp = usize::from(packet.get(transport + 12)? >> 4) * 4;
    let whole = transport + tcp;
    (fits && tcp >= 20 && whole <= packet.len().min(MAX_HEAD)).then_some(whole)
}
