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

const LENGTH: usize = CALLS.len() + 3;

/// Loads the call's number, jumps to the end for those of the list, allows all others.
const FILTER: [libc::sock_filter; LENGTH] = {
    let mut filter = [statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0); LENGTH];
    let mut at = 0;
    while at < CALLS.len() {
        filter[at + 1] = libc::sock_filter {
            code: (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16,
            jt: (CALLS.len() - at) as u8,
            jf: 0,
            k: CALLS[at] as u32,
        };
        at += 1;
    }
    filter[LENGTH - 2] = statement(libc::BPF_RET | libc::BPF_K, RET_ALLOW);
    filter[LENGTH - 1] = statement(libc::BPF_RET | libc::BPF_K, RET_USER_NOTIF);
    filter
};

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
