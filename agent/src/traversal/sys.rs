//! The system calls that the standard library doesn't have: socket filters, packet batches, interface addresses.
//!
//! The only file of `traversal` with `unsafe`.

use std::{
    ffi::c_int,
    io, mem,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsRawFd, BorrowedFd},
    ptr,
};

use bytes::{Bytes, BytesMut};

/// One instruction of a classic BPF program.
pub(super) type Instruction = libc::sock_filter;

/// Most packets moved by one system call.
pub(super) const BATCH: usize = 64;

/// Lets only datagrams through that `program` accepts.
pub(super) fn attach_filter(socket: BorrowedFd<'_>, program: &[Instruction]) -> io::Result<()> {
    let length = u16::try_from(program.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let program = libc::sock_fprog {
        len: length,
        // The kernel only reads it.
        filter: program.as_ptr().cast_mut(),
    };
    set_option(socket, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)
}

/// Lets the kernel fill in the UDP checksum of raw IPv6 datagrams.
pub(super) fn set_checksum_offset(socket: BorrowedFd<'_>, offset: c_int) -> io::Result<()> {
    set_option(socket, libc::IPPROTO_IPV6, libc::IPV6_CHECKSUM, &offset)
}

/// Received datagrams say to which address they were sent.
pub(super) fn set_packet_info(socket: BorrowedFd<'_>) -> io::Result<()> {
    set_option::<c_int>(socket, libc::IPPROTO_IP, libc::IP_PKTINFO, &1)
}

/// Buffers of `bytes` in both directions, beyond what the host allows everybody.
pub(crate) fn force_buffers(socket: BorrowedFd<'_>, bytes: c_int) -> io::Result<()> {
    let force = |name| set_option(socket, libc::SOL_SOCKET, name, &bytes);
    force(libc::SO_RCVBUFFORCE).and(force(libc::SO_SNDBUFFORCE))
}

/// Packets are sent with the IP header that they bring.
pub(super) fn set_header_included_v6(socket: BorrowedFd<'_>) -> io::Result<()> {
    set_option::<c_int>(socket, libc::IPPROTO_IPV6, libc::IPV6_HDRINCL, &1)
}

fn set_option<T>(socket: BorrowedFd<'_>, level: c_int, name: c_int, value: &T) -> io::Result<()> {
    // SAFETY: the descriptor is open for the borrow's lifetime; pointer and length describe `value`, which the
    // kernel reads during the call only (the filter program behind `sock_fprog` lives in the caller).
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            ptr::from_ref(value).cast(),
            mem::size_of::<T>() as libc::socklen_t,
        )
    };
    check(result as isize).map(|_| ())
}

/// Sends one raw IPv4 payload from the local address `source`.
pub(super) fn send_from(
    socket: BorrowedFd<'_>,
    source: Ipv4Addr,
    to: Ipv4Addr,
    payload: &[u8],
) -> io::Result<()> {
    let mut name = sockaddr_v4(to, 0);
    let mut vector = io_vector(payload);
    let mut control = Control::default();
    let info = libc::in_pktinfo {
        ipi_ifindex: 0,
        ipi_spec_dst: in_addr(source),
        ipi_addr: in_addr(Ipv4Addr::UNSPECIFIED),
    };
    let mut header = message_header(&mut name, std::slice::from_mut(&mut vector));
    header.msg_control = control.0.as_mut_ptr().cast();
    header.msg_controllen = CONTROL_LEN;
    // SAFETY: the control buffer has CMSG_SPACE for one in_pktinfo and is aligned for a cmsghdr, so the first
    // header and its data lie inside it.
    unsafe {
        let message = libc::CMSG_FIRSTHDR(&raw const header);
        (*message).cmsg_level = libc::IPPROTO_IP;
        (*message).cmsg_type = libc::IP_PKTINFO;
        (*message).cmsg_len = libc::CMSG_LEN(mem::size_of::<libc::in_pktinfo>() as u32) as usize;
        ptr::write_unaligned(libc::CMSG_DATA(message).cast(), info);
    }
    // SAFETY: every pointer in `header` points to a local that outlives the call.
    let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const header, libc::MSG_DONTWAIT) };
    check(sent).map(|_| ())
}

