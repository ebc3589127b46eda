//! Disco and STUN on WireGuard's own UDP port, which WireGuard owns.

use std::{io, net::SocketAddr, sync::Arc};

use bytes::Bytes;
use tokio::{net::UdpSocket, sync::mpsc};

/// A disco message or STUN response that came to WireGuard's port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Datagram {
    pub from: SocketAddr,
    pub bytes: Bytes,
}

/// Sends from WireGuard's port.
#[derive(Clone, Debug)]
pub struct Port(Arc<Kind>);

#[derive(Debug)]
enum Kind {
    Shared {
        v4: Arc<UdpSocket>,
        v6: Option<Arc<UdpSocket>>,
    },
}

impl Port {
    /// Raw sockets beside the kernel's WireGuard socket. Needs CAP_NET_RAW and a tokio runtime with I/O.
    pub fn raw(port: u16, fwmark: u32) -> io::Result<(Self, mpsc::Receiver<Datagram>)> {
        let _ = (port, fwmark);
        Err(io::Error::other("the raw sockets have not landed"))
    }

    /// The sockets of the userspace device, whose transport hands over disco and STUN itself.
    pub fn shared(v4: Arc<UdpSocket>, v6: Option<Arc<UdpSocket>>) -> Self {
        Self(Arc::new(Kind::Shared { v4, v6 }))
    }

    /// Sends at once or not at all: discovery repeats what is lost. An error says that nothing was sent; kinds
    /// `NetworkUnreachable` and `HostUnreachable` belong to [`lowroad_core::path::Paths::on_unreachable`].
    pub fn send(&self, to: SocketAddr, bytes: &[u8]) -> io::Result<()> {
        let Kind::Shared { v4, v6 } = &*self.0;
        let socket = match (to, v6) {
            (SocketAddr::V4(_), _) => v4,
            (SocketAddr::V6(_), Some(v6)) => v6,
            (SocketAddr::V6(_), None) => return Err(io::ErrorKind::NetworkUnreachable.into()),
        };
        socket.try_send_to(bytes, to).map(|_| ())
    }
}
