//! Batches of datagrams in one system call: recvmmsg(2), sendmmsg(2).

use std::io;
use std::mem::{MaybeUninit, size_of};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd, BorrowedFd};

/// Datagrams of one call, in and out.
pub(super) const BATCH: usize = 64;

/// One received datagram, by the place of its buffer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Received {
    pub length: usize,
    pub from: SocketAddr,
}

/// Reads up to [`BATCH`] datagrams without waiting, one per buffer. `received[n]` belongs to `buffers[n]`;
/// `None` is a datagram that didn't fit or had no address, to be ignored.
pub(super) fn receive<B: AsMut<[u8]>>(
    socket: BorrowedFd<'_>,
    buffers: &mut [B],
    received: &mut Vec<Option<Received>>,
) -> io::Result<()> {
    let count = buffers.len().min(BATCH);
    // SAFETY: all-zero bytes are valid for these C structures.
    let mut headers: [libc::mmsghdr; BATCH] = unsafe { MaybeUninit::zeroed().assume_init() };
    // SAFETY: as above.
    let mut names: [libc::sockaddr_storage; BATCH] = unsafe { MaybeUninit::zeroed().assume_init() };
    // SAFETY: as above.
    let mut slices: [libc::iovec; BATCH] = unsafe { MaybeUninit::zeroed().assume_init() };
    for (n, buffer) in buffers.iter_mut().take(count).enumerate() {
        let buffer = buffer.as_mut();
        slices[n] = libc::iovec {
            iov_base: buffer.as_mut_ptr().cast(),
            iov_len: buffer.len(),
        };
        let header = &mut headers[n].msg_hdr;
        header.msg_name = (&raw mut names[n]).cast();
        header.msg_namelen = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
        header.msg_iov = &raw mut slices[n];
        header.msg_iovlen = 1;
    }
    // SAFETY: `count` headers point to a name, a slice and through it a buffer, all of which outlive the call; the lengths are
    // those of the objects.
    let result = unsafe {
        libc::recvmmsg(
            socket.as_raw_fd(),
            headers.as_mut_ptr(),
            count as libc::c_uint,
            libc::MSG_DONTWAIT,
            std::ptr::null_mut(),
        )
    };
    let got = usize::try_from(result).map_err(|_| io::Error::last_os_error())?;
    received.extend((0..got).map(|n| {
        let whole = headers[n].msg_hdr.msg_flags & libc::MSG_TRUNC == 0;
        address(&names[n]).filter(|_| whole).map(|from| Received {
            length: headers[n].msg_len as usize,
            from,
        })
    }));
    Ok(())
}