/// Sends packets, each a header and a payload, to one address. Returns how many went out before the first
/// error; an error with the very first is returned.
pub(super) fn send_batch(
    socket: BorrowedFd<'_>,
    to: IpAddr,
    packets: &[(&[u8], &[u8])],
) -> io::Result<usize> {
    let packets = &packets[..packets.len().min(BATCH)];
    let mut name4 = sockaddr_v4(Ipv4Addr::LOCALHOST, 0);
    let mut name6 = sockaddr_v6(Ipv6Addr::LOCALHOST);
    match to {
        IpAddr::V4(to) => name4.sin_addr = in_addr(to),
        IpAddr::V6(to) => name6.sin6_addr.s6_addr = to.octets(),
    }
    let mut vectors: Vec<[libc::iovec; 2]> = packets
        .iter()
        .map(|(header, payload)| [io_vector(header), io_vector(payload)])
        .collect();
    let messages = vectors.iter_mut().map(|vector| {
        let msg_hdr = match to {
            IpAddr::V4(_) => message_header(&mut name4, vector),
            IpAddr::V6(_) => message_header(&mut name6, vector),
        };
        libc::mmsghdr {
            msg_hdr,
            msg_len: 0,
        }
    });
    let mut messages: Vec<libc::mmsghdr> = messages.collect();
    // SAFETY: names, vectors and the packets they describe outlive the call, the vector length is the number
    // of messages.
    let sent = unsafe {
        libc::sendmmsg(
            socket.as_raw_fd(),
            messages.as_mut_ptr(),
            messages.len() as libc::c_uint,
            libc::MSG_DONTWAIT,
        )
    };
    check(sent as isize)
}

/// A datagram and where it was sent from and to.
#[derive(Debug)]
pub(super) struct Received {
    pub from: SocketAddr,
    pub to: Ipv4Addr,
    pub bytes: Bytes,
}

/// Buffers for [`ReceiveBatch::receive`]. Pages of slots that no large datagram has touched cost nothing.
pub(super) struct ReceiveBatch {
    slots: Vec<u8>,
    names: Vec<libc::sockaddr_in>,
    controls: Vec<Control>,
}

/// Room for the largest UDP payload.
const SLOT: usize = 65_536;

impl ReceiveBatch {
    pub fn new() -> Self {
        Self {
            slots: vec![0; SLOT * BATCH],
            names: vec![sockaddr_v4(Ipv4Addr::UNSPECIFIED, 0); BATCH],
            controls: vec![Control::default(); BATCH],
        }
    }

    /// Takes what waits, without waiting. All payloads of one call share one allocation.
    pub fn receive(
        &mut self,
        socket: BorrowedFd<'_>,
        out: &mut Vec<Received>,
    ) -> io::Result<usize> {
        let mut vectors: Vec<libc::iovec> =
            self.slots.chunks_mut(SLOT).map(io_vector_mut).collect();
        let mut messages: Vec<libc::mmsghdr> = Vec::with_capacity(BATCH);
        let slots = vectors
            .iter_mut()
            .zip(&mut self.names)
            .zip(&mut self.controls);
        for ((vector, name), control) in slots {
            let mut msg_hdr = message_header(name, std::slice::from_mut(vector));
            msg_hdr.msg_control = control.0.as_mut_ptr().cast();
            msg_hdr.msg_controllen = CONTROL_LEN;
            messages.push(libc::mmsghdr {
                msg_hdr,
                msg_len: 0,
            });
        }
        // SAFETY: every message points to its own slot, name and control buffer, all of which outlive the call
        // and have the lengths given.
        let count = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                messages.as_mut_ptr(),
                BATCH as libc::c_uint,
                libc::MSG_DONTWAIT,
                ptr::null_mut(),
            )
        };
        let count = check(count as isize)?;
        let messages = &messages[..count];
        let total = messages
            .iter()
            .map(|message| message.msg_len as usize)
            .sum();
        let mut arena = BytesMut::with_capacity(total);
        for (index, message) in messages.iter().enumerate() {
            let Some(to) = destination(&message.msg_hdr) else {
                continue;
            };
            let start = index * SLOT;
            arena.extend_from_slice(&self.slots[start..start + message.msg_len as usize]);
            out.push(Received {
                from: socket_address(&self.names[index]),
                to,
                bytes: arena.split().freeze(),
            });
        }
        Ok(count)
    }
}

/// The address that a datagram was sent to, from its IP_PKTINFO.
fn destination(header: &libc::msghdr) -> Option<Ipv4Addr> {
    // SAFETY: `header` was filled by recvmmsg; its control buffer holds `msg_controllen` valid bytes, and the
    // CMSG functions stay inside them.
    unsafe {
        let mut message = libc::CMSG_FIRSTHDR(header);
        while !message.is_null() {
            if (*message).cmsg_level == libc::IPPROTO_IP && (*message).cmsg_type == libc::IP_PKTINFO
            {
                let info: libc::in_pktinfo = ptr::read_unaligned(libc::CMSG_DATA(message).cast());
                return Some(Ipv4Addr::from(info.ipi_addr.s_addr.to_ne_bytes()));
            }
            message = libc::CMSG_NXTHDR(header, message);
        }
    }
    None
}

/// An address of an interface of this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct InterfaceAddress {
    pub address: IpAddr,
    pub flags: u32,
    /// Length of the network's prefix.
    pub prefix: u8,
}

