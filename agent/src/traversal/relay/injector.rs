//! Puts packets into WireGuard's port as if they came from its peers' endpoints.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::AsFd,
};

use socket2::{Domain, Protocol, Socket, Type};

use crate::traversal::{packet::InjectedHeader, sys};

/// Send buffer: what is injected waits nowhere else.
const SEND_BUFFER: usize = 4 << 20;

#[derive(Debug)]
pub(super) struct Injector {
    v4: Socket,
    v6: Option<Socket>,
    port: u16,
}

impl Injector {
    pub fn open(port: u16) -> io::Result<Self> {
        let open = |domain| {
            let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(libc::IPPROTO_RAW)))?;
            socket.set_nonblocking(true)?;
            let _ = socket.set_send_buffer_size(SEND_BUFFER);
            Ok::<_, io::Error>(socket)
        };
        let v6 = open(Domain::IPV6).and_then(|socket| {
            sys::set_header_included_v6(socket.as_fd())?;
            Ok(socket)
        });
        Ok(Self {
            v4: open(Domain::IPV4)?,
            // Without IPv6 no endpoint is an IPv6 one.
            v6: v6.ok(),
            port,
        })
    }

    /// Injects packets in order, each with its source. What cannot be sent is lost, as on any network.
    pub fn inject(&self, packets: &[(SocketAddr, &[u8])]) {
        for batch in packets.chunks(sys::BATCH) {
            let headers = batch.iter().filter_map(|(source, payload)| {
                let header = InjectedHeader::new(*source, self.port, payload)?;
                Some((InjectedHeader::target(source), header, *payload))
            });
            let headers: Vec<_> = headers.collect();
            for run in headers.chunk_by(|a, b| a.0 == b.0) {
                let packets: Vec<_> = run
                    .iter()
                    .map(|(_, header, payload)| (header.as_bytes(), *payload))
                    .collect();
                self.send(run[0].0, &packets);
            }
        }
    }

    fn send(&self, to: IpAddr, mut packets: &[(&[u8], &[u8])]) {
        let socket = match (to, &self.v6) {
            (IpAddr::V4(_), _) => &self.v4,
            (IpAddr::V6(_), Some(v6)) => v6,
            (IpAddr::V6(_), None) => return,
        };
        while !packets.is_empty() {
            // An error belongs to the first packet: drop that one.
            let sent = sys::send_batch(socket.as_fd(), to, packets).unwrap_or_else(|error| {
                tracing::debug!(%error, "cannot inject a relayed packet");
                1
            });
            packets = &packets[sent.clamp(1, packets.len())..];
        }
    }
}
