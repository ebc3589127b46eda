//! The kernel seam: everything the agent reads from and writes to the kernel goes through [`Kernel`].
//!
//! [`start`] chooses the data plane and returns the running pieces; the engine then repeats
//! `observe` → [`lowroad_core::plan::plan`] → `apply` for each step. Types of netlink, WireGuard and eBPF libraries stay below
//! this module.

pub mod bpf;
pub mod fake;
mod link;
mod linux;
mod monitor;
mod netlink;
mod probe;
mod redirects;
mod route;
mod sole;
mod userspace;
mod way_out;
mod wireguard;

use std::io;
use std::path::PathBuf;

use futures_util::future::BoxFuture;
use lowroad_core::desired::{Mark, Observed, PeerStats};
use lowroad_core::filter::{Compiled, FilterCounters, FilterEvent};
use lowroad_core::plan::Step;
use tokio::sync::mpsc;

pub use self::{
    linux::{LinuxKernel, cleanup, start},
    probe::check_privileges,
    userspace::arrivals,
    way_out::{WayOut, ways_out},
};
use crate::traversal::port::{Datagram, Port};

pub type KernelFuture<'a, T> = BoxFuture<'a, Result<T, KernelError>>;

/// Kernel state, real ([`LinuxKernel`]) or in memory ([`fake::FakeKernel`]).
pub trait Kernel: Send {
    /// Reads back what is ours.
    fn observe(&mut self) -> KernelFuture<'_, Observed>;
    /// Does one step. A step that is in force already succeeds.
    fn apply<'a>(&'a mut self, step: &'a Step) -> KernelFuture<'a, ()>;
    /// Does them in order, WireGuard's together where that is faster. Stops at the first that fails; the next plan has the rest.
    fn apply_all<'a>(&'a mut self, steps: &'a [Step]) -> KernelFuture<'a, ()>;
    /// Puts a policy in force, in one step. Until the first one the filter drops everything.
    fn install_filter<'a>(&'a mut self, compiled: &'a Compiled) -> KernelFuture<'a, ()>;
    /// Drops everything from now on, in one write, until a policy is put in force. A device whose filter cannot be closed goes down.
    fn close_filter(&mut self) -> KernelFuture<'_, ()>;
    /// Whether somebody took the filter off. Cheap: for every few seconds.
    fn filter_is_lost(&mut self) -> bool;
    /// Counters since the filter was first attached.
    fn filter_counters(&mut self) -> Result<FilterCounters, KernelError>;
    /// Counters of every peer.
    fn peer_stats(&mut self) -> KernelFuture<'_, Vec<PeerStats>>;
    /// Removes device, routes, rules and pins, only ours. Succeeds if there is nothing.
    fn teardown(&mut self) -> KernelFuture<'_, ()>;
}

/// Which WireGuard carries the packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dataplane {
    Kernel,
    /// gotatun on a TUN device: the tunnel lives and dies with the agent.
    Userspace,
}

impl Dataplane {
    /// As in `status` and `--dataplane`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Userspace => "userspace",
        }
    }
}

impl std::fmt::Display for Dataplane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// `--dataplane`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DataplaneChoice {
    /// The kernel's WireGuard if it has one.
    #[default]
    Auto,
    Kernel,
    Userspace,
}

impl std::str::FromStr for DataplaneChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "kernel" => Ok(Self::Kernel),
            "userspace" => Ok(Self::Userspace),
            other => Err(format!(
                "--dataplane is auto, kernel or userspace, not {other:?}"
            )),
        }
    }
}

#[derive(Clone, Debug)]
pub struct KernelOptions {
    /// Name of the device, at most 15 bytes.
    pub device: String,
    /// UDP port of WireGuard, disco and STUN.
    pub port: u16,
    pub dataplane: DataplaneChoice,
    /// Of everything that we send outside the tunnel.
    pub mark: Mark,
    /// From the state directory: names our pins and marks our device, so that a restarted agent knows its own.
    pub state_id: String,
    /// Where it is noted what is to be put back, should the agent be killed meanwhile.
    pub state_dir: PathBuf,
    /// Let the eBPF programs log each packet, at debug level.
    pub filter_traces: bool,
}

