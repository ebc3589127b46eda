//! Programs on the device: by TCX link, pinned, or by clsact. Both outlive the process; neither is ever taken off to be put on again.

use std::{fs, path::Path};

use aya::{
    Ebpf,
    programs::{
        LinkOrder, ProgramError, SchedClassifier, TcAttachType,
        links::{FdLink, PinnedLink},
        tc::{
            NlOptions, SchedClassifierLink, TcAttachOptions, TcError, TcHandle, qdisc_add_clsact,
        },
    },
    util::KernelVersion,
};
use lowroad_core::filter::Direction;

use super::{FilterError, FilterOptions, bpffs::PinDir, clsact, object, object::Maps, tcx};

/// Where our filters sit among a clsact qdisc's: first. Of those with the same priority the kernel asks the newest first.
const PRIORITY: u16 = 1;

/// What holds the programs on the device.
#[derive(Debug, Default)]
pub(super) struct Attachments {
    device: String,
    ifindex: u32,
    list: Vec<Attachment>,
}

#[derive(Debug)]
struct Attachment {
    direction: Direction,
    hook: Hook,
    /// An earlier agent's program still runs there, because only its maps have rules.
    pending: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hook {
    /// By a pinned link.
    Tcx,
    /// As the filter with this handle.
    Clsact(u32),
}

pub(super) fn check_device(device: &str, ifindex: u32) -> Result<(), FilterError> {
    let gone = || FilterError::NoDevice {
        device: device.to_owned(),
    };
    let name = std::ffi::CString::new(device).map_err(|_| gone())?;
    // SAFETY: a nul-terminated string that lives during the call.
    let found = unsafe { libc::if_nametoindex(name.as_ptr()) };
    if found == ifindex {
        Ok(())
    } else {
        Err(gone())
    }
}

/// Attaches both programs, or puts them in the place of an earlier agent's.
pub(super) fn attach(
    programs: &mut Ebpf,
    maps: &mut Maps,
    (device, ifindex): (&str, u32),
    pins: Option<&PinDir>,
    options: &FilterOptions,
) -> Result<Attachments, FilterError> {
    let have_rules = maps.active()?.in_force().is_some();
    let mut place = Place {
        programs,
        device,
        ifindex,
        pins,
        tcx: pins.is_some() && !options.clsact_only && has_tcx(),
        is_new: options.device_is_new,
    };
    let mut list = Vec::new();
    let mut adopted = false;
    // Also the order in which pending ones are replaced: what goes out by then is remembered where answers are looked for next.
    for direction in [Direction::Out, Direction::In] {
        let (hook, existed) = place.one(direction, have_rules)?;
        adopted |= existed;
        list.push(Attachment {
            direction,
            hook,
            pending: existed && !have_rules,
        });
    }
    if have_rules && !adopted {
        // They were those of a device that is gone. This one isn't up yet, and gets its own.
        maps.close()?;
    }
    Ok(Attachments {
        device: device.to_owned(),
        ifindex,
        list,
    })
}

fn has_tcx() -> bool {
    const TCX: u32 = (6 << 16) | (6 << 8);
    KernelVersion::current().is_ok_and(|version| version.code() >= TCX)
}

/// An earlier agent's link, if it is on this very device. The pin of one whose device is gone is removed; one that still filters another device is the only
/// thing that keeps it filtered.
fn earlier_link(
    ifindex: u32,
    direction: Direction,
    pins: &PinDir,
) -> Result<Option<FdLink>, FilterError> {
    let path = pins.link(name(direction));
    let opening = |e| FilterError::kernel(format!("opening {}", path.display()), e);
    let Some(held) = tcx::pinned(&path).map_err(opening)? else {
        return Ok(None);
    };
    if is_on(held, ifindex, direction) {
        let link = PinnedLink::from_pin(&path)
            .map_err(|e| FilterError::kernel(format!("opening {}", path.display()), e))?;
        return Ok(Some(FdLink::from(link)));
    }
    if held.device != 0 {
        return Err(still_on(held, direction));
    }
    tracing::info!(path = %path.display(), "the link of a device that is gone is discarded");
    if let Err(error) = fs::remove_file(&path) {
        tracing::warn!(path = %path.display(), %error, "it stays pinned");
    }
    Ok(None)
}

/// Nothing if no pinned link holds a device, whatever its network namespace.
pub(super) fn check_unused(pins: &PinDir) -> Result<(), FilterError> {
    for direction in [Direction::Out, Direction::In] {
        let path = pins.link(name(direction));
        let held = tcx::pinned(&path)
            .map_err(|e| FilterError::kernel(format!("opening {}", path.display()), e))?;
        if let Some(held) = held.filter(|held| held.device != 0) {
            return Err(still_on(held, direction));
        }
    }
    Ok(())
}

/// Whether an earlier agent left its programs on the device by links that we cannot reach: they would judge by their old policy for ever.
pub(super) fn is_out_of_reach(ifindex: u32, pins: &PinDir) -> Result<bool, FilterError> {
    for direction in [Direction::Out, Direction::In] {
        let held = tcx::pinned(&pins.link(name(direction))).ok().flatten();
        if held.is_some_and(|held| is_on(held, ifindex, direction)) {
            continue;
        }
        if has_stray(ifindex, direction, Clsact::of(ifindex, direction)?.ours) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// A program of which the kernel doesn't tell us whose it is may be one's whose device has no other filter of ours.
fn has_stray(ifindex: u32, direction: Direction, clsact: Option<u32>) -> bool {
    match tcx::whose(ifindex, direction) {
        tcx::Whose::Ours => true,
        tcx::Whose::Unknown => clsact.is_none(),
        tcx::Whose::Others | tcx::Whose::Nobodys => false,
    }
}

/// Devices of several network namespaces may have the same number.
fn is_on(held: tcx::Held, ifindex: u32, direction: Direction) -> bool {
    held.device == ifindex && tcx::programs(ifindex, direction).contains(&held.program)
}

fn still_on(held: tcx::Held, direction: Direction) -> FilterError {
    let number = held.device;
    let mut name = [0; libc::IF_NAMESIZE];
    // SAFETY: a buffer of the size that the function asks for.
    let named = unsafe { !libc::if_indextoname(number, name.as_mut_ptr().cast()).is_null() };
    let name = std::ffi::CStr::from_bytes_until_nul(&name).unwrap_or_default();
    let device = if named && is_on(held, number, direction) {
        format!("the device {}", name.to_string_lossy())
    } else {
        format!("device number {number} of another network namespace")
    };
    FilterError::StillOn { device }
}

struct Place<'a> {
    programs: &'a mut Ebpf,
    device: &'a str,
    ifindex: u32,
    pins: Option<&'a PinDir>,
    tcx: bool,
    is_new: bool,
}

impl Place<'_> {
    /// Attaches one program; says where, and whether an earlier agent's was there. That one is replaced only if it works
    /// by our maps, which have rules: else it stays until ours have.
    fn one(&mut self, direction: Direction, have_rules: bool) -> Result<(Hook, bool), FilterError> {
        let earlier = self
            .pins
            .map(|pins| earlier_link(self.ifindex, direction, pins));
        if let Some(link) = earlier.transpose()?.flatten() {
            self.no_clsact(direction)?;
            if have_rules {
                replace(object::program(self.programs, direction)?, tcx_link(link)?)?;
            }
            return Ok((Hook::Tcx, true));
        }
        // Asked first: an adopted device isn't told what it has. One that an agent without TCX or pins made stays with its hook, or two policies were in force.
        let there = Clsact::of(self.ifindex, direction)?;
        if !self.is_new && has_stray(self.ifindex, direction, there.ours) {
            let device = self.device.to_owned();
            return Err(FilterError::OutOfReach { device });
        }
        if let (true, Some(pins), None) = (self.tcx, self.pins, there.ours) {
            self.tcx(direction, &pins.link(name(direction)))?;
            return Ok((Hook::Tcx, false));
        }
        let program = object::program(self.programs, direction)?;
        let Some(handle) = there.ours else {
            attach_by_clsact(program, self.device, direction, there.free)?;
            return Ok((Hook::Clsact(there.free), false));
        };
        if have_rules {
            replace(program, clsact_link(self.device, direction, handle)?)?;
        }
        Ok((Hook::Clsact(handle), true))
    }

    /// Early versions left their programs there when they came to have TCX.
    fn no_clsact(&self, direction: Direction) -> Result<(), FilterError> {
        if let Some(handle) = Clsact::of(self.ifindex, direction)?.ours {
            // Dropping a link takes its filter off.
            drop(clsact_link(self.device, direction, handle)?);
        }
        Ok(())
    }

    fn tcx(&mut self, direction: Direction, pin: &Path) -> Result<(), FilterError> {
        let program = object::program(self.programs, direction)?;
        let failed =
            |e: ProgramError| FilterError::kernel(format!("attaching to {}", self.device), e);
        // First, so that no other program passes a packet before we have seen it.
        let order = TcAttachOptions::TcxOrder(LinkOrder::first());
        let id = program
            .attach_with_options(self.device, hook(direction), order)
            .map_err(failed)?;
        let link: FdLink = program
            .take_link(id)
            .map_err(failed)?
            .try_into()
            .map_err(|e| FilterError::kernel("a TCX link", e))?;
        link.pin(pin)
            .map_err(|e| FilterError::kernel(format!("pinning {}", pin.display()), e))?;
        Ok(())
    }
}

/// Attaches by clsact, where there is none of ours.
fn attach_by_clsact(
    program: &mut SchedClassifier,
    device: &str,
    direction: Direction,
    handle: u32,
) -> Result<(), FilterError> {
    match qdisc_add_clsact(device) {
        Err(TcError::NetlinkError(e)) if e.raw_os_error() == Some(libc::EEXIST) => {}
        other => {
            other.map_err(|e| FilterError::kernel(format!("adding clsact to {device}"), e))?;
        }
    }
    let options = TcAttachOptions::Netlink(NlOptions {
        priority: PRIORITY,
        handle: handle.into(),
        classid: None,
    });
    let link = program
        .attach_with_options(device, hook(direction), options)
        .and_then(|id| program.take_link(id))
        .map_err(|e| FilterError::kernel(format!("attaching to {device}"), e))?;
    release(link);
    Ok(())
}

/// Handles in our priority of a device's clsact: that of our filter, and one that is free.
struct Clsact {
    ours: Option<u32>,
    free: u32,
}

impl Clsact {
    /// Ours is known by its program's name, in whatever place: others attach to every device, too, and like the first.
    fn of(ifindex: u32, direction: Direction) -> Result<Self, FilterError> {
        const CLSACT: u32 = 0xffff_0000;
        let parent = CLSACT
            | match direction {
                Direction::In => 0xfff2,
                Direction::Out => 0xfff3,
            };
        let mut there = clsact::filters(ifindex, parent)
            .map_err(|e| FilterError::kernel("asking for the device's filters", e))?;
        there.retain(|filter| filter.priority == PRIORITY);
        let name = object::name(direction).as_bytes();
        let ours = there.iter().find(|f| f.name.as_deref() == Some(name));
        let is_free = |handle: &u32| there.iter().all(|filter| filter.handle != *handle);
        Ok(Self {
            ours: ours.map(|filter| filter.handle),
            free: (1..).find(is_free).expect("more handles than filters"),
        })
    }
}

/// Lets go of a link without taking the program off: a pinned one stays by its pin, a clsact filter by its device.
fn release(link: SchedClassifierLink) {
    // Dropping it would take a clsact filter off; converting closes a descriptor if there is one.
    drop(FdLink::try_from(link));
}

/// Puts a program into a link's place, atomically, and lets go of the link without taking it off.
fn replace(program: &mut SchedClassifier, link: SchedClassifierLink) -> Result<(), FilterError> {
    replace_inner(program, link).map_err(|e| FilterError::kernel("replacing the program", e))
}

fn replace_inner(
    program: &mut SchedClassifier,
    link: SchedClassifierLink,
) -> Result<(), ProgramError> {
    let id = program.attach_to_link(link)?;
    release(program.take_link(id)?);
    Ok(())
}

fn tcx_link(link: FdLink) -> Result<SchedClassifierLink, FilterError> {
    link.try_into()
        .map_err(|e| FilterError::kernel("a pinned link", e))
}

fn clsact_link(
    device: &str,
    direction: Direction,
    handle: u32,
) -> Result<SchedClassifierLink, FilterError> {
    let handle = TcHandle::from(handle);
    SchedClassifierLink::attached(device, hook(direction), PRIORITY, handle, None).map_err(|_| {
        FilterError::NoDevice {
            device: device.to_owned(),
        }
    })
}

impl Attachments {
    /// Puts our programs where an earlier agent's were left until now.
    pub fn replace_pending(
        &mut self,
        programs: &mut Ebpf,
        pins: Option<&PinDir>,
    ) -> Result<(), FilterError> {
        for attachment in self.list.iter_mut().filter(|a| a.pending) {
            let link = match (attachment.hook, pins) {
                (Hook::Clsact(handle), _) => {
                    clsact_link(&self.device, attachment.direction, handle)?
                }
                (Hook::Tcx, Some(pins)) => {
                    let path = pins.link(name(attachment.direction));
                    let pinned = PinnedLink::from_pin(&path).map_err(|e| {
                        FilterError::kernel(format!("opening {}", path.display()), e)
                    })?;
                    tcx_link(FdLink::from(pinned))?
                }
                (Hook::Tcx, None) => {
                    return Err(FilterError::kernel(
                        "replacing the program",
                        "its pin is gone",
                    ));
                }
            };
            replace(object::program(programs, attachment.direction)?, link)?;
            attachment.pending = false;
        }
        Ok(())
    }

