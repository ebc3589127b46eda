//! The packet filter in the kernel: loading, attaching, pinning and adopting the programs of `ebpf/`, and their maps.
//!
//! A device that has a [`Filter`] drops everything until the first [`Filter::install`], and keeps filtering when this
//! process is gone: programs hang on links pinned in a bpffs that outlives us, else on the device's clsact qdisc.

mod attach;
mod bpffs;
mod clsact;
mod counters;
mod delete;
mod events;
mod install;
mod object;
mod tcx;

use std::{
    error::Error,
    path::PathBuf,
    sync::{Arc, atomic::AtomicU32},
};

use aya::{Ebpf, TestRun as _, TestRunOptions, programs::SchedClassifier};
use lowroad_core::filter::{Compiled, CompiledRule, Direction, FilterCounters, FilterEvent};
use tokio::sync::{mpsc, oneshot};

use self::{attach::Attachments, bpffs::PinDir, object::Maps};

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
    /// This process has just made the device: what hangs on it is others'.
    pub device_is_new: bool,
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
            device_is_new: false,
            traces: false,
        }
    }
}

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FilterError {
    #[error(
        "loading the packet filter: {source}; it needs Linux 5.15 or newer with BPF, and root (or CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN)"
    )]
    Load {
        source: Box<dyn Error + Send + Sync>,
    },
    #[error("{what}: {source}")]
    Kernel {
        what: String,
        source: Box<dyn Error + Send + Sync>,
    },
    #[error("the device {device} is gone, or another one has its name")]
    NoDevice { device: String },
    #[error(
        "the packet filter still guards {device}: run `lowroad agent --cleanup` in that device's network namespace, or delete the device"
    )]
    StillOn { device: String },
    #[error(
        "the device {device} has the packet filter of an earlier agent, whose pins are out of reach: the device is to be made anew"
    )]
    OutOfReach { device: String },
    #[error(
        "the kernel's copy of the packet filter's rules differs from what was written ({what})"
    )]
    ReadBack { what: &'static str },
    #[error("the packet filter's events are being read already")]
    EventsTaken,
}

impl FilterError {
    fn kernel(what: impl Into<String>, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        let source = source.into();
        Self::Kernel {
            what: what.into(),
            source: object::with_causes(&*source),
        }
    }
}

/// The filter of one device.
pub struct Filter {
    programs: Ebpf,
    maps: Maps,
    attachments: Attachments,
    pins: Option<PinDir>,
    /// Of the rule set installed last.
    rules: Vec<CompiledRule>,
    numbers: counters::Numbers,
    /// What answers to punts depend on: peer API port, and in bit 16 whether shields are up.
    answers: Arc<AtomicU32>,
    events: Option<events::Source>,
    /// Dropped with us: ends the reading, which holds the ring's map.
    reading: Option<oneshot::Sender<()>>,
}

impl std::fmt::Debug for Filter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Filter")
            .field("attachments", &self.attachments)
            .field("pins", &self.pins)
            .field("rules", &self.rules.len())
            .finish_non_exhaustive()
    }
}

impl Filter {
    /// Attaches the programs to a device, or takes over those of an earlier agent. Call it before the device goes up.
    /// Without an earlier one everything is dropped until [`Self::install`]; with one, its rules stay in force.
    pub fn attach_or_adopt(
        device: &str,
        ifindex: u32,
        options: &FilterOptions,
    ) -> Result<Self, FilterError> {
        attach::check_device(device, ifindex)?;
        let pins = PinDir::lasting(&options.bpffs, &options.state_id)?;
        let mut filter = Self::load(options, pins)?;
        filter.attachments = attach::attach(
            &mut filter.programs,
            &mut filter.maps,
            (device, ifindex),
            filter.pins.as_ref(),
            options,
        )?;
        tracing::info!(device, attachments = ?filter.attachments, "packet filter attached");
        Ok(filter)
    }

    /// Loads the programs without a device and without pins, for [`Self::run`].
    pub fn detached(options: &FilterOptions) -> Result<Self, FilterError> {
        Self::load(options, None)
    }

    fn load(options: &FilterOptions, pins: Option<PinDir>) -> Result<Self, FilterError> {
        let mut programs = object::load(options, pins.as_ref())?;
        let maps = Maps::take(&mut programs)?;
        let events = events::Source::take(&mut programs, options.traces)?;
        Ok(Self {
            programs,
            maps,
            attachments: Attachments::default(),
            pins,
            rules: Vec::new(),
            numbers: counters::Numbers::default(),
            answers: Arc::default(),
            events: Some(events),
            reading: None,
        })
    }

    /// Whether the programs are still on the device, both ways.
    pub fn is_attached(&self) -> Result<bool, FilterError> {
        self.attachments.are_there(self.pins.as_ref())
    }