/// The running kernel side.
pub struct Started {
    pub kernel: Box<dyn Kernel>,
    /// Sends from the WireGuard port.
    pub port: Port,
    /// Disco and STUN that came to the WireGuard port.
    pub datagrams: mpsc::Receiver<Datagram>,
    /// Of whatever filter is attached.
    pub filter_events: mpsc::Receiver<FilterEvent>,
    /// Netlink changes that may concern us. The engine reconciles and looks at its endpoints again.
    pub changes: mpsc::Receiver<KernelChange>,
    pub dataplane: Dataplane,
    /// Why it isn't the kernel's WireGuard although that was preferred: one line for the log and `status`.
    pub why_userspace: Option<String>,
    /// A device of an earlier agent was found and kept.
    pub adopted: bool,
}

impl std::fmt::Debug for Started {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Started")
            .field("dataplane", &self.dataplane)
            .field("adopted", &self.adopted)
            .finish_non_exhaustive()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum KernelChange {
    /// Our device changed or vanished.
    Device,
    /// Another link changed.
    Links,
    /// Addresses outside our device changed: our endpoints may have.
    Addresses,
    /// Routes outside our table changed: our way out may have.
    Routes,
    /// A rule changed, perhaps one of ours.
    Rules,
    /// Our table changed.
    Table,
    /// Notifications were lost: look at everything again.
    Overflow,
}

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KernelError {
    #[error(
        "{what}: not permitted; run the agent as root, or give it CAP_NET_ADMIN, CAP_NET_RAW, CAP_BPF and CAP_PERFMON (in a container: --cap-add)"
    )]
    NotPermitted { what: String },
    #[error(
        "opening /dev/net/tun: {source}; load the module (`modprobe tun`), or in a container pass the device (--device /dev/net/tun)"
    )]
    NoTun { source: io::Error },
    #[error(
        "this kernel has no WireGuard ({source}); load the module (`modprobe wireguard`, Linux 5.6 or newer), or use --dataplane userspace"
    )]
    NoWireGuard { source: io::Error },
    #[error(
        "UDP port {port} is taken by another program (another WireGuard or lowroad?): stop it, or give --port another number"
    )]
    PortTaken { port: u16 },
    #[error(
        "a network device named {device} exists and isn't ours ({what}): remove it, or give --tun another name"
    )]
    NameTaken { device: String, what: String },
    #[error(
        "{device:?} can't name a network device: 1 to 15 bytes, without spaces, slashes and colons"
    )]
    BadName { device: String },
    #[error(
        "another lowroad agent{pid} runs in this network namespace, and policy rules and routing table can have one owner: stop it, or give this one a namespace of its own"
    )]
    SecondAgent {
        /// ` (process 123)`, if it is known.
        pid: String,
    },
    #[error("the device {device} is gone")]
    NoDevice { device: String },
    #[error("{what}: {source}")]
    Netlink { what: String, source: io::Error },
    #[error("{what}: {source}")]
    WireGuard { what: String, source: io::Error },
    #[error("Linux {release} is too old: lowroad needs 5.15 or newer")]
    TooOld { release: String },
    #[error("{what}: {source}")]
    Filter {
        what: &'static str,
        source: bpf::FilterError,
    },
    #[error("{what}: the device has no filter")]
    NoFilter { what: &'static str },
    /// Of several things to remove, some could not be.
    #[error("not everything could be removed: {what}")]
    Remains { what: String },
    #[error("{what}: not possible with a running userspace device; restart the agent")]
    NeedsRestart { what: String },
    /// Of the fake kernel only.
    #[error("injected failure: {0}")]
    Injected(String),
}
