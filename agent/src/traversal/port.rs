//! Disco and STUN on WireGuard's own UDP port, which WireGuard owns.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6},
    os::fd::AsFd,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::{
    net::UdpSocket,
    sync::mpsc::{self, error::TrySendError},
    task::AbortHandle,
};

use super::{
    packet::{self, Start},
    shortcut::Shortcut,
    sys,
};

/// How many datagrams wait for the engine before new ones are dropped: discovery repeats what is lost.
const QUEUE: usize = 512;
/// The largest datagram looked at. Disco is padded up to a jumbo frame to probe a path's MTU.
const MAX_DATAGRAM: usize = 16_384;

/// A disco message or STUN response that came to WireGuard's port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Datagram {
    pub from: SocketAddr,
    pub bytes: Bytes,
}

/// Sends from WireGuard's port; receiving ends when the last clone is dropped.
#[derive(Clone, Debug)]
pub struct Port(Arc<Kind>);

#[derive(Debug)]
enum Kind {
    Raw(Raw),
    Shared {
        v4: Arc<UdpSocket>,
        v6: Option<Arc<UdpSocket>>,
        shortcut: Option<Shortcut>,
    },
}

#[derive(Debug)]
struct Raw {
    port: u16,
    v4: Arc<UdpSocket>,
    v6: Option<Arc<UdpSocket>>,
    /// Never sends: connecting it tells which source address the system chooses, which the checksum covers.
    chooser: Mutex<std::net::UdpSocket>,
    readers: Vec<AbortHandle>,
}

impl Port {
    /// Raw sockets beside WireGuard's own socket on `port`; everything sent carries `fwmark`, unless it is 0.
    ///
    /// # Errors
    /// Without CAP_NET_RAW (or CAP_NET_ADMIN for the mark): `PermissionDenied`. A host without IPv6 is no error.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn raw(port: u16, fwmark: u32) -> io::Result<(Self, mpsc::Receiver<Datagram>)> {
        let v4 = open_raw(Domain::IPV4, port, fwmark)?;
        let v6 = match open_raw(Domain::IPV6, port, fwmark) {
            Ok(socket) => Some(socket),
            Err(error) if is_no_ipv6(&error) => None,
            Err(error) => return Err(error),
        };
        let chooser = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
        set_mark(&chooser, fwmark)?;
        let (sender, receiver) = mpsc::channel(QUEUE);
        let mut readers = vec![tokio::spawn(read_v4(v4.clone(), sender.clone())).abort_handle()];
        if let Some(v6) = &v6 {
            readers.push(tokio::spawn(read_v6(v6.clone(), sender)).abort_handle());
        }
        let raw = Raw {
            port,
            v4,
            v6,
            chooser: Mutex::new(chooser.into()),
            readers,
        };
        Ok((Self(Arc::new(Kind::Raw(raw))), receiver))
    }

    /// The sockets of the userspace device, whose transport hands over disco and STUN itself.
    pub fn shared(
        v4: Arc<UdpSocket>,
        v6: Option<Arc<UdpSocket>>,
        shortcut: Option<Shortcut>,
    ) -> Self {
        Self(Arc::new(Kind::Shared { v4, v6, shortcut }))
    }

    /// Where relayed packets needn't cross the kernel.
    pub fn shortcut(&self) -> Option<&Shortcut> {
        match &*self.0 {
            Kind::Raw(_) => None,
            Kind::Shared { shortcut, .. } => shortcut.as_ref(),
        }
    }

    /// Sends at once or not at all: discovery repeats what is lost.
    ///
    /// # Errors
    /// Nothing was sent. `NetworkUnreachable` and `HostUnreachable` belong to
    /// [`lowroad_core::path::Paths::on_unreachable`].
    pub fn send(&self, to: SocketAddr, bytes: &[u8]) -> io::Result<()> {
        let to = SocketAddr::new(to.ip().to_canonical(), to.port());
        match (&*self.0, to) {
            (Kind::Raw(raw), SocketAddr::V4(to)) => raw.send_v4(to, bytes),
            (Kind::Raw(raw), SocketAddr::V6(to)) => raw.send_v6(to, bytes),
            (Kind::Shared { v4, .. }, SocketAddr::V4(_)) => send_now(v4, bytes, to),
            (Kind::Shared { v6: Some(v6), .. }, SocketAddr::V6(_)) => send_now(v6, bytes, to),
            (Kind::Shared { v6: None, .. }, SocketAddr::V6(_)) => {
                Err(io::ErrorKind::NetworkUnreachable.into())
            }
        }
    }
}

