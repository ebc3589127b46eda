//! A zero that the verifier does not know to be one.
//!
//! It follows every way through a program anew as long as what it knows of variables differs, which after a few dozen ways of parsing a packet makes hundreds
//! of thousands of steps and most of a second. Mixing this zero into what the ways left behind makes them equal, so that what follows is verified once.

use aya_ebpf::programs::TcContext;

#[inline(always)]
pub fn zero(ctx: &TcContext) -> u32 {
    // SAFETY: the context is valid while the program runs.
    let length = unsafe { &raw const (*ctx.skb.skb).len };
    // SAFETY: as above. Volatile, or the compiler would know the result.
    unsafe { length.read_volatile() ^ length.read_volatile() }
}
