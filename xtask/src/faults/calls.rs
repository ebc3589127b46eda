//! What a system call of the watched program would change, and how the kernel can be made to refuse it.

use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
};

use super::{seccomp::Notice, wireguard::DeviceSet};

/// Longest part of a message or path that is looked at.
const HEAD: usize = 256;
/// Longest message to WireGuard; the senders' buffers are smaller.
const MESSAGE: usize = 64 * 1024;
/// `struct nlmsghdr`.
const NETLINK_HEADER: usize = 16;
/// Generic netlink's controller, which is only asked.
const GENERIC_CONTROLLER: u16 = 16;
/// No message has it: rtnetlink answers EOPNOTSUPP, generic netlink ENOENT.
const NO_TYPE: u16 = 0x7ff0;

/// Files that are the kernel's state.
const SETTINGS: &str = "/proc/sys/";

/// The commands of bpf(2) that make or change something.
const BPF_CHANGES: &[(u64, &str)] = &[
    (0, "MAP_CREATE"),
    (2, "MAP_UPDATE_ELEM"),
    (3, "MAP_DELETE_ELEM"),
    (5, "PROG_LOAD"),
    (6, "OBJ_PIN"),
    (8, "PROG_ATTACH"),
    (9, "PROG_DETACH"),
    (18, "BTF_LOAD"),
    (22, "MAP_FREEZE"),
    (26, "MAP_UPDATE_BATCH"),
    (28, "LINK_CREATE"),
    (29, "LINK_UPDATE"),
    (34, "LINK_DETACH"),
];

/// rtnetlink's types that change something.
const ROUTE_CHANGES: &[(u16, &str)] = &[
    (16, "RTM_NEWLINK"),
    (17, "RTM_DELLINK"),
    (19, "RTM_SETLINK"),
    (20, "RTM_NEWADDR"),
    (21, "RTM_DELADDR"),
    (24, "RTM_NEWROUTE"),
    (25, "RTM_DELROUTE"),
    (28, "RTM_NEWNEIGH"),
    (32, "RTM_NEWRULE"),
    (33, "RTM_DELRULE"),
    (36, "RTM_NEWQDISC"),
    (37, "RTM_DELQDISC"),
    (44, "RTM_NEWTFILTER"),
    (45, "RTM_DELTFILTER"),
];

/// A program whose memory and descriptors we may look at.
pub struct Program {
    pid: libc::pid_t,
    handle: OwnedFd,
}

impl Program {
    pub fn open(pid: u32) -> io::Result<Self> {
        let pid = libc::pid_t::try_from(pid).map_err(io::Error::other)?;
        // SAFETY: no pointers.
        let handle = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        Ok(Self {
            pid,
            handle: owned(handle)?,
        })
    }

    /// A copy of one of its descriptors.
    pub fn descriptor(&self, number: RawFd) -> io::Result<OwnedFd> {
        // SAFETY: no pointers.
        let copy = unsafe {
            libc::syscall(
                libc::SYS_pidfd_getfd,
                self.handle.as_raw_fd(),
                number,
                0 as libc::c_uint,
            )
        };
        owned(copy)
    }

    pub fn kill(&self) {
        // SAFETY: no pointers; the handle is this very program's.
        unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                self.handle.as_raw_fd(),
                libc::SIGKILL,
                std::ptr::null::<libc::siginfo_t>(),
                0 as libc::c_uint,
            )
        };
    }

    fn read(&self, address: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        let local = libc::iovec {
            iov_base: bytes.as_mut_ptr().cast(),
            iov_len: length,
        };
        let remote = libc::iovec {
            iov_base: address as *mut libc::c_void,
            iov_len: length,
        };
        // SAFETY: the local buffer is ours and lives through the call; the kernel checks the other process's addresses.
        let read = unsafe {
            libc::process_vm_readv(self.pid, &raw const local, 1, &raw const remote, 1, 0)
        };
        bytes.truncate(usize::try_from(read).unwrap_or(0));
        bytes
    }

    fn write(&self, address: u64, bytes: &[u8]) -> bool {
        let local = libc::iovec {
            iov_base: bytes.as_ptr().cast_mut().cast(),
            iov_len: bytes.len(),
        };
        let remote = libc::iovec {
            iov_base: address as *mut libc::c_void,
            iov_len: bytes.len(),
        };
        // SAFETY: the kernel only reads the local buffer, which lives through the call, and checks the other addresses.
        let written = unsafe {
            libc::process_vm_writev(self.pid, &raw const local, 1, &raw const remote, 1, 0)
        };
        usize::try_from(written) == Ok(bytes.len())
    }

    /// A terminated string; reading stops at the end of a page that has none after it.
    fn text(&self, address: u64) -> String {
        let page = 4096 - (address % 4096) as usize;
        let mut bytes = self.read(address, page.min(HEAD));
        if !bytes.contains(&0) {
            bytes.extend(self.read(address + bytes.len() as u64, HEAD));
        }
        let end = bytes
            .iter()
            .position(|byte| *byte == 0)
            .unwrap_or(bytes.len());
        String::from_utf8_lossy(&bytes[..end]).into_owned()
    }
}

fn owned(result: libc::c_long) -> io::Result<OwnedFd> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a descriptor that a system call has just made for us.
    Ok(unsafe { OwnedFd::from_raw_fd(result as RawFd) })
}

