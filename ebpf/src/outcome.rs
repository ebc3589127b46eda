//! What a program decides, and the one place where that becomes a return code.

use aya_ebpf::bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC};
use lowroad_abi::{CounterNumber, DropReason, Pass};

/// A packet's fate.
#[derive(Clone, Copy)]
pub struct Outcome {
    /// `Pass` or `DropReason`.
    pub code: u8,
    /// Of the rule that admitted it.
    pub rule: CounterNumber,
}

impl Outcome {
    #[inline(always)]
    pub fn pass(pass: Pass) -> Self {
        Self {
            code: pass as u8,
            rule: 0,
        }
    }
    #[inline(always)]
    pub fn rule(rule: CounterNumber) -> Self {
        Self {
            code: Pass::Rule as u8,
            rule,
        }
    }
    #[inline(always)]
    pub fn drop(reason: DropReason) -> Self {
        Self {
            code: reason as u8,
            rule: 0,
        }
    }
    /// Has the verifier forget which way led to it.
    #[inline(always)]
    pub fn forget(self, zero: u32) -> Self {
        Self {
            code: self.code ^ zero as u8,
            rule: self.rule ^ zero,
        }
    }
    #[inline(always)]
    pub fn dropped(&self) -> bool {
        self.code >= DropReason::NoPolicy as u8
    }
    /// `TC_ACT_UNSPEC` (`TCX_NEXT`) lets programs behind ours have their say.
    #[inline(always)]
    pub fn action(&self) -> i32 {
        if self.dropped() || self.code == Pass::Consumed as u8 {
            TC_ACT_SHOT as i32
        } else {
            TC_ACT_UNSPEC
        }
    }
}