    /// Puts a rule set in force in one write, and reads it back. Takes tens of milliseconds, in which the kernel waits for
    /// programs that run, and with thousands of rules hundreds; packets are judged by the one before meanwhile. After an
    /// error either may be in force: close the filter.
    pub fn install(&mut self, compiled: &Compiled) -> Result<(), FilterError> {
        let numbers = install::install(&mut self.maps, compiled)?;
        self.take_over()?;
        self.rules.clone_from(&compiled.rules);
        self.numbers = numbers;
        self.numbers.prune(&mut self.maps)?;
        events::set_answers(&self.answers, compiled);
        Ok(())
    }

    /// Drops everything from now on, in one write, until the next [`Self::install`]. Programs of an earlier agent that
    /// judge by maps of another layout are replaced for it: that write is none of theirs.
    pub fn close(&mut self) -> Result<(), FilterError> {
        self.maps.close()?;
        self.take_over()
    }

    /// Has our programs judge where an earlier agent's did until now, by maps that we don't know.
    fn take_over(&mut self) -> Result<(), FilterError> {
        self.attachments
            .replace_pending(&mut self.programs, self.pins.as_ref())?;
        if let Some(pins) = &self.pins {
            pins.remove_other_versions();
        }
        Ok(())
    }

    /// Counters since the filter was first attached; adopted ones go on. Rules count only once installed by this agent.
    pub fn counters(&self) -> Result<FilterCounters, FilterError> {
        counters::read(&self.maps, &self.rules, &self.numbers)
    }

    /// What the programs report. Call it once, inside a tokio runtime; a slow reader loses the newest.
    pub fn events(&mut self) -> Result<mpsc::Receiver<FilterEvent>, FilterError> {
        let source = self.events.take().ok_or(FilterError::EventsTaken)?;
        let (reading, ended) = oneshot::channel();
        self.reading = Some(reading);
        source.start(Arc::clone(&self.answers), ended)
    }

    /// Removes all pins, once the device is gone.
    ///
    /// # Errors
    /// [`FilterError::StillOn`] if it isn't: then nothing is removed.
    pub fn detach(self) -> Result<bool, FilterError> {
        self.pins.as_ref().map_or(Ok(false), remove_pins)
    }

    /// Removes what an agent with this state id left pinned, without a device at hand; says whether there was anything.
    ///
    /// # Errors
    /// [`FilterError::StillOn`] if its device is still there, in whatever network namespace: then nothing is removed.
    pub fn cleanup(options: &FilterOptions) -> Result<bool, FilterError> {
        remove_pins(&PinDir::existing(&options.bpffs, &options.state_id))
    }

    /// Whether an earlier agent's programs are on this device by links whose pins are not to be had: another agent's rules would be judged beside theirs.
    pub fn is_out_of_reach(ifindex: u32, options: &FilterOptions) -> Result<bool, FilterError> {
        attach::is_out_of_reach(
            ifindex,
            &PinDir::existing(&options.bpffs, &options.state_id),
        )
    }

    /// Runs an IP packet (14 bytes or more) through a program without any device (`BPF_PROG_TEST_RUN`), for tests and
    /// benchmarks. Counts and records flows as a real packet would.
    pub fn run(
        &mut self,
        direction: Direction,
        packet: &[u8],
        mark: u32,
        repeat: u32,
    ) -> Result<TestVerdict, FilterError> {
        test_run(
            object::program(&mut self.programs, direction)?,
            packet,
            mark,
            repeat,
        )
    }

    /// What a test run costs by itself: the same by a program that does nothing.
    pub fn run_nothing(&mut self, packet: &[u8], repeat: u32) -> Result<TestVerdict, FilterError> {
        let program = object::nothing(&mut self.programs)?;
        test_run(program, packet, 0, repeat)
    }
}

/// A pinned link is all that keeps a device's programs there: its pin goes after the device.
fn remove_pins(pins: &PinDir) -> Result<bool, FilterError> {
    attach::check_unused(pins)?;
    pins.remove()
}

fn test_run(
    program: &SchedClassifier,
    packet: &[u8],
    mark: u32,
    repeat: u32,
) -> Result<TestVerdict, FilterError> {
    // The first fields of `struct __sk_buff`: len, pkt_type, mark.
    let mut context = [0u8; 12];
    context[8..].copy_from_slice(&mark.to_ne_bytes());
    let options = TestRunOptions {
        data_in: Some(packet),
        ctx_in: Some(&context),
        repeat,
        ..TestRunOptions::default()
    };
    let result = program
        .test_run(options)
        .map_err(|e| FilterError::kernel("running a packet through the filter", e))?;
    Ok(TestVerdict {
        passed: result.return_value as i32 == TC_ACT_UNSPEC,
        nanoseconds: result.duration.as_nanos() as u64,
    })
}

/// What the programs return for what may go on.
const TC_ACT_UNSPEC: i32 = -1;

/// What a test run said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TestVerdict {
    pub passed: bool,
    /// Average over the repetitions.
    pub nanoseconds: u64,
}
