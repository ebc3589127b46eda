//! Packets that the agent itself puts into the tunnel: pongs of TSMP pings, and rejects.

use std::{ffi::CString, io, mem, os::fd::AsRawFd};

use socket2::{Domain, Protocol, Socket, Type};
use tracing::debug;

/// Writes an IP packet to the device, with the agent's mark, by which the filter tells it from what the host sends.
pub fn send(device: &str, mark: u32, packet: &[u8]) {
    if let Err(error) = try_send(device, mark, packet) {
        debug!(%error, "cannot answer a packet in the tunnel");
    }
}

pub fn try_send(device: &str, mark: u32, packet: &[u8]) -> io::Result<()> {
    let protocol: u16 = match packet.first().map(|byte| byte >> 4) {
        Some(4) => libc::ETH_P_IP as u16,
        Some(6) => libc::ETH_P_IPV6 as u16,
        _ => return Err(io::ErrorKind::InvalidInput.into()),
    };
    let name = CString::new(device)?;
    // SAFETY: `name` is a NUL-terminated string that outlives the call.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    if index == 0 {
        return Err(io::Error::last_os_error());
    }
    // Protocol 0: it sends only, nothing is ever queued for reading.
    let socket = Socket::new(Domain::PACKET, Type::DGRAM, Some(Protocol::from(0)))?;
    socket.set_mark(mark)?;
    // SAFETY: sockaddr_ll is plain data; all zeroes is a valid value.
    let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = protocol.to_be();
    address.sll_ifindex = index as i32;
    // SAFETY: the pointers are to `packet` and `address`, which live through the call, with their own lengths.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            packet.as_ptr().cast(),
            packet.len(),
            libc::MSG_DONTWAIT,
            (&raw const address).cast(),
            mem::size_of::<libc::sockaddr_ll>() as libc::socklen_t,
        )
    };
    if sent < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
