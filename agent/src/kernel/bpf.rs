//! The packet filter in the kernel: loading, attaching, pinning and adopting the programs of `ebpf/`, and their maps.
//!
//! A device that has a [`Filter`] drops everything until the first [`Filter::install`], and keeps filtering when this
//! process is gone.

use std::path::PathBuf;

use lowroad_core::filter::{Compiled, FilterCounters, FilterEvent};
use tokio::sync::mpsc;

/// How to attach.
#[derive(Clone, Debug)]
pub struct FilterOptions {
    /// Name of the directory for pins, one per state directory.
    pub state_id: String,
    /// The agent's firewall mark: packets that carry all of its bits are the agent's own, the only ones allowed to be
    /// TSMP. Zero: none are.
    pub mark: u32,
    /// Where a bpffs is, or is to be mounted.
    pub bpffs: PathBuf,
    /// Never TCX, as on kernels before 6.6.
    pub clsact_only: bool,
    /// Let the programs log what they do with each packet, at debug level. Costs 100 ns a packet.
    pub traces: bool,
}

impl FilterOptions {
    pub fn new(state_id: impl Into<String>, mark: u32) -> Self {
        Self {
            state_id: state_id.into(),
            mark,
            bpffs: PathBuf::from("/sys/fs/bpf"),
            clsact_only: false,
            traces: false,
        }
    }
}

/// The filter of one device.
#[derive(Debug)]
pub struct Filter {}

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FilterError {
    /// Until the loader lands.
    #[error("the packet filter is not built yet")]
    NotBuilt,
}

impl Filter {
    /// Attaches the programs to a device, or takes over those that an earlier agent pinned for it. Call it before the
    /// device goes up. Without an earlier one everything is dropped until [`Self::install`].
    pub fn attach_or_adopt(
        device: &str,
        ifindex: u32,
        options: &FilterOptions,
    ) -> Result<Self, FilterError> {
        let _ = (device, ifindex, options);
        Err(FilterError::NotBuilt)
    }

    /// Whether the programs are still on the device, both ways.
    pub fn is_attached(&self) -> Result<bool, FilterError> {
        Err(FilterError::NotBuilt)
    }

    /// Puts a rule set in force in one write, then reads it back. Takes some 40 ms, in which packets are judged by the
    /// one before.
    pub fn install(&mut self, compiled: &Compiled) -> Result<(), FilterError> {
        let _ = compiled;
        Err(FilterError::NotBuilt)
    }

    /// Counters since the filter was first attached; adopted ones go on.
    pub fn counters(&self) -> Result<FilterCounters, FilterError> {
        Err(FilterError::NotBuilt)
    }

    /// What the programs report. Call it once, inside a tokio runtime; a slow reader loses the newest.
    pub fn events(&mut self) -> Result<mpsc::Receiver<FilterEvent>, FilterError> {
        Err(FilterError::NotBuilt)
    }

    /// Removes the programs from the device, and all pins.
    pub fn detach(self) -> Result<(), FilterError> {
        Err(FilterError::NotBuilt)
    }

    /// Removes what an agent with this state id left pinned, without a device at hand. Nothing there is success.
    pub fn cleanup(options: &FilterOptions) -> Result<(), FilterError> {
        let _ = options;
        Err(FilterError::NotBuilt)
    }
}
