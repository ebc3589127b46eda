//! Packets put on the loopback device of a network namespace, whole as they are.

use std::{
    io, mem,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

use anyhow::{Context, Result, ensure};
use xtask::topology::Namespace;

/// The loopback device's number, in every namespace.
const INDEX: libc::c_int = 1;

/// A namespace, and a socket that sends on its loopback device from wherever we are.
#[derive(Debug)]
pub struct Loopback {
    socket: OwnedFd,
    pub namespace: Namespace,
}

impl Loopback {
    pub fn open(namespace: Namespace) -> Result<Self> {
        let socket = namespace
            .enter(open_socket)?
            .context("a packet socket on the loopback device")?;
        Ok(Self { socket, namespace })
    }

    /// Sends a frame so many times. Who sends receives as well, in the softirq that ends each sending: when this returns, all of them have met the
    /// namespace's hooks.
    ///
    /// # Errors
    /// Not all of them were sent; the kernel takes 1024 at most.
    pub fn send(&self, frame: &[u8], count: usize) -> Result<()> {
        let mut piece = libc::iovec {
            iov_base: frame.as_ptr().cast_mut().cast(),
            iov_len: frame.len(),
        };
        // SAFETY: msghdr is plain data; all zeroes is a valid value.
        let mut header: libc::msghdr = unsafe { mem::zeroed() };
        header.msg_iov = &raw mut piece;
        header.msg_iovlen = 1;
        let message = libc::mmsghdr {
            msg_hdr: header,
            msg_len: 0,
        };
        let mut messages = vec![message; count];
        // SAFETY: the frame, which the kernel only reads, and the piece that describes it outlive the call; the vector's length is the number of messages.
        let sent = unsafe {
            libc::sendmmsg(
                self.socket.as_raw_fd(),
                messages.as_mut_ptr(),
                messages.len() as libc::c_uint,
                0,
            )
        };
        if sent < 0 {
            return Err(io::Error::last_os_error()).context("send on the loopback device");
        }
        ensure!(
            usize::try_from(sent) == Ok(count),
            "{sent} of {count} packets were sent on the loopback device"
        );
        Ok(())
    }
}

/// A packet behind an Ethernet header as the loopback device has it, without addresses.
pub fn frame(packet: &[u8]) -> Vec<u8> {
    let protocol = match packet.first().map(|byte| byte >> 4) {
        Some(6) => libc::ETH_P_IPV6,
        _ => libc::ETH_P_IP,
    };
    let mut frame = vec![0; 12];
    frame.extend((protocol as u16).to_be_bytes());
    frame.extend(packet);
    frame
}

fn open_socket() -> io::Result<OwnedFd> {
    // Protocol 0: it sends only, nothing is ever queued for reading.
    // SAFETY: takes no pointers.
    let descriptor =
        unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    if descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it has just been opened, and nobody else has it.
    let socket = unsafe { OwnedFd::from_raw_fd(descriptor) };
    // SAFETY: sockaddr_ll is plain data; all zeroes is a valid value.
    let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_ifindex = INDEX;
    // SAFETY: the pointer is to `address`, which outlives the call, with its own length.
    let bound = unsafe {
        libc::bind(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            mem::size_of::<libc::sockaddr_ll>() as libc::socklen_t,
        )
    };
    if bound < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(socket)
}
