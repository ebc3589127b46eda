//! The kernel programs. `overlay_ingress` judges what peers send us, `overlay_egress` what we send them, both on the tunnel device, whose packets begin with the IP header.
//!
//! They run as `BPF_PROG_TYPE_SCHED_CLS` from Linux 5.15 on, so: no kfuncs, loops only with few rounds, everything inlined. A call of a helper or function costs as much as several lookups in arrays.
#![no_std]
#![no_main]

mod egress;
mod flow;
mod ingress;
mod outcome;
mod packet;
mod report;
mod rules;
mod tables;
mod unknown;

use aya_ebpf::{bindings::TC_ACT_UNSPEC, macros::classifier, programs::TcContext};

#[classifier]
#[inline(always)]
pub fn overlay_ingress(ctx: TcContext) -> i32 {
    ingress::run(&ctx)
}

#[classifier]
#[inline(always)]
pub fn overlay_egress(ctx: TcContext) -> i32 {
    egress::run(&ctx)
}

/// Lets everything go on: what a test run costs by itself, for benchmarks.
#[classifier]
pub fn nothing(_ctx: TcContext) -> i32 {
    TC_ACT_UNSPEC
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