    /// Whether the programs are still on the device.
    pub fn are_there(&self, pins: Option<&PinDir>) -> Result<bool, FilterError> {
        for attachment in &self.list {
            let there = match attachment.hook {
                Hook::Tcx => self.has_link(attachment.direction, pins),
                Hook::Clsact(handle) => {
                    Clsact::of(self.ifindex, attachment.direction)?.ours == Some(handle)
                }
            };
            if !there {
                return Ok(false);
            }
        }
        Ok(!self.list.is_empty())
    }

    /// Whether our pinned link is there and holds its program on the device.
    fn has_link(&self, direction: Direction, pins: Option<&PinDir>) -> bool {
        let link = pins.and_then(|pins| PinnedLink::from_pin(pins.link(name(direction))).ok());
        let program = link.and_then(|link| program_of(&FdLink::from(link)));
        program.is_some_and(|program| tcx::programs(self.ifindex, direction).contains(&program))
    }
}

/// The number of the program that a link holds where it is.
fn program_of(link: &FdLink) -> Option<u32> {
    Some(link.info().ok()?.program_id())
}

const fn hook(direction: Direction) -> TcAttachType {
    match direction {
        Direction::In => TcAttachType::Ingress,
        Direction::Out => TcAttachType::Egress,
    }
}

const fn name(direction: Direction) -> &'static str {
    match direction {
        Direction::In => "ingress",
        Direction::Out => "egress",
    }
}
