//! The two plain sockets on the WireGuard port.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::AsRawFd,
    sync::Arc,
};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;

use crate::kernel::KernelError;

/// Room for bursts; the kernel's default holds some 150 full packets.
const BUFFER: usize = 4 << 20;

/// The sockets of the WireGuard port.
#[derive(Clone, Debug)]
pub(in crate::kernel::userspace) struct Sockets {
    pub v4: Arc<UdpSocket>,
    /// `None` where the kernel has no IPv6.
    pub v6: Option<Arc<UdpSocket>>,
}

impl Sockets {
    pub fn bind(port: u16, mark: u32) -> Result<Self, KernelError> {
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::AddrInUse => KernelError::PortTaken { port },
            io::ErrorKind::PermissionDenied => KernelError::NotPermitted {
                what: format!("binding and marking UDP port {port}"),
            },
            _ => KernelError::Netlink {
                what: format!("binding UDP port {port}"),
                source,
            },
        };
        let v4 = bind((Ipv4Addr::UNSPECIFIED, port).into(), mark).map_err(failed)?;
        let v6 = match bind((Ipv6Addr::UNSPECIFIED, port).into(), mark) {
            Ok(socket) => Some(Arc::new(socket)),
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL)
                ) =>
            {
                None
            }
            Err(error) => return Err(failed(error)),
        };
        Ok(Self {
            v4: Arc::new(v4),
            v6,
        })
    }

    pub(super) fn each(&self) -> impl Iterator<Item = &UdpSocket> {
        std::iter::once(&*self.v4).chain(self.v6.as_deref())
    }

    pub(super) fn for_target(&self, to: SocketAddr) -> io::Result<&UdpSocket> {
        match (to, &self.v6) {
            (SocketAddr::V4(_), _) => Ok(&self.v4),
            (SocketAddr::V6(_), Some(v6)) => Ok(v6),
            (SocketAddr::V6(_), None) => Err(io::ErrorKind::AddrNotAvailable.into()),
        }
    }

    pub(super) async fn readable(&self) {
        let v6 = async {
            match &self.v6 {
                Some(socket) => socket.readable().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.v4.readable() => {}
            _ = v6 => {}
        }
    }

    pub fn set_mark(&self, mark: u32) -> io::Result<()> {
        self.each()
            .try_for_each(|socket| socket2::SockRef::from(socket).set_mark(mark))
    }
}

fn bind(address: SocketAddr, mark: u32) -> io::Result<UdpSocket> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::DGRAM.nonblocking().cloexec(),
        Some(Protocol::UDP),
    )?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    if mark != 0 {
        socket.set_mark(mark)?;
    }
    for option in [libc::SO_RCVBUFFORCE, libc::SO_SNDBUFFORCE] {
        if let Err(error) = force_buffer(&socket, option) {
            tracing::debug!(%error, "the socket keeps its small buffer");
        }
    }
    socket.bind(&address.into())?;
    UdpSocket::from_std(socket.into())
}

fn force_buffer(socket: &Socket, option: libc::c_int) -> io::Result<()> {
    let size = BUFFER as libc::c_int;
    // SAFETY: the descriptor is open, and the pointer and length are those of an integer, as these options want.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            (&raw const size).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
