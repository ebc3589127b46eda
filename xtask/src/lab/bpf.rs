//! What the kernel says about eBPF, by bpf(2): which objects exist, and what hangs on a device.

use std::{
    ffi::CStr,
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

use anyhow::{Context, Result, bail};

use crate::topology::tcx::Way;

const PROG_GET_FD_BY_ID: libc::c_int = 13;
const OBJ_GET_INFO: libc::c_int = 15;
const PROG_QUERY: libc::c_int = 16;
/// Programs that a hook takes at most (`BPF_MPROG_MAX`).
const MAX_PROGRAMS: usize = 64;
/// Where `struct bpf_prog_info` has the name, and where that ends.
const NAME: std::ops::Range<usize> = 64..80;

/// Commands that walk the ids of a kind of object.
const NEXT_ID: &[(libc::c_int, &str)] = &[(11, "program"), (12, "map"), (31, "link")];

/// Part of `union bpf_attr`, as large as all kernels that we meet take it (what lies beyond their own must be zero).
#[repr(C, align(8))]
#[derive(Default)]
struct Attributes([u32; 16]);

impl Attributes {
    /// Where the kernel puts its answer, as two words from this one on; it must live until the call is over.
    fn pointer(&mut self, at: usize, answer: &mut [u32]) {
        let address = (answer.as_mut_ptr() as u64).to_ne_bytes();
        for (word, bytes) in self.0[at..at + 2].iter_mut().zip(address.chunks_exact(4)) {
            *word = u32::from_ne_bytes(bytes.try_into().expect("four bytes"));
        }
    }
}

fn call(command: libc::c_int, attributes: &mut Attributes) -> io::Result<libc::c_long> {
    // SAFETY: the attributes live through the call, and so does what our callers make them point to, which is as long as they say.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_mut(attributes),
            size_of::<Attributes>(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}

/// How many objects of each kind there are on this machine. Objects that were let go of vanish a moment later.
pub fn objects() -> Result<String> {
    let mut out = String::new();
    for (command, kind) in NEXT_ID {
        let mut id = 0;
        let mut ids = 0;
        loop {
            let mut attributes = Attributes::default();
            attributes.0[0] = id;
            match call(*command, &mut attributes) {
                Ok(_) => id = attributes.0[1],
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => break,
                Err(error) => bail!("listing eBPF {kind}s: {error}"),
            }
            ids += 1;
        }
        out.push_str(&format!("{ids} {kind}s\n"));
    }
    Ok(out)
}

/// Names of the programs on one side of a device of this namespace, in the order in which packets meet them. None, too, on kernels without TCX.
pub fn tcx_programs(index: u32, way: Way) -> Result<Vec<String>> {
    let mut ids = [0u32; MAX_PROGRAMS];
    let mut attributes = Attributes::default();
    attributes.0[0] = index;
    attributes.0[1] = way as u32;
    attributes.pointer(4, &mut ids);
    attributes.0[6] = ids.len() as u32;
    match call(PROG_QUERY, &mut attributes) {
        Ok(_) => {}
        // Nothing there, no such device (any more), or a kernel without TCX.
        Err(error)
            if matches!(
                error.raw_os_error(),
                Some(libc::ENOENT | libc::ENODEV | libc::EINVAL)
            ) =>
        {
            return Ok(Vec::new());
        }
        Err(error) => return Err(error).context("ask for the programs on a device"),
    }
    let found = ids.iter().take(attributes.0[6] as usize);
    Ok(found
        .filter_map(|id| program_name(*id).transpose())
        .collect::<io::Result<_>>()?)
}

/// `None` if it has gone since.
fn program_name(id: u32) -> io::Result<Option<String>> {
    let mut attributes = Attributes::default();
    attributes.0[0] = id;
    let descriptor = match call(PROG_GET_FD_BY_ID, &mut attributes) {
        Ok(descriptor) => descriptor,
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(None),
        Err(error) => return Err(error),
    };
    // SAFETY: a descriptor that the call has just made for us.
    let program = unsafe { OwnedFd::from_raw_fd(descriptor as i32) };
    let mut info = [0u32; 64];
    let mut attributes = Attributes::default();
    attributes.0[0] = program.as_raw_fd() as u32;
    attributes.0[1] = size_of_val(&info) as u32;
    attributes.pointer(2, &mut info);
    call(OBJ_GET_INFO, &mut attributes)?;
    let bytes: Vec<u8> = info.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let name = CStr::from_bytes_until_nul(&bytes[NAME]).map_err(io::Error::other)?;
    Ok(Some(name.to_string_lossy().into_owned()))
}
