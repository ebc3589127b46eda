//! What this host sends to peers: well-formed packets pass, and UDP and SCTP flows are remembered for their answers.

use aya_ebpf::programs::TcContext;
use lowroad_abi::{Direction, DropReason, Pass};

use crate::{
    flow,
    ingress::active,
    outcome::Outcome,
    packet::{Packet, TSMP},
    report::finish,
    tables::AGENT_MARK,
    unknown,
};

#[inline(always)]
pub fn run(ctx: &TcContext) -> i32 {
    let mut packet = Packet::new(ctx);
    let read = packet.parse(ctx);
    packet.forget(unknown::zero(ctx));
    let outcome = match read.and_then(|()| judge(ctx, &packet)) {
        Ok(pass) => Outcome::pass(pass),
        Err(reason) => Outcome::drop(reason),
    };
    finish(ctx, Direction::Out, &packet, outcome)
}

#[inline(always)]
fn judge(ctx: &TcContext, packet: &Packet) -> Result<Pass, DropReason> {
    let rules = active()?;
    packet.check_destination()?;
    if packet.is_later_fragment() {
        return Ok(Pass::Fragment);
    }
    if packet.protocol == TSMP && !is_agents(ctx) {
        return Err(DropReason::TsmpFromHost);
    }
    if packet.is_own_disco(ctx, rules.settings) {
        return Err(DropReason::OwnDisco);
    }
    if flow::has_flows(packet) {
        let jailed = rules.is_jailed_destination(packet);
        flow::record(packet, rules.settings, jailed);
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
