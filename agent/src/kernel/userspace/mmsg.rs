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
///
/// With `segmentation` (Linux 4.18), neighbours of one size to one destination go through the stack as one; a shorter one may end
/// such a row. It fails where a device has no checksum offload, or where a datagram would have to be fragmented.
pub(super) fn send<'a>(
    socket: BorrowedFd<'_>,
    datagrams: impl Iterator<Item = (&'a [u8], SocketAddr)>,
    segmentation: bool,
) -> io::Result<usize> {
    // SAFETY: all-zero bytes are valid for these C structures.
    let mut headers: [libc::mmsghdr; BATCH] = unsafe { MaybeUninit::zeroed().assume_init() };
    // SAFETY: as above.
    let mut names: [libc::sockaddr_storage; BATCH] = unsafe { MaybeUninit::zeroed().assume_init() };
    // SAFETY: as above.
    let mut slices: [libc::iovec; BATCH] = unsafe { MaybeUninit::zeroed().assume_init() };
    let mut controls = [SegmentSize::default(); BATCH];
    let mut rows: [Row; BATCH] = [Row::default(); BATCH];
    let mut count = 0;
    for (n, (bytes, to)) in datagrams.take(BATCH).enumerate() {
        slices[n] = libc::iovec {
            iov_base: bytes.as_ptr().cast_mut().cast(),
            iov_len: bytes.len(),
        };
        if segmentation && count > 0 && rows[count - 1].take(bytes.len(), to) {
            let (header, row) = (&mut headers[count - 1].msg_hdr, &rows[count - 1]);
            header.msg_iovlen = row.datagrams;
            controls[count - 1] = SegmentSize::new(row.size as u16);
            header.msg_control = (&raw mut controls[count - 1]).cast();
            header.msg_controllen = size_of::<SegmentSize>();
            continue;
        }
        rows[count] = Row::new(bytes.len(), to);
        let header = &mut headers[count].msg_hdr;
        header.msg_namelen = set_address(&mut names[count], to);
        header.msg_name = (&raw mut names[count]).cast();
        header.msg_iov = &raw mut slices[n];
        header.msg_iovlen = 1;
        count += 1;
    }
    // SAFETY: `count` headers point to a name, slices and perhaps a control message that outlive the call, and the slices to bytes
    // that the kernel only reads.
    let result = unsafe {
        libc::sendmmsg(
            socket.as_raw_fd(),
            headers.as_mut_ptr(),
            count as libc::c_uint,
            libc::MSG_DONTWAIT,
        )
    };
    let sent = usize::try_from(result).map_err(|_| io::Error::last_os_error())?;
    Ok(rows[..sent].iter().map(|row| row.datagrams).sum())
}

/// Most segments and bytes of one row: `UDP_MAX_SEGMENTS` of older kernels, and what fits into an IP packet.
const ROW_DATAGRAMS: usize = 64;
const ROW_BYTES: usize = 65_000;

/// Datagrams that go out as one message.
#[derive(Clone, Copy, Default)]
struct Row {
    to: Option<SocketAddr>,
    size: usize,
    bytes: usize,
    datagrams: usize,
    /// A shorter one came, which must be the last.
    ended: bool,
}

impl Row {
    fn new(size: usize, to: SocketAddr) -> Self {
        Self {
            to: Some(to),
            size,
            bytes: size,
            datagrams: 1,
            ended: size == 0,
        }
    }

    fn take(&mut self, size: usize, to: SocketAddr) -> bool {
        let fits = !self.ended
            && self.to == Some(to)
            && (1..=self.size).contains(&size)
            && self.datagrams < ROW_DATAGRAMS
            && self.bytes + size <= ROW_BYTES;
        if fits {
            self.bytes += size;
            self.datagrams += 1;
            self.ended = size < self.size;
        }
        fits
    }
}

/// The control message `UDP_SEGMENT`, laid out as `CMSG_DATA` has it on 64-bit machines.
#[derive(Clone, Copy, Default)]
#[repr(C)]
struct SegmentSize {
    length: usize,
    level: libc::c_int,
    kind: libc::c_int,
    size: u16,
    padding: [u16; 3],
}

impl SegmentSize {
    fn new(size: u16) -> Self {
        let length = size_of::<libc::cmsghdr>() + size_of::<u16>();
        Self {
            length,
            level: libc::SOL_UDP,
            kind: libc::UDP_SEGMENT,
            size,
            padding: [0; 3],
        }
    }
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
            let sent = send(
                a.as_fd(),
                packets.iter().map(|packet| (&packet[..], to)),
                false,
            )
            .unwrap();
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

    #[test]
    fn rows_of_one_size_arrive_as_the_datagrams_they_were() {
        for local in ["127.0.0.1:0", "[::1]:0"] {
            let (a, b, c) = (bind(local), bind(local), bind(local));
            let sizes = [1200, 1200, 1200, 700, 1200, 1200, 32, 0, 32, 1200, 1300, 5];
            let packets: Vec<(Vec<u8>, &UdpSocket)> = sizes
                .iter()
                .enumerate()
                .map(|(n, size)| (vec![n as u8; *size], if n == 5 { &c } else { &b }))
                .collect();
            let datagrams = packets
                .iter()
                .map(|(bytes, to)| (&bytes[..], to.local_addr().unwrap()));
            assert_eq!(send(a.as_fd(), datagrams, true).unwrap(), sizes.len());

            let mut buffers = vec![[0u8; 2000]; 32];
            let mut received = Vec::new();
            receive(b.as_fd(), &mut buffers, &mut received).unwrap();
            let expected: Vec<&[u8]> = packets
                .iter()
                .filter(|(_, to)| std::ptr::eq(*to, &b))
                .map(|(bytes, _)| &bytes[..])
                .collect();
            let got: Vec<&[u8]> = received
                .iter()
                .flatten()
                .zip(&buffers)
                .map(|(one, buffer)| &buffer[..one.length])
                .collect();
            assert_eq!(got, expected);
        }
    }

    fn bind(local: &str) -> UdpSocket {
        UdpSocket::bind(local).unwrap()
    }
}
