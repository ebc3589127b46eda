//! The filter and its listener. All `unsafe` here is system calls with structures of <linux/seccomp.h>.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd, RawFd},
};

/// Where the watched program holds its listener, below the usual limit of 1024 descriptors.
pub const LISTENER: RawFd = 200;

const SECCOMP_SET_MODE_FILTER: libc::c_ulong = 1;
const SECCOMP_FILTER_FLAG_NEW_LISTENER: libc::c_ulong = 1 << 3;
const RET_USER_NOTIF: u32 = 0x7fc0_0000;
const RET_ALLOW: u32 = 0x7fff_0000;
const NOTIF_RECV: libc::c_ulong = 0xc050_2100;
const NOTIF_SEND: libc::c_ulong = 0xc018_2101;
const FLAG_CONTINUE: u32 = 1;

/// How long one wait for a call lasts before the program is looked at again, in milliseconds.
const POLL: i32 = 200;

/// What may change something outside the program: each is looked at before it is counted.
pub const CALLS: &[libc::c_long] = &[
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_bpf,
    libc::SYS_ioctl,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_mkdirat,
    libc::SYS_unlinkat,
    libc::SYS_renameat2,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_mkdir,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_rmdir,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_unlink,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_rename,
];

/// What opens files, and which argument says for what: only those for writing are looked at.
const OPENS: &[(libc::c_long, u32)] = &[
    (libc::SYS_openat, 2),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_open, 1),
];

/// `struct seccomp_notif`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct Notice {
    id: u64,
    pub thread: u32,
    flags: u32,
    pub number: i32,
    arch: u32,
    instruction: u64,
    pub arguments: [u64; 6],
}

const _: () = assert!(size_of::<Notice>() == 80);

/// `struct seccomp_notif_resp`.
#[repr(C)]
#[derive(Default)]
struct Response {
    id: u64,
    value: i64,
    error: i32,
    flags: u32,
}

const _: () = assert!(size_of::<Response>() == 24);

const fn statement(code: u32, k: u32) -> libc::sock_filter {
    libc::sock_filter {
        code: code as u16,
        jt: 0,
        jf: 0,
        k,
    }
}

const fn jump(condition: u32, k: u32, jt: u8, jf: u8) -> libc::sock_filter {
    let code = (libc::BPF_JMP | condition | libc::BPF_K) as u16;
    libc::sock_filter { code, jt, jf, k }
}

/// Instructions for each of [`OPENS`].
const OPEN: usize = 4;
const LENGTH: usize = 1 + CALLS.len() + OPEN * OPENS.len() + 2;

/// Loads the call's number, jumps to the end for those of the list and for opening files to write, allows all others.
const FILTER: [libc::sock_filter; LENGTH] = {
    const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    const RETURN: u32 = libc::BPF_RET | libc::BPF_K;
    const LAST: usize = LENGTH - 1;
    let mut filter = [statement(LOAD, 0); LENGTH];
    let mut at = 1;
    while at <= CALLS.len() {
        let found = (LAST - at - 1) as u8;
        filter[at] = jump(libc::BPF_JEQ, CALLS[at - 1] as u32, found, 0);
        at += 1;
    }
    let mut open = 0;
    while open < OPENS.len() {
        let (call, flags) = OPENS[open];
        filter[at] = jump(libc::BPF_JEQ, call as u32, 0, OPEN as u8 - 1);
        filter[at + 1] = statement(LOAD, argument(flags));
        let writes = (libc::O_WRONLY | libc::O_RDWR) as u32;
        filter[at + 2] = jump(libc::BPF_JSET, writes, (LAST - at - 3) as u8, 0);
        filter[at + 3] = statement(RETURN, RET_ALLOW);
        at += OPEN;
        open += 1;
    }
    filter[LAST - 1] = statement(RETURN, RET_ALLOW);
    filter[LAST] = statement(RETURN, RET_USER_NOTIF);
    filter
};

/// Where the lower half of an argument is in a `struct seccomp_data`.
const fn argument(number: u32) -> u32 {
    16 + 8 * number + if cfg!(target_endian = "big") { 4 } else { 0 }
}

/// In the child, between fork and exec: its listener stays open over the exec, at a number that the parent knows.
pub fn install() -> io::Result<()> {
    let filter = FILTER;
    let program = libc::sock_fprog {
        len: LENGTH as libc::c_ushort,
        filter: filter.as_ptr().cast_mut(),
    };
    // SAFETY: the program and its instructions live through the call, which only reads them.
    let listener = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            SECCOMP_SET_MODE_FILTER,
            SECCOMP_FILTER_FLAG_NEW_LISTENER,
            &raw const program,
        )
    };
    if listener < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: no pointers. The copy has no close-on-exec flag, unlike the original.
    if unsafe { libc::dup2(listener as RawFd, LISTENER) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// The next call of the program; `None` when it has ended.
pub fn receive(listener: &OwnedFd) -> Option<Notice> {
    loop {
        let mut poll = libc::pollfd {
            fd: listener.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one structure of ours, which lives through the call.
        let ready = unsafe { libc::poll(&raw mut poll, 1, POLL) };
        if ready > 0 && poll.revents & libc::POLLIN == 0 {
            return None;
        }
        if ready <= 0 {
            continue;
        }
        let mut notice = Notice::default();
        // SAFETY: a zeroed structure of the size that the kernel expects; it lives through the call.
        let received = unsafe { libc::ioctl(listener.as_raw_fd(), NOTIF_RECV, &raw mut notice) };
        // The thread may have been killed since: then another call, or the end, comes next.
        if received == 0 {
            return Some(notice);
        }
    }
}

pub fn go_on(listener: &OwnedFd, notice: &Notice) {
    respond(listener, notice, 0, FLAG_CONTINUE);
}

pub fn fail(listener: &OwnedFd, notice: &Notice, errno: i32) {
    respond(listener, notice, -errno, 0);
}

fn respond(listener: &OwnedFd, notice: &Notice, error: i32, flags: u32) {
    let response = Response {
        id: notice.id,
        value: 0,
        error,
        flags,
    };
    // SAFETY: a structure of the size that the kernel expects; it lives through the call. A thread that is gone is no matter.
    unsafe { libc::ioctl(listener.as_raw_fd(), NOTIF_SEND, &raw const response) };
}
