//! Takes an element out of an array of maps, which aya only puts there. The kernel frees the map that was in it.

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd},
};

const BPF_MAP_DELETE_ELEM: libc::c_int = 3;

/// The members of `union bpf_attr` for this command.
#[repr(C)]
struct Delete {
    map: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

const _: () = assert!(size_of::<Delete>() == 32);

/// Nothing there is success.
pub(super) fn element(map: BorrowedFd<'_>, index: u32) -> io::Result<()> {
    let mut delete = Delete {
        map: map.as_raw_fd() as u32,
        padding: 0,
        key: &raw const index as u64,
        value: 0,
        flags: 0,
    };
    // SAFETY: `delete` and the key that it points to, of the four bytes that keys of arrays have, live through the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_MAP_DELETE_ELEM,
            &raw mut delete,
            size_of::<Delete>(),
        )
    };
    match io::Error::last_os_error() {
        error if result < 0 && error.raw_os_error() != Some(libc::ENOENT) => Err(error),
        _ => Ok(()),
    }
}
