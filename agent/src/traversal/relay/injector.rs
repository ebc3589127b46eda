//! Puts packets into WireGuard's port as if they came from its peers' endpoints.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::AsFd,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use bytes::Bytes;
use socket2::{Domain, Protocol, Socket, Type};

use crate::traversal::{packet::InjectedHeader, sys};

/// Send buffer: what is injected waits nowhere else.
const SEND_BUFFER: usize = 4 << 20;
/// How long an answer of the routing table counts: addresses come and go.
const ROUTE_LIFETIME: Duration = Duration::from_secs(1);
/// Answers kept; a netmap can hold many peers, but few are relayed and have an IPv6 endpoint at once.
const MAX_ROUTES: usize = 1024;

#[derive(Debug)]
pub(super) struct Injector {
    v4: Socket,
    v6: Option<Socket>,
    port: u16,
    mark: u32,
    routes: Mutex<HashMap<Ipv6Addr, (Ipv6Addr, Instant)>>,
}

impl Injector {
    pub fn open(port: u16, mark: u32) -> io::Result<Self> {
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
            mark,
            routes: Mutex::default(),
        })
    }

    /// Injects packets in order, each with its source. What cannot be sent is lost, as on any network.
    pub fn inject(&self, packets: &[(SocketAddr, Bytes)]) {
        let now = Instant::now();
        for batch in packets.chunks(sys::BATCH) {
            let headers = batch.iter().filter_map(|(source, payload)| {
                let to = self.target(source, now);
                let header = InjectedHeader::new(*source, SocketAddr::new(to, self.port), payload)?;
                Some((to, header, &payload[..]))
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

    /// The address of ours that a packet from `source` is injected to.
    ///
    /// WireGuard answers from the address that it was spoken to. For IPv4 it notices that a loopback address is none to
    /// leave the host from; for IPv6 it does not (`send6` in drivers/net/wireguard/socket.c) and would send from `::1`
    /// until its next handshake. So that is the address that packets to `source` leave from.
    fn target(&self, source: &SocketAddr, now: Instant) -> IpAddr {
        let SocketAddr::V6(source) = source else {
            return Ipv4Addr::LOCALHOST.into();
        };
        let mut routes = self.routes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((local, asked)) = routes.get(source.ip())
            && now.saturating_duration_since(*asked) < ROUTE_LIFETIME
        {
            return (*local).into();
        }
        // Without a route WireGuard cannot answer directly anyhow.
        let local = self
            .local_address((*source).into())
            .unwrap_or(Ipv6Addr::LOCALHOST);
        if routes.len() >= MAX_ROUTES {
            routes.clear();
        }
        routes.insert(*source.ip(), (local, now));
        local.into()
    }

    /// Which address the kernel would send from; connecting a UDP socket sends nothing.
    fn local_address(&self, to: SocketAddr) -> Option<Ipv6Addr> {
        let socket = Socket::new(Domain::IPV6, Type::DGRAM, Some(Protocol::UDP)).ok()?;
        socket.set_mark(self.mark).ok()?;
        socket.connect(&to.into()).ok()?;
        Some(*socket.local_addr().ok()?.as_socket_ipv6()?.ip())
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