/// Sends up to [`BATCH`] datagrams without waiting, and says how many went out (at least one).
pub(super) fn send<'a>(
    socket: BorrowedFd<'_>,
    datagrams: impl ExactSizeIterator<Item = (&'a [u8], SocketAddr)>,
) -> io::Result<usize> {
    let count = datagrams.len().min(BATCH);
    // SAFETY: all-zero bytes are valid for these C structures.
    let mut headers: [libc::mmsghdr; BATCH] = unsafe { MaybeUninit::zeroed().assume_init() };
    // SAFETY: as above.
    let mut names: [libc::sockaddr_storage; BATCH] = unsafe { MaybeUninit::zeroed().assume_init() };
    // SAFETY: as above.
    let mut slices: [libc::iovec; BATCH] = unsafe { MaybeUninit::zeroed().assume_init() };
    for (n, (bytes, to)) in datagrams.take(count).enumerate() {
        slices[n] = libc::iovec {
            iov_base: bytes.as_ptr().cast_mut().cast(),
            iov_len: bytes.len(),
        };
        let header = &mut headers[n].msg_hdr;
        header.msg_namelen = set_address(&mut names[n], to);
        header.msg_name = (&raw mut names[n]).cast();
        header.msg_iov = &raw mut slices[n];
        header.msg_iovlen = 1;
    }
    // SAFETY: `count` headers point to a name and a slice that outlive the call, and the slices to bytes that the kernel only reads.
    let result = unsafe {
        libc::sendmmsg(
            socket.as_raw_fd(),
            headers.as_mut_ptr(),
            count as libc::c_uint,
            libc::MSG_DONTWAIT,
        )
    };
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

fn address(name: &libc::sockaddr_storage) -> Option<SocketAddr> {
    match i32::from(name.ss_family) {
        libc::AF_INET => {
            // SAFETY: the family says that the kernel wrote a `sockaddr_in`, which is smaller and no more aligned.
            let name: &libc::sockaddr_in = unsafe { &*std::ptr::from_ref(name).cast() };
            let ip = Ipv4Addr::from(u32::from_be(name.sin_addr.s_addr));
            Some(SocketAddrV4::new(ip, u16::from_be(name.sin_port)).into())
        }
        libc::AF_INET6 => {
            // SAFETY: the family says that the kernel wrote a `sockaddr_in6`, which is smaller and no more aligned.
            let name: &libc::sockaddr_in6 = unsafe { &*std::ptr::from_ref(name).cast() };
            let ip = Ipv6Addr::from(name.sin6_addr.s6_addr);
            let port = u16::from_be(name.sin6_port);
            Some(SocketAddrV6::new(ip, port, 0, name.sin6_scope_id).into())
        }
        _ => None,
    }
}

fn set_address(name: &mut libc::sockaddr_storage, to: SocketAddr) -> libc::socklen_t {
    match to {
        SocketAddr::V4(to) => {
            // SAFETY: a `sockaddr_in` is smaller than and no more aligned than the storage it is written to.
            let name: &mut libc::sockaddr_in = unsafe { &mut *std::ptr::from_mut(name).cast() };
            name.sin_family = libc::AF_INET as libc::sa_family_t;
            name.sin_port = to.port().to_be();
            name.sin_addr.s_addr = u32::from(*to.ip()).to_be();
            size_of::<libc::sockaddr_in>() as libc::socklen_t
        }
        SocketAddr::V6(to) => {
            // SAFETY: a `sockaddr_in6` is smaller than and no more aligned than the storage it is written to.
            let name: &mut libc::sockaddr_in6 = unsafe { &mut *std::ptr::from_mut(name).cast() };
            name.sin6_family = libc::AF_INET6 as libc::sa_family_t;
            name.sin6_port = to.port().to_be();
            name.sin6_addr.s6_addr = to.ip().octets();
            name.sin6_scope_id = to.scope_id();
            size_of::<libc::sockaddr_in6>() as libc::socklen_t
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_batch_arrives_with_lengths_and_senders_in_both_families() {
        for local in ["127.0.0.1:0", "[::1]:0"] {
            let (a, b) = (
                UdpSocket::bind(local).unwrap(),
                UdpSocket::bind(local).unwrap(),
            );
            let to = b.local_addr().unwrap();
            let packets: Vec<Vec<u8>> = (1..=5).map(|n| vec![n; usize::from(n)]).collect();
            let sent = send(a.as_fd(), packets.iter().map(|packet| (&packet[..], to))).unwrap();
            assert_eq!(sent, 5);

            let mut buffers = vec![[0u8; 8]; 8];
            let mut received = Vec::new();
            receive(b.as_fd(), &mut buffers, &mut received).unwrap();
            assert_eq!(received.len(), 5);
            for (n, one) in received.iter().flatten().enumerate() {
                assert_eq!(buffers[n][..one.length], packets[n]);
                assert_eq!(one.from, a.local_addr().unwrap());
            }
        }
    }

    #[test]
    fn a_datagram_larger_than_its_buffer_is_ignored() {
        let (a, b) = (
            UdpSocket::bind("127.0.0.1:0").unwrap(),
            UdpSocket::bind("127.0.0.1:0").unwrap(),
        );
        a.send_to(&[1; 9], b.local_addr().unwrap()).unwrap();
        let mut received = Vec::new();
        receive(b.as_fd(), &mut [[0u8; 8]], &mut received).unwrap();
        assert!(matches!(received[..], [None]));
    }
}
