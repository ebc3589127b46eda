//! Which programs hang on a device by TCX, and which device a pinned link holds. aya asks, too, but looks each program up by its number, which takes
//! CAP_SYS_ADMIN, and leaves out what a link says of its device.

use std::{
    io,
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

use lowroad_core::filter::Direction;

use super::object;

const BPF_OBJ_GET: libc::c_int = 7;
const BPF_PROG_GET_FD_BY_ID: libc::c_int = 13;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const BPF_PROG_QUERY: libc::c_int = 16;
const BPF_TCX_INGRESS: u32 = 46;
const BPF_TCX_EGRESS: u32 = 47;
const BPF_LINK_TYPE_TCX: u32 = 11;

/// Of all users of the device. Far more than anybody attaches.
const PROGRAMS: usize = 64;

/// The members of `union bpf_attr` for asking for a device's programs.
#[repr(C)]
struct Query {
    ifindex: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    programs: u64,
    count: u32,
    padding: u32,
    program_flags: u64,
    links: u64,
    link_flags: u64,
    revision: u64,
}

const _: () = assert!(size_of::<Query>() == 64);

/// Those for opening what is pinned.
#[repr(C)]
struct Open {
    path: u64,
    descriptor: u32,
    flags: u32,
}

/// Those for opening what has this number.
#[repr(C)]
struct ById {
    id: u32,
    next: u32,
    flags: u32,
}

/// Those for asking for an object's description.
#[repr(C)]
struct Ask {
    descriptor: u32,
    length: u32,
    info: u64,
}

/// An object's description in words of the kernel's, as far as we read it.
type Words = [u32; 32];

/// Of a `struct bpf_link_info`: type, and the program's number; of a TCX link also the device's.
const LINK_TYPE: usize = 0;
const LINK_PROGRAM: usize = 2;
const LINK_DEVICE: usize = 4;
/// Of a `struct bpf_prog_info`.
const PROGRAM_NAME: std::ops::Range<usize> = 16..20;

/// What a pinned link holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Held {
    pub program: u32,
    /// The device's number in its network namespace, which may be another than ours; 0 if it is gone.
    pub device: u32,
}

/// Whose programs hang on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Whose {
    Nobodys,
    /// Other programs'.
    Others,
    /// They are there, and the kernel doesn't tell us more: that takes CAP_SYS_ADMIN.
    Unknown,
    /// One at least is a lowroad's.
    Ours,
}

/// Their numbers; none on a device that is gone, or without TCX.
pub(super) fn programs(ifindex: u32, direction: Direction) -> Vec<u32> {
    let mut ids = [0u32; PROGRAMS];
    let mut query = Query {
        ifindex,
        attach_type: match direction {
            Direction::In => BPF_TCX_INGRESS,
            Direction::Out => BPF_TCX_EGRESS,
        },
        query_flags: 0,
        attach_flags: 0,
        programs: ids.as_mut_ptr() as u64,
        count: PROGRAMS as u32,
        padding: 0,
        program_flags: 0,
        links: 0,
        link_flags: 0,
        revision: 0,
    };
    // SAFETY: the array that `query` points to, with its length, lives through the call.
    if unsafe { bpf(BPF_PROG_QUERY, &mut query) }.is_err() {
        return Vec::new();
    }
    let count = PROGRAMS.min(query.count as usize);
    ids[..count].to_vec()
}

/// Whose programs these are, as far as the kernel tells.
pub(super) fn whose(ifindex: u32, direction: Direction) -> Whose {
    let ours = object::name(direction).as_bytes();
    let mut whose = Whose::Nobodys;
    for id in programs(ifindex, direction) {
        match program_name(id) {
            Ok(name) if name == ours => return Whose::Ours,
            Ok(_) if whose == Whose::Nobodys => whose = Whose::Others,
            // It has gone since.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
            Err(_) => whose = Whose::Unknown,
            Ok(_) => {}
        }
    }
    whose
}

/// What the TCX link pinned there holds; `None` if nothing is pinned there.
pub(super) fn pinned(path: &Path) -> io::Result<Option<Held>> {
    // Who may not ask the kernel has nothing pinned, either.
    if !path.exists() {
        return Ok(None);
    }
    let mut name = path.as_os_str().as_bytes().to_vec();
    name.push(0);
    let mut open = Open {
        path: name.as_ptr() as u64,
        descriptor: 0,
        flags: 0,
    };
    // SAFETY: the terminated path lives through the call.
    let link = match unsafe { bpf(BPF_OBJ_GET, &mut open) } {
        Ok(number) => owned(number),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(None),
        Err(error) => return Err(error),
    };
    let info = describe(&link)?;
    if info[LINK_TYPE] != BPF_LINK_TYPE_TCX {
        return Err(io::Error::other("it is no TCX link"));
    }
    Ok(Some(Held {
        program: info[LINK_PROGRAM],
        device: info[LINK_DEVICE],
    }))
}

fn program_name(id: u32) -> io::Result<Vec<u8>> {
    let mut by_id = ById {
        id,
        next: 0,
        flags: 0,
    };
    // SAFETY: no pointers.
    let program = owned(unsafe { bpf(BPF_PROG_GET_FD_BY_ID, &mut by_id) }?);
    let info = describe(&program)?;
    let name = info[PROGRAM_NAME]
        .iter()
        .flat_map(|word| word.to_ne_bytes())
        .take_while(|byte| *byte != 0);
    Ok(name.collect())
}

fn describe(object: &OwnedFd) -> io::Result<Words> {
    let mut info = Words::default();
    let mut ask = Ask {
        descriptor: object.as_raw_fd() as u32,
        length: size_of::<Words>() as u32,
        info: info.as_mut_ptr() as u64,
    };
    // SAFETY: the words live through the call, which writes no more than the length says.
    unsafe { bpf(BPF_OBJ_GET_INFO_BY_FD, &mut ask) }?;
    Ok(info)
}

/// # Safety
/// `attributes` are the command's, and what they point to lives through the call.
unsafe fn bpf<T>(command: libc::c_int, attributes: &mut T) -> io::Result<libc::c_long> {
    // SAFETY: the attributes live through the call; the rest is the caller's word.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_mut(attributes),
            size_of::<T>(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}

fn owned(descriptor: libc::c_long) -> OwnedFd {
    // SAFETY: a descriptor that a system call has just made for us.
    unsafe { OwnedFd::from_raw_fd(descriptor as libc::c_int) }
}
