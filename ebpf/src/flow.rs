//! UDP and SCTP flows: what went out lets answers in.

use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use lowroad_abi::{FlowKey, FlowKey4, Settings};

use crate::{
    packet::{Packet, SCTP, UDP},
    rules::words,
    tables::{FLOWS, FLOWS_4},
};

#[inline(always)]
pub fn has_flows(packet: &Packet) -> bool {
    packet.protocol == UDP || packet.protocol == SCTP
}

/// Whether an inbound packet answers one of ours. Looking keeps the flow from being forgotten.
#[inline(always)]
pub fn answers(packet: &Packet, settings: &Settings, jailed: bool) -> bool {
    let (remote, local, ports) = (packet.source, packet.destination, packet.head);
    if packet.family == 4 {
        let key = key4(packet, (remote, local, ports), settings, jailed);
        FLOWS_4.get_ptr(&key).is_some()
    } else {
        let key = key6(packet, (remote, local, ports), settings, jailed);
        FLOWS.get_ptr(&key).is_some()
    }
}

/// Remembers an outbound packet's flow.
#[inline(always)]
pub fn record(packet: &Packet, settings: &Settings, jailed: bool) {
    let ports = packet.head.rotate_left(16);
    let (remote, local) = (packet.destination, packet.source);
    // Failure to insert only means that answers need a rule.
    if packet.family == 4 {
        let key = key4(packet, (remote, local, ports), settings, jailed);
        if FLOWS_4.get_ptr(&key).is_none() {
            let _ = FLOWS_4.insert(&key, &now(), 0);
        }
    } else {
        let key = key6(packet, (remote, local, ports), settings, jailed);
        if FLOWS.get_ptr(&key).is_none() {
            let _ = FLOWS.insert(&key, &now(), 0);
        }
    }
}

/// Addresses of the remote and of this node, and their ports in this order.
type Ends = ([u32; 4], [u32; 4], u32);

#[inline(always)]
fn key6(packet: &Packet, (r, l, ports): Ends, settings: &Settings, jailed: bool) -> FlowKey {
    let remote = [words(r[0], r[1]), words(r[2], r[3])];
    let local = [words(l[0], l[1]), words(l[2], l[3])];
    let epoch = settings.epoch();
    FlowKey::new((remote, local), ports, packet.protocol as u8, jailed, epoch)
}

#[inline(always)]
fn key4(
    packet: &Packet,
    (remote, local, ports): Ends,
    settings: &Settings,
    jailed: bool,
) -> FlowKey4 {
    let ends = (remote[0], local[0]);
    FlowKey4::new(ends, ports, packet.protocol as u8, jailed, settings.epoch())
}

#[inline(always)]
fn now() -> u64 {
    // SAFETY: the helper has no preconditions.
    unsafe { bpf_ktime_get_ns() }
}