/// A call that would change something.
pub struct Call {
    pub name: String,
    /// What it tells WireGuard.
    pub wireguard: Option<DeviceSet>,
    message: Option<Message>,
}

/// A netlink message in the program's memory.
#[derive(Clone, Copy)]
struct Message {
    address: u64,
    kind: u16,
    generic: bool,
}

impl Call {
    /// `None` for one that changes nothing.
    pub fn of(program: &Program, notice: &Notice) -> Option<Self> {
        let [first, second, ..] = notice.arguments;
        let number = libc::c_long::from(notice.number);
        let plain = |name: String| {
            Some(Self {
                name,
                wireguard: None,
                message: None,
            })
        };
        let path = |what: &str, at: u64| plain(format!("{what} {}", program.text(at)));
        // Other files that are opened for writing are the program's own.
        let setting = |at: u64| {
            let file = program.text(at);
            file.starts_with(SETTINGS)
                .then(|| plain(format!("write {file}")))?
        };
        match number {
            libc::SYS_sendto => netlink(program, first, second),
            libc::SYS_sendmsg => netlink(program, first, first_buffer(program, second)?),
            libc::SYS_bpf => {
                let (_, name) = BPF_CHANGES.iter().find(|(command, _)| *command == first)?;
                plain(format!("bpf {name}"))
            }
            libc::SYS_ioctl if second as libc::Ioctl == libc::TUNSETIFF => {
                plain("TUNSETIFF".to_owned())
            }
            libc::SYS_ioctl => None,
            libc::SYS_mount => path("mount", second),
            libc::SYS_umount2 => path("umount", first),
            libc::SYS_mkdirat => path("mkdir", second),
            libc::SYS_unlinkat => path("unlink", second),
            libc::SYS_renameat2 => path("rename", second),
            libc::SYS_openat => setting(second),
            #[cfg(target_arch = "x86_64")]
            libc::SYS_open => setting(first),
            #[cfg(target_arch = "x86_64")]
            libc::SYS_mkdir => path("mkdir", first),
            #[cfg(target_arch = "x86_64")]
            libc::SYS_rmdir | libc::SYS_unlink => path("unlink", first),
            #[cfg(target_arch = "x86_64")]
            libc::SYS_rename => path("rename", first),
            _ => None,
        }
    }

    /// How the kernel refuses it, if it is no message. An agent that may not unmount what another one has mounted leaves it, and says that all is well.
    pub fn refusal(&self) -> i32 {
        match self.name.starts_with("umount ") {
            true => libc::ENOMEM,
            false => libc::EPERM,
        }
    }

    pub fn is_message(&self) -> bool {
        self.message.is_some()
    }

    pub fn is_wireguards(&self) -> bool {
        self.message.is_some_and(|message| message.generic)
    }

    /// Makes a netlink message one that the kernel refuses. False if it is no message.
    pub fn spoil(&self, program: &Program) -> bool {
        let Some(message) = self.message else {
            return false;
        };
        let prefixed = matches!(message.kind, 20 | 21 | 24 | 25 | 32 | 33);
        if prefixed && !message.generic {
            // The length of a prefix, in the second byte of all three structures: none is that long, EINVAL.
            return program.write(message.address + NETLINK_HEADER as u64 + 1, &[0xff]);
        }
        program.write(message.address + 4, &NO_TYPE.to_ne_bytes())
    }
}

/// The address of the first buffer of a `struct msghdr`.
fn first_buffer(program: &Program, header: u64) -> Option<u64> {
    let pointer = |address: u64| {
        let bytes = program.read(address, 8);
        Some(u64::from_ne_bytes(bytes.try_into().ok()?))
    };
    // After the name's pointer and length.
    pointer(pointer(header + 16)?)
}

fn netlink(program: &Program, descriptor: u64, address: u64) -> Option<Call> {
    let socket = program.descriptor(RawFd::try_from(descriptor).ok()?).ok()?;
    if option(&socket, libc::SO_DOMAIN)? != libc::AF_NETLINK {
        return None;
    }
    let head = program.read(address, NETLINK_HEADER + 4);
    let kind = u16::from_ne_bytes(head.get(4..6)?.try_into().ok()?);
    let message = |generic| {
        Some(Message {
            address,
            kind,
            generic,
        })
    };
    match option(&socket, libc::SO_PROTOCOL)? {
        libc::NETLINK_ROUTE => {
            let (_, name) = ROUTE_CHANGES.iter().find(|(change, _)| *change == kind)?;
            Some(Call {
                name: (*name).to_owned(),
                wireguard: None,
                message: message(false),
            })
        }
        // WireGuard's commands: 0 asks, 1 sets.
        libc::NETLINK_GENERIC if kind != GENERIC_CONTROLLER && head.get(16) == Some(&1) => {
            let length = u32::from_ne_bytes(*head.first_chunk()?) as usize;
            Some(Call {
                name: "WG_CMD_SET_DEVICE".to_owned(),
                wireguard: DeviceSet::parse(&program.read(address, length.min(MESSAGE))),
                message: message(true),
            })
        }
        _ => None,
    }
}

fn option(socket: &OwnedFd, name: libc::c_int) -> Option<libc::c_int> {
    let mut value: libc::c_int = 0;
    let mut length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: both pointers are to variables that live through the call.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            name,
            (&raw mut value).cast(),
            &raw mut length,
        )
    };
    (result == 0).then_some(value)
}
