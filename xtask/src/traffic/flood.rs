//! Packets that a policy refuses, at a fixed pace, and the socket that would get them if one passed.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use crate::topology::Namespace;

/// Runs until stopped or dropped.
#[derive(Debug)]
pub struct Flood {
    shared: Arc<Shared>,
    sender: Option<JoinHandle<()>>,
    receiver: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    stop_sending: AtomicBool,
    stop: AtomicBool,
    sent: AtomicU64,
    received: AtomicU64,
}

impl Flood {
    /// One UDP packet every `interval` from `from` to `target`, an address of `to`.
    pub fn start(
        from: &Namespace,
        to: &Namespace,
        target: SocketAddr,
        interval: Duration,
    ) -> Result<Self> {
        let any = match target.ip() {
            IpAddr::V4(_) => IpAddr::from(Ipv4Addr::UNSPECIFIED),
            IpAddr::V6(_) => IpAddr::from(Ipv6Addr::UNSPECIFIED),
        };
        let sink = to
            .enter(|| UdpSocket::bind((any, target.port())))?
            .with_context(|| format!("bind UDP port {}", target.port()))?;
        sink.set_read_timeout(Some(Duration::from_millis(50)))?;
        let source = from.enter(|| UdpSocket::bind((any, 0)))??;
        let shared = Arc::new(Shared::default());
        let (sending, receiving) = (Arc::clone(&shared), Arc::clone(&shared));
        Ok(Self {
            shared,
            sender: Some(thread::spawn(move || {
                send(&source, target, &sending, interval);
            })),
            receiver: Some(thread::spawn(move || receive(&sink, &receiving))),
        })
    }

    pub fn sent(&self) -> u64 {
        self.shared.sent.load(Ordering::Relaxed)
    }

    /// How many passed.
    pub fn received(&self) -> u64 {
        self.shared.received.load(Ordering::Relaxed)
    }

    /// Ends the sending: the number of those sent is final. What is under way may still arrive.
    pub fn end_sending(&mut self) {
        self.shared.stop_sending.store(true, Ordering::Relaxed);
        let _ = self.sender.take().map(JoinHandle::join);
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.end_sending();
        self.shared.stop.store(true, Ordering::Relaxed);
        let _ = self.receiver.take().map(JoinHandle::join);
    }
}

fn send(socket: &UdpSocket, target: SocketAddr, shared: &Shared, interval: Duration) {
    let mut due = Instant::now();
    while !shared.stop_sending.load(Ordering::Relaxed) {
        if socket.send_to(b"refused", target).is_ok() {
            shared.sent.fetch_add(1, Ordering::Relaxed);
        }
        // As a ping: what was missed while this thread had no time is not made up for.
        due = (due + interval).max(Instant::now());
        thread::sleep(due.saturating_duration_since(Instant::now()));
    }
}

fn receive(socket: &UdpSocket, shared: &Shared) {
    let mut buffer = [0; 64];
    while !shared.stop.load(Ordering::Relaxed) {
        if socket.recv(&mut buffer).is_ok() {
            shared.received.fetch_add(1, Ordering::Relaxed);
        }
    }
}
