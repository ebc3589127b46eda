//! UDP and SCTP flows: what went out lets answers in.

use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use lowroad_abi::{FlowKey, Settings};

use crate::{
    packet::{Packet, SCTP, UDP},
    tables::FLOWS,
};

#[inline(always)]
pub fn has_flows(packet: &Packet) -> bool {
    packet.tuple.protocol == UDP || packet.tuple.protocol == SCTP
}

/// Whether an inbound packet answers one of ours. Looking keeps the flow from being forgotten.
#[inline(always)]
pub fn answers(packet: &Packet, settings: &Settings, jailed: bool) -> bool {
    let t = &packet.tuple;
    let key = FlowKey::new(
        t.family,
        t.protocol,
        (t.source, t.source_port),
        (t.destination, t.destination_port),
        settings.epoch(),
        jailed,
    );
    FLOWS.get_ptr(&key).is_some()
}

/// Remembers an outbound packet's flow.
#[inline(always)]
pub fn record(packet: &Packet, settings: &Settings, jailed: bool) {
    let t = &packet.tuple;
    let key = FlowKey::new(
        t.family,
        t.protocol,
        (t.destination, t.destination_port),
        (t.source, t.source_port),
        settings.epoch(),
        jailed,
    );
    if FLOWS.get_ptr(&key).is_none() {
        // SAFETY: the helper has no preconditions.
        let now = unsafe { bpf_ktime_get_ns() };
        // Failure only means that answers need a rule.
        let _ = FLOWS.insert(&key, &now, 0);
    }
}
