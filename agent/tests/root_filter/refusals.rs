//! A kernel that has no memory left: a seccomp filter on a thread of the test's own hands us its writes to maps, one by one and before they happen (seccomp_unotify(2)).

use std::{
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
    sync::mpsc,
    thread,
};

const MAP_UPDATE_ELEM: u32 = 2;

/// Of <linux/seccomp.h>.
const SECCOMP_SET_MODE_FILTER: libc::c_ulong = 1;
const SECCOMP_FILTER_FLAG_NEW_LISTENER: libc::c_ulong = 1 << 3;
const RET_USER_NOTIF: u32 = 0x7fc0_0000;
const RET_ALLOW: u32 = 0x7fff_0000;
const NOTIF_RECV: libc::c_ulong = 0xc050_2100;
const NOTIF_SEND: libc::c_ulong = 0xc018_2101;
const FLAG_CONTINUE: u32 = 1;

/// `struct seccomp_notif`.
#[repr(C)]
#[derive(Default)]
struct Notice {
    id: u64,
    rest: [u64; 9],
}

const _: () = assert!(size_of::<Notice>() == 80);

/// `struct seccomp_notif_resp`.
#[repr(C)]
struct Response {
    id: u64,
    value: i64,
    error: i32,
    flags: u32,
}

const _: () = assert!(size_of::<Response>() == 24);

/// Does something on a thread whose writes to maps get ENOMEM as asked, given their number from 1 on. Says how many there were, too.
pub fn with_writes_refused<T: Send>(
    is_refused: impl Fn(usize) -> bool,
    something: impl FnOnce() -> T + Send,
) -> (T, usize) {
    let (sender, listener) = mpsc::channel();
    thread::scope(|scope| {
        let thread = scope.spawn(move || {
            sender.send(listen().expect("seccomp (root?)")).expect("us");
            something()
        });
        let mut writes = 0;
        // Else the thread has panicked, and says so itself.
        if let Ok(listener) = listener.recv() {
            while let Some(notice) = receive(&listener) {
                writes += 1;
                respond(&listener, &notice, is_refused(writes));
            }
        }
        (thread.join().expect("the thread"), writes)
    })
}

/// From here on writes to maps of the calling thread wait for an answer.
fn listen() -> io::Result<OwnedFd> {
    const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    const RETURN: u32 = libc::BPF_RET | libc::BPF_K;
    const IS: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    /// In `struct seccomp_data`: the lower half of the first argument.
    const COMMAND: u32 = if cfg!(target_endian = "big") { 20 } else { 16 };
    let instruction = |code: u32, otherwise, k| libc::sock_filter {
        code: code as u16,
        jt: 0,
        jf: otherwise,
        k,
    };
    let mut filter = [
        instruction(LOAD, 0, 0),
        instruction(IS, 3, libc::SYS_bpf as u32),
        instruction(LOAD, 0, COMMAND),
        instruction(IS, 1, MAP_UPDATE_ELEM),
        instruction(RETURN, 0, RET_USER_NOTIF),
        instruction(RETURN, 0, RET_ALLOW),
    ];
    let program = libc::sock_fprog {
        len: filter.len() as libc::c_ushort,
        filter: filter.as_mut_ptr(),
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
    // SAFETY: a descriptor that the call has just made for us.
    Ok(unsafe { OwnedFd::from_raw_fd(listener as RawFd) })
}

/// The next write; `None` when the thread has ended.
fn receive(listener: &OwnedFd) -> Option<Notice> {
    let mut poll = libc::pollfd {
        fd: listener.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one structure of ours, which lives through the call.
    while unsafe { libc::poll(&raw mut poll, 1, -1) } < 0 {}
    if poll.revents & libc::POLLIN == 0 {
        return None;
    }
    let mut notice = Notice::default();
    // SAFETY: a zeroed structure of the size that the kernel expects; it lives through the call.
    let received = unsafe { libc::ioctl(listener.as_raw_fd(), NOTIF_RECV, &raw mut notice) };
    (received == 0).then_some(notice)
}

fn respond(listener: &OwnedFd, notice: &Notice, refused: bool) {
    let (error, flags) = match refused {
        true => (-libc::ENOMEM, 0),
        false => (0, FLAG_CONTINUE),
    };
    let response = Response {
        id: notice.id,
        value: 0,
        error,
        flags,
    };
    // SAFETY: a structure of the size that the kernel expects; it lives through the call.
    let sent = unsafe { libc::ioctl(listener.as_raw_fd(), NOTIF_SEND, &raw const response) };
    assert_eq!(sent, 0, "{}", io::Error::last_os_error());
}