/// All addresses of all interfaces, with the interface's name.
pub(super) fn interface_addresses() -> io::Result<Vec<(String, InterfaceAddress)>> {
    let mut list = ptr::null_mut();
    // SAFETY: getifaddrs writes a pointer to a list that is ours until freeifaddrs.
    check(unsafe { libc::getifaddrs(&raw mut list) } as isize)?;
    let mut found = Vec::new();
    let mut next = list;
    // SAFETY: the list and everything it points to is valid until freeifaddrs below; `ifa_addr` may be null, and
    // its family says which structure lies behind it.
    unsafe {
        while let Some(entry) = next.as_ref() {
            next = entry.ifa_next;
            let (Some(address), netmask) = (ip_of(entry.ifa_addr), ip_of(entry.ifa_netmask)) else {
                continue;
            };
            let name = std::ffi::CStr::from_ptr(entry.ifa_name);
            let prefix = match netmask {
                Some(IpAddr::V4(mask)) => u32::from(mask).leading_ones() as u8,
                Some(IpAddr::V6(mask)) => u128::from(mask).leading_ones() as u8,
                None => 0,
            };
            found.push((
                name.to_string_lossy().into_owned(),
                InterfaceAddress {
                    address,
                    flags: entry.ifa_flags,
                    prefix,
                },
            ));
        }
        libc::freeifaddrs(list);
    }
    Ok(found)
}

/// # Safety
/// `address` is null or points to a socket address of its family's size.
unsafe fn ip_of(address: *const libc::sockaddr) -> Option<IpAddr> {
    // SAFETY: by the contract above; the unaligned reads need no alignment.
    unsafe {
        match c_int::from(address.as_ref()?.sa_family) {
            libc::AF_INET => {
                let address: libc::sockaddr_in = ptr::read_unaligned(address.cast());
                Some(IpAddr::V4(address.sin_addr.s_addr.to_ne_bytes().into()))
            }
            libc::AF_INET6 => {
                let address: libc::sockaddr_in6 = ptr::read_unaligned(address.cast());
                Some(IpAddr::V6(address.sin6_addr.s6_addr.into()))
            }
            _ => None,
        }
    }
}

/// Undoes `connect` of a datagram socket, so that the next one chooses the source address anew.
pub(super) fn disconnect(socket: BorrowedFd<'_>) -> io::Result<()> {
    let mut name = sockaddr_v4(Ipv4Addr::UNSPECIFIED, 0);
    name.sin_family = libc::AF_UNSPEC as libc::sa_family_t;
    // SAFETY: pointer and length describe `name`.
    let result = unsafe {
        libc::connect(
            socket.as_raw_fd(),
            ptr::from_ref(&name).cast(),
            mem::size_of_val(&name) as libc::socklen_t,
        )
    };
    check(result as isize).map(|_| ())
}

/// CMSG_SPACE of one in_pktinfo: a header of 16 bytes and 12 bytes of data, rounded up.
const CONTROL_LEN: usize = 32;

#[derive(Clone, Copy, Default)]
#[repr(C, align(8))]
struct Control([u8; CONTROL_LEN]);

fn check(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

fn io_vector(bytes: &[u8]) -> libc::iovec {
    libc::iovec {
        // Used for sending only, where the kernel reads.
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    }
}

fn io_vector_mut(bytes: &mut [u8]) -> libc::iovec {
    libc::iovec {
        iov_base: bytes.as_mut_ptr().cast(),
        iov_len: bytes.len(),
    }
}

fn message_header<N>(name: &mut N, vectors: &mut [libc::iovec]) -> libc::msghdr {
    // SAFETY: msghdr is plain data for which all zeros is valid.
    let mut header: libc::msghdr = unsafe { mem::zeroed() };
    header.msg_name = ptr::from_mut(name).cast();
    header.msg_namelen = mem::size_of::<N>() as libc::socklen_t;
    header.msg_iov = vectors.as_mut_ptr();
    header.msg_iovlen = vectors.len();
    header
}

fn sockaddr_v4(address: Ipv4Addr, port: u16) -> libc::sockaddr_in {
    libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: port.to_be(),
        sin_addr: in_addr(address),
        sin_zero: [0; 8],
    }
}

fn sockaddr_v6(address: Ipv6Addr) -> libc::sockaddr_in6 {
    libc::sockaddr_in6 {
        sin6_family: libc::AF_INET6 as libc::sa_family_t,
        sin6_port: 0,
        sin6_flowinfo: 0,
        sin6_addr: libc::in6_addr {
            s6_addr: address.octets(),
        },
        sin6_scope_id: 0,
    }
}

fn in_addr(address: Ipv4Addr) -> libc::in_addr {
    libc::in_addr {
        s_addr: u32::from_ne_bytes(address.octets()),
    }
}

fn socket_address(name: &libc::sockaddr_in) -> SocketAddr {
    let address = Ipv4Addr::from(name.sin_addr.s_addr.to_ne_bytes());
    SocketAddr::from((address, u16::from_be(name.sin_port)))
}
