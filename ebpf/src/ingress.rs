//! What peers send us, judged in the order of `protocol.md` 5.3.

use aya_ebpf::programs::TcContext;
use lowroad_abi::{Active, Class, Direction, DropReason, EventKind, Pass, Settings};

use crate::{
    flow,
    outcome::Outcome,
    packet::{Packet, TCP, TSMP},
    report::{finish, punt},
    rules::RuleSet,
    tables::{ACTIVE, SETTINGS},
    unknown,
};

#[inline(always)]
pub fn run(ctx: &TcContext) -> i32 {
    let mut packet = Packet::new(ctx);
    let read = packet.parse(ctx);
    packet.forget(unknown::zero(ctx));
    let outcome = match read.and_then(|()| judge(ctx, &packet)) {
        Ok(outcome) => outcome,
        Err(reason) => Outcome::drop(reason),
    };
    finish(ctx, Direction::In, &packet, outcome)
}

/// The rule set in force.
#[inline(always)]
pub fn active() -> Result<RuleSet, DropReason> {
    let slot = match ACTIVE.get(0) {
        Some(word) => Active::from_word(*word).in_force(),
        None => None,
    };
    let Some(slot) = slot else {
        return Err(DropReason::NoPolicy);
    };
    match SETTINGS.get(slot) {
        Some(settings) => Ok(RuleSet { slot, settings }),
        None => Err(DropReason::Error),
    }
}

#[inline(always)]
fn judge(ctx: &TcContext, packet: &Packet) -> Result<Outcome, DropReason> {
    let rules = active()?;
    let settings = rules.settings;
    packet.check_destination()?;
    if packet.is_later_fragment() {
        return Ok(Outcome::pass(Pass::Fragment));
    }
    if packet.protocol == TSMP && is_for_agent(ctx, packet) {
        return Ok(Outcome::pass(Pass::Consumed));
    }
    if packet.is_own_disco(ctx, settings) {
        return Err(DropReason::OwnDisco);
    }
    let destination = rules.destination_class(packet);
    let outcome = match admit(rules, packet, destination) {
        Ok(outcome) => return Ok(outcome),
        Err(reason) => Outcome::drop(reason),
    };
    // The peer API judges for itself.
    if packet.is_tcp_syn() {
        if destination.has(Class::OWN) && is_peer_api(packet, settings) {
            return Ok(Outcome::pass(Pass::PeerApi));
        }
        if packet.family == 4 {
            punt(EventKind::TcpReject, packet, [0; 8]);
        }
    }
    Ok(outcome)
}

#[inline(always)]
fn admit(rules: RuleSet, packet: &Packet, destination: Class) -> Result<Outcome, DropReason> {
    let settings = rules.settings;
    if !destination.has(Class::LOCAL) {
        return Err(DropReason::NotLocal);
    }
    let jailed = settings.has(Settings::JAIL) && rules.source_class(packet).has(Class::JAILED);
    if packet.is_icmp() {
        if packet.is_icmp_reply() {
            return Ok(Outcome::pass(Pass::IcmpReply));
        }
    } else if packet.protocol == TCP {
        if !packet.is_tcp_syn() {
            return Ok(Outcome::pass(Pass::TcpEstablished));
        }
    } else if packet.protocol == TSMP {
        return Ok(Outcome::pass(Pass::Tsmp));
    } else if flow::has_flows(packet) && flow::answers(packet, settings, jailed) {
        return Ok(Outcome::pass(Pass::Flow));
    }
    if jailed {
        return Err(DropReason::Jailed);
    }
    if let Some(rule) = rules.admitting(packet, destination) {
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
    port != 0 && port == packet.destination_port()
}

/// Pings, disco keys and rejections are for the agent; it gets pings and rejections to see.
#[inline(always)]
fn is_for_agent(ctx: &TcContext, packet: &Packet) -> bool {
    let [kind, _, reason, _] = packet.head.to_ne_bytes();
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