impl Raw {
    fn send_v4(&self, to: SocketAddrV4, bytes: &[u8]) -> io::Result<()> {
        let source = self.source_for(to)?;
        let packet = packet::udp4((source, self.port), (*to.ip(), to.port()), bytes)
            .ok_or(io::ErrorKind::InvalidInput)?;
        sys::send_from(self.v4.as_fd(), source, *to.ip(), &packet)
    }

    fn send_v6(&self, to: SocketAddrV6, bytes: &[u8]) -> io::Result<()> {
        let socket = self.v6.as_ref().ok_or(io::ErrorKind::NetworkUnreachable)?;
        let packet = packet::udp(self.port, to.port(), bytes).ok_or(io::ErrorKind::InvalidInput)?;
        // A raw socket takes no port in the address.
        let to = SocketAddrV6::new(*to.ip(), 0, 0, to.scope_id());
        send_now(socket, &packet, to.into())
    }

    fn source_for(&self, to: SocketAddrV4) -> io::Result<Ipv4Addr> {
        let chooser = self.chooser.lock().unwrap_or_else(PoisonError::into_inner);
        sys::disconnect(chooser.as_fd())?;
        chooser.connect(to)?;
        match chooser.local_addr()? {
            SocketAddr::V4(source) => Ok(*source.ip()),
            SocketAddr::V6(_) => Err(io::ErrorKind::AddrNotAvailable.into()),
        }
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        self.readers.iter().for_each(AbortHandle::abort);
    }
}

/// Sends past the runtime, which would first want to hear from the system that the socket can be written to.
fn send_now(socket: &UdpSocket, bytes: &[u8], to: SocketAddr) -> io::Result<()> {
    SockRef::from(socket).send_to(bytes, &to.into()).map(|_| ())
}

fn open_raw(domain: Domain, port: u16, fwmark: u32) -> io::Result<Arc<UdpSocket>> {
    let socket = Socket::new(domain, Type::RAW, Some(Protocol::UDP))?;
    let start = if domain == Domain::IPV4 {
        Start::AfterIpv4Header
    } else {
        sys::set_checksum_offset(socket.as_fd(), 6)?;
        Start::AtOnce
    };
    sys::attach_filter(socket.as_fd(), &packet::filter(port, start))?;
    drain(&socket);
    set_mark(&socket, fwmark)?;
    socket.set_nonblocking(true)?;
    Ok(Arc::new(UdpSocket::from_std(socket.into())?))
}

/// Takes out what arrived between the socket's making and its filter's.
fn drain(socket: &Socket) {
    use std::io::Read;
    let _ = socket.set_nonblocking(true);
    let mut buffer = [0; 64];
    while (&mut &*socket).read(&mut buffer).is_ok() {}
}

fn set_mark(socket: &Socket, fwmark: u32) -> io::Result<()> {
    if fwmark == 0 {
        return Ok(());
    }
    socket.set_mark(fwmark)
}

fn is_no_ipv6(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EAFNOSUPPORT)
}

async fn read_v4(socket: Arc<UdpSocket>, out: mpsc::Sender<Datagram>) {
    let parse = |_, bytes: &[u8]| {
        let (from, payload) = packet::parse_ipv4(bytes)?;
        Some(datagram(from, payload))
    };
    read(&socket, &out, parse).await;
}

async fn read_v6(socket: Arc<UdpSocket>, out: mpsc::Sender<Datagram>) {
    let parse = |from: SocketAddr, bytes: &[u8]| {
        let (port, payload) = packet::parse_udp(bytes)?;
        let mapped = matches!(from.ip(), std::net::IpAddr::V6(ip) if is_mapped(&ip));
        (!mapped).then(|| datagram(SocketAddr::new(from.ip(), port), payload))
    };
    read(&socket, &out, parse).await;
}

fn is_mapped(address: &Ipv6Addr) -> bool {
    address.to_ipv4_mapped().is_some()
}

fn datagram(from: SocketAddr, payload: &[u8]) -> Datagram {
    Datagram {
        from,
        bytes: Bytes::copy_from_slice(payload),
    }
}

async fn read(
    socket: &UdpSocket,
    out: &mpsc::Sender<Datagram>,
    parse: impl Fn(SocketAddr, &[u8]) -> Option<Datagram>,
) {
    let mut buffer = vec![0; MAX_DATAGRAM];
    loop {
        let (length, from) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(error) => {
                tracing::debug!(%error, "cannot read from the raw socket");
                tokio::task::yield_now().await;
                continue;
            }
        };
        let Some(datagram) = parse(from, &buffer[..length]) else {
            continue;
        };
        match out.try_send(datagram) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => tracing::trace!(%from, "dropped: the engine is behind"),
            Err(TrySendError::Closed(_)) => return,
        }
    }
}
