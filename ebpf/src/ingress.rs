//! What peers send us, judged in the order of `protocol.md` 5.3.

use aya_ebpf::programs::TcContext;
use lowroad_abi::{Class, Direction, DropReason, EventKind, NO_RULE, Pass, Settings};

use crate::{
    flow,
    outcome::Outcome,
    packet::{Packet, TCP, TSMP},
    report::{finish, punt},
    rules,
    tables::{ACTIVE, SETTINGS},
};

#[inline(always)]
pub fn run(ctx: &TcContext) -> i32 {
    let mut packet = Packet::new(ctx.len());
    let outcome = match judge(ctx, &mut packet) {
        Ok(outcome) => outcome,
        Err(reason) => Outcome::drop(reason),
    };
    finish(ctx, Direction::In, &packet, outcome)
}

/// Place and settings of the rule set in force.
#[inline(always)]
pub fn active() -> Result<(u32, &'static Settings), DropReason> {
    let slot = match ACTIVE.get(0) {
        Some(0) | None => return Err(DropReason::NoPolicy),
        Some(place) => *place - 1,
    };
    match SETTINGS.get(slot) {
        Some(settings) => Ok((slot, settings)),
        None => Err(DropReason::Error),
    }
}

#[inline(always)]
fn judge(ctx: &TcContext, packet: &mut Packet) -> Result<Outcome, DropReason> {
    packet.parse(ctx)?;
    let (slot, settings) = active()?;
    packet.check_destination()?;
    if packet.later_fragment {
        return Ok(Outcome::pass(Pass::Fragment));
    }
    if packet.tuple.protocol == TSMP && is_for_agent(ctx, packet) {
        return Ok(Outcome::pass(Pass::Consumed));
    }
    if packet.is_own_disco(ctx, settings) {
        return Err(DropReason::OwnDisco);
    }
    let destination = rules::destination_class(slot, packet);
    let outcome = match admit(slot, settings, packet, destination) {
        Ok(outcome) => return Ok(outcome),
        Err(reason) => Outcome::drop(reason),
    };
    // The peer API judges for itself.
    if packet.is_tcp_syn() {
        if destination.has(Class::OWN) && is_peer_api(packet, settings) {
            return Ok(Outcome::pass(Pass::PeerApi));
        }
        if packet.tuple.family == 4 {
            punt(EventKind::TcpReject, packet, [0; 8]);
        }
    }
    Ok(outcome)
}

#[inline(always)]
fn admit(
    slot: u32,
    settings: &Settings,
    packet: &Packet,
    destination: Class,
) -> Result<Outcome, DropReason> {
    if !destination.has(Class::LOCAL) {
        return Err(DropReason::NotLocal);
    }
    let jailed =
        settings.has(Settings::JAIL) && rules::source_class(slot, packet).has(Class::JAILED);
    if packet.is_icmp() {
        if packet.is_icmp_reply() {
            return Ok(Outcome::pass(Pass::IcmpReply));
        }
    } else if packet.tuple.protocol == TCP {
        if !packet.is_tcp_syn() {
            return Ok(Outcome::pass(Pass::TcpEstablished));
        }
    } else if packet.tuple.protocol == TSMP {
        return Ok(Outcome::pass(Pass::Tsmp));
    } else if flow::has_flows(packet) && flow::answers(packet, settings, jailed) {
        return Ok(Outcome::pass(Pass::Flow));
    }
    if jailed {
        return Err(DropReason::Jailed);
    }
    let rule = rules::admitting(slot, packet, destination);
    if rule != NO_RULE {
        Ok(Outcome::rule(rule))
    } else if settings.has(Settings::SHIELDS_UP) {
        Err(DropReason::ShieldsUp)
    } else {
        Err(DropReason::Acl)
    }
}

#[inline(always)]
fn is_peer_api(packet: &Packet, settings: &Settings) -> bool {
    let port = u16::from_be_bytes(settings.peer_api_port());
    port != 0 && port == u16::from_be_bytes(packet.tuple.destination_port)
}

/// Pings, disco keys and rejections are for the agent; it gets pings and rejections to see.
#[inline(always)]
fn is_for_agent(ctx: &TcContext, packet: &Packet) -> bool {
    let (kind, reason) = (packet.head[0], packet.head[2]);
    let after = packet.transport as usize + 1;
    match kind {
        b'p' if packet.transport_len >= 9 => {
            if let Ok(question) = ctx.load::<[u8; 8]>(after) {
                punt(EventKind::TsmpPing, packet, question);
            }
            true
        }
        b'!' if reason != b'T' => {
            if let Ok([a, b, c, d, e, f]) = ctx.load::<[u8; 6]>(after) {
                punt(EventKind::TsmpRejected, packet, [a, b, c, d, e, f, 0, 0]);
            }
            true
        }
        b'a' => packet.transport_len >= 33,
        _ => false,
    }
}
