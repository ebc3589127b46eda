//! Counters, drop events and punts.

use aya_ebpf::{
    helpers::generated::{bpf_jiffies64, bpf_ktime_get_ns},
    programs::TcContext,
};
use aya_log_ebpf::debug;
use lowroad_abi::{
    COUNTERS_PER_BLOCK, Count, DROP_EVENTS_PER_SECOND, Direction, EventKind, EventRecord,
    PUNTS_PER_SECOND, counter_slot,
};

use crate::{
    outcome::Outcome,
    packet::Packet,
    tables::{COUNTERS, EVENTS, RATES, RULES, TICKS_PER_SECOND},
    unknown,
};

/// Counts the outcome, tells of a drop, and returns what the kernel is to do.
#[inline(always)]
pub fn finish(ctx: &TcContext, direction: Direction, packet: &Packet, outcome: Outcome) -> i32 {
    let outcome = outcome.forget(unknown::zero(ctx));
    if let Some(count) = COUNTERS.get_ptr_mut(counter_slot(direction, outcome.code)) {
        add(count, packet.length);
    }
    if outcome.rule != 0 {
        let (block, at) = (
            outcome.rule / COUNTERS_PER_BLOCK as u32,
            outcome.rule as usize % COUNTERS_PER_BLOCK,
        );
        if let Some(block) = RULES.get_ptr_mut(block) {
            // SAFETY: inside the element.
            add(unsafe { block.cast::<Count>().add(at) }, packet.length);
        }
    }
    debug!(
        ctx,
        "direction {} ipv{} protocol {} length {} outcome {}",
        direction as u8,
        packet.family,
        packet.protocol,
        packet.length,
        outcome.code
    );
    if outcome.dropped() {
        event(EventKind::Drop, direction, packet, outcome.code, [0; 8]);
    }
    outcome.action()
}

/// Hands something to the agent.
#[inline(always)]
pub fn punt(kind: EventKind, packet: &Packet, tsmp: [u8; 8]) {
    event(kind, Direction::In, packet, 0, tsmp);
}

#[inline(always)]
fn add(count: *mut Count, bytes: u32) {
    // SAFETY: a map value of this CPU, and programs of this type don't interrupt each other on a CPU.
    unsafe {
        (*count).packets += 1;
        (*count).bytes += bytes as u64;
    }
}

#[inline(always)]
fn event(kind: EventKind, direction: Direction, packet: &Packet, reason: u8, tsmp: [u8; 8]) {
    let (window, limit) = match kind {
        EventKind::Drop => (0, DROP_EVENTS_PER_SECOND),
        _ => (1, PUNTS_PER_SECOND),
    };
    if !within_rate(window, limit) {
        return;
    }
    if let Some(mut entry) = EVENTS.reserve(0) {
        // SAFETY: the helper has no preconditions.
        let now = unsafe { bpf_ktime_get_ns() };
        let mut record = EventRecord::new(now, kind, direction, packet.length, packet.tuple());
        record.reason = reason;
        record.tsmp = tsmp;
        entry.write(record);
        entry.submit(0);
    }
}

/// Counts in ticks: reading the clock would be most of what a dropped packet costs.
#[inline(always)]
fn within_rate(window: u32, limit: u64) -> bool {
    let Some(window) = RATES.get_ptr_mut(window) else {
        return false;
    };
    // SAFETY: the helper has no preconditions.
    let now = unsafe { bpf_jiffies64() };
    // SAFETY: a map value of this CPU, as in `add`.
    let window = unsafe { &mut *window };
    if now.wrapping_sub(window.began) >= TICKS_PER_SECOND.load() as u64 {
        window.began = now;
        window.written = 0;
    }
    window.written += 1;
    window.written <= limit
}
