//! The kernel programs.
#![no_std]
#![no_main]
use aya_ebpf::{bindings::TC_ACT_SHOT, macros::classifier, programs::TcContext};

#[classifier]
pub fn overlay_ingress(_ctx: TcContext) -> i32 {
    TC_ACT_SHOT
}

#[classifier]
pub fn overlay_egress(_ctx: TcContext) -> i32 {
    TC_ACT_SHOT
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
