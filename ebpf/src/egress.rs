//! What this host sends to peers: well-formed packets pass, and UDP and SCTP flows are remembered for their answers.

use aya_ebpf::programs::TcContext;
use lowroad_abi::{Class, Direction, DropReason, Pass, Settings, Side};

use crate::{
    flow,
    ingress::active,
    outcome::Outcome,
    packet::{Packet, TSMP},
    report::finish,
    rules,
    tables::AGENT_MARK,
};

#[inline(always)]
pub fn run(ctx: &TcContext) -> i32 {
    let mut packet = Packet::new(ctx.len());
    let outcome = match judge(ctx, &mut packet) {
        Ok(pass) => Outcome::pass(pass),
        Err(reason) => Outcome::drop(reason),
    };
    finish(ctx, Direction::Out, &packet, outcome)
}

#[inline(always)]
fn judge(ctx: &TcContext, packet: &mut Packet) -> Result<Pass, DropReason> {
    packet.parse(ctx)?;
    let (slot, settings) = active()?;
    packet.check_destination()?;
    if packet.later_fragment {
        return Ok(Pass::Fragment);
    }
    if packet.tuple.protocol == TSMP && !is_agents(ctx) {
        return Err(DropReason::TsmpFromHost);
    }
    if packet.is_own_disco(ctx, settings) {
        return Err(DropReason::OwnDisco);
    }
    if flow::has_flows(packet) {
        let t = &packet.tuple;
        let jailed = settings.has(Settings::JAIL)
            && rules::class(slot, Side::Source, t.family, t.destination).has(Class::JAILED);
        flow::record(packet, settings, jailed);
    }
    Ok(Pass::Outbound)
}

/// Whether the agent itself sends it.
#[inline(always)]
fn is_agents(ctx: &TcContext) -> bool {
    let mark = AGENT_MARK.load();
    // SAFETY: the context is valid while the program runs.
    let has = unsafe { (*ctx.skb.skb).mark };
    mark != 0 && has & mark == mark
}
