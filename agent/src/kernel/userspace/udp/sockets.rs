//! The two plain sockets on the WireGuard port.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::AsFd as _,
    sync::Arc,
};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;

use crate::{kernel::KernelError, traversal::sys};

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
    if let Err(error) = sys::force_buffers(socket.as_fd(), BUFFER as libc::c_int) {
        tracing::debug!(%error, "the socket keeps its small buffers");
    }
    socket.bind(&address.into())?;
    UdpSocket::from_std(socket.into())
}
